"""The degradation of endoscopic frames: seeded, inside the field of view alone, each part as its formula says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medenhance_dicom.training.degradation import (
    DEGRADATIONS,
    degrade_endoscopy,
)
from medenhance_dicom.training.degradation.simple import bleed_chroma, blur_inside, endoscope_field, interlace, lamp

SIDE = 192
Y, X = np.mgrid[:SIDE, :SIDE]


@pytest.fixture(scope="module")
def frame():
    """A round field with folds, a dark lumen, a highlight; writing and a green inset in the black surround."""
    rng = np.random.default_rng(0)
    picture = np.zeros((SIDE, SIDE, 3), np.float32)
    inside = (Y - 96) ** 2 + (X - 108) ** 2 < 80**2
    folds = 0.15 * np.sin(X / 7) * np.cos(Y / 9) + 0.02 * rng.standard_normal((SIDE, SIDE))
    picture[inside] = np.clip(np.array([0.7, 0.42, 0.35]) + folds[..., None], 0.15, 1)[inside]
    picture[(Y - 100) ** 2 + (X - 100) ** 2 < 15**2] = 0.04
    picture[70:74, 130:133] = 1
    writing = np.zeros((SIDE, SIDE), bool)
    writing[8:14, 4:24:3] = writing[20:26, 4:20:3] = True
    picture[writing] = 0.9
    picture[176:188, 3:20] = [0.1, 0.7, 0.2]
    return picture, inside


def test_the_field_holds_the_lumen_and_leaves_writing_and_inset_out(frame):
    picture, inside = frame
    field = endoscope_field(picture)
    assert not (field & ~inside).any()
    assert field.sum() > 0.97 * inside.sum()
    assert field[100, 100]


@pytest.mark.parametrize("seed", range(12))
def test_what_lies_outside_the_field_stays_bit_for_bit(frame, seed):
    picture, inside = frame
    worse = degrade_endoscopy(picture, np.random.default_rng(seed))
    assert np.array_equal(worse[~inside], picture[~inside])
    assert np.abs(worse - picture)[inside].mean() > 0.005


def test_a_seed_gives_one_picture(frame):
    first, again, other = (DEGRADATIONS["endoscopy"](frame[0], np.random.default_rng(s)) for s in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("shape", [(65, 47), (8, 8), (128, 256)])
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_any_size_and_level_gives_unit_float32(shape, level):
    picture = np.full((*shape, 3), level, np.float32)
    for seed in range(8):
        worse = degrade_endoscopy(picture, np.random.default_rng(seed))
        assert worse.shape == picture.shape
        assert worse.dtype == np.float32
        assert 0 <= worse.min() <= worse.max() <= 1


def test_the_input_is_not_written_to(frame):
    before = frame[0].copy()
    degrade_endoscopy(frame[0], np.random.default_rng(3))
    assert np.array_equal(frame[0], before)


def test_noise_is_stronger_in_the_dark():
    picture = np.full((64, 128, 3), 0.2, np.float32)
    picture[:, 64:] = 0.7
    dark, bright = [], []
    for seed in range(40):
        worse = degrade_endoscopy(picture, np.random.default_rng(seed))[:, :, 1]
        fine = worse[::2, ::2] - worse[::2, 1::2]
        dark.append(fine[:, 4:28].std())
        bright.append(fine[:, 36:60].std())
    assert np.mean(dark) > 1.2 * np.mean(bright)


def test_odd_lines_come_from_the_side_and_never_from_outside():
    picture = np.arange(4 * 10 * 3, dtype=np.float32).reshape(4, 10, 3)
    inside = np.ones((4, 10), bool)
    inside[:, :3] = False
    out = interlace(picture, inside, 2)
    assert np.array_equal(out[::2], picture[::2])
    assert np.array_equal(out[1::2, 5:], picture[1::2, 3:8])
    assert np.array_equal(out[1::2, 2:5], picture[1::2, 2:5])  # what would come in lies outside
    assert np.array_equal(interlace(picture, inside | True, -2)[1::2, :8], picture[1::2, 2:])


def test_bled_colours_keep_their_luma():
    rng = np.random.default_rng(0)
    picture = rng.random((6, 20, 3)).astype(np.float32)
    picture[:, 8:12] = [0.9, 0.1, 0.1]
    luma = np.array([0.299, 0.587, 0.114])
    out = bleed_chroma(picture, 5)
    assert np.allclose(out @ luma, picture @ luma, atol=1e-6)
    redness = (picture - (picture @ luma)[..., None])[..., 0]
    assert np.allclose((out[..., 0] - out @ luma)[:, 10], redness[:, 8:13].mean(axis=1), atol=1e-6)
    grey = np.repeat(picture[..., :1], 3, axis=2)
    assert np.allclose(bleed_chroma(grey, 5), grey, atol=1e-6)


def test_the_blur_takes_nothing_from_outside():
    weight = np.zeros((40, 40), np.float32)
    weight[10:30, 10:30] = 1
    picture = np.where(weight[..., None] > 0, np.float32([0.6, 0.3, 0.2]), np.float32(0))
    out = blur_inside(picture, weight, 1.5)
    assert np.allclose(out[10:30, 10:30], [0.6, 0.3, 0.2], atol=1e-5)
    picture[20, 20] = 1
    assert blur_inside(picture, weight, 1.5)[20, 20, 2] < 0.3


def test_the_lamp_is_off_the_centre_and_leaves_some_light():
    fields = [lamp(np.random.default_rng(seed), 60, 80) for seed in range(20)]
    assert all(0.12 <= field.min() < field.max() <= 1 for field in fields)
    brightest = np.array([np.unravel_index(field.argmax(), field.shape) for field in fields]) / [59, 79]
    assert brightest.std(axis=0).min() > 0.1
    assert 0.19 <= brightest.min() <= brightest.max() <= 0.81


@pytest.mark.parametrize(("folder", "least", "most"), [("kvasir_seg_256", 0.6, 0.95), ("cvc_clinicdb_256", 0.5, 0.85)])
def test_real_frames_get_worse_inside_their_field(data_folder, folder, least, most):
    files = sorted((data_folder / "endoscopy" / folder / "images").iterdir())[::20][:7]
    scores = []
    for i, file in enumerate(files):
        picture = np.asarray(Image.open(file).convert("RGB"), np.float32) / 255
        field = endoscope_field(picture)
        assert least < field.mean() < most
        worse = degrade_endoscopy(picture, np.random.default_rng(i))
        assert np.array_equal(worse[~field], picture[~field])
        scores.append(10 * np.log10(1 / np.square(worse - picture)[field].mean()))
    assert 12 < np.mean(scores) < 26
    assert max(scores) < 40


def test_every_model_is_documented():
    text = (Path(__file__).parent.parent / "docs" / "degradation.md").read_text()
    for name in DEGRADATIONS:
        assert f"`{name}`" in text
