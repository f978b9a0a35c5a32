"""NIQE: how far the statistics of a picture's blocks lie from those of good pictures.

Source: Mittal, Soundararajan and Bovik, "Making a 'completely blind' image quality analyzer", IEEE SPL 2013, as LIVE's
release computes it. `fit_niqe` learns what is good from pictures of one's own kind, as MATLAB's fitniqe does.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.metrics.picture import Mask, Plane, Unit, bounding_box, grey_bytes
from medenhance_dicom.metrics.scenes import asymmetric_gaussian, half_size, normalised_contrast

__all__ = ["NaturalScenes", "fit_niqe", "niqe", "niqe_features"]

BLOCK = 96
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
FEATURES = 36
FEWEST, FEW = 2, 12  # blocks: fewer give no score, or one that hangs on the picture's size
LIVE = "2a7c182a68c9e7f1b2e2e5ec723279d6f65d912b6fcaf37eb2bf03d7367c4296"


@dataclass(frozen=True, eq=False)
class NaturalScenes:
    """A Gaussian of block statistics, of good pictures."""

    mu: NDArray[np.float64]
    """(36,)."""
    sigma: NDArray[np.float64]
    """(36, 36)."""
    digest: str
    """SHA-256 of the file they came from; of mu and sigma for fitted ones."""
    fitted: bool = False
    """Whether `fit_niqe` made them."""

    @property
    def id(self) -> str:
        """`niqe@live-96`, `niqe@domain:` or `niqe@` and the first 12 digits of the digest."""
        if self.digest == LIVE:
            return "niqe@live-96"
        return f"niqe@{'domain:' if self.fitted else ''}{self.digest[:12]}"


def niqe(picture: Unit, scenes: NaturalScenes, inside: Mask | None = None) -> float:
    """sqrt(d^T ((Sigma_1 + Sigma_2) / 2)^+ d), d the difference of the means; lower is better.

    It depends on the picture's size: compare pictures of one size. NaN for a flat picture.

    Args:
        picture: (H, W, C) in [0, 1].
        scenes: What good pictures are like.
        inside: (H, W), the field of view; its bounding box is what is judged.

    Raises:
        ValueError: Fewer than two blocks of 96 x 96. Fewer than twelve are a warning.
    """
    features, _ = niqe_features(grey_bytes(bounding_box(picture, inside)))
    if len(features) < FEW:
        warnings.warn(f"NIQE of {len(features)} blocks of {BLOCK} x {BLOCK} depends on the size most", stacklevel=2)
    mu, sigma = _gaussian(features)
    difference = scenes.mu - mu
    if not np.isfinite(difference).all():
        return float("nan")
    return float(np.sqrt(difference @ np.linalg.pinv((scenes.sigma + sigma) / 2) @ difference))


def fit_niqe(pictures: Iterable[Unit], sharpest: float = 0.75) -> NaturalScenes:
    """Learn what good pictures are like from the sharp blocks of some.

    Args:
        pictures: (H, W, C) in [0, 1], of one kind and about one size; each at least 96 x 96.
        sharpest: Blocks count whose mean local deviation is above this share of the largest one of their picture.

    Raises:
        ValueError: A picture is too small, or fewer than 37 blocks with statistics are left of all of them.
    """
    kept = []
    for picture in pictures:
        features, sharpness = niqe_features(grey_bytes(picture), fewest=1)
        kept.append(features[sharpness > sharpest * sharpness.max()])
    blocks = np.concatenate(kept) if kept else np.empty((0, FEATURES))
    if np.isfinite(blocks).all(1).sum() <= FEATURES:
        raise ValueError(f"{len(blocks)} sharp blocks are too few for {FEATURES} statistics")
    mu, sigma = _gaussian(blocks)
    return NaturalScenes(mu, sigma, hashlib.sha256(mu.tobytes() + sigma.tobytes()).hexdigest(), fitted=True)


def niqe_features(plane: Plane, fewest: int = FEWEST) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Statistics of whole 96 x 96 blocks at full size, and of the same blocks at half size.

    Args:
        plane: (H, W), 8-bit grey in [0, 255].
        fewest: How many blocks there have to be.

    Returns:
        (n, 36), NaN where a block is flat; and (n,), the mean local deviation of each block.

    Raises:
        ValueError: Fewer blocks than that.
    """
    rows, columns = (size // BLOCK for size in plane.shape)
    if rows * columns < fewest:
        raise ValueError(f"a picture of {plane.shape[0]} x {plane.shape[1]} has fewer than {fewest} blocks of {BLOCK}")
    plane = plane[: rows * BLOCK, : columns * BLOCK]
    contrast, sigma = normalised_contrast(plane, "nearest")
    smaller, _ = normalised_contrast(half_size(plane), "nearest")
    features = [_block_features(_blocks(contrast, BLOCK)), _block_features(_blocks(smaller, BLOCK // 2))]
    return np.concatenate(features, axis=1), _blocks(sigma, BLOCK).mean(axis=(1, 2))


def _blocks(plane: Plane, side: int) -> NDArray[np.float64]:
    """(H, W) -> (n, side, side)."""
    rows, columns = (size // side for size in plane.shape)
    return plane.reshape(rows, side, columns, side).transpose(0, 2, 1, 3).reshape(-1, side, side)


def _block_features(blocks: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, side, side) -> (n, 18): alpha, the mean beta, and for four neighbours alpha, eta, beta_l, beta_r."""
    fit = asymmetric_gaussian(blocks.reshape(len(blocks), -1))
    features = [fit.alpha, fit.scale * (fit.left + fit.right) / 2]
    for shift in SHIFTS:
        fit = asymmetric_gaussian((blocks * np.roll(blocks, shift, (1, 2))).reshape(len(blocks), -1))
        features += [fit.alpha, fit.mean * fit.scale, fit.left * fit.scale, fit.right * fit.scale]
    return np.stack(features, axis=1)


def _gaussian(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean of what is there of each column, sample covariance of the rows without gaps; NaN where nothing is there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # nothing but gaps
        mu = np.nanmean(features, axis=0)
    whole = features[np.isfinite(features).all(1)]
    return mu, np.cov(whole, rowvar=False) if len(whole) > 1 else np.zeros((FEATURES, FEATURES))
