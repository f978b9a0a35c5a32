"""The start that the GAN papers share."""

from __future__ import annotations

from torch import nn


def normal_start(module: nn.Module) -> None:
    """Weights of every convolution and linear layer from N(0, 0.02), biases 0."""
    for m in module.modules():
        if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(m.weight, 0.0, 0.02)
            if m.bias is not None:
                nn.init.zeros_(m.bias)
