"""Every measure by its id: what it is called, what it needs, and how a sample or a set of them is scored.

An id names one definition, and the file of parameters where one decides the score. What lacks its file is there, but
`unavailable`, with the reason; nothing stands in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.errors import ModelError, RecipeError
from medenhance_dicom.metrics.brisque import brisque
from medenhance_dicom.metrics.detail import average_gradient, entropy
from medenhance_dicom.metrics.distribution import Features, fid, kid, load_encoder
from medenhance_dicom.metrics.fidelity import psnr, ssim
from medenhance_dicom.metrics.fundus import FundusField, load_colours
from medenhance_dicom.metrics.grading import GradingScores, grading_scores
from medenhance_dicom.metrics.lesions import lesion_contrast
from medenhance_dicom.metrics.location import field_radius, location_distance, location_scores
from medenhance_dicom.metrics.lpips import load_lpips
from medenhance_dicom.metrics.niqe import niqe
from medenhance_dicom.metrics.parameters import load_brisque, load_niqe
from medenhance_dicom.metrics.picture import Mask, Unit
from medenhance_dicom.metrics.piqe import piqe
from medenhance_dicom.metrics.quality import load_mcf
from medenhance_dicom.metrics.segmentation import SegmentationScores, segmentation_scores
from medenhance_dicom.metrics.signal import signal_to_noise

__all__ = ["Metric", "Sample", "SetMetric", "build_metrics", "metric_ids"]

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One picture of a data set, under one enhancer."""

    source: Unit
    """(H, W, C) float32 in [0, 1], C = 1 or 3, before."""
    result: Unit
    """The same shape, after."""
    target: Unit | None = None
    """The truth, where there is one."""
    truth_mask: Mask | None = None
    """(H, W): vessels, nerves, polyps."""
    segmented: NDArray[Any] | None = None
    """(H, W), the probability in [0, 1] that a segmenter gives on `result`."""
    inside: Mask | None = None
    """(H, W), the field of view."""
    grade: int | None = None
    """The true level."""
    graded: int | None = None
    """The predicted one."""
    point: tuple[float, float] | None = None
    """(row, column), true."""
    found: tuple[float, float] | None = None
    """(row, column), found on `result`; None: missed."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A measure of one sample. Its score raises ValueError where a sample has none."""

    id: str
    label: str
    better: Better
    unit: str = ""
    needs: frozenset[str] = frozenset()
    """Fields of `Sample` besides source and result that have to be there."""
    score: Callable[[Sample], float]
    unavailable: str = ""
    """Why it cannot be computed at all; empty: it can."""


@dataclass(frozen=True, kw_only=True)
class SetMetric:
    """A measure of all samples of one enhancer together; otherwise as `Metric`."""

    id: str
    label: str
    better: Better
    unit: str = ""
    needs: frozenset[str] = frozenset()
    score: Callable[[Sequence[Sample]], float | dict[str, float]]
    unavailable: str = ""


def metric_ids() -> dict[str, str]:
    """Every id that can be asked for, and its definition in a line.

    `<12 hex>` stands for the first digits of a file's SHA-256. Such an id may also be asked for by what is before
    the @ alone; it then becomes that of the file given.
    """
    return {id_: entry.definition for id_, entry in _FIXED.items()} | {
        f"{name}@{variant}": definition
        for name, family in _FAMILIES.items()
        for variant, definition in family.variants.items()
    }


def build_metrics(ids: Iterable[str], models: Mapping[str, Path] | None = None) -> list[Metric | SetMetric]:
    """The measures that are asked for, in that order.

    Args:
        ids: Keys of `metric_ids`.
        models: Files by name: `niqe`, `brisque` with `brisque-ranges`, `features` (a guide encoder, for KID and FID),
            `lpips`, `s_hq`, `good-colours`.

    Raises:
        RecipeError: An unknown id or name of a file.
    """
    files = dict(models or {})
    known = {file for family in _FAMILIES.values() for file in family.files}
    if unknown := sorted(set(files) - known):
        raise RecipeError(f"no metric takes a file {unknown[0]!r}; they take {', '.join(sorted(known))}")
    return [_build(id_, files) for id_ in ids]


def _build(id_: str, files: Mapping[str, Path]) -> Metric | SetMetric:
    if id_ in _FIXED:
        return _FIXED[id_].build(id_)
    name, at, variant = id_.partition("@")
    if name not in _FAMILIES or (at and not _may_be(variant, _FAMILIES[name].variants)):
        raise RecipeError(f"no metric {id_!r}; there are {', '.join(metric_ids())}")
    family = _FAMILIES[name]
    missing = [file for file in family.files if file not in files]
    if missing:
        return family.build(id_, _never, f"no file {' and '.join(missing)} was given")
    try:
        found, score = family.load(*(files[file] for file in family.files))
    except ModelError as error:
        return family.build(id_, _never, str(error))
    if at and found != id_:
        return family.build(id_, _never, f"{files[family.files[0]]} is {found}")
    return family.build(found, score, "")


def _may_be(variant: str, variants: Iterable[str]) -> bool:
    """Whether it is one of them, with twelve hexadecimal digits for their <12 hex>."""
    digits = variant[-12:]
    is_digest = len(digits) == 12 and set(digits) <= set("0123456789abcdef")
    return variant in variants or (is_digest and f"{variant[:-12]}<12 hex>" in variants)


def _never(_: Any) -> float:
    raise ValueError("this metric is unavailable")


# ---------------------------------------------------------------------------------------------------- without any file


class _Entry(NamedTuple):
    definition: str
    label: str
    better: Better
    unit: str
    needs: frozenset[str]
    score: Callable[[Any], Any]
    of: type[Metric] | type[SetMetric] = Metric

    def build(self, id_: str) -> Metric | SetMetric:
        return self.of(id=id_, label=self.label, better=self.better, unit=self.unit, needs=self.needs, score=self.score)


def _there(value: Any) -> Any:
    """A field that `needs` names."""
    if value is None:
        raise ValueError("the sample lacks what the metric needs")
    return value


def _snr(radius: int, s: Sample) -> float:
    return signal_to_noise(s.result, _there(s.truth_mask), radius, inside=s.inside)


def _lassim(result: Unit, other: Unit) -> float:
    import torch

    from medenhance_dicom.lassim import lassim

    x, y = (torch.from_numpy(np.ascontiguousarray(np.moveaxis(p, 2, 0)[None])) for p in (other, result))
    return float(lassim(x, y, 3))


@lru_cache(maxsize=2)  # several scores of one comparison
def _segmentation(s: Sample, tolerance: int) -> SegmentationScores:
    return segmentation_scores(_there(s.segmented), _there(s.truth_mask), tolerance=tolerance, inside=s.inside)


def _seg(field: str, tolerance: int, s: Sample) -> float:
    return float(getattr(_segmentation(s, tolerance), field))


@lru_cache(maxsize=1)  # several scores of one comparison
def _fundus(s: Sample) -> FundusField:
    return FundusField(s.source, _there(s.inside))


def _graded(samples: Sequence[Sample]) -> GradingScores:
    pairs = [(s.grade, s.graded) for s in samples if s.grade is not None and s.graded is not None]
    return grading_scores([true for true, _ in pairs], [predicted for _, predicted in pairs])


def _grade(field: str, samples: Sequence[Sample]) -> float:
    scores = _graded(samples)
    return scores.weighted(getattr(scores, field))


def _found_rate(samples: Sequence[Sample]) -> float:
    pairs = [(s.point, s.found) for s in samples if s.point is not None]
    return location_scores([p for p, _ in pairs], [f for _, f in pairs], [0.0] * len(pairs)).rate


def _distance_with_misses(samples: Sequence[Sample]) -> float:
    rows = [(s.point, s.found, field_radius(s.inside)) for s in samples if s.point is not None and s.inside is not None]
    return location_scores([p for p, _, _ in rows], [f for _, f, _ in rows], [r for _, _, r in rows]).mean_with_misses


_NOTHING: frozenset[str] = frozenset()
_INSIDE = frozenset({"inside"})
_TARGET, _MASK, _SEGMENTED = frozenset({"target"}), frozenset({"truth_mask"}), frozenset({"segmented", "truth_mask"})
_GRADED, _FOUND = frozenset({"grade", "graded"}), frozenset({"point", "found"})
_SEG_FIELDS = {
    "dice": ("dice", "Dice"), "auc": ("auc", "AUC"), "acc": ("accuracy", "ACC"), "sen": ("sensitivity", "SEN"),
    "spe": ("specificity", "SPE"), "gmean": ("g_mean", "G-mean"), "kappa": ("kappa", "kappa"),
}  # fmt: skip
_GRADE_FIELDS = {"acc": ("accuracy", "ACC"), "pre": ("precision", "PRE"), "f1": ("f1", "F1")}

_FIXED: dict[str, _Entry] = {
    **{
        f"snr@ring-r{r}": _Entry(
            f"20 log10(max on the mask / deviation within {r} pixels of it) of the grey", f"SNR r={r}", "higher", "dB",
            _MASK, partial(_snr, r),
        )
        for r in (3, 5, 7, 9)
    },
    "ag@fusion": _Entry(
        "average gradient: mean sqrt((dx^2 + dy^2) / 2) of the 8-bit grey", "AG", "higher", "", _NOTHING,
        lambda s: average_gradient(s.result, s.inside),
    ),
    "en@256": _Entry(
        "entropy of the 8-bit grey's 256 levels", "EN", "higher", "bit", _NOTHING,
        lambda s: entropy(s.result, s.inside),
    ),
    "piqe@matlab": _Entry(
        "PIQE as MATLAB's piqe", "PIQE", "lower", "", _NOTHING, lambda s: piqe(s.result, s.inside)
    ),
    "psnr@8bit": _Entry(
        "PSNR to the target, 8 bits, all channels", "PSNR", "higher", "dB", _TARGET,
        lambda s: psnr(s.result, _there(s.target), s.inside),
    ),
    "ssim@wang11": _Entry(
        "SSIM to the target: grey, 11 x 11 Gaussian of 1.5, whole windows", "SSIM", "higher", "", _TARGET,
        lambda s: ssim(s.result, _there(s.target), s.inside),
    ),
    "lassim-target@l3": _Entry(
        "LaSSIM of Laplacian level 3 to the target", "LaSSIM to target", "higher", "", _TARGET,
        lambda s: _lassim(s.result, _there(s.target)),
    ),
    "psnr-source@8bit": _Entry(
        "PSNR to the source: how little was changed", "PSNR to source", "neither", "dB", _NOTHING,
        lambda s: psnr(s.result, s.source, s.inside),
    ),
    "ssim-source@wang11": _Entry(
        "SSIM to the source: how little was changed", "SSIM to source", "neither", "", _NOTHING,
        lambda s: ssim(s.result, s.source, s.inside),
    ),
    "lassim@l3": _Entry(
        "LaSSIM of Laplacian level 3 to the source: how much of its structure is kept", "LaSSIM to source", "neither",
        "", _NOTHING, lambda s: _lassim(s.result, s.source),
    ),
    "unevenness": _Entry(
        "colour fundus: deviation over mean of the light's low-pass", "unevenness", "neither", "", _INSIDE,
        lambda s: _fundus(s).unevenness(s.result),
    ),
    "vessel-depth": _Entry(
        "colour fundus: mean depth in green of what is deepest in the source", "vessel depth", "higher", "", _INSIDE,
        lambda s: _fundus(s).vessel_depth(s.result),
    ),
    "contrast-to-noise": _Entry(
        "colour fundus: vessel depth over the finest noise between the vessels", "CNR", "higher", "", _INSIDE,
        lambda s: _fundus(s).contrast_to_noise(s.result),
    ),
    "chroma-spread": _Entry(
        "colour fundus: mean deviation of low-pass a* and b*", "chroma spread", "neither", "", _INSIDE,
        lambda s: _fundus(s).chroma_spread(s.result),
    ),
    "chroma-added": _Entry(
        "colour fundus: mean deviation of the change in low-pass a* and b*", "chroma added", "neither", "", _INSIDE,
        lambda s: _fundus(s).chroma_added(s.result),
    ),
    "colour-shift": _Entry(
        "colour fundus: distance of the mean (a*, b*) from the source's", "colour shift", "neither", "", _INSIDE,
        lambda s: _fundus(s).colour_shift(s.result),
    ),
    "lesion-contrast": _Entry(
        "contrast of the mask's parts to their surrounds in green, over the source's", "lesion contrast", "higher", "",
        _MASK, lambda s: lesion_contrast(s.source, s.result, _there(s.truth_mask), s.inside),
    ),
    **{
        f"seg-{name}@tol{t}": _Entry(
            f"{label} of the segmentation, {t} pixels of tolerance, threshold 0.5", f"{label} tol {t}", "higher", "",
            _SEGMENTED, partial(_seg, field, t),
        )
        for t in (0, 3) for name, (field, label) in _SEG_FIELDS.items()
    },
    "fovea-d@px": _Entry(
        "distance of the found point from the true one; misses are left out", "d", "lower", "px", _FOUND,
        lambda s: location_distance(_there(s.point), _there(s.found)),
    ),
    "fovea-rate@found": _Entry(
        "share of the points that were found", "found", "higher", "", _FOUND, _found_rate, SetMetric
    ),
    "fovea-d-missed@radius": _Entry(
        "mean distance, a miss counting as the radius of the field of view", "d with misses", "lower", "px",
        _FOUND | {"inside"}, _distance_with_misses, SetMetric,
    ),
    **{
        f"grade-{name}@weighted": _Entry(
            f"{label} of one level against the rest, mean weighted by support", f"grade {label}", "higher", "",
            _GRADED, partial(_grade, field), SetMetric,
        )
        for name, (field, label) in _GRADE_FIELDS.items()
    },
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------- by a file


class _Family(NamedTuple):
    label: str
    better: Better
    files: tuple[str, ...]
    load: Callable[..., tuple[str, Callable[[Any], float]]]
    """Files -> the id and the score. Raises ModelError."""
    variants: dict[str, str]
    """What may follow the @, and the definition."""
    needs: frozenset[str] = frozenset()
    of: type[Metric] | type[SetMetric] = Metric

    def build(self, id_: str, score: Callable[[Any], float], unavailable: str) -> Metric | SetMetric:
        return self.of(
            id=id_, label=self.label, better=self.better, needs=self.needs, score=score, unavailable=unavailable
        )


def _load_niqe(path: Path) -> tuple[str, Callable[[Sample], float]]:
    scenes = load_niqe(path)
    return scenes.id, lambda s: niqe(s.result, scenes, s.inside)


def _load_brisque(path: Path, ranges: Path) -> tuple[str, Callable[[Sample], float]]:
    model = load_brisque(path, ranges)
    return model.id, lambda s: brisque(s.result, model, s.inside)


def _load_lpips(path: Path) -> tuple[str, Callable[[Sample], float]]:
    id_, distance = load_lpips(path)
    return id_, lambda s: distance(s.result, _there(s.target))


def _load_mcf(path: Path) -> tuple[str, Callable[[Sample], float]]:
    id_, score = load_mcf(path)
    return id_, lambda s: score(s.result, s.inside)


def _load_colours(path: Path) -> tuple[str, Callable[[Sample], float]]:
    good = load_colours(path)
    return good.id, lambda s: _fundus(s).colour_distance(s.result, good)


def _load_distance(
    name: str, distance: Callable[[NDArray[np.float64], NDArray[np.float64]], float], path: Path
) -> tuple[str, Callable[[Sequence[Sample]], float]]:
    id_, features = load_encoder(path)
    return f"{name}@{id_}", partial(_set_distance, distance, features)


def _set_distance(
    distance: Callable[[NDArray[np.float64], NDArray[np.float64]], float], features: Features, samples: Sequence[Sample]
) -> float:
    pairs = [(features(s.result), features(s.target)) for s in samples if s.target is not None]
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} pictures with a target; a distance of sets wants at least two")
    return distance(np.array([result for result, _ in pairs]), np.array([target for _, target in pairs]))


_FAMILIES: dict[str, _Family] = {
    "niqe": _Family("NIQE", "lower", ("niqe",), _load_niqe, {
        "live-96": "NIQE with LIVE's parameters, blocks of 96 x 96",
        "domain:<12 hex>": "NIQE with parameters that fit_niqe learned",
        "<12 hex>": "NIQE with other parameters",
    }),
    "brisque": _Family("BRISQUE", "lower", ("brisque", "brisque-ranges"), _load_brisque, {
        "live774": "BRISQUE with the model of LIVE's release",
        "pypi770": "BRISQUE with the model of the package brisque of PyPI, as that package computes it",
        "<12 hex>": "BRISQUE with another model, on LIVE's statistics",
    }),
    "lpips": _Family("LPIPS", "lower", ("lpips",), _load_lpips, {
        "<12 hex>": "LPIPS of AlexNet to the target",
    }, _TARGET),
    "s_hq": _Family("s_HQ", "higher", ("s_hq",), _load_mcf, {
        "mcf:<12 hex>": "what EyeQ's MCF-Net gives for a good fundus photograph",
    }),
    "colour-distance": _Family("colour z", "lower", ("good-colours",), _load_colours, {
        "<12 hex>": "colour fundus: mean distance of low-pass L*, a*, b* from good pictures', in their spreads",
    }, _INSIDE),
    "kid": _Family("KID", "lower", ("features",), partial(_load_distance, "kid", kid), {
        "encoder:<12 hex>": "KID of results to targets, on features of a guide encoder",
    }, _TARGET, SetMetric),
    "fid": _Family("FID", "lower", ("features",), partial(_load_distance, "fid", fid), {
        "encoder:<12 hex>": "FID of results to targets, on features of a guide encoder; biased below 1000 pictures",
    }, _TARGET, SetMetric),
}  # fmt: skip
