"""Retinex with a noise layer, the closest published form of the enhancement stage that HQG-Net calls ATA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse.linalg import LinearOperator, cg

from medenhance_dicom.baselines.filters import differences, differences_adjoint, solve_smooth
from medenhance_dicom.baselines.frame import Baseline, Mask, Picture, Plane, check_fields, relight, value

ACCURACY = 1e-3  # relative, of the two linear systems of a round
MOST_STEPS = 50  # of conjugate gradients


@dataclass(frozen=True)
class RobustRetinex(Baseline):
    """I = R L + N on V of HSV (Li, Liu, Yang, Sun and Guo, IEEE TIP 2018); gives R L^(1 / gamma).

    min |R L + N - I|^2 + beta |D L|_1 + omega |D R - G|^2 + delta |N|^2, G = (1 + lambda exp(-|D I| / sigma)) D I, by
    ADMM. `sigma` and `threshold`, below which D I counts as noise and G is 0, are in grey levels of 0..255; everything
    else is in [0, 1].
    """

    beta: float = 0.05
    omega: float = 0.01
    delta: float = 1.0
    lambda_: float = 10.0
    sigma: float = 10.0
    threshold: float = 1.275
    gamma: float = 2.2
    mu: float = 1.0
    """Penalty of the first round; grows by 1.5 a round."""
    tolerance: float = 1e-3
    """Relative change of R and of L at which it stops."""
    rounds: int = 100

    def __post_init__(self) -> None:
        check_fields(self, beta=(0, 10), omega=(0, 10), delta=(0, 1e6), lambda_=(0, 100), sigma=(0.1, 1000))
        check_fields(self, threshold=(0, 255), gamma=(1, 10), mu=(1e-3, 1e3), tolerance=(1e-8, 1), rounds=(1, 1000))

    def _enhance(self, picture: Picture, inside: Mask) -> Picture:
        observed = value(picture)
        reflectance, light, _ = self.decompose(observed)
        return relight(picture, observed, reflectance * light ** (1 / self.gamma))

    def decompose(self, observed: Plane) -> tuple[Plane, Plane, Plane]:
        """V (H, W) in [0, 1] -> reflectance R >= 0, illumination L in [0, 1], noise N; (H, W) each."""
        wanted = self._wanted_gradient(observed)
        light, noise = observed.copy(), np.zeros_like(observed)
        reflectance = np.ones_like(observed)
        z = tuple(np.zeros_like(observed) for _ in range(2))
        mu = self.mu
        pull = self.omega * differences_adjoint(*wanted)
        for _ in range(self.rounds):
            before = reflectance, light
            reflectance = self._solve_reflectance(light, light * (observed - noise) + pull, reflectance)
            edges = differences(light)
            t = [_shrink(d + p / mu, self.beta / mu) for d, p in zip(edges, z, strict=True)]
            push = differences_adjoint(*(mu * x - p for x, p in zip(t, z, strict=True)))
            light = _solve_light(reflectance, mu, 2 * reflectance * (observed - noise) + push, light)
            noise = (observed - reflectance * light) / (1 + self.delta)
            z = tuple(p + mu * (d - x) for p, d, x in zip(z, differences(light), t, strict=True))
            mu *= 1.5
            if all(_change(*pair) < self.tolerance for pair in zip(before, (reflectance, light), strict=True)):
                break
        return np.maximum(reflectance, 0), np.clip(light, 0, 1), noise

    def _wanted_gradient(self, observed: Plane) -> list[Plane]:
        """G, down and across."""
        result = []
        for step in differences(observed):
            size = 255 * np.abs(step)
            gain = 1 + self.lambda_ * np.exp(-size / self.sigma)
            result.append(np.where(size < self.threshold, 0, gain * step))
        return result

    def _solve_reflectance(self, light: Plane, right: Plane, start: Plane) -> Plane:
        """(L^2 + omega D^T D) r = right."""
        square = light**2 + 1e-6
        diagonal = square + 4 * self.omega
        return _conjugate_gradients(
            lambda x: square * x + self.omega * _laplacian(x), right, start, lambda x: x / diagonal
        )


def _solve_light(reflectance: Plane, mu: float, right: Plane, start: Plane) -> Plane:
    """(2 R^2 + mu D^T D) l = right, led by the solution for R^2 at its mean."""
    square = 2 * reflectance**2 + 1e-6
    mean = float(square.mean())
    return _conjugate_gradients(
        lambda x: square * x + mu * _laplacian(x), right, start, lambda x: solve_smooth(x, mean, mu)
    )


def _conjugate_gradients(
    matrix: Callable[[Plane], Plane], right: Plane, start: Plane, preconditioner: Callable[[Plane], Plane]
) -> Plane:
    shape, n = right.shape, right.size
    operators = [
        LinearOperator((n, n), matvec=lambda x, f=f: f(x.reshape(shape)).ravel(), dtype=np.float64)
        for f in (matrix, preconditioner)
    ]
    solution, _ = cg(operators[0], right.ravel(), start.ravel(), rtol=ACCURACY, maxiter=MOST_STEPS, M=operators[1])
    found: Plane = solution.reshape(shape)
    return found


def _laplacian(plane: Plane) -> Plane:
    return differences_adjoint(*differences(plane))


def _shrink(plane: Plane, by: float) -> Plane:
    """Soft threshold."""
    return np.sign(plane) * np.maximum(np.abs(plane) - by, 0)


def _change(before: Plane, after: Plane) -> float:
    return float(np.linalg.norm(after - before) / max(float(np.linalg.norm(before)), 1e-12))
