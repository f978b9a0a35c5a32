"""Frames coded and wrapped by hand, for tests that need what encoders do not write, or what pydicom does not know."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info

from tests.synthetic import make_instance

SYNTAX = "1.2.840.10008.1.2"
_CODE_BITS = 5
"""Every one of the 17 categories of a difference has a code of five bits: its own number."""


def picture(bits: int, *, signed: bool = False, samples: int = 1, rows: int = 24, columns: int = 34, seed: int = 0):
    """A smooth picture with noise that uses its whole range. (rows, columns) or (rows, columns, 3)."""
    rng = np.random.default_rng(seed + bits)
    down, across = np.mgrid[:rows, :columns]
    smooth = (np.sin(across / 7) + np.cos(down / 5)) / 4 + 0.5
    unit = smooth[..., None] * np.array([1, 0.8, 0.6])[:samples] + rng.normal(0, 0.02, (rows, columns, samples))
    top = (1 << bits) - 1
    values = np.clip(np.rint(unit * top), 0, top).astype(int)
    values.flat[0], values.flat[-1] = 0, top
    values -= (1 << bits - 1) if signed else 0
    values = values.astype(f"{'i' if signed else 'u'}{1 if bits <= 8 else 2}")
    return values[..., 0] if samples == 1 else values


def lossless_jpeg(values, precision: int, *, predictor: int = 1, fold: bool = False, point: int = 0, ids=b"\1\2\3"):
    """A JPEG of process 14 (ITU-T T.81 annex H), one interleaved scan.

    Args:
        values: Unsigned (rows, columns) or (rows, columns, 3).
        precision: Bits of a sample.
        predictor: 1 (left), 2 (above) or 4 (left + above - both).
        fold: Write differences modulo 2^precision, as some ultrasound machines do, not modulo 2^16.
        point: Low bits that are left out (the point transform).
        ids: Component identifiers.
    """
    planes = np.atleast_3d(values).astype(int) >> point
    rows, columns, samples = planes.shape
    left, above, both = (np.zeros_like(planes) for _ in range(3))
    left[:, 1:], above[1:], both[1:, 1:] = planes[:, :-1], planes[:-1], planes[:-1, :-1]
    expected = {1: left, 2: above, 4: left + above - both}[predictor]
    expected[0, 1:], expected[1:, 0] = planes[0, :-1], planes[:-1, 0]
    expected[0, 0] = 1 << precision - point - 1
    full = 1 << (precision if fold else 16)
    differences = (planes - expected + full // 2) % full - full // 2
    if not fold:
        differences[differences == -32768] = 32768
    bits = []
    for difference in differences.reshape(-1).tolist():
        size = abs(difference).bit_length()
        bits.append(format(size, f"0{_CODE_BITS}b"))
        if 0 < size < 16:
            bits.append(format(difference if difference > 0 else difference + (1 << size) - 1, f"0{size}b"))
    text = "".join(bits)
    text += "1" * (-len(text) % 8)
    scan = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    table = bytes([0, *(17 if n == _CODE_BITS else 0 for n in range(1, 17)), *range(17)])
    parts = b"".join(bytes([ids[n], 0x11, 0]) for n in range(samples))
    frame = segment(0xC3, struct.pack(">BHHB", precision, rows, columns, samples) + parts)
    scans = bytes([samples, *b"".join(bytes([ids[n], 0]) for n in range(samples)), predictor, 0, point])
    return b"\xff\xd8" + frame + segment(0xC4, table) + segment(0xDA, scans) + scan + b"\xff\xd9"


def write(
    path: Path,
    frames: list[bytes],
    syntax: str,
    like,
    *,
    bits: int | None = None,
    name: str | None = None,
    table: bool = True,
    pixel_data: bytes | None = None,
    **header: object,
) -> Path:
    """A file with these frames, each encapsulated in one fragment, under a header that fits the pixels of `like`.

    Args:
        path: Where.
        frames: Coded frames.
        syntax: The end of the transfer syntax UID, ".4.70" say.
        like: The pixels of a frame, for the size, the samples, the sign and the bits.
        bits: Bits Stored, where not all of `like` are.
        name: A class of `synthetic`.
        table: Whether there is a Basic Offset Table.
        pixel_data: The value of Pixel Data, if not `frames` encapsulated.
        header: Attributes on top; None leaves one out.
    """
    colour = like.ndim == 3
    allocated = like.dtype.itemsize * 8
    instance = make_instance(name or ("USMultiFrame" if colour or allocated == 8 else "WordSC"), frames=len(frames))
    instance.Rows, instance.Columns = like.shape[:2]
    instance.SamplesPerPixel, instance.PhotometricInterpretation = (3, "RGB") if colour else (1, "MONOCHROME2")
    if colour:
        instance.PlanarConfiguration = 0
    elif "PlanarConfiguration" in instance:
        del instance.PlanarConfiguration
    instance.BitsAllocated, instance.BitsStored = allocated, bits or allocated
    instance.HighBit, instance.PixelRepresentation = instance.BitsStored - 1, int(like.dtype.kind == "i")
    instance.NumberOfFrames = len(frames)
    for keyword, value in header.items():
        setattr(instance, keyword, value)
        if value is None:
            delattr(instance, keyword)
    encapsulated = syntax not in ("", ".1", ".1.99", ".2")
    instance.PixelData = pixel_data or (encapsulate(frames, has_bot=table) if encapsulated else b"".join(frames))
    if encapsulated:
        instance["PixelData"].VR = "OB"
        instance["PixelData"].is_undefined_length = True
    instance.file_meta.TransferSyntaxUID = SYNTAX + syntax
    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = syntax != ".2", syntax == ""
    write_dataset(buffer, instance)
    data = buffer.getvalue()
    if syntax == ".1.99":
        deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
        data = deflater.compress(data) + deflater.flush()
    meta = DicomBytesIO()
    meta.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(meta, instance.file_meta, enforce_standard=True)
    path.write_bytes(meta.getvalue() + data + b"\0" * (len(data) % 2))
    return path
