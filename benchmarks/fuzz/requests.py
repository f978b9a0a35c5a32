"""HTTP requests: STOW-RS with bodies of every kind, other paths and methods, and what is no HTTP."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable

from benchmarks.fuzz import pdus
from benchmarks.fuzz.chance import MARKER, MARKER_ID, ROOT, Chance, Input
from medenhance_dicom.node.wire import TRANSFER_SYNTAXES

_PATHS = (
    "/dicom-web/studies", "/dicom-web/studies/", f"/dicom-web/studies/{ROOT}.1", "/dicom-web/studies/1.2.3?a=b&a=%00", "/",
    "/dicom-web/studies/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/dicom-web/studies/..%5c..", "/dicom-web/studies/" + "1" * 3000,
    "/dicom-web/studies/%ff%fe%00", "/dicom-web//studies", "/healthz?x=" + "y" * 2000, "/readyz", "/metrics", "/metrics/../x",
    "*", "http://other.test/healthz", "//healthz", "/dicom-web/studies?" + "&".join(f"k{n}=v" for n in range(500)),
    f"/dicom-web/studies/{MARKER}", "/docs", "/openapi.json",
)  # fmt: skip
_METHODS = (
    "GET",
    "HEAD",
    "PUT",
    "DELETE",
    "OPTIONS",
    "TRACE",
    "CONNECT",
    "PATCH",
    "PRI",
    "post",
    "X" * 300,
    "P\0ST",
    "",
)
_TYPES = (
    "application/dicom+json", "application/dicom+xml", "text/html", "", ";", "multipart/related", "application/dicom;" * 50,
    'multipart/related; type="application/dicom"', 'multipart/related; type="application/dicom"; boundary=' + "x" * 71,
    'multipart/related; type="application/dicom"; boundary=""', "multipart/form-data; boundary=b",
    'multipart/related; type="application/dicom"; boundary="b', "multipart/related; type*=utf-8''application%2Fdicom; boundary=b",
    "multipart/related; type*=bogus''application%2Fdicom; boundary*0=a; boundary*1=b", "multipart/related; boundary*=x'y'%ff",
    "\xff/\xfe; a=\xc3", "multipart/related; type*0*=x; type*1=y; boundary=b",
)  # fmt: skip


def part10(chance: Chance) -> bytes:
    """A file."""
    uid, syntax = f"{ROOT}.{chance.randrange(1 << 40)}", chance.choice(TRANSFER_SYNTAXES[:1] * 9 + TRANSFER_SYNTAXES)
    meta = b""
    for element, value in ((2, pdus.CR), (3, uid), (0x10, syntax), (0x12, "1.2.3")):
        text = value.encode() + b"\0" * (len(value) % 2)
        meta += struct.pack("<HH2sH", 2, element, b"UI", chance.length(len(text), 0xFFFF)) + text
    head = struct.pack("<HH2sHL", 2, 0, b"UL", 4, chance.length(len(meta), 0xFFFFFFFF))
    return chance.scratch(
        bytes(128) + b"DICM" + head + meta + pdus.data_set(chance, syntax, pdus.instance(chance, uid))
    )


def _multipart(chance: Chance, parts: list[bytes], boundary: bytes, kind: bytes = b"application/dicom") -> bytes:
    pieces = []
    for part in parts:
        headers = chance.some([b"Content-Type: " + kind, b"Content-Length: %d" % chance.length(len(part), 1 << 31)])
        if chance.lies():
            headers += [b"X: " + bytes(chance.choice((10, 9000))), b"\xff:\xff", b"no colon", b"Content-Type:"]
        end = chance.choice((b"\n", b"\r", b"", b"  \r\n")) if chance.lies() else b"\r\n"
        pieces += [b"--" + boundary + end, b"\r\n".join(headers) + b"\r\n\r\n", part, b"\r\n"]
    return b"".join(chance.some([*pieces, b"--" + boundary + b"--\r\n"]))


def request(
    chance: Chance, body: bytes, kind: str, *, path: str = "/dicom-web/studies", method: str = "POST"
) -> list[bytes]:
    """Head and body, which may be chunked."""
    headers = [b"Host: node", b"Content-Type: " + kind.encode("latin-1")]
    if chunked := chance.random() < 0.25:
        pieces, at = [], 0
        while at < len(body):
            size = chance.choice((1, 100, 5000))
            size = max(size, len(body) // 200)
            piece = body[at : at + size]
            pieces.append(b"%x\r\n" % chance.length(len(piece), 0xFFFFFFFF) + piece + b"\r\n")
            at += size
        body = b"".join(chance.some([*pieces, b"0\r\n\r\n"]))
        headers.append(b"Transfer-Encoding: chunked")
    if not chunked or chance.lies():
        true = b"%d" % chance.length(len(body), 1 << 40)
        odd = (b"-1", b"+5", b"0x10", b"1e3", b" ", b"9" * 50, true + b", " + true, "١".encode())
        headers.append(b"Content-Length: " + (chance.choice(odd) if chance.lies() else true))
    if chance.lies():
        headers += [b"Expect: 100-continue", b"Connection: close", b"Content-Encoding: gzip"][: chance.randint(1, 3)]
    if chance.lies():
        headers += [b"X-%d: %s" % (n, b"y" * chance.choice((1, 100))) for n in range(chance.choice((10, 90, 1000)))]
    if chance.lies():
        headers += [
            chance.choice((b"Authorization: Bearer \xff", b"Content-Type: x", b"A\0: b", b" folded", b": ", b"Host: b"))
        ]
    head = f"{method} {path} HTTP/{'9.9' if chance.lies() else '1.1'}\r\n".encode("latin-1", "replace")
    return [chance.scratch(head + b"\r\n".join(chance.some(headers)) + b"\r\n\r\n"), body]


def _stow(chance: Chance) -> tuple[list[bytes], bool]:
    boundary = chance.choice((b"b", b"x" * 70, b"'()+_,-./:=? b"))
    files = [part10(chance) for _ in range(chance.choice((0, 1, 1, 2, 5)))]
    if chance.lies():
        files = [_multipart(chance, files, chance.choice((b"inner", boundary)))]
    body = chance.scratch(_multipart(chance, files, boundary))
    kind = f'multipart/related; type="application/dicom"; boundary="{boundary.decode()}"'
    return request(chance, body, kind, path=chance.choice(_PATHS[:3])), False


def _one(chance: Chance) -> tuple[list[bytes], bool]:
    return request(chance, part10(chance), "application/dicom"), False


def _metadata(chance: Chance) -> tuple[list[bytes], bool]:
    """Metadata as JSON and bulk data beside it (PS3.18 10.5.2), which the node does not take."""
    model = [{
        "00080016": {"vr": "UI", "Value": [pdus.CR]}, "00080018": {"vr": "UI", "Value": [f"{ROOT}.{chance.randrange(1 << 30)}"]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": MARKER}]}, "00100020": {"vr": "LO", "Value": [MARKER_ID]},
        "7FE00010": {"vr": "OB", "BulkDataURI": "bulk/1"},
    }]  # fmt: skip
    parts = [json.dumps(model).encode(), bytes(64)]
    kind = chance.choice(("application/dicom+json", "application/dicom"))
    body = _multipart(chance, parts, b"b", b"application/dicom+json")
    if chance.random() < 0.2:
        return request(chance, parts[0], "application/dicom+json"), True
    return request(chance, body, f'multipart/related; type="{kind}"; boundary=b'), True


def _paths(chance: Chance) -> tuple[list[bytes], bool]:
    method = chance.choice(("GET", "POST", *_METHODS))
    return request(chance, chance.choice((b"", b"x")), "text/plain", path=chance.choice(_PATHS), method=method), False


def _types(chance: Chance) -> tuple[list[bytes], bool]:
    return request(chance, _multipart(chance, [part10(chance)], b"b"), chance.choice(_TYPES)), False


def _none(chance: Chance) -> tuple[list[bytes], bool]:
    """What is no HTTP/1.1 request, or only its beginning."""
    whole = b"".join(request(chance, b"abc", "application/dicom"))
    return [chance.choice((
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), b"GET /healthz\r\n", b"\r\n" * 2000, b"", chance.randbytes(300), b"\x16\3\1\2\0\1",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" * 30, zlib.compress(whole),
        whole[: chance.randrange(len(whole))], b"GET / HTTP/1.1\r\nX: " + b"y" * 5000,
    ))], False  # fmt: skip


_KINDS: dict[str, Callable[[Chance], tuple[list[bytes], bool]]] = {
    "multipart": _stow, "one instance": _one, "metadata": _metadata, "paths": _paths, "media types": _types, "no HTTP": _none,
}  # fmt: skip
_WEIGHTS = (6, 2, 2, 3, 2, 2)


def make(chance: Chance) -> Input:
    """One input."""
    kind = chance.choices(list(_KINDS), _WEIGHTS)[0]
    chance.rate = chance.choice((0.0, 0.02, 0.1, 0.3))
    sends, refused = _KINDS[kind](chance)
    end = chance.choices(("close", "reset", "half", "hold"), (40, 12, 12, 1))[0]
    piece = chance.choice((0, 0, 0, 1, 50)) if sum(map(len, sends)) < 3000 else 0
    return Input(kind, "http", tuple(sends), end, piece, refused)
