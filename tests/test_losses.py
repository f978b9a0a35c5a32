"""StillGAN's losses against numbers worked out from the released formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from medenhance_dicom.training.losses import (
    adversarial_loss,
    cycle_loss,
    discriminator_loss,
    identity_loss,
    illumination_loss,
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
