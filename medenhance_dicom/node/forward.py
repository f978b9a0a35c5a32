"""Send files to a DICOM peer by C-STORE (PS3.4 annex B), and say what became of each."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pynetdicom import build_context
from pynetdicom.dsutils import split_dataset
from pynetdicom.presentation import PresentationContext

from medenhance_dicom.errors import InputError, MedenhanceError, PeerError
from medenhance_dicom.node.association import MAXIMUM_CONTEXTS, NoContextError, associated
from medenhance_dicom.node.settings import Destination
from medenhance_dicom.node.transcode import targets_of, transcode
from medenhance_dicom.transfer_syntaxes import name_of

DUPLICATE = 0x0111
"""The peer has that SOP Instance UID already: for a sender that repeats, as good as stored."""
_LOST_IN_A_ROW = 2
"""Associations that break without having stored anything, before the rest waits for the next attempt."""
PERMANENT = {0x0117, 0x0118, 0x0119, 0x0122, 0x0124, 0xC122} | set(range(0xA900, 0xAA00))
"""Failures (PS3.4 B.2.3, PS3.7 annex C, PS3.18 table I.2-2) that a repeat does not mend. Other 0xCxxx are not among
them: many peers answer those when their disk is full."""


class Sent(NamedTuple):
    """An instance that the peer says it has stored; `status` is 0x0000, a warning or 0x0111."""

    path: Path
    sop_class: str
    sop_instance: str
    status: int


class Failed(NamedTuple):
    """An instance that is not known to be stored. `status` is None where there was no answer."""

    path: Path
    status: int | None
    why: str
    permanent: bool


@dataclass
class SendReport:
    """What became of every path, each in exactly one of the lists."""

    sent: list[Sent] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)


class Instance(NamedTuple):
    """A file to be sent, by its file meta information."""

    path: Path
    sop_class: str
    sop_instance: str
    syntax: str


def send_files(paths: Sequence[Path], destination: Destination, *, calling_ae: str) -> SendReport:
    """Send files as they are; one is rewritten, without loss, only where the peer does not take its transfer syntax.

    An association that breaks is opened anew for the instances that were not tried yet, so that one instance that a
    peer cannot stomach does not keep the others.

    Raises:
        PeerError: No association came about, so nothing was tried.
        ConfigurationError: The destination's TLS files do not load.
    """
    report = SendReport()
    instances = readable(paths, report)
    tried = False
    for batch in _batches(instances):
        rest, lost = list(batch), 0
        while rest:
            before = len(report.sent)
            try:
                with associated(destination, contexts_for(rest), calling_ae=calling_ae) as assoc:
                    tried = True
                    rest = _send_batch(assoc, rest, report)
            except NoContextError as error:
                tried = True
                report.failed += [Failed(instance.path, None, str(error), True) for instance in rest]
                break
            except PeerError as error:
                if not tried:
                    raise
                report.failed += [Failed(instance.path, None, str(error), error.permanent) for instance in rest]
                break
            lost = 0 if len(report.sent) > before else lost + 1
            if lost >= _LOST_IN_A_ROW:
                why = "the association broke off repeatedly"
                report.failed += [Failed(instance.path, None, why, False) for instance in rest]
                break
    return report


def readable(paths: Sequence[Path], report: SendReport) -> list[Instance]:
    """The files that can be sent; what cannot be read is entered as failed for good."""
    instances: list[Instance] = []
    for path in paths:
        try:
            instances.append(read_instance_meta(path))
        except InputError as error:
            report.failed.append(Failed(path, None, str(error), True))
    return instances


def read_instance_meta(path: Path) -> Instance:
    """The file meta information that a C-STORE needs.

    Raises:
        InputError: Not readable, or without it.
    """
    try:
        meta, _ = split_dataset(path)
        values = (meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID)
    except Exception as error:  # pydicom raises anything on a broken file
        raise InputError(f"no file meta information: {type(error).__name__}") from None
    if not all(isinstance(value, str) and value for value in values):
        raise InputError("the file meta information is incomplete")
    return Instance(path, *map(str, values))


def contexts_for(instances: Sequence[Instance]) -> list[PresentationContext]:
    """One context per SOP class and transfer syntax, so that the peer cannot choose another syntax for a file.

    Beside those in the files, the uncompressed ones that they could be rewritten in.
    """
    pairs: dict[tuple[str, str], None] = {(item.sop_class, item.syntax): None for item in instances}
    for sop_class, syntax in list(pairs):
        for target in targets_of(syntax):
            pairs.setdefault((sop_class, str(target)))
    return [build_context(sop_class, [syntax]) for sop_class, syntax in pairs]


def _batches(instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    """Instances in their order, cut so that the contexts of each batch fit into one association."""
    batch: list[Instance] = []
    pairs: set[tuple[str, str]] = set()
    for item in instances:
        own = {(item.sop_class, syntax) for syntax in (item.syntax, *map(str, targets_of(item.syntax)))}
        if len(pairs | own) > MAXIMUM_CONTEXTS:
            yield batch
            batch, pairs = [], set()
        batch.append(item)
        pairs |= own
    if batch:
        yield batch


def _send_batch(assoc: Any, batch: Sequence[Instance], report: SendReport) -> list[Instance]:
    """Send one after the other; returns those not tried because the association broke."""
    for index, item in enumerate(batch):
        if not assoc.is_established:
            return list(batch[index:])
        try:
            status = deliver(assoc, item, message_id=index % 65535 + 1)
        except MedenhanceError as error:
            report.failed.append(Failed(item.path, None, str(error), True))
            continue
        except OSError as error:
            report.failed.append(Failed(item.path, None, f"cannot be read: {error.strerror}", False))
            continue
        if status is None:
            report.failed.append(Failed(item.path, None, "no answer to the C-STORE", False))
            if assoc.is_established:
                assoc.abort()
        elif is_stored(status):
            report.sent.append(Sent(item.path, item.sop_class, item.sop_instance, status))
        else:
            report.failed.append(Failed(item.path, status, f"C-STORE status 0x{status:04X}", status in PERMANENT))
    return []


def is_stored(status: int) -> bool:
    """Success, any warning (0xBxxx, 0x0001, 0x0107, 0x0116), or that the peer has it already."""
    return status in (0x0000, 0x0001, 0x0107, 0x0116, DUPLICATE) or 0xB000 <= status <= 0xBFFF


def deliver(assoc: Any, item: Instance, *, message_id: int, **originator: Any) -> int | None:
    """One C-STORE over an established association, streamed from the file.

    Returns:
        The status; None where the peer gave none: it aborted, timed out or answered nonsense.

    Raises:
        PeerError: It accepted no transfer syntax that the file is in or can be rewritten in.
        InputError, UnsupportedInstanceError: Rewriting failed.
        OSError: The file cannot be read.
    """
    accepted = [
        str(context.transfer_syntax[0])
        for context in assoc.accepted_contexts
        if context.abstract_syntax == item.sop_class and context.as_scu
    ]
    if item.syntax in accepted:
        return _store(assoc, item.path, message_id, originator)
    possible = [str(target) for target in targets_of(item.syntax) if target in accepted]
    if not possible:
        what = "its SOP class" if not accepted else f"{name_of(item.syntax)} and what it can be rewritten in"
        raise PeerError(f"the peer does not accept {what}", permanent=True)
    with tempfile.TemporaryDirectory(prefix="rewritten-") as folder:
        rewritten = Path(folder, "instance.dcm")
        transcode(item.path, rewritten, possible[0])
        return _store(assoc, rewritten, message_id, originator)


def _store(assoc: Any, path: Path, message_id: int, originator: dict[str, Any]) -> int | None:
    try:
        answer = assoc.send_c_store(path, msg_id=message_id, **originator)
    except RuntimeError:  # the association ended in between
        return None
    status = answer.get("Status")
    return int(status) if status is not None else None
