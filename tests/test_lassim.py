"""LaSSIM against a literal twin, the published sample images, and laws that must hold."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, map_coordinates
from skimage import data, io

from medenhance_dicom.lassim import laplacian_level, lassim, lassim_level_for, lassim_map

TWIN = Path(__file__).parent / "reference" / "lassim_numpy.py"
SAMPLES = os.environ.get("MEDENHANCE_LASSIM_SAMPLES")


def load_twin():
    spec = importlib.util.spec_from_file_location("lassim_numpy", TWIN)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


twin = load_twin()


def tensor(picture, dtype=torch.float64):
    """(H, W) or (H, W, 3) -> (1, C, H, W)."""
    picture = picture[..., None] if picture.ndim == 2 else picture
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].to(dtype)


def blurred(picture, sigma=3.0):
    return gaussian_filter(picture, (sigma, sigma, 0) if picture.ndim == 3 else sigma)


def warped(picture, amplitude=6.0):
    """Each pixel moved along a smooth wave."""
    v, u = np.mgrid[0 : picture.shape[0], 0 : picture.shape[1]].astype(float)
    where = [v + amplitude * np.sin(u / 17), u + amplitude * np.cos(v / 13)]
    if picture.ndim == 2:
        return map_coordinates(picture, where, order=1, mode="nearest")
    return np.stack([map_coordinates(picture[..., c], where, order=1, mode="nearest") for c in range(3)], axis=-1)


PICTURES = {
    "camera": lambda: data.camera()[100:236, 100:340] / 255,
    "astronaut": lambda: data.astronaut()[100:228, 164:292] / 255,
    "coins, odd": lambda: data.coins()[:101, :203] / 255,
    "retina, odd": lambda: data.retina()[400:503, 300:421] / 255,
    "smallest": lambda: data.moon()[200:249, 200:260] / 255,
}


@pytest.mark.slow
@pytest.mark.parametrize("level", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("name", PICTURES)
def test_equals_the_literal_twin(name, level):
    before = PICTURES[name]()
    if lassim_level_for(*before.shape[:2], level) != level:
        pytest.skip("too small for the level")
    for after in (blurred(before), warped(before), before**0.7):
        assert lassim(tensor(before), tensor(after), level).item() == pytest.approx(
            twin.lassim(before, after, level), abs=1e-6
        )


@pytest.mark.parametrize("shape", [(64, 64), (49, 83), (50, 51), (7, 9), (9, 7), (8, 33)])
def test_residual_equals_the_literal_twin_on_any_size(shape):
    picture = np.random.default_rng(1).random(shape)
    for level in range(lassim_level_for(*shape) + 1):
        np.testing.assert_allclose(
            laplacian_level(tensor(picture), level)[0, 0], twin.laplacian(picture, level), atol=1e-12
        )


@pytest.mark.parametrize(
    ("name", "blur", "warp"),
    [
        ("camera", 0.9779160, 0.5758394),
        ("astronaut", 0.9828544, 0.6515313),
        ("retina, odd", 0.9847868, 0.6183951),
    ],
)
def test_pinned_numbers(name, blur, warp):
    before = PICTURES[name]()
    assert lassim(tensor(before), tensor(blurred(before))).item() == pytest.approx(blur, abs=1e-6)
    assert lassim(tensor(before), tensor(warped(before))).item() == pytest.approx(warp, abs=1e-6)


@pytest.mark.skipif(SAMPLES is None, reason="MEDENHANCE_LASSIM_SAMPLES names no folder")
@pytest.mark.parametrize(
    ("level", "blur", "elastic"),
    [
        (0, 0.695456, 0.694036),
        (1, 0.435117, 0.425036),
        (2, 0.598577, 0.534372),
        (3, 0.905320, 0.818467),
        (4, 0.991391, 0.965258),
    ],
)
def test_published_samples(level, blur, elastic):
    """The three sample images of the released code (AillisInc/USPMIE, LaSSIM/resources), read as RGB."""
    original, soft, moved = (
        tensor(io.imread(Path(SAMPLES) / f"image_{kind}.png")[..., :3] / 255)
        for kind in ("original", "blur", "elastic_blur")
    )
    assert lassim(original, soft, level).item() == pytest.approx(blur, abs=1e-6)
    assert lassim(original, moved, level).item() == pytest.approx(elastic, abs=1e-6)


def test_equal_pictures_score_one_and_order_does_not_matter():
    before = tensor(PICTURES["astronaut"]())
    after = tensor(warped(PICTURES["astronaut"]()))
    assert lassim(before, before).item() == 1
    assert lassim(before, after).item() == pytest.approx(lassim(after, before).item(), abs=1e-12)


def test_an_added_constant_does_not_count():
    before = 0.5 * tensor(PICTURES["camera"]())
    assert lassim(before, before + 0.3).item() == pytest.approx(1, abs=1e-9)


def test_an_inverted_picture_is_marked_down_but_less_than_one_would_think():
    """Both factors of SSIM change sign, and flat parts count as equal: the gate needs a check of its own for this."""
    before = PICTURES["camera"]()
    score = lassim(tensor(before), tensor(1 - before)).item()
    assert score == pytest.approx(twin.lassim(before, 1 - before), abs=1e-6)
    assert 0 < score < 0.7


def test_moved_structure_counts_more_than_blur():
    for picture in (PICTURES[name]() for name in PICTURES):
        assert lassim(tensor(picture), tensor(warped(picture))) < lassim(tensor(picture), tensor(blurred(picture)))


def test_float32_agrees_with_float64():
    before, after = PICTURES["astronaut"](), warped(PICTURES["astronaut"]())
    single = lassim(tensor(before, torch.float32), tensor(after, torch.float32))
    assert single.dtype == torch.float32
    assert single.item() == pytest.approx(lassim(tensor(before), tensor(after)).item(), abs=1e-5)


def test_half_precision_is_computed_in_float32():
    x = torch.rand(1, 1, 64, 64, dtype=torch.bfloat16)
    assert lassim(x, x).dtype == torch.float32


def test_each_picture_of_a_batch_has_its_own_range_and_score():
    before, after = tensor(PICTURES["camera"]()), tensor(warped(PICTURES["camera"]()))
    batch = lassim(torch.cat([before, before]), torch.cat([after, 0.1 * before]))
    assert batch.shape == (2,)
    assert batch[0].item() == pytest.approx(lassim(before, after).item(), abs=1e-12)


def test_its_mean_is_the_score_and_its_size_the_whole_windows():
    before, after = tensor(PICTURES["camera"]()), tensor(warped(PICTURES["camera"]()))
    local = lassim_map(before, after)
    assert local.shape == (1, 1, 17 - 6, 30 - 6)
    assert local.mean().item() == pytest.approx(lassim(before, after).item(), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_flat_pictures_score_one_and_lost_structure_does_not(dtype):
    flat = torch.full((1, 1, 64, 64), 0.3, dtype=dtype)
    assert lassim(flat, flat + 0.2).item() == 1
    textured = flat + 0.2 * torch.rand(1, 1, 64, 64, dtype=dtype)
    assert lassim(textured, flat).item() < 0.2
    assert lassim(flat, textured).item() < 0.2


def test_small_frames_are_compared_at_a_finer_level():
    x, y = torch.rand(2, 1, 1, 48, 64, dtype=torch.float64)
    assert lassim_level_for(48, 64) == 2
    assert torch.equal(lassim(x, y), lassim(x, y, 2))
    assert [lassim_level_for(n, 999) for n in (7, 12, 13, 24, 25, 48, 49)] == [0, 0, 1, 1, 2, 2, 3]


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="too small"):
        lassim(torch.rand(1, 1, 6, 100), torch.rand(1, 1, 6, 100))
    with pytest.raises(ValueError, match="one shape"):
        lassim(torch.rand(1, 1, 64, 64), torch.rand(1, 3, 64, 64))
    with pytest.raises(ValueError, match="one shape"):
        lassim(torch.rand(1, 2, 64, 64), torch.rand(1, 2, 64, 64))
    with pytest.raises(ValueError, match="negative"):
        lassim_level_for(64, 64, -1)


def test_nan_stays_visible():
    x = torch.rand(1, 1, 64, 64)
    y = x.clone()
    y[0, 0, 5, 5] = torch.nan
    assert lassim(x, y).isnan().item()


def test_is_differentiable():
    x = torch.rand(1, 3, 52, 50, dtype=torch.float64)
    y = (0.8 * x + 0.1 * torch.rand_like(x)).requires_grad_()
    limit = torch.ones(1, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda z: lassim(x, z, data_range=limit), y, nondet_tol=0, fast_mode=True)
    flat = torch.full((1, 1, 64, 64), 0.5, requires_grad=True)
    lassim(flat, flat.detach()).sum().backward()
    assert flat.grad.isfinite().all()
