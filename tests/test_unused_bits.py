"""Bits above High Bit: whose they are is told by what taking them along means for neighbouring pixels."""

from __future__ import annotations

import imagecodecs
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import UnreadableInstanceError
from medenhance_dicom.frames import stored_frame
from medenhance_dicom.part10 import read_instance
from medenhance_dicom.unused_bits import check_overshoot, check_unused
from tests.streams import lossless_jpeg, write

SIDE = 128
_Y, _X = np.mgrid[:SIDE, :SIDE]
PLANES = {
    "a disc": (_Y - 64) ** 2 + (_X - 64) ** 2 < 40**2,
    "strokes": (_Y // 3 + _X // 3) % 7 == 0,
    "junk": np.random.default_rng(1).integers(0, 2, (SIDE, SIDE)) == 1,
}


def picture(bits, noise):
    """Unsigned, over the whole range; noise in percent of it."""
    rng = np.random.default_rng(0)
    smooth = gaussian_filter(rng.normal(size=(SIDE, SIDE)), 8)
    values = (smooth - smooth.min()) / np.ptp(smooth) + rng.normal(size=smooth.shape) * noise / 100
    return np.rint(np.clip(values, 0, 1) * ((1 << bits) - 1)).astype(np.uint16)


def check(values, stored, *, high_bit=None, signed=False, **more):
    cells = (values.astype(np.int64) & 0xFFFF).astype(np.uint16)[..., None]
    more.setdefault("padding", None)
    check_unused(cells, stored=stored, high_bit=stored - 1 if high_bit is None else high_bit, signed=signed, **more)


@pytest.mark.parametrize("noise", [0, 1, 5])
@pytest.mark.parametrize(("stored", "needed"), [(8, 9), (8, 12), (8, 16), (10, 12), (12, 13), (12, 16)])
def test_a_picture_that_needs_more_bits_is_refused_with_both_values(stored, needed, noise):
    with pytest.raises(UnreadableInstanceError) as caught:
        check(picture(needed, noise), stored)
    assert str(caught.value) == f"BitsStored: the header says {stored}, the values need {needed}"


def test_a_signed_picture_that_needs_more_bits_is_refused():
    values = picture(13, 1).astype(int) - 4096
    with pytest.raises(UnreadableInstanceError, match="BitsStored: the header says 12, the values need 13"):
        check(values, 12, signed=True)
    check(values, 13, signed=True)


def test_a_signed_picture_that_is_called_unsigned_is_refused():
    with pytest.raises(UnreadableInstanceError, match="PixelRepresentation: the header says 0, the values have a sign"):
        check(picture(12, 1).astype(int) - 2048, 12)


@pytest.mark.parametrize("noise", [0, 1, 5, 100])
@pytest.mark.parametrize("plane", PLANES)
def test_what_lies_over_the_picture_is_not_the_pictures(plane, noise):
    check(picture(12, noise) | PLANES[plane] * np.uint16(1 << 13), 12)
    check((picture(8, noise) << 4) | PLANES[plane] * np.uint16(1 << 14), 8, high_bit=11)


def test_declared_overlays_constant_bits_and_padding_are_left_out():
    bright = picture(13, 1)
    check(bright, 12, overlay_bits=[12])  # whatever it looks like
    check(picture(12, 1) | 0xA000, 12, signed=True)
    outside = np.where(PLANES["a disc"], picture(12, 1), 63536)  # CT outside the field of view, -2000
    check(outside, 12, padding=63536)
    check(outside, 12)


def test_a_few_pixels_decide_nothing():
    values = picture(12, 1)
    values[5, 5:8] = 4096 + 5
    check(values, 12)
    check(np.array([[127, 128]]), 7)


def test_a_codestream_that_is_deeper_than_bits_stored_is_refused_too(tmp_path):
    values = picture(12, 1)
    with Decoder() as decoder:
        for syntax, frame in (
            (".4.80", bytes(imagecodecs.jpegls_encode(values))),
            (".4.70", lossless_jpeg(values, 12)),
            (".4.91", bytes(imagecodecs.jpeg2k_encode(values, level=0, reversible=True, codecformat="j2k"))),
            (".1.98", values.tobytes()),
        ):
            for bits in (12, 10):
                write(tmp_path / "x.dcm", [frame], syntax, values, bits=bits)
                decoded = decoder.frame(tmp_path / "x.dcm", 0)
                instance = read_instance(tmp_path / "x.dcm")
                if bits == 12:
                    np.testing.assert_array_equal(stored_frame(instance, decoded, 0).stored[..., 0], values)
                    continue
                with pytest.raises(UnreadableInstanceError, match="BitsStored: the header says 10, the values need 12"):
                    stored_frame(instance, decoded, 0)


def test_a_codec_may_overshoot_and_no_more():
    values = picture(10, 1)
    values[:3, :3] = 1100
    check_overshoot(values, stored=10)
    with pytest.raises(UnreadableInstanceError, match="BitsStored: the header says 10, the values need 12"):
        check_overshoot(picture(12, 1), stored=10)
