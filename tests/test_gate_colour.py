"""Colour alone: what smooth fields explain leaves nothing, a spot of another colour is seen where it is."""

import shutil

import numpy as np
import pytest
import torch
from skimage import data
from skimage.color import rgb2lab

from medenhance_dicom.calibration.fields import smooth_fields
from medenhance_dicom.gate import colour, examine, structure_map
from medenhance_dicom.gate.alterations import COLOUR_ONLY, alter
from medenhance_dicom.gate.blend import blend
from medenhance_dicom.gate.verdict import Limit, Thresholds
from medenhance_dicom.gate.working import prepare
from medenhance_dicom.manifest import learned_pictures, load_colour_detector, load_manifest, verify_all
from medenhance_dicom.networks import ColourDetector

SOURCE = data.retina()[230:1190, 230:1190].reshape(320, 3, 320, 3, 3).mean((1, 3), dtype=np.float32) / 255
EVERYWHERE = np.ones(SOURCE.shape[:2], bool)


@pytest.fixture(scope="module")
def honest():
    return smooth_fields(SOURCE, EVERYWHERE, np.random.default_rng(2))


def test_lab_is_scikit_images():
    found = colour._lab(torch.from_numpy(SOURCE).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(found, rgb2lab(SOURCE), atol=0.02)


def test_planes_of_a_pair_give_the_picture_back():
    pair = prepare(SOURCE, SOURCE, None)
    np.testing.assert_allclose(colour._rgb(pair.before).permute(1, 2, 0).numpy(), SOURCE, atol=1e-6)


def left_over(after):
    """How far a*, b* of a result lie from those of the source after the fitted change, (h, w)."""
    with torch.inference_mode():
        return (10 * colour.planes(prepare(SOURCE, after, None))[1:3]).norm(dim=0).numpy()


def test_a_smooth_change_is_explained_and_a_spot_is_not(honest):
    changed = np.abs(rgb2lab(honest) - rgb2lab(SOURCE))[..., 1:].mean()
    quiet = left_over(honest)
    assert np.median(quiet) < changed / 6
    assert np.quantile(quiet, 0.99) < changed
    spot = alter("recoloured lesion", SOURCE, honest, 10, np.random.default_rng(1), contrast=0.2)
    loud = left_over(spot.after)
    core = spot.truth[::2, ::2]
    assert np.median(loud[core]) > 10
    assert np.median(loud[~core]) < changed / 6


@pytest.mark.parametrize("size", [(33, 50), (46, 61), (50, 45)])
def test_any_frame_has_log_odds_of_each_half_pixel(size):
    network = ColourDetector(widths=(4, 6, 8)).eval()
    with torch.inference_mode():
        odds = network(torch.rand(2, colour.PLANES, *size))
    assert odds.shape == (2, 1, -(-size[0] // 2), -(-size[1] // 2))
    for factor, cell in ((1, 2), (6, 4)):  # small frames are not halved before
        frame = np.random.default_rng(0).random((factor * size[0] - 1, factor * size[1] - 1, 3), np.float32)
        pair = prepare(frame, frame**0.9, None)
        with torch.inference_mode():
            found = colour.colour_map(pair)["colour"]
        height, width = pair.inside.shape
        assert found.shape == (-(-height // cell), -(-width // cell))
        assert found.isfinite().all()


@pytest.mark.parametrize("kind", COLOUR_ONLY)
def test_a_spot_of_colour_alone_is_seen_where_it_is(honest, kind):
    limit = 1.0
    for after, seeds in ((honest, (1, 2)), (SOURCE**0.8, (3,))):
        assert structure_map(SOURCE, after, None, "colour").max() < limit
        for seed in seeds:
            altered = alter(kind, SOURCE, after, 9, np.random.default_rng(seed), contrast=0.18)
            found = structure_map(altered.before, altered.after, None, "colour")
            assert found.max() > limit
            assert altered.truth[np.unravel_index(found.argmax(), found.shape)]
            assert found[~altered.truth].mean() < 0.05 * found[altered.truth].mean()


def test_grey_frames_and_what_lies_outside_have_no_colour_to_change(honest):
    grey = SOURCE[..., 1:2]
    assert examine(grey, grey**0.5).checks["colour"] == 0
    spot = alter("recoloured lesion", SOURCE, honest, 12, np.random.default_rng(1), contrast=0.2)
    inside = ~spot.truth
    for _ in range(10):
        inside &= np.roll(inside, 1, 0) & np.roll(inside, -1, 0) & np.roll(inside, 1, 1) & np.roll(inside, -1, 1)
    found = structure_map(SOURCE, spot.after, inside, "colour")
    assert not found[spot.truth].any()
    assert found.max() < structure_map(SOURCE, spot.after, None, "colour").max()


def test_the_source_comes_back_where_colour_changed(honest):
    spot = alter("recoloured lesion", SOURCE, honest, 10, np.random.default_rng(1), contrast=0.2)
    scores = examine(SOURCE, spot.after)
    limits = Thresholds(-1, -1, {"colour": Limit(0.5 * scores.checks["colour"], 0.5 * scores.checks["colour"])})
    blended = blend(SOURCE, spot.after, scores, limits)
    assert blended is not None
    assert blended.scores.checks["colour"] < scores.checks["colour"]
    assert blended.weight[spot.truth].mean() > 0.8
    assert blended.share < 0.2


def test_its_weights_are_verified_and_optional(tmp_path, monkeypatch):
    shipped = load_manifest()
    entry = shipped.colour_detector
    (tmp_path / "weights").mkdir()
    shutil.copy(shipped.root / entry.file, tmp_path / "weights" / "c.safetensors")
    text = f'[colour_detector]\nfile = "weights/c.safetensors"\nsha256 = "{entry.sha256}"\nlicence = "none"\n'
    (tmp_path / "manifest.toml").write_text(text)
    manifest = load_manifest(tmp_path)
    assert isinstance(load_colour_detector(manifest), ColourDetector)
    assert verify_all(manifest) == {"colour_detector": None}
    assert learned_pictures(manifest)
    monkeypatch.setenv("MEDENHANCE_MODELS", str(tmp_path))
    assert set(examine(SOURCE, SOURCE**0.8).checks) == {"inversion", "blur", "colour"}
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "manifest.toml").write_text("")
    monkeypatch.setenv("MEDENHANCE_MODELS", str(tmp_path / "none"))
    assert set(examine(SOURCE, SOURCE**0.8).checks) == {"inversion", "blur"}
    assert not structure_map(SOURCE, 1 - SOURCE, None, "colour").any()
