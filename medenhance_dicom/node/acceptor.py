"""pynetdicom's acceptor, made fit for peers that are slow, rude or broken.

What differs from pynetdicom:

* The provider thread sleeps in `poll` until there is something to do, instead of looking every millisecond, and serves
  C-STORE itself: nothing waits for another thread on the way from the socket to the disk and back.
* What a peer may make us hold is bounded: bytes of a PDU, seconds until it has associated, connections; see `messages`.
* The clock may jump: timers are monotonic.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import select
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol

from pynetdicom import evt
from pynetdicom._globals import MODE_ACCEPTOR
from pynetdicom.association import Association
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import A_RELEASE
from pynetdicom.timer import Timer
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from medenhance_dicom.node.markers import Marker
from medenhance_dicom.node.messages import POLL_MS, Messages, Part, Request
from medenhance_dicom.node.spool import Spool
from medenhance_dicom.node.wire import PromptSocket, SendQueue, harden

_log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", module=r"pydicom\b")  # they quote values, and so do its log records
logging.getLogger("pydicom").addHandler(logging.NullHandler())
logging.getLogger("pydicom").propagate = False

_LARGEST_REQUEST = 1 << 20
"""Bytes of an A-ASSOCIATE-RQ; it is not subject to the maximum PDU length."""
_SLACK = 1024
"""Some peers count the headers of a PDU, some do not."""
_MORE_CONNECTIONS = 32
"""Connections above the limit of associations, that they may be told so."""
_KILL_SECONDS = 60.0
_ESTABLISHED = "Sta6"
"""PS3.8 table 9-10: ready for data transfer."""
_PDU_HEADER = struct.Struct(">xxL")
_P_DATA_TF = b"\x04"


class Host(Protocol):
    """Who runs the server."""

    spool: Spool
    draining: bool

    @property
    def reserve_bytes(self) -> int:
        """Free space below which nothing is received."""

    def store(self, assoc: AcceptedAssociation, request: Request, part: Part) -> int:
        """The status of a request whose data set has come in whole; called by the association's provider thread."""

    def ended(self, assoc: AcceptedAssociation) -> None:
        """Called once for every connection, after everything of it is closed."""


# ---------------------------------------------------------------- the upper layer


class _Timer(Timer):
    """Monotonic."""

    @property
    def remaining(self) -> float:
        if self.timeout is None:
            return 1.0
        if self._start_time is None:
            return self.timeout
        end = time.monotonic() if self._end_time is None else self._end_time
        return self.timeout - (end - self._start_time)

    def start(self) -> None:
        self._start_time, self._end_time = time.monotonic(), None

    def stop(self) -> None:
        self._end_time = time.monotonic()


class _ToPeer(SendQueue):
    """What is put wakes the provider thread."""

    def __init__(self, dul: Any, wake: Callable[[], None]) -> None:
        super().__init__(dul)
        self._wake = wake

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        self._wake()


class _ToUser(queue.Queue[Any]):
    """A release wakes the reactor."""

    def __init__(self, messages: Messages) -> None:
        super().__init__()
        self._messages = messages

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        if isinstance(item, A_RELEASE):
            self._messages.msg_queue.put((None, None))


class _Socket(PromptSocket):
    """Waits for the peer and for ourselves at once; until the association stands, no longer than it may take."""

    _own: AcceptedAssociation
    _largest_data: int

    def attend(self, assoc: AcceptedAssociation, largest_data: int, timeout: float, opening: float) -> None:
        self._own, self._largest_data, self._timeout = assoc, largest_data, timeout
        self._established_by = time.monotonic() + opening
        self._bell, self._ringer = socket.socketpair()
        self._bell.setblocking(False)
        self._ringer.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._bell, select.POLLIN)
        assert self.socket is not None
        self._poll.register(self.socket, select.POLLIN)
        harden(self.socket, min(timeout, opening))

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake; closed: it has gone
            self._ringer.send(b"\0")

    def hang_up(self) -> None:
        """Close everything; only when no thread uses it any more."""
        self._shutdown_socket()
        self._bell.close()
        self._ringer.close()

    @property
    def ready(self) -> bool:
        """Whether the peer has sent something; waits a moment for that."""
        sock = self.socket
        if sock is None or not self._is_connected:
            return False
        pending = getattr(sock, "pending", None)
        if self._ahead or (pending is not None and pending()):
            return True
        try:
            found = self._poll.poll(POLL_MS)
            if any(number == self._bell.fileno() for number, _ in found):
                with contextlib.suppress(BlockingIOError):
                    self._bell.recv(4096)
            return any(number == sock.fileno() for number, _ in found)
        except (OSError, ValueError):
            self.event_queue.put("Evt17")
            return False

    def recv(self, nr_bytes: int) -> bytearray:
        sock = self.socket
        if sock is not None:
            left = self._timeout
            if not self._own.admitted:
                left = min(left, max(self._established_by - time.monotonic(), 0.01))
            if sock.gettimeout() != left:
                sock.settimeout(left)
            self.largest_pdu = self._largest_data if self._own.admitted else _LARGEST_REQUEST
        return super().recv(nr_bytes)


class _Provider(DULServiceProvider):
    """Reads data without the state machine where it has no say, and dies quietly of events that it does not know."""

    def _read_pdu_data(self) -> None:
        """P-DATA-TF of an established association goes to `Messages` as bytes; every other PDU is pynetdicom's."""
        own: Any = self.assoc
        wrapped: Any = self.socket
        while own.admitted and self.state_machine.current_state == _ESTABLISHED:
            try:
                head = wrapped.recv(_PDU_HEADER.size)
                if head[:1] != _P_DATA_TF:
                    wrapped.unread(head)
                    break
                (length,) = _PDU_HEADER.unpack(head)
                body = wrapped.recv(length)
            except (OSError, struct.error) as error:
                _log.info("a connection ends: %s", type(error).__name__)
                self.event_queue.put("Evt17")
                return
            if len(body) < length:
                self.event_queue.put("Evt17")
                return
            own.messages.receive_pdu(body)
            self._idle_timer.restart()
            if self._kill_thread or self.to_provider_queue.qsize() or self.event_queue.qsize() or not wrapped.ready:
                return
        super()._read_pdu_data()

    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        except Exception as error:
            _log.info("a connection ends: %s", type(error).__name__)
            self.kill_dul()
            waiting: Any = self.to_user_queue
            waiting.put(None)


class AcceptedAssociation(Association):
    """One connection; cleans up after itself whichever way it ends."""

    def __init__(self, ae: Any, server: Server) -> None:
        super().__init__(ae, MODE_ACCEPTOR)
        self.host = server.host
        self._gone = server.gone
        self.admitted = False
        self.calling_ae = ""
        self.called_ae = ""
        self.facts: dict[str, int] = {}
        """What it has carried, for the audit trail."""
        self.marker: Marker | None = None
        self.messages = self.dimse = Messages(self)
        dul: Any = _Provider(self)
        self.dul = dul
        dul.daemon = True
        dul._run_loop_delay = 0.0005  # not 0: `_Socket.ready` does not sleep once the peer has gone
        dul._idle_timer, dul.artim_timer = _Timer(self.network_timeout), _Timer(self.acse_timeout)
        dul.to_user_queue = _ToUser(self.messages)

    def run_reactor(self) -> None:
        """The association's thread."""
        try:
            super().run_reactor()
        except Exception as error:  # of a handler, or ours: this connection ends, and no other
            _log.error("an association failed: %s", type(error).__name__)
            self.dul.kill_dul()
        finally:
            self.kill()
            self.messages.discard()
            wrapped: Any = self.dul.socket
            wrapped.hang_up()
            self._gone()
            self.host.ended(self)

    def kill(self) -> None:
        """End both threads; the provider may still be sending an abort or a rejection."""
        self._reactor_checkpoint.set()
        self._kill = self._is_paused = True
        self.is_established = False
        until = time.monotonic() + _KILL_SECONDS
        while self.dul.is_alive() and not self.dul.stop_dul():
            if time.monotonic() > until:
                self.dul.kill_dul()
                break
            time.sleep(0.002)


class _Handler(RequestHandler):
    server: Server

    def handle(self) -> None:
        try:
            assoc = self._create_association()
            evt.trigger(assoc, evt.EVT_CONN_OPEN, {"address": self.client_address})
            assoc.start()
        except BaseException:
            self.request.close()
            self.server.gone()
            raise

    def _create_association(self) -> AcceptedAssociation:
        server = self.server
        assoc = AcceptedAssociation(self.ae, server)
        assoc._server = server
        assoc.name = "AcceptorThread"
        wrapped = _Socket(assoc, client_socket=self.request)
        opening = self.ae.acse_timeout or server.socket_timeout
        wrapped.attend(assoc, self.ae.maximum_pdu_size + _SLACK, server.socket_timeout, opening)
        assoc.set_socket(wrapped)
        assoc.dul.to_provider_queue = _ToPeer(assoc.dul, wrapped.wake)
        assoc.acceptor.maximum_length = self.ae.maximum_pdu_size
        assoc.acceptor.ae_title = server.ae_title
        assoc.acceptor.address_info = self.local
        assoc.acceptor.implementation_class_uid = self.ae.implementation_class_uid
        assoc.acceptor.implementation_version_name = self.ae.implementation_version_name
        assoc.acceptor.supported_contexts = server.contexts  # only read
        assoc.requestor.address_info = self.remote
        handlers: dict[Any, Any] = server._handlers
        for event, bound in handlers.items():
            for handler, arguments in [bound] if event.is_intervention else bound:
                assoc.bind(event, handler, arguments)
        return assoc


class Server(ThreadedAssociationServer):
    """A listening socket; several processes may have one on the same port."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(
        self,
        ae: Any,
        address: tuple[str, int],
        host: Host,
        *,
        socket_timeout: float,
        most_associations: int,
        contexts: list[Any],
        ssl_context: Any = None,
        handlers: list[Any] | None = None,
    ) -> None:
        self.host = host
        self.socket_timeout = socket_timeout
        self._places = threading.Semaphore(most_associations + _MORE_CONNECTIONS)
        self.gone = self._places.release
        super().__init__(ae, address, ae.ae_title, contexts, ssl_context, handlers, _Handler)

    def server_bind(self) -> None:
        """Share the port."""
        assert self.socket is not None
        if hasattr(socket, "SO_REUSEPORT"):
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        super().server_bind()

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """A flood of connections is cut off before it costs threads."""
        return self._places.acquire(blocking=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say no more than the kind of error: values may be a patient's."""
        _log.warning("a connection failed")
