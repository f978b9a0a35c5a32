"""Blending: the source comes back where structure changed, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
from skimage import data

from medenhance_dicom.gate import FrameScores, Limit, Thresholds, examine
from medenhance_dicom.gate.blend import FEATHER, blend, objection_map, source_weight

PICTURE = (data.camera()[64:448, 64:448] / 255).astype(np.float32)[..., None]  # (384, 384, 1)


def with_lesion(picture, at=(180, 120), radius=10, depth=0.3):
    y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
    distance = np.hypot(y - at[0], x - at[1])
    blob = depth / (1 + np.exp((distance - radius) / 0.7))
    return np.clip(picture - blob[..., None], 0, 1).astype(np.float32), distance


def limits_of(before, after, *, share=0.2):
    """A limit that this pair exceeds five times over."""
    value = examine(before, after).checks["local"]
    return Thresholds(-1, -1, {"local": Limit(share * value, share * value)})


def test_the_weight_is_one_in_the_core_and_a_gaussian_of_the_distance_beside_it():
    core = np.zeros((384, 200), bool)
    core[100:110, 50:60] = True
    weight = source_weight(core)
    assert weight[core].min() == 1
    assert weight[104, 59 + 3] == pytest.approx(np.exp(-((3 / FEATHER) ** 2) / 2), rel=1e-6)
    assert weight[104, 59 + 10] == 0  # beyond three standard deviations
    assert weight.max() == 1
    assert not source_weight(np.zeros((9, 9), bool)).any()


def test_the_seam_grows_with_the_frame():
    core = np.zeros((768, 768), bool)
    core[300, 300] = True
    assert source_weight(core)[300, 306] == pytest.approx(np.exp(-0.5), rel=1e-6)


def test_without_a_limit_there_is_no_map_and_nothing_comes_back():
    after, _ = with_lesion(PICTURE)
    assert objection_map(PICTURE, after, Thresholds(0.5, 0.6)) is None
    assert blend(PICTURE, after, FrameScores(0.9, {"local": 99.0}), Thresholds(0.5, 0.6)) is None


def test_a_frame_within_the_limit_is_left_as_it_is():
    limits = Thresholds(0.5, 0.6, {"local": Limit(1, 2)})
    assert blend(PICTURE, PICTURE, FrameScores(1.0, {"local": 2.0}), limits) is None


@pytest.mark.parametrize("colour", [False, True])
def test_an_invented_lesion_goes_and_the_rest_stays_enhanced(colour):
    before = (data.astronaut()[:384, :384] / 255).astype(np.float32) if colour else PICTURE
    honest = before**0.8
    after, distance = with_lesion(honest)
    limits = limits_of(before, after)
    blended = blend(before, after, examine(before, after), limits)
    assert blended is not None
    inside = distance < 8
    assert np.abs(blended.after - before)[inside].max() < 0.02
    far = blended.weight == 0
    assert far.mean() > 0.8
    assert np.array_equal(blended.after[far], after[far])
    assert 0 < blended.share < 0.1
    assert blended.scores.checks["local"] <= limits.checks["local"].withhold


def test_a_global_change_is_blended_bounded_and_still_judged():
    after = np.ascontiguousarray(PICTURE[::-1])
    blended = blend(PICTURE, after, examine(PICTURE, after), limits_of(PICTURE, after))
    assert blended is not None
    assert blended.share > 0
    assert np.isfinite(blended.after).all()
    assert blended.scores == examine(PICTURE, blended.after)
