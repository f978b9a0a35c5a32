"""What a series of an archive costs besides its enhancement, and how that grows with the archive. A SIMULATION.

    python benchmarks/archive_scale.py --series 1000 10000 100000 1000000 [--claims 64] [--processes 2] [--fill] [--point 2000]
                                       [--folder DIR] [--database sqlite|postgresql] [--keep] [-o archive_scale.json]

Real: the plan (SQLite), its coordinator, job folders with their flushes, the queue (DBOS) on a PostgreSQL of its own,
the workers' loop, all stages, the audit trail, results, clearing away. Not real:

- series: rows of a plan with one instance each; nothing lies on a disk, and fetching makes nothing;
- the enhancer: writes a report and a derived file of 1 kB, computes nothing;
- the destination: says that it has stored what it was sent;
- workers: a few processes stand for `--claims` of them. Together they may hold as many series as so many workers, and
  ask for work as often: each looks at the queues as many times more often. The column "looks" says how often they did.
- with --fill, series between two of the sizes are entered into the plan as done, and only the last `--window` before
  each size are really run. Without it every one is run.

The columns are of the last `--window` series before each size: wall time and processor time for a series, of the
coordinator, of all worker processes and of PostgreSQL; then resident memory, and how large plan and database are.
Processor time of the workers holds their looking at empty queues, which on many hosts is spread over them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from medenhance_dicom.archive.plan import Done, JobRow, Method, Plan, job_id

BINARIES = Path("/usr/lib/postgresql/15/bin")
TICK = os.sysconf("SC_CLK_TCK")
WARM = 64
"""Series that are run before anything is measured."""
METHOD = Method("nothing", "0" * 64)
CLASS = "1.2.840.10008.5.1.4.1.1.7"
CONFIG = """
store = "store"
[[destinations]]
name = "nowhere"
stow = "http://127.0.0.1:1/studies"
commit = false
[work]
database = "{database}"
workers = 0
"""


# ---------------------------------------------------------------- PostgreSQL


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[tuple[str, int]]:
    """A cluster of its own in `folder`, which flushes as PostgreSQL does; URL of a database, and the server's pid."""
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    user = []
    if os.geteuid() == 0:  # it does not run as root
        shutil.chown(folder, "nobody", "nogroup")
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]

    def run(tool: str, *arguments: str) -> None:
        subprocess.run([*user, str(BINARIES / tool), *arguments], check=True, capture_output=True, cwd=folder)

    run("initdb", "-D", str(folder / "data"), "-U", "bench", "-A", "trust", "--no-sync")
    options = f"-c listen_addresses=127.0.0.1 -p {port} -k {folder} -c max_connections=200"
    run("pg_ctl", "start", "-w", "-D", str(folder / "data"), "-l", str(folder / "log"), "-o", options)
    try:
        pid = int((folder / "data" / "postmaster.pid").read_text().split()[0])
        yield f"postgresql://bench@127.0.0.1:{port}/b{secrets.token_hex(4)}", pid
    finally:
        run("pg_ctl", "stop", "-m", "immediate", "-D", str(folder / "data"))


def database_bytes(url: str) -> int:
    """Of all tables."""
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///"))
        return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
    import psycopg

    with psycopg.connect(url) as connection:
        return connection.execute("SELECT pg_database_size(current_database())").fetchone()[0]


# ---------------------------------------------------------------- processes


def family(pid: int) -> list[int]:
    """A process and its children."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return [pid, *map(int, children.read_text().split())] if children.exists() else []


def processor_seconds(pids: list[int]) -> float:
    """Of processes, and of children of theirs that have ended."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICK


def resident(pid: int) -> int:
    """Bytes of a process that are its own: shared buffers count once, not for each."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
        return int(fields["Pss"].split()[0]) << 10
    return 0


# ---------------------------------------------------------------- a worker


def work(config: Path, claims: int, counter: Path) -> None:
    """A process that stands for `claims` workers; what `--work` runs."""
    from medenhance_dicom import worker
    from medenhance_dicom.allocator import keep_one_arena
    from medenhance_dicom.node import enhancing, fetching
    from medenhance_dicom.node import work as node_work
    from medenhance_dicom.node.control import database_of
    from medenhance_dicom.node.delivering import Peers
    from medenhance_dicom.node.forward import SendReport, Sent
    from medenhance_dicom.node.settings import load_settings

    keep_one_arena()
    looks = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **more: Any) -> Any:
            nonlocal looks
            looks += 1
            return function(*arguments, **more)

        return called

    from dbos._sys_db import SystemDatabase

    SystemDatabase.start_queued_workflows = counted(SystemDatabase.start_queued_workflows)  # type: ignore[method-assign]
    for name in ("FETCHES", "TAKEN", "TAKEN_BY_FEW", "DELIVERIES"):
        setattr(worker, name, getattr(worker, name) * claims)
    for name in ("POLLING_SECONDS", "UNHURRIED_SECONDS"):
        setattr(worker, name, getattr(worker, name) / claims)
    fetching._fetch = lambda *_: {}
    enhancing.Enhancing._enhance = lambda self, folder, *_: enhance_nothing(folder)  # type: ignore[method-assign]

    def send(paths: Any, destination: Any, calling_ae: str) -> SendReport:
        report = SendReport()
        report.sent += [Sent(path, CLASS, path.stem, 0) for path in paths]
        return report

    read = node_work.settings_reader(partial(load_settings, config))
    settings = read()
    peers = Peers(send, lambda *_: None, lambda _: None)
    running = worker.launch(
        node_work.SeriesWork(read, peers), database=database_of(settings), locks=settings.store / "workers"
    )
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    while not stop.wait(1):
        counter.write_text(str(looks))
    running.stop(5)
    os._exit(0)


def enhance_nothing(folder: Path) -> tuple[dict[str, int], list[str]]:
    """Derived files and a report as `Enhancing._enhance` leaves them, of nothing."""
    groups = json.loads((folder / "job.json").read_bytes())["groups"]
    outcomes, derived = [], []
    for group in groups:
        for number, key in enumerate(group["keys"]):
            name = f"derived/1.2/1.2.3/2.25.{int(key[:24], 16)}.dcm"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"\0" * 1000)
            derived.append(name)
            outcomes.append(
                {
                    "source": str(folder / "source" / f"{number}.dcm"), "result": "enhanced", "reason": None,
                    "lassim": 0.9, "verdict": {"mean_change": 1.0}, "derived": str(folder / name), "seconds": {},
                    "derived_sop_instance_uid": Path(name).stem,
                }
            )  # fmt: skip
    (folder / "run_report.json").write_text(json.dumps({"outcomes": outcomes}))
    return {"enhanced": len(outcomes)}, derived


@contextlib.contextmanager
def workers(config: Path, processes: int, claims: int, folder: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    share = max(1, claims // processes)
    children = [
        subprocess.Popen(
            [sys.executable, __file__, "--work", str(config), str(share), str(folder / f"looks{n}")],
            stdin=subprocess.PIPE,
        )
        for n in range(processes)
    ]
    try:
        yield children
    finally:
        for child in children:
            assert child.stdin is not None
            child.stdin.close()
        for child in children:
            try:
                child.wait(30)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


def looks_of(folder: Path) -> int:
    """Statements that asked for work, of all workers so far."""
    return sum(int(path.read_text() or 0) for path in folder.glob("looks*"))


# ---------------------------------------------------------------- the archive


def grow(plan: Plan, source: int, first: int, last: int) -> float:
    """Add series `first` to `last`, chosen; seconds for each."""
    from medenhance_dicom.node.sources import Found

    started = time.perf_counter()
    scan = plan.begin_scan(source)
    for start in range(first, last, 1000):
        scan.add(
            Found(
                f"/archive/{number}.dcm", 500_000, "0",
                {
                    "StudyInstanceUID": f"1.2.3.{number // 4}", "SeriesInstanceUID": f"1.2.3.{number // 4}.{number}",
                    "SOPInstanceUID": f"1.2.3.{number // 4}.{number}.1", "SOPClassUID": CLASS, "Modality": "OT",
                    "Manufacturer": "Bench", "ManufacturerModelName": f"M{number % 7}",
                },
            )
            for number in range(start, min(start + 1000, last))
        )  # fmt: skip
    scan._flush()  # not `end`: what was added before is still there
    with plan._transaction():
        for series in plan.new_series():
            plan.choose(series.id, METHOD)
    return (time.perf_counter() - started) / max(1, last - first)


def pretend(plan: Plan, count: int) -> None:
    """Enter so many open series as done, without a job."""
    with plan._transaction():
        for series in plan.open_series():
            if not count:
                break
            count -= 1
            keys = [row.key for row in plan.open_instances(series)]
            name = job_id(series.key, METHOD.key, keys)
            job = JobRow(name, series.id, METHOD.key, False, "open", "", (), 0.0)
            plan.end_job(job, [Done(key, "enhanced", None, 0.9, 1.0, 1.0, 1000, "2.25.1") for key in keys], at=0.0)


@dataclass(frozen=True)
class Row:
    """Of the series before `size`."""

    size: int
    series: int
    """Really run for this row."""
    wall_ms: float
    coordinator_ms: float
    workers_ms: float
    database_ms: float
    looks_per_second: float
    coordinator_mib: float
    worker_mib: float
    """Of the largest."""
    database_mib: float
    plan_mib: float
    stored_mib: float
    """Tables of the queue."""
    status_ms: float
    """Of `archive status`."""

    @property
    def total_ms(self) -> float:
        """Processor time for a series."""
        return self.coordinator_ms + self.workers_ms + self.database_ms


@dataclass(frozen=True)
class Point:
    """Memory in use after so many series."""

    series: int
    coordinator_mib: float
    worker_mib: float
    """Of the largest."""
    database_mib: float


class Meter:
    """Processor time, looks and wall time since the last reading."""

    def __init__(self, children: list[subprocess.Popen[bytes]], server: int | None, folder: Path) -> None:
        self._children, self._server, self._folder = [child.pid for child in children], server, folder
        self._last = self._read()

    def _read(self) -> tuple[float, ...]:
        server = family(self._server) if self._server else []
        return (
            time.perf_counter(),
            time.process_time(),
            processor_seconds([pid for child in self._children for pid in family(child)]),
            processor_seconds(server),
            looks_of(self._folder),
        )

    def read(self) -> tuple[float, ...]:
        """Wall, coordinator, workers, server, looks."""
        before, self._last = self._last, self._read()
        return tuple(now - then for now, then in zip(self._last, before, strict=True))

    def memory(self) -> tuple[float, float, float]:
        """MiB of the coordinator, the largest worker, the server in all."""
        server = sum(map(resident, family(self._server))) if self._server else 0
        return tuple(round(n / 2**20, 1) for n in (resident(os.getpid()), max(map(resident, self._children)), server))  # type: ignore[return-value]


def measure(options: argparse.Namespace, folder: Path) -> tuple[list[Row], list[Point]]:
    from medenhance_dicom.archive import reporting, running
    from medenhance_dicom.node.settings import load_settings

    rows: list[Row] = []
    curve: list[Point] = []
    with contextlib.ExitStack() as stack:
        if options.database == "postgresql":
            database, server = stack.enter_context(postgresql(folder / "postgresql"))
        else:
            database, server = f"sqlite:///{folder / 'store' / 'node.sqlite'}", None
        config = folder / "node.toml"
        config.write_text(CONFIG.format(database=database))
        plan = stack.enter_context(Plan(folder / "plan", create=True))
        source = plan.add_source("/archive").id
        request = running.Request(to="nowhere", ahead=options.ahead, workers=0)
        coordinator = running.Coordinator(plan, load_settings(config), request, config=config)
        stack.callback(coordinator.close)
        if options.keep:
            coordinator._jobs.forget = lambda jobs, stages=(): None  # type: ignore[method-assign]
        children = stack.enter_context(workers(config, options.processes, options.claims, folder))
        meter = Meter(children, server, folder)
        before = WARM  # by then every worker is up, and what a run pays once is paid
        grow(plan, source, 0, before)
        run(coordinator, before)
        for size in sorted(options.series):
            window = min(options.window, size - before)
            if window <= 0:
                raise SystemExit(f"--series: more than {WARM}, and different ones")
            planned = grow(plan, source, before, size)
            print(f"{size:>9,} series planned, {1e3 * planned:.2f} ms each", file=sys.stderr, flush=True)
            if options.fill:
                pretend(plan, size - before - window)
            left = plan.counts()["open_series"]
            while left > window:
                left -= run(coordinator, min(options.point, left - window))
                curve.append(Point(size - left, *meter.memory()))
            meter.read()
            done = run(coordinator, min(window, left))
            wall, own, working, serving, looks = meter.read()
            begun = time.perf_counter()
            reporting.status(plan, now=time.time())
            told = time.perf_counter() - begun
            each = 1e3 / max(done, 1)
            stored = sum(file.stat().st_size for file in (folder / "plan").glob("plan.sqlite*"))
            rows.append(
                Row(
                    size, done, wall * each, own * each, working * each, serving * each, looks / wall, *meter.memory(),
                    plan_mib=stored / 2**20, stored_mib=database_bytes(database) / 2**20, status_ms=1e3 * told,
                )
            )  # fmt: skip
            show(rows[-1])
            curve.append(Point(size, *meter.memory()))
            before = size
    return rows, curve


def run(coordinator: Any, series: int) -> int:
    """Have so many series done; returns how many were, which may be a few more."""
    before = coordinator.progress.series
    coordinator._exhausted = False
    if not coordinator.progress.seconds:
        coordinator._took_up()
    waited = time.monotonic()
    while coordinator.progress.series - before < series:
        if coordinator.step():
            waited = time.monotonic()
        else:
            time.sleep(0.02)
        if time.monotonic() - waited > 120:
            raise SystemExit(f"nothing was done for two minutes: {coordinator.plan.counts()}")
    return int(coordinator.progress.series - before)


HEAD = (
    "   series    run  wall ms   cpu ms = coord + workers +   db    looks/s   coord MiB  worker MiB  db MiB  "
    "plan MiB  queue MiB  status ms"
)


def show(row: Row) -> None:
    print(
        f"{row.size:>9,} {row.series:>6,} {row.wall_ms:>8.1f} {row.total_ms:>8.1f} = {row.coordinator_ms:>5.1f} + "
        f"{row.workers_ms:>7.1f} + {row.database_ms:>4.1f} {row.looks_per_second:>10.0f} {row.coordinator_mib:>11.1f} "
        f"{row.worker_mib:>11.1f} {row.database_mib:>7.1f} {row.plan_mib:>9.1f} {row.stored_mib:>10.1f} "
        f"{row.status_ms:>10.1f}",
        flush=True,
    )


def main() -> None:
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--series", type=int, nargs="+", default=[1000, 2000])
    parser.add_argument("--claims", type=int, default=64, help="workers that the processes stand for")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--window", type=int, default=1000, help="series that a row is measured over")
    parser.add_argument("--ahead", type=int, default=256, help="as of `archive run`")
    parser.add_argument("--point", type=int, default=2000, help="series between two points of the memory curve")
    parser.add_argument("--fill", action="store_true", help="enter as done what is before each window")
    parser.add_argument("--keep", action="store_true", help="never clear the queue: what if finished jobs stayed")
    parser.add_argument("--database", choices=("postgresql", "sqlite"), default="postgresql")
    parser.add_argument("--folder", type=Path, help="where the store and the database lie; by default a temporary one")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    if options.database == "postgresql" and not (BINARIES / "initdb").exists():
        raise SystemExit("no PostgreSQL 15; see .ci/run, or --database sqlite")
    folder = Path(tempfile.mkdtemp(prefix="archive-scale-", dir=options.folder))
    folder.chmod(0o711)  # the server runs as another user
    print(f"simulation: null enhancer, synthetic series, {options.processes} processes for {options.claims} workers")
    print(HEAD, flush=True)
    try:
        rows, curve = measure(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    first, last = rows[0], rows[-1]
    print(
        f"processor time for a series, {last.size:,} against {first.size:,} series: "
        f"{100 * (last.total_ms / first.total_ms - 1):+.0f} %"
    )
    if options.output:
        asked = {name: value for name, value in vars(options).items() if name not in ("output", "folder")}
        found = {"simulation": True, "cores": os.cpu_count(), **asked}
        told = [asdict(row) | {"total_ms": row.total_ms} for row in rows]
        options.output.write_text(
            json.dumps({**found, "rows": told, "curve": [asdict(p) for p in curve]}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
