"""LIME: low-light enhancement by an illumination map."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.sparse import coo_array, diags_array
from scipy.sparse.linalg import splu

from medenhance_dicom.baselines.filters import box_mean, differences, guided_line, resized
from medenhance_dicom.baselines.frame import Baseline, Mask, Picture, Plane, check_fields, value

EPSILON = 1e-3
LINE_RADIUS, LINE_EPS = 4, 1e-4  # of the lines that carry a reduced map up


@dataclass(frozen=True)
class Lime(Baseline):
    """LIME (Guo, Li and Ling, IEEE TIP 2017), fast solver, weights of strategy III.

    The map t of T^ = max_c L solves (I + sum_d D_d^T diag(alpha W_d / (|D_d T^| + eps)) D_d) t = T^, by a sparse LU;
    R = L / t^gamma. Frames with a side beyond `largest` are solved on a reduced map, which is carried up by local lines
    of T^ (fast guided filter, He and Sun, arXiv 1505.00996). Without the paper's optional denoising (BM3D).
    """

    alpha: float = 0.15
    gamma: float = 0.8
    sigma: float = 2.0
    """Of the Gaussian in the weights, in pixels."""
    largest: int = 512

    def __post_init__(self) -> None:
        check_fields(self, alpha=(0, 10), gamma=(0, 1), sigma=(0.1, 50), largest=(16, 1024))

    def _enhance(self, picture: Picture, inside: Mask) -> Picture:
        light = illumination_map(value(picture), self.alpha, self.sigma, self.largest)
        result: Picture = picture / light[..., None] ** self.gamma
        return result


def illumination_map(initial: Plane, alpha: float, sigma: float, largest: int) -> Plane:
    """T^ (H, W) in [0, 1] -> the refined t (H, W) in [1e-3, 1]."""
    longest = max(initial.shape)
    if longest <= largest:
        refined = _solve(initial, alpha, sigma)
    else:
        shape = tuple(max(1, round(size * largest / longest)) for size in initial.shape)
        small = resized(initial, shape)
        a, b = guided_line(small[..., None], _solve(small, alpha, sigma), LINE_RADIUS, LINE_EPS)
        a, b = (resized(box_mean(x, LINE_RADIUS), initial.shape) for x in (a[..., 0], b))
        refined = a * initial + b
    return np.clip(refined, EPSILON, 1)


def _solve(initial: Plane, alpha: float, sigma: float) -> Plane:
    """The 5-point system, by a sparse LU that keeps it symmetric."""
    index = np.arange(initial.size).reshape(initial.shape)
    pairs = [(index[:-1], index[1:]), (index[:, :-1], index[:, 1:])]
    links = []
    for axis, (step, (here, _)) in enumerate(zip(differences(initial), pairs, strict=True)):
        weight = 1 / (np.abs(gaussian_filter1d(step, sigma, axis=axis)) + EPSILON)
        link = alpha * weight / (np.abs(step) + EPSILON)
        links.append(link[: here.shape[0], : here.shape[1]].ravel())
    link = np.concatenate(links)
    first, second = (np.concatenate([pair[end].ravel() for pair in pairs]) for end in (0, 1))
    graph = coo_array((link, (first, second)), shape=(initial.size,) * 2).tocsc()
    graph = graph + graph.T
    matrix = (diags_array(1 + graph.sum(axis=1)) - graph).tocsc()
    factors = splu(matrix, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0, options={"SymmetricMode": True})
    solution: Plane = factors.solve(initial.ravel()).reshape(initial.shape)
    return solution
