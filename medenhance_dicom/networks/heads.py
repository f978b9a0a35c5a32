"""What the last convolution of a generator means for the picture."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from medenhance_dicom.networks.fields import CELLS, apply_fields, fields_of, numbers_of_fields, pyramid

Head = Literal["tanh", "gain", "normalised_gain", "fields"]
"""The papers' own; a gain and an offset for each pixel; smooth fields, see `networks.fields`."""

MAXIMUM_LOG_GAIN = 1.5


def head_channels(head: str, channels: int) -> int:
    """What the last convolution has to give for a picture of that many channels."""
    if head in ("tanh", "sigmoid"):
        return channels
    return numbers_of_fields(channels) if head == "fields" else 2 * channels


def apply_head(x: Tensor, h: Tensor, head: Head) -> Tensor:
    """What a generator makes of a picture.

    Args:
        x: (B, C, H, W) in [-1, 1], the network's input.
        h: (B, `head_channels`, H, W), of the last convolution; with "fields" its means over 12 x 12 cells count.
        head: Which.

    Returns:
        (B, C, H, W) in [-1, 1].
    """
    if head == "tanh":
        return torch.tanh(h)
    if head == "fields":
        levels, rest = pyramid((x.float() + 1) / 2)
        fields = fields_of(F.adaptive_avg_pool2d(h, CELLS), x.shape[1])
        return (2 * apply_fields(levels, rest, fields) - 1).clamp(-1, 1)
    return apply_gain(x, h, normalised=head == "normalised_gain")


def apply_gain(x: Tensor, h: Tensor, *, normalised: bool) -> Tensor:
    """Read h as a bounded log-gain and an offset for the picture itself; h = 0 is the identity unless normalised.

    Computed in float32 whatever autocast says: the picture's own grey levels pass here.

    Args:
        x: (B, C, H, W) in [-1, 1], the network's input.
        h: (B, 2C, H, W), gain and offset before their tanh.
        normalised: First bring the picture to zero mean and unit deviation, for domains whose good pictures all have
            one brightness.

    Returns:
        float32 (B, C, H, W) in [-1, 1].
    """
    x, h = x.float(), h.float()
    gain, offset = h.chunk(2, dim=1)
    if not normalised:
        base = (x + 1) / 2
    else:
        mean = x.mean(dim=(2, 3), keepdim=True)
        deviation = (x - mean).square().mean(dim=(2, 3), keepdim=True).add(1e-8).sqrt()
        base = 0.1 * (x - mean) / deviation + 0.37  # the brightness of flattened corneal frames
    y = base * torch.exp(MAXIMUM_LOG_GAIN * torch.tanh(gain)) + torch.tanh(offset)
    return (2 * y - 1).clamp(-1, 1)
