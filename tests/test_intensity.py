from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medenhance_dicom.intensity import IntensityMap, bias_field_n4, delta_to_modality, fit_intensity, to_unit

RAMP = np.arange(1001, dtype=np.float32).reshape(1, -1, 1)  # 0..1000


def test_minus_1000_and_400_are_the_ends_of_a_lung_window():
    line = fit_intensity([], "window", window=(-1350, 150), legal_range=(-32768, 32767))
    assert (line.lo, line.hi, line.method) == (-1350, 150, "window")
    unit = to_unit(np.array([-3000.0, -1350, -600, 150, 3000]), line)
    assert unit.dtype == np.float32
    np.testing.assert_array_equal(unit, np.array([0, 0, 0.5, 1, 1], np.float32))


def test_monochrome1_is_turned_round():
    line = fit_intensity([], "range", legal_range=(0, 255), inverted=True)
    np.testing.assert_array_equal(to_unit(np.array([0.0, 255]), line), [1, 0])


def test_percentiles_leave_padding_out():
    frame = RAMP.copy()
    frame[0, :300] = -2000
    padding = np.zeros((1, 1001), bool)
    padding[0, :300] = True
    line = fit_intensity([frame], "percentile", paddings=[padding], percentiles=(0, 100))
    assert (line.lo, line.hi) == (300, 1000)
    line = fit_intensity([RAMP, RAMP], "percentile", percentiles=(10, 90))
    assert (line.lo, line.hi) == pytest.approx((100, 900))


def test_no_window_falls_back_to_percentiles_and_says_so():
    assert fit_intensity([RAMP], "window", window=None).method == "percentile"
    assert fit_intensity([RAMP], "window", window=(5, 5)).method == "percentile"


def test_a_constant_series_has_a_map_too():
    constant = np.full((4, 4, 1), 7.0)
    assert fit_intensity([constant], "percentile", legal_range=(0, 255)).method == "range"
    line = fit_intensity([constant], "percentile")
    assert (line.lo, line.hi) == (7, 8)
    line = fit_intensity([np.full((4, 4, 1), np.nan)], "percentile")
    assert (line.lo, line.hi) == (0, 1)


def test_one_bright_pixel_does_not_flatten_the_map():
    frame = np.zeros((100, 100, 1))
    frame[3, 3] = 9
    line = fit_intensity([frame], "percentile", legal_range=(0, 255))
    assert (line.lo, line.hi) == (0, 9)


def test_range_without_a_legal_range_and_an_empty_map_are_refused():
    with pytest.raises(ValueError, match="legal range"):
        fit_intensity([], "range")
    with pytest.raises(ValueError, match="below hi"):
        IntensityMap(1, 1, False, "range")


def test_not_a_number_becomes_black():
    line = IntensityMap(0, 10, False, "range")
    np.testing.assert_array_equal(to_unit(np.array([np.nan, np.inf, -np.inf]), line), [0, 1, 0])


def test_values_outside_the_window_move_as_its_ends_do():
    line = IntensityMap(0, 100, False, "window")
    before = to_unit(np.array([-5.0, 0, 50, 100, 200]), line)
    kept = np.array([0, 0, 0.75, 1, 1], np.float32)
    np.testing.assert_allclose(delta_to_modality(before, kept, line), [0, 0, 25, 0, 0])
    darker = np.array([0, 0, 0.5, 0.75, 0.75], np.float32)
    np.testing.assert_allclose(delta_to_modality(before, darker, line), [0, 0, 0, -25, -25])


def test_a_change_of_an_inverted_frame_goes_the_other_way():
    line = IntensityMap(0, 200, True, "range")
    modality = np.array([50.0])
    before = to_unit(modality, line)  # 0.75
    np.testing.assert_allclose(delta_to_modality(before, np.array([1.0], np.float32), line), [-50])


@given(
    arrays(np.float64, 20, elements=st.floats(-40000, 40000)),
    st.floats(-30000, 20000),
    st.floats(1e-3, 60000),
    st.booleans(),
)
def test_no_change_is_no_change_exactly(modality, lo, width, inverted):
    line = IntensityMap(lo, lo + width, inverted, "window")
    unit = to_unit(modality, line)
    assert unit.min() >= 0
    assert unit.max() <= 1
    assert not delta_to_modality(unit, unit.copy(), line).any()


@given(arrays(np.float64, 20, elements=st.integers(0, 4095)), st.booleans())
def test_a_change_undone_lands_on_the_wanted_unit_value(modality, inverted):
    line = IntensityMap(0, 4095, inverted, "range")
    before = to_unit(modality, line)
    after = (before * 0.5 + 0.25).astype(np.float32)
    moved = modality + delta_to_modality(before, after, line)
    np.testing.assert_allclose(to_unit(moved, line), after, atol=1e-6)


@pytest.mark.slow
def test_n4_flattens_a_shaded_picture_and_repeats():
    from skimage import data
    from skimage.transform import resize

    clean = resize(data.camera(), (192, 192), anti_aliasing=True).astype(np.float32) * 0.8 + 0.1
    shaded = clean * np.linspace(0.3, 1, 192, dtype=np.float32)
    field = bias_field_n4(shaded)
    assert field.shape == shaded.shape
    assert field.dtype == np.float32
    corrected = shaded / field

    def left_to_right(picture):
        return picture[:, :64].mean() / picture[:, -64:].mean()

    wanted, before, after = (left_to_right(p) for p in (clean, shaded, corrected))
    assert abs(after - wanted) < 0.5 * abs(before - wanted)
    np.testing.assert_array_equal(field, bias_field_n4(shaded))
    assert np.log(field[shaded > shaded.mean()]).mean() == pytest.approx(0, abs=0.3)


@pytest.mark.parametrize("unit", [np.zeros((64, 64), np.float32), np.full((3, 5), 0.5, np.float32)])
def test_n4_leaves_what_it_cannot_estimate(unit):
    np.testing.assert_array_equal(bias_field_n4(unit), np.ones_like(unit))
    np.testing.assert_array_equal(bias_field_n4(unit, np.zeros(unit.shape, bool)), np.ones_like(unit))
