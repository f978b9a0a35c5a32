"""Each published method against closed forms, literal twins and pinned figures."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from skimage import data

from medenhance_dicom.baselines import BASELINES, build_baseline
from medenhance_dicom.baselines.cane import prominence, smooth_filaments
from medenhance_dicom.baselines.filters import dark_channel
from medenhance_dicom.baselines.idrlp import RegionLinePrior, golden_section
from medenhance_dicom.baselines.lime import EPSILON, illumination_map
from medenhance_dicom.baselines.retinex import retinex
from medenhance_dicom.conventional import Clahe, equalize_tiles, luminance

BRIGHTENING = sorted(set(BASELINES) - {"cane", "icn", "n4"})


def astronaut(step=2):
    return data.astronaut()[::step, ::step] / 255


def darkened(clean):
    noise = np.random.default_rng(0).normal(0, 0.005, clean.shape)
    return np.clip(clean**2.2 * 0.4 + noise, 0, 1).astype(np.float32)


def camera(step=2):
    return data.camera()[::step, ::step].astype(np.float32) / 255


def enhanced(name, picture, **parameters):
    """(H, W) or (H, W, C) -> the same."""
    frame = picture if picture.ndim == 3 else picture[..., None]
    return build_baseline(name, parameters)(frame[None].astype(np.float32))[0].reshape(picture.shape)


def psnr(one, other):
    return -10 * np.log10(((one - other) ** 2).mean())


# ------------------------------------------------------------------------------------------------------ dark and hazy


@pytest.mark.slow
@pytest.mark.parametrize("name", BRIGHTENING)
def test_a_dark_picture_comes_nearer_to_the_bright_one(name):
    clean = astronaut()
    dark = darkened(clean)
    assert psnr(enhanced(name, dark), clean) > psnr(dark, clean) + 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "figure", "tolerance"),
    [
        ("he", 17.13, 0.02),
        ("clahe", 14.78, 0.2),
        ("dcp", 17.76, 0.02),
        ("lime", 18.74, 0.02),
        ("ssr", 17.15, 0.05),
        ("msrcr", 16.65, 0.05),
        ("idrlp", 19.51, 0.4),
    ],
)
def test_figures_of_independent_prototypes(name, figure, tolerance):
    """The wider tolerances: there CLAHE on V in place of L, another resizing for IDRLP."""
    clean = astronaut(1)
    dark = darkened(clean)
    assert psnr(dark, clean) == pytest.approx(7.99, abs=0.01)
    assert psnr(enhanced(name, dark), clean) == pytest.approx(figure, abs=tolerance)


def test_the_dark_channel_prior_takes_haze_away():
    clean = astronaut()
    hazy = 0.6 * clean + 0.4 * 0.9
    assert psnr(enhanced("dcp", hazy, inverted=False), clean) > psnr(hazy, clean) + 3
    assert psnr(enhanced("idrlp", hazy), clean) > psnr(hazy, clean) + 1


def test_inverted_is_the_prior_on_the_inverse():
    picture = astronaut(4)
    twice = 1 - enhanced("dcp", 1 - picture, inverted=False)
    np.testing.assert_allclose(enhanced("dcp", picture), twice, atol=1e-5)


def test_the_dark_channel_is_the_least_of_channels_and_neighbours():
    picture = np.random.default_rng(0).random((9, 11, 3))
    dark = dark_channel(picture, 5)
    assert dark[4, 5] == picture[2:7, 3:8].min()
    assert dark[0, 0] == picture[:3, :3].min()


# ---------------------------------------------------------------------------------------------------------- histograms


def test_equalising_is_monotone_and_gives_every_level_its_share():
    picture = np.random.default_rng(0).random((128, 128)) ** 0.4
    after = enhanced("he", picture)
    order = np.argsort(picture, axis=None, kind="stable")
    assert (np.diff(after.ravel()[order]) >= 0).all()
    levels = np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(np.quantile(after, levels), levels, atol=0.02)


def test_equalising_twice_is_equalising_once():
    once = enhanced("he", camera())
    np.testing.assert_allclose(enhanced("he", once), once, atol=3 / 256)
    assert np.abs(enhanced("he", once) - once).mean() < 1 / 256


def test_equalising_keeps_the_ratio_of_the_channels():
    picture = astronaut() * 0.6 + 0.2
    after = enhanced("he", picture)
    ratio = after / picture
    np.testing.assert_allclose(ratio.max(axis=2), ratio.min(axis=2), rtol=1e-4)


def test_clahe_without_a_limit_equalises_one_tile():
    after = enhanced("clahe", np.random.default_rng(0).random((128, 128)) ** 0.4, clip_limit=256, tiles=1)
    levels = np.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(np.quantile(after, levels), levels, atol=0.03)


def test_clahe_with_the_least_limit_only_stretches():
    picture = 0.3 + 0.4 * np.random.default_rng(0).random((128, 128))
    stretched = (picture - picture.min()) / np.ptp(picture)
    np.testing.assert_allclose(enhanced("clahe", picture, clip_limit=1), stretched, atol=0.05)


@pytest.mark.parametrize("limit", [2.0, 4.0, 10.0])
def test_clahe_counts_its_limit_as_opencv_does(limit):
    picture = camera(1)
    here = np.ones(picture.shape, bool)
    ours = equalize_tiles(picture, here, Clahe(clip_limit=limit))
    assert np.corrcoef(enhanced("clahe", picture, clip_limit=limit).ravel(), ours.ravel())[0, 1] > 0.996


def test_clahe_changes_lightness_and_hardly_the_colour():
    picture = astronaut() * 0.5 + 0.2
    before, after = (p - luminance(p.astype(np.float32))[..., None] for p in (picture, enhanced("clahe", picture)))
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.95


# ---------------------------------------------------------------------------------------------------------------- LIME


def test_lime_lifts_a_constant_by_its_gamma():
    for channels in (1, 3):
        after = enhanced("lime", np.full((20, 30, channels), 0.25))
        np.testing.assert_allclose(after, 0.757858, atol=1e-6)
    assert enhanced("lime", np.full((20, 30), 0.25), gamma=0.5)[0, 0] == pytest.approx(0.5)


def test_lime_solves_its_system():
    initial = np.random.default_rng(0).random((7, 9)) * 0.8 + 0.1
    n = initial.size
    matrix = np.eye(n)
    for axis in (0, 1):
        rows = []
        step = np.diff(initial, axis=axis, append=initial.take([-1], axis))
        weight = 0.15 / (np.abs(gaussian_filter1d(step, 2.0, axis=axis)) + EPSILON) / (np.abs(step) + EPSILON)
        index = np.arange(n).reshape(initial.shape)
        for here, there in zip(
            index.take(range(initial.shape[axis] - 1), axis).ravel(),
            index.take(range(1, initial.shape[axis]), axis).ravel(),
            strict=True,
        ):
            row = np.zeros(n)
            row[here], row[there] = -1, 1
            rows.append(np.sqrt(weight.ravel()[here]) * row)
        matrix += np.array(rows).T @ np.array(rows)
    literal = np.linalg.solve(matrix, initial.ravel()).reshape(initial.shape)
    np.testing.assert_allclose(illumination_map(initial, 0.15, 2.0, 512), literal, atol=1e-8)


@pytest.mark.slow
def test_lime_on_a_reduced_map_is_nearly_lime():
    dark = darkened(astronaut())
    direct, reduced = enhanced("lime", dark), enhanced("lime", dark, largest=128)
    assert np.abs(direct - reduced).mean() < 0.02
    np.testing.assert_allclose(enhanced("lime", np.full((64, 48), 0.25), largest=32), 0.757858, atol=1e-6)


# ------------------------------------------------------------------------------------------------------------- retinex


def everywhere(picture):
    return np.ones(picture.shape[:2], bool)


def test_a_constant_has_no_reflectance():
    for level in (0.0, 0.3, 1.0):
        flat = np.full((64, 48, 3), level)
        assert np.abs(retinex(flat, everywhere(flat), (15.0, 80.0, 250.0))).max() < 1e-5


def test_reflectance_is_the_published_formula():
    picture = astronaut(4)
    literal = np.zeros_like(picture)
    for sigma in (2.0, 3.0):
        blurred = gaussian_filter(255 * picture, (sigma, sigma, 0), truncate=3)
        literal += (np.log(255 * picture + 1) - np.log(blurred + 1)) / 2
    inner = (slice(12, -12), slice(12, -12))
    np.testing.assert_allclose(retinex(picture, everywhere(picture), (2.0, 3.0))[inner], literal[inner], atol=1e-4)


def test_reflectance_hardly_depends_on_the_exposure():
    picture = 0.3 + 0.7 * astronaut(4)
    bright, dark = (retinex(k * picture, everywhere(picture), (15.0, 80.0)) for k in (1.0, 0.4))
    assert np.abs(bright - dark).max() < 0.02
    assert np.ptp(bright) > 1


def test_mean_and_two_deviations_become_the_range():
    for name in ("ssr", "msr", "msrcr"):
        after = enhanced(name, astronaut())
        assert after.mean() == pytest.approx(0.5, abs=0.02)
        assert after.std() == pytest.approx(0.25, abs=0.03)


def test_colour_restoration_has_nothing_to_restore_in_grey():
    np.testing.assert_allclose(enhanced("msrcr", camera()), enhanced("msr", camera()), atol=1e-4)
    assert np.abs(enhanced("msrcr", astronaut()) - enhanced("msr", astronaut())).max() > 0.05


def test_on_luminance_retinex_keeps_the_hue():
    picture = (0.2 + 0.6 * astronaut()) * [1.0, 0.6, 0.3]
    ratio = enhanced("msr", picture, luma_only=True) / picture
    np.testing.assert_allclose(ratio.max(axis=2), ratio.min(axis=2), rtol=1e-3)


# ------------------------------------------------------------------------------------------------------ robust retinex


def test_robust_retinex_gives_a_constant_its_gamma():
    np.testing.assert_allclose(enhanced("robust-retinex", np.full((20, 30, 3), 0.25)), 0.25 ** (1 / 2.2), atol=1e-3)


@pytest.mark.slow
def test_robust_retinex_explains_the_picture():
    observed = camera().astype(float)
    method = build_baseline("robust-retinex", {"tolerance": 1e-3})
    reflectance, light, noise = method.decompose(observed)
    np.testing.assert_allclose(reflectance * light + (1 + method.delta) * noise, observed, atol=1e-6)
    assert np.abs(noise).max() < 0.2
    variation = [sum(np.abs(np.diff(p, axis=axis)).sum() for axis in (0, 1)) for p in (light, observed)]
    assert variation[0] < 0.6 * variation[1]


def test_robust_retinex_lifts_noise_below_its_threshold_less_than_gamma_does():
    dark = 0.1 + np.random.default_rng(0).normal(0, 0.001, (96, 96))
    dark[:, 48:] += 0.2
    after, lifted = enhanced("robust-retinex", dark), dark ** (1 / 2.2)
    flat = (slice(8, -8), slice(8, 40))
    noise = [np.diff(p[flat], axis=0).std() for p in (after, lifted)]
    assert noise[0] < 0.5 * noise[1]
    step = [p[:, 60:].mean() - p[:, :36].mean() for p in (after, lifted)]
    assert step[0] > 0.8 * step[1]


# ---------------------------------------------------------------------------------------------------------------- CaNE


@pytest.mark.parametrize(("smoothness", "line"), [(0.006, 0.80), (0.05, 0.303)])
def test_cane_flattens_noise_and_keeps_a_line_unless_it_is_too_strong(smoothness, line):
    picture = np.full((128, 128), 0.3)
    picture[64] = 0.8
    picture += np.random.default_rng(0).normal(0, 0.05, picture.shape)
    top = picture.max()
    smooth = top * smooth_filaments(picture / top, smoothness)
    assert picture[:54].std() == pytest.approx(0.05, abs=0.002)
    assert smooth[:54].std() < 0.001
    assert smooth[64].mean() == pytest.approx(line, abs=0.01)


def test_prominence_is_high_on_lines_and_nought_on_flat_and_round_things():
    picture = np.zeros((64, 64))
    picture[20] = 1
    y, x = np.mgrid[:64, :64]
    picture += np.exp(-((y - 45) ** 2 + (x - 32) ** 2) / 8)
    q = prominence(picture)
    assert q[21, 32] > 1
    assert q[45, 32] < 0.05 * q[21, 32]
    assert q[5, 32] < 1e-12


# --------------------------------------------------------------------------------------------------------------- IDRLP


def test_golden_section_finds_the_bottom():
    assert golden_section(lambda x: (x - 0.37) ** 2, 0, 1) == pytest.approx(0.37, abs=1e-4)
    assert golden_section(lambda x: abs(x - 41), 0, 65) == pytest.approx(41, abs=1e-4)


def test_idrlp_exposes_to_its_mean():
    for picture in (darkened(astronaut()), 0.6 * astronaut() + 0.36, camera()):
        assert enhanced("idrlp", picture).mean() == pytest.approx(0.4, abs=0.06)
    low, high = (enhanced("idrlp", camera(), mean=mean).mean() for mean in (0.3, 0.5))
    assert low < 0.36
    assert high > 0.48


def test_idrlp_looks_for_its_airlight_and_slope_in_their_ranges(monkeypatch):
    found = []
    search = RegionLinePrior._search
    monkeypatch.setattr(RegionLinePrior, "_search", lambda *args: found.append(search(*args)) or found[-1])
    enhanced("idrlp", 0.6 * astronaut() + 0.4 * 0.9)
    level, slope = found[0]
    assert level == pytest.approx(0.9, abs=0.05)
    assert 0 <= slope <= 65


def test_idrlp_clips_about_the_share_it_is_told():
    after = enhanced("idrlp", darkened(astronaut()))
    assert 0.001 < ((after == 0) | (after == 1)).mean() < 0.05


# ------------------------------------------------------------------------------------------------------------- shading


def left_to_right(picture):
    half = picture.shape[1] // 2
    return picture[:, :half].mean() / picture[:, half:].mean()


@pytest.mark.slow
def test_n4_takes_a_ramp_away():
    picture = camera(1)
    shaded = picture * np.linspace(0.3, 1, 512, dtype=np.float32)
    assert left_to_right(picture) == pytest.approx(0.589, abs=0.001)
    assert left_to_right(shaded) == pytest.approx(0.343, abs=0.001)
    assert left_to_right(enhanced("n4", shaded)) > 0.52


def test_contrast_is_normalised_whatever_the_light():
    picture = camera()
    shade = np.linspace(0.3, 1, 256, dtype=np.float32)
    plain, shaded = enhanced("icn", picture, eps=1e-4), enhanced("icn", picture * shade, eps=1e-4)
    assert np.abs(plain - shaded).mean() < 0.03
    np.testing.assert_allclose(enhanced("icn", 0.5 * picture + 0.2, eps=1e-4), plain, atol=0.02)


def test_contrast_normalisation_clips_one_in_a_hundred_at_each_end():
    after = enhanced("icn", camera())
    assert (after == 0).mean() == pytest.approx(0.01, abs=0.002)
    assert (after >= 1 - 1e-6).mean() == pytest.approx(0.01, abs=0.002)
