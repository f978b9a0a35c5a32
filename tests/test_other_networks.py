"""ResNet-9, EnlightenGAN's generator, CS-Net and U-Net: layer tables, ranges, what their parts compute."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from medenhance_dicom.networks import NETWORKS, CSNet, EnlightenGANGenerator, ResNet9Generator, UNet, build_network
from medenhance_dicom.networks.csnet import ChannelAttention, SpatialAttention
from medenhance_dicom.networks.enlightengan import attention_map


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("resnet9", {}, 11_378_179),
        ("enlightengan", {}, 8_636_739),
        ("csnet", {}, 8_400_163),
        ("csnet", {"width": 8, "poolings": 3}, 131_483),
    ],
)
def test_the_paper_presets_have_the_published_parameters(name, config, expected):
    with torch.device("meta"):
        assert sum(p.numel() for p in build_network(name, **config).parameters()) == expected


@pytest.mark.parametrize(
    ("name", "config", "shape"),
    [
        ("resnet9", {"width": 2}, (2, 3, 36, 28)),
        ("resnet9", {"channels": 1, "width": 2, "head": "normalised_gain"}, (1, 1, 24, 40)),
        ("enlightengan", {"width": 2}, (2, 3, 48, 32)),
        ("enlightengan", {"channels": 1, "width": 2}, (1, 1, 16, 64)),
    ],
)
def test_generators_keep_the_size_and_the_range(name, config, shape):
    torch.manual_seed(0)
    net = build_network(name, **config).eval()
    assert shape[2] % net.multiple == shape[3] % net.multiple == 0
    assert net.channels == shape[1]
    x = picture(*shape) * 2 - 1
    with torch.inference_mode():
        y = net(x)
    assert y.shape == shape
    assert float(y.abs().max()) <= 1
    assert float(y.std()) > 0


@pytest.mark.parametrize(
    ("name", "config", "shape"),
    [
        ("csnet", {"width": 4}, (2, 1, 32, 48)),
        ("csnet", {"width": 4, "poolings": 3, "channels": 3}, (1, 3, 24, 16)),
        ("unet", {"width": 2}, (2, 3, 40, 24)),
        ("unet", {"width": 2, "channels": 1, "poolings": 2}, (1, 1, 12, 20)),
    ],
)
def test_segmenters_give_logits_of_the_pictures_size(name, config, shape):
    torch.manual_seed(0)
    net = build_network(name, **config).eval()
    assert shape[2] % net.multiple == shape[3] % net.multiple == 0
    torch.nn.init.constant_(net.last.bias, 7.0)
    with torch.inference_mode():
        logits = net(picture(*shape))
    assert logits.shape == (shape[0], 1, *shape[2:])
    assert float(logits.max()) > 1  # no sigmoid inside


@pytest.mark.parametrize("name", ["resnet9", "enlightengan", "csnet", "unet"])
def test_gradients_reach_every_parameter(name):
    torch.manual_seed(0)
    net = build_network(name, width=4, channels=3)
    for p in net.parameters():
        if p.numel() == 1:
            torch.nn.init.constant_(p, 0.5)  # the gammas of attention, which start at 0
    net(picture(2, 3, 32, 48)).square().mean().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", ["csnet", "unet"])
def test_segmenters_learn_a_bright_line(name):
    torch.manual_seed(0)
    net = build_network(name, channels=1, width=4, poolings=2)
    x, t = 0.2 * picture(2, 1, 32, 32), torch.zeros(2, 1, 32, 32)
    t[0, :, 10:13], t[1, :, :, 20:23] = 1, 1
    x = x + 0.5 * t
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for _ in range(30):
        loss = F.binary_cross_entropy_with_logits(net(x), t)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    overlap = ((net(x) > 0) == (t > 0.5)).float().mean()
    assert float(overlap) > 0.99


def test_resnet9_with_a_gain_head_starts_as_the_identity():
    x = picture(1, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        assert torch.allclose(ResNet9Generator(width=2, head="gain")(x), x, atol=1e-6)


def test_the_attention_map_is_one_minus_luma():
    x = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1)
    assert float(attention_map(x)) == pytest.approx(1 - 0.299)
    assert float(attention_map(-x)) == pytest.approx(0.299)
    assert float(attention_map(torch.full((1, 1, 1, 1), 0.5))) == pytest.approx(0.25)


def test_enlightengan_leaves_white_alone_and_lights_the_dark():
    torch.manual_seed(0)
    net = EnlightenGANGenerator(width=2).eval()
    torch.nn.init.constant_(net.last.bias, 0.5)
    torch.nn.init.zeros_(net.last.weight)
    x = torch.full((1, 3, 32, 32), 1.0)
    x[..., 16:] = -0.6  # g = 0.8
    with torch.inference_mode():
        y = net(x)
    assert torch.allclose(y[..., :16], x[..., :16])
    assert torch.allclose(y[..., 16:], torch.tensor(-0.6 + 0.8 * 0.5), atol=1e-6)


def test_spatial_attention_is_its_formula():
    torch.manual_seed(0)
    layer, x = SpatialAttention(16).eval(), torch.randn(2, 16, 5, 4)
    with torch.inference_mode():
        assert torch.equal(layer(x), x)
        layer.gamma.fill_(0.7)
        q, k, v = (part(x).flatten(2) for part in (layer.query, layer.key, layer.value))  # (B, c, N)
        affinity = (q.transpose(1, 2) @ k).softmax(dim=-1)  # (B, N, N)
        expected = 0.7 * (v @ affinity.transpose(1, 2)).view_as(x) + x
        assert torch.allclose(layer(x), expected, atol=1e-5)


def test_channel_attention_is_its_formula():
    x = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2)  # X X^T = diag(1, 4)
    layer = ChannelAttention()
    with torch.inference_mode():
        assert torch.equal(layer(x), x)
        layer.gamma.fill_(1.0)
        a, b = torch.tensor([0.0, 1.0]).softmax(0), torch.tensor([4.0, 0.0]).softmax(0)
        expected = torch.stack([a, b]) @ x.view(2, 2) + x.view(2, 2)
        assert torch.allclose(layer(x).view(2, 2), expected, atol=1e-6)


def test_csnet_adds_both_attentions_to_its_bottom():
    torch.manual_seed(0)
    net, seen = CSNet(width=2, poolings=1).eval(), []
    net.encoder[-1].register_forward_hook(lambda _, __, out: seen.append(out))
    net.up[-1].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    with torch.inference_mode():
        net(picture(1, 1, 8, 8))
    assert torch.allclose(seen[1], 3 * seen[0], atol=1e-6)  # both gammas are 0: x + x + x


def test_the_default_unet_is_small():
    assert sum(p.numel() for p in UNet().parameters()) < 500_000


def test_every_network_is_built_by_name():
    translating = {"enlightengan", "fields", "hqgnet", "resnet9", "stillgan"}
    judging = {"csnet", "guide_encoder", "heatmap", "look_encoder", "mcfnet", "resnet8", "unet"}
    assert set(NETWORKS) == translating | judging | {"detector", "colour_detector"}
    for name in translating | judging:
        assert isinstance(build_network(name, channels=1, width=4), NETWORKS[name])
    assert isinstance(build_network("detector", widths=(4, 4, 4, 4)), NETWORKS["detector"])
