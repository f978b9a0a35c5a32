"""A calibration: limits from one half of the patients, and what they do on the other half."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from medenhance_dicom.calibration.limits import conformal_quantile, fit_by_quality
from medenhance_dicom.calibration.measuring import HONEST, Honest, Measured, measure
from medenhance_dicom.calibration.pictures import Sample, digest_of, find_pictures, split, unseen
from medenhance_dicom.calibration.resampling import Patients
from medenhance_dicom.errors import InputError
from medenhance_dicom.gate import Thresholds
from medenhance_dicom.gate.alterations import (
    COLOUR_CONTRAST,
    COLOUR_ONLY,
    LESION_CONTRAST,
    SIZES,
    TEXTURE_CONTRAST,
    VESSEL_CONTRAST,
)
from medenhance_dicom.intervals import wilson
from medenhance_dicom.manifest import learned_pictures, load_manifest
from medenhance_dicom.metrics import auroc
from medenhance_dicom.verdicts import excess_of

__all__ = ["LEAST", "MUST", "Calibrated", "calibrate", "tested", "write"]

VERSION = 3
LEAST = {
    "invented lesion": 4,
    "erased lesion": 4,
    "recoloured lesion": 4,
    "faded lesion": 4,
    "erased vessel": 20,
    "added vessel": 20,
    "warp": 2,
}
"""Sizes from which on an alteration counts for the statement; smaller ones are only reported."""
DRAWS = {
    "invented lesion": 3,
    "erased lesion": 3,
    "recoloured lesion": 3,
    "faded lesion": 2,
    "erased vessel": 3,
    "warp": 3,
}
"""How often a kind is drawn for each picture, at a size drawn with it; once for the others."""
ENOUGH = 48
"""Pictures to test on; fewer are drawn from more often."""
MUST = ("invented lesion", "erased lesion", "erased vessel", "warp", "inversion")
QUANTILES = 41
CONTRASTS = (0.10, 0.15, 0.20, 0.25, 0.30001)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Calibrated:
    """Limits and what they come from."""

    limits: Thresholds
    document: dict[str, Any]
    """JSON-able, what `write` writes."""


def calibrate(
    key: str,
    honest: Honest,
    folders: Sequence[Path],
    *,
    alpha: float = 0.05,
    limit: int = 70,
    seed: int = 0,
    count: int = 3,
    level: int = 3,
    progress: Progress | None = None,
) -> Calibrated:
    """Limits for one enhancer or a family of them, and their test on other patients.

    Args:
        key: Whose limits; for the document.
        honest: Makes honest pairs.
        folders: Pictures, see `pictures.find_pictures`.
        alpha: Share of honest results that may be withheld; twice that may be withheld or warned of.
        limit: Pictures to test on, and twice as many to calibrate on; no more than there are.
        seed: Decides on everything that is drawn.
        count: Honest pairs of each picture.
        level: LaSSIM's.
        progress: Called with how many pictures are done, and how many there are.

    Raises:
        InputError: No pictures, one patient only, nobody whom the detector was not learned from, or too few for this
            alpha.
    """
    rng = np.random.default_rng(seed)
    found = find_pictures(folders)
    manifest = load_manifest()
    samples = unseen(found, learned_pictures(manifest))
    if not samples:
        raise InputError("the detector was learned from pictures of everybody here: nobody is left to calibrate on")
    first, second = split(samples, (2 * limit, limit), rng)
    sides = (
        _told(side, len(first) + len(second), before, progress) for side, before in ((first, 0), (second, len(first)))
    )
    fitted = list(measure(next(sides), honest, rng, count=count, level=level))
    units, scores = ([m.scores for m in fitted[i::2]] for i in (0, 1))
    try:
        limits = fit_by_quality(units, scores, alpha, warn_alpha=min(2 * alpha, 0.5))
    except ValueError as error:
        raise InputError(str(error)) from error
    lassim_alone = 1 - conformal_quantile([_lassim_loss(m) for m in fitted], alpha)
    times = max(1, round(ENOUGH / len(second)))
    draws = {kind: times * DRAWS.get(kind, 1) for kind in SIZES}
    rows = list(measure(next(sides), honest, rng, count=count, alterations=SIZES, draws=draws, level=level))
    document = {
        "version": VERSION,
        "key": key,
        "alpha": alpha,
        "level": level,
        "seed": seed,
        "detector": manifest.detector.sha256 if manifest.detector else "",
        "colour_detector": manifest.colour_detector.sha256 if manifest.colour_detector else "",
        "left_out": len(found) - len(samples),
        "minimum": limits.minimum,
        "warn_below": limits.warn_below,
        "checks": {name: asdict(found) for name, found in limits.checks.items()},
        "poor": _of_poor(limits),
        "evidence": evidence(rows, limits),
        "calibrated_on": {
            "data": [asdict(folder) for folder in digest_of(first, folders)],
            "pictures": len(first),
            "groups": len({s.group for s in first}),
            "honest_pairs": len(fitted),
        },
        "tested_on": {
            "data": [asdict(folder) for folder in digest_of(second, folders)],
            "pictures": len(second),
            "groups": len({s.group for s in second}),
            "honest_pairs": sum(m.kind == HONEST for m in rows),
        },
        "alterations": {
            "lesion_contrast": LESION_CONTRAST,
            "vessel_contrast_at_least": VESSEL_CONTRAST,
            "texture_contrast": TEXTURE_CONTRAST,
            "colour_contrast": COLOUR_CONTRAST,
            "sizes_in_pixels_at_384": {kind: list(sizes) for kind, sizes in SIZES.items()},
        },
        "results": tested(rows, limits, lassim_alone),
    }
    document["statement"] = _statement(document)
    return Calibrated(limits, document)


def _told(samples: Sequence[Sample], total: int, before: int, progress: Progress | None) -> Iterator[Sample]:
    """The samples one by one, telling how many were begun."""
    for done, sample in enumerate(samples, before):
        if progress:
            progress(done, total)
        yield sample


def write(calibrated: Calibrated, path: Path) -> None:
    """As JSON, with a line break at the end."""
    path.write_text(json.dumps(calibrated.document, indent=1) + "\n", encoding="utf-8")


def _of_poor(limits: Thresholds) -> dict[str, Any] | None:
    poor = limits.poor
    if poor is None:
        return None
    return {"below": poor.below, "checks": {name: asdict(found) for name, found in poor.checks.items()}}


def evidence(rows: Sequence[Measured], limits: Thresholds) -> dict[str, list[float]] | None:
    """Evenly spaced quantiles of the excesses of honest and of altered pairs, by which a verdict tells how sure it is.

    None where there is nothing of one of the two.
    """
    excesses = {
        side: [_excess(m, limits) for m in rows if (m.kind == HONEST) == (side == "honest") and _counts(m)]
        for side in ("honest", "altered")
    }
    if not all(excesses.values()):
        return None
    most = 1e6  # JSON has no infinity
    return {
        side: [round(float(q), 4) for q in np.quantile(np.minimum(found, most), np.linspace(0, 1, QUANTILES))]
        for side, found in excesses.items()
    }


def _counts(row: Measured) -> bool:
    """Whether an alteration is large enough for the statement; honest pairs are."""
    return row.size >= LEAST.get(row.kind, 0)


def tested(rows: Sequence[Measured], limits: Thresholds, lassim_minimum: float) -> dict[str, Any]:
    """What limits do to pairs they were not made from.

    Shares have their 95 % intervals (Wilson, 1927), and like areas also a bootstrap's over patients.

    Args:
        rows: Honest and altered pairs.
        limits: The verdict's.
        lassim_minimum: LaSSIM alone withholds below this.
    """
    honest = [m for m in rows if m.kind == HONEST]
    altered = [m for m in rows if m.kind != HONEST]
    by_kind: dict[str, list[Measured]] = defaultdict(list)
    for row in altered:
        by_kind[row.kind].append(row)

    patients = Patients([m.group for m in rows])

    def share(rows: Sequence[Measured], hits: Sequence[bool]) -> dict[str, Any]:
        return _share(hits) | {"bootstrap": patients.share([m.group for m in rows], hits)}

    def area(kind: Sequence[Measured], score: Callable[[Measured], float]) -> dict[str, Any]:
        sides = [[(m.group, score(m)) for m in side] for side in (honest, kind)]
        interval = patients.auroc(*sides) if all(sides) else None
        return {"auroc": _area(*([s for _, s in side] for side in sides)), "auroc_bootstrap": interval}

    def missed(rows: Sequence[Measured]) -> dict[str, Any]:
        return share(rows, [_excess(m, limits) <= 1 for m in rows])

    def missed_by_lassim(rows: Sequence[Measured]) -> dict[str, Any]:
        return share(rows, [_lassim_loss(m) <= 1 - lassim_minimum for m in rows])

    kinds = {}
    for kind, found in by_kind.items():
        counted = [m for m in found if _counts(m)]
        kinds[kind] = {
            "size_at_least": LEAST.get(kind, 0),
            "missed": missed(counted),
            **area(counted, lambda m: _excess(m, limits)),
            "lassim_alone": {"missed": missed_by_lassim(counted), **area(counted, _lassim_loss)},
            "by_size": {f"{size:g}": missed([m for m in found if m.size == size]) for size in SIZES[kind]},
        }
        if "lesion" in kind and kind not in COLOUR_ONLY:
            kinds[kind]["by_contrast"] = {
                f"{low:.2f}-{high:.2f}": missed([m for m in counted if low <= m.contrast / 0.95 < high])
                for low, high in pairwise(CONTRASTS)
            }
    counted = [m for m in altered if _counts(m)]
    classes = {"ordinary": False, "poor": True} if limits.poor else {}
    released = {
        name: {
            "all": missed([m for m in counted if (m.kind in COLOUR_ONLY) == colour]),
            **{
                quality: missed(
                    [
                        m
                        for m in counted
                        if (m.kind in COLOUR_ONLY) == colour and limits.is_poor(m.scores.detail) == poor
                    ]
                )
                for quality, poor in classes.items()
            },
        }
        for name, colour in (("structure", False), ("colour alone", True))
    }
    return {
        "released": released,
        "falsely_withheld_by_quality": {
            quality: share(*_withheld([m for m in honest if limits.is_poor(m.scores.detail) == poor], limits))
            for quality, poor in classes.items()
        },
        "falsely_withheld": share(honest, [_excess(m, limits) > 1 for m in honest]),
        "falsely_withheld_by_method": _by(honest, lambda m: m.method, lambda m: _excess(m, limits) > 1),
        "falsely_withheld_by_lassim_alone": share(honest, [_lassim_loss(m) > 1 - lassim_minimum for m in honest]),
        "lassim_alone_minimum": lassim_minimum,
        "kinds": kinds,
    }


def _withheld(rows: Sequence[Measured], limits: Thresholds) -> tuple[Sequence[Measured], list[bool]]:
    return rows, [_excess(m, limits) > 1 for m in rows]


def _by(
    rows: Sequence[Measured], key: Callable[[Measured], str], is_hit: Callable[[Measured], bool]
) -> dict[str, dict[str, Any]]:
    return {name: _share([is_hit(m) for m in rows if key(m) == name]) for name in sorted({key(m) for m in rows})}


def _share(hits: Sequence[bool]) -> dict[str, Any]:
    share, *interval = (round(x or 0.0, 4) for x in wilson(sum(hits), len(hits)))
    return {"share": share if hits else None, "n": len(hits), "interval": interval}


def _area(honest: Sequence[float], altered: Sequence[float]) -> float | None:
    return round(auroc(honest, altered), 4) if honest and altered else None


def _excess(row: Measured, limits: Thresholds) -> float:
    return excess_of(row.scores, limits)[0]


def _lassim_loss(row: Measured) -> float:
    return 1 - row.scores.lassim if row.scores.lassim is not None else float("inf")


def _statement(document: Mapping[str, Any]) -> str:
    """What may be said, and whether the data can carry it."""
    alpha, results, on = document["alpha"], document["results"], document["tested_on"]
    sizes = {"warp": "by {:g} pixels or more"}
    held: list[str] = []
    open_: list[str] = []
    for kind in (*MUST, *(kind for kind in COLOUR_ONLY if kind in results["kinds"])):
        found = results["kinds"].get(kind)
        if found is None or not found["missed"]["n"]:
            open_.append(f"{kind}: not tested")
            continue
        least = found["size_at_least"]
        size = sizes.get(kind, "of {:g} pixels or more").format(least) if least else ""
        missed = found["missed"]
        high = missed["interval"][1]
        words = f"{f'{kind} {size}'.strip()}: {missed['share']:.1%} of {missed['n']} released, at most {high:.1%}"
        (held if high <= alpha else open_).append(words)
    where = ", ".join(folder["name"] for folder in on["data"])
    text = (
        f"On {on['pictures']} pictures of {on['groups']} patients or sequences not used for the limits ({where}), "
        f"sizes at 384 pixels, with 95 % confidence. At most {alpha:.0%} of altered pictures are released: "
        f"{'; '.join(held) or 'of no kind'}."
    )
    return text + (f" This data cannot say so of {'; '.join(open_)}." if open_ else "")
