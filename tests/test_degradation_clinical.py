"""Degradations as they happen in clinics: seeded, inside the field, none at strength 0; they say what can be seen."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_erosion, gaussian_filter
from skimage.data import retina

from medenhance_dicom.training.degradation import (
    DEGRADATIONS,
    MODELS,
    ordinary_eye,
)
from medenhance_dicom.training.degradation.optics import WIDE, disc_blur, line_blur
from medenhance_dicom.training.degradation.scene import Scene, fundus_field
from medenhance_dicom.training.degradation.sensor import grain

MIXES = ["fundus-clinical", "fundus-other", "endoscopy-clinical", "endoscopy-other"]
SIDE = 96
Y, X = np.mgrid[:SIDE, :SIDE]


@pytest.fixture(scope="module")
def eye():
    """A drawn fundus with vessels and a disc, (96, 96, 3), and its round field."""
    field = (Y - 48) ** 2 + (X - 45) ** 2 < 43**2
    vessels = np.cos(X / 5 + np.sin(Y / 15)) > 0.9
    disc = np.exp(-((Y - 45) ** 2 + (X - 70) ** 2) / 60)
    picture = np.array([0.6, 0.3, 0.12]) * (1 - 0.4 * vessels[..., None]) + disc[..., None] * [0.3, 0.35, 0.25]
    picture = np.clip(picture + 0.005 * np.random.default_rng(0).standard_normal(picture.shape), 0, 1)
    return np.where(field[..., None], picture, 0.01 * (X % 2)[..., None]).astype(np.float32), field


@pytest.fixture(scope="module")
def photograph():
    """A real one, CC0, at 192 pixels."""
    return np.asarray(Image.fromarray(retina()).resize((192, 192)), np.float32) / 255


def detail(picture, field):
    """The spread of fine relative contrast in green, away from the field's edge."""
    green, field = picture[..., 1], binary_erosion(field, iterations=12)
    level = gaussian_filter(green, 4)
    return ((gaussian_filter(green, 1) - level) / np.maximum(level, 0.02))[field].std()


@pytest.mark.parametrize("name", MODELS)
def test_a_seed_gives_one_picture(eye, name):
    first, again, *others = (MODELS[name].degrade(eye[0], np.random.default_rng(s), eye[1]) for s in (5, 5, 6, 7, 8))
    assert np.array_equal(first.picture, again.picture)
    assert np.array_equal(first.seen, again.seen)
    assert first.strength == again.strength
    assert any(not np.array_equal(first.picture, other.picture) for other in others)


@pytest.mark.parametrize("name", MODELS)
def test_the_surround_stays_and_nothing_happens_at_strength_0(eye, name):
    picture, field = eye
    before = picture.copy()
    for seed in range(3):
        worse = MODELS[name].degrade(picture, np.random.default_rng(seed), field)
        assert np.array_equal(worse.picture[~field], picture[~field])
        assert (worse.seen[~field] == 1).all()
        same = MODELS[name].degrade(picture, np.random.default_rng(seed), field, strength=0)
        assert np.array_equal(same.picture, picture)
        assert (same.seen == 1).all()
        assert same.strength == 0
    assert np.array_equal(picture, before)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_changes_the_field_and_says_what_is_seen(eye, name):
    picture, field = eye
    changes, seen = [], []
    for seed in range(6):
        worse = MODELS[name].degrade(picture, np.random.default_rng(seed), field)
        assert worse.picture.dtype == worse.seen.dtype == np.float32
        assert 0 <= worse.seen.min() <= worse.seen.max() <= 1
        assert 0 < worse.strength <= 1
        changes.append(np.abs(worse.picture - picture)[field].mean())
        seen.append(worse.seen[field].mean())
    assert np.mean(changes) > 0.0003
    if name not in ("fundus-lens-colour", "fundus-camera-colours", "endoscopy-camera-colours"):
        assert np.mean(seen) < 0.999


@pytest.mark.parametrize("name", MODELS)
def test_a_stronger_draw_is_worse_and_less_seen(eye, name):
    picture, field = eye
    weak, strong = (
        [MODELS[name].degrade(picture, np.random.default_rng(seed), field, strength=s) for seed in range(6)]
        for s in (0.15, 1.0)
    )
    assert np.mean([np.abs(w.picture - picture).mean() for w in weak]) < 0.75 * np.mean(
        [np.abs(w.picture - picture).mean() for w in strong]
    )
    assert np.mean([w.seen.mean() for w in weak]) >= np.mean([w.seen.mean() for w in strong])


@pytest.mark.parametrize("name", MIXES)
@pytest.mark.parametrize("shape", [(65, 47), (8, 8), (64, 128)])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_any_size_and_level_gives_unit_float32(name, shape, level):
    picture = np.full((*shape, 3), level, np.float32)
    for seed in range(4):
        worse = MODELS[name].degrade(picture, np.random.default_rng(seed))
        assert worse.picture.shape == picture.shape
        assert worse.seen.shape == shape
        assert worse.picture.dtype == np.float32
        assert 0 <= worse.picture.min() <= worse.picture.max() <= 1


def test_what_is_said_to_be_seen_is_what_is_left_of_fine_contrast(photograph):
    field = fundus_field(photograph)
    before = detail(photograph, field)
    draws = [MODELS["fundus-clinical"].degrade(photograph, np.random.default_rng(s), field) for s in range(24)]
    left = np.array([detail(d.picture, field) for d in draws]) / before
    seen = np.array([d.seen[field].mean() for d in draws])
    assert np.corrcoef(left, seen)[0, 1] > 0.7
    # Real poor photographs of one camera have half of the vessel depth of good ones.
    assert 0.35 < left.mean() < 0.65
    assert 0.25 < seen.mean() < 0.6


def test_the_field_of_a_photograph_is_found_without_its_surround(photograph, eye):
    assert 0.6 < fundus_field(photograph).mean() < 0.85
    found = fundus_field(eye[0])
    assert (found != eye[1]).mean() < 0.02
    assert fundus_field(np.zeros((40, 50, 3), np.float32)).all()


def test_an_ordinary_eye_keeps_its_fine_contrast_and_its_surround(photograph):
    field = fundus_field(photograph)
    before, level = detail(photograph, field), photograph[field].mean()
    eyes = [ordinary_eye(photograph, np.random.default_rng(s), field) for s in range(24)]
    assert all(np.array_equal(e[~field], photograph[~field]) for e in eyes)
    assert all(0.6 < detail(e, field) / before < 1.6 for e in eyes)
    assert 3 <= sum(e[field].mean() < 0.75 * level for e in eyes) <= 16


def test_a_disc_and_a_line_keep_the_mean_and_take_nothing_from_outside():
    field = np.zeros((48, 48), bool)
    field[8:40, 8:40] = True
    flat = np.where(field[..., None], np.float32([0.6, 0.3, 0.2]), np.float32(0)).astype(np.float32)
    for blurred in (disc_blur(flat, Scene(field), 3.3), line_blur(flat, Scene(field), 5, 0.7)):
        assert np.allclose(blurred[field], [0.6, 0.3, 0.2], atol=1e-4)
    point = np.zeros((41, 41, 3), np.float32)
    point[20, 20] = 1
    everywhere = Scene(np.ones((41, 41), bool))
    distance = np.hypot(*(np.mgrid[:41, :41] - 20))
    for radius in (1.5, 2.5, 4.0, 8.0):
        spread = disc_blur(point, everywhere, radius)[..., 0]
        assert spread.sum() == pytest.approx(1, abs=1e-3)
        assert (spread * distance**2).sum() == pytest.approx((radius + 0.5) ** 2 / 2, rel=0.25)
        if radius <= WIDE:
            assert spread[distance > radius + 1.5].max() < 1e-5
    line = line_blur(point, everywhere, 6, 0.0)[..., 1]
    assert line[20, 17:24].sum() == pytest.approx(1, abs=1e-5)


def test_grain_has_unit_variance_and_channels_of_their_own():
    noise = grain(np.random.default_rng(1), (128, 128), 0.3)
    assert noise.std(axis=(0, 1)) == pytest.approx([1, 1, 1], abs=0.05)
    alike = np.corrcoef(noise.reshape(-1, 3).T)
    assert np.allclose(alike[np.triu_indices(3, 1)], 0.09, atol=0.05)


# Mean, spread and three pixels of the picture below, degraded with seeds 0 to 5.
FIRST_MODELS = {
    "fundus": [
        [0.237507, 0.23376, 0.601561, 0.315194, 0.121111],
        [0.206349, 0.173947, 0.4178, 0.278182, 0.11098],
        [0.242738, 0.235509, 0.666394, 0.318557, 0.11464],
        [0.254258, 0.227412, 0.615352, 0.319073, 0.13598],
        [0.175426, 0.174351, 0.409913, 0.235832, 0.084647],
        [0.256412, 0.212183, 0.555755, 0.329288, 0.142774],
    ],
    "endoscopy": [
        [0.184398, 0.184153, 0.525347, 0.267124, 0.088154],
        [0.269263, 0.206259, 0.54038, 0.386753, 0.2533],
        [0.178818, 0.186045, 0.542052, 0.269365, 0.069757],
        [0.124942, 0.107204, 0.284042, 0.18241, 0.115148],
        [0.2761, 0.275368, 0.73369, 0.313868, 0.146352],
        [0.139015, 0.141275, 0.457055, 0.183348, 0.078327],
    ],
}


@pytest.mark.parametrize("name", FIRST_MODELS)
def test_the_models_that_weights_were_trained_on_give_what_they_gave(name):
    y, x = np.mgrid[:96, :96]
    texture = np.array([0.6, 0.3, 0.1], np.float32) + 0.002 * (x % 13)[..., None].astype(np.float32)
    picture = np.where(((y - 48) ** 2 + (x - 48) ** 2 < 45**2)[..., None], texture, 0).astype(np.float32)
    for seed, expected in enumerate(FIRST_MODELS[name]):
        worse = DEGRADATIONS[name](picture, np.random.default_rng(seed))
        found = [worse.mean(dtype=np.float64), worse.std(dtype=np.float64), worse[48, 40, 0], worse[30, 60, 1]]
        # The last bits of exp and sin are the machine's.
        assert np.allclose([*found, worse[70, 50, 2]], expected, atol=2e-6)
