"""pynetdicom's acceptor, made fit for peers that are slow, rude or broken, and C-STORE straight to the disk.

What differs from pynetdicom:

* The provider thread sleeps in `poll` until there is something to do, instead of looking every millisecond, and serves
  C-STORE itself: nothing waits for another thread on the way from the socket to the disk and back.
* A data set goes to its file in `incoming/` as it comes; nothing of it is decoded, and little of it is in memory.
* What a peer may make us hold is bounded: bytes of a PDU, of a command and of an identifier, seconds until it has
  associated, connections. A message that cannot be understood aborts its association and nothing else.
* The clock may jump: timers are monotonic.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
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
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.dul import DULServiceProvider
from pynetdicom.pdu_primitives import A_RELEASE, P_DATA
from pynetdicom.timer import Timer
from pynetdicom.transport import RequestHandler, ThreadedAssociationServer

from medenhance_dicom.node.intake import OUT_OF_RESOURCES
from medenhance_dicom.node.spool import Marker, Spool
from medenhance_dicom.node.wire import PromptSocket, SendQueue, harden
from medenhance_dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

_log = logging.getLogger(__name__)
warnings.filterwarnings("ignore", module=r"pydicom\b")  # they quote values, and so do its log records
logging.getLogger("pydicom").addHandler(logging.NullHandler())
logging.getLogger("pydicom").propagate = False

_LARGEST_REQUEST = 1 << 20
"""Bytes of an A-ASSOCIATE-RQ; it is not subject to the maximum PDU length."""
_SLACK = 1024
"""Some peers count the headers of a PDU, some do not."""
_LARGEST_COMMAND = 1 << 16
_LARGEST_IDENTIFIER = 16 << 20
"""Of the data set of any message but C-STORE; it is held in memory."""
_GUARD_BYTES = 16 << 20
"""So often is the free space looked at while a data set comes in."""
_POLL_MS = 50
_MORE_CONNECTIONS = 32
"""Connections above the limit of associations, that they may be told so."""
_KILL_SECONDS = 60.0
_C_STORE_RQ = 0x0001


class Part:
    """A data set on its way to a file; with `failed` what still comes is dropped."""

    def __init__(self, spool: Spool, head: bytes, *, reserve_bytes: int, refused: bool) -> None:
        """Make the file; `head` comes before the data set. With `refused`, or too little free space, it has failed."""
        self.path = spool.new_part()
        self.failed = False
        self._spool, self._reserve = spool, reserve_bytes
        self._sha = hashlib.sha256()
        self._unguarded = 0
        self._file = -1
        try:
            if refused or spool.free_bytes() < reserve_bytes:
                raise OSError
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            self._write(head)
        except OSError:
            self.discard()

    def write(self, data: bytes | memoryview) -> None:
        """Append to the data set."""
        if self.failed:
            return
        self._unguarded += len(data)
        try:
            if self._unguarded >= _GUARD_BYTES:
                self._unguarded = 0
                if self._spool.free_bytes() < self._reserve:
                    raise OSError
            self._write(data)
        except OSError:
            self.discard()
        self._sha.update(data)

    def _write(self, data: bytes | memoryview) -> None:
        while data:
            data = data[os.write(self._file, data) :]

    @property
    def digest(self) -> str:
        """SHA-256 of the data set so far."""
        return self._sha.hexdigest()

    def close(self) -> None:
        """All of it has come."""
        try:
            if self._file >= 0:
                os.close(self._file)
        except OSError:
            self.failed = True
        self._file = -1

    def discard(self) -> None:
        """It will not come to an end."""
        self.failed = True
        self.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


class Request:
    """A C-STORE request (PS3.7 9.3.1.1) whose data set comes in, or has come in."""

    def __init__(self, context_id: int, command: dict[int, bytes]) -> None:
        self.context_id = context_id
        self.message_id = int.from_bytes(command[0x0110], "little")
        self.sop_class = command[0x0002].decode("ascii").strip("\0 ")
        self.sop_instance = command[0x1000].decode("ascii").strip("\0 ")
        if not 0 < len(self.sop_class) <= 64 or not 0 < len(self.sop_instance) <= 64:
            raise ValueError("no UIDs")


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


class Messages(DIMSEServiceProvider):
    """Takes C-STORE requests itself and leaves every other message to pynetdicom."""

    def __init__(self, assoc: AcceptedAssociation) -> None:
        super().__init__(assoc)
        self._own = assoc
        self._command = bytearray()
        self._identifier = 0
        self._request: Request | None = None
        self._part: Part | None = None

    def receive_primitive(self, primitive: Any) -> None:
        """Take the fragments of one P-DATA; called by the provider thread."""
        try:
            if not self._own.admitted:
                raise PermissionError
            for context_id, data in primitive.presentation_data_value_list:
                self._take(context_id, data)
        except Exception as error:  # whatever the peer sent: its association ends, and ours goes on
            _log.info("a message cannot be understood: %s", type(error).__name__)
            self.discard()
            self.dul.event_queue.put("Evt19")

    def _take(self, context_id: int, data: bytes) -> None:
        is_command, is_last = data[0] & 1, data[0] & 2
        if self._request is not None and self._part is not None:
            if is_command or context_id != self._request.context_id:
                raise ValueError("a command within a data set")
            self._part.write(memoryview(data)[1:])
            if is_last:
                self._serve(self._request, self._part)
            elif self._own.marker is not None:
                self._own.marker.receiving(True)
        elif is_command:
            self._command += memoryview(data)[1:]
            if len(self._command) > _LARGEST_COMMAND:
                raise ValueError("the command does not end")
            if is_last:
                command, self._command, self._identifier = bytes(self._command), bytearray(), 0
                self._begin(context_id, command)
        else:
            self._identifier += len(data)
            if self._identifier > _LARGEST_IDENTIFIER:
                raise ValueError("the data set is larger than it may be")
            self._pass_on(context_id, data)

    def _begin(self, context_id: int, encoded: bytes) -> None:
        command = _decoded(encoded)
        if int.from_bytes(command[0x0100], "little") != _C_STORE_RQ:
            self._pass_on(context_id, b"\x03" + encoded)
            return
        if int.from_bytes(command[0x0800], "little") == 0x0101:
            raise ValueError("C-STORE without a data set")
        context = self._own._accepted_cx[context_id]
        self._request = Request(context_id, command)
        head = _file_head(self._request, str(context.transfer_syntax[0]), self._own.calling_ae)
        host = self._own.host
        refused = host.draining or host.spool.draining
        self._part = Part(host.spool, head, reserve_bytes=host.reserve_bytes, refused=refused)

    def _serve(self, request: Request, part: Part) -> None:
        part.close()
        try:
            status = OUT_OF_RESOURCES if part.failed else self._own.host.store(self._own, request, part)
        finally:
            self.discard()
        self._answer(request, status)

    def _answer(self, request: Request, status: int) -> None:
        response = C_STORE()
        response.MessageIDBeingRespondedTo = request.message_id
        response.AffectedSOPClassUID = request.sop_class
        response.AffectedSOPInstanceUID = request.sop_instance
        response.Status = status
        self.send_msg(response, request.context_id)

    def discard(self) -> None:
        """Forget an unfinished data set."""
        part, self._part, self._request = self._part, None, None
        if part is not None:
            part.discard()
        if self._own.marker is not None:
            self._own.marker.receiving(False)

    def _pass_on(self, context_id: int, data: bytes) -> None:
        primitive: Any = P_DATA()
        primitive.presentation_data_value_list = [[context_id, data]]
        super().receive_primitive(primitive)

    def get_msg(self, block: bool = False) -> Any:
        """As pynetdicom's, but the reactor, which does not block, sleeps here until a message or a release comes."""
        if block:
            return super().get_msg(block=True)
        try:
            return self.msg_queue.get(timeout=_POLL_MS / 1000)
        except queue.Empty:
            return None, None


def _decoded(command: bytes) -> dict[int, bytes]:
    """Element number to value of a command set: group 0000, implicit little endian (PS3.7 6.3.1)."""
    found = {}
    at = 0
    while at < len(command):
        group, element, length = struct.unpack_from("<HHL", command, at)
        if group != 0 or at + 8 + length > len(command):
            raise ValueError("a broken command")
        found[element] = command[at + 8 : at + 8 + length]
        at += 8 + length
    return found


def _file_head(request: Request, transfer_syntax: str, calling_ae: str) -> bytes:
    """Preamble and file meta information (PS3.10 section 7.1)."""
    elements = struct.pack("<HH2s2xL", 2, 0x0001, b"OB", 2) + b"\0\1"
    for element, vr, value in (
        (0x0002, b"UI", request.sop_class),
        (0x0003, b"UI", request.sop_instance),
        (0x0010, b"UI", transfer_syntax),
        (0x0012, b"UI", IMPLEMENTATION_CLASS_UID),
        (0x0013, b"SH", IMPLEMENTATION_VERSION_NAME),
        (0x0016, b"AE", calling_ae),
    ):
        encoded = value.encode("ascii")
        encoded += (b"\0" if vr == b"UI" else b" ") * (len(encoded) % 2)
        elements += struct.pack("<HH2sH", 2, element, vr, len(encoded)) + encoded
    return bytes(128) + b"DICM" + struct.pack("<HH2sHL", 2, 0, b"UL", 4, len(elements)) + elements


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
        if pending is not None and pending():
            return True
        try:
            found = self._poll.poll(_POLL_MS)
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
            sock.settimeout(left)
            self.largest_pdu = self._largest_data if self._own.admitted else _LARGEST_REQUEST
        return super().recv(nr_bytes)


class _Provider(DULServiceProvider):
    """An event that its state machine does not know ends the connection, without a traceback."""

    def run_reactor(self) -> None:
        try:
            super().run_reactor()
        except Exception as error:
            _log.info("a connection ends: %s", type(error).__name__)
            self.kill_dul()
            self.to_user_queue.put(None)


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
        dul._run_loop_delay = 0.0005
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
