"""The papers' losses against numbers worked out from their formulas; the discriminators' layers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch.nn import functional

from medenhance_dicom.training.discriminators import PatchDiscriminator
from medenhance_dicom.training.losses import (
    adversarial_loss,
    cycle_loss,
    discriminator_loss,
    gram_distance,
    gram_loss,
    haar_bands,
    haar_loss,
    identity_loss,
    illumination_loss,
    reconstruction_loss,
    relativistic_loss,
    ssim,
    structure_loss,
)

X = torch.linspace(-1, 1, 512).expand(512, 512)[None, None]
Y = X.transpose(2, 3)
J = torch.arange(512).float()
GRATING = (0.6 * torch.sin(2 * math.pi * J / 24)).expand(512, 512)[None, None].contiguous()
SHIFTED = (0.6 * torch.sin(2 * math.pi * J / 24 + math.pi / 2)).expand(512, 512)[None, None].contiguous()


@pytest.mark.parametrize(
    ("picture", "l48", "l96"),
    [
        (torch.full_like(X, 0.3), 0.0, 0.0),
        (X, 0.187041, 0.184554),
        (X * Y, 0.069969, 0.068129),
        (torch.sign(X), 0.486333, 0.472659),
    ],
)
def test_illumination_loss_has_the_published_values(picture, l48, l96):
    assert float(illumination_loss(picture, patches=(48,))) == pytest.approx(l48, abs=1e-4)
    assert float(illumination_loss(picture, patches=(96,))) == pytest.approx(l96, abs=1e-4)
    assert float(illumination_loss(picture)) == pytest.approx((l48 + l96) / 2, abs=1e-4)


def test_illumination_of_one_block_is_zero_and_of_pixels_the_mean_deviation():
    picture = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    assert float(illumination_loss(picture, patches=(96,), crop=96)) == pytest.approx(0, abs=1e-6)
    u = (picture + 1) / 2
    expected = (u - u.mean(dim=(2, 3), keepdim=True)).abs().mean()
    assert float(illumination_loss(picture, patches=(1,), crop=96)) == pytest.approx(float(expected), abs=1e-6)


def test_a_block_size_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="48 does not divide 100"):
        illumination_loss(torch.zeros(1, 1, 100, 100), patches=(48,))


@pytest.mark.parametrize(
    ("other", "quiet", "noisy"),
    [
        (GRATING, 0.0, 0.0),
        (SHIFTED, 0.880796, 0.866591),
        (-GRATING, 1.730366, 1.695396),
        (0.5 * GRATING, 0.001756, 0.009715),
        (0.5 * GRATING + 0.3, 0.003042, 0.010919),
        (0 * GRATING, 0.014096, 0.503626),
        (GRATING.transpose(2, 3).contiguous(), 0.879391, 0.863763),
    ],
)
def test_structure_loss_has_the_published_values(other, quiet, noisy):
    noise = torch.from_numpy(np.random.RandomState(0).normal(0, 0.01, (1, 1, 384, 384))).float()
    assert float(structure_loss(GRATING, other, noise=0.0)) == pytest.approx(quiet, abs=1e-4)
    assert float(structure_loss(GRATING, other, noise=noise)) == pytest.approx(noisy, abs=1e-4)


def test_structure_loss_of_a_flat_picture_has_finite_gradients():
    flat = torch.zeros(1, 1, 64, 64, requires_grad=True)
    structure_loss(GRATING[..., :64, :64], flat, noise=0.0).backward()
    assert torch.isfinite(flat.grad).all()


def test_structure_noise_follows_its_generator():
    a, b = GRATING[..., :64, :64], 0.5 * GRATING[..., :64, :64]
    first, again, other = (structure_loss(a, b, generator=torch.Generator().manual_seed(s)).item() for s in (1, 1, 2))
    assert first == again != other


def test_adversarial_losses_by_hand():
    logits = torch.tensor([[0.0, 2.0]])
    assert float(adversarial_loss(logits, real=True)) == pytest.approx(1.0)  # ((0-1)^2 + (2-1)^2) / 2
    assert float(adversarial_loss(logits, real=False)) == pytest.approx(2.0)
    assert float(discriminator_loss(logits, logits)) == pytest.approx(1.5)
    bce = (math.log(2) + math.log(1 + math.exp(-2))) / 2
    assert float(adversarial_loss(logits, real=True, mode="bce")) == pytest.approx(bce)


def test_cycle_and_identity_are_mean_absolute_differences():
    x, y = torch.tensor([1.0, -1.0]), torch.tensor([0.5, 0.0])
    assert float(cycle_loss(x, y)) == float(identity_loss(x, y)) == pytest.approx(0.75)


def test_the_relativistic_loss_by_hand():
    real, fake = torch.tensor([1.0, 3.0]), torch.tensor([0.0, 0.0])
    # (1 - 0 - 1)^2, (3 - 0 - 1)^2 -> 2; (0 - 2)^2 -> 4
    assert float(relativistic_loss(real, fake, for_generator=False)) == pytest.approx(6)
    # (0 - 2 - 1)^2 -> 9; (1 - 0)^2, (3 - 0)^2 -> 5
    assert float(relativistic_loss(real, fake, for_generator=True)) == pytest.approx(14)


def test_the_players_of_the_relativistic_loss_pull_apart():
    real, fake = torch.tensor([0.2, 0.4]), torch.tensor([0.1, 0.3], requires_grad=True)
    relativistic_loss(real, fake, for_generator=True).backward()
    assert (fake.grad < 0).all()  # a step against the gradient makes them more real
    fake.grad = None
    relativistic_loss(real, fake, for_generator=False).backward()
    assert (fake.grad > 0).all()


EPSILON = 0.1
ROW = torch.arange(8)[:, None].expand(8, 8)
COLUMN = ROW.T
PICTURES = {
    "constant": torch.full((8, 8), 0.7),
    "blocks": (0.1 * ((ROW // 2) * 3 + (COLUMN // 2) ** 2)).float(),
    "checkerboard": EPSILON * (1 - 2 * ((ROW + COLUMN) % 2)).float(),
    "columns": EPSILON * (1 - 2 * (COLUMN % 2)).float(),
    "rows": EPSILON * (1 - 2 * (ROW % 2)).float(),
    "ramp": EPSILON * COLUMN.float(),
    "wide columns": EPSILON * (1 - 2 * (COLUMN // 2 % 2)).float(),
    "pixel": EPSILON * ((ROW == 3) & (COLUMN == 4)).float(),
}


def haar_of(name, **options):
    x = PICTURES[name][None, None]
    return float(haar_loss(x + 0.3, torch.full_like(x, 0.3), **options))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", 0), ("blocks", 0), ("checkerboard", 2 * EPSILON / 3), ("columns", 2 * EPSILON / 3),
        ("ramp", EPSILON / 3), ("wide columns", 0), ("pixel", EPSILON / 32),
    ],
)  # fmt: skip
def test_the_haar_loss_has_the_values_of_its_formula(name, expected):
    assert haar_of(name) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("name", "bands"), [("columns", (1, 0, 0)), ("rows", (0, 1, 0)), ("checkerboard", (0, 0, 1))])
def test_each_haar_band_sees_its_own_detail(name, bands):
    others = tuple(1 - b for b in bands)
    assert haar_of(name, bands=bands) == pytest.approx(2 * EPSILON / 3)
    assert haar_of(name, bands=others) == pytest.approx(0, abs=1e-6)
    thirds = sum(haar_of("pixel", bands=b) for b in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))
    assert thirds == pytest.approx(haar_of("pixel"))


def test_haar_bands_are_weighed_in_every_channel():
    x = torch.stack([PICTURES["columns"], PICTURES["rows"], 2 * PICTURES["columns"]])[None]
    assert float(haar_loss(x, 0 * x, bands=(1, 0, 0))) == pytest.approx((1 + 0 + 2) / 3 * 2 * EPSILON / 3)
    assert float(haar_loss(x, 0 * x, bands=(0, 3, 0))) == pytest.approx(3 * (0 + 1 + 0) / 3 * 2 * EPSILON / 3)


def test_a_second_haar_level_sees_what_the_first_cannot():
    # LL holds stripes of +-2 epsilon, their HL 4 epsilon; one of three bands, one of two levels.
    assert haar_of("wide columns", levels=2) == pytest.approx(2 * EPSILON / 3)
    with pytest.raises(ValueError, match="3 x 3"):
        haar_loss(torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6), levels=2)
    with pytest.raises(ValueError, match="at least 1"):
        haar_of("ramp", levels=0)


def test_the_haar_transform_is_orthonormal_and_keeps_channels_apart():
    x = torch.rand(2, 3, 12, 8, generator=torch.Generator().manual_seed(0))
    high = haar_bands(x)
    assert high.shape == (2, 9, 6, 4)
    low = 2 * functional.avg_pool2d(x, 2)
    assert float(high.square().sum() + low.square().sum()) == pytest.approx(float(x.square().sum()), rel=1e-5)
    p, q, r, s = x[0, 1, 2:4, 4:6].flatten()
    expected = torch.stack([p + q - r - s, p - q + r - s, p - q - r + s]) / 2
    assert torch.allclose(high[0, 1::3, 1, 2], expected)  # second channel of LH, HL, HH


def test_the_gram_distance_has_the_values_of_its_formula():
    e1, e2 = torch.eye(2)[:1], torch.eye(2)[1:]
    v = torch.tensor([[0.3, -2.0]])
    assert float(gram_distance(e1, e2)) == pytest.approx(math.sqrt(2))
    assert float(gram_distance(2 * e1, e1)) == pytest.approx(3)
    assert float(gram_distance(v, -v)) == pytest.approx(0, abs=1e-5)
    assert float(gram_loss(2 * e1, e1)) == pytest.approx(3 / 2)  # / D


def test_the_gram_distance_is_that_of_the_matrices():
    generator = torch.Generator().manual_seed(0)
    a, b = 5 * torch.randn(4, 80, generator=generator), 5 * torch.randn(4, 80, generator=generator)
    close = a * (1 + 1e-4)
    for other in (b, close):
        outer = [(v[:, :, None] * v[:, None, :]).double() for v in (a.double(), other.double())]
        matrices = (outer[0] - outer[1]).square().sum((1, 2)).sqrt()
        assert torch.allclose(gram_distance(a, other).double(), matrices, rtol=1e-3)
        assert float(gram_loss(a, other)) == pytest.approx(float(matrices.mean()) / 80, rel=1e-3)


def test_equal_content_has_a_finite_gradient():
    a = torch.randn(2, 80, generator=torch.Generator().manual_seed(0)).requires_grad_()
    gram_loss(a, a.detach()).backward()
    assert torch.isfinite(a.grad).all()


def test_ssim_is_scikit_images():
    rng = np.random.default_rng(0)
    a = rng.random((40, 33, 3))
    b = np.clip(a * 0.7 + 0.2 * rng.random(a.shape), 0, 1)
    expected = structural_similarity(
        a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=2
    )
    x, y = (torch.from_numpy(z).permute(2, 0, 1)[None] for z in (a, b))
    assert float(ssim(x, y)) == pytest.approx(expected, abs=1e-5)
    assert float(ssim(x, x)) == pytest.approx(1, abs=1e-6)
    flat = [torch.full((1, 1, 16, 16), v / 255) for v in (100, 150)]
    assert float(ssim(*flat)) == pytest.approx(0.9230923, abs=1e-5)
    with pytest.raises(ValueError, match="10 x 40"):
        ssim(torch.zeros(1, 1, 10, 40), torch.zeros(1, 1, 10, 40))


def test_the_reconstruction_loss_is_zero_for_equals_and_leads_back():
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(2, 3, 32, 32, generator=generator)
    assert float(reconstruction_loss(y, y)) == pytest.approx(0, abs=1e-6)
    flat = [torch.full((1, 1, 16, 16), v / 255) for v in (100, 150)]
    assert float(reconstruction_loss(*flat)) == pytest.approx((50 / 255) ** 2 + 1 - 0.9230923, abs=1e-5)
    x = torch.full_like(y, 0.5, requires_grad=True)
    before = reconstruction_loss(x, y)
    before.backward()
    assert torch.isfinite(x.grad).all()
    assert reconstruction_loss(x - 100 * x.grad, y) < before


@pytest.mark.parametrize(("layers", "field", "side"), [(5, 70, 6), (4, 34, 14)])
def test_fewer_layers_see_less(layers, field, side):
    net = PatchDiscriminator(channels=1, width=2, norm=False, layers=layers)
    x = torch.zeros(1, 1, 128, 128, requires_grad=True)
    assert net(x[..., :64, :64]).shape == (1, 1, side, side)
    net(x)[0, 0, 7, 7].backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero()
    assert int(rows.max() - rows.min()) + 1 == field


def test_the_discriminators_options_leave_the_default_alone():
    default, bare = PatchDiscriminator(width=4), PatchDiscriminator(width=4, norm=False)
    keys = [f"body.{i}.{kind}" for i in (0, 2, 5, 8, 11) for kind in ("weight", "bias")]
    assert list(default.state_dict()) == keys
    kinds = [type(module).__name__ for module in bare.body]
    assert kinds == ["Conv2d", "LeakyReLU"] * 4 + ["Conv2d"]
    assert [m.stride for m in default.body if hasattr(m, "stride")] == [(2, 2), (2, 2), (2, 2), (1, 1), (1, 1)]
    assert sum(p.numel() for p in bare.parameters()) == sum(p.numel() for p in default.parameters())
    with pytest.raises(ValueError, match="at least 3"):
        PatchDiscriminator(layers=2)
