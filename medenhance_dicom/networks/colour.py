"""HSV and CIE Lab of RGB pictures, differentiable in the picture. All values lie in about [0, 1]."""

from __future__ import annotations

import torch
from torch import Tensor

GREYEST = 1 / 512
"""Chroma (maximum - minimum) below which a pixel has no hue."""
# sRGB to XYZ, adapted to the D50 white of ICC profiles (Bradford), each row over the white's X, Y or Z.
XYZ = (
    (0.4522795, 0.3993744, 0.1483461),
    (0.2225045, 0.7168786, 0.0606169),
    (0.0168863, 0.1176956, 0.8654181),
)
EPSILON = 216 / 24389  # CIE's
KAPPA = 24389 / 27


def rgb_to_hsv(rgb: Tensor) -> Tensor:
    """Hue (a fraction of the circle), saturation and value (Smith, SIGGRAPH 1978); the hue of grey is 0.

    Args:
        rgb: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    r, g, b = rgb.unbind(dim=1)
    value, least = rgb.amax(dim=1), rgb.amin(dim=1)
    chroma = value - least
    coloured = chroma > GREYEST
    divisor = torch.where(coloured, chroma, 1.0)  # the gradient of what is not chosen stays finite, too
    sixths = torch.where(
        r == value, (g - b) / divisor, torch.where(g == value, 2 + (b - r) / divisor, 4 + (r - g) / divisor)
    )
    hue = torch.where(coloured, (sixths / 6) % 1.0, 0.0)
    return torch.stack([hue, chroma / value.clamp_min(GREYEST), value], dim=1)


def rgb_to_lab(rgb: Tensor) -> Tensor:
    """L / 100, (a + 128) / 255 and (b + 128) / 255 of sRGB under the D50 white, as ICC profiles take it.

    Args:
        rgb: (B, 3, H, W) in [0, 1].

    Returns:
        (B, 3, H, W); sRGB colours lie in [0, 1].
    """
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    # Not a matrix product: autocast would take that to half precision.
    t = (rgb.new_tensor(XYZ)[None, :, :, None, None] * linear[:, None]).sum(dim=2)
    f = torch.where(t > EPSILON, t.clamp_min(EPSILON) ** (1 / 3), (KAPPA * t + 16) / 116)
    x, y, z = f.unbind(dim=1)
    return torch.stack([1.16 * y - 0.16, (500 * (x - y) + 128) / 255, (200 * (y - z) + 128) / 255], dim=1)
