"""Which finished jobs may go, and their removal."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from medenhance_dicom.audit import Audit
from medenhance_dicom.errors import InputError
from medenhance_dicom.identity import recorded_digests, source_uid
from medenhance_dicom.jobs import Jobs
from medenhance_dicom.ledger import Ledger, old_entry
from medenhance_dicom.node.jobfolder import ARCHIVE, LEDGER, bytes_in, flush, read_lines, read_whole
from medenhance_dicom.node.settings import Retention
from medenhance_dicom.node.spool import SealedSeries, Spool
from medenhance_dicom.part10 import read_instance
from medenhance_dicom.withheld import FOLDER, drop_expired

_DAY = 86400.0
_OLD_PART = 3600.0


class Kept(NamedTuple):
    """A job that is here."""

    job: str
    finished: float | None
    """When everything was delivered and committed, seconds since the epoch; None: not yet, or to nobody."""
    size: int
    """Bytes on the disk."""


def removable(kept: Sequence[Kept], retention: Retention, *, now: float) -> list[str]:
    """The jobs to remove, oldest first: finished and past their days, then finished ones until the budget is kept.

    What is not finished stays, whatever it takes. Its bytes count, so finished jobs make room for it.
    """
    done = sorted((job for job in kept if job.finished is not None), key=lambda job: (job.finished, job.job))
    total = sum(job.size for job in kept)
    going = []
    for job in done:
        assert job.finished is not None
        over = retention.maximum_bytes is not None and total > retention.maximum_bytes
        if over or now - job.finished > retention.keep_days * _DAY:
            going.append(job.job)
            total -= job.size
    return going


def sweep(spool: Spool, jobs: Jobs, audit: Audit, retention: Retention, *, now: float) -> list[str]:
    """Remove what may go: first from the database, so that the same series may come again, then from the disk.

    Killed at any point, the next sweep ends what this one began.

    Returns:
        The jobs that are gone.

    Raises:
        OSError: The disk does not take it.
    """
    drop_parts(spool.store, now)
    drop_withheld(spool.store, now)
    folders = {path.name: path for path in (spool.store / "jobs").iterdir() if path.is_dir()}
    kept = []
    for name, folder in folders.items():
        done = read_whole(folder / "done.json")
        finished = done["finished"] if done and not done.get("only_copy") else None
        kept.append(Kept(name, finished, bytes_in(folder)))
    going = removable(kept, retention, now=now)
    for name in going:
        jobs.forget([name])
        audit.append("removed", job=name)
        _remove(folders[name], spool)
    return going


def drop_parts(store: Path, now: float) -> None:
    """Remove what killed processes left of files that they were writing; one that is being written is young."""
    jobs = [f"{folder}/*/{inside}.*.part" for folder in ("jobs", ARCHIVE) for inside in ("", "derived/*/*/")]
    for pattern in (*jobs, "commitments/.*.part", "commitments/asked/.*.part", f"{FOLDER}/*/.*.part"):
        for part in store.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                if abs(now - part.stat().st_mtime) > _OLD_PART:
                    part.unlink()


def drop_withheld(store: Path, now: float) -> None:
    """Remove what the gate withheld and was kept long enough."""
    for path in drop_expired(store / FOLDER, now=datetime.fromtimestamp(now, UTC)):
        with contextlib.suppress(OSError):  # others of the job are there yet
            path.parent.rmdir()


def remember_old(folder: Path, ledgers: Path) -> None:
    """Enter what an earlier release derived, which kept no ledger: what is corrected later can name it.

    Args:
        folder: Of a job.
        ledgers: Folder of the ledgers.

    Raises:
        OSError, OutputError: They cannot be written.
    """
    series = ""
    for name in (read_whole(folder / "enhanced.json") or {}).get("derived", []):
        try:
            derived = read_instance(folder / name)
            series = series or next(
                str(read_instance(path).SeriesInstanceUID) for path in (folder / "source").iterdir()
            )
        except (InputError, AttributeError, StopIteration):
            continue
        digests = recorded_digests(derived)
        if "rule" in digests:
            return  # so is all of the job
        ledger = Ledger(ledgers, series, digests.get("recipe", ""), digests.get("weights"), digests.get("guide"))
        if not ledger.knows(source_uid(derived)):
            ledger.add(old_entry(source_uid(derived), str(derived.SOPInstanceUID), str(derived.SeriesInstanceUID)))


def _remove(folder: Path, spool: Spool) -> None:
    """`done.json` goes last: as long as it is there, the job is finished and may be removed."""
    remember_old(folder, spool.store / LEDGER)
    if (folder / "source").is_dir():
        spool.forget(SealedSeries(folder.name, folder, {}))
    for ledger in (folder / "sent").glob("*.jsonl"):
        for line in read_lines(ledger):
            if line["event"] == "asking":
                for suffix in (".json", ".report.json"):
                    (spool.store / "commitments" / f"{line['transaction']}{suffix}").unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "done.json":
            path.unlink()
    flush(folder)
    (folder / "done.json").unlink()
    folder.rmdir()
    flush(folder.parent)
