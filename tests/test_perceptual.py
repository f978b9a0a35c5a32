"""The perceptual term: its pyramid and VGG-19 against plain computations, with random weights."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import correlate
from torch.nn import functional

from medenhance_dicom.errors import ModelError, RecipeError
from medenhance_dicom.lassim import lassim
from medenhance_dicom.training.losses import ssim
from medenhance_dicom.training.perceptual import (
    PerceptualLoss,
    VGGFeatures,
    laplacian_residual,
    perceptual_loss_of,
)
from medenhance_dicom.training.recipe import Perceptual

SHAPES = {0: (64, 3), 2: (64, 64), 5: (128, 64), 7: (128, 128)}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def random_tensors():
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for n, (c_out, c_in) in SHAPES.items():
        tensors[f"features.{n}.weight"] = torch.randn(c_out, c_in, 3, 3, generator=generator) * (2 / (9 * c_in)) ** 0.5
        tensors[f"features.{n}.bias"] = 0.1 * torch.randn(c_out, generator=generator)
    return tensors


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg19.safetensors"
    save_file(random_tensors() | {"classifier.0.bias": torch.zeros(3)}, path)
    return path


@pytest.fixture(scope="module")
def vgg(vgg_file):
    return VGGFeatures(vgg_file, digest(vgg_file))


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(1)
    x = (
        functional.interpolate(torch.rand(2, 3, 16, 24, generator=generator), scale_factor=4, mode="bicubic").clamp(
            0, 1
        )
        * 2
        - 1
    )
    return x, (0.8 * x.roll(3, dims=3) + 0.1 * torch.rand(x.shape, generator=generator)).clamp(-1, 1)


def residual_by_hand(grey, level):
    """Of (H, W) float64: blur, means of 2 x 2; back by weights 3/4 and 1/4, blur."""
    kernel = np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256

    def down(g):
        return correlate(g, kernel, mode="mirror").reshape(g.shape[0] // 2, 2, g.shape[1] // 2, 2).mean((1, 3))

    def up(g):
        for axis in (0, 1):
            g = np.moveaxis(g, axis, 0)
            before, after = np.concatenate([g[:1], g[:-1]]), np.concatenate([g[1:], g[-1:]])
            g = np.stack([0.75 * g + 0.25 * before, 0.75 * g + 0.25 * after], 1).reshape(-1, g.shape[1])
            g = np.moveaxis(g, 0, axis)
        return correlate(g, kernel, mode="mirror")

    for _ in range(level):
        grey = down(grey)
    return grey - up(down(grey))


@pytest.mark.parametrize("level", [0, 1, 3])
def test_the_residual_is_that_of_the_papers_pyramid(pair, level):
    x = pair[0]
    grey = np.tensordot(x.double().numpy(), [0.2989, 0.587, 0.114], axes=(1, 0))
    got = laplacian_residual(x, level)
    assert got.shape == (2, 1, 64 >> level, 96 >> level)
    for i in range(2):
        assert np.allclose(got[i, 0].numpy(), residual_by_hand(grey[i], level), atol=1e-5)


def test_the_residual_of_a_constant_is_nothing_and_of_one_channel_its_own(pair):
    grey = pair[0][:, :1]
    assert float(laplacian_residual(torch.full((1, 3, 32, 32), 0.4)).abs().max()) < 1e-6
    assert torch.allclose(laplacian_residual(grey), laplacian_residual(grey + 0.5), atol=1e-6)
    assert torch.allclose(
        laplacian_residual(grey), laplacian_residual(grey.expand(-1, 3, -1, -1)), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(("shape", "message"), [
    ((1, 3, 272, 480), None), ((1, 3, 270, 480), "270 x 480"), ((1, 1, 64, 40), "64 x 40"), ((1, 1, 16, 64), "16 x 64"),
    ((1, 2, 64, 64), "2 channels"),
])  # fmt: skip
def test_sizes_that_the_pyramid_cannot_halve_are_named(shape, message):
    if message is None:
        assert laplacian_residual(torch.zeros(shape)).shape == (1, 1, 34, 60)
    else:
        with pytest.raises(ValueError, match=message):
            laplacian_residual(torch.zeros(shape))


def phi_by_hand(tensors, x):
    """Of (B, 3, H, W) in [-1, 1], by way of ImageNet's normalisation of [0, 1]."""
    m, s = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((x + 1) / 2 - m.view(1, 3, 1, 1)) / s.view(1, 3, 1, 1)
    for block in ((0, 2), (5, 7)):
        for n in block:
            x = functional.relu(
                functional.conv2d(x, tensors[f"features.{n}.weight"], tensors[f"features.{n}.bias"], padding=1)
            )
        x = functional.max_pool2d(x, 2)
    return x


def test_the_features_are_those_of_the_layer_list(vgg, pair):
    got = vgg(pair[0])
    assert got.shape == (2, 128, 16, 24)
    assert torch.allclose(got, phi_by_hand(random_tensors(), pair[0]), atol=1e-4)
    assert sum(p.numel() for p in vgg.parameters()) == 260_160
    grey = pair[0][:, :1]
    assert torch.equal(vgg(grey), vgg(grey.repeat(1, 3, 1, 1)))


def test_the_loss_with_vgg_is_its_formula(vgg, pair):
    x, y = pair
    tensors = random_tensors()
    difference = phi_by_hand(tensors, x) - phi_by_hand(tensors, y)
    pixel = PerceptualLoss(space="pixel", vgg=vgg)
    assert float(pixel(x, y)) == pytest.approx(float(difference.abs().mean()), rel=1e-4)
    P = [laplacian_residual(z).repeat(1, 3, 1, 1) for z in pair]
    difference = phi_by_hand(tensors, P[0]) - phi_by_hand(tensors, P[1])
    laplacian = PerceptualLoss(space="laplacian", vgg=vgg)
    assert float(laplacian(x, y)) == pytest.approx(float(difference.abs().mean()), rel=1e-4)
    assert pixel.label == "VGG-19 features[:10] on the pixels"
    assert laplacian.label == "VGG-19 features[:10] on the Laplacian level-3 residual"


@pytest.mark.parametrize("space", ["laplacian", "pixel"])
@pytest.mark.parametrize("with_vgg", [True, False])
def test_equal_pictures_cost_nothing_and_only_the_second_one_learns(space, with_vgg, vgg, pair):
    loss = PerceptualLoss(space=space, vgg=vgg if with_vgg else None).train()
    x, y = pair[0], pair[1].clone().requires_grad_()
    assert float(loss(x, x)) == pytest.approx(0, abs=1e-5)
    before = loss(x, y)
    before.backward()
    assert float(before.detach()) > 0
    assert torch.isfinite(y.grad).all()
    assert y.grad.abs().max() > 0
    assert not [p for p in loss.parameters() if p.requires_grad]
    step = y.detach() - 1e-2 * y.grad / y.grad.abs().max()
    assert float(loss(x, step)) < float(before.detach())


def test_the_laplacian_loss_is_blind_to_brightness_and_the_pixel_loss_is_not(vgg, pair):
    x = 0.5 * pair[0]
    for phi in (vgg, None):
        laplacian = PerceptualLoss(space="laplacian", vgg=phi)
        pixel = PerceptualLoss(space="pixel", vgg=phi)
        assert float(laplacian(x, x + 0.3)) < 1e-4
        assert float(pixel(x, x + 0.3)) > 100 * float(laplacian(x, x + 0.3))


def test_without_vgg_it_is_lassim_with_the_range_of_the_input(pair):
    x, y = ((z + 1) / 2 for z in pair)
    loss = PerceptualLoss(space="laplacian", vgg=None)
    assert loss.label == "1 - SSIM on level 3 (no VGG weights given)"
    # The range of a pair of equals is its own.
    assert float(loss(pair[0], pair[0] * 0.999)) == pytest.approx(1 - float(lassim(x, x).mean()), abs=1e-3)
    # y has the larger range here: LaSSIM's own range, and with it the constants, would grow with y.
    wide = (pair[1] * 3).clamp(-1, 1)
    assert float(loss(pair[0], wide)) > 1 - float(lassim(x, (wide + 1) / 2).mean())
    pixel = PerceptualLoss(space="pixel", vgg=None)
    grey = [(z * torch.tensor([0.2125, 0.7154, 0.0721]).view(1, 3, 1, 1)).sum(1, keepdim=True) for z in (x, y)]
    assert float(pixel(*pair)) == pytest.approx(1 - float(ssim(*grey)), abs=1e-5)
    assert pixel.label == "1 - SSIM on grey pixels (no VGG weights given)"


def test_structure_invented_in_a_flat_picture_costs():
    flat = torch.zeros(1, 1, 64, 64)
    invented = flat.clone()
    invented[..., 24:40, 24:40] = 0.5
    assert float(PerceptualLoss(space="laplacian", vgg=None)(flat, invented)) > 0.5


def test_a_file_that_is_not_the_one_named_is_refused(vgg_file, tmp_path):
    with pytest.raises(ModelError, match=r"nowhere\.safetensors: No such file"):
        VGGFeatures(tmp_path / "nowhere.safetensors", "0" * 64)
    altered = tmp_path / "altered.safetensors"
    altered.write_bytes(vgg_file.read_bytes()[:-1] + b"\1")
    with pytest.raises(ModelError, match=r"altered\.safetensors: sha256 is"):
        VGGFeatures(altered, digest(vgg_file))
    other = tmp_path / "other.safetensors"
    other.write_bytes(b"PK" + b"x" * 50)
    with pytest.raises(ModelError, match=r"other\.safetensors: not a safetensors file"):
        VGGFeatures(other, digest(other))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.7.bias": None}, r"has no features\.7\.bias"),
        ({"features.5.weight": torch.zeros(128, 64, 5, 5)}, r"features\.5\.weight is \(128, 64, 5, 5\)"),
        ({"features.0.bias": torch.full((64,), float("nan"))}, r"features\.0\.bias holds non-finite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, message):
    path = tmp_path / "vgg.safetensors"
    save_file({k: t for k, t in (random_tensors() | change).items() if t is not None}, path)
    with pytest.raises(ModelError, match=rf"vgg\.safetensors: {message}"):
        VGGFeatures(path, digest(path))


def test_fewer_layers_need_fewer_tensors(vgg_file, vgg, pair):
    two = VGGFeatures(vgg_file, digest(vgg_file).upper(), layers=2)
    assert two(pair[0]).shape == (2, 64, 64, 96)
    assert list(two.features.state_dict()) == ["0.weight", "0.bias"]
    with pytest.raises(ModelError, match=r"has no features\.10\.bias"):
        VGGFeatures(vgg_file, digest(vgg_file), layers=11)
    with pytest.raises(ValueError, match="1 to 37"):
        VGGFeatures(vgg_file, digest(vgg_file), layers=38)


def test_a_training_recipe_chooses(vgg_file):
    assert perceptual_loss_of(Perceptual(space="pixel")).label == "1 - SSIM on grey pixels (no VGG weights given)"
    chosen = perceptual_loss_of(Perceptual(vgg=vgg_file, vgg_sha256=digest(vgg_file)))
    assert chosen.label == "VGG-19 features[:10] on the Laplacian level-3 residual"
    with pytest.raises(RecipeError, match="vgg_sha256"):
        perceptual_loss_of(Perceptual(vgg=vgg_file))
