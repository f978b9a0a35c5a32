"""What a whole archive will take, from a sample: time, disk and the share that is withheld, with 95 % intervals.

A stratum is a modality and a device. Of each a few series are drawn at random, enhanced for real into a scratch folder
and measured. Time and disk of the rest follow by ratio to the number of instances; their intervals come from a
bootstrap over series within strata. Shares have Wilson's interval. Numbers are of this machine and one worker.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from medenhance_dicom.intervals import Estimate, Z, wilson

LEAST = 5
"""Series drawn of every stratum, where it has as many: fewer tell nothing of their spread."""
DRAWS = 2000
_AT_ONCE = 1 << 20  # numbers that a bootstrap holds


class Stratum(NamedTuple):
    """What is expected to behave alike."""

    modality: str
    device: str
    """Manufacturer and model."""


@dataclass(frozen=True)
class Measured:
    """One series of the sample."""

    key: str
    stratum: Stratum
    instances: int
    seconds: float
    """Enhancing it."""
    fetch_seconds: float
    """Bringing it from where it lies; overlaps with the enhancement of others in a run."""
    bytes: int
    """Derived files."""
    judged: int
    """Instances on which the gate had a say."""
    withheld: int
    failed: int = 0


@dataclass(frozen=True)
class Population:
    """A stratum of the plan."""

    series: int
    instances: int


@dataclass(frozen=True)
class Forecast:
    """Of a stratum, of a modality or of all."""

    series: int
    instances: int
    sampled: int
    """Series that were measured."""
    seconds: Estimate
    fetch_seconds: Estimate
    bytes: Estimate
    withheld_share: Estimate
    """Of the instances on which the gate has a say."""
    failed_share: Estimate


@dataclass
class Forecasts:
    """All of them. Seconds are of one worker."""

    total: Forecast
    modalities: dict[str, Forecast] = field(default_factory=dict)
    strata: dict[Stratum, Forecast] = field(default_factory=dict)
    unmeasured: dict[Stratum, Population] = field(default_factory=dict)
    """Strata of which no series could be measured: not in any of the figures."""


# ---------------------------------------------------------------- which series


def place(key: str, seed: int, use: str) -> float:
    """A number in [0, 1) that is a function of the key: the same series is drawn whatever the order or the neighbours.

    Args:
        key: Of the series.
        seed: Another seed gives another sample.
        use: What is drawn for, so that two samples are independent.
    """
    digest = hashlib.sha256(f"{use}\n{seed}\n{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def draw(
    series: Iterable[tuple[str, Stratum, int]], share: float, *, seed: int = 0, least: int = LEAST
) -> tuple[dict[Stratum, list[str]], dict[Stratum, Population]]:
    """A random sample of every stratum, and the strata.

    Args:
        series: Key, stratum and number of instances of every series that is open. Gone through once; memory grows with
            the sample, not with them.
        share: Of all series, in (0, 1]: every series is in the sample with this probability.
        seed: See `place`.
        least: Series of every stratum, as far as there are; those with the lowest places.

    Returns:
        Keys by stratum, in the order of their places, and the size of every stratum.
    """
    kept: dict[Stratum, list[tuple[float, str]]] = defaultdict(list)
    lowest: dict[Stratum, list[tuple[float, str]]] = defaultdict(list)  # heaps, the highest place on top, negated
    series_of, instances_of = Counter[Stratum](), Counter[Stratum]()
    for key, stratum, instances in series:
        series_of[stratum] += 1
        instances_of[stratum] += instances
        where = place(key, seed, "sample")
        if where < share:
            kept[stratum].append((where, key))
        if len(lowest[stratum]) < least:
            heapq.heappush(lowest[stratum], (-where, key))
        else:
            heapq.heappushpop(lowest[stratum], (-where, key))
    drawn = {}
    for stratum, heap in lowest.items():
        several = {*kept[stratum], *((-where, key) for where, key in heap)}
        drawn[stratum] = [key for _, key in sorted(several)]
    return drawn, {stratum: Population(series_of[stratum], instances_of[stratum]) for stratum in drawn}


# ---------------------------------------------------------------- intervals


def bootstrap_ratios(
    values: NDArray[np.float64], sizes: NDArray[np.float64], random: np.random.Generator, draws: int
) -> NDArray[np.float64]:
    """Ratio of sums in samples drawn anew with replacement: (draws, K), of values (n, K) to sizes (n,)."""
    n = len(sizes)
    ratios = np.empty((draws, values.shape[1]))
    step = max(1, _AT_ONCE // n)
    for start in range(0, draws, step):
        chosen = random.integers(0, n, (min(step, draws - start), n))
        ratios[start : start + step] = values[chosen].sum(1) / np.maximum(sizes[chosen].sum(1), 1.0)[:, None]
    return ratios


def widening(n: int) -> float:
    """By what a bootstrap of `n` > 1 is too narrow: sqrt(n / (n - 1)), and Student's t over the normal quantile."""
    return math.sqrt(n / (n - 1)) * float(student.ppf(0.975, n - 1)) / Z


def forecast(
    sample: Sequence[Measured], population: Mapping[Stratum, Population], *, seed: int = 0, draws: int = DRAWS
) -> Forecasts:
    """What the whole will take.

    A stratum's total is what its sample took and, for the rest, the sample's ratio to instances. A bootstrap draws the
    sample anew with replacement; its deviations are widened by sqrt(N / (N - n)), because the rest is itself a draw,
    and by `widening`, because n is small.
    Instances of one series stand or fall together, so Wilson's n is the number of series. Shares of several strata are
    combined by the recovery of variance estimates from their limits (Zou and Donner 2008).

    Args:
        sample: What was measured; at least one.
        population: Series and instances of every stratum, the measured ones included.
        seed: Of the bootstrap.
        draws: Of the bootstrap.

    Raises:
        ValueError: Nothing was measured.
    """
    if not sample:
        raise ValueError("nothing was measured")
    by_stratum: dict[Stratum, list[Measured]] = defaultdict(list)
    for measured in sample:
        by_stratum[measured.stratum].append(measured)
    random = np.random.default_rng(seed)
    parts = {
        stratum: _Part(by_stratum[stratum], size, random, draws)
        for stratum, size in sorted(population.items())
        if by_stratum.get(stratum)
    }
    modalities: dict[str, list[_Part]] = defaultdict(list)
    for stratum, part in parts.items():
        modalities[stratum.modality].append(part)
    return Forecasts(
        _combined(list(parts.values())),
        {modality: _combined(of) for modality, of in modalities.items()},
        {stratum: _combined([part]) for stratum, part in parts.items()},
        {stratum: size for stratum, size in sorted(population.items()) if stratum not in parts},
    )


_AMOUNTS = ("seconds", "fetch_seconds", "bytes")


class _Part:
    """A stratum: for every amount its total and `draws` of it; for every share its interval."""

    def __init__(self, sample: Sequence[Measured], size: Population, random: np.random.Generator, draws: int) -> None:
        n = len(sample)
        self.size, self.n = size, n
        self.known = n >= size.series
        instances = np.array([m.instances for m in sample], float)
        rest = max(0.0, size.instances - float(instances.sum()))
        self.told = self.known or n > 1
        values = np.array([[getattr(m, name) for name in _AMOUNTS] for m in sample], float)
        ratio = values.sum(0) / max(instances.sum(), 1.0)
        totals = values.sum(0) + ratio * rest
        deviations = np.zeros((draws, len(_AMOUNTS)))
        if not self.known and n > 1:
            wider = math.sqrt(size.series / (size.series - n)) * widening(n)
            deviations = (bootstrap_ratios(values, instances, random, draws) - ratio) * rest * wider
        self.totals = dict(zip(_AMOUNTS, map(float, totals), strict=True))
        # What was measured is spent whatever the rest takes.
        self.draws = dict(zip(_AMOUNTS, np.maximum(totals + deviations, values.sum(0)).T, strict=True))
        judged = sum(m.judged for m in sample)
        self.judged_instances = judged / max(instances.sum(), 1.0) * size.instances
        self.withheld = self._share(sum(m.withheld for m in sample), judged, sum(m.judged > 0 for m in sample))
        self.failed = self._share(sum(m.failed for m in sample), float(instances.sum()), n)

    def _share(self, count: float, of: float, series: int) -> Estimate:
        if not of:
            return wilson(0, 0) if not self.known else Estimate(0.0, 0.0, 0.0)
        share = count / of
        return Estimate(share, share, share) if self.known else wilson(share * series, series)


def _combined(parts: Sequence[_Part]) -> Forecast:
    amounts = {}
    for name in _AMOUNTS:
        value = sum(part.totals[name] for part in parts)
        low, high = np.percentile(sum(part.draws[name] for part in parts), [2.5, 97.5])
        told = all(part.told for part in parts)
        amounts[name] = Estimate(
            value, float(min(low, value)) if told else None, float(max(high, value)) if told else None
        )
    return Forecast(
        sum(part.size.series for part in parts),
        sum(part.size.instances for part in parts),
        sum(part.n for part in parts),
        **amounts,
        withheld_share=_mixed([(part.judged_instances, part.withheld) for part in parts]),
        failed_share=_mixed([(float(part.size.instances), part.failed) for part in parts]),
    )


def _mixed(shares: Sequence[tuple[float, Estimate]]) -> Estimate:
    """The share of a mixture: (weight, share) of its parts; limits by MOVER."""
    whole = sum(weight for weight, _ in shares)
    if len(shares) == 1 or not whole:
        return shares[0][1]
    value = sum(weight * share.value for weight, share in shares) / whole
    down = sum((weight / whole * (share.value - (share.low or 0.0))) ** 2 for weight, share in shares)
    up = sum(
        (weight / whole * ((1.0 if share.high is None else share.high) - share.value)) ** 2 for weight, share in shares
    )
    return Estimate(value, max(0.0, value - math.sqrt(down)), min(1.0, value + math.sqrt(up)))
