"""Every file below a path that is ours, or was, and its state. Nothing that one file holds stops the others."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import InputError, MedenhanceError
from medenhance_dicom.part10 import Located, find_instances, looks_like_dicom, read_instance
from medenhance_dicom.structured_report import COMPREHENSIVE_SR
from medenhance_dicom.uids import IMPLEMENTATION_CLASS_UID
from medenhance_dicom.verify import (
    BAD_SIGNATURE,
    NOT_SIGNED,
    SOURCE_MISSING,
    UNKNOWN_KEY,
    check_file,
    is_ours,
    traces,
)
from medenhance_dicom.withheld import is_kept

if TYPE_CHECKING:
    from pydicom import Dataset

    from medenhance_dicom.site_keys import PublicKey

State = Literal["ok", "altered", "bad signature", "unknown key", "not signed", "source missing", "unreadable"]

_OUR_UID = re.compile(r"2\.25\.\d{1,39}")
_UID = re.compile(rf"\d+(\.\d+){{3,}}|{_OUR_UID.pattern}")
_SOP_INSTANCE_UID = 0x00080018
_STATES: dict[str, State] = {
    BAD_SIGNATURE: "bad signature",
    UNKNOWN_KEY: "unknown key",
    NOT_SIGNED: "not signed",
    SOURCE_MISSING: "source missing",
}
_WORST_FIRST: tuple[State, ...] = ("bad signature", "altered", "unknown key", "not signed", "source missing")


@dataclass(frozen=True)
class Verified:
    """One file."""

    path: str
    """Or `archive.zip!member`."""
    state: State
    problems: list[str]
    """Empty where the state is ok. They name attributes, and never quote values."""


def exit_code(states: Mapping[State, int]) -> int:
    """Of `verify`: 0 all good, 3 nothing of ours, 6 nothing that could be read, 13 any other problem.

    Args:
        states: State -> number of files.
    """
    found = {state for state, number in states.items() if number}
    if not found:
        return 3
    if found == {"unreadable"}:
        return 6
    return 0 if found == {"ok"} else 13


def verify_files(
    path: Path,
    source: Path | None = None,
    keys: Mapping[str, PublicKey] | None = None,
    *,
    decoder: Decoder | None = None,
) -> Iterator[Verified]:
    """Verify what is ours below `path`, and report what cannot be read; what is another's is passed over.

    A file that is no DICOM is passed over, too, unless it is named by `path`, ends in .dcm, or has a UID for a name.
    One without our marks counts as ours, and altered, where it still shows traces of us, or stands among ours under a
    UID like theirs.

    Args:
        path: A file, folder, zip or DICOMDIR.
        source: Where the sources are; found by the UID that a derived object names. None: checked without them.
        keys: Key id -> key of those that are trusted: each object has to be signed by one. None: not looked at.
        decoder: Of whoever calls this often, and closes it; None: one for this call.

    Raises:
        InputError: A path does not exist.
    """
    with tempfile.TemporaryDirectory(prefix="medenhance-") as scratch, contextlib.ExitStack() as own:
        decoder = decoder or own.enter_context(Decoder())
        walk = _Walk(_by_uid(source, Path(scratch)) if source is not None else None, keys, decoder)
        found = find_instances([path], Path(scratch), unlisted=walk.miss)
        if not path.exists():
            next(found)  # raises
        while True:
            try:
                located = next(found, None)
            except MedenhanceError as error:  # a broken zip or DICOMDIR, after the members before it
                yield Verified(str(path), "unreadable", [str(error)])
                break
            if located is None:
                break
            yield from walk.missed()
            result = walk.look_at(located, named=located.path == path)
            if result is not None:
                yield result
        yield from walk.missed()
        yield from walk.rest()


class _Walk:
    """What is known so far of the files that were looked at."""

    def __init__(
        self, sources: dict[str, list[Path]] | None, keys: Mapping[str, PublicKey] | None, decoder: Decoder
    ) -> None:
        self._sources, self._keys, self._decoder = sources, keys, decoder
        self._images: dict[str, list[Path]] = {}
        self._reports: list[Located] = []
        self._folders_of_ours: set[Path] = set()
        self._unmarked: list[Located] = []
        self._missed: list[Verified] = []

    def miss(self, folder: Path, why: str) -> None:
        """Note a folder that cannot be listed."""
        self._missed.append(Verified(str(folder), "unreadable", [f"cannot be listed: {why}"]))

    def missed(self) -> list[Verified]:
        """What was noted since, once."""
        missed, self._missed = self._missed, []
        return missed

    def look_at(self, located: Located, *, named: bool) -> Verified | None:
        """One file's result; None: it is another's, or comes with `rest`."""
        name = Path(located.name.rpartition("!")[2])
        try:
            if not looks_like_dicom(located.path) and located.path.exists():
                expected = named or name.suffix.lower() == ".dcm" or _UID.fullmatch(name.name)
                return Verified(located.name, "unreadable", [_no_dicom(located.path)]) if expected else None
            instance = read_instance(located.path)
            if instance.get("SOPClassUID") == COMPREHENSIVE_SR:
                if is_ours(instance):
                    self._reports.append(located)  # judged by the images, which may come later
                return None
            return self._image(located, instance)
        except InputError as error:
            return Verified(located.name, "unreadable", [str(error)])
        except Exception as error:  # the boundary: no file may stop the others
            return Verified(located.name, "unreadable", [f"cannot be checked: {type(error).__name__}"])

    def _image(self, located: Located, instance: Dataset) -> Verified | None:
        if is_ours(instance):
            self._folders_of_ours.add(located.path.parent)
            self._images.setdefault(str(instance.get("SOPInstanceUID")), []).append(located.path)
            return _judged(located, check_file(located.path, self._sources, self._keys, self._decoder) or [])
        if (
            instance.file_meta.get("ImplementationClassUID") == IMPLEMENTATION_CLASS_UID
            and "SOPInstanceUID" not in instance
        ):
            return Verified(located.name, "unreadable", ["the header is cut short"])  # before our first mark
        if found := traces(instance):
            self._folders_of_ours.add(located.path.parent)
            return Verified(located.name, "altered", [f"{found}: of ours, and the marks of our objects are missing"])
        if _OUR_UID.fullmatch(located.path.name.removesuffix(".dcm")):
            self._unmarked.append(located)
        return None

    def rest(self) -> Iterator[Verified]:
        """Structured reports, and what stands unmarked among objects of ours."""
        for located in self._reports:
            images = dict(self._sources or {})
            for uid, paths in self._images.items():
                images[uid] = [*images.get(uid, []), *paths]
            try:
                yield _judged(located, check_file(located.path, images, self._keys) or [])
            except InputError as error:
                yield Verified(located.name, "unreadable", [str(error)])
        for located in self._unmarked:
            if located.path.parent in self._folders_of_ours:
                yield Verified(located.name, "altered", ["stands among objects of ours, and nothing in it is ours"])


def _no_dicom(path: Path) -> str:
    if is_kept(path):
        return "a picture that the structure check withheld, no derived object"
    return "not a DICOM file" if path.stat().st_size else "an empty file"


def _judged(located: Located, problems: list[str]) -> Verified:
    states = {_STATES.get(problem, "altered") for problem in problems}
    return Verified(located.name, next((state for state in _WORST_FIRST if state in states), "ok"), problems)


def _by_uid(source: Path, scratch: Path) -> dict[str, list[Path]]:
    """SOP Instance UID -> files; several where a corrected object has the UID of the one before."""
    found: dict[str, list[Path]] = {}
    for located in find_instances([source], scratch):
        try:
            if looks_like_dicom(located.path):
                uid = read_instance(located.path, last=_SOP_INSTANCE_UID).get("SOPInstanceUID")
                found.setdefault(str(uid), []).append(located.path)
        except InputError:
            continue
    return found
