"""Every transfer syntax that can lose nothing, as files that other code than ours has written, and what is in them.

Used by the tests (a few of the combinations) and by `benchmarks/transfer_syntaxes.py` (all of them).
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import imagecodecs
import jpeg_ls
import numpy as np
from openjpeg.utils import encode_array
from rle.utils import encode_pixel_data

from tests.streams import lossless_jpeg, picture, write


class Combination(NamedTuple):
    """What the cells of a file look like."""

    bits: int
    signed: bool
    samples: int
    frames: int

    @property
    def name(self) -> str:
        return f"{'s' if self.signed else 'u'}{self.bits}-{'rgb' if self.samples == 3 else 'gray'}-{self.frames}"


COMBINATIONS = tuple(
    [Combination(bits, signed, 1, 1) for bits in (2, 5, 7, 8, 9, 10, 12, 13, 15, 16) for signed in (False, True)]
    + [Combination(bits, signed, 1, 3) for bits in (8, 12, 16) for signed in (False, True)]
    + [Combination(bits, False, 3, frames) for bits, frames in itertools.product((6, 8, 12, 16), (1, 2))]
)
"""34 of them."""


def pixels(combination: Combination):
    """What a decoder has to give: (frames, rows, columns[, 3]); an odd number of pixels in a frame."""
    bits, signed, samples, frames = combination
    shape = {"signed": signed, "samples": samples, "rows": 37, "columns": 45}
    return np.stack([picture(bits, seed=seed, **shape) for seed in range(frames)])


def _words(values):
    """Unsigned cells, little endian."""
    return values.view(f"u{values.itemsize}").astype(f"<u{values.itemsize}")


def _masked(values, bits: int):
    """Bits above the stored ones cleared, for codecs that know no sign."""
    return _words(values) & np.array((1 << bits) - 1, f"u{values.itemsize}")


def _rle(values, bits: int) -> bytes:
    samples = values.shape[2] if values.ndim == 3 else 1
    return encode_pixel_data(
        _words(values).tobytes(),
        rows=values.shape[0],
        columns=values.shape[1],
        samples_per_pixel=samples,
        bits_allocated=values.itemsize * 8,
        byteorder="<",
    )


def _deflated(values, bits: int) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(_words(values).tobytes()) + deflater.flush()


def _jpeg_2000(values, bits: int) -> bytes:
    colour = values.ndim == 3
    return encode_array(values, bits_stored=bits, photometric_interpretation=1 if colour else 2, use_mct=colour)


def _jpeg_xl(values, bits: int) -> bytes:
    return bytes(imagecodecs.jpegxl_encode(_masked(values, bits), lossless=True, bitspersample=bits, effort=3))


def _htj2k(values, bits: int) -> bytes:
    """OpenJPH, which takes all bits of a word; ours is OpenJPEG."""
    return bytes(imagecodecs.htj2k_encode(values, reversible=True, rgb=values.ndim == 3))


ENCODERS: dict[str, tuple[str, Callable[..., bytes]]] = {
    "": ("NumPy", lambda values, bits: _words(values).tobytes()),
    ".1": ("NumPy", lambda values, bits: _words(values).tobytes()),
    ".2": ("NumPy", lambda values, bits: _words(values).byteswap().tobytes()),
    ".1.99": ("zlib", lambda values, bits: _words(values).tobytes()),
    ".1.98": ("NumPy", lambda values, bits: _words(values).tobytes()),
    ".8.1": ("zlib", _deflated),
    ".5": ("pylibjpeg-rle", _rle),
    ".4.57": ("ours", lambda values, bits: lossless_jpeg(_masked(values, bits), bits, predictor=2)),
    ".4.70": ("ours", lambda values, bits: lossless_jpeg(_masked(values, bits), bits)),
    ".4.80": ("pyjpegls", lambda values, bits: bytes(jpeg_ls.encode(_masked(values, bits)))),
    ".4.81": ("pyjpegls", lambda values, bits: bytes(jpeg_ls.encode(_masked(values, bits)))),
    ".4.90": ("pylibjpeg-openjpeg", _jpeg_2000),
    ".4.91": ("pylibjpeg-openjpeg", _jpeg_2000),
    ".4.201": ("OpenJPH", _htj2k),
    ".4.202": ("OpenJPH", _htj2k),
    ".4.203": ("OpenJPH", _htj2k),
    ".4.110": ("libjxl", _jpeg_xl),
    ".4.112": ("libjxl", _jpeg_xl),
}
"""End of the transfer syntax UID -> (who encodes, (frame, bits) -> bytes)."""


def make(path: Path, syntax: str, combination: Combination) -> Path:
    """A file with `pixels(combination)`; the word of a cell is as wide as they need."""
    frames = pixels(combination)
    _, encode = ENCODERS[syntax]
    streams = [encode(np.ascontiguousarray(frame), combination.bits) for frame in frames]
    label = "YBR_RCT" if combination.samples == 3 and syntax[:4] in (".4.9", ".4.2") else None
    header = {"PhotometricInterpretation": label} if label else {}
    return write(path, streams, syntax, frames[0], bits=combination.bits, **header)
