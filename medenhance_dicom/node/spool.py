"""The folders in which received instances become durable, and the truth about what there is to do.

An instance is acknowledged when the kernel has said that its bytes, its name in `pending/` and that folder's name are
on the disk. It takes its name first and is flushed then, file and folders at once, which costs about one flush of the
device and not three. So a power cut can leave a name with half a file, that nobody was told of; the name therefore
ends in the digest of the data set, and `reconcile` puts away what does not have it. The hard link in `held/` is made
after that flush: what has one is whole.

All locks are flocks: the kernel lets go of them when a process dies. Order: `held/<2 hex>`, then
`pending/<series key>`.
Nothing here is named after a patient or a UID, only after keyed hashes of them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

from medenhance_dicom.errors import InputError, OutputError
from medenhance_dicom.node.identity import Identity, data_set_digest, read_identity
from medenhance_dicom.node.jobfolder import flush, write_whole
from medenhance_dicom.node.markers import Marker, OpenAssociation, is_at, open_associations

_ORIGIN = "origin.json"
_JOB = "job.json"
_DIGEST = 32
"""Hex digits of the data set's SHA-256 in a file name."""
_SEAL_SECONDS = 2.0
_LEAVE_SECONDS = 10.0
"""That receivers of a node that was killed have to end."""
_FLUSHERS = 32
_QUICK_SECONDS = 0.002
"""A flush that takes less is waited for alone."""


class Fate(Enum):
    """What became of an instance that was accepted."""

    STORED = "stored"
    DUPLICATE = "duplicate"
    """The same bytes are held already."""
    CONFLICT = "conflict"
    """Other bytes are held under this SOP Instance UID; these were set aside."""


@dataclass(frozen=True)
class Accepted:
    """The outcome of `Spool.accept`; whichever it is, the bytes are on the disk."""

    fate: Fate
    series_key: str
    instance_key: str


@dataclass(frozen=True)
class PendingSeries:
    """A series that still comes in."""

    key: str
    folder: Path
    origin: dict[str, str]
    """`calling_ae`, `called_ae`, and `batch`, which no other series ever has."""
    signature: int
    """Another one after every instance."""
    first_seen: float
    """Time of its first instance, seconds since the epoch."""

    @property
    def count(self) -> int:
        """Instances in it now."""
        return sum(1 for _ in _instances(self.folder))


@dataclass(frozen=True)
class SealedSeries:
    """A series that nothing is added to any more: `source/*.dcm` in the folder of its job."""

    job_id: str
    folder: Path
    facts: dict[str, Any]
    """The job.json: calling_ae, called_ae, instances, partial, series_key, Modality."""

    @property
    def source(self) -> Path:
        """Folder of its instances."""
        return self.folder / "source"


class Spool:
    """The store of one node. Threads and processes may use it at the same time.

    Errors of the disk come out as `OSError`: then nothing was accepted, and nothing may be acknowledged.
    """

    def __init__(self, store: Path) -> None:
        """Open the store; makes its folders and its secret.

        Raises:
            OutputError: It cannot be written, or is spread over several file systems.
        """
        self.store = store
        self.incoming = store / "incoming"
        self._pending = store / "pending"
        self._held = store / "held"
        self._conflicts = store / "conflicts"
        self._quarantine = store / "quarantine"
        self._associations = store / "associations"
        self._jobs = store / "jobs"
        self._draining = str(store / "draining")
        try:
            self._make_folders()
            self._secret = _secret(store / "secret")
        except OSError as error:
            raise OutputError(f"{store}: {error.strerror}") from None
        self._flushers = ThreadPoolExecutor(_FLUSHERS, thread_name_prefix="flush")
        self._flush_seconds = 0.0
        self._rooted: set[tuple[int, int]] = set()

    def _make_folders(self) -> None:
        self.store.mkdir(mode=0o700, parents=True, exist_ok=True)
        device = self.store.stat().st_dev
        folders = [self.incoming, self._pending, self._held, self._conflicts, self._quarantine, self._associations]
        folders += [self._jobs, *(self._held / f"{number:02x}" for number in range(256))]
        made = False
        for folder in folders:
            if not folder.is_dir():
                folder.mkdir(mode=0o700, exist_ok=True)
                made = True
            if folder.stat().st_dev != device:
                raise OSError(0, f"{folder.name}/ is on another file system")
        if made:
            flush(self._held)
            flush(self.store)

    # ------------------------------------------------------------ keys

    def series_key(self, calling_ae: str, study_uid: str, series_uid: str) -> str:
        """24 hex digits for a series as one sender sends it."""
        return self._key("|".join((calling_ae.strip(), study_uid, series_uid)))

    def instance_key(self, sop_instance_uid: str) -> str:
        """24 hex digits for an instance."""
        return self._key(sop_instance_uid)

    def _key(self, text: str) -> str:
        return hmac.digest(self._secret, text.encode(), "sha256").hex()[:24]

    # ------------------------------------------------------------ receive

    def free_bytes(self) -> int:
        """Free space for us on the file system."""
        found = os.statvfs(self.store)
        return found.f_bavail * found.f_frsize

    @property
    def draining(self) -> bool:
        """Whether the node was asked to take nothing more in: STORE/draining exists."""
        return os.path.exists(self._draining)  # noqa: PTH110  (asked for every instance)

    def enter(self) -> None:
        """Say that this process receives, until it ends: `reconcile` of a next node waits for that."""
        fcntl.flock(os.open(self.incoming, os.O_RDONLY | os.O_DIRECTORY), fcntl.LOCK_SH)

    def new_part(self) -> Path:
        """A name in `incoming/` that nobody else has."""
        return self.incoming / f"{secrets.token_hex(12)}.part"

    def accept(self, part: Path, identity: Identity, *, calling_ae: str, called_ae: str) -> Accepted:
        """Make a received file durable, or find that it is held already.

        When this returns, the bytes survive a power cut. `part` is gone then; when it raises, it may still be there.

        Args:
            part: A whole Part 10 file on the store's file system.
            identity: Of that file.
            calling_ae: AE title of the sender.
            called_ae: AE title that it called.

        Raises:
            OSError: The disk does not take it. Nothing was accepted.
        """
        key = self.instance_key(identity.sop_instance)
        series_key = self.series_key(calling_ae, identity.study, identity.series)
        held = self._held / key[:2] / f"{key}.dcm"
        with _locked(held.parent):
            if not held.exists():
                origin = {"calling_ae": calling_ae.strip(), "called_ae": called_ae.strip()}
                if self._store(part, f"{key}.{identity.digest[:_DIGEST]}.dcm", series_key, origin, held):
                    return Accepted(Fate.STORED, series_key, key)
            if _same(held, identity.digest):
                part.unlink()
                return Accepted(Fate.DUPLICATE, series_key, key)
            self._set_aside(part, key, identity.digest)
            return Accepted(Fate.CONFLICT, series_key, key)

    def _store(self, part: Path, name: str, series_key: str, origin: dict[str, str], held: Path) -> bool:
        """Into `pending/` and `held/`. False where sealing has just held the same UID from before a crash."""
        folder = self._open_series(series_key, origin)
        try:
            file = os.open(part, os.O_RDONLY)
            try:
                os.fchmod(file, 0o600)
                self._enter(part, name, folder)
                try:
                    self._make_durable(file, folder)
                    self._hold(name, folder, held)
                except FileExistsError:
                    if os.path.samestat(os.fstat(file), held.stat()):  # `reconcile` of the next node was faster
                        return True
                    os.rename(name, part, src_dir_fd=folder)
                    return False
                except BaseException:
                    os.unlink(name, dir_fd=folder)
                    raise
            finally:
                os.close(file)
        finally:
            os.close(folder)
        return True

    def _enter(self, part: Path, name: str, folder: int) -> None:
        """Give it its name. What a crash left under that name was not acknowledged, and is replaced."""
        os.rename(part, name, dst_dir_fd=folder)

    def _make_durable(self, file: int, folder: int) -> None:
        """Flush the file, the folder and, once, the folder's own name.

        Where a flush takes long they go together, and share one commit of a journal; elsewhere threads cost more.
        """
        origin = os.stat(_ORIGIN, dir_fd=folder)
        root = (origin.st_ino, origin.st_mtime_ns)
        others = [partial(os.fsync, folder)]
        if root not in self._rooted:
            others.append(partial(flush, self._pending))
        together = [self._flushers.submit(other) for other in others] if self._flush_seconds > _QUICK_SECONDS else []
        began = time.monotonic()
        try:
            os.fsync(file)
        finally:
            if together:
                wait(together)
        self._flush_seconds = time.monotonic() - began
        for flushed in together:
            flushed.result()
        for other in [] if together else others:
            other()
        if len(self._rooted) > 10_000:
            self._rooted.clear()
        self._rooted.add(root)

    def _hold(self, name: str, folder: int, held: Path) -> None:
        """Not flushed: `reconcile` makes it again."""
        os.link(name, held, src_dir_fd=folder)

    def _open_series(self, series_key: str, origin: dict[str, str]) -> int:
        """The folder in `pending/`, open and under a shared lock: it cannot be sealed until that is closed."""
        path = self._pending / series_key
        while True:
            try:
                handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                self._new_series(path, origin)
                continue
            fcntl.flock(handle, fcntl.LOCK_SH)
            if is_at(handle, path):
                return handle
            os.close(handle)

    def _new_series(self, path: Path, origin: dict[str, str]) -> None:
        young = self._pending / f".{secrets.token_hex(12)}"
        young.mkdir(mode=0o700)
        try:
            batch = secrets.token_hex(8)  # the same instances may come again years later, as another job
            write_whole(young / _ORIGIN, origin | {"batch": batch})
            young.rename(path)
        except OSError as error:
            shutil.rmtree(young, ignore_errors=True)
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # another process was faster
                raise

    def _set_aside(self, part: Path, key: str, digest: str) -> None:
        self._move(part, self._conflicts / f"{key}.{digest[:16]}.dcm")

    def set_aside(self) -> dict[str, int]:
        """How many files a person may want to look at: other bytes under a UID that is held, and what is unreadable."""
        return {folder.name: sum(1 for _ in folder.iterdir()) for folder in (self._conflicts, self._quarantine)}

    def quarantine(self, part: Path) -> Path:
        """Keep a file that cannot be read as an instance; durable on return.

        Raises:
            OSError: The disk does not take it.
        """
        target = self._quarantine / f"{time.time_ns() // 1_000_000:012x}{secrets.token_hex(7)}.dcm"
        self._move(part, target)
        return target

    def _move(self, part: Path, target: Path) -> None:
        part.rename(target)
        flush(target)
        flush(target.parent)

    def held(self, sop_instance_uid: str) -> Path | None:
        """The file of an instance that is held, None where there is none."""
        path = self._held_path(self.instance_key(sop_instance_uid))
        return path if path.exists() else None

    def _held_path(self, instance_key: str) -> Path:
        return self._held / instance_key[:2] / f"{instance_key}.dcm"

    # ------------------------------------------------------------ associations

    def open_association(self, calling_ae: str) -> Marker:
        """Mark an association as open, for completeness.

        Raises:
            OSError: The disk does not take it.
        """
        return Marker(self._associations / f"{os.getpid()}.{secrets.token_hex(4)}", calling_ae.strip())

    def associations(self) -> Iterator[OpenAssociation]:
        """The open associations of all processes; markers of dead processes are removed."""
        return open_associations(self._associations)

    # ------------------------------------------------------------ seal

    def pending(self) -> Iterator[PendingSeries]:
        """The series that still come in."""
        for folder in sorted(self._pending.iterdir()):
            if folder.name.startswith("."):
                continue
            try:
                origin = json.loads((folder / _ORIGIN).read_bytes())
                first_seen = (folder / _ORIGIN).stat().st_mtime
                signature = folder.stat().st_mtime_ns
            except FileNotFoundError:  # sealed meanwhile
                continue
            yield PendingSeries(folder.name, folder, origin, signature, first_seen)

    def seal(self, series_key: str, *, partial: bool) -> SealedSeries | None:
        """Make a job of a pending series: its folder becomes `jobs/<job id>/source` in one step.

        The job id is a digest of the batch, so that sealing again after a crash gives the same one. An instance that
        comes later starts the series anew.

        Returns:
            None where there is nothing to seal, or where receivers did not let go of the folder in time.

        Raises:
            OSError: The disk does not take it; the series is pending still, or its job is found by `jobs`.
        """
        folder = self._pending / series_key
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            return None
        try:
            if not _lock_within(handle, _SEAL_SECONDS) or not is_at(handle, folder):
                return None
            return self._seal(folder, handle, partial)
        finally:
            os.close(handle)

    def _seal(self, folder: Path, handle: int, partial: bool) -> SealedSeries | None:
        self._finish(folder)
        names = sorted(path.name for path in _instances(folder))
        if not names:
            gone = folder.with_name(f".{secrets.token_hex(12)}")  # or a new series would take the emptied one's place
            folder.rename(gone)
            shutil.rmtree(gone)
            return None
        origin: dict[str, Any] = json.loads((folder / _ORIGIN).read_bytes())
        said = "\n".join((*names, json.dumps(origin, sort_keys=True)))
        job_id = hashlib.sha256(said.encode()).hexdigest()[:32]
        facts = {key: origin[key] for key in ("calling_ae", "called_ae")}
        facts |= {"instances": len(names), "partial": partial, "series_key": folder.name, "Modality": ""}
        with contextlib.suppress(InputError):
            facts["Modality"] = read_identity(folder / names[0], digest="").modality
        job = SealedSeries(job_id, self._jobs / job_id, facts)
        job.folder.mkdir(mode=0o700, exist_ok=True)
        write_whole(job.folder / _JOB, facts)
        flush(self._jobs)
        self._rename_sealed(folder, job.source)
        flush(job.folder)
        flush(self._pending)
        os.unlink(_ORIGIN, dir_fd=handle)
        return job

    def _rename_sealed(self, folder: Path, source: Path) -> None:
        folder.rename(source)

    def jobs(self) -> Iterator[SealedSeries]:
        """Every sealed series that there is, finished ones too, by job id."""
        for folder in sorted(self._jobs.iterdir()):
            if (job := self._job(folder)) is not None:
                yield job

    def _job(self, folder: Path) -> SealedSeries | None:
        if not (folder / "source").is_dir():
            return None
        try:
            return SealedSeries(folder.name, folder, json.loads((folder / _JOB).read_bytes()))
        except FileNotFoundError:  # it was being removed
            return None

    def forget(self, job: SealedSeries) -> None:
        """Unlink what `held/` has of a job that is about to be removed, so that its instances may come again."""
        for path in _instances(job.source):
            held = self._held_path(path.name.split(".")[0])
            with contextlib.suppress(FileNotFoundError):
                if held.samefile(path):
                    held.unlink()

    # ------------------------------------------------------------ reconcile

    def reconcile(self) -> None:
        """Put in order what a crash left. Call it before anything is received.

        Waits for receivers of a node that was killed, which end by themselves. Empties `incoming/`, drops markers of
        dead processes and what is left of removed jobs, puts half files, which were never acknowledged, into
        `quarantine/`, and makes the links of `held/` that were not on the disk.

        Raises:
            OSError: The disk does not take it.
            OutputError: Receivers of another node are still there.
        """
        entrance = os.open(self.incoming, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if not _lock_within(entrance, _LEAVE_SECONDS):
                raise OutputError(f"{self.store}: receivers of a node that was killed are still there")
            self._reconcile()
        finally:
            os.close(entrance)

    def _reconcile(self) -> None:
        for path in self.incoming.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for _ in self.associations():
            pass
        for link in self._held.glob("*/*.dcm"):
            if link.stat().st_nlink == 1:  # its job has been removed
                link.unlink()
        for folder in self._pending.iterdir():
            if folder.name.startswith("."):
                shutil.rmtree(folder)
            else:
                self._finish(folder)
        for folder in self._jobs.iterdir():
            if (folder / "source").is_dir():
                (folder / "source" / _ORIGIN).unlink(missing_ok=True)
                self._finish(folder / "source")
            elif all(path.name == _JOB or path.name.startswith(".") for path in folder.iterdir()):
                shutil.rmtree(folder)  # the crash came before its rename

    def _finish(self, folder: Path) -> None:
        """Link what is not in `held/`: after a crash an instance may be whole, half, or there under other bytes."""
        whole = []
        for path in list(_instances(folder)):
            key, digest = path.name.split(".")[:2]
            held = self._held_path(key)
            if held.exists() and held.samefile(path):
                continue
            if not _same(path, digest):
                self.quarantine(path)
            elif held.exists():
                self._resolve(path, held, key, digest)
            else:
                flush(path)
                whole.append((path, held, key, digest))
        if not whole:
            return
        flush(folder)
        flush(folder.parent)
        for path, held, key, digest in whole:
            try:
                held.hardlink_to(path)
            except FileExistsError:
                self._resolve(path, held, key, digest)

    def _resolve(self, path: Path, held: Path, key: str, digest: str) -> None:
        """Another file was faster with this SOP Instance UID: drop the same bytes, set other ones aside."""
        if _same(held, digest):
            path.unlink()
        else:
            self._set_aside(path, key, digest)


# ---------------------------------------------------------------- files


def _instances(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if path.suffix == ".dcm")


def _same(path: Path, digest: str) -> bool:
    """Whether the file's data set has that digest, or one that starts so; what is no Part 10 file has not."""
    try:
        return data_set_digest(path).startswith(digest)
    except InputError:
        return False


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock_within(handle: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
        else:
            return True


def _secret(path: Path) -> bytes:
    """32 random bytes, made once; two processes that start together agree on them."""
    if not path.exists():
        young = path.with_name(f".secret.{secrets.token_hex(4)}")
        handle = os.open(young, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(handle, secrets.token_bytes(32))
            os.fsync(handle)
        finally:
            os.close(handle)
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(young)
        young.unlink()
        flush(path.parent)
    found = path.read_bytes()
    if len(found) != 32:
        raise OSError(0, "the secret is damaged")
    return found
