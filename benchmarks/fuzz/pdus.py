"""DICOM upper layer streams: valid ones, and what becomes of them when lengths, order and contents are wrong."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable

from benchmarks.fuzz.chance import MARKER, MARKER_ID, ROOT, Chance, Input
from medenhance_dicom.node.wire import TRANSFER_SYNTAXES

CR, VERIFICATION, COMMITMENT = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.1.1", "1.2.840.10008.1.20.1"
FIND, MOVE, GET = (f"1.2.840.10008.5.1.4.1.2.2.{number}" for number in (1, 2, 3))
EXPLICIT, IMPLICIT, DEFLATED, BIG = (f"1.2.840.10008.1.2{end}" for end in (".1", "", ".1.99", ".2"))
_SERVICES = (VERIFICATION, COMMITMENT, FIND, MOVE, GET)
CONTEXTS = {2 * at + 1: (name, EXPLICIT) for at, name in enumerate(_SERVICES)}
CONTEXTS |= {21 + 2 * at: (CR, syntax) for at, syntax in enumerate(TRANSFER_SYNTAXES)}
"""By presentation context id: abstract and transfer syntax."""
_NOWHERE = ("1.2.840.10008.1.20.1.1", "1.2.840.10008.5.1.1.1", "1.2.3", "")
_LONG = ("OB", "OW", "OF", "SQ", "UN", "UT", "UC", "UR")
_BAD_VRS = ("ZZ", "\0\0", "  ", "ob", "\xff\xfe", "SQ", "UN", "US", "FD", "AT", "PN", "UT")


# ---------------------------------------------------------------- PDUs


def pdu(chance: Chance, kind: int, body: bytes) -> bytes:
    """PS3.8 9.3.1."""
    return struct.pack(">BBL", chance.number(kind, 0xFF), 0, chance.length(len(body), 0xFFFFFFFF)) + body


def item(chance: Chance, kind: int, body: bytes) -> bytes:
    """Of an A-ASSOCIATE."""
    return struct.pack(">BxH", chance.number(kind, 0xFF), chance.length(len(body), 0xFFFF)) + body


def associate(chance: Chance) -> bytes:
    """A-ASSOCIATE-RQ with every context that the other inputs use."""
    contexts = []
    for number, (abstract, transfer) in CONTEXTS.items():
        names = chance.some([item(chance, 0x30, abstract.encode()), item(chance, 0x40, transfer.encode())])
        contexts.append(item(chance, 0x20, bytes([chance.number(number, 0xFF), 0, 0, 0]) + b"".join(names)))
    role = struct.pack(">H", len(CR)) + CR.encode() + b"\1\1"
    user = [
        item(chance, 0x51, struct.pack(">L", chance.number(16384, 0xFFFFFFFF))),
        item(chance, 0x52, b"1.2.826.0.1.3680043.8.498.77.9"),
        item(chance, 0x53, struct.pack(">HH", chance.number(1, 0xFFFF), 1)),
        item(chance, 0x54, role),
        item(chance, 0x55, b"FUZZ"),
        item(chance, 0x56, struct.pack(">H", len(GET)) + GET.encode() + b"\1\1"),
        item(chance, 0x58, b"\1\0" + struct.pack(">H", chance.length(4, 0xFFFF)) + b"user\0\0"),
    ]
    user = user[: chance.choice((2, 4, 7))]
    parts = [item(chance, 0x10, b"1.2.840.10008.3.1.1.1"), *contexts, item(chance, 0x50, b"".join(chance.some(user)))]
    titles = [chance.scratch(b"NODE".ljust(16)), chance.scratch(b"FUZZER".ljust(16))]
    head = struct.pack(">HH", chance.number(1, 0xFFFF), 0) + b"".join(titles) + bytes(32)
    return pdu(chance, 1, head + b"".join(chance.some(parts)))


def message(chance: Chance, context: int, command: bytes, data: bytes | None) -> list[bytes]:
    """P-DATA-TF PDUs: one or more presentation data values in each, in fragments of some size."""
    size = chance.choice((1, 2, 16, 1000, 16000, 1 << 20)) if chance.lies() else 16000
    values = []
    for is_command, whole in ((1, command), (0, data)):
        if whole is None:
            continue
        size = max(size, len(whole) // 300)
        for at in range(0, len(whole), size) or (0,):
            control = is_command | 2 * (at + size >= len(whole))
            body = bytes([chance.number(context, 0xFF), chance.number(control, 0xFF)]) + whole[at : at + size]
            values.append(struct.pack(">L", chance.length(len(body), 0xFFFFFFFF)) + body)
    values = chance.some(values)
    together = chance.choice((1, 2, 5)) if chance.lies() else 1
    return [pdu(chance, 4, b"".join(values[at : at + together])) for at in range(0, len(values), together)]


# ---------------------------------------------------------------- commands


def _command(chance: Chance, **elements: int | str) -> bytes:
    encoded = []
    for name, value in elements.items():
        data = value.encode() if isinstance(value, str) else struct.pack("<H", chance.number(value, 0xFFFF))
        data += b"\0" * (len(data) % 2)
        encoded.append(struct.pack("<HHL", 0, int(name[1:], 16), chance.length(len(data), 0xFFFFFFFF)) + data)
    body = b"".join(chance.some(encoded))
    return struct.pack("<HHLL", 0, 0, 4, len(body)) + body


def _uid(chance: Chance) -> str:
    return chance.choice(_NOWHERE) if chance.lies() else f"{ROOT}.{chance.randrange(1 << 40)}"


def _echo(chance: Chance) -> list[bytes]:
    return message(chance, 1, _command(chance, e0002=VERIFICATION, e0100=0x30, e0110=1, e0800=0x101), None)


def _store(chance: Chance) -> list[bytes]:
    context = chance.choice([number for number, (name, _) in CONTEXTS.items() if name == CR])
    if chance.random() < 0.6:
        context = chance.choice([n for n, (name, syntax) in CONTEXTS.items() if name == CR and "1.2.4" not in syntax])
    uid = _uid(chance)
    data = data_set(chance, CONTEXTS[context][1], instance(chance, uid))
    announced = chance.choice((uid, uid, uid, _uid(chance)))
    words = {"e0002": CR, "e0100": 1, "e0110": 7, "e0700": 0, "e0800": 1, "e1000": announced}
    return message(chance, context, _command(chance, **words), data)


def _identifier(chance: Chance) -> bytes:
    level = chance.choice(("STUDY", "STUDY", "SERIES", "IMAGE", "PATIENT", "", "*", "STUDY\\SERIES"))
    values = [
        b"",
        b"*",
        b"?" * 40,
        b"*" * 200,
        f"{ROOT}.1".encode(),
        "\\".join(f"{ROOT}.{n}" for n in range(500)).encode(),
    ]
    elements = [
        (0x00080052, "CS", level.encode()),
        (0x00080020, "DA", chance.choice((b"", b"20240101-", b"-", b"99999999-0", b"today"))),
        (0x00100010, "PN", chance.choice((b"", MARKER.encode(), b"*", b"^^^=\xff\\*"))),
        (0x00100020, "LO", chance.choice((b"", MARKER_ID.encode()))),
        *((tag, "UI", chance.choice(values)) for tag in (0x00080018, 0x0020000D, 0x0020000E)),
    ]
    return data_set(chance, EXPLICIT, elements)


def _find(chance: Chance) -> list[bytes]:
    return message(chance, 5, _command(chance, e0002=FIND, e0100=0x20, e0110=1, e0700=0, e0800=1), _identifier(chance))


def _move(chance: Chance) -> list[bytes]:
    to = chance.choice(("FUZZER", "NOWHERE", "", "X" * 70))
    words = {"e0002": MOVE, "e0100": 0x21, "e0110": 1, "e0600": to, "e0700": 0, "e0800": 1}
    return message(chance, 7, _command(chance, **words), _identifier(chance))


def _get(chance: Chance) -> list[bytes]:
    return message(chance, 9, _command(chance, e0002=GET, e0100=0x10, e0110=1, e0700=0, e0800=1), _identifier(chance))


def _references(chance: Chance) -> bytes:
    pairs = [
        [(0x00081150, "UI", CR.encode()), (0x00081155, "UI", _uid(chance).encode())]
        for _ in range(chance.choice((1, 1, 2, 3, 0)))
    ]
    elements = [(0x00081195, "UI", _uid(chance).encode())]
    elements += [(tag, "SQ", pairs) for tag in (0x00081199, 0x00081198)[: chance.choice((1, 1, 1, 2, 0))]]
    return data_set(chance, EXPLICIT, elements)


def _action(chance: Chance) -> list[bytes]:
    words = {"e0003": COMMITMENT, "e0100": 0x130, "e0110": 1, "e0800": 1, "e1001": "1.2.840.10008.1.20.1.1", "e1008": 1}
    return message(chance, 3, _command(chance, **words), _references(chance))


def _report(chance: Chance) -> list[bytes]:
    words = {"e0002": COMMITMENT, "e0100": 0x100, "e0110": 1, "e0800": 1, "e1000": "1.2.840.10008.1.20.1.1"}
    return message(chance, 3, _command(chance, **words, e1002=chance.choice((1, 2))), _references(chance))


def _odd(chance: Chance) -> list[bytes]:
    """A response that nobody waits for, a cancel, N-GET, N-SET, N-CREATE, N-DELETE, a field that is none."""
    field = chance.choice((0x8001, 0x8020, 0x8030, 0x8100, 0x8130, 0x0FFF, 0x110, 0x120, 0x140, 0x150, 0x7777))
    words = {"e0002": CR, "e0003": COMMITMENT, "e0100": field, "e0110": 1, "e0120": 1, "e0800": 1, "e0900": 0}
    context = chance.choice(list(CONTEXTS))
    return message(chance, context, _command(chance, **words), chance.choice((None, b"", _identifier(chance))))


# ---------------------------------------------------------------- data sets

Element = tuple[int, str, bytes | list[list["Element"]]]


def instance(chance: Chance, uid: str) -> list[Element]:
    """A small image of a series of few."""
    series = f"{ROOT}.1.{chance.randrange(5)}"
    elements: list[Element] = [
        (0x00080016, "UI", CR.encode()),
        (0x00080018, "UI", uid.encode()),
        (0x00080060, "CS", chance.choice((b"CR", b"CR", b"\xff\xfeX", b"")) if chance.lies() else b"CR"),
        (0x00081140, "SQ", [[(0x00081150, "UI", CR.encode()), (0x00081155, "UI", b"1.2")]]),
        (0x00100010, "PN", MARKER.encode()),
        (0x00100020, "LO", MARKER_ID.encode()),
        (0x0020000D, "UI", f"{ROOT}.1".encode()),
        (0x0020000E, "UI", series.encode()),
        (0x00280010, "US", struct.pack("<H", chance.number(4, 0xFFFF))),
        (0x00280011, "US", struct.pack("<H", chance.number(4, 0xFFFF))),
        (0x00280100, "US", struct.pack("<H", chance.number(8, 0xFFFF))),
        (0x7FE00010, "OB", bytes(16)),
    ]
    if chance.lies():
        depth = chance.choice((3, 33, 200, 3000))
        begin = struct.pack("<HH2s2xLHHL", 8, 0x1140, b"SQ", 0xFFFFFFFF, 0xFFFE, 0xE000, 0xFFFFFFFF)
        elements.append(
            (0x00081199, "SQ", begin * depth + struct.pack("<HHLHHL", 0xFFFE, 0xE00D, 0, 0xFFFE, 0xE0DD, 0) * depth)
        )
    if chance.lies():
        elements += [(0x00090010, "LO", b"FUZZ"), (0x00091001, "UN", chance.randbytes(40)), (0x00091002, "OW", b"")]
    if chance.lies():
        elements.append((chance.randrange(1 << 32), chance.choice(_BAD_VRS), chance.randbytes(chance.randrange(60))))
    if chance.lies():
        elements += [(0x00020010, "UI", b"1.2.840.10008.1.2"), (0x00000000, "UL", bytes(4))]
    if chance.lies():
        elements.append((0x00204000, "LT", bytes(chance.choice((65535, 1 << 20)))))
    return sorted(elements, key=lambda element: element[0])


def data_set(chance: Chance, syntax: str, elements: list[Element]) -> bytes:
    """As its transfer syntax says; one with a broken deflate stream, or ten megabytes in ten kilobytes, if it lies."""
    order = ">" if syntax == BIG else "<"
    encoded = b"".join(chance.some([_element(chance, order, syntax != IMPLICIT, *element) for element in elements]))
    if syntax == DEFLATED:
        stream = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        more = bytes(10 << 20) if chance.lies() else b""
        encoded = stream.compress(encoded + more) + stream.flush()
    return chance.scratch(encoded)


def _element(
    chance: Chance, order: str, explicit: bool, tag: int, vr: str, value: bytes | list[list[Element]]
) -> bytes:
    undefined = False
    if isinstance(value, list):
        undefined = chance.random() < 0.5
        items = []
        for elements in value:
            body = b"".join(_element(chance, order, explicit, *element) for element in elements)
            if chance.random() < 0.5:
                items.append(struct.pack(order + "HHL", 0xFFFE, 0xE000, chance.length(len(body), 0xFFFFFFFF)) + body)
            else:
                end = b"" if chance.lies() else struct.pack(order + "HHL", 0xFFFE, 0xE00D, 0)
                items.append(struct.pack(order + "HHL", 0xFFFE, 0xE000, 0xFFFFFFFF) + body + end)
        value = b"".join(chance.some(items))
        if undefined and not chance.lies():
            value += struct.pack(order + "HHL", 0xFFFE, 0xE0DD, 0)
    value += b"\0" * (len(value) % 2)
    length = 0xFFFFFFFF if undefined else chance.length(len(value), 0xFFFFFFFF)
    head = struct.pack(order + "HH", tag >> 16, tag & 0xFFFF)
    if not explicit:
        return head + struct.pack(order + "L", length) + value
    vr = chance.choice(_BAD_VRS) if chance.lies() else vr
    head += vr.encode("latin-1")
    if vr in _LONG:
        return head + struct.pack(order + "2xL", length) + value
    return head + struct.pack(order + "H", length & 0xFFFF) + value


# ---------------------------------------------------------------- inputs

_MESSAGES: dict[str, Callable[[Chance], list[bytes]]] = {
    "C-ECHO": _echo, "C-STORE": _store, "C-FIND": _find, "C-MOVE": _move, "C-GET": _get, "N-ACTION": _action,
    "N-EVENT-REPORT": _report, "odd": _odd,
}  # fmt: skip
_WEIGHTS = (1, 8, 3, 1, 2, 2, 2, 1)


def make(chance: Chance) -> Input:
    """One input."""
    chance.rate = 0.0
    if chance.random() < 0.04:
        return Input("random bytes", "dicom", (chance.randbytes(chance.choice((1, 6, 100, 5000))),), _end(chance))
    where = chance.choice(("association", "message", "message", "message", "bytes", "nowhere"))
    rates = {
        name: chance.choice((0.01, 0.05, 0.2)) if name == where else 0.0 for name in ("association", "message", "bytes")
    }
    chance.rate = rates["association"]
    request = associate(chance)
    kinds = chance.choices(list(_MESSAGES), _WEIGHTS, k=chance.choice((1, 1, 2, 3)))
    sends = []
    for kind in kinds:
        chance.rate = rates["message"]
        pdus = b"".join(chance.some(_MESSAGES[kind](chance)))
        chance.rate = rates["bytes"]
        sends.append(chance.scratch(pdus))
    chance.rate = rates["message"]
    sends.append(pdu(chance, chance.choice((5, 5, 5, 5, 7, 6, 2, 3)), bytes(4)))
    piece = chance.choice((0, 0, 0, 0, 1, 7)) if sum(map(len, sends)) < 4000 else 0
    end = _end(chance)
    if end == "hold":  # and say no more, at any place
        sends = [*sends[:-2], sends[-2][: chance.randint(0, len(sends[-2]))]]
    return Input(f"{where}: {', '.join(kinds)}", "dicom", (request, *sends), end, piece)


def _end(chance: Chance) -> str:
    return chance.choices(("close", "reset", "half", "hold"), (40, 12, 12, 1))[0]
