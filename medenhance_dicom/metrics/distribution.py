"""Distance between two sets of pictures, by the features that some network gives them: FID and KID.

FID: Heusel et al., NeurIPS 2017. KID: Binkowski et al., ICLR 2018. The papers' features are Inception's; here any
function from a picture to a vector serves, and its id belongs to the score.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.errors import ModelError
from medenhance_dicom.metrics.picture import Unit
from medenhance_dicom.metrics.weights import read_weights

__all__ = ["Features", "fid", "frechet_distance", "kid", "load_encoder"]

Features = Callable[[Unit], NDArray[np.float64]]
"""(H, W, C) in [0, 1] -> (d,)."""
Vectors = NDArray[np.floating[Any]]

ENCODER_SIDE = 128  # of the square that the compact presets train the encoder with


def fid(x: Vectors, y: Vectors) -> float:
    """Frechet distance of the Gaussians through two sets of features; 0 for equal sets.

    It is biased, and wants more than d pictures of each.

    Args:
        x: (n, d), n >= 2.
        y: (m, d), m >= 2.

    Raises:
        ValueError: Shapes that do not fit, or fewer than two of a set.
    """
    x, y = _sets(x, y)
    return frechet_distance(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))


def frechet_distance(mu_x: Vectors, sigma_x: Vectors, mu_y: Vectors, sigma_y: Vectors) -> float:
    """|mu_x - mu_y|^2 + Tr(S_x + S_y - 2 (S_x S_y)^(1/2)), the last by the singular values of S_x^(1/2) S_y^(1/2).

    Args:
        mu_x: (d,).
        sigma_x: (d, d), symmetric and not negative.
        mu_y: (d,).
        sigma_y: (d, d).
    """
    sigma_x, sigma_y = np.atleast_2d(sigma_x), np.atleast_2d(sigma_y)
    cross = np.linalg.svd(_root(sigma_x) @ _root(sigma_y), compute_uv=False).sum()
    apart = np.asarray(mu_x) - np.asarray(mu_y)
    return float(apart @ apart + np.trace(sigma_x) + np.trace(sigma_y) - 2 * cross)


def kid(x: Vectors, y: Vectors, *, seed: int = 0, subsets: int = 100, largest: int = 1000) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3: about 0 for sets of one distribution, and may be below.

    Args:
        x: (n, d), n >= 2.
        y: (m, d), m >= 2.
        seed: Of the subsets.
        subsets: How many random ones the mean is taken over, where a set is larger than that:
        largest: How many of a set are compared at a time.

    Raises:
        ValueError: As `fid`.
    """
    x, y = _sets(x, y)
    if max(len(x), len(y)) <= largest:
        return _unbiased_mmd(x, y)
    rng = np.random.default_rng(seed)
    draws = ([rng.choice(s, min(len(s), largest), replace=False) for s in (x, y)] for _ in range(subsets))
    return float(np.mean([_unbiased_mmd(*draw) for draw in draws]))


def load_encoder(path: Path) -> tuple[str, Features]:
    """HQG-Net's guide encoder as a source of features: a ResNet-18 that an auto-encoder trained on the same domain.

    Args:
        path: Its safetensors file.

    Returns:
        `encoder:` with the first 12 digits of the file's SHA-256; and (H, W, C) in [0, 1] -> (64,). The picture's
        longer side is brought to 128 pixels by area means, and it is laid on a black square; colour becomes grey and
        grey colour as the encoder takes it.

    Raises:
        ModelError: Missing, or no guide encoder; names the file.
    """
    digest, tensors = read_weights(path)
    import torch
    from torch.nn import functional

    from medenhance_dicom.networks import GuideEncoder

    try:
        width, channels = tensors["encoder.stem.0.weight"].shape[:2]
        encoder = GuideEncoder(channels=channels, width=width)
        encoder.load_state_dict(tensors)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: not a guide encoder ({type(error).__name__})") from error
    encoder.eval().requires_grad_(False)

    def features(picture: Unit) -> NDArray[np.float64]:
        x = torch.from_numpy(np.ascontiguousarray(picture, np.float32)).permute(2, 0, 1)[None]
        x = x.mean(1, keepdim=True) if channels == 1 else x.expand(-1, 3, -1, -1)
        scale = ENCODER_SIDE / max(x.shape[2:])
        h, w = (max(1, round(scale * side)) for side in x.shape[2:])
        x = functional.interpolate(x, (h, w), mode="area")
        top, left = (ENCODER_SIDE - h) // 2, (ENCODER_SIDE - w) // 2
        x = functional.pad(x, (left, ENCODER_SIDE - w - left, top, ENCODER_SIDE - h - top))
        return np.asarray(encoder(x)[0].double().numpy())

    return f"encoder:{digest[:12]}", features


def _sets(x: Vectors, y: Vectors) -> tuple[Vectors, Vectors]:
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"two sets (n, d) of at least two wanted, not {x.shape} and {y.shape}")
    return x, y


def _root(sigma: Vectors) -> Vectors:
    """The symmetric square root."""
    values, vectors = np.linalg.eigh(sigma)
    return np.asarray(vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T)


def _unbiased_mmd(x: Vectors, y: Vectors) -> float:
    n, m, d = len(x), len(y), x.shape[1]
    xx, yy, xy = (k * k * k for k in (a @ b.T / d + 1 for a, b in ((x, x), (y, y), (x, y))))
    return float((xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1)) - 2 * xy.mean())
