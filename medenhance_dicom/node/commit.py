"""Storage Commitment, Push Model (PS3.4 annex J): we ask archives, and modalities ask us.

A transaction is a file before it is a message, and a report a file before it is acknowledged, so that either side may
die at any moment:

    STORE/commitments/<transaction uid>.json           what we asked, and whom
    STORE/commitments/<transaction uid>.report.json    what came back
    STORE/commitments/asked/<transaction uid>.json     what others asked of us and has not been reported yet
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset
from pydicom.uid import UID
from pynetdicom import build_context, build_role, evt
from pynetdicom.presentation import PresentationContext

from medenhance_dicom.errors import ConfigurationError, InputError, MedenhanceError, PeerError
from medenhance_dicom.node.association import associated
from medenhance_dicom.node.identity import read_identity
from medenhance_dicom.node.jobfolder import flush, write_whole
from medenhance_dicom.node.settings import Destination, NodeSettings
from medenhance_dicom.node.spool import Spool
from medenhance_dicom.node.wire import accepted_context, application_entity, on_open
from medenhance_dicom.uids import is_uid

COMMITMENT = "1.2.840.10008.1.20.1"
COMMITMENT_INSTANCE = "1.2.840.10008.1.20.1.1"
"""The well-known SOP instance that every transaction is about."""
_ASK, _ALL, _SOME_FAILED = 1, 1, 2
_REASONS = {
    0x0110: "processing failure",
    0x0112: "no such instance",
    0x0119: "another SOP class",
    0x0122: "SOP class not supported",
    0x0131: "duplicate transaction",
    0x0213: "resource limitation",
}
_PERMANENT = {0x0118, 0x0122, 0x0123, 0x0124, 0x0211}
_MOST_INSTANCES = 200_000
_FIRST_PAUSE, _LONGEST_PAUSE, _GIVE_UP = 5.0, 600.0, 86400.0
_POLL = 0.02
_LISTEN_SECONDS = 30.0


@dataclass(frozen=True)
class Transaction:
    """What was asked of whom. `instances` are (SOP Class UID, SOP Instance UID)."""

    uid: str
    peer: str
    instances: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Report:
    """The answer to a transaction: every instance that was asked for is in exactly one of the two."""

    transaction: str
    committed: frozenset[str]
    failed: dict[str, str]
    """SOP Instance UID to the reason, in words."""


OnReport = Callable[[str, str, str], None]
"""(transaction, peer, what became of it): for the audit trail."""


def judge(
    transaction: Transaction | None, peer: str, event_type: int | None, information: Dataset
) -> tuple[int, Report | None, str]:
    """What to make of an N-EVENT-REPORT; a pure function.

    Returns:
        The status of our response; the report where the response is 0x0000; and in words why.
    """
    if transaction is None:
        return 0x0115, None, "no such transaction"
    if peer.strip() != transaction.peer:
        return 0x0124, None, "it was asked of another peer"
    if event_type not in (_ALL, _SOME_FAILED):
        return 0x0113, None, "no such event type"
    try:
        stored = {_pair(item) for item in information.get("ReferencedSOPSequence") or []}
        refused = {_pair(item): int(item.FailureReason) for item in information.get("FailedSOPSequence") or []}
    except (AttributeError, TypeError, ValueError):
        return 0x0115, None, "the report is not readable"
    asked = set(transaction.instances)
    if stored & refused.keys():
        return 0x0115, None, "an instance is both committed and refused"
    if missing := len(asked - stored - refused.keys()):
        return 0x0115, None, f"{missing} instances are missing in it"
    failed = {uid: _words(refused[sop_class, uid]) for sop_class, uid in asked & refused.keys()}
    report = Report(transaction.uid, frozenset(uid for _, uid in asked & stored), failed)
    return 0x0000, report, f"{len(failed)} of {len(asked)} refused" if failed else "committed"


def _pair(item: Dataset) -> tuple[str, str]:
    return str(item.ReferencedSOPClassUID), str(item.ReferencedSOPInstanceUID)


def _words(reason: int) -> str:
    return _REASONS.get(reason, f"reason 0x{reason:04X}")


# ---------------------------------------------------------------- we ask


def request_commitment(
    store: Path,
    instances: Sequence[tuple[str, str]],
    destination: Destination,
    *,
    calling_ae: str,
    transaction_uid: str,
    linger: float = 1.0,
) -> Report | None:
    """Ask for the commitment of instances; the transaction is on the disk before the peer hears of it.

    Args:
        store: Of the node.
        instances: (SOP Class UID, SOP Instance UID).
        destination: A DICOM peer.
        calling_ae: Our AE title; the report comes to the listener of that title.
        transaction_uid: Never used before.
        linger: Seconds to wait for a report over the same association.

    Returns:
        The report where it came at once, None where it will come to the listener: see `report_of`.

    Raises:
        PeerError: Unreachable, or it refuses the request (`permanent`: it has no such service).
        OSError: The store does not take the transaction; nothing was asked.
    """
    path = _path(store, transaction_uid)
    if path is None or not instances:
        raise ValueError("not a UID, or no instances")
    _make(path.parent)
    peer = (destination.ae_title or "").strip()
    write_whole(path, {"peer": peer, "instances": [list(pair) for pair in instances], "asked": time.time()})
    request = Dataset()
    request.TransactionUID = transaction_uid
    request.ReferencedSOPSequence = [_reference(*pair) for pair in instances]
    handlers = [(evt.EVT_N_EVENT_REPORT, take_report, [store])]
    contexts = [build_context(COMMITMENT)]
    with associated(destination, contexts, calling_ae=calling_ae, handlers=handlers) as assoc:
        answer, _ = assoc.send_n_action(request, _ASK, COMMITMENT, COMMITMENT_INSTANCE)
        status = answer.get("Status")
        if status is None:
            raise PeerError(f"{destination.name} does not answer the commitment request")
        if status != 0x0000 and not 0xB000 <= status <= 0xBFFF:
            words = f"{destination.name} refuses the commitment request: 0x{status:04X}"
            raise PeerError(words, permanent=status in _PERMANENT)
        until = time.monotonic() + linger
        while (report := report_of(store, transaction_uid)) is None and time.monotonic() < until:
            if not assoc.is_established:
                break
            time.sleep(_POLL)
    return report or report_of(store, transaction_uid)


@contextmanager
def taking_reports(store: Path, destination: Destination, *, ae_title: str, bind: str, port: int) -> Iterator[None]:
    """Listen for reports of one peer that come over an association of their own, where no node does.

    Raises:
        ConfigurationError: The address or port cannot be had.
    """
    entity: Any = application_entity(ae_title)
    entity.require_called_aet = True
    entity.require_calling_aet = [destination.ae_title or ""]
    try:
        server = entity.start_server(
            (bind, port),
            block=False,
            contexts=[accepted_context(COMMITMENT, both_roles=True)],
            evt_handlers=[
                (evt.EVT_CONN_OPEN, on_open, [_LISTEN_SECONDS]),
                (evt.EVT_N_EVENT_REPORT, take_report, [store]),
            ],
        )
    except OSError as error:
        raise ConfigurationError(f"{bind} port {port}: {error.strerror}") from None
    try:
        yield
    finally:
        server.shutdown()


def report_of(store: Path, transaction_uid: str) -> Report | None:
    """What was reported about a transaction of ours, None where nothing was (yet)."""
    path = _path(store, transaction_uid)
    found = _read(path.with_suffix(".report.json")) if path is not None else None
    return Report(transaction_uid, frozenset(found["committed"]), dict(found["failed"])) if found else None


def take_report(event: evt.Event, store: Path, on_report: OnReport | None = None) -> tuple[int, None]:
    """Handler of `EVT_N_EVENT_REPORT`: judged, on the disk, then acknowledged. A repeated report changes nothing."""
    peer = _peer_of(event)
    try:
        information = event.event_information
        uid = str(information.get("TransactionUID", ""))
    except Exception:  # whatever pydicom raises for an undecodable data set
        return 0x0115, None
    status, report, why = judge(transaction_of(store, uid), peer, event.event_type, information)
    path = _path(store, uid)
    if report is not None and path is not None and report_of(store, uid) is None:
        try:
            content = {"committed": sorted(report.committed), "failed": report.failed, "reported": time.time()}
            write_whole(path.with_suffix(".report.json"), content)
        except OSError:
            status, why = 0x0213, "the report could not be written"
    if on_report is not None:
        on_report(uid if path is not None else "", peer, why if status == 0x0000 else f"report refused: {why}")
    return status, None


def transaction_of(store: Path, transaction_uid: str) -> Transaction | None:
    """What we asked under that UID, None where we did not."""
    path = _path(store, transaction_uid)
    found = _read(path) if path is not None else None
    if found is None:
        return None
    return Transaction(transaction_uid, found["peer"], tuple((pair[0], pair[1]) for pair in found["instances"]))


# ---------------------------------------------------------------- we are asked


def commitment_handlers(
    spool: Spool, settings: Callable[[], NodeSettings], on_report: OnReport | None = None
) -> tuple[list[PresentationContext], list[tuple[Any, ...]]]:
    """Contexts and handlers for the listener: reports to us, and requests of others for `answer_requests`."""
    contexts: list[PresentationContext] = [accepted_context(COMMITMENT, both_roles=True)]
    return contexts, [
        (evt.EVT_N_EVENT_REPORT, take_report, [spool.store, on_report]),
        (evt.EVT_N_ACTION, take_request, [spool, settings, on_report]),
    ]


def take_request(
    event: evt.Event, spool: Spool, settings: Callable[[], NodeSettings], on_report: OnReport | None = None
) -> tuple[int, None]:
    """Handler of `EVT_N_ACTION`: success means that the request is on the disk (PS3.4 J.3.2)."""
    peer = _peer_of(event)
    if event.action_type != _ASK:
        return 0x0123, None
    request: Any = event.request
    if request.RequestedSOPInstanceUID != COMMITMENT_INSTANCE:
        return 0x0112, None
    try:
        information = event.action_information
        uid = str(information.TransactionUID)
        pairs = [list(_pair(item)) for item in information.ReferencedSOPSequence]
    except Exception:  # as above: undecodable, or an attribute is missing
        return 0x0115, None
    path = _path(spool.store, uid, "asked")
    if path is None or not 0 < len(pairs) <= _MOST_INSTANCES:
        return 0x0115, None
    if address_of(settings(), peer) is None:
        if on_report is not None:
            on_report(uid, peer, "commitment refused: its host and port are not configured")
        return 0x0124, None
    known = _read(path)
    if known is not None and (known["peer"], known["instances"]) != (peer, pairs):
        return 0x0210, None
    try:
        _make(path.parent)
        write_whole(path, {"peer": peer, "instances": pairs, "asked": time.time(), "attempts": 0, "next": 0.0})
    except OSError:
        return 0x0213, None
    return 0x0000, None


def answer_requests(spool: Spool, settings: NodeSettings, *, now: float, on_report: OnReport | None = None) -> int:
    """Report on what others asked of us, each over an association of our own; call it every few seconds.

    A report that cannot be delivered is tried again with growing pauses for a day.

    Args:
        spool: What we hold.
        settings: The peers' addresses.
        now: Seconds since the epoch.
        on_report: For the audit trail.

    Returns:
        How many requests are still open.
    """
    still_open = 0
    for path in sorted((spool.store / "commitments" / "asked").glob("*.json")):
        asked = _read(path)
        if asked is None:
            continue
        if 0 <= asked["next"] - now <= _LONGEST_PAUSE:
            still_open += 1
            continue
        why = _answer(spool, settings, path.stem, asked)
        given_up = why is not None and abs(now - asked["asked"]) > _GIVE_UP
        if why is None or given_up:
            path.unlink(missing_ok=True)
            words = "commitment reported" if why is None else f"commitment report given up: {why}"
        else:
            still_open += 1
            asked["attempts"] += 1
            asked["next"] = now + min(_FIRST_PAUSE * 2 ** min(asked["attempts"] - 1, 20), _LONGEST_PAUSE)
            write_whole(path, asked)
            words = f"commitment report not delivered: {why}"
        if on_report is not None:
            on_report(path.stem, asked["peer"], words)
    return still_open


def _answer(spool: Spool, settings: NodeSettings, uid: str, asked: dict[str, Any]) -> str | None:
    """Deliver one report; None, or why it failed."""
    destination = address_of(settings, asked["peer"])
    if destination is None:
        return "its host and port are not configured"
    pairs = [(pair[0], pair[1]) for pair in asked["instances"]]
    states = verify_held(spool, pairs)
    report = Dataset()
    report.TransactionUID = uid
    report.RetrieveAETitle = settings.listener.ae_title
    good = [pair for pair in pairs if states[pair] == 0]
    bad = [pair for pair in pairs if states[pair] != 0]
    if good:
        report.ReferencedSOPSequence = [_reference(*pair) for pair in good]
    if bad:
        report.FailedSOPSequence = [_reference(*pair, states[pair]) for pair in bad]
    try:
        with associated(
            destination,
            [build_context(COMMITMENT)],
            calling_ae=settings.listener.ae_title,
            roles=[build_role(UID(COMMITMENT), scp_role=True)],
        ) as assoc:
            kind = _SOME_FAILED if bad else _ALL
            answer, _ = assoc.send_n_event_report(report, kind, COMMITMENT, COMMITMENT_INSTANCE)
    except MedenhanceError as error:
        return str(error)
    except ValueError:
        return "it does not let us report: no SCP role"
    except OSError as error:
        return f"the disk: {error.strerror}"
    status = answer.get("Status")
    if status is None:
        return "no answer to the report"
    return None if status == 0x0000 else f"it answers 0x{status:04X}"


def verify_held(spool: Spool, instances: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """0 for each instance that is held whole, by the digest that its name bore when it came; else a failure reason."""
    digests = _digests(spool.store, {spool.instance_key(uid) for _, uid in instances})
    states: dict[tuple[str, str], int] = {}
    for sop_class, uid in instances:
        held = spool.held(uid)
        if held is None:
            states[sop_class, uid] = 0x0112
            continue
        try:
            identity = read_identity(held)
        except (InputError, OSError):
            states[sop_class, uid] = 0x0110
            continue
        if identity.sop_class != sop_class:
            states[sop_class, uid] = 0x0119
        else:
            known = digests.get(spool.instance_key(uid), [])
            states[sop_class, uid] = 0 if any(identity.digest.startswith(digest) for digest in known) else 0x0110
    return states


def _digests(store: Path, keys: set[str]) -> dict[str, list[str]]:
    """Instance key to the digests in the names `<key>.<digest>.dcm` of pending and sealed series."""
    found: dict[str, list[str]] = {}
    for parent, inner in (("pending", ""), ("jobs", "source")):  # in this order: what is sealed meanwhile is in its job
        for folder in (store / parent).iterdir():
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                for path in (folder / inner).iterdir():
                    key, _, digest = path.stem.partition(".")
                    if digest and key in keys:
                        found.setdefault(key, []).append(digest)
    return found


def address_of(settings: NodeSettings, ae_title: str) -> Destination | None:
    """Where an application entity listens: of a peer with host and port, else of a destination of that title."""
    peer = settings.peer(ae_title)
    if peer is not None and peer.host is not None and peer.port is not None:
        return Destination(name="peer", ae_title=peer.ae_title, host=peer.host, port=peer.port, tls=peer.tls)
    return next((item for item in settings.destinations if item.ae_title == ae_title.strip()), None)


# ---------------------------------------------------------------- files


def _path(store: Path, uid: str, *folders: str) -> Path | None:
    """The file of a transaction; None for what is not a UID, as it came from the network."""
    if not is_uid(uid):
        return None
    return store.joinpath("commitments", *folders, f"{uid}.json")


def _make(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        flush(folder.parent)
        flush(folder.parent.parent)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _reference(sop_class: str, sop_instance: str, reason: int | None = None) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = sop_class
    item.ReferencedSOPInstanceUID = sop_instance
    if reason is not None:
        item.FailureReason = reason
    return item


def _peer_of(event: evt.Event) -> str:
    """AE title of the other side, whichever of us opened the association."""
    assoc = event.assoc
    return str(assoc.acceptor.ae_title if assoc.is_requestor else assoc.requestor.ae_title).strip()
