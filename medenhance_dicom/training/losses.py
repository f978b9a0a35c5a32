"""The papers' losses as formulas.

StillGAN (Ma et al., IEEE TMI 40(12), 2021): pictures are (B, C, H, W) in [-1, 1]; where paper and released code differ,
the released code's choice is taken and said. HQG-Net (He et al., arXiv 2307.07829): pictures in [0, 1]; from the paper
alone, the released code has none of these losses. EnlightenGAN (Jiang et al., IEEE TIP 30, 2021): logits.
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
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # of pictures in [0, 1]
GRAM_EPSILON = 1e-12


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


def relativistic_loss(real: Tensor, fake: Tensor, *, for_generator: bool) -> Tensor:
    """Relativistic-average LSGAN, EnlightenGAN eq. (3)-(4): is a real picture more real than the mean generated one?

    Discriminator: mean (D(r) - mean D(f) - 1)^2 + mean (D(f) - mean D(r))^2; generator: with r and f exchanged.

    Args:
        real: Logits of real pictures, any shape. The generator's gradient goes through them only by mean D(f).
        fake: Logits of generated pictures.
        for_generator: Which of the two.

    Returns:
        The sum of both terms, as the paper has it; the released code halves it, for both players.
    """
    better, worse = (fake, real) if for_generator else (real, fake)
    return (better - worse.mean() - 1).square().mean() + (worse - better.mean()).square().mean()


def _haar_split(x: Tensor) -> tuple[Tensor, Tensor]:
    """One level of the orthonormal Haar transform: LL (B, C, H/2, W/2) and LH, HL, HH (B, 3C, H/2, W/2)."""
    H, W = x.shape[-2:]
    if H % 2 or W % 2:
        raise ValueError(f"{H} x {W} does not split into 2 x 2 blocks")
    p, q = x[..., 0::2, 0::2], x[..., 0::2, 1::2]
    r, s = x[..., 1::2, 0::2], x[..., 1::2, 1::2]
    return (p + q + r + s) / 2, torch.cat([p + q - r - s, p - q + r - s, p - q - r + s], dim=1) / 2


def haar_bands(x: Tensor) -> Tensor:
    """HF of HQG-Net eq. (7): the three high bands of one level of the orthonormal Haar transform, concatenated.

    On each 2 x 2 block [[p, q], [r, s]]: LH = (p + q - r - s) / 2 answers to horizontal edges, HL = (p - q + r - s) / 2
    to vertical ones, HH = (p - q - r + s) / 2 to diagonals. LL = (p + q + r + s) / 2 is left out.

    Args:
        x: (B, C, H, W) of any range, H and W even.

    Returns:
        (B, 3C, H/2, W/2): C channels of LH, then of HL, then of HH.

    Raises:
        ValueError: An odd side.
    """
    return _haar_split(x)[1]


def haar_loss(x: Tensor, y: Tensor, *, bands: tuple[float, float, float] = (1.0, 1.0, 1.0), levels: int = 1) -> Tensor:
    """L_Haar, eq. (7) of HQG-Net: mean |HF(x) - HF(y)| over all three bands; 0 iff x - y is constant on 2 x 2 blocks.

    Args:
        x: (B, C, H, W) in [0, 1], normally the enhanced picture; another range scales the loss.
        y: Same shape, normally the input.
        bands: Factors on vertical (HL), horizontal (LH) and diagonal (HH) detail. A band that is left out still counts
            in the mean, so the losses of single bands add up to that of all.
        levels: Further levels split the LL band, which holds twice the block's mean; the levels are averaged.

    Raises:
        ValueError: H or W is no multiple of 2^levels, or `levels` is below 1.
    """
    if levels < 1:
        raise ValueError(f"levels is {levels}: at least 1 is needed")
    vertical, horizontal, diagonal = bands
    C = x.shape[1]
    low = (x - y).float()  # the transform is linear
    factors = low.new_tensor([horizontal, vertical, diagonal]).repeat_interleave(C).view(1, 3 * C, 1, 1)
    total = low.new_zeros(())
    for _ in range(levels):
        low, high = _haar_split(low)
        total = total + (factors * high).abs().mean()
    return total / levels


def gram_distance(a: Tensor, b: Tensor) -> Tensor:
    """|| a a^T - b b^T ||_F of each row, without forming the matrices.

    Computed as sqrt((|s|^2 |d|^2 + (s . d)^2) / 2) with s = a + b and d = a - b, which equals
    sqrt(|a|^4 + |b|^4 - 2 (a . b)^2) without its cancellation of large terms. Blind to sign: 0 for b = -a.

    Args:
        a: (B, D).
        b: (B, D).

    Returns:
        (B,) float32; 1e-6 in place of 0, where the root has no slope.
    """
    a, b = a.float(), b.float()
    s, d = a + b, a - b
    square = (s.square().sum(1) * d.square().sum(1) + (s * d).sum(1).square()) / 2
    return (square + GRAM_EPSILON).sqrt()


def gram_loss(a: Tensor, b: Tensor) -> Tensor:
    """L_FC, eq. (8) of HQG-Net: mean over the batch of ||Gr(a) - Gr(b)||_F with Gr(v) = v v^T / D.

    The paper's Gram matrix has no factor; / D keeps the loss from growing with the length of the vector.

    Args:
        a: (B, D), content vectors of the enhanced pictures.
        b: (B, D), their targets. Detach them: v -> 0 on both sides would be a minimum.
    """
    return gram_distance(a, b).mean() / a.shape[1]


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Mean SSIM (Wang et al., IEEE TIP 13(4), 2004) over whole 11 x 11 Gaussian windows (sigma 1.5), per channel.

    Args:
        x: (B, C, H, W) in [0, 1], sides of at least 11.
        y: Same shape.

    Returns:
        A float32 scalar in [-1, 1], differentiable.

    Raises:
        ValueError: A side is below 11.
    """
    C, H, W = x.shape[1:]
    if min(H, W) < STRUCTURE_WINDOW:
        raise ValueError(f"{H} x {W} holds no window of {STRUCTURE_WINDOW} x {STRUCTURE_WINDOW}")
    u, v = x.float() - 0.5, y.float() - 0.5  # about 0, where differences of squares lose less to rounding
    G = _gaussian_window(C, u)
    with torch.autocast(u.device.type, enabled=False):
        stacked = torch.cat([u, v, u * u, v * v, u * v])
        mu_u, mu_v, uu, vv, uv = F.conv2d(stacked, G, groups=C).chunk(5)
    structure = (2 * (uv - mu_u * mu_v) + SSIM_C2) / (uu - mu_u**2 + vv - mu_v**2 + SSIM_C2)
    mu_u, mu_v = mu_u + 0.5, mu_v + 0.5
    luminance = (2 * mu_u * mu_v + SSIM_C1) / (mu_u**2 + mu_v**2 + SSIM_C1)
    return (luminance * structure).mean()


def reconstruction_loss(x: Tensor, y: Tensor) -> Tensor:
    """HQG-Net's pre-training of the guide encoder: mean (x - y)^2 + 1 - SSIM(x, y), for pictures as in `ssim`."""
    return (x.float() - y.float()).square().mean() + 1 - ssim(x, y)
