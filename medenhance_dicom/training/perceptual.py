"""Perceptual losses of LaMEGAN (Quan et al., arXiv 2304.01864) and MIINet (arXiv 2011.14132), with or without VGG.

Both compare the features of a fixed VGG-19: LaMEGAN those of the Laplacian level-3 residual, MIINet those of the
picture itself. The weights of VGG-19 are the user's: without them residuals or pictures are compared by 1 - SSIM.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from medenhance_dicom.errors import ModelError, RecipeError
from medenhance_dicom.lassim import GREY, laplacian_level, lassim, lassim_level_for
from medenhance_dicom.training.losses import ssim
from medenhance_dicom.training.recipe import Perceptual

LEVEL = 3
LUMA = (0.2989, 0.587, 0.114)  # the released code's grey
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, for pictures in [0, 1]
# VGG-19 (Simonyan & Zisserman, ICLR 2015): 3x3 convolutions by their width, each with a ReLU; 0 is a 2x2 max-pool.
VGG19 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 256, 0, 512, 512, 512, 512, 0, 512, 512, 512, 512, 0)
LEAST_RANGE = 1 / 255


def _blur(x: Tensor) -> Tensor:
    """5x5 binomial filter, border reflected about the edge pixel; (B, 1, H, W)."""
    g = x.new_tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), (g[:, None] * g[None, :])[None, None])


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


def laplacian_residual(x: Tensor, level: int = LEVEL) -> Tensor:
    """P(x) of LaMEGAN: g_l - up(g_(l+1)) of the grey picture's Gaussian pyramid g.

    Down: 5x5 binomial blur, then bilinear to half the size; up: bilinear to twice the size, then the blur. Not LaSSIM's
    pyramid, which keeps the even samples.

    Args:
        x: (B, 1 or 3, H, W) in [-1, 1].
        level: l; 0 is the finest.

    Returns:
        (B, 1, H / 2^l, W / 2^l) float32, about zero.

    Raises:
        ValueError: H or W is no multiple of 2^(l+1), or below 2^(l+2); or C is neither 1 nor 3.
    """
    C, H, W = x.shape[1:]
    if C not in (1, 3):
        raise ValueError(f"{C} channels: 1 or 3 are wanted")
    step = 2 ** (level + 1)
    if H % step or W % step or min(H, W) < 2 * step:
        raise ValueError(f"{H} x {W}: level {level} needs sides that are multiples of {step}, from {2 * step} on")
    with torch.autocast(x.device.type, enabled=False):
        g = x.float()
        if C == 3:
            g = (g * g.new_tensor(LUMA).view(1, 3, 1, 1)).sum(1, keepdim=True)
        for _ in range(level):
            g = _resized(_blur(g), g.shape[2] // 2, g.shape[3] // 2)
        h, w = g.shape[2:]
        return g - _blur(_resized(_resized(_blur(g), h // 2, w // 2), h, w))


class VGGFeatures(nn.Module):
    """phi: the first layers of VGG-19's `features`, frozen, filled from a safetensors file.

    Of its 37 layers the first ten are conv 64, ReLU, conv 64, ReLU, max-pool, conv 128, ReLU, conv 128, ReLU, max-pool.

    Args:
        weights: Safetensors file with `features.N.weight` and `features.N.bias`; further tensors are ignored.
        sha256: What the file's digest has to be, in hexadecimal digits.
        layers: How many layers of `features`, 1 to 37; 10 is LaMEGAN's.

    Raises:
        ModelError: The file is missing, altered, no safetensors file, or its tensors do not fit; names the file.
        ValueError: No such number of layers.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, weights: Path, sha256: str, *, layers: int = 10) -> None:
        super().__init__()
        deepest = sum(2 if width else 1 for width in VGG19)
        if not 1 <= layers <= deepest:
            raise ValueError(f"{layers} layers: 1 to {deepest} are there")
        body: list[nn.Module] = []
        channels = 3
        for width in VGG19:
            if len(body) >= layers:
                break
            body += [nn.Conv2d(channels, width, 3, 1, 1), nn.ReLU()] if width else [nn.MaxPool2d(2)]
            channels = width or channels
        self.layers = layers
        self.features = nn.Sequential(*body[:layers])
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1))
        wanted = self.features.state_dict()
        tensors = _verified_tensors(weights, sha256)
        missing = sorted(f"features.{name}" for name in wanted if f"features.{name}" not in tensors)
        if missing:
            raise ModelError(f"{weights}: has no {missing[0]}")
        for name, own in wanted.items():
            given = tensors[f"features.{name}"]
            if given.shape != own.shape:
                raise ModelError(f"{weights}: features.{name} is {tuple(given.shape)}, not {tuple(own.shape)}")
            if not torch.isfinite(given).all():
                raise ModelError(f"{weights}: features.{name} holds non-finite values")
            own.copy_(given)
        self.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Features of (B, 1 or 3, H, W) in [-1, 1]: (B, 128, H/4, W/4) with ten layers. Grey is repeated to 3 channels.

        Normalised by (x - (2 m - 1)) / (2 s), m and s ImageNet's mean and deviation; the released code has m - 1 there,
        off by a constant.
        """
        return self.features((x.expand(-1, 3, -1, -1) - (2 * self.mean - 1)) / (2 * self.std))


def _verified_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """The file's tensors; what was hashed is what gets loaded."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256.lower():
        raise ModelError(f"{path}: sha256 is {digest[:12]}, not {sha256[:12]} as given")
    try:
        return load(content)
    except SafetensorError as error:
        raise ModelError(f"{path}: not a safetensors file") from error


class PerceptualLoss(nn.Module):
    """How far the structure of y is from that of x; for pictures (B, 1 or 3, H, W) in [-1, 1].

    With VGG: mean |phi(P(x)) - phi(P(y))| ("laplacian", LaMEGAN; sides are multiples of 16 from 32 on) or
    mean |phi(x) - phi(y)| ("pixel", MIINet). Without: 1 - LaSSIM at level 3 with the range of x's own residual, so that
    y cannot steer it ("laplacian"), or 1 - SSIM of the grey pictures ("pixel", sides from 11 on).

    Args:
        space: What is compared.
        vgg: phi, or None where its weights are not at hand.
    """

    def __init__(self, *, space: Literal["laplacian", "pixel"], vgg: VGGFeatures | None) -> None:
        super().__init__()
        self.space, self.vgg = space, vgg

    @property
    def label(self) -> str:
        """What is computed, for logs and cards."""
        if self.vgg is not None:
            where = f"the Laplacian level-{LEVEL} residual" if self.space == "laplacian" else "the pixels"
            return f"VGG-19 features[:{self.vgg.layers}] on {where}"
        where = f"level {LEVEL}" if self.space == "laplacian" else "grey pixels"
        return f"1 - SSIM on {where} (no VGG weights given)"

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """A scalar, at least 0; x is the input, y what was made of it."""
        if self.vgg is not None:
            if self.space == "laplacian":
                x, y = laplacian_residual(x), laplacian_residual(y)
            return (self.vgg(x).float() - self.vgg(y).float()).abs().mean()
        with torch.autocast(x.device.type, enabled=False):
            u, v = (x.float() + 1) / 2, (y.float() + 1) / 2
            if self.space == "laplacian":
                return 1 - lassim(u, v, LEVEL, data_range=_residual_range(u)).mean()
            return 1 - ssim(_grey(u), _grey(v))


def _grey(x: Tensor) -> Tensor:
    return x if x.shape[1] == 1 else (x * x.new_tensor(GREY).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _residual_range(x: Tensor) -> Tensor:
    """Maximum - minimum of LaSSIM's residual of each picture (B,); at least one grey step of 8 bits; no gradient."""
    residual = laplacian_level(_grey(x.detach()), lassim_level_for(x.shape[2], x.shape[3], LEVEL))
    return (residual.amax((1, 2, 3)) - residual.amin((1, 2, 3))).clamp_min(LEAST_RANGE)


def perceptual_loss_of(choice: Perceptual) -> PerceptualLoss:
    """The perceptual term that a training recipe asks for.

    Raises:
        RecipeError: `vgg` is named without `vgg_sha256`.
        ModelError: As `VGGFeatures`.
    """
    if choice.vgg is None:
        return PerceptualLoss(space=choice.space, vgg=None)
    if choice.vgg_sha256 is None:
        raise RecipeError("perceptual.vgg needs perceptual.vgg_sha256")
    return PerceptualLoss(space=choice.space, vgg=VGGFeatures(choice.vgg, choice.vgg_sha256))
