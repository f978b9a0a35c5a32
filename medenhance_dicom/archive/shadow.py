"""Shadow mode: another recipe on a share of the same series, judged on what comes in before it replaces the first.

A shadow job is a job like any other, with results of its own beside the first's; what it makes is measured and thrown
away, or kept aside. Which series have one follows from their keys, so a run that is taken up again has the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.archive.forecast import LEAST, Stratum, bootstrap_ratios, place, widening
from medenhance_dicom.archive.plan import Method, Plan, SeriesRow
from medenhance_dicom.errors import ModelError, RecipeError
from medenhance_dicom.guides import choose_guide
from medenhance_dicom.intervals import Estimate, wilson
from medenhance_dicom.manifest import Manifest
from medenhance_dicom.recipe import Recipe, load_recipes

if TYPE_CHECKING:
    from numpy.random import Generator

DRAWS = 2000
_JUDGED = ("enhanced", "warned", "withheld")


class Pair(NamedTuple):
    """One instance under both recipes."""

    stratum: Stratum
    recipes: tuple[str, str]
    """The first's and the shadow's."""
    series: int
    results: tuple[str, str]
    lassim: tuple[float | None, float | None]
    mean_change: tuple[float | None, float | None]
    """In stored values."""
    seconds: tuple[float | None, float | None]


@dataclass(frozen=True)
class Side:
    """One recipe on the compared instances."""

    recipe: str
    results: dict[str, int]
    withheld_share: Estimate
    """Of those on which the gate had a say under both; Wilson's n is the number of series."""
    lassim: float | None
    """Median."""
    mean_change: float | None
    """Median."""
    seconds: float | None
    """Median for an instance."""


@dataclass(frozen=True)
class Comparison:
    """Two recipes on the same instances of a modality and device. Differences are the shadow's minus the first's."""

    modality: str
    device: str
    instances: int
    """Compared: both have a verdict."""
    series: int
    first: Side
    shadow: Side
    differences: dict[str, Estimate] = field(default_factory=dict)
    """`withheld_share`, `lassim`, `mean_change`: mean difference, 95 % interval by a bootstrap over series."""

    @property
    def says(self) -> str:
        """What the intervals tell, in words."""
        if self.series < LEAST:
            return "too few series to tell"
        words = []
        for name, more, less in (
            ("withheld_share", "withholds more", "withholds less"),
            ("lassim", "keeps structure better", "keeps structure worse"),
            ("mean_change", "changes more", "changes less"),
        ):
            told = self.differences.get(name)
            if told is not None and told.low is not None and told.high is not None:
                words += [more] if told.low > 0 else [less] if told.high < 0 else []
        return ", ".join(words) or "no difference can be told"


def in_share(series: str, share: float, seed: int = 0) -> bool:
    """Whether a series, by its key, is among the `share` in [0, 1] that a shadow looks at."""
    return place(series, seed, "shadow") < share


class ShadowMethods:
    """The method of the shadow recipe for a series."""

    def __init__(self, recipe: str, manifest: Manifest) -> None:
        """Args: recipe: its name; manifest: the weights that there are.

        Raises:
            RecipeError: No such recipe.
            ModelError: No such weights.
        """
        found = [r for r in load_recipes() if r.name == recipe]
        if not found:
            raise RecipeError(f"no recipe {recipe!r}; see `medenhance-dicom recipes list`")
        self.recipe: Recipe = found[0]
        self._manifest = manifest
        if self.recipe.enhancer.weights:
            manifest.entry(self.recipe.enhancer.weights)

    def of(self, series: SeriesRow, sop_classes: Sequence[str]) -> Method | None:
        """None where the recipe is not for such a series, or no guide fits it.

        What the plan does not know of a series (Image Type and the like) the recipe may not insist on.

        Args:
            series: Of the plan.
            sop_classes: Of its instances.
        """
        facts: dict[str, Any] = {
            "Modality": series.modality,
            "Manufacturer": series.manufacturer,
            "ManufacturerModelName": series.model,
            "SOPClassUID": list(sop_classes),
        }
        match = {keyword: values for keyword, values in self.recipe.match.items() if keyword in facts}
        if match and not self.recipe.model_copy(update={"match": match}).fits(facts):
            return None
        enhancer = self.recipe.enhancer
        if enhancer.method != "network" or enhancer.weights is None:
            return Method(self.recipe.name, self.recipe.digest)
        entry = self._manifest.entry(enhancer.weights)
        guide = None
        if entry.takes_guide:
            try:
                guide = choose_guide(enhancer.weights, entry, enhancer.guide, facts)
            except ModelError:
                return None
        return Method(
            self.recipe.name,
            self.recipe.digest,
            enhancer.weights,
            entry.sha256,
            guide.key if guide else None,
            guide.digest if guide else None,
        )


# ---------------------------------------------------------------- compare


_PAIRS = """
SELECT s.modality, s.manufacturer, s.model, m.recipe, n.recipe, s.id, d.result, e.result, d.lassim, e.lassim,
    d.mean_change, e.mean_change, d.seconds, e.seconds
FROM done e JOIN series s ON s.id = e.series
JOIN done d ON d.key = e.key AND d.method = s.method AND d.shadow = 0
JOIN method m ON m.key = d.method JOIN method n ON n.key = e.method
WHERE e.shadow = 1 AND e.method <> d.method
"""


def pairs(plan: Plan) -> Iterator[Pair]:
    """Every instance that has a result under its series' method and one under a shadow."""
    for row in plan.query(_PAIRS):
        modality, manufacturer, model = row[:3]
        stratum = Stratum(modality or "none", " ".join(f"{manufacturer} {model}".split()) or "unknown")
        yield Pair(stratum, row[3:5], row[5], row[6:8], row[8:10], row[10:12], row[12:14])


def compare(found: Iterable[Pair], *, seed: int = 0, draws: int = DRAWS) -> list[Comparison]:
    """Both recipes side by side, by modality and device, and for each pair of recipes over all ("all", "all")."""
    groups: dict[tuple[Stratum, tuple[str, str]], list[Pair]] = defaultdict(list)
    for pair in found:
        groups[pair.stratum, pair.recipes].append(pair)
    whole: dict[tuple[str, str], list[Pair]] = defaultdict(list)
    for (_, recipes), group in groups.items():
        whole[recipes] += group
    random = np.random.default_rng(seed)
    both = [(Stratum("all", "all"), recipes, group) for recipes, group in sorted(whole.items())]
    both += [(stratum, recipes, group) for (stratum, recipes), group in sorted(groups.items())]
    return [_compared(stratum, recipes, group, random, draws) for stratum, recipes, group in both]


def shadow_report(plan: Plan) -> list[dict[str, Any]]:
    """`compare` of a plan, for JSON."""
    return [
        asdict(one)
        | {side: asdict(of) | {"withheld_share": of.withheld_share._asdict()} for side, of in _sides(one).items()}
        | {"differences": {name: told._asdict() for name, told in one.differences.items()}, "says": one.says}
        for one in compare(pairs(plan))
    ]


def _sides(one: Comparison) -> Mapping[str, Side]:
    return {"first": one.first, "shadow": one.shadow}


def _compared(
    stratum: Stratum, recipes: tuple[str, str], group: Sequence[Pair], random: Generator, draws: int
) -> Comparison:
    judged = [pair for pair in group if all(result in _JUDGED for result in pair.results)]
    series = sorted({pair.series for pair in judged})
    sides = [_side(n, recipes[n], group, judged, len(series)) for n in (0, 1)]
    number = {one: n for n, one in enumerate(series)}
    of_series = np.array([number[pair.series] for pair in judged], dtype=int)
    differences = {}
    columns: dict[str, list[float | None]] = {
        "withheld_share": [float(p.results[1] == "withheld") - float(p.results[0] == "withheld") for p in judged],
        "lassim": [_minus(pair.lassim) for pair in judged],
        "mean_change": [_minus(pair.mean_change) for pair in judged],
    }
    for name, values in columns.items():
        told = np.array([value is not None for value in values], dtype=bool)
        if told.any():
            numbers = np.array([value for value in values if value is not None], dtype=float)
            differences[name] = _mean_difference(numbers, of_series[told], len(series), random, draws)
    return Comparison(*stratum, len(judged), len(series), sides[0], sides[1], differences)


def _side(n: int, recipe: str, group: Sequence[Pair], judged: Sequence[Pair], series: int) -> Side:
    results: dict[str, int] = defaultdict(int)
    for pair in group:
        results[pair.results[n]] += 1
    withheld = sum(pair.results[n] == "withheld" for pair in judged)
    share = wilson(withheld / len(judged) * series, series) if judged else wilson(0, 0)
    return Side(
        recipe,
        dict(sorted(results.items())),
        share,
        _median(pair.lassim[n] for pair in judged),
        _median(pair.mean_change[n] for pair in judged),
        _median(pair.seconds[n] for pair in judged),
    )


def _mean_difference(
    values: NDArray[np.float64], of_series: NDArray[np.int_], series: int, random: Generator, draws: int
) -> Estimate:
    """Mean over instances; the bootstrap draws whole series, and fewer than two tell no interval."""
    sums, counts = np.bincount(of_series, values, series), np.bincount(of_series, minlength=series)
    mean = float(values.mean())
    if series < 2:
        return Estimate(mean, None, None)
    means = bootstrap_ratios(sums.astype(float)[:, None], counts.astype(float), random, draws)[:, 0]
    low, high = mean + widening(series) * (np.percentile(means, [2.5, 97.5]) - mean)
    return Estimate(mean, float(low), float(high))


def _minus(both: tuple[float | None, float | None]) -> float | None:
    return None if both[0] is None or both[1] is None else both[1] - both[0]


def _median(values: Iterable[float | None]) -> float | None:
    told = [value for value in values if value is not None]
    return float(np.median(told)) if told else None
