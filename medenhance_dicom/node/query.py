"""Query and retrieve in the Study Root model (PS3.4 annex C), and C-ECHO: we ask, and we answer from the spool."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.uid import UID
from pynetdicom import build_context, build_role, evt
from pynetdicom.presentation import PresentationContext

from medenhance_dicom.errors import InputError, PeerError
from medenhance_dicom.node.association import MAXIMUM_CONTEXTS, NoContextError, associated
from medenhance_dicom.node.commit import address_of
from medenhance_dicom.node.forward import contexts_for, deliver, read_instance_meta
from medenhance_dicom.node.index import LEVELS, Held, Index, keys_of
from medenhance_dicom.node.settings import Destination, NodeSettings
from medenhance_dicom.node.wire import (
    STORAGE_CLASSES,
    TRANSFER_SYNTAXES,
    accepted_context,
    association_tls,
    bound_queue,
    keep_answers,
    on_open,
)
from medenhance_dicom.transfer_syntaxes import COMMON

VERIFICATION = "1.2.840.10008.1.1"
FIND = "1.2.840.10008.5.1.4.1.2.2.1"
MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
GET = "1.2.840.10008.5.1.4.1.2.2.3"
_UIDS = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
_PENDING = (0xFF00, 0xFF01)
_CANCELLED = 0xFE00
_NO_MATCH = 0xA900
_NOT_AUTHORIZED = 0x0124
_UNKNOWN_DESTINATION = 0xA801
_PERMANENT = {_UNKNOWN_DESTINATION, _NO_MATCH, 0x0122, _NOT_AUTHORIZED}
_SELDOM = tuple(f"1.2.840.10008.5.1.4.1.1.{branch}." for branch in ("9", "66", "68", "78", "104", "481"))
"""Branches of waveforms, registrations, surfaces, refraction, encapsulated documents and radiotherapy."""
RETRIEVED_CLASSES = tuple(sorted(STORAGE_CLASSES, key=lambda uid: uid.startswith(_SELDOM)))
"""Storage classes in the order in which a C-GET offers them; it has room for 127."""


@dataclass(frozen=True)
class Progress:
    """Sub-operations of a retrieve, as the peer counts them."""

    remaining: int
    completed: int
    failed: int
    warning: int
    status: int


# ---------------------------------------------------------------- we ask


def echo(destination: Destination, *, calling_ae: str) -> None:
    """Verify a peer by C-ECHO.

    Raises:
        PeerError: It cannot be reached, or answers anything but success.
    """
    with associated(destination, [build_context(VERIFICATION)], calling_ae=calling_ae) as assoc:
        status = _status(destination, assoc.send_c_echo())
    if status != 0x0000:
        raise PeerError(f"{destination.name} answers the C-ECHO with 0x{status:04X}")


def finding(destination: Destination, *, calling_ae: str) -> AbstractContextManager[Any]:
    """An association for many `find`s, one after the other.

    Raises:
        PeerError: Unreachable, or it refuses.
    """
    return associated(destination, [build_context(FIND)], calling_ae=calling_ae)


def find(
    destination: Destination, identifier: Dataset, *, calling_ae: str, limit: int | None = None, over: Any = None
) -> Iterator[Dataset]:
    """Matches of a C-FIND, as they come.

    Args:
        destination: A DICOM peer.
        identifier: QueryRetrieveLevel and keys.
        calling_ae: Our AE title.
        limit: After so many the query is cancelled, as it is when the caller stops listening.
        over: An association of `finding`; None: one of its own.

    Raises:
        PeerError: Unreachable, silent, or it refuses the query.
    """
    own = finding(destination, calling_ae=calling_ae) if over is None else nullcontext(over)
    with own as assoc:
        count = 0
        for answer, found in assoc.send_c_find(identifier, FIND, msg_id=1):
            status = _status(destination, answer)
            if status not in _PENDING:
                if status not in (0x0000, _CANCELLED):
                    raise _refusal(destination, "C-FIND", status)
                return
            if found is None or (limit is not None and count >= limit):
                continue
            count += 1
            try:
                yield found
            except GeneratorExit:
                assoc.send_c_cancel(1, query_model=FIND)
                raise
            if count == limit:
                assoc.send_c_cancel(1, query_model=FIND)


def count_instances(destination: Destination, study_uid: str, series_uid: str, *, calling_ae: str) -> int | None:
    """How many instances of a series the peer has; None where it does not say.

    Raises:
        PeerError: As `find`.
    """
    query = Dataset()
    query.QueryRetrieveLevel = "SERIES"
    query.StudyInstanceUID, query.SeriesInstanceUID = study_uid, series_uid
    query.NumberOfSeriesRelatedInstances = None
    for found in find(destination, query, calling_ae=calling_ae):
        try:
            number = found.get("NumberOfSeriesRelatedInstances")
            if found.get("SeriesInstanceUID") == series_uid and number is not None:
                return int(number)
        except Exception:  # pydicom raises anything for a value that does not decode
            return None
    return None


def move(destination: Destination, identifier: Dataset, *, calling_ae: str, to: str) -> Iterator[Progress]:
    """Have the peer send instances to the AE title `to`; the last progress is the outcome.

    Raises:
        PeerError: Unreachable, silent, or it refuses the retrieve.
    """
    with associated(destination, [build_context(MOVE)], calling_ae=calling_ae) as assoc:
        responses = assoc.send_c_move(identifier, to, MOVE, msg_id=1)
        yield from _progress(destination, assoc, responses, MOVE)


def get(
    destination: Destination,
    identifier: Dataset,
    folder: Path,
    *,
    calling_ae: str,
    sop_classes: tuple[str, ...] = RETRIEVED_CLASSES[: MAXIMUM_CONTEXTS - 1],
) -> Iterator[Progress]:
    """Have instances sent over the same association, into `folder`, each under a name of our own.

    Args:
        destination: A DICOM peer.
        identifier: QueryRetrieveLevel and unique keys.
        folder: Exists.
        calling_ae: Our AE title.
        sop_classes: Of the instances, at most 127. With few of them every transfer syntax has a context of its own,
            so that nothing is rewritten; with many the peer chooses one of the common ones for each class.

    Raises:
        NoContextError: The peer does not offer C-GET.
        PeerError: As `move`.
    """
    contexts = [build_context(GET), *_offered(sop_classes)]
    roles = [build_role(UID(uid), scp_role=True) for uid in sop_classes]

    with associated(
        destination, contexts, calling_ae=calling_ae, roles=roles, handlers=[(evt.EVT_C_STORE, take, [folder])]
    ) as assoc:
        if not any(context.abstract_syntax == GET for context in assoc.accepted_contexts):
            raise NoContextError(f"{destination.name} does not offer C-GET", permanent=True)
        yield from _progress(destination, assoc, assoc.send_c_get(identifier, GET, msg_id=1), GET)


def take(event: evt.Event, folder: Path) -> int:
    """Handler of `EVT_C_STORE` for what we asked for: into `folder`, under a name of our own."""
    part = folder / f".{secrets.token_hex(12)}.part"
    try:
        shutil.copyfile(event.dataset_path, part)
        part.replace(folder / f"{part.name[1:-5]}.dcm")
    except OSError:
        part.unlink(missing_ok=True)
        return 0xA700
    return 0x0000


def _offered(sop_classes: tuple[str, ...]) -> list[PresentationContext]:
    alone = max((MAXIMUM_CONTEXTS - 1) // len(sop_classes) - 1, 0)
    if not alone:
        return [build_context(uid, list(COMMON)) for uid in sop_classes]
    groups = [[syntax] for syntax in TRANSFER_SYNTAXES[:alone]] + [list(TRANSFER_SYNTAXES[alone:])]
    return [build_context(uid, group) for uid in sop_classes for group in groups if group]


def _progress(destination: Destination, assoc: Any, responses: Any, model: str) -> Iterator[Progress]:
    for answer, _ in responses:
        status = _status(destination, answer)
        if status not in (0x0000, 0xB000, _CANCELLED, *_PENDING):
            raise _refusal(destination, "C-GET" if model == GET else "C-MOVE", status)
        counts = [
            int(answer.get(f"NumberOf{name}Suboperations") or 0)
            for name in ("Remaining", "Completed", "Failed", "Warning")
        ]
        try:
            yield Progress(counts[0], counts[1], counts[2], counts[3], status)
        except GeneratorExit:
            if status in _PENDING:
                assoc.send_c_cancel(1, query_model=model)
            raise


def _status(destination: Destination, answer: Dataset) -> int:
    status = answer.get("Status")
    if status is None:
        raise PeerError(f"{destination.name} gave no answer, or broke the association off")
    return int(status)


def _refusal(destination: Destination, what: str, status: int) -> PeerError:
    return PeerError(f"{destination.name} answers the {what} with 0x{status:04X}", permanent=status in _PERMANENT)


# ---------------------------------------------------------------- we answer


def query_handlers(
    index: Index, settings: Callable[[], NodeSettings]
) -> tuple[list[PresentationContext], list[tuple[Any, ...]]]:
    """Contexts and handlers for the listener. C-GET also needs its storage contexts in both roles."""
    contexts: list[PresentationContext] = [accepted_context(uid) for uid in (FIND, MOVE, GET)]
    return contexts, [
        (evt.EVT_C_FIND, on_find, [index, settings]),
        (evt.EVT_C_MOVE, on_move, [index, settings]),
        (evt.EVT_C_GET, on_get, [index, settings]),
    ]


def on_find(
    event: evt.Event, index: Index, settings: Callable[[], NodeSettings]
) -> Iterator[tuple[int, Dataset | None]]:
    """Handler of `EVT_C_FIND`: study, series and image level; keys that we do not keep are ignored."""
    if not _may_query(event, settings()):
        yield _NOT_AUTHORIZED, None
        return
    identifier = _identifier(event)
    level = str(identifier.get("QueryRetrieveLevel", "")).strip() if identifier is not None else ""
    if identifier is None or level not in LEVELS:
        yield _NO_MATCH, None
        return
    keys = keys_of(identifier)
    title = settings().listener.ae_title
    for row in index.find(level, keys):
        if event.is_cancelled:
            yield _CANCELLED, None
            return
        yield 0xFF00, _response(level, {keyword: row[keyword] for keyword in keys if keyword in row}, title)


def _response(level: str, values: dict[str, str], title: str) -> Dataset:
    response = Dataset()
    if not all(value.isascii() for value in values.values()):
        response.SpecificCharacterSet = "ISO_IR 192"
    response.QueryRetrieveLevel = level
    response.RetrieveAETitle = title
    response.InstanceAvailability = "ONLINE"
    for keyword, text in values.items():
        try:
            number = dictionary_VR(keyword) in ("US",) and text
            setattr(response, keyword, int(text) if number else (text.split("\\") if "\\" in text else text))
        except ValueError:  # held as it came, and not legal: not to be sent on
            setattr(response, keyword, None)
    return response


def on_get(event: evt.Event, index: Index, settings: Callable[[], NodeSettings]) -> Iterator[Any]:
    """Handler of `EVT_C_GET`: streams the files over the same association."""
    if not _may_query(event, settings()):
        yield 1
        yield _NOT_AUTHORIZED, None
        return
    found = _wanted(event, index)
    if found is None:
        yield 1
        yield _NO_MATCH, None
        return
    yield len(found)
    _send_files_of(event.assoc, found)
    yield from _suboperations(event, found)


def on_move(event: evt.Event, index: Index, settings: Callable[[], NodeSettings]) -> Iterator[Any]:
    """Handler of `EVT_C_MOVE`: only to peers and destinations whose address is configured."""
    there = address_of(settings(), str(event.move_destination or ""))
    if there is None or there.host is None or not _may_query(event, settings()):
        yield None, None
        return
    found = _wanted(event, index)
    files = []
    for held in found or []:
        try:
            files.append(read_instance_meta(held.path))
        except InputError:
            continue

    def opened(opening: evt.Event) -> None:
        on_open(opening, there.response_timeout)
        keep_answers(opening.assoc)
        _send_files_of(opening.assoc, found or [])

    contexts = contexts_for(files)[:MAXIMUM_CONTEXTS] or [build_context(VERIFICATION)]
    yield (
        there.host,
        there.port,
        {
            "contexts": contexts,
            "ae_title": there.ae_title,
            "evt_handlers": [(evt.EVT_CONN_OPEN, opened)],
            "tls_args": association_tls(there),
        },
    )
    if found is None:
        yield 1
        yield _NO_MATCH, None
        return
    yield len(found)
    yield from _suboperations(event, found)


def _may_query(event: evt.Event, settings: NodeSettings) -> bool:
    peer = settings.peer(str(event.assoc.requestor.ae_title))
    return peer is not None and peer.query


def _suboperations(event: evt.Event, found: list[Held]) -> Iterator[tuple[int, Dataset | None]]:
    for held in found:
        if event.is_cancelled:
            yield _CANCELLED, None
            return
        named = Dataset()
        named.SOPClassUID, named.SOPInstanceUID = held.sop_class, held.sop_instance
        yield 0xFF00, named


def _identifier(event: evt.Event) -> Dataset | None:
    try:
        identifier: Dataset = event.identifier
        for element in identifier:
            str(element.value)
    except Exception:  # pydicom raises anything for a data set that does not decode
        return None
    return identifier


def _wanted(event: evt.Event, index: Index) -> list[Held] | None:
    """Instances that a retrieve asks for; None where its identifier lacks the unique key of its level."""
    identifier = _identifier(event)
    if identifier is None:
        return None
    level = str(identifier.get("QueryRetrieveLevel", "")).strip()
    keys = {keyword: values for keyword, values in keys_of(identifier).items() if keyword in _UIDS.values()}
    keys = {keyword: [uid for uid in values if uid] for keyword, values in keys.items()}
    if level not in _UIDS or not keys.get(_UIDS[level]):
        return None
    return index.instances({keyword: values for keyword, values in keys.items() if values})


def _send_files_of(assoc: Any, found: list[Held]) -> None:
    """Let the association send the file where pynetdicom would send a data set in memory.

    A handler can yield only data sets; ours hold the UIDs alone.
    """
    bound_queue(assoc)
    paths = {held.sop_instance: held.path for held in found}
    original = assoc.send_c_store

    def send(dataset: Any, msg_id: int = 1, priority: int = 2, **originator: Any) -> Dataset:
        if not isinstance(dataset, Dataset):
            return original(dataset, msg_id=msg_id, priority=priority, **originator)
        item = read_instance_meta(paths[dataset.SOPInstanceUID])
        status = deliver(assoc, item, message_id=msg_id, **originator)
        answer = Dataset()
        if status is not None:
            answer.Status = status
        return answer

    assoc.send_c_store = send
