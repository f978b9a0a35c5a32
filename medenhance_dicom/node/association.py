"""Associations that we open, and why they fail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pynetdicom import evt
from pynetdicom.pdu import A_ABORT_RQ
from pynetdicom.pdu_primitives import A_ABORT, A_P_ABORT
from pynetdicom.presentation import PresentationContext

from medenhance_dicom.errors import PeerError
from medenhance_dicom.node.settings import Destination
from medenhance_dicom.node.wire import application_entity, association_tls, bound_queue, keep_answers, on_open

MAXIMUM_CONTEXTS = 128
_ACSE_SECONDS = 30.0
_REASONS = {
    (1, 2): "application context not supported",
    (1, 3): "calling AE title not recognized",
    (1, 7): "called AE title not recognized",
    (2, 2): "protocol version not supported",
    (3, 1): "temporary congestion",
    (3, 2): "local limit exceeded",
}
"""PS3.8 table 9-21: by source and reason."""


class NoContextError(PeerError):
    """The peer took the association, and none of the SOP classes and transfer syntaxes in it."""


@contextmanager
def associated(
    destination: Destination,
    contexts: Sequence[PresentationContext],
    *,
    calling_ae: str,
    roles: Sequence[Any] = (),
    handlers: Sequence[tuple[Any, ...]] = (),
) -> Iterator[Any]:
    """An established association; released on leaving, aborted when an exception leaves.

    Args:
        destination: Has AE title, host and port.
        contexts: At most 128.
        calling_ae: Our AE title.
        roles: Items of SCP/SCU role selection.
        handlers: Of pynetdicom's events.

    Raises:
        PeerError: Unreachable, rejected (`permanent` as the peer says), unanswered, or aborted.
        NoContextError: No context was accepted.
        ConfigurationError: The TLS files do not load.
    """
    name, host, port, title = destination.name, destination.host, destination.port, destination.ae_title
    if host is None or port is None or title is None:
        raise PeerError(f"{name} has no DICOM address", permanent=True)
    entity = application_entity(calling_ae)
    entity.connection_timeout = destination.connect_timeout
    entity.acse_timeout = min(_ACSE_SECONDS, destination.response_timeout)
    entity.dimse_timeout = destination.response_timeout
    entity.network_timeout = destination.response_timeout + _ACSE_SECONDS
    heard = _Heard()
    try:
        assoc = entity.associate(
            host,
            port,
            contexts=list(contexts),
            ae_title=title,
            max_pdu=entity.maximum_pdu_size,
            ext_neg=list(roles),
            tls_args=association_tls(destination),
            evt_handlers=[
                (evt.EVT_CONN_OPEN, on_open, [destination.response_timeout]),
                (evt.EVT_CONN_OPEN, heard.on_open),
                (evt.EVT_PDU_RECV, heard.on_pdu),
                (evt.EVT_ACSE_RECV, heard.on_primitive),
                *handlers,
            ],
        )
    except OSError:
        raise PeerError(f"{name}: its host name is not known") from None
    if not assoc.is_established:
        raise _failure(name, assoc, heard)
    bound_queue(assoc)
    keep_answers(assoc)
    try:
        yield assoc
    except RuntimeError:
        if assoc.is_established:
            assoc.abort()
            raise
        raise heard.end(name) from None  # pynetdicom's word for an association that is no more
    except BaseException:
        assoc.abort()
        raise
    if assoc.is_established:
        assoc.release()


class _Heard:
    """What came from the peer; pynetdicom's `is_aborted` is true after our own aborts and time-outs, too."""

    connected = answered = aborted = False
    """The last one: it sent an A-ABORT, or closed the connection."""
    malformed = False
    """It sent what PS3.8 does not let it send then, for which our side aborts (section 9.2, action AA-8)."""
    _told = False

    def on_open(self, _event: Any) -> None:
        self.connected = True

    def on_pdu(self, event: Any) -> None:
        self._told = self._told or isinstance(event.pdu, A_ABORT_RQ)

    def on_primitive(self, event: Any) -> None:
        self.answered = True
        if isinstance(event.primitive, (A_ABORT, A_P_ABORT)):
            self.malformed = not self._told and getattr(event.primitive, "provider_reason", 0) != 0
            self.aborted = not self.malformed

    def end(self, name: str) -> PeerError:
        """Why an association is no more."""
        if self.malformed:
            return PeerError(f"{name} sends what is no DICOM association")
        return PeerError(f"{name} broke the association off" if self.aborted else f"the association with {name} ended")


def _failure(name: str, assoc: Any, heard: _Heard) -> PeerError:
    """Why no association came about."""
    if assoc.is_rejected:
        answer = assoc.acceptor.primitive
        reason = _REASONS.get((answer.result_source, answer.diagnostic), "no reason given")
        permanent = answer.result == 1
        how = "for good" if permanent else "for now"
        return PeerError(f"{name} rejects the association {how}: {reason}", permanent=permanent)
    if assoc.rejected_contexts and not assoc.accepted_contexts:
        return NoContextError(f"{name} accepts none of the SOP classes and transfer syntaxes offered", permanent=True)
    if not heard.connected:
        return PeerError(f"{name} cannot be reached")
    return heard.end(name) if heard.answered else PeerError(f"{name} does not answer the association request")
