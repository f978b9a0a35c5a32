"""The gate's checks: honest enhancement passes them, altered structure does not, and they say where."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage import data

from medenhance_dicom.conventional import Clahe, MultiScaleRetinex
from medenhance_dicom.gate import CHECKS, FrameScores, Region, examine, structure_map

GREY = (data.camera()[60:252, 150:342] / 255).astype(np.float32)[..., None]  # (192, 192, 1)
COLOUR = (data.retina()[400:784:2, 400:784:2] / 255).astype(np.float32)  # (192, 192, 3)
PICTURES = {"grey": GREY, "colour": COLOUR}
PLACES = {"grey": (40, 150), "colour": (120, 60)}


def disk(shape, centre, radius):
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.clip(radius + 0.5 - np.hypot(y - centre[0], x - centre[1]), 0, 1).astype(np.float32)[..., None]


def clahe(x):
    return Clahe()(x[None])[0]


HONEST = {
    "gamma 0.6": lambda x: x**0.6,
    "gamma 1.6": lambda x: x**1.6,
    "gain and offset": lambda x: 0.7 * x + 0.2,
    "clahe": clahe,
    "retinex": lambda x: MultiScaleRetinex()(x[None])[0],
    "denoise": lambda x: gaussian_filter(x, (0.7, 0.7, 0)),
    "sharpen": lambda x: np.clip(2 * x - gaussian_filter(x, (1.5, 1.5, 0)), 0, 1),
    "light": lambda x: np.clip(x * np.linspace(0.6, 1.1, x.shape[1], dtype=np.float32)[None, :, None], 0, 1),
}


@pytest.mark.parametrize("name", PICTURES)
def test_an_unchanged_frame_has_nothing_to_object_to(name):
    scores = examine(PICTURES[name], PICTURES[name].copy())
    assert scores == FrameScores(1.0, {"local": 0, "displacement": 0, "inversion": 0, "blur": 1, "colour": 0})
    assert not structure_map(PICTURES[name], PICTURES[name]).any()


@pytest.mark.slow
@pytest.mark.parametrize("how", HONEST)
@pytest.mark.parametrize("name", PICTURES)
def test_a_lesion_stands_out_of_any_honest_enhancement(name, how):
    before = PICTURES[name]
    lesion = 0.2 * disk(before.shape, PLACES[name], 5)
    after = HONEST[how](before).astype(np.float32)
    honest = examine(before, after).checks["local"]
    assert honest < 2
    for x, y in ((before, np.clip(after - lesion, 0, 1)), (np.clip(before - lesion, 0, 1), after)):
        scores = examine(x, y)
        assert scores.checks["local"] > max(2.0, 1.5 * honest)
        region = scores.regions["local"]
        assert region.top - 2 <= PLACES[name][0] <= region.bottom + 2
        assert region.left - 2 <= PLACES[name][1] <= region.right + 2


def test_a_lesion_of_colour_alone_stands_out():
    spot = disk(COLOUR.shape, PLACES["colour"], 6) * np.array(
        [0.15, -0.0446, 0], np.float32
    )  # keeps Rec. 709 luminance
    after = clahe(COLOUR)
    assert examine(COLOUR, after + spot).checks["local"] > 1.5 * examine(COLOUR, after).checks["local"]


@pytest.mark.parametrize("factor", [2, 4])
def test_large_frames_are_judged_by_the_same_measure(factor):
    before = GREY.repeat(2, 0).repeat(2, 1)
    after = np.clip(before - 0.2 * disk(before.shape, (80, 300), 5), 0, 1)
    small_scores = examine(before, after)
    large_scores = examine(*(x.repeat(factor, 0).repeat(factor, 1) for x in (before, after)))
    assert large_scores.checks == pytest.approx(small_scores.checks, rel=1e-3)
    small, box = small_scores.regions["local"], large_scores.regions["local"]
    assert box == Region(*(factor * edge for edge in (small.top, small.left, small.bottom, small.right)))


def test_what_lies_outside_does_not_object():
    inside = np.ones(GREY.shape[:2], bool)
    inside[:, 100:] = False
    after = np.clip(GREY - 0.3 * disk(GREY.shape, PLACES["grey"], 8), 0, 1)
    scores = examine(GREY, after, inside=inside)
    assert scores.checks["local"] < 0.1 < 2 < examine(GREY, after).checks["local"]
    assert not structure_map(GREY, after, inside)[:, 110:].any()


def test_moved_structure_is_seen_and_changed_tones_are_not():
    v, u = np.mgrid[:192, :192].astype(float)
    moved_odds = []
    for size in (0, 1, 3):
        where = [v + size * np.sin(u / 20), u + size * np.cos(v / 20)]
        moved = map_coordinates(clahe(GREY)[..., 0], where, order=3, mode="nearest")[..., None]
        moved_odds.append(examine(GREY, np.clip(moved, 0, 1).astype(np.float32)).checks["displacement"])
    assert moved_odds[0] < 0.7 < moved_odds[1] < moved_odds[2]


@pytest.mark.parametrize("name", PICTURES)
def test_a_changed_sign_of_contrast_is_seen_in_the_frame_and_in_a_region(name):
    before, after = PICTURES[name], clahe(PICTURES[name])
    assert examine(before, after).checks["inversion"] < 1.1
    assert examine(before, 1 - after).checks["inversion"] > 1.5
    part = disk(before.shape, (100, 90), 30)
    turned = after + part * 2 * (gaussian_filter(after, (20, 20, 0)) - after)
    assert examine(before, np.clip(turned, 0, 1).astype(np.float32)).checks["inversion"] > 1.2


def test_blur_is_told_from_denoising():
    noisy = (GREY + np.random.default_rng(0).normal(0, 0.01, GREY.shape)).clip(0, 1).astype(np.float32)
    kept = examine(noisy, GREY).checks["blur"]
    lost = examine(noisy, gaussian_filter(GREY, (2, 2, 0))).checks["blur"]
    assert kept == pytest.approx(1, abs=0.05)
    assert lost > 1.3


@pytest.mark.parametrize("shape", [(32, 32, 1), (33, 401, 3), (200, 35, 1), (97, 61, 3), (385, 383, 1)])
def test_any_shape_has_all_checks_and_a_map_of_its_size(shape):
    rng = np.random.default_rng(3)
    before = gaussian_filter(rng.random(shape), (2, 2, 0)).astype(np.float32)
    after = np.clip(before + 0.2 * disk(shape, (shape[0] // 2, shape[1] // 2), 3), 0, 1).astype(np.float32)
    scores, found = examine(before, after), structure_map(before, after)
    assert set(scores.checks) == set(CHECKS)
    assert found.shape == shape[:2]
    assert found.dtype == np.float32
    assert found.max() == pytest.approx(scores.checks["local"])


def test_frames_below_32_pixels_have_lassim_alone():
    x = np.random.default_rng(0).random((31, 64, 1)).astype(np.float32)
    assert examine(x, x**0.5).checks == {}
    assert not structure_map(x, x**0.5).any()


def test_a_frame_with_nothing_inside_has_nothing_to_object_to():
    nothing = np.zeros(GREY.shape[:2], bool)
    checks = examine(GREY, 1 - GREY, inside=nothing).checks
    assert checks == {"local": 0, "displacement": 0, "inversion": 0, "blur": 1, "colour": 0}
