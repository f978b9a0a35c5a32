"""Metrics for Prometheus, added up from the audit trail and the store, so that no process that dies takes counts away.

Labels are names of results, stages and destinations; nothing names a patient, a series or a job.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from medenhance_dicom import __version__
from medenhance_dicom.node.spool import Spool
from medenhance_dicom.node.trail import trail_path

_BUCKETS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 14400, 86400)
_RESULTS = ("enhanced", "warned", "withheld", "skipped", "failed")


class Metrics:
    """Counts of one store, since its audit trail began."""

    def __init__(self, spool: Spool, *, clock: Callable[[], float] = time.time) -> None:
        """Args: spool: whose store is counted; clock: seconds since the epoch."""
        self._spool, self._clock = spool, clock
        self._audit = trail_path(spool.store)
        self._offset = 0
        self._lock = threading.Lock()
        self._times: dict[str, float] = {}
        self._dead: set[str] = set()
        self.registry = registry = CollectorRegistry()

        def counter(name: str, words: str, *labels: str) -> Counter:
            return Counter(f"medenhance_{name}", words, labels, registry=registry)

        def gauge(name: str, words: str) -> Gauge:
            return Gauge(f"medenhance_{name}", words, registry=registry)

        self._sealed = counter("series", "Series that became jobs", "partial")
        self._received = counter("received_instances", "Instances of series that became jobs")
        self._duplicates = counter("duplicate_instances", "Instances received that were held already")
        self._rejected = counter("rejected_associations", "Associations of strangers, or one too many")
        self._results = counter("results", "Instances by what became of them", "result")
        self._sent = counter("sent_instances", "Instances that a destination has stored", "destination")
        self._unsent = counter("send_failures", "Batches that a destination did not take whole", "destination")
        self._committed = counter("committed_instances", "Instances that a destination has committed", "destination")
        self._done = counter("done_jobs", "Jobs that every destination has everything of")
        self._trouble = counter("refused_instances", "Instances received and set aside", "why")
        self._stage = Histogram(
            "medenhance_stage_seconds", "Seconds per stage: receive (first instance to complete), enhance (complete to"
            " enhanced, waiting included), deliver (enhanced to delivered, commitment included)",
            ("stage",), buckets=_BUCKETS, registry=registry,
        )  # fmt: skip
        self._dead_letters = gauge("dead_letters", "Jobs that wait for a person")
        self._pending = gauge("pending_series", "Series that still come in")
        self._pending_instances = gauge("pending_instances", "Instances of series that still come in")
        self._unfinished = gauge("unfinished_jobs", "Jobs that are not done, dead letters included")
        self._oldest = gauge("oldest_unfinished_seconds", "Age of the oldest of them, from its completeness")
        self._set_aside = Gauge(
            "medenhance_set_aside_files", "Files in conflicts/ and quarantine/", ("folder",), registry=registry
        )
        self._associations = gauge("open_associations", "Associations that are open now")
        self._free = gauge("free_bytes", "Free disk space of the store")
        Gauge("medenhance_build_info", "Version", ("version",), registry=registry).labels(__version__).set(1)
        for result in _RESULTS:
            self._results.labels(result)
        for why in ("conflict", "quarantined"):
            self._trouble.labels(why)
        for stage in ("receive", "enhance", "deliver"):
            self._stage.labels(stage)

    def render(self) -> tuple[bytes, str]:
        """The page and its content type."""
        with self._lock:
            self._read_on()
            self._look()
            return generate_latest(self.registry), CONTENT_TYPE_LATEST

    def dead_letters(self) -> set[str]:
        """The jobs that wait for a person."""
        with self._lock:
            self._read_on()
            return set(self._dead)

    def _read_on(self) -> None:
        """Account for the lines that the audit trail has got since."""
        try:
            with self._audit.open("rb") as file:
                file.seek(self._offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    try:
                        record = json.loads(line)
                    except ValueError:
                        continue
                    self._count(record)
        except FileNotFoundError:
            return

    def _count(self, record: dict[str, Any]) -> None:
        event, job = record.get("event"), str(record.get("job", ""))
        when = datetime.fromisoformat(record["time"]).timestamp()
        destination = str(record.get("destination", ""))
        match event:
            case "sealed":
                self._sealed.labels(str(bool(record["partial"])).lower()).inc()
                self._received.inc(record["instances"])
                self._stage.labels("receive").observe(record["waited"])
                self._times[job] = when
            case "enhanced" | "passed on":
                for result, count in record["counts"].items():
                    self._results.labels(result).inc(count)
                if event == "enhanced" and job in self._times:
                    self._stage.labels("enhance").observe(max(0.0, when - self._times[job]))
                self._times[job] = when
                self._dead.discard(job)
            case "sent":
                self._sent.labels(destination).inc(record["instances"])
            case "not sent":
                self._unsent.labels(destination).inc()
            case "committed":
                self._committed.labels(destination).inc(record["instances"])
            case "delivered":
                if job in self._times:
                    self._stage.labels("deliver").observe(max(0.0, when - self._times[job]))
            case "done":
                self._done.inc()
                self._times.pop(job, None)
                self._dead.discard(job)
            case "dead letter" | "not enhanced":
                self._dead.add(job)
            case "retried" | "cancelled":
                self._dead.discard(job)
            case "conflict" | "quarantined":
                self._trouble.labels(event).inc()
            case "received":
                self._duplicates.inc(record.get("duplicate", 0))
            case "rejected":
                self._rejected.inc()

    def _look(self) -> None:
        """Set what is read off the store."""
        pending = list(self._spool.pending())
        self._pending.set(len(pending))
        self._pending_instances.set(sum(series.count for series in pending))
        ages = [self._clock() - sealed for sealed in unfinished(self._spool.store).values()]
        self._unfinished.set(len(ages))
        self._oldest.set(max(ages, default=0.0))
        self._dead_letters.set(len(self._dead))
        self._associations.set(sum(1 for _ in self._spool.associations()))
        for name, count in self._spool.set_aside().items():
            self._set_aside.labels(name).set(count)
        self._free.set(self._spool.free_bytes())


def unfinished(store: Path) -> dict[str, float]:
    """Job -> when it was sealed (seconds since the epoch), of those that are neither done nor cancelled."""
    found = {}
    for folder in (store / "jobs").iterdir():
        if not (folder / "done.json").exists() and not (folder / "cancelled").exists():
            try:
                found[folder.name] = (folder / "job.json").stat().st_mtime
            except FileNotFoundError:
                continue
    return found
