"""Modalities: they send series until every instance is acknowledged, and remember what was."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
from pynetdicom import AE

from benchmarks.torture.instances import CR, Instance

SCANNERS = ("SCANNER1", "SCANNER2", "SCANNER3")
BULK = "BULK"
"""What it sends is passed on as it came."""
STOW = "STOW-RS"
_GIVE_UP = 180.0


@dataclass(frozen=True)
class Acknowledged:
    """An instance that the node answered 0x0000 for."""

    instance: Instance
    calling: str


@dataclass
class Senders:
    """Everything that was sent by anybody of the rig."""

    port: int
    http: int
    acknowledged: dict[tuple[str, str], Acknowledged] = field(default_factory=dict)
    """By SOP Instance UID and digest; the first sender counts."""
    statuses: Counter[str] = field(default_factory=Counter)
    given_up: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._enough, self._stop = threading.Event(), threading.Event()
        self._hold = threading.Event()
        self._threads: list[threading.Thread] = []

    def acknowledge(self, instance: Instance, calling: str) -> None:
        """Remember a success."""
        with self._lock:
            self.acknowledged.setdefault((instance.uid, instance.digest), Acknowledged(instance, calling))

    def store(self, instances: list[Instance], calling: str, *, pause: float = 0.0) -> list[int | None]:
        """One association; the status of each instance, None for one without an answer."""
        if calling == STOW:
            return self._store_rs(instances)
        entity = AE(ae_title=calling)
        entity.connection_timeout = entity.acse_timeout = 8
        entity.dimse_timeout = entity.network_timeout = 20
        entity.add_requested_context(CR, "1.2.840.10008.1.2.1")
        assoc = entity.associate("127.0.0.1", self.port, ae_title="NODE")
        statuses: list[int | None] = []
        for instance in instances:
            status = None
            if assoc.is_established:
                try:
                    status = assoc.send_c_store(instance.path).get("Status")
                except (RuntimeError, ValueError, AttributeError):
                    status = None
            if status == 0x0000:
                self.acknowledge(instance, calling)
            self._count(status)
            statuses.append(status)
            time.sleep(pause)
        if assoc.is_established:
            assoc.release()
        return statuses

    def _count(self, status: int | None) -> None:
        with self._lock:
            self.statuses["no answer" if status is None else f"0x{status:04X}"] += 1

    def _store_rs(self, instances: list[Instance]) -> list[int | None]:
        parts = b"".join(
            b"--rig\r\nContent-Type: application/dicom\r\n\r\n" + i.path.read_bytes() + b"\r\n" for i in instances
        )
        kind = 'multipart/related; type="application/dicom"; boundary=rig'
        stored: set[str] = set()
        failed: dict[str, int] = {}
        try:
            answer = httpx.post(
                f"http://127.0.0.1:{self.http}/dicom-web/studies", content=parts + b"--rig--\r\n", timeout=20,
                headers={"Content-Type": kind, "Accept": "application/dicom+json"}, trust_env=False,
            )  # fmt: skip
            if answer.status_code in (200, 202, 409):
                said = answer.json()
                stored = {item["00081155"]["Value"][0] for item in said.get("00081199", {}).get("Value", [])}
                for item in said.get("00081198", {}).get("Value", []):
                    failed[item.get("00081155", {}).get("Value", [""])[0]] = item["00081197"]["Value"][0]
        except (httpx.HTTPError, ValueError, LookupError):
            pass
        statuses: list[int | None] = []
        for instance in instances:
            status = 0x0000 if instance.uid in stored else failed.get(instance.uid)
            if status == 0x0000:
                self.acknowledge(instance, STOW)
            self._count(status)
            statuses.append(status)
        return statuses

    def send(self, instances: list[Instance], calling: str, *, pause: float = 0.0, give_up: float = _GIVE_UP) -> bool:
        """Until all are acknowledged, as a modality does; False where it gave up or was told that it is a conflict."""
        left, until = list(instances), time.monotonic() + give_up
        whole = True
        while left and time.monotonic() < until and not self._stop.is_set():
            statuses = self.store(left, calling, pause=pause)
            whole &= 0x0111 not in statuses
            left = [i for i, status in zip(left, statuses, strict=True) if status not in (0x0000, 0x0111)]
            if left:
                time.sleep(0.7)
        self.given_up += len(left)
        return whole and not left

    def echo(self, calling: str = SCANNERS[0]) -> bool:
        """Whether the node answers a C-ECHO."""
        entity = AE(ae_title=calling)
        entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 8
        entity.add_requested_context("1.2.840.10008.1.1")
        assoc = entity.associate("127.0.0.1", self.port, ae_title="NODE")
        good = False
        if assoc.is_established:
            good = assoc.send_c_echo().get("Status") == 0x0000
            assoc.release()
        return good

    # ------------------------------------------------------------ traffic

    def start(self, make, seed: int, count: int = 2) -> None:
        """Threads that send series of 1 to 8 instances from `make(count)` until `stop`."""
        for number in range(count):
            thread = threading.Thread(target=self._run, args=(make, random.Random(f"{seed}.{number}")), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _run(self, make, rng: random.Random) -> None:
        while not self._enough.wait(rng.uniform(0.2, 1.5)):
            if self._hold.is_set():
                continue
            calling = rng.choice((*SCANNERS, STOW))
            self.send(make(rng.randint(1, 8)), calling, pause=rng.choice((0.0, 0.0, 0.2)))

    def hold(self, yes: bool) -> None:
        """Begin no new series for now."""
        self._hold.set() if yes else self._hold.clear()

    def stop(self, seconds: float) -> None:
        """Begin no more series; those that were begun have that long to be acknowledged."""
        self._enough.set()
        until = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
