"""The 70x70 PatchGAN discriminator (StillGAN, TMI 2021, Fig. 3; Isola et al., CVPR 2017), without the last Sigmoid."""

from __future__ import annotations

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """Five 4x4 convolutions, strides 2, 2, 2, 1, 1; receptive field 70; logits.

    With width 64 and instance normalisation it has 2,764,737 parameters for three channels, 2,762,689 for one.
    """

    def __init__(self, *, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for c_in, c_out, stride in ((1, 2, 2), (2, 4, 2), (4, 8, 1)):
            layers += [
                nn.Conv2d(c_in * width, c_out * width, 4, stride, 1),
                nn.InstanceNorm2d(c_out * width),
                nn.LeakyReLU(0.2),
            ]
        self.body = nn.Sequential(*layers, nn.Conv2d(8 * width, 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, 1, about H/8 - 2, about W/8 - 2) logits."""
        return self.body(x)
