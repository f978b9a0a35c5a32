"""The storage SCP: who gets in, and what they are told. Any number of processes may listen on the same ports."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pynetdicom import build_context, evt
from pynetdicom.presentation import PresentationContext

from medenhance_dicom.errors import ConfigurationError, MedenhanceError
from medenhance_dicom.node.acceptor import AcceptedAssociation, Server
from medenhance_dicom.node.intake import OUT_OF_RESOURCES, AuditLine, take_in
from medenhance_dicom.node.markers import Marker
from medenhance_dicom.node.messages import Part, Request
from medenhance_dicom.node.settings import Listener, NodeSettings
from medenhance_dicom.node.spool import Fate, Spool
from medenhance_dicom.node.wire import TRANSFER_SYNTAXES, application_entity, server_tls, storage_contexts
from medenhance_dicom.transfer_syntaxes import name_of

_log = logging.getLogger(__name__)

_VERIFICATION = "1.2.840.10008.1.1"
_UNKNOWN_CALLER = (1, 1, 3)
"""Result, source and reason of PS3.8 table 9-21: rejected permanent, service user, calling AE title not recognized."""
_WRONG_CALLED = (1, 1, 7)
_CONGESTION = (2, 3, 1)
_LIMIT = (2, 3, 2)
_WORDS = {
    _UNKNOWN_CALLER: "calling AE title not recognized",
    _WRONG_CALLED: "called AE title not recognized",
    _CONGESTION: "draining, or out of order",
    _LIMIT: "too many associations",
}
_NO_SYNTAX = 4
"""Result of a presentation context, PS3.8 table 9-18: transfer syntaxes not supported."""
_GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Mounted:
    """What a receiver serves besides Verification and Storage."""

    contexts: Sequence[PresentationContext] = ()
    """One for a storage class replaces ours, such as one with roles."""
    handlers: Sequence[tuple[Any, ...]] = ()
    """Of pynetdicom's events."""
    audit: AuditLine | None = None


@dataclass
class Receiver:
    """The listeners of one process.

    Attributes:
        settings: Replace it to have new peers and limits; addresses, ports and TLS stay as they were at the start.
        spool: Where instances go.
        mounted: What else is served.
        draining: Set to answer every C-STORE with 0xA700 and to reject associations for now.
    """

    settings: NodeSettings
    spool: Spool
    mounted: Mounted = field(default_factory=Mounted)
    draining: bool = False

    def __post_init__(self) -> None:
        self._servers: list[Server] = []
        self._open: set[AcceptedAssociation] = set()
        self._lock = threading.Lock()

    @property
    def reserve_bytes(self) -> int:
        """Free space below which nothing is received."""
        return self.settings.listener.reserve_bytes

    def start(self) -> None:
        """Listen.

        Raises:
            ConfigurationError: An address or port cannot be had, or the TLS files do not load.
        """
        listener = self.settings.listener
        ae = application_entity(listener.ae_title, maximum_pdu=listener.maximum_pdu)
        ae.acse_timeout = listener.acse_timeout
        ae.dimse_timeout = listener.dimse_timeout
        ae.network_timeout = listener.network_timeout
        ae.maximum_associations = 1 << 30  # `_admit` counts, and counts none that says nothing
        contexts = {context.abstract_syntax: context for context in storage_contexts()}
        contexts |= {context.abstract_syntax: context for context in self.mounted.contexts}
        contexts[_VERIFICATION] = build_context(_VERIFICATION, list(TRANSFER_SYNTAXES))
        for port, ssl_context in listening_ports(listener):
            try:
                server = Server(
                    ae,
                    (listener.bind, port),
                    self,
                    socket_timeout=listener.socket_timeout,
                    most_associations=listener.maximum_associations,
                    contexts=list(contexts.values()),
                    ssl_context=ssl_context,
                    handlers=[
                        (evt.EVT_REQUESTED, self._admit),
                        (evt.EVT_ACCEPTED, self._say_refused),
                        *self.mounted.handlers,
                    ],
                )
            except OSError as error:
                self.stop(0)
                raise ConfigurationError(f"listener: {listener.bind} port {port}: {error.strerror}") from None
            ae._servers.append(server)
            self._servers.append(server)
            threading.Thread(target=server.serve_forever, args=(0.1,), name=f"listen-{port}", daemon=True).start()

    def stop(self, grace: float = _GRACE_SECONDS) -> None:
        """Stop listening, refuse what is still sent, and wait for open associations up to `grace` seconds."""
        self.draining = True
        for server in self._servers:
            server.shutdown()
        self._servers.clear()
        until = time.monotonic() + grace
        while self._open and time.monotonic() < until:
            time.sleep(0.02)
        with self._lock:
            left = list(self._open)
        for assoc in left:
            assoc.abort()

    # ------------------------------------------------------------ associations

    def _admit(self, event: evt.Event) -> None:
        """Reject whom we do not know, who means another, and who is one too many."""
        assoc: Any = event.assoc
        request = assoc.requestor.primitive
        assoc.calling_ae, assoc.called_ae = request.calling_ae_title.strip(), request.called_ae_title.strip()
        try:
            refusal = self._refusal(assoc)
        except Exception as error:  # pynetdicom would pass over it, and let the peer in
            _log.error("nobody is let in: %s", error if isinstance(error, MedenhanceError) else type(error).__name__)
            refusal = _CONGESTION
        if refusal is None:
            assoc.admitted = True
            return
        self._close(assoc)
        self._audit("rejected", calling_ae=assoc.calling_ae, address=assoc.requestor.address, why=_WORDS[refusal])
        assoc.acse.send_reject(*refusal)
        assoc.kill()

    def _say_refused(self, event: evt.Event) -> None:
        """Name what a peer offered in vain: transfer syntaxes of contexts of which we took none."""
        assoc: Any = event.assoc
        refused = {context.context_id for context in assoc.rejected_contexts if context.result == _NO_SYNTAX}
        if refused:
            offered = assoc.requestor.primitive.presentation_context_definition_list
            syntaxes = {name_of(str(s)) for item in offered if item.context_id in refused for s in item.transfer_syntax}
            self._audit("refused", calling_ae=assoc.calling_ae, transfer_syntaxes=sorted(syntaxes))

    def _refusal(self, assoc: Any) -> tuple[int, int, int] | None:
        listener = self.settings.listener
        peer = self.settings.peer(assoc.calling_ae)
        if peer is None or not peer.may_call_from(assoc.requestor.address):
            return _UNKNOWN_CALLER
        if assoc.called_ae != listener.ae_title:
            return _WRONG_CALLED
        if self.draining or self.spool.draining:
            return _CONGESTION
        with self._lock:
            if len(self._open) >= listener.maximum_associations:
                return _LIMIT
            self._open.add(assoc)
        with contextlib.suppress(OSError):  # a full disk: C-ECHO still works, C-STORE is told
            self._mark(assoc)
        of_peer = sum(other.calling_ae == assoc.calling_ae for other in self.spool.associations())
        return _LIMIT if of_peer > listener.maximum_associations_of_a_peer else None

    def _mark(self, assoc: AcceptedAssociation) -> Marker:
        if assoc.marker is None:
            assoc.marker = self.spool.open_association(assoc.calling_ae)
        return assoc.marker

    def _close(self, assoc: AcceptedAssociation) -> None:
        with self._lock:
            self._open.discard(assoc)
        marker, assoc.marker = assoc.marker, None
        if marker is not None:
            marker.close()

    def ended(self, assoc: AcceptedAssociation) -> None:
        """Called once for every connection, after everything of it is closed."""
        self._close(assoc)
        if assoc.facts:
            self._audit("received", calling_ae=assoc.calling_ae, address=assoc.requestor.address, **assoc.facts)

    def _audit(self, event: str, **facts: Any) -> None:
        _log.info("%s", event, extra={"facts": facts})
        if self.mounted.audit is not None:
            with contextlib.suppress(OSError, MedenhanceError):
                self.mounted.audit(event, **facts)

    # ------------------------------------------------------------ store

    def store(self, assoc: AcceptedAssociation, request: Request, part: Part) -> int:
        """The status of a request whose data set has come in whole; its part is gone then."""
        try:
            marker = self._mark(assoc)
        except OSError:
            part.discard()
            return OUT_OF_RESOURCES
        taken = take_in(
            self.spool,
            part.path,
            calling_ae=assoc.calling_ae,
            called_ae=assoc.called_ae,
            sop_class=request.sop_class,
            sop_instance=request.sop_instance,
            digest=part.digest,
            carried=marker.carried,
            audit=self._audit,
        )
        fate = taken.accepted.fate if taken.accepted is not None else None
        word = fate.value if fate is not None and fate is not Fate.CONFLICT else "refused"
        assoc.facts[word] = assoc.facts.get(word, 0) + 1
        return taken.status


def listening_ports(listener: Listener) -> list[tuple[int, Any]]:
    """Each port to listen on, with its TLS context or None.

    Raises:
        ConfigurationError: None at all, or the TLS files do not load.
    """
    ports: list[tuple[int, Any]] = [(listener.port, None)] if listener.port else []
    if listener.tls is not None:
        ports.append((listener.tls.port, server_tls(listener.tls)))
    if not ports:
        raise ConfigurationError("listener: neither port nor tls")
    return ports
