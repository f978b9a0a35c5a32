"""Filters that several baselines share: box means, guided filter, dark channel, differences, another size."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn, idctn
from scipy.ndimage import minimum_filter, uniform_filter
from skimage.transform import resize

Plane = NDArray[np.float64]
Picture = NDArray[np.float64]


def box_mean(plane: Plane, radius: int) -> Plane:
    """Mean over (2 radius + 1)^2 pixels, over those alone that lie in the frame."""
    size = 2 * radius + 1
    count = [uniform_filter(np.ones(n), size, mode="constant") for n in plane.shape]
    total: Plane = uniform_filter(plane, size, mode="constant")
    return total / (count[0][:, None] * count[1])


def guided_filter(guide: Picture, plane: Plane, radius: int, eps: float) -> Plane:
    """Guided filter (He, Sun and Tang, IEEE TPAMI 2013), grey or in colour.

    Args:
        guide: (H, W, 1 or 3).
        plane: (H, W), what is filtered.
        radius: Of the windows, in pixels.
        eps: Regularisation, in the guide's units squared.

    Returns:
        (H, W); `plane` itself where it is a line of the guide, blurred where the guide is flat.
    """
    a, b = guided_line(guide, plane, radius, eps)
    a, b = np.stack([box_mean(a[..., c], radius) for c in range(a.shape[2])], axis=2), box_mean(b, radius)
    return (a * guide).sum(axis=2) + b


def guided_line(guide: Picture, plane: Plane, radius: int, eps: float) -> tuple[Picture, Plane]:
    """Per window the line a . guide + b that is nearest to `plane`: a (H, W, C), b (H, W)."""
    channels = [guide[..., c] for c in range(guide.shape[2])]
    means = [box_mean(x, radius) for x in channels]
    mean = box_mean(plane, radius)
    cross = [box_mean(x * plane, radius) - m * mean for x, m in zip(channels, means, strict=True)]
    if len(channels) == 1:
        a = (cross[0] / (box_mean(channels[0] ** 2, radius) - means[0] ** 2 + eps))[..., None]
    else:
        pairs = [(0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2)]
        covariance = [box_mean(channels[i] * channels[j], radius) - means[i] * means[j] for i, j in pairs]
        a = np.empty(guide.shape)
        for row in range(len(plane)):  # a 3 x 3 system per pixel, of few pixels at a time
            sigma = np.stack([covariance[k][row] for k in (0, 1, 2, 1, 3, 4, 2, 4, 5)], axis=1).reshape(-1, 3, 3)
            right = np.stack([plane[row] for plane in cross], axis=1)[..., None]
            a[row] = np.linalg.solve(sigma + eps * np.eye(3), right)[..., 0]
    return a, mean - (a * np.stack(means, axis=2)).sum(axis=2)


def dark_channel(picture: Picture, patch: int) -> Plane:
    """The least of all channels in patch x patch pixels (He, Sun and Tang, IEEE TPAMI 2011, eq. 5); (H, W)."""
    dark: Plane = minimum_filter(picture.min(axis=2), patch, mode="nearest")
    return dark


def differences(plane: Plane) -> tuple[Plane, Plane]:
    """D: forward differences down and across, (H, W) each; 0 in the last row or column."""
    return np.diff(plane, axis=0, append=plane[-1:]), np.diff(plane, axis=1, append=plane[:, -1:])


def differences_adjoint(down: Plane, across: Plane) -> Plane:
    """D^T: the adjoint of `differences`, so that D^T D is the 5-point Laplacian with free edges."""
    return -np.diff(down[:-1], axis=0, prepend=0, append=0) - np.diff(across[:, :-1], axis=1, prepend=0, append=0)


def solve_smooth(right: Plane, diagonal: float, weight: float) -> Plane:
    """(diagonal + weight D^T D) x = right, exactly, in the cosine basis."""
    rows, columns = (2 - 2 * np.cos(np.pi * np.arange(n) / n) for n in right.shape)
    solution: Plane = idctn(dctn(right) / (diagonal + weight * (rows[:, None] + columns)))
    return solution


def resized(picture: Picture, shape: tuple[int, ...]) -> Picture:
    """(H, W) or (H, W, C) at another (H, W): bilinear, with a Gaussian before where it shrinks."""
    shrinks = shape[0] < picture.shape[0] or shape[1] < picture.shape[1]
    other: Picture = resize(picture, shape[:2], order=1, mode="edge", anti_aliasing=shrinks)
    return other
