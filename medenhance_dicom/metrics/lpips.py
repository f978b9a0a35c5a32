"""LPIPS, a distance of two pictures by the features of AlexNet (Zhang et al., CVPR 2018), with weights of one's own."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np

from medenhance_dicom.errors import ModelError
from medenhance_dicom.metrics.picture import Unit
from medenhance_dicom.metrics.weights import read_weights

__all__ = ["load_lpips"]

CHANNELS = (3, 64, 192, 384, 256, 256)
NAMES = (0, 3, 6, 8, 10)  # of the convolutions among torchvision's features
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's mean and deviation on [-1, 1]


def load_lpips(path: Path) -> tuple[str, Callable[[Unit, Unit], float]]:
    """LPIPS of AlexNet.

    Args:
        path: Safetensors with `features.N.weight` and `.bias` of torchvision's AlexNet, N = 0, 3, 6, 8, 10, and the
            published heads `lin0.model.1.weight` to `lin4.model.1.weight`.

    Returns:
        `lpips@` with the first 12 digits of the file's SHA-256; and two pictures (H, W, C) in [0, 1] of one shape ->
        the distance, 0 for equal ones.

    Raises:
        ModelError: Missing, or the tensors do not fit; names the file.
    """
    digest, tensors = read_weights(path)
    import torch
    from torch import Tensor
    from torch.nn import functional as f

    try:
        layers = [(tensors[f"features.{n}.weight"], tensors[f"features.{n}.bias"]) for n in NAMES]
        heads = [tensors[f"lin{k}.model.1.weight"] for k in range(5)]
    except KeyError as error:
        raise ModelError(f"{path}: has no {error.args[0]}") from error
    for k, ((i, o), (weight, _), head) in enumerate(zip(pairwise(CHANNELS), layers, heads, strict=True)):
        if weight.shape[:2] != (o, i) or head.shape != (1, o, 1, 1):
            raise ModelError(f"{path}: layer {k} does not fit AlexNet and its head")
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (SHIFT, SCALE))

    def features(picture: Unit) -> list[Tensor]:
        x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(picture, 2, 0)[None], np.float32))
        h = (2 * x.expand(-1, 3, -1, -1) - 1 - shift) / scale
        taps = []
        for k, (weight, bias) in enumerate(layers):
            h = f.max_pool2d(h, 3, 2) if k in (1, 2) else h
            h = f.relu(f.conv2d(h, weight, bias, 4 if k == 0 else 1, 2 if k < 2 else 1))
            taps.append(h / (h.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return taps

    def distance(picture: Unit, other: Unit) -> float:
        if picture.shape != other.shape or min(picture.shape[:2]) < 31:
            raise ValueError(f"two pictures of one shape, 31 and more a side, not {picture.shape} and {other.shape}")
        pairs = zip(heads, features(picture), features(other), strict=True)
        return float(sum(f.conv2d((a - b).square(), head).mean() for head, a, b in pairs))

    return f"lpips@{digest[:12]}", distance
