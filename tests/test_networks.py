"""Layer tables of the papers: parameter counts, sizes, ranges."""

from __future__ import annotations

import pytest
import torch

from medenhance_dicom.networks import build_network
from medenhance_dicom.networks.heads import apply_gain
from medenhance_dicom.training.discriminators import PatchDiscriminator


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("layout", "channels", "expected"),
    [("figure", 3, 58_553_155), ("released", 3, 78_643_971), ("released", 1, 78_642_561)],
)
def test_the_paper_preset_has_the_published_parameters(layout, channels, expected):
    with torch.device("meta"):
        assert parameters(build_network("stillgan", channels=channels, width=64, layout=layout)) == expected


@pytest.mark.parametrize(("channels", "expected"), [(1, 2_762_689), (3, 2_764_737)])
def test_the_discriminator_has_the_published_parameters(channels, expected):
    assert parameters(PatchDiscriminator(channels=channels)) == expected


@pytest.mark.parametrize(("side", "out"), [(256, 30), (384, 46), (512, 62)])
def test_the_discriminator_sees_patches(side, out):
    with torch.device("meta"):
        assert PatchDiscriminator(channels=1)(torch.zeros(1, 1, side, side)).shape == (1, 1, out, out)


def test_the_discriminator_has_a_receptive_field_of_70():
    net = PatchDiscriminator(channels=1, width=2).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.InstanceNorm2d):
            module.forward = lambda x: x  # its statistics reach the whole picture
    x = torch.zeros(1, 1, 256, 256, requires_grad=True)
    net(x)[0, 0, 15, 15].backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == 70


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({"channels": 3, "width": 2}, (1, 3, 256, 128)),
        ({"channels": 1, "width": 2, "layout": "released"}, (1, 1, 512, 256)),
        ({"channels": 1, "width": 2, "head": "normalised_gain"}, (2, 1, 256, 256)),
    ],
)
def test_the_output_has_the_inputs_size_and_the_unit_range(config, shape):
    net = build_network("stillgan", **config)
    assert shape[2] % net.multiple == 0
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        y = net(x)
    assert y.shape == x.shape
    assert float(y.abs().max()) <= 1


def test_a_gain_head_starts_as_the_identity():
    x = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        assert torch.allclose(build_network("stillgan", width=2, head="gain")(x), x, atol=1e-6)


def test_the_gain_is_a_bounded_exponent_and_the_offset_is_added():
    x = torch.tensor([-0.6, 0.2]).view(1, 2, 1, 1)  # 0.2 and 0.6 of the unit range
    h = torch.tensor([0.5, -0.5, 0.1, 0.0]).view(1, 4, 1, 1)
    expected = [2 * (0.2 * 2.0000568 + 0.0996680) - 1, 2 * 0.6 / 2.0000568 - 1]  # e^(1.5 tanh(1/2)), tanh(1/10)
    assert apply_gain(x, h, normalised=False).flatten().tolist() == pytest.approx(expected, abs=1e-5)
    assert apply_gain(x, 100 * h, normalised=False).flatten().tolist() == pytest.approx(
        [1.0, 2 * 0.6 * 0.2231302 - 1], abs=1e-5
    )


def test_the_normalised_gain_sees_no_brightness_and_no_contrast():
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y = apply_gain(x, torch.zeros(2, 2, 8, 8), normalised=True)
    assert torch.allclose(y, apply_gain(0.3 * x + 0.5, torch.zeros(2, 2, 8, 8), normalised=True), atol=1e-5)
    assert ((y + 1) / 2).mean(dim=(1, 2, 3)).tolist() == pytest.approx([0.37, 0.37], abs=1e-5)
    assert ((y + 1) / 2).std(dim=(1, 2, 3), correction=0).tolist() == pytest.approx([0.1, 0.1], abs=1e-5)


def test_a_misspelt_option_is_an_error():
    with pytest.raises(TypeError):
        build_network("stillgan", widht=16)
