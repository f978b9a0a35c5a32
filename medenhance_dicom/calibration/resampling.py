"""Bootstrap intervals over patients: pairs of one patient are alike, so patients are drawn, not pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Patients"]

DRAWS, LEVEL = 2000, 0.95


class Patients:
    """Draws of patients with replacement (Efron, 1979; whole clusters), the same for every figure.

    Args:
        names: The patient of every pair, in any order.
        seed: Of the draws.
    """

    def __init__(self, names: Sequence[str], seed: int = 0) -> None:
        self._number = {name: k for k, name in enumerate(sorted(set(names)))}
        count = len(self._number)
        drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / max(count, 1)), DRAWS)
        self._times = drawn.astype(np.float64)

    def share(self, names: Sequence[str], hits: Sequence[bool]) -> list[float] | None:
        """Percentile interval of the share of hits.

        Args:
            names: Patients of the pairs.
            hits: Of each pair.

        Returns:
            Low and high; None for fewer than two patients in all, or no pair.
        """
        which = self._numbers(names)
        size = len(self._number)
        hit, every = (np.bincount(which, w, size) for w in (np.array(hits, float), np.ones(len(which))))
        return self._interval(self._times @ hit, self._times @ every)

    def auroc(self, honest: Sequence[tuple[str, float]], altered: Sequence[tuple[str, float]]) -> list[float] | None:
        """Percentile interval of the probability that an altered pair scores above an honest one; ties count half.

        Args:
            honest: Patient and score of each pair.
            altered: The same.

        Returns:
            As `share`.
        """
        size = len(self._number)
        rows, columns = (np.array([score for _, score in side]) for side in (altered, honest))
        won = (rows[:, None] > columns) + 0.5 * (rows[:, None] == columns)
        owners = [np.eye(size)[self._numbers([name for name, _ in side])] for side in (altered, honest)]
        between = owners[0].T @ won @ owners[1]  # (patients, patients)
        drawn = self._times
        pairs = (drawn @ owners[0].sum(0)) * (drawn @ owners[1].sum(0))
        return self._interval(np.einsum("dg,gh,dh->d", drawn, between, drawn, optimize=True), pairs)

    def _numbers(self, names: Sequence[str]) -> NDArray[np.intp]:
        return np.array([self._number[name] for name in names], np.intp)

    def _interval(self, some: NDArray[np.float64], of: NDArray[np.float64]) -> list[float] | None:
        seen = of > 0
        if len(self._number) < 2 or not seen.any():
            return None
        low, high = np.quantile(some[seen] / of[seen], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return [round(float(low), 4), round(float(high), 4)]
