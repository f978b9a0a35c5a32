"""DICOM on a bare socket, for clients that are rude: PS3.8 section 9.3 and PS3.7 annex E, as few bytes as will do."""

from __future__ import annotations

import socket
import struct
import time

from benchmarks.torture.instances import CR, Instance

CONTEXT = 1


def connect(port: int) -> socket.socket:
    """A connection to the node."""
    return socket.create_connection(("127.0.0.1", port), 5.0)


def associate_request(calling: str, called: str = "NODE") -> bytes:
    """A-ASSOCIATE-RQ for CR in explicit little endian."""
    syntaxes = _item(0x30, CR.encode()) + _item(0x40, b"1.2.840.10008.1.2.1")
    context = _item(0x20, bytes([CONTEXT, 0, 0, 0]) + syntaxes)
    user = _item(0x50, _item(0x51, struct.pack(">L", 16384)) + _item(0x52, b"1.2.826.0.1.3680043.8.498.77.9"))
    titles = called.ljust(16).encode() + calling.ljust(16).encode() + bytes(32)
    return pdu(1, b"\0\1\0\0" + titles + _item(0x10, b"1.2.840.10008.3.1.1.1") + context + user)


def associated(port: int, calling: str) -> socket.socket:
    """A connection whose association stands.

    Raises:
        OSError: The node does not accept it.
    """
    sock = connect(port)
    sock.sendall(associate_request(calling))
    answer = sock.recv(4096)
    if answer[:1] != b"\2":
        sock.close()
        raise ConnectionError("not accepted")
    return sock


def pdu(kind: int, body: bytes) -> bytes:
    """A PDU with its true length."""
    return struct.pack(">BxL", kind, len(body)) + body


def p_data(data: bytes, *, command: bool, last: bool) -> bytes:
    """P-DATA-TF of one fragment."""
    return pdu(4, struct.pack(">LBB", len(data) + 2, CONTEXT, command + 2 * last) + data)


def store_command(instance: Instance) -> bytes:
    """C-STORE-RQ with a data set."""
    uids = _element(0x0002, _even(CR)), _element(0x1000, _even(instance.uid))
    numbers = [
        _element(at, struct.pack("<H", value)) for at, value in ((0x0100, 1), (0x0110, 1), (0x0700, 0), (0x0800, 0))
    ]
    body = uids[0] + b"".join(numbers) + uids[1]
    return _element(0, struct.pack("<L", len(body))) + body


def closes_within(sock: socket.socket, seconds: float) -> float | None:
    """Seconds until the node hung up; None where it did not."""
    began = time.monotonic()
    while (left := began + seconds - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            if not sock.recv(65536):
                break
        except TimeoutError:
            return None
        except OSError:
            break
    else:
        return None
    return time.monotonic() - began


def _item(kind: int, body: bytes) -> bytes:
    return struct.pack(">BxH", kind, len(body)) + body


def _element(number: int, value: bytes) -> bytes:
    return struct.pack("<HHL", 0, number, len(value)) + value


def _even(uid: str) -> bytes:
    return uid.encode() + b"\0" * (len(uid) % 2)
