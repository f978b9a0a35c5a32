"""CycleGAN's generator (Zhu et al., ICCV 2017), which MIINet and LaMEGAN (arXiv 2304.01864) train with other losses.

Conv7, two convolutions of stride 2, nine residual blocks, two transposed convolutions, Conv7 and Tanh. Reflected
borders, ReLU, instance normalisation without affine parameters and without running statistics.
"""

from __future__ import annotations

from torch import Tensor, nn

from medenhance_dicom.networks.heads import Head, apply_head, head_channels
from medenhance_dicom.networks.initialisation import normal_start

BLOCKS = 9


def _reflected(channels_in: int, channels_out: int, side: int) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, side, padding=side // 2, padding_mode="reflect")


class ResidualBlock(nn.Module):
    """x + Conv3-Norm-ReLU-Conv3-Norm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _reflected(channels, channels, 3),
            nn.InstanceNorm2d(channels),
            nn.ReLU(),
            _reflected(channels, channels, 3),
            nn.InstanceNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.body(x)


class ResNet9Generator(nn.Module):
    """(B, C, H, W) in [-1, 1] to the same shape and range; H and W multiples of `multiple`, 4.

    Args:
        channels: Channels of the picture, 1 or 3.
        width: Channels of the first layer. The paper: 64, 11,378,179 parameters with C = 3.
        head: As `StillGANGenerator`'s.
    """

    multiple = 4

    def __init__(self, *, channels: int = 3, width: int = 64, head: Head = "tanh") -> None:
        super().__init__()
        self.channels, self.head = channels, head
        layers: list[nn.Module] = [_reflected(channels, width, 7), nn.InstanceNorm2d(width), nn.ReLU()]
        for c in (width, 2 * width):
            layers += [nn.Conv2d(c, 2 * c, 3, 2, 1), nn.InstanceNorm2d(2 * c), nn.ReLU()]
        layers += [ResidualBlock(4 * width) for _ in range(BLOCKS)]
        for c in (2 * width, width):
            layers += [nn.ConvTranspose2d(2 * c, c, 3, 2, 1, output_padding=1), nn.InstanceNorm2d(c), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.last = _reflected(width, head_channels(head, channels), 7)
        normal_start(self)
        if head != "tanh":
            nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, C, H, W) in [-1, 1]."""
        h = self.last(self.body(x))  # (B, what the head asks for, H, W)
        return apply_head(x, h, self.head)
