"""Instances on disks: folders of millions, single files, zips, DICOMDIRs, and lists of them."""

from __future__ import annotations

import contextlib
import itertools
import os
import secrets
import stat
import struct
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar
from urllib.parse import unquote_to_bytes

from medenhance_dicom.errors import InputError, MedenhanceError, OutputError
from medenhance_dicom.headers import Blocks
from medenhance_dicom.node.sources.judging import is_zip, judge
from medenhance_dicom.node.sources.source import (
    DIRECTORY,
    HIDDEN,
    MISSING,
    NOT_DICOM,
    UNREADABLE,
    Found,
    Known,
    LeftOut,
    Rows,
    Wanted,
    bringing,
    place_of,
    still_wanted,
)
from medenhance_dicom.part10 import Limits, find_instances, is_dicomdir

READERS = 8
"""Threads that read headers: they wait for disks most of the time, and one core reads far more than a disk gives."""
_BATCH = 64
_COPIED = 1 << 20
_BROKEN_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error, ValueError)

T = TypeVar("T")
R = TypeVar("R")


class _File(NamedTuple):
    path: str
    size: int
    stamp: str


class FileSource:
    """Files below some paths. Implements `Source`."""

    def __init__(self, name: str, path: Path, *, listed: Rows | None = None, readers: int | None = None) -> None:
        """What `scan` will walk.

        Args:
            name: As written.
            path: A file, folder, zip or DICOMDIR; of a list the list itself.
            listed: Rows of the list with a "path", relative ones to the list's folder.
            readers: Threads that read headers; None: `READERS`.
        """
        self.name = name
        self._path, self._listed, self._readers = path, listed, readers or READERS

    def scan(self, known: Known) -> Iterator[Found | LeftOut]:
        """As `Source.scan`. Order is the file system's."""
        with ThreadPoolExecutor(self._readers, thread_name_prefix="headers") as pool:
            try:
                if self._listed is None:
                    yield from self._below(self._path, known, pool)
                else:
                    yield from self._rows(self._listed(), known, pool)
            finally:
                pool.shutdown(cancel_futures=True)

    def _rows(
        self, rows: Iterable[dict[str, str]], known: Known, pool: ThreadPoolExecutor
    ) -> Iterator[Found | LeftOut]:
        """What a list names; runs of single files go together. A row that cannot be read is left out."""
        paths = (self._path.parent / row["path"] for row in rows)
        for several, group in itertools.groupby(paths, _holds_several):
            if not several:
                names = (os.path.abspath(path) for path in group)  # noqa: PTH100, resolve() would follow links
                yield from _read(names, known, pool, self._readers)
                continue
            for path in group:
                try:
                    yield from self._below(path, known, pool)
                except InputError:
                    yield LeftOut(locator_of(str(path)), f"{UNREADABLE}: the list names it, and it cannot be read")

    def _below(self, path: Path, known: Known, pool: ThreadPoolExecutor) -> Iterator[Found | LeftOut]:
        path = Path(os.path.abspath(path))  # noqa: PTH100, resolve() would follow links
        try:
            folder = stat.S_ISDIR(path.stat().st_mode)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror}") from None
        if folder:
            yield from _read(_walk(str(path)), known, pool, self._readers)
        elif not path.is_file():
            raise InputError(f"{path}: neither a file nor a folder")
        elif is_dicomdir(path):
            yield from _read(_referenced(path), known, pool, self._readers)
        elif _is_zip(path):
            yield from _zipped(path, known)
        else:
            yield from _read([str(path)], known, pool, self._readers)

    def fetch(self, wanted: Sequence[Wanted], folder: Path) -> Iterator[str]:
        """As `Source.fetch`."""
        with contextlib.ExitStack() as opened:
            archives: dict[Path, _Archive] = {}
            for number, item in enumerate(wanted):
                target = place_of(folder, number)
                if still_wanted(target, item) is None:
                    continue
                path, member = _split(item.locator)
                reason = None
                if member is None:
                    _link(path, target)
                else:
                    if path not in archives:
                        archives[path] = _Archive(path, opened)
                    reason = _extract(archives[path].zipped, archives[path].members.get(member), target)
                reason = reason or still_wanted(target, item)
                if reason is not None:
                    target.unlink(missing_ok=True)
                    yield reason


class _Archive:
    """A zip that is opened once for all that is fetched from it."""

    def __init__(self, path: Path, opened: contextlib.ExitStack) -> None:
        self.zipped: zipfile.ZipFile | None = None
        self.members: dict[str, zipfile.ZipInfo] = {}
        with contextlib.suppress(OSError, InputError, *_BROKEN_ZIP):
            self.zipped = opened.enter_context(zipfile.ZipFile(path))
            self.members = _members(self.zipped)


# ---------------------------------------------------------------- scan


def _holds_several(path: Path) -> bool:
    return path.suffix.lower() == ".zip" or path.name.upper() == "DICOMDIR" or path.is_dir()


def _walk(folder: str) -> Iterator[str | LeftOut]:
    """Files below a folder, each folder's own before those below; a listing is never held as a whole."""
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        below: list[str] = []
        try:
            with os.scandir(here) as entries:
                for entry in entries:
                    found = _classified(entry)
                    if isinstance(found, LeftOut) or not found:
                        yield found or entry.path
                    else:
                        below.append(entry.path)
        except OSError as error:
            if here == folder:
                raise InputError(f"{folder}: cannot be listed: {error.strerror}") from None
            yield LeftOut(locator_of(here), f"{UNREADABLE}: the folder cannot be listed: {error.strerror}")
        waiting += sorted(below, reverse=True)


def _classified(entry: os.DirEntry[str]) -> LeftOut | bool:
    """False for a file to be read, True for a folder to be walked."""
    try:
        folder = entry.is_dir(follow_symlinks=False)
        if entry.name.startswith("."):
            what = "a hidden folder, with what is below" if folder else "a hidden file"
            return LeftOut(locator_of(entry.path), f"{HIDDEN}: {what}")
        if folder:
            return True
        if entry.is_dir():
            return LeftOut(locator_of(entry.path), f"{NOT_DICOM}: a link to a folder, which is not followed")
        if not entry.is_file() and not entry.is_symlink():
            return LeftOut(locator_of(entry.path), f"{NOT_DICOM}: not a regular file")
    except OSError as error:
        return LeftOut(locator_of(entry.path), f"{UNREADABLE}: {error.strerror}")
    if entry.name.upper() == "DICOMDIR":
        return LeftOut(locator_of(entry.path), f"{DIRECTORY}: a directory of other files")
    return False


def _referenced(dicomdir: Path) -> Iterator[str | LeftOut]:
    try:
        for located in find_instances([dicomdir], dicomdir.parent):
            if located.path.exists():
                yield str(located.path)
            else:
                words = "the DICOMDIR names it, and it is not there"
                yield LeftOut(locator_of(str(located.path)), f"{MISSING}: {words}")
    except InputError as error:
        yield LeftOut(locator_of(str(dicomdir)), f"{UNREADABLE}: {error}")


def _read(
    paths: Iterable[str | LeftOut], known: Known, pool: ThreadPoolExecutor, readers: int
) -> Iterator[Found | LeftOut]:
    """Headers of files: their sizes ahead of `known`, which is asked in the caller's thread, and their bytes behind."""
    sized = ahead(pool, _size_all, _batches(paths), 2 * readers)
    new = (
        item
        for batch in sized
        for item in batch
        if isinstance(item, LeftOut) or not known(locator_of(item.path), item.size, item.stamp)
    )
    for batch in ahead(pool, _judge_all, _batches(new), 2 * readers):
        yield from batch


def _size_all(batch: Sequence[str | LeftOut]) -> list[_File | LeftOut]:
    return [item if isinstance(item, LeftOut) else _sized(item) for item in batch]


def _sized(path: str) -> _File | LeftOut:
    try:
        found = os.stat(path)  # noqa: PTH116, a million times
    except OSError as error:
        return LeftOut(locator_of(path), f"{UNREADABLE}: cannot be opened: {error.strerror}")
    if not stat.S_ISREG(found.st_mode):
        return LeftOut(locator_of(path), f"{NOT_DICOM}: not a regular file")
    return _File(path, found.st_size, str(found.st_mtime_ns))


def _judge_all(batch: Sequence[_File | LeftOut]) -> list[Found | LeftOut]:
    return [item if isinstance(item, LeftOut) else _judged(item) for item in batch]


def _judged(file: _File) -> Found | LeftOut:
    locator = locator_of(file.path)
    try:
        with Blocks.of_file(file.path) as blocks:
            return judge(blocks, locator, file.size, file.stamp, Path(file.path))
    except OSError as error:
        return LeftOut(locator, f"{UNREADABLE}: cannot be opened: {error.strerror}")


def _zipped(archive: Path, known: Known) -> Iterator[Found | LeftOut]:
    shown = locator_of(str(archive))
    try:
        with zipfile.ZipFile(archive) as zipped:
            for name, member in _members(zipped).items():
                locator, stamp = f"{shown}!{name}", f"{member.CRC:08x}"
                if _is_hidden(member.filename):
                    yield LeftOut(locator, f"{HIDDEN}: a hidden file")
                elif PurePosixPath(member.filename).name.upper() == "DICOMDIR":
                    yield LeftOut(locator, f"{DIRECTORY}: a directory of other files")
                elif not known(locator, member.file_size, stamp):
                    yield _judged_member(zipped, member, locator, stamp)
    except (OSError, InputError, *_BROKEN_ZIP) as error:
        said = str(error) if isinstance(error, MedenhanceError) else type(error).__name__
        yield LeftOut(shown, f"{UNREADABLE}: not a zip that can be read: {said}")


def _judged_member(zipped: zipfile.ZipFile, member: zipfile.ZipInfo, locator: str, stamp: str) -> Found | LeftOut:
    try:
        with zipped.open(member) as file:

            def read_at(position: int, count: int) -> bytes:
                file.seek(position)
                return file.read(count)

            return judge(Blocks(read_at, member.file_size), locator, member.file_size, stamp)
    except (OSError, *_BROKEN_ZIP) as error:
        return LeftOut(locator, f"{UNREADABLE}: does not unpack: {type(error).__name__}")


def _members(zipped: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Files of a zip; of several with one name the later ones get a number behind it."""
    infos = [info for info in zipped.infolist() if not info.is_dir()]
    most = Limits().max_members
    if len(infos) > most:
        raise InputError(f"more than {most} members")
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        name = next(n for n in itertools.chain([info.filename], _numbered(info.filename)) if n not in members)
        members[name] = info
    return members


def _numbered(name: str) -> Iterator[str]:
    return (f"{name}#{number}" for number in itertools.count(2))


def _is_hidden(member: str) -> bool:
    parts = PurePosixPath(member.replace("\\", "/")).parts
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)


def _is_zip(path: Path) -> bool:
    try:
        with Blocks.of_file(path) as blocks:
            return is_zip(blocks.head)
    except OSError:
        return False


def ahead(pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], depth: int) -> Iterator[R]:
    """`function` of every item, in order, with at most `depth` of them under way."""
    under_way: deque[Future[R]] = deque()
    for item in items:
        under_way.append(pool.submit(function, item))
        if len(under_way) >= depth:
            yield under_way.popleft().result()
    while under_way:
        yield under_way.popleft().result()


def _batches(items: Iterable[T]) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, _BATCH)):
        yield batch


# ---------------------------------------------------------------- locators


def locator_of(path: str) -> str:
    """The path, or a file URL where the path is not UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(path).as_uri()
    return path


def _split(locator: str) -> tuple[Path, str | None]:
    """Path and member of a zip, None for a file of its own. Names may hold exclamation marks."""
    path = _path(locator)
    at = -1
    while not path.exists() and (at := locator.find("!", at + 1)) >= 0:
        archive = _path(locator[:at])
        if archive.is_file():
            return archive, locator[at + 1 :]
    return path, None


def _path(locator: str) -> Path:
    if locator.startswith("file://"):
        return Path(os.fsdecode(unquote_to_bytes(locator[len("file://") :])))
    return Path(locator)


# ---------------------------------------------------------------- fetch


def _link(path: Path, target: Path) -> None:
    try:
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
        part.symlink_to(path)
        part.replace(target)
    except OSError as error:
        raise OutputError(f"cannot write into {target.parent}: {error.strerror}") from None


def _extract(archive: zipfile.ZipFile | None, member: zipfile.ZipInfo | None, target: Path) -> str | None:
    """Bring a member of a zip; the reason where it does not come."""
    if archive is None or member is None:
        return f"{MISSING}: it is not there any more"
    try:
        with archive.open(member) as source, bringing(target) as write:
            while block := source.read(_COPIED):
                write(block)
    except (OSError, *_BROKEN_ZIP) as error:
        return f"{UNREADABLE}: does not unpack: {type(error).__name__}"
    return None
