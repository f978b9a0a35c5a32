"""What a JPEG, JPEG-LS, JPEG 2000 (HTJ2K) or JPEG XL codestream says of itself, read from its first bytes.

ITU-T T.81 annex B (JPEG), T.87 annex C (JPEG-LS), T.800 annexes A and I (JPEG 2000, T.814 too), ISO/IEC 18181-1 (JPEG
XL).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from medenhance_dicom.errors import UnreadableInstanceError

_JP2 = b"\0\0\0\x0cjP"
_JXL_BOXES = b"\0\0\0\x0cJXL "
_FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)  # SOF, SOF55
_LOSSLESS_FRAMES = (0xC3, 0xC7, 0xCB, 0xCF)
_WITHOUT_LENGTH = (0x01, *range(0xD0, 0xD9))
_RATIOS = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", _JP2, _JXL_BOXES, b"\xff\x0a")
"""How a codestream begins."""

Kind = Literal["JPEG", "JPEG-LS", "JPEG 2000", "JPEG XL"]


@dataclass(frozen=True)
class Codestream:
    """What one frame's codestream holds, whatever the header says."""

    kind: Kind
    rows: int
    columns: int
    samples: int
    precision: int
    """Bits of a sample."""
    signed: bool = False
    reversible: bool | None = None
    """False: the coding itself loses something (a DCT, NEAR > 0, a point transform, the 9/7 wavelet, XYB). True: it
    does not, though an encoder may still have cut layers away. None: not told."""
    colour: Literal["RGB", "YCbCr"] | None = None
    """What three samples of JPEG are; None: the codestream leaves it to its container."""
    undone: bool = False
    """Decoders give RGB: they undo what the codestream has of a colour transform (YCbCr of JPEG, RCT, ICT, XYB)."""


def inspect(data: bytes) -> Codestream:
    """Read the header of a codestream.

    Args:
        data: One frame; the first few kilobytes suffice unless metadata is in front.

    Raises:
        UnreadableInstanceError: It begins like none of them, or its header is cut or broken.
    """
    try:
        if data.startswith(b"\xff\xd8"):
            return _jpeg(data)
        if data.startswith((b"\xff\x4f", _JP2)):
            return _jpeg_2000(bare(data))
        if data.startswith((b"\xff\x0a", _JXL_BOXES)):
            return _jpeg_xl(data)
    except IndexError:
        raise UnreadableInstanceError("a codestream's header is cut short", keyword="PixelData") from None
    raise UnreadableInstanceError("a frame is no codestream of the kinds that DICOM has", keyword="PixelData")


def bare(data: bytes) -> bytes:
    """The JPEG 2000 codestream without the JP2 file around it, which PS3.5 A.4.4 does not allow for and some write."""
    if not data.startswith(_JP2):
        return data
    return b"".join(value for kind, value in _boxes(data) if kind == b"jp2c")


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(type, content) of the boxes of a JP2 or JPEG XL file (T.800 annex I.4)."""
    at = 0
    while at + 8 <= len(data):
        length, kind, head = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        end = at + length if length else len(data)
        if end < at + head:
            return
        yield kind, data[at + head : end]
        at = end


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, start, end) of the marker segments of a JPEG or JPEG-LS stream up to its first scan, SOS included.

    `start` is where the content begins, behind the length.
    """
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _WITHOUT_LENGTH:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at + 4, at + 2 + length
        if marker == 0xDA or length < 2:
            return
        at += 2 + length


def _jpeg(data: bytes) -> Codestream:
    """The frame header decides what is there; APP0, APP14, component ids and sub-sampling what its colours are.

    The order is libjpeg's: a JFIF marker means YCbCr, Adobe's says it (0: RGB, else YCbCr), the ids R, G, B mean RGB.
    Sub-sampled second and third components can only be chroma. A lossless frame has no colour transform of its own:
    JFIF says nothing there.
    """
    frame: tuple[int, int] | None = None
    jfif, adobe, loss, colour_transform = False, None, 0, False
    for marker, start, end in segments(data):
        content = data[start:end]
        if marker in _FRAMES and frame is None:
            frame = marker, start
        elif marker == 0xE0 and content.startswith(b"JFIF"):
            jfif = True
        elif marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12:
            adobe = content[11]
        elif marker == 0xE8 and content.startswith(b"mrfx"):  # HP's colour transforms, which CharLS undoes
            colour_transform = True
        elif marker == 0xDA:
            loss = content[-1] & 15 if frame is None or frame[0] != 0xF7 else content[-3]  # point transform; NEAR
    if frame is None:
        raise UnreadableInstanceError("a JPEG stream has no frame header", keyword="PixelData")
    marker, at = frame
    samples = data[at + 5]
    parts = [tuple(data[at + 6 + 3 * n : at + 8 + 3 * n]) for n in range(samples)]  # id, sampling factors
    if any(len(part) < 2 for part in parts):
        raise IndexError
    lossless = marker in (*_LOSSLESS_FRAMES, 0xF7)
    colour: Literal["RGB", "YCbCr"] | None = None
    if samples == 3 and marker != 0xF7:
        if jfif and not lossless:
            colour = "YCbCr"
        elif adobe is not None:
            colour = "YCbCr" if adobe else "RGB"
        elif bytes(part[0] for part in parts) == b"RGB":
            colour = "RGB"
        elif len({part[1] for part in parts}) > 1:
            colour = "YCbCr"
    return Codestream(
        kind="JPEG-LS" if marker == 0xF7 else "JPEG",
        rows=int.from_bytes(data[at + 1 : at + 3], "big"),
        columns=int.from_bytes(data[at + 3 : at + 5], "big"),
        samples=samples,
        precision=data[at],
        reversible=lossless and not loss,
        colour=colour,
        undone=colour_transform or (samples == 3 and not lossless),
    )


def is_lossless_jpeg(data: bytes) -> bool:
    """Whether a JPEG stream is of the lossless process (T.81 annex H), whose differences are modulo 2^16."""
    return any(marker in _LOSSLESS_FRAMES for marker, _, _ in segments(data))


def _jpeg_2000(data: bytes) -> Codestream:
    """SIZ and COD of the main header (T.800 A.5.1, A.6.1)."""
    at, size, style = 2, None, b""
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0x90, 0x93, 0xD9):  # SOT, SOD, EOC
        content = data[at + 4 : at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")]
        if data[at + 1] == 0x51:
            size = content
        elif data[at + 1] == 0x52:
            style = content
        at += len(content) + 4
    if size is None or len(size) < 39 or len(style) < 10:
        raise IndexError
    right, bottom, left, top = (int.from_bytes(size[n : n + 4], "big") for n in (2, 6, 10, 14))
    samples = int.from_bytes(size[34:36], "big")
    parts = {tuple(size[36 + 3 * n : 39 + 3 * n]) for n in range(samples)}
    if len(parts) != 1:
        raise UnreadableInstanceError("the codestream's components differ in size or depth", keyword="PixelData")
    depth, dx, dy = parts.pop()
    if (dx, dy) != (1, 1):
        raise UnreadableInstanceError("the codestream's components are sub-sampled", keyword="PixelData")
    transform = bool(style[4]) and samples >= 3
    return Codestream(
        kind="JPEG 2000",
        rows=bottom - top,
        columns=right - left,
        samples=samples,
        precision=(depth & 127) + 1,
        signed=depth > 127,
        reversible=style[9] == 1,
        undone=transform,
    )


class _Bits:
    """Little endian bits of a JPEG XL codestream (ISO/IEC 18181-1 annex B)."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> int:
        first, last = self._at // 8, (self._at + count + 7) // 8
        if last > len(self._data):
            raise IndexError
        value = int.from_bytes(self._data[first:last], "little") >> self._at % 8
        self._at += count
        return value & (1 << count) - 1

    def choose(self, *ways: tuple[int, int]) -> int:
        """U32: two bits say which (offset, width) follows."""
        offset, width = ways[self.take(2)]
        return offset + self.take(width)


def _jpeg_xl(data: bytes) -> Codestream:
    """SizeHeader and ImageMetadata (18181-1 annex D); extra channels (alpha) count as samples."""
    recompressed = False
    if data.startswith(_JXL_BOXES):
        boxes = list(_boxes(data))
        recompressed = any(kind == b"jbrd" for kind, _ in boxes)  # what rebuilds the JPEG stream that it was made from
        data = b"".join(value[4:] if kind == b"jxlp" else value for kind, value in boxes if kind in (b"jxlc", b"jxlp"))
    bits = _Bits(data)
    if bits.take(16) != 0x0AFF:
        raise UnreadableInstanceError("a JPEG XL file holds no codestream", keyword="PixelData")
    rows, columns = _jpeg_xl_size(bits)
    if bits.take(1):  # all_default: 8 bits, XYB, sRGB
        return Codestream("JPEG XL", rows, columns, 3, 8, reversible=False, undone=True)
    if bits.take(1):  # extra_fields
        bits.take(3)  # orientation
        if bits.take(1):
            _jpeg_xl_size(bits)
        if bits.take(2):  # a preview, an animation
            raise UnreadableInstanceError("a JPEG XL frame has a preview or moves", keyword="PixelData")
    if bits.take(1):
        raise UnreadableInstanceError("a JPEG XL frame has floating point samples", keyword="PixelData")
    precision = bits.choose((8, 0), (10, 0), (12, 0), (1, 6))
    bits.take(1)  # modular_16bit_buffers
    extra = bits.choose((0, 0), (1, 0), (2, 4), (1, 12))
    if extra:
        raise UnreadableInstanceError("a JPEG XL frame has channels beside its colours", keyword="SamplesPerPixel")
    xyb = bool(bits.take(1))
    samples = 3
    if not bits.take(1):  # ColourEncoding is not the default
        bits.take(1)  # want_icc
        samples = 1 if bits.choose((0, 0), (1, 0), (2, 4), (18, 6)) == 1 else 3
    lossy = xyb or recompressed
    undone = lossy and samples == 3
    reversible = False if lossy else None
    return Codestream("JPEG XL", rows, columns, samples, precision, False, reversible, None, undone)


def _jpeg_xl_size(bits: _Bits) -> tuple[int, int]:
    small = bits.take(1)

    def side() -> int:
        return (bits.take(5) + 1) * 8 if small else bits.choose((1, 9), (1, 13), (1, 18), (1, 30))

    rows, ratio = side(), bits.take(3)
    if ratio:
        across, down = _RATIOS[ratio - 1]
        return rows, rows * across // down
    return rows, side()


def repaired(data: bytes) -> bytes:
    """Set the spectral selection of a sequential JPEG scan to 0..63, the only legal one (T.81 B.2.3).

    Writers of 12-bit JPEG (the WG-04 sample images among them) left it 0..0, which libjpeg refuses.
    """
    if not data.startswith(b"\xff\xd8"):
        return data
    sequential = False
    for marker, _, end in segments(data):
        sequential |= marker in (0xC0, 0xC1)
        if marker == 0xDA and sequential and data[end - 3 : end] == b"\0\0\0":
            return data[: end - 3] + b"\0\x3f\0" + data[end:]
    return data
