"""Put files into a folder, FOLDER/STUDY/SERIES/INSTANCE.dcm, and say what became of each."""

from __future__ import annotations

import os
import secrets
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from medenhance_dicom.errors import ConfigurationError, InputError, OutputError
from medenhance_dicom.headers import ARCHIVE_FACTS, Blocks, read_facts
from medenhance_dicom.node.forward import Failed, SendReport, Sent
from medenhance_dicom.node.jobfolder import flush
from medenhance_dicom.node.settings import Destination
from medenhance_dicom.node.standing import standing
from medenhance_dicom.uids import is_uid

_LAST = 0x0020000E
_NAMES = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")


def store_in_folder(paths: Sequence[Path], destination: Destination, *, link: bool = False) -> SendReport:
    """Put files where their UIDs say, as they are. One that is there already, whole, is stored (`standing`).

    A file appears whole or not at all, and is on the disk when it counts as sent. What is there damaged is replaced;
    another object of that name is not, but a failure for good.

    Args:
        paths: Files; on the disk already where they are to be linked.
        destination: One with a folder.
        link: A file gets another name there, where the file system can do that, and its bytes are not copied. For
            files that are removed afterwards: while both names exist, who writes into one writes into the other.

    Raises:
        OutputError: The folder cannot be made.
        ConfigurationError: The destination has no folder.
    """
    if destination.folder is None:
        raise ConfigurationError(f"{destination.name} has no folder")
    try:
        destination.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{destination.name}: the folder cannot be made: {error.strerror}") from None
    report, touched = SendReport(), set[Path]()
    for path in paths:
        try:
            facts = _facts(path)
        except InputError as error:
            report.failed.append(Failed(path, None, str(error), True))
            continue
        except OSError as error:
            report.failed.append(Failed(path, None, f"cannot be read: {error.strerror}", False))
            continue
        study, series, instance = (facts[name] for name in _NAMES)
        try:
            why_not = _store(path, destination.folder / study / series / f"{instance}.dcm", touched, link=link)
        except OSError as error:
            report.failed.append(Failed(path, None, f"cannot be written: {error.strerror}", False))
            continue
        if why_not is None:
            report.sent.append(Sent(path, facts.get("SOPClassUID", ""), instance, 0x0000))
        else:
            report.failed.append(Failed(path, None, why_not, True))
    try:
        for folder in touched:
            flush(folder)
    except OSError as error:
        why = f"cannot be written: {error.strerror}"
        report.failed += [Failed(item.path, None, why, False) for item in report.sent]
        report.sent.clear()
    return report


def _facts(path: Path) -> dict[str, str]:
    with Blocks.of_file(path) as blocks:
        facts = read_facts(blocks, ARCHIVE_FACTS, _LAST)
    for name in _NAMES:
        uid = facts.get(name, "")
        if not is_uid(uid):
            raise InputError("missing, or not a UID", keyword=name)
    return facts


def _store(path: Path, target: Path, touched: set[Path], *, link: bool) -> str | None:
    """Why the target cannot hold this; None where it does now.

    Folders that have to be flushed are added to `touched`.
    """
    touched.add(target.parent)
    if target.exists():
        found = standing(path, target)
        if not found.delivered and found.why is None:
            _copy(path, target)
        return found.why
    touched |= {folder.parent for folder in (target.parent, target.parent.parent) if not folder.exists()}
    target.parent.mkdir(parents=True, exist_ok=True)
    if not (link and _linked(path, target)):
        _copy(path, target)
    return None


def _linked(path: Path, target: Path) -> bool:
    """Whether the file has the other name now.

    Not on another file system, not if it is a link to an original, nor where a folder hands its own rights on.
    """
    if path.is_symlink() or _hands_rights_on(target.parent):
        return False
    try:
        target.hardlink_to(path)
    except OSError:  # what is really wrong, copying will tell
        return False
    return True


def _hands_rights_on(folder: Path) -> bool:
    """Whether files that are made in a folder get its group, or its default access list."""
    if folder.stat().st_mode & stat.S_ISGID:
        return True
    try:
        os.getxattr(folder, "system.posix_acl_default")
    except (OSError, AttributeError):  # it has none; not Linux
        return False
    return True


def _copy(path: Path, target: Path) -> None:
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with path.open("rb") as source, part.open("xb") as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
            sink.flush()
            os.fsync(sink.fileno())
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
