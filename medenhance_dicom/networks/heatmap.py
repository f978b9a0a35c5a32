"""A small network that points at one place of a picture, such as the fovea of a fundus photograph."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STRIDE = 8


class HeatMapNet(nn.Module):
    """(B, C, H, W) to a heat map (B, 1, H/8, W/8) of logits; H and W multiples of `multiple`, 8.

    Three of Conv3-BN-ReLU with 2x2 max-pooling, two more of Conv3-BN-ReLU, the last with dilation 2, a 1x1 convolution.
    At width 16 with three channels: 97,745 parameters. A cell sees 70 pixels.

    Args:
        channels: Channels of the picture.
        width: Channels of the first layer; doubles twice.
    """

    multiple = STRIDE

    def __init__(self, *, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.channels = channels
        layers: list[nn.Module] = []
        plan = [(channels, width, 1), (width, 2 * width, 1), (2 * width, 4 * width, 1), (4 * width, 4 * width, 1)]
        for i, (c_in, c_out, dilation) in enumerate([*plan, (4 * width, 4 * width, 2)]):
            layers += [
                nn.Conv2d(c_in, c_out, 3, padding=dilation, dilation=dilation, bias=False),
                nn.BatchNorm2d(c_out),
                nn.ReLU(),
            ]
            layers += [nn.MaxPool2d(2)] if i < 3 else []
        self.body = nn.Sequential(*layers)
        self.last = nn.Conv2d(4 * width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 1, H/8, W/8) logits."""
        return self.last(self.body(x))


def soft_argmax(heat: Tensor) -> Tensor:
    """The mean place under the softmax of a heat map; differentiable, float32 whatever autocast says.

    Args:
        heat: (B, 1, h, w) logits.

    Returns:
        (B, 2) row and column as fractions of the picture's height and width: the centre of cell i is (i + 1/2) / h.
    """
    _, _, h, w = heat.shape
    p = heat.float().flatten(1).softmax(dim=1).view(-1, h, w)
    rows, columns = ((torch.arange(n, device=heat.device) + 0.5) / n for n in (h, w))
    return torch.stack([(p.sum(dim=2) * rows).sum(dim=1), (p.sum(dim=1) * columns).sum(dim=1)], dim=1)
