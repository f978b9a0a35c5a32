"""Palettes: what the entries are is told by the entries, once for the three tables."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom import Dataset

from medenhance_dicom.errors import UnreadableInstanceError
from medenhance_dicom.frames import pixel_format, stored_frame
from medenhance_dicom.palette import palette_of

_RAMPS = [np.arange(256), np.zeros(256, int), np.full(256, 9)]
"""Red uses the whole range; green and blue are dark, and say nothing of how they are scaled."""


def paletted(tables, bits=8, *, first=0, words=None, segmented=0, signed=False, columns=4):
    """tables: entries (or segment words) of red, green and blue; bits: of the descriptor; words: bits in the data."""
    instance = Dataset()
    instance.SamplesPerPixel, instance.PhotometricInterpretation = 1, "PALETTE COLOR"
    instance.Rows, instance.Columns, instance.BitsAllocated, instance.BitsStored, instance.HighBit = 1, columns, 8, 8, 7
    instance.PixelRepresentation = int(signed)
    for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
        setattr(instance, f"{colour}PaletteColorLookupTableDescriptor", [segmented or len(table), first, bits])
        keyword = f"{'Segmented' if segmented else ''}{colour}PaletteColorLookupTableData"
        setattr(instance, keyword, np.array(table, f"<u{(words or bits) // 8}").tobytes())
    return instance


def looked_up(instance, *values):
    return stored_frame(instance, np.array([values]).astype(np.uint8), 0).stored[0].tolist()


def test_it_becomes_8_bit_rgb_and_its_ends_hold():
    instance = paletted([[1, 2], [3, 4], [5, 6]], first=10)
    assert looked_up(instance, 0, 10, 11, 99) == [[1, 3, 5], [1, 3, 5], [2, 4, 6], [2, 4, 6]]
    pixels = pixel_format(instance)
    assert (pixels.bits_allocated, pixels.bits_stored, pixels.maximum) == (8, 8, 255)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("factor", [1, 256, 257])
def test_words_of_either_range_give_the_same_colours_whatever_the_descriptor_says(bits, factor):
    palette = palette_of(paletted([ramp * factor for ramp in _RAMPS], bits, words=16))
    np.testing.assert_array_equal(palette.entries, np.stack(_RAMPS, axis=-1))
    assert (palette.bits, palette.declared) == (8 if factor == 1 else 16, bits)


def test_a_dark_channel_is_scaled_as_its_neighbours():
    wide = paletted([[0, 0xFF00], [0, 0x8000], [0, 0x00FF]], 16)
    assert palette_of(wide).entries.tolist() == [[0, 0, 0], [255, 128, 0]]


def test_bytes_under_a_descriptor_of_16_bits_are_entries():
    assert palette_of(paletted([[0, 200, 7]] * 3, 16, words=8)).entries[:, 0].tolist() == [0, 200, 7]


@pytest.mark.parametrize("first", [-128, 65536 - 128])
def test_the_first_stored_value_may_be_negative_and_written_unsigned(first):
    instance = paletted([np.arange(256)] * 3, first=0, signed=True)
    for colour in ("Red", "Green", "Blue"):
        keyword = f"{colour}PaletteColorLookupTableDescriptor"
        instance[keyword].VR = "SS" if first < 0 else "US"
        instance[keyword].value = [256, first, 8]
    assert [entry[0] for entry in looked_up(instance, 128, 255, 0, 127)] == [0, 127, 128, 255]


# two entries 0 and 10, a line over 2 entries to 30, then the discrete segment (1 segment from byte 0) once more
_SEGMENTS = {16: [0, 2, 0, 10, 1, 2, 30, 2, 1, 0, 0], 8: [0, 2, 0, 10, 1, 2, 30, 2, 1, 0, 0, 0, 0]}


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("words", [8, 16])
def test_segments_are_discrete_linear_and_indirect_and_of_the_width_that_fits(bits, words):
    instance = paletted([_SEGMENTS[words]] * 3, bits, words=words, segmented=6)
    assert palette_of(instance).entries[:, 0].tolist() == [0, 10, 20, 30, 0, 10]


def test_segments_are_scaled_together():
    bright = [0, 2, 0, 0xFFFF]
    instance = paletted([bright, [0, 2, 0, 0x00FF], bright], 8, words=16, segmented=2)
    assert palette_of(instance).entries.tolist() == [[0, 0, 0], [255, 0, 255]]


def test_segments_that_refer_to_themselves_are_refused():
    words = [0, 1, 9, 2, 2, 0, 0]  # the indirect segment covers itself
    with pytest.raises(UnreadableInstanceError, match="segments do not end"):
        palette_of(paletted([words] * 3, 16, segmented=4000))


def test_tables_that_are_missing_short_or_different_are_refused_by_name():
    missing = paletted([[1, 2]] * 3)
    del missing.GreenPaletteColorLookupTableData
    short = paletted([[1, 2]] * 3)
    short.BluePaletteColorLookupTableData = b"\x01"
    different = paletted([[1, 2], [1, 2], [1, 2, 3]])
    for instance, keyword in (
        (missing, "GreenPaletteColorLookupTableData"),
        (short, "BluePaletteColorLookupTableData"),
        (different, "BluePaletteColorLookupTableDescriptor"),
    ):
        with pytest.raises(UnreadableInstanceError, match=keyword):
            palette_of(instance)
