"""What our senders and receivers share on the network: sockets that do not stall, transfer syntaxes, contexts, TLS.

A sender with Nagle's algorithm holds a small packet back until everything before it is acknowledged, and a receiver
delays that acknowledgement by some 40 ms: every DICOM message pays for it. `TCP_QUICKACK` on our side ends that for
both roles, but the kernel forgets it again, so it is set after every read.

Importing this module sets pynetdicom's switches: data sets stay on disk, and nothing of them reaches a log.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import socket
import ssl
import threading
import time
from collections.abc import Iterable
from typing import Any

from pydicom.uid import UID
from pynetdicom import AE, AllStoragePresentationContexts, _config
from pynetdicom.events import Event
from pynetdicom.presentation import PresentationContext
from pynetdicom.transport import AssociationSocket

from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.node.settings import Destination, TLSFiles
from medenhance_dicom.transfer_syntaxes import STORED
from medenhance_dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

MAXIMUM_PDU = 131072
LARGEST_PDU = 1 << 20
"""Bytes that a PDU may declare, whatever was negotiated: a request with 128 contexts is larger than a P-DATA-TF."""
_AHEAD = 32768
"""Bytes that a small read takes along where they are there: a PDU's header and the rest come at once."""
_UNSENT = 64
"""P-DATA primitives that wait for the socket; more would hold a whole object in memory."""

TRANSFER_SYNTAXES = tuple(syntax.uid for syntax in STORED)
"""What we accept, best first: the first one that the peer offers in a context is taken."""
UNCOMPRESSED = tuple(syntax.uid for syntax in STORED if syntax.kind == "uncompressed")

STORAGE_CLASSES = tuple(str(context.abstract_syntax) for context in AllStoragePresentationContexts)
"""What we store: every class that DICOM has."""

_config.STORE_RECV_CHUNKED_DATASET = True
_config.STORE_SEND_CHUNKED_DATASET = True
_config.LOG_REQUEST_IDENTIFIERS = False
_config.LOG_RESPONSE_IDENTIFIERS = False
_config.LOG_HANDLER_LEVEL = "none"

_pynetdicom_log = logging.getLogger("pynetdicom")
_pynetdicom_log.addHandler(logging.NullHandler())
_pynetdicom_log.propagate = False  # tracebacks of handlers quote values


def quick_ack(sock: socket.socket) -> None:
    """Have what was received acknowledged at once; lasts until about the next read. Linux; elsewhere nothing."""
    if hasattr(socket, "TCP_QUICKACK"):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def harden(sock: socket.socket, timeout: float | None = None) -> None:
    """No Nagle, no delayed acknowledgement, keep-alive, and `timeout` seconds for one read or write."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    quick_ack(sock)
    sock.settimeout(timeout)


class PromptSocket(AssociationSocket):
    """pynetdicom's socket that acknowledges at once and refuses to wait or to allocate for ever.

    `recv` gets a whole PDU (its 6 byte header, then the rest). One that declares more than `largest_pdu` bytes, or
    that takes longer than the socket's timeout to come in, closes the connection: neither 4 GiB lengths nor bytes
    that drip hold an association.
    """

    largest_pdu = LARGEST_PDU
    _ahead: bytes | memoryview = b""
    """Read already, and not asked for yet."""

    @property
    def ready(self) -> bool:
        """Whether there is something to read."""
        return bool(self._ahead) or super().ready

    def recv(self, nr_bytes: int) -> bytearray:
        """Read `nr_bytes`, fewer where the peer closes.

        Raises:
            OSError: The read takes too long, is refused, or the connection broke.
        """
        sock = self.socket
        if sock is None:
            raise ConnectionError("closed")
        if nr_bytes > self.largest_pdu:
            self._shutdown_socket()
            raise ConnectionError("the PDU is larger than it may be")
        data = bytearray(self._ahead[:nr_bytes])
        self._ahead = self._ahead[nr_bytes:]
        if len(data) == nr_bytes:
            return data
        timeout = sock.gettimeout()
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            while (missing := nr_bytes - len(data)) > 0:
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError("the PDU does not come in")
                block = sock.recv(max(missing, _AHEAD))
                if not block:
                    break
                quick_ack(sock)
                data += block[:missing]
                self._ahead = memoryview(block)[missing:]
        except OSError:
            self._shutdown_socket()
            raise
        return data

    def unread(self, data: bytearray) -> None:
        """Put back what `recv` gave; the next one gives it again."""
        self._ahead = bytes(data) + self._ahead


def on_open(event: Event, timeout: float | None, largest_pdu: int = LARGEST_PDU) -> None:
    """Handler of `EVT_CONN_OPEN`, of either role: the association's socket becomes a hardened `PromptSocket`.

    Bind it with its arguments: `(evt.EVT_CONN_OPEN, on_open, [timeout])`.
    """
    wrapped: Any = event.assoc.dul.socket
    wrapped.__class__ = PromptSocket
    wrapped.largest_pdu = largest_pdu
    harden(wrapped.socket, timeout)


class SendQueue(queue.Queue[Any]):
    """pynetdicom's queue of primitives to send, bounded, so that the sender waits for the socket.

    It never waits for a provider thread that has ended: what is put then is dropped with the association.
    """

    def __init__(self, dul: Any) -> None:
        super().__init__()
        self._dul = dul

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Wait while the socket has enough to send."""
        dul = self._dul
        while self.qsize() >= _UNSENT and dul.is_alive() and not dul._kill_thread:
            if threading.current_thread() is dul:
                break
            time.sleep(0.0005)
        super().put(item, block, timeout)


def bound_queue(assoc: Any) -> None:
    """Bound what an association holds unsent."""
    waiting: Any = assoc.dul.to_provider_queue
    if not isinstance(waiting, SendQueue):
        waiting.__class__ = SendQueue
        waiting._dul = assoc.dul


def keep_answers(assoc: Any) -> None:
    """Leave responses to whoever waits for them.

    pynetdicom pauses an association's own thread while a request waits for its answer, but may catch it between
    waking and looking into the queue: on a busy machine that thread then takes the answer and drops it.
    """
    messages = assoc.dimse.msg_queue
    take = assoc.dimse.get_msg

    def get_msg(block: bool = False) -> Any:
        found = take(block)
        if block or getattr(found[1], "MessageIDBeingRespondedTo", None) is None:
            return found
        with messages.not_empty:
            messages.queue.appendleft(found)
            messages.not_empty.notify()
        return None, None

    assoc.dimse.get_msg = get_msg


def application_entity(ae_title: str, *, maximum_pdu: int = MAXIMUM_PDU) -> AE:
    """An AE under our implementation's identity; timeouts are the caller's."""
    entity = AE(ae_title=ae_title)
    entity.implementation_class_uid = IMPLEMENTATION_CLASS_UID
    entity.implementation_version_name = IMPLEMENTATION_VERSION_NAME
    entity.maximum_pdu_size = maximum_pdu
    return entity


class AcceptedContext(PresentationContext):
    """A context of a listener, shared by its associations: pynetdicom copies all of them (0.1 s) for each one."""

    def __deepcopy__(self, memo: dict[int, Any]) -> AcceptedContext:
        return self


def accepted_context(
    sop_class: str, transfer_syntaxes: Iterable[str] = UNCOMPRESSED, *, both_roles: bool = False
) -> AcceptedContext:
    """A context for a listener; `both_roles` lets a peer that asks for it be the SCP (C-GET, commitment reports)."""
    context = AcceptedContext()
    context.abstract_syntax = UID(sop_class)
    context.transfer_syntax = [UID(syntax) for syntax in transfer_syntaxes]
    if both_roles:
        context.scu_role = context.scp_role = True
    return context


def storage_contexts() -> list[PresentationContext]:
    """Every storage SOP class with `TRANSFER_SYNTAXES`, for a listener."""
    return [accepted_context(sop_class, TRANSFER_SYNTAXES, both_roles=True) for sop_class in STORAGE_CLASSES]


# ---------------------------------------------------------------- TLS


class _LateHandshake(ssl.SSLContext):
    """Shakes hands on the first read, in the association's thread and under its timeout, not in the accepting one.

    Otherwise one client that connects and says nothing would keep everybody else out.
    """

    def wrap_socket(self, sock: socket.socket, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        kwargs["do_handshake_on_connect"] = False
        return super().wrap_socket(sock, *args, **kwargs)


def server_tls(files: TLSFiles) -> ssl.SSLContext:
    """TLS 1.2 or newer for a listener; a client needs a certificate of `files.authority`.

    Raises:
        ConfigurationError: A file is missing or does not load.
    """
    return _loaded(_LateHandshake(ssl.PROTOCOL_TLS_SERVER), files)


def client_tls(files: TLSFiles, *, named: bool) -> ssl.SSLContext:
    """TLS 1.2 or newer towards a peer whose certificate has to come from `files.authority`.

    Args:
        files: Ours, and the authority.
        named: The certificate has to bear the name that is asked for. Those of devices seldom bear host names
            (PS3.15 B.12 does not ask for them); those of web servers do.

    Raises:
        ConfigurationError: As `server_tls`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = named
    return _loaded(context, files)


def association_tls(destination: Destination) -> tuple[ssl.SSLContext, str] | None:
    """What pynetdicom takes as `tls_args`: a context, and the name that the peer's certificate has to bear, if any.

    Raises:
        ConfigurationError: As `server_tls`.
    """
    files = destination.tls
    if files is None:
        return None
    return client_tls(files, named=files.server_name is not None), files.server_name or destination.host or ""


def _loaded(context: ssl.SSLContext, files: TLSFiles) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    try:
        context.load_cert_chain(files.certificate, files.key)
    except (OSError, ssl.SSLError):
        raise ConfigurationError(f"{files.certificate} and {files.key} are not a certificate and its key") from None
    try:
        context.load_verify_locations(cafile=files.authority)
    except (OSError, ssl.SSLError):
        raise ConfigurationError(f"{files.authority} holds no certificate") from None
    return context
