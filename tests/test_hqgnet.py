"""HQG-Net's generator and cue extractor: layer tables, AdaLIN, what the guide does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from medenhance_dicom.networks import GuideDecoder, GuidedNetwork, GuideEncoder, HQGNetGenerator, build_network
from medenhance_dicom.networks.hqgnet import VIN, adalin
from medenhance_dicom.networks.resnet import BasicBlock, Bottleneck, ResNetEncoder


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def picture(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def code(batch: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 64, generator=torch.Generator().manual_seed(seed))


def small(**config) -> HQGNetGenerator:
    torch.manual_seed(0)
    return HQGNetGenerator(width=4, **config).eval()


def giga_macs(module: torch.nn.Module, *inputs: torch.Tensor) -> float:
    macs = 0

    def count(layer, _, out):
        nonlocal macs
        macs += out.numel() * layer.weight[0].numel()

    for layer in module.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    module(*inputs)
    return macs / 1e9


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 54_328_275),
        ({"stem": "light"}, 37_634_579),
        ({"norm": "instance"}, 54_328_275),
        ({"adaptive": "adain"}, 54_328_275 - 1_472),  # no rho
        ({"guidance": "learned"}, 54_328_275 + 64),
        ({"guidance": "none"}, 54_328_275 - 162 * 1_472),  # no W, no b of [gamma, T]
        ({"channels": 1}, 54_328_275 - 2 * 64 * 49 - 2 * 65),
        ({"head": "gain"}, 54_328_275 + 3 * 65),
    ],
)
def test_the_paper_preset_has_its_parameters(config, expected):
    with torch.device("meta"):
        assert parameters(HQGNetGenerator(**config)) == expected


def test_the_encoders_have_torchvisions_parameters():
    with torch.device("meta"):
        assert parameters(ResNetEncoder(Bottleneck, (3, 4, 6, 3), channels=3, width=64)) == 23_508_032
        assert parameters(ResNetEncoder(BasicBlock, (2, 2, 2, 2), channels=3, width=64)) == 11_176_512
        assert parameters(GuideEncoder()) == 11_209_344


@pytest.mark.slow
@pytest.mark.parametrize(("stem", "expected"), [("full", 81.44), ("light", 23.25)])
def test_the_paper_preset_has_its_operations(stem, expected):
    with torch.device("meta"):
        macs = giga_macs(HQGNetGenerator(stem=stem), torch.zeros(1, 3, 384, 384), torch.zeros(1, 64))
        assert macs == pytest.approx(expected, rel=5e-3)
        assert giga_macs(GuideEncoder(), torch.zeros(1, 3, 384, 384)) == pytest.approx(5.33, rel=5e-3)


@pytest.mark.parametrize(("fine", "sides"), [(True, [192, 96, 48, 24]), (False, [96, 48, 24, 12])])
def test_the_taps_of_the_encoder(fine, sides):
    with torch.device("meta"):
        net = ResNetEncoder(Bottleneck, (3, 4, 6, 3), channels=1, width=64, fine=fine)
        taps = net(torch.zeros(1, 1, 384, 384))
    assert [(f.shape[1], f.shape[2]) for f in taps] == list(zip([256, 512, 1024, 2048], sides, strict=True))


def test_only_instance_normalisation_has_no_running_statistics():
    assert any("running" in key for key in small().state_dict())
    assert not any("running" in key for key in small(norm="instance").state_dict())


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        ({}, (2, 3, 64, 48)),
        ({"stem": "light", "channels": 1}, (1, 1, 64, 96)),
        ({"norm": "instance", "head": "gain"}, (1, 3, 32, 80)),
        ({"adaptive": "adain", "head": "normalised_gain"}, (2, 3, 48, 64)),
        ({"adaptive": "adaln", "guidance": "none"}, (1, 3, 64, 32)),
    ],
)
def test_the_output_has_the_inputs_size_and_the_unit_range(config, shape):
    net = small(**config)
    assert shape[2] % net.multiple == shape[3] % net.multiple == 0
    assert net.channels == shape[1]
    with torch.inference_mode():
        x_hat, v_y = net.enhance(picture(*shape), code(shape[0]))
    assert x_hat.shape == shape
    assert v_y.shape == (shape[0], 16)
    assert 0 <= float(x_hat.min()) <= float(x_hat.max()) <= 1
    assert float(x_hat.std()) > 0


@pytest.mark.parametrize("width", [4, 16])
def test_the_start_is_neither_faint_nor_saturated(width):
    torch.manual_seed(0)
    net, y = HQGNetGenerator(width=width, norm="instance"), picture(1, 3, 64, 64)
    with torch.inference_mode():
        a, b = net(y, code(1, seed=0)), net(y, code(1, seed=1))
    assert 0.01 < float(a.std()) < 0.2
    assert float((a - b).square().mean().sqrt()) > 1e-3  # a quarter of a grey level


def test_the_content_vector_is_the_one_of_enhance():
    net, y = small(), picture(2, 3, 32, 48)
    with torch.inference_mode():
        assert torch.equal(net.content_vector(y), net.enhance(y, code(2))[1])
        f_4 = net.encoder(y)[3]
        assert torch.allclose(net.content_vector(y), net.fc_e(F.adaptive_avg_pool2d(f_4, 1).flatten(1)), atol=1e-6)


def test_a_gain_head_starts_as_the_identity():
    y = picture(1, 3, 48, 32)
    with torch.inference_mode():
        assert torch.allclose(small(head="gain")(y, code(1)), y, atol=1e-6)
        assert not torch.allclose(small(head="normalised_gain")(y, code(1)), y, atol=1e-2)


@pytest.fixture
def r():
    return 3 * torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(1)) + torch.arange(5.0)[:, None, None]


def test_adalin_is_instance_or_layer_normalisation_at_its_ends(r):
    zero, rho = torch.zeros(2, 5, 1, 1), torch.ones(1, 5, 1, 1)
    IN, LN = F.instance_norm(r), F.layer_norm(r, r.shape[1:])
    assert torch.allclose(adalin(r, zero, zero, rho), IN, atol=1e-5)
    assert torch.allclose(adalin(r, zero, zero, 0 * rho), LN, atol=1e-5)
    assert float(adalin(r, zero, zero, rho).mean(dim=(2, 3)).abs().max()) < 1e-5
    assert float(adalin(r, zero, zero, 0.5 * rho).mean(dim=(2, 3)).abs().max()) > 0.1


def test_adalin_is_the_mix_of_adain_and_adaln(r):
    generator = torch.Generator().manual_seed(2)
    gamma, T = torch.randn(2, 2, 5, 1, 1, generator=generator)
    rho = torch.rand(1, 5, 1, 1, generator=generator)
    S = 1 + gamma
    adain = S * F.instance_norm(r) + T
    adaln = S * F.layer_norm(r, r.shape[1:]) + T
    assert torch.allclose(adalin(r, gamma, T, rho), rho * adain + (1 - rho) * adaln, atol=1e-5)


def test_adalin_keeps_float32_under_autocast(r):
    zero, rho = torch.zeros(2, 5, 1, 1), torch.full((1, 5, 1, 1), 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        low = adalin(r, zero.bfloat16(), zero.bfloat16(), rho)
    assert low.dtype == torch.float32
    assert torch.equal(low, adalin(r, zero, zero, rho))


@pytest.mark.parametrize(("adaptive", "rho"), [("adalin", 0.5), ("adain", 1.0), ("adaln", 0.0)])
def test_vin_is_figure_3c(r, adaptive, rho):
    torch.manual_seed(0)
    vin, v_c = VIN(5, adaptive, guided=True), torch.randn(2, 80)
    gamma, T = vin.fc(v_c)[:, :, None, None].split(5, dim=1)
    normalised = (1 + gamma) * (rho * F.instance_norm(r) + (1 - rho) * F.layer_norm(r, r.shape[1:])) + T
    with torch.inference_mode():
        assert torch.allclose(vin(r, v_c), r + vin.conv(F.leaky_relu(normalised, 0.2)), atol=1e-4)
    assert [name for name, _ in vin.named_parameters() if name == "rho"] == ["rho"] * (adaptive == "adalin")


def test_unguided_vin_normalises_without_scale_and_shift(r):
    torch.manual_seed(0)
    vin = VIN(5, "adalin", guided=False)
    normalised = 0.5 * F.instance_norm(r) + 0.5 * F.layer_norm(r, r.shape[1:])
    with torch.inference_mode():
        assert torch.allclose(vin(r, torch.randn(2, 16)), r + vin.conv(F.leaky_relu(normalised, 0.2)), atol=1e-4)


def test_rho_is_clamped():
    net = small()
    rhos = [p.detach() for name, p in net.named_parameters() if name.endswith("rho")]
    assert [p.shape[1] for p in rhos] == [4, 8, 16, 64]
    assert all(float(p.min()) == float(p.max()) == 0.5 for p in rhos)
    for p in rhos:
        p.copy_(torch.linspace(-1, 2, p.numel()).view_as(p))  # in the generator's own memory
    net.clamp_rho()
    assert all((float(p.min()), float(p.max())) == (0, 1) for p in rhos)
    small(adaptive="adaln").clamp_rho()


@pytest.mark.parametrize(("guidance", "depends"), [("guided", True), ("learned", False), ("none", False)])
def test_what_depends_on_the_guide(guidance, depends):
    net = small(guidance=guidance)
    torch.manual_seed(1)
    for module in net.modules():
        if isinstance(module, VIN) and module.fc is not None:
            torch.nn.init.normal_(module.fc.weight, 0.0, 0.1)
    y = picture(1, 3, 32, 48)
    with torch.inference_mode():
        a, b = net(y, code(1, seed=0)), net(y, code(1, seed=1))
        assert torch.equal(a, b) is not depends
        if not depends:
            assert torch.equal(a, net(y))


def test_the_learned_code_leads_like_a_guide():
    net, y = small(guidance="learned"), picture(1, 3, 32, 48)
    guided = small()
    guided.load_state_dict({k: v for k, v in net.state_dict().items() if k != "v_z"})
    with torch.inference_mode():
        assert torch.equal(net(y, None), guided(y, net.v_z))


def test_one_code_serves_the_whole_batch():
    net, y = small(), picture(3, 3, 32, 48)
    with torch.inference_mode():
        assert torch.allclose(net(y, code(1)), net(y, code(1).repeat(3, 1)), atol=1e-6)
        assert torch.allclose(net(y, code(1))[1:2], net(y[1:2], code(1)), atol=1e-5)  # no batch statistics


def test_a_guided_generator_needs_a_guide():
    with pytest.raises(ValueError, match="v_z"):
        small()(picture(1, 3, 32, 32))


@pytest.mark.parametrize("guidance", ["guided", "learned", "none"])
@pytest.mark.parametrize("norm", ["batch", "instance"])
def test_gradients_reach_every_parameter(guidance, norm):
    net = small(guidance=guidance, norm=norm).train()
    v_z = code(2).requires_grad_()
    x_hat, v_y = net.enhance(picture(2, 3, 64, 48), v_z)
    (x_hat.square().mean() + v_y.square().mean()).backward()
    learning = [(name, p) for name, p in net.named_parameters() if p.requires_grad]
    assert [name for name, p in learning if p.grad is None or not p.grad.any()] == []
    unread = {"fc_e.weight", "fc_e.bias"} if guidance == "none" else set()
    assert {name for name, p in net.named_parameters() if not p.requires_grad} == unread
    assert (v_z.grad is not None and bool(v_z.grad.any())) is (guidance == "guided")


@pytest.mark.slow
@pytest.mark.parametrize("stem", ["full", "light"])
def test_the_paper_presets_take_a_step(stem):
    torch.manual_seed(0)
    net = HQGNetGenerator(stem=stem)
    y, target = picture(1, 3, 64, 64), picture(1, 3, 64, 64, seed=1)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3)
    losses = []
    for _ in range(2):
        loss = F.mse_loss(net(y, code(1)), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        net.clamp_rho()
        losses.append(float(loss.detach()))
    assert losses[1] < losses[0] < 0.3  # a grey start, not a saturated one


def test_a_guided_network_is_the_generator_in_another_range():
    net, y, v_z = small(), picture(2, 3, 32, 48), code(1)[0]
    bound = GuidedNetwork(net, v_z)
    assert (bound.channels, bound.multiple) == (3, 16)
    assert torch.equal(bound.state_dict()["v_z"], v_z)
    with torch.inference_mode():
        assert torch.allclose(bound(2 * y - 1), 2 * net(y, v_z[None]) - 1, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 64), (80,)])
def test_a_guided_network_checks_the_codes_shape(shape):
    with pytest.raises(ValueError, match="64 numbers"):
        GuidedNetwork(small(), torch.zeros(shape))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    "config", [{"norm": "instance"}, {"guidance": "none", "head": "gain"}, {"guidance": "learned", "stem": "light"}]
)
def test_a_guided_network_is_traced_for_every_size(config):
    bound = GuidedNetwork(small(**config), code(1)[0])
    x = picture(2, 3, 64, 96) * 2 - 1
    with torch.inference_mode():
        traced = torch.jit.trace(bound, torch.zeros(1, 3, 64, 64), check_trace=False)
        assert torch.allclose(traced(x), bound(x), atol=1e-5)


@pytest.mark.slow
def test_a_guided_network_runs_in_openvino():
    pytest.importorskip("openvino")
    from medenhance_dicom.enhancer import EnhancerSpec
    from medenhance_dicom.inference import NetworkEnhancer

    enhancer = NetworkEnhancer(
        GuidedNetwork(small(norm="instance"), code(1)[0]), EnhancerSpec(channels=3, multiple=16), engine="openvino"
    )
    frames = picture(1, 32, 48, 3).numpy()
    assert np.abs(enhancer(frames) - enhancer.reference(frames)).max() < 1e-3


@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 1, 75, 130)])
def test_the_guide_encoder_takes_any_size(shape):
    net = build_network("guide_encoder", channels=shape[1], width=4).eval()
    with torch.inference_mode():
        assert net(picture(*shape)).shape == (shape[0], 64)


def test_the_guide_encoder_codes_each_picture_by_itself():
    torch.manual_seed(0)
    net, z = GuideEncoder(width=4).eval(), picture(2, 3, 64, 64)
    with torch.inference_mode():
        v_z = net(z)
        assert torch.allclose(v_z[1:], net(z[1:]), atol=1e-5)
    assert not torch.allclose(v_z[0], v_z[1], atol=1e-4)


def test_the_auto_encoder_learns():
    torch.manual_seed(0)
    encoder, decoder = GuideEncoder(channels=1, width=4), GuideDecoder(channels=1, width=4, size=64)
    z = torch.stack([torch.linspace(0, 1, 64).expand(64, 64), torch.linspace(1, 0, 64).expand(64, 64)])[:, None]
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=5e-3)
    losses = []
    for _ in range(40):
        out = decoder(encoder(z))
        loss = F.mse_loss(out, z)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert out.shape == z.shape
    assert 0 <= float(out.detach().min()) <= float(out.detach().max()) <= 1
    assert losses[-1] < losses[0] / 3
    unreached = [p.shape for p in [*encoder.parameters(), *decoder.parameters()] if p.grad is None or not p.grad.any()]
    assert unreached == []


@pytest.mark.parametrize("size", [8, 64, 256])
def test_the_guide_decoder_has_its_size(size):
    with torch.device("meta"):
        assert GuideDecoder(size=size)(torch.zeros(2, 64)).shape == (2, 3, size, size)


@pytest.mark.parametrize("size", [0, 4, 100, 384])
def test_the_guide_decoder_refuses_other_sizes(size):
    with pytest.raises(ValueError, match="power of two"):
        GuideDecoder(size=size)
