"""The verdict on an instance, from what was measured of its frames and the limits kept with the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.gate.checks import FrameScores, examine

__all__ = [
    "LEVEL",
    "NOT_CALIBRATED",
    "NOT_CHECKED",
    "Evidence",
    "Limit",
    "Mode",
    "Outcome",
    "Poor",
    "Thresholds",
    "Verdict",
    "judge",
    "verdict_of",
]

Mode = Literal["withhold", "warn", "off"]
Outcome = Literal["enhanced", "warned", "withheld"]

LEVEL = 3
NOT_CALIBRATED = "NOT_CALIBRATED"
NOT_CHECKED = "NOT_CHECKED"


@dataclass(frozen=True)
class Limit:
    """Of one check, whose statistic is the larger the worse."""

    warn: float
    """Above this the result is released with a warning."""
    withhold: float
    """Above this the structure counts as changed."""

    def __post_init__(self) -> None:
        if not self.warn <= self.withhold:
            raise ValueError(f"wanted warn <= withhold, not {self.warn} and {self.withhold}")


@dataclass(frozen=True)
class Poor:
    """Limits of their own for sources that show little, in which honest results and detectors are less sure."""

    below: float
    """Of `FrameScores.detail`: a frame with less is really poor."""
    checks: Mapping[str, Limit]
    """In place of the ordinary ones of the same name."""


@dataclass(frozen=True)
class Evidence:
    """How excesses (`verdicts.excess_of`) of honest and of altered results lie, as a calibration saw them."""

    honest: tuple[float, ...]
    """Quantiles, evenly from the smallest to the largest."""
    altered: tuple[float, ...]


@dataclass(frozen=True)
class Thresholds:
    """The gate's limits, kept with the weights they were calibrated for."""

    minimum: float
    """LaSSIM below this: the structure counts as changed."""
    warn_below: float
    """LaSSIM from `minimum` up to this: the result is released with a warning."""
    checks: Mapping[str, Limit] = field(default_factory=dict)
    """Of the other checks; one that is not named here is measured and does not decide."""
    calibration: str = ""
    """What they come from; empty: set by hand."""
    doubt: str = ""
    """Why nothing that they let pass is better than `warned`; empty: nothing speaks against it."""
    wanted: tuple[str, ...] = ()
    """Checks without which a frame that passes is at most `warned`."""
    poor: Poor | None = None
    """None: the same limits for sources of any quality."""
    evidence: Evidence | None = None
    """None: nothing is known of how sure a verdict is."""

    def is_poor(self, detail: float | None) -> bool:
        """Whether the limits take a source with so much detail for really poor."""
        return self.poor is not None and detail is not None and detail < self.poor.below

    def of(self, detail: float | None) -> Mapping[str, Limit]:
        """Limits of the checks for a source that shows so much detail; None: not known, taken for ordinary."""
        return {**self.checks, **self.poor.checks} if self.poor and self.is_poor(detail) else self.checks

    def __post_init__(self) -> None:
        if not -1 <= self.minimum <= self.warn_below <= 1:
            raise ValueError(f"wanted -1 <= minimum <= warn_below <= 1, not {self.minimum} and {self.warn_below}")


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one instance: an expected answer, never an exception."""

    lassim: float | None
    """Of the worst frame; None where no number exists (non-finite values, a frame below 7 x 7)."""
    passed: bool
    """Whether every frame reached the minimum, whatever the mode makes of it."""
    outcome: Outcome
    reason: str | None
    """A stable upper-case code, a colon and a sentence; None when there is nothing to say."""
    details: dict[str, Any] = field(default_factory=dict)
    """JSON-able: level, frames, worst_frame, mean, minimum, warn_below, mode, and `checks`: of each check its worst
    value, frame and region, and that frame's limits."""


def judge(
    before: NDArray[np.floating[Any]],
    after: NDArray[np.floating[Any]],
    thresholds: Thresholds,
    mode: Mode = "withhold",
    *,
    level: int = LEVEL,
    inside: NDArray[np.bool_] | None = None,
) -> Verdict:
    """Compare the unit frames of an instance before and after enhancement.

    Args:
        before: (N, H, W, C) in [0, 1], C = 1 or 3 (RGB).
        after: The same shape.
        thresholds: The limits.
        mode: "withhold" what failed, only "warn", or "off". Non-finite values are withheld in every mode.
        level: LaSSIM's Laplacian level.
        inside: (N, H, W), where the enhancer may have changed something; None: everywhere.

    Raises:
        ValueError: The shapes differ or there is no frame.
    """
    if before.shape != after.shape or before.ndim != 4:
        raise ValueError(f"two (N, H, W, 1 or 3) of one shape wanted, not {before.shape} and {after.shape}")
    masks = [None] * len(before) if inside is None else list(inside)
    frames = [examine(x, y, level=level, inside=m) for x, y, m in zip(before, after, masks, strict=True)]
    return verdict_of(frames, thresholds, mode, level=level)


def verdict_of(
    frames: Sequence[FrameScores], thresholds: Thresholds, mode: Mode = "withhold", *, level: int = LEVEL
) -> Verdict:
    """The verdict on an instance from what was measured of all its frames; the worst frame of each check decides.

    Frames of an instance can be examined one by one, as they come, and judged together at the end.
    Limits that are in doubt let nothing be better than `warned`, in any mode, nor does a check that is wanted and could
    not be made.

    Args:
        frames: As `examine` gives them.
        thresholds: The limits.
        mode: See `judge`.
        level: For the details.

    Raises:
        ValueError: There is no frame.
    """
    verdict = _verdict(frames, thresholds, mode, level)
    doubts = [f"{NOT_CALIBRATED}: {thresholds.doubt}"] if thresholds.doubt else []
    if missing := [name for name in thresholds.wanted if any(name not in frame.checks for frame in frames)]:
        doubts.append(f"{NOT_CHECKED}: a frame is too small for {', '.join(missing)}")
    if not doubts or verdict.outcome == "withheld":
        return verdict
    return replace(verdict, outcome="warned", reason="; ".join(filter(None, (verdict.reason, *doubts))))


def _verdict(frames: Sequence[FrameScores], thresholds: Thresholds, mode: Mode, level: int) -> Verdict:
    """The verdict, whatever the limits are worth."""
    if not frames:
        raise ValueError("no frame to judge")
    scores = [frame.lassim for frame in frames]
    known = [s for s in scores if s is not None and not math.isnan(s)]
    worst_frame = min(range(len(scores)), key=lambda i: _rank(scores[i]))
    worst = scores[worst_frame]
    details: dict[str, Any] = {
        "level": level,
        "frames": len(scores),
        "worst_frame": worst_frame,
        "mean": sum(known) / len(known) if known else None,
        "minimum": thresholds.minimum,
        "warn_below": thresholds.warn_below,
        "mode": mode,
        "checks": _worst_of_checks(frames, thresholds),
    }
    if thresholds.calibration:
        details["calibration"] = thresholds.calibration
    place = _place(worst_frame, len(frames))
    if worst is not None and math.isnan(worst):
        return Verdict(
            None, False, "withheld", f"NON_FINITE: the result holds values that are no numbers{place}", details
        )
    refused: Outcome = {"withhold": "withheld", "warn": "warned", "off": "enhanced"}[mode]  # type: ignore[assignment]
    if worst is None:
        return Verdict(None, False, refused, f"TOO_SMALL: sides below 7 pixels cannot be judged{place}", details)
    failed, doubtful = [], []
    if worst < thresholds.minimum:
        failed.append(f"LASSIM: structure changed, {worst:.4f} is below {thresholds.minimum:.4f}{place}")
    elif worst < thresholds.warn_below:
        doubtful.append(f"LASSIM: structure may have changed, {worst:.4f} is below {thresholds.warn_below:.4f}{place}")
    for name, found in details["checks"].items():
        limit = thresholds.of(frames[found["frame"]].detail).get(name)
        if limit is not None and found["value"] > limit.warn:
            over, most = (failed, limit.withhold) if found["value"] > limit.withhold else (doubtful, limit.warn)
            where = f" at {found['where']}" if "where" in found else ""
            place = _place(found["frame"], len(frames))
            over.append(f"{name.upper()}: {found['value']:.3g} is above {most:.3g}{where}{place}")
    if failed:
        return Verdict(worst, False, refused, "; ".join(failed + doubtful), details)
    if doubtful and mode != "off":
        return Verdict(worst, True, "warned", "; ".join(doubtful), details)
    return Verdict(worst, True, "enhanced", None, details)


def _worst_of_checks(frames: Sequence[FrameScores], thresholds: Thresholds) -> dict[str, dict[str, Any]]:
    """Check -> value, frame (from 0), where, region, and that frame's limits, where it comes nearest to them."""
    worst: dict[str, dict[str, Any]] = {}
    highest: dict[str, float] = {}
    for number, frame in enumerate(frames):
        limits = thresholds.of(frame.detail)
        for name, value in frame.checks.items():
            limit = limits.get(name)
            height = value / limit.withhold if limit is not None and limit.withhold > 0 else value
            if name in worst and height <= highest[name]:
                continue
            highest[name], worst[name] = height, {"value": value, "frame": number}
            if name in frame.regions:
                worst[name] |= {"where": str(frame.regions[name]), "region": asdict(frame.regions[name])}
            if limit is not None:
                worst[name] |= asdict(limit)
    return worst


def _place(frame: int, frames: int) -> str:
    return f" in frame {frame + 1}" if frames > 1 else ""


def _rank(score: float | None) -> float:
    """Non-finite before unjudged before any number."""
    if score is None:
        return -2.0
    return -3.0 if math.isnan(score) else score
