"""LaSSIM, structural similarity of one Laplacian level: metric, gate and loss share this file.

Source: "Laplacian structural similarity" (Quan et al., arXiv 2304.01864) as its released code defines it: grey picture,
OpenCV-style Gaussian pyramid, residual of level 3, scikit-image's default SSIM (7x7 uniform window, K1 = 0.01,
K2 = 0.03, sample covariance) with the data range of that pair of residuals. Two deliberate differences: grey weights in
RGB order (the released example hands BGR in), and two defined answers where the released code has none: a pair without
any structure scores 1, and a frame too small for a 7x7 window at the wanted level is compared at a finer one.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["laplacian_level", "lassim", "lassim_level_for", "lassim_map"]

GREY = (0.2125, 0.7154, 0.0721)
WINDOW = 7
K1, K2 = 0.01, 0.03
FLAT = 1e-6  # unit range; a tenth of a 16-bit grey step, above float32 rounding


def lassim_level_for(height: int, width: int, level: int = 3) -> int:
    """The coarsest level up to `level` at which a frame still holds one 7x7 window; level 3 needs sides of 49 and more.

    Args:
        height: Rows of the frame.
        width: Columns of the frame.
        level: The level wanted, 0 and up.

    Raises:
        ValueError: A side is below 7, so no level fits, or `level` is negative.

    >>> lassim_level_for(272, 480), lassim_level_for(49, 400), lassim_level_for(48, 48)
    (3, 3, 2)
    """
    if level < 0:
        raise ValueError(f"level {level} is negative")
    shortest = min(height, width)
    if shortest < WINDOW:
        raise ValueError(f"a frame of {height} x {width} is too small for a {WINDOW} x {WINDOW} window")
    while -(-shortest // 2**level) < WINDOW:
        level -= 1
    return level


def laplacian_level(x: Tensor, level: int = 3) -> Tensor:
    """The residual L_l = g_l - pyrUp(g_(l+1)) of the Gaussian pyramid g.

    Args:
        x: Float (B, 1, H, W).
        level: l; 0 is the finest. Every level is a residual here, also 5, where the released code keeps g_5 itself.

    Returns:
        (B, 1, ceil(H / 2^l), ceil(W / 2^l)), values in [-1, 1] for x in [0, 1].
    """
    for _ in range(level):
        x = _pyramid_down(x)
    return x - _pyramid_up(_pyramid_down(x), x.shape[-2], x.shape[-1])


def lassim_map(x: Tensor, y: Tensor, level: int = 3, *, data_range: Tensor | None = None) -> Tensor:
    """SSIM of each whole 7x7 window of the two residuals.

    Args:
        x: The picture before, float (B, C, H, W) in [0, 1], C = 1 or 3 (RGB).
        y: The picture after, the same shape.
        level: Laplacian level; lowered by `lassim_level_for` where the frame is too small for it.
        data_range: (B,) to use in place of the pair's own range, for a loss that must not steer by the range.

    Returns:
        (B, 1, h - 6, w - 6) for residuals of h x w; 1 everywhere for a pair without structure. Float64 for float64
        input, else float32.

    Raises:
        ValueError: The shapes differ, C is neither 1 nor 3, or a side is below 7.
    """
    if x.shape != y.shape or x.ndim != 4 or x.shape[1] not in (1, 3):
        raise ValueError(f"two (B, 1 or 3, H, W) of one shape wanted, not {tuple(x.shape)} and {tuple(y.shape)}")
    level = lassim_level_for(x.shape[2], x.shape[3], level)
    dtype = torch.float64 if torch.float64 in (x.dtype, y.dtype) else torch.float32
    a, b = (laplacian_level(_grey(z.to(dtype)), level) for z in (x, y))  # (B, 1, h, w)
    if data_range is None:
        data_range = torch.maximum(a.amax((1, 2, 3)), b.amax((1, 2, 3))) - torch.minimum(
            a.amin((1, 2, 3)), b.amin((1, 2, 3))
        )
    data_range = data_range.to(dtype).view(-1, 1, 1, 1)
    flat = data_range <= FLAT  # False for NaN, so that NaN stays visible
    limit = torch.where(flat, torch.ones_like(data_range), data_range)
    return torch.where(flat, torch.ones_like(limit), _ssim_map(a, b, limit))


def lassim(x: Tensor, y: Tensor, level: int = 3, *, data_range: Tensor | None = None) -> Tensor:
    """LaSSIM of each picture of a batch: the mean of `lassim_map`, in [-1, 1], 1 for equal structure.

    Arguments and errors as `lassim_map`. Differentiable in x and y.

    Returns:
        (B,).

    >>> x = torch.linspace(0, 1, 64 * 64, dtype=torch.float64).sin().view(1, 1, 64, 64)
    >>> lassim(x, x).item()
    1.0
    """
    return lassim_map(x, y, level, data_range=data_range).mean((1, 2, 3))


def _grey(x: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 1, H, W)."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, 1)
    return (GREY[0] * red).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def _ssim_map(a: Tensor, b: Tensor, data_range: Tensor) -> Tensor:
    """Wang et al. 2004, eq. (13), over whole 7x7 windows with sample (co)variances."""
    sample = WINDOW**2 / (WINDOW**2 - 1)
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    variance_a = sample * (_window_mean(a * a) - mean_a * mean_a)
    variance_b = sample * (_window_mean(b * b) - mean_b * mean_b)
    covariance = sample * (_window_mean(a * b) - mean_a * mean_b)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return luminance * structure


def _window_mean(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, WINDOW, stride=1)


def _pyramid_down(x: Tensor) -> Tensor:
    """Binomial [1 4 6 4 1] / 16 per axis, border reflected about the edge pixel, even samples kept."""
    return _down_axis(_down_axis(x, 2), 3)


def _pyramid_up(x: Tensor, height: int, width: int) -> Tensor:
    """Zero insertion and the binomial filter, per axis: even samples (1 6 1) / 8, odd samples (1 1) / 2."""
    return _up_axis(_up_axis(x, 2, height), 3, width)


def _down_axis(x: Tensor, axis: int) -> Tensor:
    size = x.shape[axis]
    period = max(2 * (size - 1), 1)
    edge = torch.tensor([-2, -1, size, size + 1], device=x.device) % period
    edge = torch.minimum(edge, period - edge)  # reflected about the edge pixel
    before, after = x.index_select(axis, edge[:2]), x.index_select(axis, edge[2:])
    wide = torch.cat([before, x, after], axis)
    count = (size + 1) // 2
    tap = [_every_second(wide.narrow(axis, k, 2 * count - 1), axis) for k in range(5)]
    return (tap[0] + tap[4]).add_(tap[1] + tap[3], alpha=4).add_(tap[2], alpha=6).mul_(1 / 16)


def _every_second(x: Tensor, axis: int) -> Tensor:
    return x[..., ::2, :] if axis == 2 else x[..., ::2]


def _up_axis(x: Tensor, axis: int, size: int) -> Tensor:
    n = x.shape[axis]
    first = x.narrow(axis, min(1, n - 1), 1)  # left border reflected, right border repeated
    previous = torch.cat([first, x.narrow(axis, 0, n - 1)], axis)
    following = torch.cat([x.narrow(axis, 1, n - 1), x.narrow(axis, n - 1, 1)], axis)
    even, odd = (previous + 6 * x + following) / 8, (x + following) / 2
    return torch.stack([even, odd], axis + 1).flatten(axis, axis + 1).narrow(axis, 0, size)
