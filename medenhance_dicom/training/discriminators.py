"""PatchGAN discriminators (StillGAN, TMI 2021, Fig. 3; Isola et al., CVPR 2017), without the last Sigmoid."""

from __future__ import annotations

from torch import Tensor, nn


class PatchDiscriminator(nn.Module):
    """4x4 convolutions, all but the last two with stride 2; logits.

    Five of them, the default, have strides 2, 2, 2, 1, 1 and a receptive field of 70; with width 64 and instance
    normalisation that is 2,764,737 parameters for three channels, 2,762,689 for one. Four have strides 2, 2, 1, 1 and a
    receptive field of 34. EnlightenGAN's (TIP 2021) global and local discriminators are those of five and four layers
    without normalisation.

    Args:
        channels: Of the picture.
        width: Channels behind the first layer; they double with each layer up to 8 times.
        norm: Instance normalisation in all layers but the first and the last.
        layers: Number of convolutions, at least 3.

    Raises:
        ValueError: Fewer than three layers.
    """

    def __init__(self, *, channels: int = 3, width: int = 64, norm: bool = True, layers: int = 5) -> None:
        super().__init__()
        if layers < 3:
            raise ValueError(f"{layers} layers: at least 3 are needed")
        widths = [min(2**k, 8) * width for k in range(layers - 1)]
        body: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        for k in range(1, layers - 1):
            body.append(nn.Conv2d(widths[k - 1], widths[k], 4, 2 if k < layers - 2 else 1, 1))
            body += [nn.InstanceNorm2d(widths[k]), nn.LeakyReLU(0.2)] if norm else [nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*body, nn.Conv2d(widths[-1], 1, 4, 1, 1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, 1, h, w) logits; h is about H/8 - 2 with five layers, H/4 - 2 with four."""
        return self.body(x)
