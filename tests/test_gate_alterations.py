"""Alterations: what they change, where, by how much, and that a seed repeats them."""

import numpy as np
import pytest
from skimage import data
from skimage.color import rgb2lab

from medenhance_dicom.gate.alterations import (
    COLOUR_CONTRAST,
    COLOUR_ONLY,
    EQUAL_LIGHT,
    KINDS,
    LESION_CONTRAST,
    SIZES,
    VESSEL_CONTRAST,
    alter,
)
from medenhance_dicom.lassim import GREY as WEIGHTS

GREY = (data.camera()[60:252, 150:342] / 255).astype(np.float32)[..., None]
COLOUR = (data.retina()[300:1068:4, 300:1068:4] / 255).astype(np.float32)
PICTURES = {"grey": GREY, "colour": COLOUR}


def made(kind, picture, size, seed=0, **more):
    return alter(kind, picture, (picture**0.8).astype(np.float32), size, np.random.default_rng(seed), **more)


@pytest.mark.parametrize(
    ("kind", "name"), [(k, n) for k in KINDS for n in PICTURES if k not in COLOUR_ONLY or n == "colour"]
)
def test_only_one_picture_changes_and_only_in_the_truth_and_its_rim(kind, name):
    picture = PICTURES[name]
    tried = (made(kind, picture, SIZES[kind][-1], seed) for seed in range(9))
    found = next(altered for altered in tried if altered is not None)
    source_changes = kind in ("erased lesion", "faded lesion", "added vessel")
    before, after = np.abs(found.before - picture), np.abs(found.after - picture**0.8)
    changed, kept = (before, after) if source_changes else (after, before)
    assert found.kind == kind
    assert kept.max() < 1e-6
    assert changed[found.truth].max() > 0.03
    assert found.before.dtype == found.after.dtype == np.float32
    assert min(found.before.min(), found.after.min()) >= 0
    assert max(found.before.max(), found.after.max()) <= 1
    if kind not in ("warp", "inversion"):
        assert changed[~found.truth].sum() < 0.35 * changed.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_repeats_it(kind):
    size = SIZES[kind][-1]
    picture = COLOUR if kind in COLOUR_ONLY else GREY
    seeds = [seed for seed in range(9) if made(kind, picture, size, seed) is not None][:2]
    one, two, other = (made(kind, picture, size, seed) for seed in (seeds[0], *seeds))
    np.testing.assert_array_equal(one.after, two.after)
    np.testing.assert_array_equal(one.before, two.before)
    if kind != "inversion":
        assert not (np.array_equal(one.after, other.after) and np.array_equal(one.before, other.before))


@pytest.mark.parametrize("radius", [4, 6, 12])
@pytest.mark.parametrize("name", PICTURES)
def test_a_lesion_has_its_radius_and_its_contrast(name, radius):
    picture = PICTURES[name]
    for times in (2, 4):
        frame, unit = picture.repeat(times, 0).repeat(times, 1), times / 2
        found = made("invented lesion", frame, radius, contrast=0.2)
        change = np.abs(found.after - frame**0.8)
        light = change[..., 0] if name == "grey" else np.abs((found.after - frame**0.8) @ np.array(WEIGHTS))
        assert found.truth.sum() == pytest.approx(np.pi * (radius * unit) ** 2, rel=0.15)
        assert light.max() == pytest.approx(0.2, abs=0.021)
        assert found.contrast == pytest.approx(light[light > 0.18].mean(), abs=0.02)


@pytest.mark.parametrize("kind", COLOUR_ONLY)
def test_a_lesion_of_colour_alone_keeps_its_lightness_and_is_as_far_as_it_says(kind):
    assert made(kind, GREY, 8) is None
    tints = set()
    for seed in range(8):
        found = made(kind, COLOUR, 8, seed)
        changed, honest = (found.before, COLOUR) if kind == "faded lesion" else (found.after, COLOUR**0.8)
        moved = (rgb2lab(changed) - rgb2lab(honest))[found.truth]
        assert np.abs(moved[:, 0]).mean() < EQUAL_LIGHT
        distance = np.linalg.norm(moved[:, 1:], axis=1)
        assert 100 * COLOUR_CONTRAST[0] <= distance.max() < 100 * COLOUR_CONTRAST[1] + 5
        assert distance.mean() == pytest.approx(100 * found.contrast, rel=0.25)
        tints.add(int(np.degrees(np.arctan2(*moved[:, :0:-1].mean(0))) // 60))
    assert len(tints) > 1  # red, yellow, bluish, pale


def test_contrasts_are_drawn_from_the_stated_range():
    drawn = [made("invented lesion", GREY, 8, seed).contrast for seed in range(30)]
    assert 0.85 * LESION_CONTRAST[0] < min(drawn) < 0.15
    assert 0.25 < max(drawn) <= LESION_CONTRAST[1]


def test_an_erased_segment_has_its_length_and_was_visible():
    found = made("erased vessel", COLOUR, 30, 3)
    assert found.contrast >= VESSEL_CONTRAST
    rows, columns = np.nonzero(found.truth)
    assert 15 < np.hypot(np.ptp(rows), np.ptp(columns)) < 45


def test_nothing_changes_outside_and_what_does_not_fit_is_not_made():
    inside = np.zeros(GREY.shape[:2], bool)
    inside[100:160, 100:160] = True
    for kind in ("warp", "inversion", "swapped patch"):
        found = made(kind, GREY, 12, inside=inside)
        assert np.abs(found.after - GREY**0.8)[~inside].max() < 1e-6
        assert not found.truth[~inside].any()
    assert made("invented lesion", GREY, 70, inside=inside) is None
    assert made("erased vessel", np.full_like(GREY, 0.5), 20) is None
    with pytest.raises(KeyError):
        made("nothing", GREY, 4)
