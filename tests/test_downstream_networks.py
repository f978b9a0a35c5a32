"""Networks of downstream tasks: layer tables, what their parts compute, colour spaces."""

from __future__ import annotations

import colorsys

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from medenhance_dicom.networks import GatedResNet8, build_network
from medenhance_dicom.networks.colour import rgb_to_hsv, rgb_to_lab
from medenhance_dicom.networks.densenet import DenseNetEncoder
from medenhance_dicom.networks.heatmap import soft_argmax
from medenhance_dicom.networks.resnet8 import bilinear_vector


def parameters(module):
    return sum(p.numel() for p in module.parameters())


def picture(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("heatmap", {}, 97_745),
        ("resnet8", {}, 340_156),
        ("mcfnet", {}, 294_602),
        # Three of torchvision's DenseNet-121 without classifier, 3 (1024 + 1) 3, (3072 + 1) 3, (12 + 1) 3.
        ("mcfnet", {"branch": "densenet121", "classes": 3}, 3 * 6_953_856 + 9_225 + 9_219 + 39),
    ],
)
def test_parameters(name, config, expected):
    with torch.device("meta"):
        assert parameters(build_network(name, **config)) == expected


def test_the_dense_branch_is_densenet_121():
    net = DenseNetEncoder().eval()
    assert parameters(net) == 7_978_856 - 1_025_000  # torchvision's, less the classifier of 1000 classes
    with torch.inference_mode():
        x = picture(1, 3, 64, 96)
        assert net.body(x).shape == (1, 1024, 2, 3)
        assert torch.allclose(net(x), net.body(x).mean(dim=(2, 3)))


@pytest.mark.parametrize(
    ("name", "config", "given", "shape"),
    [
        ("heatmap", {"width": 4}, (2, 3, 64, 96), (2, 1, 8, 12)),
        ("resnet8", {"width": 4, "levels": 5, "channels": 1}, (2, 1, 40, 56), (2, 3, 5)),
        ("mcfnet", {"width": 4, "classes": 3}, (2, 3, 48, 64), (2, 5, 3)),
        ("mcfnet", {"width": 4, "channels": 1}, (2, 1, 48, 64), (2, 5, 2)),
    ],
)
def test_shapes_and_gradients_to_the_picture_and_to_every_parameter(name, config, given, shape):
    torch.manual_seed(0)
    net = build_network(name, **config)
    x = picture(*given).requires_grad_(True)
    out = net(x)
    assert out.shape == shape
    out.square().sum().backward()
    assert torch.isfinite(x.grad).all()
    assert float(x.grad.abs().amax(dim=(1, 2, 3)).min()) > 0
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_the_mean_place_of_a_heat_map():
    heat = torch.full((3, 1, 4, 6), -50.0)
    heat[0, 0, 1, 4] = 50
    heat[1, 0, 0, 0] = heat[1, 0, 2, 2] = 50
    heat[2] = 7.0
    expected = [[1.5 / 4, 4.5 / 6], [1.5 / 4, 1.5 / 6], [0.5, 0.5]]
    assert torch.allclose(soft_argmax(heat), torch.tensor(expected), atol=1e-6)


def test_the_bilinear_vector_by_hand():
    x = torch.tensor([[3.0, 1.0], [-1.0, 1.0]]).view(1, 2, 1, 2)  # X X^T / 2 = [[5, -1], [-1, 1]]
    root = torch.tensor([5**0.5, -1.0, -1.0, 1.0])
    assert torch.allclose(bilinear_vector(x)[0], root / 8**0.5, atol=1e-5)
    zero = torch.zeros(1, 2, 3, 3, requires_grad=True)
    bilinear_vector(zero).sum().backward()
    assert torch.isfinite(zero.grad).all()


def test_the_gate_is_between_a_half_and_one_and_leads_the_second_head():
    torch.manual_seed(0)
    net = GatedResNet8(width=4).eval()
    x = picture(2, 3, 32, 32) * 6 - 3
    with torch.inference_mode():
        h = net.stages(net.stem(x))
        gate = net.gate(h)
        assert gate.shape == (2, 16)
        assert float(gate.min()) >= 0.5
        assert 0.5 < float(gate.max()) < 1
        second = net.fc_2((h * (1 + gate[..., None, None])).mean(dim=(2, 3)))
        assert torch.allclose(net(x)[:, 2], second, atol=1e-5)


def test_output_5_is_made_of_the_other_fours_sigmoids():
    torch.manual_seed(0)
    net = build_network("mcfnet", width=2, classes=3).eval()
    with torch.inference_mode():
        out = net(picture(2, 3, 32, 32))
        assert torch.allclose(out[:, 4], net.final(out[:, :4].sigmoid().flatten(1)), atol=1e-6)
    sums = out[:, 4].sigmoid().sum(dim=1)
    assert (sums - 1).abs().min() > 1e-3  # classes do not exclude each other


def test_hue_saturation_and_value_are_the_standard_librarys():
    rgb = np.concatenate([np.random.default_rng(0).random((60, 3)), np.eye(3), 1 - np.eye(3), np.full((1, 3), 0.4)])
    found = rgb_to_hsv(torch.from_numpy(rgb.T[None, :, None]))[0, :, 0].T.numpy()
    assert np.allclose(found, [colorsys.rgb_to_hsv(*pixel) for pixel in rgb], atol=1e-9)


def test_lab_is_what_a_colour_management_system_makes_of_srgb():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    transform = ImageCms.buildTransformFromOpenProfiles(srgb, lab, "RGB", "LAB")
    expected = np.asarray(ImageCms.applyTransform(Image.fromarray(pixels), transform))
    expected = expected ^ np.array([0, 128, 128], np.uint8)  # a and b come as signed bytes
    found = rgb_to_lab(torch.from_numpy(pixels / 255).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    assert np.abs(255 * found - expected).max() < 0.7
    black_and_white = rgb_to_lab(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2).expand(1, 3, 1, 2))
    assert torch.allclose(black_and_white[0, 0, 0], torch.tensor([0.0, 1.0]), atol=1e-4)


@pytest.mark.parametrize("convert", [rgb_to_hsv, rgb_to_lab])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_colour_spaces_have_finite_gradients_on_grey(convert, value):
    x = torch.full((1, 3, 2, 2), value, requires_grad=True)
    convert(x).sum().backward()
    assert float(x.grad.abs().max()) < 1000
