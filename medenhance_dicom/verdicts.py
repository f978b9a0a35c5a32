"""What a verdict says outside of the gate: as values for reports, and in words for the derived object."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.gate import NOT_CALIBRATED, NOT_CHECKED, FrameScores, Thresholds, Verdict
from medenhance_dicom.report import WITHHELD

__all__ = ["MOST_OBJECTIONS", "Blending", "confidence_of", "excess_of", "in_words", "settled", "values_of"]

MOST_OBJECTIONS = 64
"""Objections that a report lists; beyond these they are counted."""

LASSIM = "lassim"
TAIL = 0.002
"""Nothing is taken for rarer than one in five hundred: calibrations have some hundreds of results."""


@dataclass(frozen=True)
class Blending:
    """How much of an instance the source's pixels took back."""

    share: float
    """Mean weight of the source over all frames, in [0, 1]."""
    frames: int
    """Frames with any of it."""
    largest_share: float
    """Of one frame."""


def excess_of(frame: FrameScores, thresholds: Thresholds) -> tuple[float, str]:
    """How near a frame is to being withheld, and the check that says so.

    Args:
        frame: What was measured.
        thresholds: The limits.

    Returns:
        The largest statistic in multiples of its limit (above 1: withheld), of the checks that have a limit and of
        1 - LaSSIM against 1 - minimum. Infinite for non-finite values; (0, "") for a frame that could not be judged.
    """
    if frame.lassim is None:
        return 0.0, ""
    found = {LASSIM: _multiple(1 - frame.lassim, 1 - thresholds.minimum)}
    for name, limit in thresholds.of(frame.detail).items():
        if name in frame.checks:
            found[name] = _multiple(frame.checks[name], limit.withhold)
    name = max(found, key=lambda key: found[key])
    return found[name], name


def _multiple(value: float, limit: float) -> float:
    if math.isnan(value):
        return math.inf
    if limit <= 0:
        return math.inf if value > limit else 0.0
    return max(value, 0.0) / limit


def confidence_of(excess: float, passed: bool, thresholds: Thresholds) -> float | None:
    """How sure a verdict is, by what the calibration saw of results that were known to be honest or altered.

    Against each other stand the share of honest results that come at least so near to the limits, and the share of
    altered ones that come no nearer: two tails, each at least `TAIL`.

    Args:
        excess: The worst frame's, see `excess_of`.
        passed: Whether the verdict says that the structure is the source's.
        thresholds: The limits.

    Returns:
        The share of the tail that speaks for the verdict, in [0, 1]; 0.5: as likely the one as the other. Near 1 far
        from the limits, least beside them. None where the calibration does not tell.
    """
    if thresholds.evidence is None:
        return None
    honest, altered = (np.asarray(q) for q in (thresholds.evidence.honest, thresholds.evidence.altered))
    nearer = max(TAIL, 1 - _share_below(honest, excess))
    farther = max(TAIL, _share_below(altered, excess))
    share = nearer / (nearer + farther)
    return round(float(share if passed else 1 - share), 3)


def _share_below(quantiles: NDArray[np.float64], value: float) -> float:
    """Of a distribution given by evenly spaced quantiles."""
    return float(np.interp(value, quantiles, np.linspace(0, 1, len(quantiles)), left=0, right=1))


def settled(verdict: Verdict, blending: Blending | None) -> Verdict:
    """The verdict on an instance into which the source's pixels were blended: at best `warned`, reason BLENDED."""
    if blending is None or verdict.outcome == "withheld":
        return verdict
    frames = f" in {_counted(blending.frames)}" if verdict.details["frames"] > 1 else ""
    reason = f"BLENDED: the source's pixels came back in {_percent(blending.share)} of the picture{frames}"
    return Verdict(
        verdict.lassim, verdict.passed, "warned", "; ".join(filter(None, (reason, verdict.reason))), verdict.details
    )


def values_of(
    verdict: Verdict,
    frames: Sequence[FrameScores],
    thresholds: Thresholds,
    *,
    mode: str,
    blending: Blending | None = None,
) -> dict[str, Any]:
    """A verdict as JSON-able values; `schemas/run_report.schema.json` says what each means.

    Args:
        verdict: On the instance.
        frames: What was measured of its frames, as released.
        thresholds: The limits.
        mode: What the run was asked to do: withhold, warn, off or blend.
        blending: What came back from the source; None: nothing.
    """
    details, worst = verdict.details, _worst(frames, thresholds)
    excess = max(excess_of(frame, thresholds)[0] for frame in frames)
    judged = all(frame.lassim is not None for frame in frames)
    objections = sorted(_objections(frames, thresholds), key=lambda item: (-item[0], item[1]["frame"]))
    return {
        "passed": verdict.passed,
        "confidence": confidence_of(excess, verdict.passed, thresholds) if judged else None,
        "poor_frames": sum(thresholds.is_poor(frame.detail) for frame in frames),
        "mode": mode,
        "level": details["level"],
        "frames": len(frames),
        "worst_frame": details["worst_frame"],
        "mean": _number(details["mean"]),
        "minimum": thresholds.minimum,
        "warn_below": thresholds.warn_below,
        "calibration": thresholds.calibration or None,
        "worst": worst,
        "checks": {
            name: {
                "value": _number(found["value"]),
                "frame": found["frame"],
                "where": found.get("where"),
                "region": found.get("region"),
                "warn": found.get("warn"),
                "withhold": found.get("withhold"),
            }
            for name, found in details["checks"].items()
        },
        "objections": [value for _, value in objections[:MOST_OBJECTIONS]],
        "objections_total": len(objections),
        "blended": asdict(blending) if blending else None,
    }


def _worst(frames: Sequence[FrameScores], thresholds: Thresholds) -> dict[str, Any] | None:
    """The check that came nearest to its limit, in any frame."""
    found = [(*excess_of(frame, thresholds), number) for number, frame in enumerate(frames)]
    excess, name, number = max(found, key=lambda item: (item[0], -item[2]))
    return {"check": name, "frame": number, "excess": _number(excess)} if name else None


def _objections(frames: Sequence[FrameScores], thresholds: Thresholds) -> list[tuple[float, dict[str, Any]]]:
    """Every check of every frame that is beyond its limit, with how far beyond the limit for withholding."""
    found = []
    for number, frame in enumerate(frames):
        if frame.lassim is not None and not frame.lassim >= thresholds.warn_below:
            severity = "warn" if frame.lassim >= thresholds.minimum else "withhold"
            limit = thresholds.warn_below if severity == "warn" else thresholds.minimum
            value = _objection(number, LASSIM, frame.lassim, limit, severity, frame)
            found.append((_multiple(1 - frame.lassim, 1 - thresholds.minimum), value))
        for name, limits in thresholds.of(frame.detail).items():
            if name in frame.checks and frame.checks[name] > limits.warn:
                severity = "withhold" if frame.checks[name] > limits.withhold else "warn"
                limit = limits.withhold if severity == "withhold" else limits.warn
                value = _objection(number, name, frame.checks[name], limit, severity, frame)
                found.append((_multiple(frame.checks[name], limits.withhold), value))
    return found


def _objection(
    number: int, check: str, value: float, limit: float, severity: str, frame: FrameScores
) -> dict[str, Any]:
    region = frame.regions.get(check)
    return {
        "frame": number,
        "check": check,
        "value": _number(value),
        "limit": limit,
        "severity": severity,
        "where": str(region) if region else None,
        "region": asdict(region) if region else None,
    }


def in_words(verdict: Verdict, values: dict[str, Any]) -> str:
    """A verdict as the sentences of a Derivation Description (0008,2111).

    Args:
        verdict: On the instance.
        values: As `values_of` gives them.
    """
    lassim = "" if verdict.lassim is None else f": LaSSIM {verdict.lassim:.3f} of at least {values['minimum']:.3g}"
    word = in_a_word(verdict.lassim, verdict.reason, values)
    if word == "not possible":
        sentences = [f"Structure check {word}" + (", frames below 7 x 7 pixels." if not verdict.passed else ".")]
    elif word == "failed":
        done = WITHHELD if verdict.outcome == "withheld" else f"was overruled ({values['mode']})"
        sentences = [f"Structure check {word} and {done}{lassim}{_worst_in_words(values)}{_sure_in_words(values)}."]
    else:
        sentences = [f"Structure check {word}{lassim}{_worst_in_words(values)}{_sure_in_words(values)}."]
    if blended := values["blended"]:
        share = _percent(blended["share"])
        sentences.append(f"Blended: the source's pixels came back in {share} of the picture, where structure changed.")
    limits = f"calibration {values['calibration']}" if values["calibration"] else "not calibrated"
    return " ".join([*sentences, f"Limits: {limits}."])


def in_a_word(lassim: float | None, reason: str | None, values: dict[str, Any]) -> str:
    """What comes after "Structure check" (`provenance.VERDICT`).

    Args:
        lassim: Of the verdict.
        reason: Of the verdict.
        values: As `values_of` gives them.
    """
    if lassim is None:
        return "not possible"
    if not values.get("passed"):
        return "failed"
    doubted = any(why in (reason or "") for why in (NOT_CALIBRATED, NOT_CHECKED))
    return "passed with a warning" if values.get("objections_total") or doubted else "passed"


def _worst_in_words(values: dict[str, Any]) -> str:
    worst = values["worst"]
    if not worst or all(found["withhold"] is None for found in values["checks"].values()):
        return ""
    if worst["check"] == LASSIM:
        return ", the worst check"
    found = values["checks"][worst["check"]]
    where = f" at {found['where']}" if found["where"] else ""
    frame = f" in frame {found['frame'] + 1}" if values["frames"] > 1 else ""
    return f"; worst check {worst['check']} {found['value']:.3g} of at most {found['withhold']:.3g}{where}{frame}"


def _sure_in_words(values: dict[str, Any]) -> str:
    return "" if values.get("confidence") is None else f"; confidence {values['confidence']:.2f}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 or share == 0 else "less than 0.1 %"


def _counted(frames: int) -> str:
    return "1 frame" if frames == 1 else f"{frames} frames"


def _number(value: float | None) -> float | None:
    """JSON has no infinity and no NaN."""
    return float(value) if value is not None and math.isfinite(value) else None
