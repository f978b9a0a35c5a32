"""What every baseline keeps, on pictures of any shape: size, type, range, field of view, sameness."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import data

from medenhance_dicom.baselines import BASELINES, Directory, build_baseline
from medenhance_dicom.baselines.filters import (
    box_mean,
    differences,
    differences_adjoint,
    guided_filter,
    resized,
    solve_smooth,
)
from medenhance_dicom.baselines.frame import relight
from medenhance_dicom.conventional import blur_within
from medenhance_dicom.enhancer import MaskedEnhancer
from medenhance_dicom.errors import InputError, RecipeError
from medenhance_dicom.masks import field_of_view
from medenhance_dicom.pyramid import enhance_pyramid

EVERY = pytest.mark.parametrize("name", BASELINES)


def colour(size=64):
    step = 512 // size
    return (data.astronaut()[::step, ::step] / 255).astype(np.float32)[None]


@EVERY
def test_shape_range_and_type_hold_for_every_size(name):
    rng = np.random.default_rng(0)
    enhancer = build_baseline(name)
    for shape in [(2, 40, 30, 3), (1, 1, 5, 1), (1, 5, 1, 3), (1, 1, 1, 3), (1, 37, 53, 1), (1, 9, 9, 3)]:
        frames = rng.random(shape, dtype=np.float32)
        before = frames.copy()
        after = enhancer(frames)
        assert after.shape == shape
        assert after.dtype == np.float32
        assert np.isfinite(after).all()
        assert after.min() >= 0
        assert after.max() <= 1
        np.testing.assert_array_equal(frames, before)
        np.testing.assert_array_equal(after, enhancer(frames))


@EVERY
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_constant_picture_stays_constant(name, channels, level):
    after = build_baseline(name)(np.full((1, 24, 31, channels), level, np.float32))
    assert np.isfinite(after).all()
    assert np.ptp(after if name != "control" else after[..., 0]) < 1e-5  # it has a colour of its own


@pytest.mark.parametrize("name", ["he", "clahe", "dcp", "ssr", "msr", "msrcr", "cane", "n4", "icn"])
def test_nothing_to_stretch_changes_nothing(name):
    frames = np.full((1, 24, 31, 3), [0.2, 0.5, 0.4], np.float32)
    for picture in (frames, frames[..., :1]):
        np.testing.assert_allclose(build_baseline(name)(picture), picture, atol=1e-6)


@EVERY
def test_pixels_outside_neither_change_nor_count(name):
    enhancer = build_baseline(name)
    assert isinstance(enhancer, MaskedEnhancer)
    frames = colour()
    y, x = np.mgrid[:64, :64]
    inside = ((y - 30) ** 2 + (x - 35) ** 2 < 24**2)[None]
    other = np.where(inside[..., None], frames, np.float32(0.9))
    after, after_other = enhancer.enhance_within(frames, inside), enhancer.enhance_within(other, inside)
    np.testing.assert_array_equal(after[~inside], frames[~inside])
    np.testing.assert_array_equal(after[inside], after_other[inside])
    assert np.abs(after - frames)[inside].mean() > 1e-3
    np.testing.assert_array_equal(enhancer.enhance_within(frames, np.zeros_like(inside)), frames)
    one = np.zeros_like(inside)
    one[0, 5, 7] = True
    assert np.isfinite(enhancer.enhance_within(frames, one)).all()


@EVERY
def test_a_frame_does_not_depend_on_its_neighbours(name):
    frames = np.concatenate([colour(), colour()[:, ::-1]])
    np.testing.assert_array_equal(build_baseline(name)(frames)[:1], build_baseline(name)(frames[:1]))


@EVERY
def test_it_says_that_it_needs_whole_frames_and_goes_through_the_pyramid(name):
    enhancer = build_baseline(name)
    assert enhancer.spec.whole
    assert enhancer.spec.channels is None
    after = enhance_pyramid(colour(128), enhancer, 48)
    assert after.shape == (1, 128, 128, 3)


def test_the_control_is_one_colour_and_the_green_detail():
    frames = colour(128)
    frames[..., [0, 2]] = 0.5
    after = build_baseline("control", {"colour": [0.6, 0.4, 0.3], "gain": 1.5})(frames)
    green = frames[0, ..., 1]
    detail = 1.5 * (green - blur_within(green, np.ones(green.shape, bool), 0.08 * 128))
    wanted = np.clip(np.array([0.6, 0.4, 0.3]) + detail[..., None], 0, 1)
    np.testing.assert_allclose(after[0], wanted, atol=1e-5)


def test_parameters_reach_the_method():
    enhancer = build_baseline("msr", {"sigmas": [10, 50], "luma_only": True})
    assert (enhancer.sigmas, enhancer.luma_only) == ((10, 50), True)
    assert build_baseline("lime") == build_baseline("lime", {"alpha": 0.15, "gamma": 0.8, "sigma": 2})


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("bm3d", {}, "no baseline 'bm3d'; there are he, clahe"),
        ("he", {"spec": None}, "he: no parameter 'spec'; there are bins"),
        ("n4", {"shrink": 2}, "n4: no parameter 'shrink'; there are none"),
        ("clahe", {"clip_limit": 0.01}, r"clahe: clip_limit must be a number in 1..256, not 0.01"),
        ("clahe", {"tiles": 2.5}, "tiles must be a whole number in 1..64"),
        ("dcp", {"patch": True}, "patch must be a whole number"),
        ("lime", {"alpha": "much"}, "alpha must be a number"),
        ("lime", {"gamma": float("nan")}, "gamma must be a number in 0..1, not nan"),
        ("ssr", {"dynamic": 0}, "dynamic"),
        ("msr", {"sigmas": []}, "sigmas"),
        ("msr", {"sigmas": ["15"]}, "sigmas|'<='"),
        ("msr", {"luma_only": "yes"}, "luma_only"),
        ("icn", {"percentiles": [99, 1]}, "percentiles"),
        ("icn", {"percentiles": [1]}, "icn"),
        ("dcp", {"inverted": 1}, "inverted"),
    ],
)
def test_a_wrong_parameter_is_a_recipe_error(name, parameters, message):
    with pytest.raises(RecipeError, match=message):
        build_baseline(name, parameters)


@pytest.mark.slow
def test_importing_them_loads_no_network():
    code = (
        "import medenhance_dicom.baselines, sys; sys.exit(bool({'torch', 'pydicom', 'SimpleITK'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------------------------------------------------- its filters


def test_a_box_mean_counts_the_pixels_of_the_frame_alone():
    plane = np.random.default_rng(0).random((7, 9))
    literal = [[plane[max(0, i - 2) : i + 3, max(0, j - 2) : j + 3].mean() for j in range(9)] for i in range(7)]
    np.testing.assert_allclose(box_mean(plane, 2), literal, atol=1e-12)
    np.testing.assert_allclose(box_mean(np.ones((4, 5)), 60), 1, atol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_guided_filter_keeps_a_line_of_its_guide(channels):
    guide = np.random.default_rng(0).random((40, 50, channels))
    line = guide @ np.arange(1, channels + 1) + 0.3
    np.testing.assert_allclose(guided_filter(guide, line, 6, 1e-9), line, atol=1e-5)
    flat = np.full_like(guide, 0.4)
    wide = guided_filter(flat, line, 6, 1e-3)
    np.testing.assert_allclose(wide, box_mean(box_mean(line, 6), 6), atol=1e-9)


def test_differences_and_their_adjoint_belong_together():
    rng = np.random.default_rng(0)
    x, p, q = rng.random((3, 6, 8))
    down, across = differences(x)
    assert (down * p + across * q).sum() == pytest.approx((x * differences_adjoint(p, q)).sum())


def test_the_smooth_system_is_solved_exactly():
    right = np.random.default_rng(0).random((9, 14))
    x = solve_smooth(right, 0.3, 2.0)
    np.testing.assert_allclose(0.3 * x + 2 * differences_adjoint(*differences(x)), right, atol=1e-12)


def test_another_size_and_back_keeps_smooth_planes():
    y, x = np.mgrid[:60, :80] / 80
    plane = 0.3 * y + 0.5 * x
    back = resized(resized(plane, (30, 40)), (60, 80))
    assert np.abs(back - plane)[4:-4, 4:-4].max() < 0.01


def test_relighting_keeps_hue_and_lifts_black():
    picture = np.array([[[0.4, 0.2, 0.1], [0, 0, 0]]])
    after = relight(picture, picture.max(axis=2), np.array([[0.8, 0.3]]))
    np.testing.assert_allclose(after, [[[0.8, 0.4, 0.2], [0.3, 0.3, 0.3]]])


# ---------------------------------------------------------------------------------------------- other programs' results


@pytest.fixture
def results(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(tmp_path / "b.1.png")
    Image.fromarray(rng.integers(0, 256, (10, 30), np.uint8)).save(tmp_path / "small.png")
    Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(tmp_path / "twice.png")
    Image.fromarray(rng.integers(0, 256, (20, 30), np.uint8)).save(tmp_path / "twice.jpg")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "note.txt").write_text("no picture")
    return tmp_path


def test_a_directory_gives_what_lies_there(results):
    like = np.zeros((20, 30, 3), np.float32)
    stored = np.asarray(Image.open(results / "a.png"))
    for name in ("a", "a.jpg", "elsewhere/a.tif"):
        found = Directory(results).picture(name, like)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(np.rint(found * 255), stored)
    grey = np.asarray(Image.open(results / "b.1.png")) / 255
    np.testing.assert_allclose(Directory(results).picture("b.1.dcm", like), grey[..., None].repeat(3, 2), atol=1e-6)
    as_grey = Directory(results).picture("a", like[..., :1])
    np.testing.assert_allclose(as_grey[..., 0], stored / 255 @ [0.2125, 0.7154, 0.0721], atol=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "no pictures for missing"),
        ("note", "no pictures for note"),
        ("twice", "2 pictures for twice"),
        ("small", "small.png: 10 x 30 pixels, not 20 x 30"),
        ("broken", "broken.png: no picture"),
    ],
)
def test_a_directory_without_a_fitting_picture_is_refused(results, name, message):
    with pytest.raises(InputError, match=message):
        Directory(results).picture(name, np.zeros((20, 30, 1), np.float32))
    with pytest.raises(InputError, match="no such folder"):
        Directory(results / "none").picture("a", np.zeros((20, 30, 1), np.float32))


# ------------------------------------------------------------------------------------------------------------ real ones


@pytest.mark.slow
@EVERY
def test_real_pictures_keep_their_surround(name, data_folder):
    from medenhance_dicom.guides import read_picture

    folders = [("fundus/csdi/images", "ellipse"), ("ccm/nervestitcher2/raw", "none")]
    for folder, kind in folders:
        frame = read_picture(sorted((data_folder / folder).iterdir())[0])[::3, ::3]
        inside = field_of_view(frame, kind)
        after = build_baseline(name).enhance_within(frame[None], inside[None])[0]
        assert np.isfinite(after).all()
        np.testing.assert_array_equal(after[~inside], frame[~inside])
        assert 0.03 < after[inside].mean() < 0.97
