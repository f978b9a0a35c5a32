"""Bytes of one frame -> its samples. Only the decoding child imports this: C code reads what strangers wrote.

The codestream is believed before the header (PS3.5 section 8.2): its kind, precision, sign and colour transform count,
Planar Configuration does not. Where a codestream's size, samples or depth contradict the header, no choice would be
safe, and the frame is refused with both values.
"""

from __future__ import annotations

import importlib
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from medenhance_dicom.codestream import Codestream, bare, inspect, is_lossless_jpeg, repaired
from medenhance_dicom.errors import UnreadableInstanceError

Array = npt.NDArray[Any]

_FILLER = bytes(range(1, 65))
_END_OF_IMAGE = b"\xff\xd9"
_YBR_TO_RGB = np.array([[1, 1, 1], [0, -0.114 * 1.772 / 0.587, 1.772], [1.402, -0.299 * 1.402 / 0.587, 0]], np.float32)
_MODULES = ("imcd", "jpeg2k", "jpeg8", "jpegls", "jpegxl")


@dataclass(frozen=True)
class Cells:
    """The pixel cells that the header declares (PS3.5 section 8.1.1), before palette."""

    rows: int
    columns: int
    samples: int
    """1, or 3; palette colour counts as 1."""
    allocated: int
    """Bits of a cell: 8 or 16."""
    stored: int
    signed: bool
    photometric: str
    planar: bool
    """Planar Configuration 1, which only cells that are not compressed have."""
    big_endian: bool = False

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame of cells."""
        return self.rows * self.columns * self.samples * self.allocated // 8

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of decoded frames: native byte order."""
        return np.dtype(f"{'i' if self.signed else 'u'}{self.allocated // 8}")

    def frame_lengths(self) -> tuple[int, ...]:
        """The lengths that a frame of cells may have in bytes, what the label says first.

        YBR_FULL_422 has two bytes a pixel (PS3.3 C.7.6.3.1.2); many write three under its name.
        """
        whole = self.frame_bytes
        return (whole // 3 * 2, whole) if self.photometric == "YBR_FULL_422" else (whole,)


def load() -> None:
    """Load the codecs, so that they do not count against a memory limit set afterwards."""
    for name in _MODULES:
        importlib.import_module(f"imagecodecs._{name}")


def _differs(keyword: str, header: object, found: object, what: str = "the codestream") -> UnreadableInstanceError:
    return UnreadableInstanceError(f"the header says {header}, {what} {found}", keyword=keyword)


def from_cells(data: bytes, cells: Cells) -> Array:
    """Cells as they lie in the file, not compressed.

    Args:
        data: A frame; its length is one of `cells.frame_lengths()`.
        cells: What the header declares.

    Returns:
        (rows, columns), or (rows, columns, 3) in RGB, with all bits of the cells.
    """
    flat = np.frombuffer(data, f"{'>' if cells.big_endian else '<'}u{cells.allocated // 8}")
    if cells.samples == 1:
        return _finished(flat.reshape(cells.rows, cells.columns), cells)
    if len(data) < cells.frame_bytes:
        pairs = flat.reshape(-1, 4)  # Y Y Cb Cr
        pixels = np.stack([pairs[:, [0, 2, 3]], pairs[:, [1, 2, 3]]], axis=1)
    elif cells.planar:
        pixels = np.moveaxis(flat.reshape(3, cells.rows, cells.columns), 0, -1)
    else:
        pixels = flat
    return _finished(_rgb(pixels.reshape(cells.rows, cells.columns, 3), cells, cells.stored), cells)


def from_deflated(data: bytes, cells: Cells) -> Array:
    """Deflated Image Frame Compression (PS3.5 A.4): a frame of cells under RFC 1951, perhaps padded."""
    lengths = cells.frame_lengths()
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = inflater.decompress(data, max(lengths) + 2)
    except zlib.error:
        raise UnreadableInstanceError("a frame does not inflate", keyword="PixelData") from None
    return from_cells(checked_length(inflated, lengths), cells)


def checked_length(data: bytes, lengths: tuple[int, ...]) -> bytes:
    """A frame of cells without its pad byte, if it has one of the lengths that the header leads to."""
    for length in lengths:
        if len(data) in (length, length + length % 2):
            return data[:length]
    declared = " or ".join(map(str, lengths))
    raise UnreadableInstanceError(
        f"the header declares {declared} bytes a frame, there are {len(data)}", keyword="PixelData"
    )


def from_rle(data: bytes, cells: Cells) -> Array:
    """RLE (PS3.5 annex G): PackBits of byte planes, the most significant byte of the first sample first."""
    codecs = importlib.import_module("imagecodecs")
    width = cells.allocated // 8
    header = np.frombuffer(data[:64], "<u4")
    if header.size < 16:
        raise UnreadableInstanceError("an RLE frame is cut short", keyword="PixelData")
    count, expected = int(header[0]), cells.samples * width
    if count != expected:
        keyword = "SamplesPerPixel" if width == 1 else "BitsAllocated"
        raise _differs(keyword, f"{expected} bytes a pixel", count, "the RLE frame has")
    starts = [int(at) for at in header[1 : count + 1]]
    pixels = np.empty((cells.rows * cells.columns, cells.samples, width), np.uint8)
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(data)], strict=True)):
        if not 64 <= start <= end <= len(data):
            raise UnreadableInstanceError("an RLE frame's segments are out of place", keyword="PixelData")
        plane = np.frombuffer(codecs.packbits_decode(data[start:end]), np.uint8)
        if plane.size < len(pixels):
            raise _differs("Rows", f"{len(pixels)} pixels", plane.size, "an RLE segment holds")
        pixels[:, number // width, width - 1 - number % width] = plane[: len(pixels)]
    samples = pixels.view(f"<u{width}")
    if cells.samples == 1:
        return _finished(samples.reshape(cells.rows, cells.columns), cells)
    return _finished(_rgb(samples.reshape(cells.rows, cells.columns, 3), cells, cells.stored), cells)


def from_codestream(data: bytes, cells: Cells) -> Array:
    """JPEG, JPEG-LS, JPEG 2000 or JPEG XL.

    Args:
        data: One frame.
        cells: What the header declares.

    Returns:
        (rows, columns), or (rows, columns, 3) in RGB, in `cells.dtype`. A signed codestream's values keep their sign.
        An unsigned one's under a signed header are two's complement: of its precision for JPEG 2000 and JPEG-LS.

    Raises:
        UnreadableInstanceError: It contradicts the header, names the attribute and both values; or it is broken or cut.
    """
    stream = inspect(data)
    _agree(stream, cells)
    samples = _DECODERS[stream.kind](data, stream, cells)
    if samples.shape != (stream.rows, stream.columns, *((3,) if stream.samples == 3 else ())):
        raise UnreadableInstanceError("a codestream decodes to another size than it declares", keyword="PixelData")
    if stream.signed and not cells.signed and samples.min() < 0:
        raise _differs("PixelRepresentation", "0 (unsigned)", "is signed and has values below zero")
    if cells.signed and not stream.signed and stream.kind in ("JPEG 2000", "JPEG-LS"):
        above = 8 * samples.itemsize - stream.precision
        samples = samples.view(f"i{samples.itemsize}") << above >> above
    if stream.samples == 3 and not stream.undone:
        samples = _rgb(samples, cells, stream.precision, stream.colour)
    return _finished(samples, cells)


def _agree(stream: Codestream, cells: Cells) -> None:
    if stream.rows != cells.rows:
        raise _differs("Rows", cells.rows, stream.rows)
    if stream.columns != cells.columns:
        raise _differs("Columns", cells.columns, stream.columns)
    if stream.samples != cells.samples:
        raise _differs("SamplesPerPixel", cells.samples, stream.samples)
    if stream.precision > cells.allocated:
        raise _differs("BitsAllocated", cells.allocated, stream.precision)


def _jpeg(data: bytes, stream: Codestream, cells: Cells) -> Array:
    """By libjpeg-turbo, to RGB where the process has a colour transform, and within the precision.

    A lossless frame's differences are modulo 2^16 (T.81 H.1.2.1); some ultrasound machines fold them at the precision.
    What a scan lacks libjpeg fills up without a word: bytes behind the last scan are skipped when it is whole, and are
    taken for its pixels when it is not, so that two decodings with and without them differ.
    """
    codecs = importlib.import_module("imagecodecs")
    data = repaired(data)
    if is_lossless_jpeg(data):
        spaces = {"colorspace": "unknown", "outcolorspace": "unknown"}
    elif stream.samples == 1:
        spaces = {"colorspace": "grayscale", "outcolorspace": "grayscale"}
    else:
        spaces = {"colorspace": (stream.colour or _label(cells)).lower(), "outcolorspace": "rgb"}
    end = data.rfind(_END_OF_IMAGE)
    body = data[: end if end > 0 else len(data)]
    samples: Array = codecs.jpeg8_decode(body + _END_OF_IMAGE, **spaces)
    if not np.array_equal(samples, codecs.jpeg8_decode(body + _FILLER + _END_OF_IMAGE, **spaces)):
        raise UnreadableInstanceError("a JPEG stream is cut short", keyword="PixelData")
    return samples & samples.dtype.type((1 << stream.precision) - 1)


def _label(cells: Cells) -> str:
    """The colour space where a codestream says nothing; RCT, ICT and XYB are its own business (PS3.5 8.2.4)."""
    return "YCbCr" if cells.photometric in ("YBR_FULL", "YBR_FULL_422") else "RGB"


def _jpeg_ls(data: bytes, stream: Codestream, cells: Cells) -> Array:
    samples: Array = importlib.import_module("imagecodecs").jpegls_decode(data)
    return samples


def _jpeg_2000(data: bytes, stream: Codestream, cells: Cells) -> Array:
    samples: Array = importlib.import_module("imagecodecs").jpeg2k_decode(bare(data), numthreads=1)
    return samples


def _jpeg_xl(data: bytes, stream: Codestream, cells: Cells) -> Array:
    """Orientation stays undone: Rows and Columns are the codestream's (PS3.5 section 8.2)."""
    samples: Array = importlib.import_module("imagecodecs").jpegxl_decode(data, keeporientation=True, numthreads=1)
    return samples


_DECODERS = {"JPEG": _jpeg, "JPEG-LS": _jpeg_ls, "JPEG 2000": _jpeg_2000, "JPEG XL": _jpeg_xl}


def _rgb(samples: Array, cells: Cells, precision: int, colour: str | None = None) -> Array:
    """YBR_FULL to RGB (PS3.3 C.7.6.3.1.2, ITU-R BT.601), rounded and clipped to the precision.

    Args:
        samples: (rows, columns, 3), unsigned.
        cells: Its label counts where `colour` is None.
        precision: Bits of a sample; zero of Cb and Cr lies at half of them.
        colour: "YCbCr" or "RGB" where the codestream says so.
    """
    if (colour or _label(cells)) == "RGB":
        return samples
    half = 1 << precision - 1
    centred = samples.astype(np.float32)
    centred -= np.array([0, half, half], np.float32)
    return np.clip(np.floor(centred @ _YBR_TO_RGB + 0.5), 0, 2 * half - 1).astype(samples.dtype)


def _finished(samples: Array, cells: Cells) -> Array:
    """In the dtype that the header leads to, two's complement where it is signed; contiguous."""
    unsigned = np.dtype(f"u{cells.allocated // 8}")
    return np.ascontiguousarray(samples.astype(unsigned, copy=False)).view(cells.dtype)
