"""HQG-Net's generator: a ResNet-50 U-Net whose decoder is led by a code of high-quality pictures.

He et al., "HQG-Net: Unpaired Medical Image Enhancement With High-Quality Guidance", IEEE TNNLS, arXiv 2307.07829,
Fig. 3 and eq. (2)-(6). The authors' public code is another network, so this follows the paper. Where that is silent:

- Widths are the nearest fit to the paper's parameters and operations: stem without down-sampling and decoder widths
  64, 128, 256, 1024 ("full"). "light" is ResNet-50 as it is known, decoder widths 64, 128, 256, 512.
- sigma(v_c) and mu(v_c) of eq. (6) are learned, [gamma, T] = W v_c + b and S = 1 + gamma, shared by AdaIN and AdaLN.
- Every convolution outside the encoder has a bias; rho has one value per channel.
- The decoder starts from PyTorch's defaults: r_k passes through no normalisation, so the N(0, 0.02) of the GAN papers
  would let narrow networks start a hundred times fainter than wide ones.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medenhance_dicom.networks.fields import GUIDE, FieldsGenerator
from medenhance_dicom.networks.heads import apply_head, head_channels
from medenhance_dicom.networks.resnet import Bottleneck, Norm, ResNetEncoder

Stem = Literal["full", "light"]
Adaptive = Literal["adalin", "adain", "adaln"]
Guidance = Literal["guided", "learned", "none"]
UnitHead = Literal["sigmoid", "gain", "normalised_gain", "fields"]

CONTENT = 16  # numbers in v_y
LEAK = 0.2
EPSILON = 1e-5


def adalin(r: Tensor, gamma: Tensor, T: Tensor, rho: Tensor) -> Tensor:
    """AdaLIN, eq. (5)-(6) with shared S and T: S (rho IN(r) + (1 - rho) LN(r)) + T with S = 1 + gamma.

    IN normalises each channel over its pixels, LN each picture over channels and pixels, both with the biased variance.
    rho = 1 is AdaIN, rho = 0 AdaLN. Computed in float32 whatever autocast says.

    Args:
        r: (B, C, H, W).
        gamma: (B, C, 1, 1) or what broadcasts to it.
        T: As gamma.
        rho: (1, C, 1, 1) in [0, 1].

    Returns:
        float32 (B, C, H, W).
    """
    r = r.float()
    mu_c = r.mean(dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
    var_c = (r - mu_c).square().mean(dim=(2, 3), keepdim=True)
    mu = mu_c.mean(dim=1, keepdim=True)  # (B, 1, 1, 1)
    var = (var_c + (mu_c - mu).square()).mean(dim=1, keepdim=True)
    IN = (r - mu_c) * (var_c + EPSILON).rsqrt()
    LN = (r - mu) * (var + EPSILON).rsqrt()
    return (1 + gamma.float()) * (rho.float() * IN + (1 - rho.float()) * LN) + T.float()


class VIN(nn.Module):
    """h = r + Conv3(LReLU(AdaLIN(r, v_c))), Fig. 3c; unguided with gamma = T = 0 and no linear layer."""

    rho: Tensor

    def __init__(self, channels: int, adaptive: Adaptive, *, guided: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(GUIDE + CONTENT, 2 * channels) if guided else None
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        if adaptive == "adalin":
            self.rho = nn.Parameter(torch.full((1, channels, 1, 1), 0.5))
        else:
            self.register_buffer("rho", torch.full((1, channels, 1, 1), float(adaptive == "adain")), persistent=False)

    def forward(self, r: Tensor, v_c: Tensor) -> Tensor:
        """(B, C, H, W) and (B, 80), which only a guided block reads -> (B, C, H, W)."""
        if self.fc is None:
            gamma = T = torch.zeros_like(self.rho)
        else:
            gamma, T = self.fc(v_c)[:, :, None, None].chunk(2, dim=1)
        return r + self.conv(F.leaky_relu(adalin(r, gamma, T, self.rho), LEAK))


class HQGNetGenerator(nn.Module):
    """The generator E of HQG-Net: (B, C, H, W) in [0, 1] and the guide's code v_z to the same shape and range.

    H and W must be multiples of `multiple`. At width 64 with three channels: 54,328,275 parameters, 81.4 GMACs at
    384 x 384 ("full"), 37,634,579 parameters ("light").

    Args:
        channels: Channels of the picture, 1 or 3.
        width: Channels of the stem and of the finest decoder level; all other widths follow. The paper: 64.
        stem: "full" (taps at 1/2 to 1/16, multiple 16) or "light" (taps at 1/4 to 1/32, multiple 32).
        norm: Normalisation of the encoder; "instance" suits batches of one picture and has no train/eval gap.
        adaptive: Normalisation of the decoder; "adain" and "adaln" are the paper's ablation.
        guidance: "guided" reads v_z. "learned" replaces it with a parameter, "none" drops v_c from the decoder: the
            paper's ablation; both ignore the argument v_z.
        head: "sigmoid", the paper's, or `heads.apply_head` on the input picture; "gain" and "fields" start as the
            identity.
    """

    def __init__(
        self,
        *,
        channels: int = 3,
        width: int = 64,
        stem: Stem = "full",
        norm: Norm = "batch",
        adaptive: Adaptive = "adalin",
        guidance: Guidance = "guided",
        head: UnitHead = "sigmoid",
    ) -> None:
        super().__init__()
        self.channels, self.guidance, self.head = channels, guidance, head
        full = stem == "full"
        self.multiple = 16 if full else 32
        f = [4 * width, 8 * width, 16 * width, 32 * width]
        d = [width, 2 * width, 4 * width, 16 * width if full else 8 * width]
        self.encoder = ResNetEncoder(Bottleneck, (3, 4, 6, 3), channels=channels, width=width, norm=norm, fine=full)
        # What no block reads learns nothing: data-parallel training waits for the gradient of everything that may.
        self.fc_e = nn.Linear(f[3], CONTENT).requires_grad_(guidance != "none")
        self.merge = nn.ModuleList(
            nn.Sequential(nn.Conv2d(d[k + 1] + f[k], d[k], 1), nn.Conv2d(d[k], d[k], 3, padding=1)) for k in range(3)
        )
        self.merge.append(nn.Conv2d(f[3], d[3], 3, padding=1))
        self.vin = nn.ModuleList(VIN(c, adaptive, guided=guidance != "none") for c in d)
        self.tail = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(1 if full else 2))
        self.last = nn.Conv2d(width, head_channels(head, channels), 1)
        self.v_z = nn.Parameter(torch.randn(1, GUIDE)) if guidance == "learned" else None
        if head != "sigmoid":
            for p in self.last.parameters():
                nn.init.zeros_(p)

    def forward(self, y: Tensor, v_z: Tensor | None = None) -> Tensor:
        """Enhance; arguments and errors as `enhance`.

        Returns:
            x_hat, (B, C, H, W) in [0, 1].
        """
        return self.enhance(y, v_z)[0]

    def enhance(self, y: Tensor, v_z: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Enhance, and give the input's content vector besides.

        Args:
            y: (B, C, H, W) in [0, 1], low quality.
            v_z: (B, 64), or (1, 64) for all of them; ignored unless guidance is "guided".

        Returns:
            x_hat (B, C, H, W) in [0, 1], float32; v_y (B, 16).

        Raises:
            ValueError: A guided generator without v_z.
        """
        f = self.encoder(y)
        v_y = self._content(f[3])
        v_c = self._condition(v_y, v_z)
        h = self.vin[3](self.merge[3](f[3]), v_c)
        for k in (2, 1, 0):
            h = F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)
            h = self.vin[k](self.merge[k](torch.cat([h, f[k]], dim=1)), v_c)
        for conv in self.tail:
            h = F.leaky_relu(conv(F.interpolate(h, scale_factor=2.0, mode="bilinear", align_corners=False)), LEAK)
        h = self.last(h)  # (B, C or 2C, H, W)
        if self.head == "sigmoid":
            return torch.sigmoid(h.float()), v_y
        return (apply_head(2 * y - 1, h, self.head) + 1) / 2, v_y

    def content_vector(self, y: Tensor) -> Tensor:
        """v_y = FC_e(GAP(f_4(y))): (B, C, H, W) in [0, 1] -> (B, 16)."""
        return self._content(self.encoder(y)[3])

    @torch.no_grad()
    def clamp_rho(self) -> None:
        """Bring every rho back into [0, 1]; after each step of the optimiser."""
        for module in self.modules():
            if isinstance(module, VIN):
                module.rho.clamp_(0, 1)

    def _content(self, f_4: Tensor) -> Tensor:
        return self.fc_e(f_4.mean(dim=(2, 3)))

    def _condition(self, v_y: Tensor, v_z: Tensor | None) -> Tensor:
        """v_c = [v_z, v_y], (B, 80)."""
        if self.guidance == "none":
            return v_y  # no block reads it
        v_z = v_z if self.v_z is None else self.v_z
        if v_z is None:
            raise ValueError("a guided generator needs v_z")
        return torch.cat([v_z.expand(v_y.shape[0], -1), v_y], dim=1)


class GuidedNetwork(nn.Module):
    """A generator bound to one stored guide: (B, C, H, W) in [-1, 1] to the same, as inference runs networks.

    Args:
        generator: Trained.
        v_z: (64,), the guide's code; a generator without guidance ignores it.
        look: Of a `FieldsGenerator`: 0 natural, 1 even.

    Raises:
        ValueError: v_z has another shape.
    """

    v_z: Tensor
    look: Tensor

    def __init__(self, generator: HQGNetGenerator | FieldsGenerator, v_z: Tensor, look: float = 0.0) -> None:
        super().__init__()
        if v_z.shape != (GUIDE,):
            raise ValueError(f"a guide's code has {GUIDE} numbers, not the shape {tuple(v_z.shape)}")
        self.generator = generator
        self.channels, self.multiple = generator.channels, generator.multiple
        self.register_buffer("v_z", v_z.detach().clone())
        self.register_buffer("look", torch.full((1, 1), float(look)), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> (B, C, H, W) in [-1, 1]."""
        y = (x + 1) / 2
        if isinstance(self.generator, FieldsGenerator):
            return 2 * self.generator(y, self.v_z[None], self.look) - 1
        return 2 * self.generator(y, self.v_z[None]) - 1
