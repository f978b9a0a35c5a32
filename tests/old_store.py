"""Makes tests/data/old_store.tar.xz: what a release leaves behind that is stopped in the middle. Holds no tests.

    cd CHECKOUT-OF-THE-RELEASE && PYTHONPATH=$PWD python .../tests/old_store.py FOLDER TARGET.tar.xz

Made by commit 4566059. FOLDER, which must not exist, holds then, and the archive too:

    made-in               FOLDER, as it stands in the files below
    node/                 node.toml, store/ and out/, the folder of its one destination. Series, by number:
        1 done                    and in out/
        2 enhanced                out/ did not take it, and the next go is due
        3 delivered in part       one of two files is in out/, and the worker died before it wrote that down
        4 half enhanced           the worker died when one of two files was in derived/
        5 sealed                  queued, and not begun
        6 pending                 still coming in
    archive/, plan/, enhanced/   a plan by series of two instances, and the output folder:
        1 done                    in the plan, and cleared away
        2 delivered               the coordinator was killed before it took that in
        3 half enhanced
        4 queued
        5 open
    objects/              source/ and derived/ of kinds that differ: colour, grey with a report, functional groups
"""

import contextlib
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from medenhance_dicom.archive import planning, running
from medenhance_dicom.archive.plan import Plan
from medenhance_dicom.enhance import Enhancement
from medenhance_dicom.jobs import Jobs, sqlite_url
from medenhance_dicom.node import identity, spool, tofolder, work
from medenhance_dicom.node.settings import load_settings
from medenhance_dicom.selection import Settings
from medenhance_dicom.worker import Surroundings, launch
from tests.synthetic import make_file
from tests.waiting import wait_until

WORK, SLOW_WORK = (
    f"""
[work]
attempts = 50
first_pause = {pause}
longest_pause = {pause}
heartbeat_seconds = 0.2
silent_seconds = {silent}
"""
    for pause, silent in ((0.2, 1.5), (600, 600))
)
NODE = """
store = "store"
[enhance]
recipe = "identity"
device = "cpu"
[[destinations]]
name = "folder"
folder = "out"
send = "derived"
"""
SERIES, INSTANCES = 6, 2


def instances(folder, series):
    """A series as a modality sends it, or as it lies in an archive."""
    for n in range(INSTANCES):
        path = make_file(
            folder / f"{series}-{n}.dcm", "CR", rows=16, columns=16,
            PatientName=f"Test^{series}", PatientID=f"T{series}",
            StudyInstanceUID=f"1.2.826.0.1.9999.1.{series}", SeriesInstanceUID=f"1.2.826.0.1.9999.2.{series}",
            SOPInstanceUID=f"1.2.826.0.1.9999.3.{series}.{n + 1}", InstanceNumber=n + 1,
        )  # fmt: skip
        os.utime(path, (1.7e9, 1.7e9))  # a plan knows a file by that, and a tar file has no fractions of seconds
        yield path


# ---------------------------------------------------------------- the node


def make_node(root):
    """Its jobs, brought to where they stop; then all workers are killed."""
    folder = root / "node"
    (folder / "out").mkdir(parents=True)
    (folder / "node.toml").write_text(NODE + SLOW_WORK)
    store = folder / "store"
    jobs = [receive(store, root / "scratch", series) for series in (1, 2, 3, 4, 5)]
    receive(store, root / "scratch", 6, seal=False)
    shutil.rmtree(root / "scratch")
    with contextlib.closing(Jobs(sqlite_url(store / "node.sqlite"))) as queue:
        for job in jobs[:4]:
            queue.enqueue(job)
        workers = [start(folder / "node.toml", name, *jobs[2:4]) for name in ("elsewhere.0", "elsewhere.1")]
        (folder / "out" / f"full-{jobs[1]}").touch()
        wait_until(lambda: len(list((folder / "out").glob("*/*/*.dcm"))) == 3)
        wait_until(lambda: len(list((store / "jobs" / jobs[3]).rglob("derived/*/*/*.dcm"))) == 1)
        wait_until(lambda: [stage.state for stage in queue.job(jobs[1]).stages] == ["done", "waiting"])
        time.sleep(1.0)
        for worker in workers:
            worker.kill()
            worker.wait()
        queue.enqueue(jobs[4])
    (folder / "out" / f"full-{jobs[1]}").unlink()
    (folder / "node.toml").write_text(NODE + WORK)
    (folder / "jobs.json").write_text(json.dumps(dict(enumerate(jobs, 1))))


def receive(store, scratch, series, *, seal=True):
    """Returns: the id of the job."""
    scratch.mkdir(exist_ok=True)
    opened = spool.Spool(store)
    for path in instances(scratch, series):
        part = opened.new_part()
        shutil.copyfile(path, part)
        accepted = opened.accept(part, identity.read_identity(part), calling_ae="CR1", called_ae="US")
    return opened.seal(accepted.series_key, partial=False).job_id if seal else None


# ---------------------------------------------------------------- the archive


def make_archive(root):
    """A plan, and a run of it that is killed."""
    for series in range(1, SERIES):
        (root / "archive" / str(series)).mkdir(parents=True)
        list(instances(root / "archive" / str(series), series))
    plan = root / "plan"
    with Plan(plan, create=True) as opened:
        opened.set_options({"recipe": "identity", "device": "cpu"})
        opened.add_source(planning.source_name(str(root / "archive")))
        planning.make_plan(opened)
        config = running.own_config(plan)
        config.write_text(f'store = "store"\n{WORK}')
        request = running.Request(output=root / "enhanced", workers=0, ahead=3)
        coordinator = running.Coordinator(opened, load_settings(config), request, config=config)
        coordinator.step()
        store = plan / "store" / "archive"
        jobs = {opened.series(job.series).id: job.id for job in opened.jobs()}
        stuck = start(config, "elsewhere.0", "", jobs[3])
        wait_until(lambda: len(list((store / jobs[3]).rglob("derived/*/*/*.dcm"))) == 1)
        wait_until(lambda: all((store / jobs[n] / "done.json").exists() for n in (1, 2)))
        time.sleep(1.0)
        stuck.kill()
        stuck.wait()
        (store / jobs[2] / "done.json").rename(root / "done.json")
        coordinator._taken_in = -float("inf")
        coordinator.step()  # takes in the first, and queues the fourth
        (root / "done.json").rename(store / jobs[2] / "done.json")
        coordinator.close()
        states = {opened.series(job.series).id: job.state for job in opened.jobs()}
        assert states == {2: "open", 3: "open", 4: "open"}, states
        assert opened.counts()["results"] == {"enhanced": 2}


# ---------------------------------------------------------------- workers


def start(config, name, *jobs):
    return subprocess.Popen([sys.executable, __file__, "--worker", str(config), name, *jobs])


def live(config, name, delivered_in_part, half_enhanced):
    """A worker that gets stuck in two jobs, and whose folder is full for those that it says."""
    from medenhance_dicom import enhance

    settings = load_settings(config)
    write, store, enhanced, delivered = enhance.write_instance, tofolder._store, set(), set()

    def gets_stuck_enhancing(derived, pixels, target):
        if half_enhanced in target.parts and half_enhanced in enhanced:
            time.sleep(600)
        enhanced.update(target.parts)
        return write(derived, pixels, target)

    def gets_stuck_delivering(path, target, touched, *, link):
        if delivered_in_part in path.parts and delivered_in_part in delivered:
            time.sleep(600)
        if any((config.parent / "out" / f"full-{part}").exists() for part in path.parts):
            raise OSError(28, "No space left on device")
        delivered.update(path.parts)
        return store(path, target, touched, link=link)

    enhance.write_instance = gets_stuck_enhancing
    tofolder._store = gets_stuck_delivering
    launch(
        work.SeriesWork(partial(load_settings, config), work.network_peers(settings.store)),
        database=sqlite_url(settings.store / "node.sqlite"),
        locks=settings.store / "workers",
        executor=name,
        beat=settings.work.heartbeat_seconds,
        silent=settings.work.silent_seconds,
        surroundings=Surroundings(),
        longest=settings.work.longest_pause,
    )
    time.sleep(600)


# ---------------------------------------------------------------- objects


def make_objects(root):
    """Derived objects of kinds that differ, with their sources."""
    source = root / "objects" / "source"
    source.mkdir(parents=True)
    for number, name in enumerate(("OP8", "CR", "CT", "EnhancedMR"), 1):
        make_file(
            source / f"{name}.dcm", name, rows=16, columns=16,
            **{k: f"1.2.826.0.1.9999.{n}.{number}" for n, k in
               enumerate(("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"), 11)},
        )  # fmt: skip
    settings = Settings(
        output=root / "objects" / "derived", recipe="identity", device="cpu", structured_report=True,
        allow=frozenset({"CT"}),
    )  # fmt: skip
    made = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
    for outcome in Enhancement(settings, now=made).outcomes([source]):
        assert outcome.result == "enhanced", outcome


# ---------------------------------------------------------------- the file


def put_together(root, target):
    """Databases without their logs; the same names and bytes in the same order, but for times and keys."""
    for database in [*root.rglob("*.sqlite")]:
        with contextlib.closing(sqlite3.connect(database)) as opened:
            opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            opened.execute("PRAGMA journal_mode=DELETE")
            opened.execute("VACUUM")
            opened.execute("PRAGMA journal_mode=WAL")
    for gone in [*root.rglob("scratch"), *root.rglob("workers"), *root.rglob("*.sqlite-*")]:
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    (root / "made-in").write_text(str(root))

    def plain(member):
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        return member

    with tarfile.open(target, "w:xz", preset=9) as tar:
        for path in sorted(root.rglob("*")):
            tar.add(path, path.relative_to(root), recursive=False, filter=plain)


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        live(Path(sys.argv[2]), *sys.argv[3:])
    root = Path(sys.argv[1]).absolute()
    root.mkdir()
    make_node(root)
    make_archive(root)
    make_objects(root)
    put_together(root, Path(sys.argv[2]))
