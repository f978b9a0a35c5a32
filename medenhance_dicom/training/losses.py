"""StillGAN's losses as formulas (Ma et al., IEEE TMI 40(12), 2021). Pictures are (B, C, H, W) in [-1, 1].

Where paper and released code differ, the released code's choice is taken and said.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

GANMode = Literal["lsgan", "bce"]

STRUCTURE_C = 0.03**2 / 2  # c of eq. (7), C3 of SSIM for pictures in [0, 1]
STRUCTURE_WINDOW, STRUCTURE_SIGMA = 11, 1.5
STRUCTURE_NOISE = 0.01


def central_crop(x: Tensor, size: int | None) -> Tensor:
    """The central size x size window, the whole picture where it is smaller; rescaled from [-1, 1] to [0, 1]."""
    H, W = x.shape[-2:]
    h, w = min(size or H, H), min(size or W, W)
    top, left = (H - h) // 2, (W - w) // 2
    return (x[..., top : top + h, left : left + w] + 1) / 2


def illumination_loss(x: Tensor, *, patches: tuple[int, ...] = (48, 96), crop: int | None = 384) -> Tensor:
    """L_ill, eq. (5)-(6): mean over p of mean |bicubic up-sampling of (p x p block means - the global mean)|.

    Args:
        x: (B, C, H, W) in [-1, 1], normally the enhanced picture.
        patches: Block sizes; each must divide the cropped height and width.
        crop: Side of the central window that is looked at (the released code: 384 of 512).

    Raises:
        ValueError: A block size does not divide the window.
    """
    u = central_crop(x, crop)
    H, W = u.shape[-2:]
    total = u.new_zeros(())
    for p in patches:
        if H % p or W % p:
            raise ValueError(f"block size {p} does not divide {H} x {W}")
        D = F.avg_pool2d(u, p)  # (B, C, H/p, W/p)
        E = D - D.mean(dim=(2, 3), keepdim=True)
        total = total + F.interpolate(E, size=(H, W), mode="bicubic", align_corners=False).abs().mean()
    return total / len(patches)


def _gaussian_window(channels: int, like: Tensor) -> Tensor:
    offsets = torch.arange(STRUCTURE_WINDOW, device=like.device, dtype=torch.float32) - STRUCTURE_WINDOW // 2
    g = torch.exp(-(offsets**2) / (2 * STRUCTURE_SIGMA**2))
    g = g / g.sum()
    return (g[:, None] * g[None, :]).expand(channels, 1, -1, -1).contiguous()


def structure_loss(
    x: Tensor,
    y: Tensor,
    *,
    crop: int | None = 384,
    noise: float | Tensor = STRUCTURE_NOISE,
    generator: torch.Generator | None = None,
) -> Tensor:
    """L_st, eq. (7): 1 - mean of (cov(x, y) + c) / (sd(x) sd(y) + c) over 11 x 11 Gaussian windows.

    The same noise is added to both pictures and the sums are clipped to [0, 1]: without it a flattened patch has
    covariance and deviations of zero and costs nothing (the released code does so; the paper is silent).

    Args:
        x: (B, C, H, W) in [-1, 1].
        y: Same shape.
        crop: As in `illumination_loss`.
        noise: Standard deviation of the shared noise, 0 for none; or the noise itself, of the cropped shape.
        generator: Its source of randomness.

    Returns:
        A scalar in [0, 2].
    """
    u, v = central_crop(x, crop).float(), central_crop(y, crop).float()
    if isinstance(noise, Tensor) or noise:
        n = noise if isinstance(noise, Tensor) else noise * torch.randn(u.shape, generator=generator).to(u.device)
        u, v = (u + n).clamp(0, 1), (v + n).clamp(0, 1)
    C = u.shape[1]
    G = _gaussian_window(C, u)

    def smooth(z: Tensor) -> Tensor:
        return F.conv2d(z, G, padding=STRUCTURE_WINDOW // 2, groups=C)

    with torch.autocast(u.device.type, enabled=False):
        mu_u, mu_v = smooth(u), smooth(v)
        var_u, var_v = smooth(u * u) - mu_u**2, smooth(v * v) - mu_v**2
        cov = smooth(u * v) - mu_u * mu_v
        # The released code has no clamp: rounding makes the variance of a flat patch negative.
        sd_u, sd_v = var_u.clamp_min(1e-14).sqrt(), var_v.clamp_min(1e-14).sqrt()
        s = (cov + STRUCTURE_C) / (sd_u * sd_v + STRUCTURE_C)
    return 1 - s.mean()


def adversarial_loss(logits: Tensor, *, real: bool, mode: GANMode = "lsgan") -> Tensor:
    """Eq. (1). LSGAN: mean (D - 1)^2 for real, mean D^2 for generated. BCE: softplus(-D), softplus(D)."""
    if mode == "bce":
        return F.softplus(-logits if real else logits).mean()
    return (logits - (1.0 if real else 0.0)).square().mean()


def discriminator_loss(real: Tensor, generated: Tensor, *, mode: GANMode = "lsgan") -> Tensor:
    """Half the sum of both adversarial terms, from the logits of a real and a generated picture."""
    return 0.5 * (adversarial_loss(real, real=True, mode=mode) + adversarial_loss(generated, real=False, mode=mode))


def cycle_loss(x: Tensor, x_cycled: Tensor) -> Tensor:
    """Eq. (2): mean |G_B(G_A(x)) - x|."""
    return (x_cycled - x).abs().mean()


def identity_loss(x: Tensor, x_same: Tensor) -> Tensor:
    """Eq. (3): mean |G(x) - x| for a picture that already is of the domain that G makes."""
    return (x_same - x).abs().mean()
