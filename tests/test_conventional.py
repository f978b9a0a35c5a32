from __future__ import annotations

import numpy as np
import pytest
from skimage import data, exposure

from medenhance_dicom.conventional import (
    LUMA,
    Clahe,
    FieldNormalisation,
    Identity,
    MultiScaleRetinex,
    blur_within,
    build_conventional,
    field_statistics,
    luminance,
)
from medenhance_dicom.enhancer import MaskedEnhancer
from medenhance_dicom.errors import RecipeError

METHODS = [
    Identity(),
    Clahe(),
    Clahe(8.0, 4, 1.0),
    MultiScaleRetinex(),
    MultiScaleRetinex(luma_only=False, strength=1.0),
]


def camera():
    return (data.camera()[::2, ::2].astype(np.float32) / 255)[None, ..., None]


def astronaut():
    return (data.astronaut()[::2, ::2].astype(np.float32) / 255)[None]


@pytest.mark.parametrize("enhancer", METHODS)
def test_shape_range_and_type_hold_for_every_size(enhancer):
    rng = np.random.default_rng(0)
    for shape in [(2, 40, 30, 3), (1, 1, 5, 1), (1, 5, 1, 3), (1, 101, 67, 1), (3, 9, 9, 1)]:
        frames = rng.random(shape, dtype=np.float32)
        before = frames.copy()
        after = enhancer(frames)
        assert after.shape == shape
        assert after.dtype == np.float32
        assert after.min() >= 0
        assert after.max() <= 1
        assert np.isfinite(after).all()
        np.testing.assert_array_equal(frames, before)


@pytest.mark.parametrize("enhancer", METHODS)
@pytest.mark.parametrize("value", [0.0, 0.3, 1.0])
def test_a_constant_frame_stays_as_it_is(enhancer, value):
    frames = np.full((1, 33, 47, 3), value, np.float32)
    np.testing.assert_array_equal(enhancer(frames), frames)


@pytest.mark.parametrize("enhancer", METHODS)
def test_a_frame_does_not_depend_on_its_neighbours(enhancer):
    frames = np.concatenate([camera(), camera()[:, ::-1]])
    np.testing.assert_array_equal(enhancer(frames)[:1], enhancer(frames[:1]))


def test_identity_is_exact_and_a_copy():
    frames = camera()
    after = Identity()(frames)
    np.testing.assert_array_equal(after, frames)
    assert after is not frames


def test_clahe_agrees_with_scikit_image():
    picture = data.camera()
    ours = Clahe(clip_limit=0.01 * 256, tiles=8)((picture.astype(np.float32) / 255)[None, ..., None])[0, ..., 0]
    theirs = exposure.equalize_adapthist(picture, kernel_size=64, clip_limit=0.01)
    assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.99


def test_clahe_without_a_limit_equalises_a_single_tile():
    rng = np.random.default_rng(0)
    frames = (rng.random((1, 128, 128, 1)) ** 3).astype(np.float32)
    after = Clahe(clip_limit=40, tiles=1, max_gain=16)(frames)
    levels = np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(np.quantile(after, levels), levels, atol=0.1)
    assert np.quantile(frames, 0.5) < 0.2


def test_clahe_raises_local_contrast_but_not_beyond_its_limit():
    x = np.linspace(0.45, 0.55, 128, dtype=np.float32)
    frames = np.tile(x, (128, 1))[None, ..., None]
    slope = np.gradient(Clahe(clip_limit=3.0, tiles=1)(frames)[0, 64, :, 0]) / np.gradient(x)
    assert 2 < np.median(slope) < 4.1


def test_black_stays_black_and_white_white():
    frames = camera()
    frames[0, :60] = 0
    frames[0, -40:] = 1
    for enhancer in (Clahe(4.0), MultiScaleRetinex(strength=1.0)):
        after = enhancer(frames)
        assert not after[0, :60].any()
        assert (after[0, -40:] == 1).all()


def test_strength_blends_with_the_source():
    frames = camera()
    full, half, none = (Clahe(strength=s, max_gain=16)(frames) for s in (1.0, 0.5, 0.0))
    np.testing.assert_allclose(half, (full + frames) / 2, atol=1e-6)
    np.testing.assert_array_equal(none, frames)


@pytest.mark.parametrize("enhancer", [Clahe(3.0), MultiScaleRetinex(strength=0.8)])
def test_pixels_outside_neither_change_nor_count(enhancer):
    assert isinstance(enhancer, MaskedEnhancer)
    frames = astronaut()
    inside = np.zeros(frames.shape[:3], bool)
    inside[:, 40:200, 30:220] = True
    other = np.where(inside[..., None], frames, np.float32(0.9))
    after, after_other = enhancer.enhance_within(frames, inside), enhancer.enhance_within(other, inside)
    np.testing.assert_array_equal(after[~inside], frames[~inside])
    np.testing.assert_allclose(after[inside], after_other[inside], atol=1e-5)
    assert np.abs(after - frames)[inside].mean() > 0.01
    np.testing.assert_array_equal(enhancer.enhance_within(frames, np.zeros_like(inside)), frames)


@pytest.mark.parametrize("enhancer", [Clahe(3.0), MultiScaleRetinex(strength=0.8)])
def test_colour_keeps_its_hue(enhancer):
    frames = astronaut() * 0.5 + 0.1
    after = enhancer(frames)
    unclipped = (after.max(axis=3) < 0.999) & (frames.max(axis=3) > 0.05)
    ratio = after[unclipped] / frames[unclipped]
    assert np.median(ratio.max(axis=1) / ratio.min(axis=1)) < 1.001
    light, light_after = luminance(frames[0]), luminance(after[0])
    gain = light_after / light
    assert gain.max() <= 3.01
    assert gain.min() >= 1 / 3.01


NORMALISATION = FieldNormalisation(mean=(0.6, 0.3, 0.1), spread=(0.05, 0.04, 0.02))


def test_field_normalisation_is_as_it_is_defined():
    from scipy.ndimage import gaussian_filter

    frame = astronaut()[0, :, :230]
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]]
    here = (y - 128) ** 2 + (x - 115) ** 2 < 100**2

    def low(plane):
        weight = np.maximum(gaussian_filter(here.astype(np.float64), 0.08 * 230), 1e-4)
        return gaussian_filter(np.where(here, plane, 0).astype(np.float64), 0.08 * 230) / weight

    after = NORMALISATION.enhance_within(frame[None], here[None])[0]
    for c, (target, spread) in enumerate(zip(NORMALISATION.mean, NORMALISATION.spread, strict=True)):
        mean = low(frame[..., c])
        gain = np.clip(spread / np.sqrt(low((frame[..., c] - mean) ** 2)), 1 / 1.5, 4)
        wanted = target + gain * (frame[..., c] - mean) + 0.125 * (mean - mean[here].mean())
        assert np.abs(after[..., c] - np.clip(wanted, 0, 1))[here].max() < 0.02
    np.testing.assert_array_equal(after[~here], frame[~here])


def test_field_normalisation_evens_light_and_colour():
    frame = np.clip(astronaut()[0] * np.linspace(0.2, 1, 256, dtype=np.float32)[:, None], 0, 1)
    everywhere = np.ones(frame.shape[:2], bool)
    after = NORMALISATION(frame[None])[0]
    mean, spread = field_statistics([(after, everywhere)])
    assert mean == pytest.approx(NORMALISATION.mean, abs=0.01)
    own = np.array(field_statistics([(frame, everywhere)])[1])
    assert np.all(np.abs(np.log(np.array(spread) / NORMALISATION.spread)) < np.abs(np.log(own / NORMALISATION.spread)))
    left = [p[:64].mean((0, 1)) - p[-64:].mean((0, 1)) for p in (after, frame)]
    assert np.all(np.abs(left[0]) < 0.3 * np.abs(left[1]))


def test_field_normalisation_is_for_colour():
    with pytest.raises(ValueError, match="for colour pictures"):
        NORMALISATION(camera())
    with pytest.raises(ValueError, match="no good pictures"):
        field_statistics([])


def test_luminance_has_the_weights_of_rec_709():
    frame = np.array([[[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]]], np.float32)
    np.testing.assert_allclose(luminance(frame)[0], [0.2125, 0.7154, 0.0721, 1.0], atol=1e-6)
    assert LUMA.sum() == pytest.approx(1)


def test_retinex_takes_the_shading_away():
    shade = np.linspace(0.25, 1, 256, dtype=np.float32)
    frames = (camera() * 0.8 + 0.1) * shade[:, None]
    after = MultiScaleRetinex(strength=1.0)(frames)

    def left_to_right(picture):
        return picture[0, :, :64].mean() / picture[0, :, -64:].mean()

    wanted = left_to_right(camera() * 0.8 + 0.1)
    assert abs(left_to_right(after) - wanted) < 0.5 * abs(left_to_right(frames) - wanted)


def test_a_blur_on_a_reduced_grid_is_the_blur():
    from scipy.ndimage import gaussian_filter

    plane = camera()[0, ..., 0]
    everywhere = np.ones(plane.shape, bool)
    direct, count = (gaussian_filter(x, 40, mode="constant") for x in (plane, everywhere.astype(np.float32)))
    direct = direct / count
    assert np.abs(blur_within(plane, everywhere, 40) - direct).max() < 0.01
    inside = np.zeros(plane.shape, bool)
    inside[:, :128] = True
    shut = np.where(inside, np.float32(0.5), np.float32(0))
    np.testing.assert_allclose(blur_within(shut, inside, 20)[:, :128], 0.5, atol=1e-3)


def test_a_method_is_built_from_a_recipe_s_parameters():
    assert build_conventional("clahe", {"clip_limit": 3, "strength": 0.5}) == Clahe(clip_limit=3, strength=0.5)
    assert build_conventional("retinex", {"sigmas": [10, 50]}) == MultiScaleRetinex(sigmas=(10, 50))
    assert build_conventional("identity", {}) == Identity()
    values = {"mean": list(NORMALISATION.mean), "spread": list(NORMALISATION.spread)}
    assert build_conventional("field-normalisation", values) == NORMALISATION


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("sharpen", {}),
        ("clahe", {"clip": 2}),
        ("field-normalisation", {}),
        ("field-normalisation", {"mean": [0.5, 0.3], "spread": [0.1, 0.1, 0.1]}),
        ("field-normalisation", {"mean": [0.5, 0.3, 0.1], "spread": [0.1, 0.1, 0.0]}),
        ("field-normalisation", {"mean": [0.5, 0.3, 0.1], "spread": 0.1}),
        ("clahe", {"clip_limit": 0.01}),
        ("clahe", {"tiles": "many"}),
        ("clahe", {"spec": None}),
        ("retinex", {"sigmas": []}),
        ("identity", {"strength": 1}),
    ],
)
def test_a_wrong_parameter_is_a_recipe_error(method, parameters):
    with pytest.raises(RecipeError, match="enhancer"):
        build_conventional(method, parameters)
