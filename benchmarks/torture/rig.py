"""One run: traffic, faults one after the other, then peace, then the verdict."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.torture import faults
from benchmarks.torture.archive import Archive
from benchmarks.torture.instances import Instance, Maker
from benchmarks.torture.node import Clock, Disk, Node, PostgreSQL, free_port
from benchmarks.torture.senders import BULK, SCANNERS, Senders
from benchmarks.torture.verdict import Verdict, dead_digests, judge, leftovers
from medenhance_dicom.audit import Audit, verify
from medenhance_dicom.jobs import Jobs
from medenhance_dicom.node.control import database_of
from medenhance_dicom.node.retention import sweep
from medenhance_dicom.node.settings import load_settings
from medenhance_dicom.node.spool import Spool

_MANY_JOBS = 15
_UP_SECONDS = 120.0
_MEGABYTES = 1024


@dataclass
class Result:
    """What a run came to."""

    database: str
    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    verdict: Verdict = field(default_factory=Verdict)
    facts: dict[str, Any] = field(default_factory=dict)


class Rig:
    """Everything of one run below `folder`. Use it as a context manager."""

    def __init__(
        self, folder: Path, seed: int, *, database: str = "sqlite", commit: bool = True, idle: float = 1.0
    ) -> None:
        self.folder, self._rng = folder, random.Random(f"{seed}.{database}")
        folder.mkdir(parents=True)
        (folder / "instances").mkdir()
        self._maker, self._making = Maker(folder / "instances", self._rng.randrange(1 << 30)), threading.Lock()
        self.disk, self.clock = Disk(folder, _MEGABYTES), Clock(folder)
        self.database = PostgreSQL() if database == "postgresql" else None
        ports = {"ARCHIVE": free_port(), "COPY": free_port()}
        self.node = Node(
            folder, ports, disk=self.disk.path, clock=self.clock, commit=commit, idle=idle,
            database=self.database.url if self.database else "", workers=2 if self.database else 1,
        )  # fmt: skip
        self.archives = {title: Archive(title, port, ("NODE", self.node.port)) for title, port in ports.items()}
        self.senders = Senders(self.node.port, self.node.http)
        self.slots: list[tuple[str, float]] = []
        """Rude client, and the seconds that it held its connection."""
        self.result = Result(database, seed)
        self._broken: dict[str, list[str]] = {}
        self._ends: Counter[str] = Counter()
        self._memory = 0
        self._aside: list[threading.Thread] = []
        self._timers: list[threading.Timer] = []
        self._log = (folder / "faults.jsonl").open("a", buffering=1)
        self._began = time.monotonic()

    def __enter__(self) -> Rig:
        for archive in self.archives.values():
            archive.start()
        self.start_node()
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()
        self.senders.stop(0)
        self.node.kill()
        for archive in self.archives.values():
            archive.close()
        if self.database is not None:
            self.database.close()
        with contextlib.suppress(RuntimeError):
            self.disk.unmount()
        self._log.close()

    # ------------------------------------------------------------ for faults

    def make(self, count: int) -> list[Instance]:
        """A new series."""
        with self._making:
            return self._maker.series(count)

    def make_other(self, like: Instance) -> Instance:
        """Other bytes under the UID of an instance."""
        with self._making:
            return self._maker.other_bytes(like)

    def some_acknowledged(self, rng: random.Random, count: int) -> list[Instance]:
        """Any of those."""
        known = [item.instance for item in list(self.senders.acknowledged.values())]
        return rng.sample(known, min(count, len(known)))

    def kick(self) -> None:
        """Have a new series sent meanwhile."""
        instances, calling = self.make(self._rng.randint(1, 5)), self._rng.choice(SCANNERS)
        self.run_aside(lambda: self.senders.send(instances, calling))

    def run_aside(self, target: Callable[[], object]) -> None:
        """In a thread that the end of the run waits for."""
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        self._aside = [old for old in self._aside if old.is_alive()] + [thread]

    def later(self, seconds: float, target: Callable[[], object]) -> None:
        """After so many seconds, unless the run ends before."""
        timer = threading.Timer(seconds, target)
        timer.daemon = True
        timer.start()
        self._timers.append(timer)

    def watch(self, state: str) -> Callable[[float], bool]:
        """See `faults.watch`."""
        return faults.watch(state, self.node.store, lambda what: sum(a.seen[what] for a in self.archives.values()))

    def break_rule(self, rule: str, how: str) -> None:
        """An invariant that does not hold."""
        self._broken.setdefault(rule, []).append(f"{time.monotonic() - self._began:.0f} s: {how}")

    @staticmethod
    def signal(pid: int, number: int) -> None:
        """To a process that may be gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def start_node(self) -> None:
        """Start it where it does not run, as a service manager does, and wait until it is up."""
        until = time.monotonic() + _UP_SECONDS
        if self.node.process is None:
            self.node.spawn()
        while not self.node.is_up():
            code = self.node.ended_by_itself()
            if code is not None:
                self._ends[f"exit code {code}"] += 1
                self.node.kill()
                time.sleep(0.5)
                self.node.spawn()
            if time.monotonic() > until:
                self.break_rule("the node starts", f"not within {_UP_SECONDS:.0f} s")
                self.node.kill()
                raise RuntimeError(f"the node does not start: see {self.node.log}")
            time.sleep(0.05)

    ensure_up = start_node

    # ------------------------------------------------------------ the run

    def torture(self, count: int, seconds: float, say: Callable[[str], None] = print) -> None:
        """Traffic and faults, until there were so many or the time is up."""
        table = faults.table(postgresql=self.database is not None, clock=self.clock.works)
        # Each kind once, the heavier ones rather early; then by weight.
        schedule = sorted(table, key=lambda kind: self._rng.random() ** (1 / table[kind][0]), reverse=True)
        weights = [weight for weight, _ in table.values()]
        schedule += self._rng.choices(list(table), weights, k=max(0, count - len(schedule)))
        self.senders.start(self.make, self._rng.randrange(1 << 30))
        began = time.monotonic()
        for number, kind in enumerate(schedule[:count], 1):
            if time.monotonic() - began > seconds:
                break
            self.senders.hold(self.node.waiting() > _MANY_JOBS)
            self._memory = max(self._memory, self.node.memory())
            at = time.monotonic() - self._began
            came = table[kind][1](self, self._rng)
            self.result.faults[kind] += 1
            line = {
                "n": number,
                "at": round(at, 2),
                "fault": kind,
                "came": came,
                "took": round(time.monotonic() - self._began - at, 2),
            }
            self._log.write(json.dumps(line) + "\n")
            say(f"{at:7.1f} s  {number:4}  {kind}{f' ({came})' if came else ''}")
            self.ensure_up()

    def send_large(self, count: int) -> None:
        """One series of so many instances in one association, with a receiver and the node killed on the way."""
        with self._making:
            instances = self._maker.series(count, side=16)
        thread = threading.Thread(
            target=self.senders.send, args=(instances, BULK), kwargs={"give_up": 3600.0}, daemon=True
        )
        thread.start()
        for share, kill in ((0.2, self._kill_a_receiver), (0.3, self._kill_the_node)):
            before = len(self.senders.acknowledged)
            until = time.monotonic() + 900
            while (
                len(self.senders.acknowledged) - before < share * count
                and time.monotonic() < until
                and thread.is_alive()
            ):
                time.sleep(0.2)
            kill()
        thread.join(1800)
        self.result.faults[f"series of {count} instances"] += 1

    def _kill_a_receiver(self) -> None:
        for pid in self.node.receivers()[:1]:
            self.signal(pid, 9)

    def _kill_the_node(self) -> None:
        self.node.kill()
        self.start_node()

    def settle(self, seconds: float) -> Result:
        """Faults end, the node finishes, dead letters are counted and retried once, then the verdict.

        Work that stands still for `seconds` is work that does not end.
        """
        for timer in self._timers:
            timer.join()
        for archive in self.archives.values():
            archive.heal()
        self.clock.set(0)
        self.disk.empty()
        self.ensure_up()
        self.senders.stop(60)
        until = time.monotonic() + 60
        for thread in self._aside:
            thread.join(max(0.0, until - time.monotonic()))
        if not self.senders.echo():
            self.break_rule("the node answers in the end", "no C-ECHO")
        self._finish(seconds)
        found = self.node.jobs()
        letters = [job for job in found if job["state"] == "failed"]
        self.result.facts["dead letters before a person retried them"] = len(letters)
        if letters:
            self.node.command("jobs", "retry", "--failed")
            time.sleep(1.0)
            self._finish(seconds)
            found = self.node.jobs()
        return self._judge(found)

    def _finish(self, seconds: float) -> None:
        """Until nothing is left to do but for dead letters; `seconds` without progress are too many."""
        looked = progressed = time.monotonic()
        trail, size = self.node.store / "audit" / "audit.jsonl", 0
        while self.node.unfinished() != 0:
            self.ensure_up()
            if trail.stat().st_size != size:
                size, progressed = trail.stat().st_size, time.monotonic()
            if time.monotonic() - progressed > seconds:
                left = f"{self.node.unfinished()} series or jobs, nothing for {seconds:.0f} s"
                self.break_rule("all work comes to its end", left)
                return
            if time.monotonic() - looked > 8:
                looked = time.monotonic()
                pending = sum(1 for _ in (self.node.store / "pending").iterdir())
                states = [job["state"] for job in self.node.jobs()]
                waiting = sum(state not in ("done", "failed", "cancelled") for state in states)
                failed = states.count("failed")
                if pending + waiting == 0 and self.node.unfinished() <= failed:
                    return
            time.sleep(0.2)

    def _judge(self, jobs: list[dict[str, Any]]) -> Result:
        self._memory = max(self._memory, self.node.memory())
        code = self.node.terminate()
        if code != 0:
            self.break_rule("SIGTERM ends the node with exit code 0", f"it was {code}")
        store = self.node.store
        letters = [str(job["job"]) for job in jobs if job["state"] in ("failed", "cancelled")]
        dead = dead_digests(store, letters)
        verdict = judge(
            list(self.senders.acknowledged.values()),
            {title: archive.objects for title, archive in self.archives.items()},
            dead=dead,
            changed={title: archive.rejected for title, archive in self.archives.items()},
        )
        torn = len(list(store.rglob("*.part")))
        self._sweep()
        verdict.broken["left over"] = leftovers(store)
        line = verify(store / "audit" / "audit.jsonl")
        verdict.broken["audit trail"] = [] if line is None else [f"line {line}"]
        for rule, how in self._broken.items():
            verdict.broken.setdefault(rule, []).extend(how)
        result, archives = self.result, self.archives.values()
        held: dict[str, float] = {}
        for name, took in self.slots:
            held[name] = max(held.get(name, 0.0), took)
        result.verdict, result.seconds = verdict, time.monotonic() - self._began
        result.facts |= {
            "jobs": len(jobs),
            "dead letters in the end": len(letters),
            "starts of the node": self.node.starts,
            "ends of the node by itself": dict(self._ends),
            "answers to C-STORE": dict(self.senders.statuses),
            "given up by senders, unacknowledged": self.senders.given_up,
            "C-STOREs at the archives": sum(a.seen["C-STORE"] for a in archives),
            "of them lied about": sum(a.seen["lies"] for a in archives),
            "commitment requests, reports": f'{sum(a.seen["N-ACTION"] for a in archives)}, {sum(a.seen["reports"] for a in archives)}',
            "lines of the audit trail": sum(1 for _ in (store / "audit" / "audit.jsonl").open("rb")),
            "files set aside as conflicts, in quarantine": f'{_count(store / "conflicts")}, {_count(store / "quarantine")}',
            "`.part` files of killed processes, before the next sweep": torn,
            "largest receiver in MB": round(self._memory / 1e6),
            "rude clients: longest hold of a connection in s": {name: round(took, 1) for name, took in sorted(held.items())},
        }  # fmt: skip
        return result

    def _sweep(self) -> None:
        """What the node does every ten minutes, as it would be tomorrow."""
        settings = load_settings(self.node.config)
        jobs = Jobs(database_of(settings))
        try:
            audit = Audit(settings.store / "audit" / "audit.jsonl")
            sweep(Spool(settings.store), jobs, audit, settings.retention, now=time.time() + 86400)
        finally:
            jobs.close()


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())
