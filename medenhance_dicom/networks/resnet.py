"""Blocks of ResNet (He et al., CVPR 2016) in torchvision's layout, without ImageNet weights."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

Norm = Literal["batch", "instance"]


def norm2d(channels: int, norm: Norm) -> nn.Module:
    """Normalisation with a scale and a shift per channel; "instance" keeps no running statistics."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.InstanceNorm2d(channels, affine=True)


def _shortcut(channels_in: int, channels_out: int, stride: int, norm: Norm) -> nn.Module:
    if stride == 1 and channels_in == channels_out:
        return nn.Identity()
    # The pooling is every second pixel. A 1x1 convolution with a stride corrupts memory in PyTorch 2.13's backward pass
    # on CPUs with channels last and fewer than 8 channels.
    pick = nn.AvgPool2d(1, stride) if stride > 1 else nn.Identity()
    return nn.Sequential(pick, nn.Conv2d(channels_in, channels_out, 1, bias=False), norm2d(channels_out, norm))


class BasicBlock(nn.Module):
    """Conv3-Norm-ReLU-Conv3-Norm plus shortcut, ReLU on the sum; the stride is in the first convolution."""

    EXPANSION = 1

    def __init__(self, channels_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, width, 3, stride, 1, bias=False),
            norm2d(width, norm),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1, bias=False),
            norm2d(width, norm),
        )
        self.shortcut = _shortcut(channels_in, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, width, H/stride, W/stride), at least 0."""
        return F.relu(self.body(x) + self.shortcut(x))


class Bottleneck(nn.Module):
    """Conv1-Conv3-Conv1 with Norm and ReLU between, plus shortcut; the stride is in the 3x3 convolution."""

    EXPANSION = 4

    def __init__(self, channels_in: int, width: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, width, 1, bias=False),
            norm2d(width, norm),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride, 1, bias=False),
            norm2d(width, norm),
            nn.ReLU(),
            nn.Conv2d(width, 4 * width, 1, bias=False),
            norm2d(4 * width, norm),
        )
        self.shortcut = _shortcut(channels_in, 4 * width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, H, W) -> (B, 4 width, H/stride, W/stride), at least 0."""
        return F.relu(self.body(x) + self.shortcut(x))


class ResNetEncoder(nn.Module):
    """ResNet without its classifier: stem Conv7-Norm-ReLU, four stages of widths 1, 2, 4, 8 x width.

    At width 64 with three channels: 23,508,032 parameters for `Bottleneck` and (3, 4, 6, 3), ResNet-50; 11,176,512
    for `BasicBlock` and (2, 2, 2, 2), ResNet-18.

    Args:
        block: Kind of block.
        counts: Blocks per stage.
        channels: Channels of the picture.
        width: Channels of the stem.
        norm: Kind of normalisation.
        fine: Stem of stride 1 without max-pooling and every stage of stride 2, so that the taps lie at 1/2, 1/4, 1/8,
            1/16; otherwise torchvision's stem, taps at 1/4, 1/8, 1/16, 1/32.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        counts: tuple[int, int, int, int],
        *,
        channels: int,
        width: int,
        norm: Norm = "batch",
        fine: bool = False,
    ) -> None:
        super().__init__()
        stem: list[nn.Module] = [
            nn.Conv2d(channels, width, 7, 1 if fine else 2, 3, bias=False),
            norm2d(width, norm),
            nn.ReLU(),
        ]
        self.stem = nn.Sequential(*stem, *([] if fine else [nn.MaxPool2d(3, 2, 1)]))
        self.stages = nn.ModuleList()
        c = width
        for k, count in enumerate(counts):
            blocks: list[nn.Module] = []
            for i in range(count):
                stride = 2 if i == 0 and (k or fine) else 1
                blocks.append(block(c, width * 2**k, stride, norm))
                c = width * 2**k * block.EXPANSION
            self.stages.append(nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> the four stages' outputs f_1..f_4, finest first."""
        taps = []
        h = self.stem(x)
        for stage in self.stages:
            h = stage(h)
            taps.append(h)
        return taps
