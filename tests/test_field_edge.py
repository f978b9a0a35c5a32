from __future__ import annotations

import numpy as np
import pytest

from medenhance_dicom.field_edge import fade, fill_from_field


def round_field(height, width, radius):
    y, x = np.ogrid[:height, :width]
    return (y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2


@pytest.mark.parametrize("size", [200, 700])
def test_the_rim_fades_over_a_hundredth_of_the_width(size):
    weight = fade(round_field(size, size, 0.45 * size))
    row = weight[size // 2]
    first = int(np.argmax(row > 0))
    reach = size // 100
    assert first == pytest.approx(0.05 * size, abs=1.5)
    assert row[first] < 0.6 if size < 300 else row[first] < 0.2
    assert (np.diff(row[first : first + reach + 2]) >= 0).all()
    assert row[first + reach + 2 : size // 2].min() == 1


def test_nothing_fades_where_the_frame_cuts_the_field_or_where_there_is_no_edge():
    weight = fade(round_field(300, 400, 190))
    assert weight[0, 200] == weight[299, 200] == 1
    assert (fade(np.ones((300, 400), bool)) == 1).all()
    assert (fade(np.zeros((300, 400), bool)) == 0).all()
    assert set(np.unique(fade(round_field(30, 40, 10)))) == {0, 1}


@pytest.mark.parametrize("size", [240, 1200])
def test_a_surround_of_any_colour_is_continued_from_the_field(size):
    inside = round_field(size, size, 0.4 * size)
    colour = np.array([0.7, 0.4, 0.2], np.float32)
    rim = inside & ~round_field(size, size, 0.4 * size - size // 200)  # half a hundredth: darker
    frame = np.where(inside[..., None], colour, np.random.default_rng(0).random((size, size, 3))).astype(np.float32)
    frame[rim] *= 0.3
    filled = fill_from_field(frame, inside)
    assert (filled == colour)[round_field(size, size, 0.38 * size)].all()
    assert np.abs(filled - colour)[~inside].max() < 0.02


def test_a_fill_of_nothing_or_of_little():
    frame = np.random.default_rng(0).random((50, 60, 3)).astype(np.float32)
    for inside in (np.ones((50, 60), bool), np.zeros((50, 60), bool)):
        np.testing.assert_array_equal(fill_from_field(frame, inside), frame)
    one = np.zeros((50, 60), bool)
    one[20, 30] = True
    assert np.abs(fill_from_field(frame, one) - frame[20, 30]).max() < 1e-6
