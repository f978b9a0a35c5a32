"""DIMSE messages as they come in: C-STORE straight to the disk, the others to pynetdicom.

A data set goes to its file in `incoming/` as it comes; nothing of it is decoded, and little of it is in memory. What a
peer may make us hold is bounded: bytes of a command and of an identifier. A message that cannot be understood aborts
its association and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import queue
import struct
from typing import TYPE_CHECKING, Any

from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.pdu_primitives import P_DATA

from medenhance_dicom.node.intake import GUARD_BYTES, OUT_OF_RESOURCES
from medenhance_dicom.node.spool import Spool
from medenhance_dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

if TYPE_CHECKING:
    from medenhance_dicom.node.acceptor import AcceptedAssociation

_log = logging.getLogger(__name__)

POLL_MS = 50
_LARGEST_COMMAND = 1 << 16
_LARGEST_IDENTIFIER = 16 << 20
"""Of the data set of any message but C-STORE; it is held in memory."""
_C_STORE_RQ, _C_STORE_RSP = 0x0001, 0x8001
_NO_DATA_SET = 0x0101
_VALUE_HEADER = struct.Struct(">LB")


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
            if self._unguarded >= GUARD_BYTES:
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
        """What pynetdicom decoded: data that came before the association stood."""
        self.discard()
        self.dul.event_queue.put("Evt19")

    def receive_pdu(self, body: bytearray) -> None:
        """Take the presentation data values of one P-DATA-TF (PS3.8 9.3.5); called by the provider thread."""
        view = memoryview(body)
        at = 0
        try:
            while at < len(body):
                length, context_id = _VALUE_HEADER.unpack_from(body, at)
                end = at + 4 + length
                if length < 2 or end > len(body):
                    raise ValueError("a presentation data value is longer than its PDU")
                self._take(context_id, view[at + 5 : end])
                at = end
        except Exception as error:  # whatever the peer sent: its association ends, and ours goes on
            _log.info("a message cannot be understood: %s", type(error).__name__)
            self.discard()
            self.dul.event_queue.put("Evt19")

    def _take(self, context_id: int, data: memoryview) -> None:
        """`data` is a fragment behind its message control header (PS3.8 annex E.2)."""
        is_command, is_last = data[0] & 1, data[0] & 2
        if self._request is not None and self._part is not None:
            if is_command or context_id != self._request.context_id:
                raise ValueError("a command within a data set")
            self._part.write(data[1:])
            if is_last:
                self._serve(self._request, self._part)
            elif self._own.marker is not None:
                self._own.marker.receiving(True)
        elif is_command:
            self._command += data[1:]
            if len(self._command) > _LARGEST_COMMAND:
                raise ValueError("the command does not end")
            if is_last:
                command, self._command, self._identifier = bytes(self._command), bytearray(), 0
                self._begin(context_id, command)
        else:
            self._identifier += len(data)
            if self._identifier > _LARGEST_IDENTIFIER:
                raise ValueError("the data set is larger than it may be")
            self._pass_on(context_id, bytes(data))

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
        status = OUT_OF_RESOURCES if part.failed else self._own.host.store(self._own, request, part)
        self._forget()
        self._answer(request, status)

    def _answer(self, request: Request, status: int) -> None:
        """Send the C-STORE-RSP; the provider thread, which this is, is the only one that writes to the socket."""
        command = _encoded(
            (0x0002, _uid(request.sop_class)),
            (0x0100, struct.pack("<H", _C_STORE_RSP)),
            (0x0120, struct.pack("<H", request.message_id)),
            (0x0800, struct.pack("<H", _NO_DATA_SET)),
            (0x0900, struct.pack("<H", status)),
            (0x1000, _uid(request.sop_instance)),
        )
        most = max((self.maximum_pdu_size or len(command) + 6) - 6, 1)
        pdus = bytearray()
        for at in range(0, len(command), most):
            fragment = command[at : at + most]
            control = 0x03 if at + most >= len(command) else 0x01
            pdus += struct.pack(">BxLLBB", 0x04, len(fragment) + 6, len(fragment) + 2, request.context_id, control)
            pdus += fragment
        sock: Any = self.dul.socket
        sock.send(bytes(pdus))

    def discard(self) -> None:
        """Forget an unfinished data set."""
        if self._part is not None:
            self._part.discard()
        self._forget()

    def _forget(self) -> None:
        self._part = self._request = None
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
            return self.msg_queue.get(timeout=POLL_MS / 1000)
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


def _encoded(*elements: tuple[int, bytes]) -> bytes:
    """A command set with its group length."""
    body = b"".join(struct.pack("<HHL", 0, element, len(value)) + value for element, value in elements)
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _uid(text: str) -> bytes:
    return text.encode("ascii") + b"\0" * (len(text) % 2)


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
