"""NIQE, BRISQUE and PIQE: known figures where the parameter files are there, laws and hand-made models elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter
from skimage import data, io

from medenhance_dicom.errors import ModelError
from medenhance_dicom.metrics import (
    brisque,
    brisque_features,
    fit_niqe,
    load_brisque,
    load_niqe,
    niqe,
    piqe,
    save_niqe,
)  # fmt: skip
from medenhance_dicom.metrics.scenes import (
    asymmetric_gaussian,
    generalised_gaussian,
    half_size,
    half_size_sharp,
    normalised_contrast,
)  # fmt: skip

MODELS = os.environ.get("MEDENHANCE_METRIC_MODELS")
needs_models = pytest.mark.skipif(MODELS is None, reason="MEDENHANCE_METRIC_MODELS names no folder")
GREY_PICTURES = ("camera", "coins", "brick", "grass", "gravel")


def unit(picture):
    """uint8 (H, W) or (H, W, 3) -> float32 (H, W, C) in [0, 1]."""
    picture = picture[..., None] if picture.ndim == 2 else picture
    return (picture / 255).astype(np.float32)


def photograph(name):
    return unit(getattr(data, name)())


def model_file(name):
    path = Path(MODELS) / name
    if not path.is_file():
        pytest.skip(f"{path.name} is not in MEDENHANCE_METRIC_MODELS")
    return path


def live_niqe():
    return load_niqe(model_file("niqe_pris_params.npz"))


def live_brisque():
    return load_brisque(model_file("allmodel"), model_file("allrange"))


def pypi_brisque():
    return load_brisque(model_file("svm.txt"), model_file("svm.ranges"))


# ---------------------------------------------------------------- published figures

PHOTOGRAPHS = {  # NIQE, BRISQUE of LIVE, BRISQUE of PyPI's package as it gives it itself, PIQE
    "astronaut": (3.0652, 2.8663, 10.7949, 33.7594),
    "camera": (3.0962, -7.3087, -7.8794, 40.1374),
    "coffee": (4.0585, 30.0660, 3.0479, 27.7197),
    "chelsea": (2.5721, 2.5726, 2.8708, 34.0170),
    "coins": (3.6227, -0.6323, -1.5210, 22.0749),
    "brick": (9.4801, 42.6339, 39.3950, 67.3279),
    "grass": (6.4929, 38.1945, 23.7821, 22.2630),
    "gravel": (4.3337, 21.7985, 27.5169, 12.0951),
    "retina": (6.3093, 47.1426, 57.89, 43.4854),  # 2 megapixels with a black surround
}
SOME = [name if name in ("camera", "coffee") else pytest.param(name, marks=pytest.mark.slow) for name in PHOTOGRAPHS]


@pytest.mark.parametrize("name", SOME)
def test_piqe_of_known_pictures(name):
    assert piqe(photograph(name)) == pytest.approx(PHOTOGRAPHS[name][3], abs=1e-3)


@needs_models
@pytest.mark.parametrize("name", SOME)
def test_niqe_of_known_pictures(name):
    assert niqe(photograph(name), live_niqe()) == pytest.approx(PHOTOGRAPHS[name][0], abs=0.01)


@needs_models
@pytest.mark.parametrize("name", SOME)
def test_brisque_of_lives_model(name):
    assert brisque(photograph(name), live_brisque()) == pytest.approx(PHOTOGRAPHS[name][1], abs=0.01)


@needs_models
@pytest.mark.parametrize("name", SOME)
def test_brisque_of_the_packages_model(name):
    """The package counts rounding noise of flat areas, which is left out here: only the retina has such."""
    tolerance = 0.1 if name == "retina" else 0.01
    assert brisque(photograph(name), pypi_brisque()) == pytest.approx(PHOTOGRAPHS[name][2], abs=tolerance)


MATLAB = {  # five calibration pictures: NIQE and its tolerance, BRISQUE and its tolerance, PIQE, all of MATLAB
    "I03": (15.7536, 0.02, 94.6421, 0.005, 100),
    "I04": (3.6549, 0.0005, -0.1076, 0.005, 21.62),
    "I06": (3.2355, 0.02, 0.9929, 0.005, 35.86),
    "I08": (3.1840, 0.02, 5.3583, 0.6, 41.15),  # flat areas: MATLAB counts rounding noise there
    "I19": (8.6352, 0.05, 72.2617, 2.2, 76.95),
}


@needs_models
@pytest.mark.slow
@pytest.mark.parametrize("name", MATLAB)
def test_matlabs_figures(name):
    picture = unit(io.imread(model_file(f"{name}.bmp")))
    of_niqe, by, _, _, of_piqe = MATLAB[name]
    assert niqe(picture, live_niqe()) == pytest.approx(of_niqe, abs=by)
    assert piqe(picture) == pytest.approx(of_piqe, abs=0.01)


@needs_models
@pytest.mark.slow
@pytest.mark.parametrize("name", MATLAB)
def test_matlabs_figures_of_brisque(name):
    picture = unit(io.imread(model_file(f"{name}.bmp")))
    assert brisque(picture, live_brisque()) == pytest.approx(MATLAB[name][2], abs=MATLAB[name][3])


@needs_models
def test_known_files_have_names():
    assert live_niqe().id == "niqe@live-96"
    assert pypi_brisque().id == "brisque@pypi770"
    assert live_brisque().id == "brisque@live774"


def worse(picture, rng):
    """A picture, the same worse, and worse still: by blur, and by noise that all channels share."""
    blurred = [gaussian_filter(picture, (s, s, 0)) for s in (1, 2)]
    noisy = [
        np.clip(picture + rng.normal(0, s / 255, (*picture.shape[:2], 1)), 0, 1).astype(np.float32) for s in (10, 25)
    ]
    return [picture, *blurred], [picture, *noisy]


@needs_models
@pytest.mark.slow
@pytest.mark.parametrize("name", ["camera", "astronaut", "coffee", "chelsea"])
def test_blur_and_noise_are_marked_down(name, rng):
    scenes, model = live_niqe(), pypi_brisque()
    for series in worse(photograph(name), rng):
        for measure in (piqe, lambda p: niqe(p, scenes), lambda p: brisque(p, model)):
            scores = [measure(picture) for picture in series]
            assert scores == sorted(scores), scores
            assert scores[0] < scores[1] < scores[2]


@needs_models
def test_niqe_of_noise_and_of_a_mirrored_picture(rng):
    noise = unit(rng.integers(0, 256, (192, 192), dtype=np.uint8))
    with pytest.warns(UserWarning, match="4 blocks"):
        assert 55 < niqe(noise, live_niqe()) < 90
    camera = photograph("camera")
    assert niqe(camera[:, ::-1], live_niqe()) == pytest.approx(niqe(camera, live_niqe()), abs=0.3)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---------------------------------------------------------------- PIQE


def test_piqe_of_a_flat_picture_is_the_worst():
    assert piqe(np.full((64, 80, 1), 0.5, np.float32)) == 100
    assert piqe(np.zeros((64, 64, 3), np.float32)) == 100


def test_piqe_marks_blur_and_noise_down(rng):
    for series in worse(photograph("camera")[:256, :320], rng):
        scores = [piqe(picture) for picture in series]
        assert scores[0] < scores[1] < scores[2]


def test_a_black_surround_costs_and_the_field_of_view_saves_it():
    picture = photograph("camera")[100:356, 100:356]
    framed = np.pad(picture, ((64, 64), (80, 80), (0, 0)))
    inside = np.zeros(framed.shape[:2], bool)
    inside[64:-64, 80:-80] = True
    assert piqe(framed, inside) == piqe(picture)
    assert piqe(framed) > piqe(picture)


# ---------------------------------------------------------------- what they share


def test_contrast_of_flat_parts_is_exactly_nothing():
    picture = np.full((40, 40), 77.7)
    picture[:, 30:] = 200
    contrast, sigma = normalised_contrast(picture, "nearest")
    assert (contrast[:, :26] == 0).all()
    assert contrast[:, 27:30].max() < 0 < contrast[:, 30:33].min()
    assert sigma[20, 30] == pytest.approx(normalised_contrast(picture, "constant")[1][20, 30])


def test_halving_keeps_levels_and_slopes():
    ramp = np.add.outer(3.0 * np.arange(40), 2.0 * np.arange(50))
    for halved in (half_size(ramp), half_size_sharp(ramp)):
        assert halved.shape == (20, 25)
        inner = halved[2:-2, 2:-2]
        np.testing.assert_allclose(
            inner, np.add.outer(3 * (2 * np.arange(2, 18) + 0.5), 2 * (2 * np.arange(2, 23) + 0.5))
        )
    np.testing.assert_allclose(half_size(np.full((31, 17), 9.0)), np.full((16, 9), 9.0))


def test_halving_with_antialiasing_is_pillows_bicubic(rng):
    picture = rng.random((64, 48)).astype(np.float32)
    other = np.asarray(Image.fromarray(picture).resize((24, 32), Image.Resampling.BICUBIC))
    np.testing.assert_allclose(half_size(picture.astype(float))[2:-2, 2:-2], other[2:-2, 2:-2], atol=1e-6)


@pytest.mark.parametrize(("alpha", "draw"), [(2, "normal"), (1, "laplace")])
def test_fits_find_the_shape_again(alpha, draw, rng):
    values = getattr(rng, draw)(0, 3, (2, 400_000))
    found, square = generalised_gaussian(values)
    np.testing.assert_allclose(found, alpha, rtol=0.02)
    np.testing.assert_allclose(square, values.var(axis=1), rtol=0.01)
    lopsided = np.abs(values) * np.where(rng.random(values.shape) < 1 / 3, -1, 2)  # sides weigh as wide as they are
    fit = asymmetric_gaussian(lopsided)
    np.testing.assert_allclose(fit.right / fit.left, 2, rtol=0.02)
    np.testing.assert_allclose(fit.alpha, alpha, rtol=0.05)
    np.testing.assert_allclose(asymmetric_gaussian(lopsided, exact=True).alpha, fit.alpha, atol=1e-3)
    np.testing.assert_allclose(fit.mean * fit.scale, lopsided.mean(axis=1), rtol=0.05)


def test_a_fit_of_nothing_is_no_number():
    fit = asymmetric_gaussian(np.zeros((1, 8)))
    assert np.isnan([fit.alpha, fit.left, fit.right]).all()


# ---------------------------------------------------------------- NIQE of one's own


def natural(rng, shape=(384, 384)):
    """Noise with a 1/f spectrum, as natural pictures have."""
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(shape[1]), np.fft.fftfreq(shape[0])))
    spectrum = np.fft.fft2(rng.normal(size=shape)) / np.maximum(frequency, 1 / max(shape))
    picture = np.fft.ifft2(spectrum).real
    return unit(np.clip(128 + 40 * picture / picture.std(), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def own_scenes():
    rng = np.random.default_rng(1)
    return fit_niqe([natural(rng) for _ in range(6)])


def test_fitted_scenes_like_their_own_kind_and_survive_a_file(own_scenes, tmp_path, rng):
    assert own_scenes.id == f"niqe@domain:{own_scenes.digest[:12]}"
    own = natural(rng)
    assert niqe(own, own_scenes) < 3 < niqe(gaussian_filter(own, (2, 2, 0)), own_scenes)
    save_niqe(tmp_path / "own.safetensors", own_scenes)
    again = load_niqe(tmp_path / "own.safetensors")
    assert (again.id, niqe(own, again)) == (own_scenes.id, niqe(own, own_scenes))
    np.testing.assert_array_equal(again.sigma, own_scenes.sigma)


def test_only_sharp_blocks_are_learned(rng):
    pictures = [natural(rng, (192, 480)) for _ in range(8)]
    sharp = fit_niqe(pictures, sharpest=0)
    for picture in pictures:
        picture[:, 288:] = gaussian_filter(picture[:, 288:], (6, 6, 0))
    np.testing.assert_allclose(fit_niqe(pictures, sharpest=0.3).mu[0], sharp.mu[0], rtol=0.05)
    assert fit_niqe(pictures, sharpest=0).mu[0] < 0.9 * sharp.mu[0]


def test_niqe_refuses_what_is_too_small(own_scenes, rng):
    with pytest.raises(ValueError, match="96 x 191 has fewer than 2 blocks"):
        niqe(natural(rng, (96, 191)), own_scenes)
    with pytest.raises(ValueError, match="too few"):
        fit_niqe([natural(rng, (192, 192))])
    assert np.isnan(niqe(np.full((384, 384, 1), 0.5, np.float32), own_scenes))


def test_niqe_judges_the_bounding_box(own_scenes, rng):
    picture = natural(rng)
    framed, inside = np.pad(picture, ((50, 40), (30, 96), (0, 0))), np.zeros((474, 510), bool)
    inside[50:-40, 30:-96] = True
    assert niqe(framed, own_scenes, inside) == niqe(picture, own_scenes)


# ---------------------------------------------------------------- files

RANGES = "x\n-1 1\n" + "".join(f"{k} -{k} {k}\n" for k in range(1, 37))
MODEL = (
    "svm_type epsilon_svr\nkernel_type rbf\ngamma 0.05\nnr_class 2\ntotal_sv 2\nrho 1.5\nSV\n-3 1:1\n4 2:-1 36:0.5\n"
)


def written(folder, model=MODEL, ranges=RANGES):
    (folder / "model").write_text(model)
    (folder / "ranges").write_text(ranges)
    return folder / "model", folder / "ranges"


def test_a_regression_worked_out_by_hand(tmp_path):
    model = load_brisque(*written(tmp_path))
    assert model.id == f"brisque@{model.digest[:12]}"
    x = np.zeros(36)
    assert model(x) == pytest.approx(-3 * np.exp(-0.05) + 4 * np.exp(-0.05 * 1.25) - 1.5)
    x[0] = 2  # scaled to 2, beyond the range: not clipped
    assert model(x) == pytest.approx(-3 * np.exp(-0.05) + 4 * np.exp(-0.05 * 5.25) - 1.5)


def test_a_changed_file_is_another_model(tmp_path):
    first = load_brisque(*written(tmp_path)).id
    assert load_brisque(*written(tmp_path, ranges=RANGES.replace("36 -36 36", "36 -36 37"))).id != first


@pytest.mark.parametrize(
    ("model", "ranges", "message"),
    [
        (MODEL.replace("rbf", "linear"), RANGES, "model: no epsilon regression"),
        (MODEL.replace("total_sv 2", "total_sv 3"), RANGES, "model: 2 support vectors, 3"),
        (MODEL.replace("36:0.5", "37:0.5"), RANGES, "model: not a model .*feature 37"),
        (MODEL.replace("rho 1.5\n", ""), RANGES, "model: not a model"),
        (MODEL, RANGES.replace("-1 1", "0 1", 1), "ranges: no ranges"),
        (MODEL, RANGES.replace("7 -7 7\n", ""), "ranges: no ranges"),
        (MODEL, RANGES.replace("7 -7 7", "7 7 7"), "ranges: no ranges"),
        (MODEL, "", "ranges: no ranges"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, model, ranges, message):
    with pytest.raises(ModelError, match=message):
        load_brisque(*written(tmp_path, model, ranges))


def test_a_missing_or_foreign_file_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"gone\.npz: No such file"):
        load_niqe(tmp_path / "gone.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(ModelError, match=r"broken\.npz: not an archive"):
        load_niqe(tmp_path / "broken.npz")
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    with pytest.raises(ModelError, match=r"other\.npz: no NIQE parameters"):
        load_niqe(tmp_path / "other.npz")
    np.savez(tmp_path / "pickled.npz", mu_pris_param=np.array([{}], object), cov_pris_param=np.zeros((36, 36)))
    with pytest.raises(ModelError, match=r"pickled\.npz: not an archive"):
        load_niqe(tmp_path / "pickled.npz")
    (tmp_path / "text").write_bytes(b"hello")
    with pytest.raises(ModelError, match="text: neither"):
        load_niqe(tmp_path / "text")


def test_brisque_has_36_features_and_none_of_a_flat_picture():
    features = brisque_features(photograph("coins"))
    assert features.shape == (36,)
    assert np.isfinite(features).all()
    assert np.isnan(brisque_features(np.full((40, 40, 3), 0.2, np.float32))).any()
    pypi = brisque_features(photograph("coins"), "pypi")
    np.testing.assert_allclose(
        pypi[:18], features[:18], rtol=0.1, atol=0.02
    )  # the same at full size, but for the border
    assert pypi[18] > features[18]  # aliased: less peaked
