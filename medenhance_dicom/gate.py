"""Is the structure still there? A verdict on a picture before and after.

So far the verdict is the published LaSSIM, frame by frame, the worst frame deciding. It is known to be too kind to a
small invented lesion and to inverted grey levels (both factors of SSIM change sign), and too strict with local contrast
methods; further checks (local map, displacement, inversion) belong beside it, in `Verdict.details` and `verdict_of`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Mode", "Outcome", "Thresholds", "Verdict", "judge", "score_frames", "verdict_of"]

Mode = Literal["withhold", "warn", "off"]
Outcome = Literal["enhanced", "warned", "withheld"]

LEVEL = 3


@dataclass(frozen=True)
class Thresholds:
    """LaSSIM limits, kept with the weights they were calibrated for."""

    minimum: float
    """Below this the structure counts as changed."""
    warn_below: float
    """From `minimum` up to this the result is released with a warning."""

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
    """JSON-able: level, frames, worst_frame, mean, minimum, warn_below, mode."""


def judge(
    before: NDArray[np.floating[Any]],
    after: NDArray[np.floating[Any]],
    thresholds: Thresholds,
    mode: Mode = "withhold",
    *,
    level: int = LEVEL,
) -> Verdict:
    """Compare the unit frames of an instance before and after enhancement.

    Args:
        before: (N, H, W, C) in [0, 1], C = 1 or 3 (RGB).
        after: The same shape.
        thresholds: The limits.
        mode: "withhold" what failed, only "warn", or "off". Non-finite values are withheld in every mode.
        level: LaSSIM's Laplacian level.

    Raises:
        ValueError: The shapes differ or there is no frame.
    """
    return verdict_of(score_frames(before, after, level=level), thresholds, mode, level=level)


def score_frames(
    before: NDArray[np.floating[Any]], after: NDArray[np.floating[Any]], *, level: int = LEVEL
) -> list[float | None]:
    """LaSSIM of each frame, in double precision; NaN for non-finite values, None for a frame below 7 x 7.

    Scores of an instance that is worked on in batches can be joined and handed to `verdict_of` at the end.

    Args:
        before: (N, H, W, C) in [0, 1], C = 1 or 3 (RGB).
        after: The same shape.
        level: LaSSIM's Laplacian level.

    Raises:
        ValueError: The shapes differ.
    """
    import torch

    from medenhance_dicom.lassim import WINDOW, lassim

    if before.shape != after.shape or before.ndim != 4 or before.shape[3] not in (1, 3):
        raise ValueError(f"two (N, H, W, 1 or 3) of one shape wanted, not {before.shape} and {after.shape}")
    scores: list[float | None] = []
    with torch.inference_mode():
        for x, y in zip(before, after, strict=True):  # (H, W, C); one at a time, so memory is flat
            if not (np.isfinite(x).all() and np.isfinite(y).all()):
                scores.append(math.nan)
            elif min(x.shape[:2]) < WINDOW:
                scores.append(None)
            else:
                a, b = (torch.from_numpy(z.astype(np.float64)).permute(2, 0, 1)[None] for z in (x, y))
                scores.append(lassim(a, b, level).item())
    return scores


def verdict_of(
    scores: Sequence[float | None], thresholds: Thresholds, mode: Mode = "withhold", *, level: int = LEVEL
) -> Verdict:
    """The verdict on an instance from the scores of all its frames; the worst frame decides.

    Args:
        scores: As `score_frames` gives them.
        thresholds: The limits.
        mode: See `judge`.
        level: For the details.

    Raises:
        ValueError: There is no score.
    """
    if not scores:
        raise ValueError("no frame to judge")
    known = [s for s in scores if s is not None and not math.isnan(s)]
    details: dict[str, Any] = {
        "level": level,
        "frames": len(scores),
        "worst_frame": min(range(len(scores)), key=lambda i: _rank(scores[i])),
        "mean": sum(known) / len(known) if known else None,
        "minimum": thresholds.minimum,
        "warn_below": thresholds.warn_below,
        "mode": mode,
    }
    worst = scores[details["worst_frame"]]
    place = f" in frame {details['worst_frame'] + 1}" if len(scores) > 1 else ""
    if worst is not None and math.isnan(worst):
        return Verdict(
            None, False, "withheld", f"NON_FINITE: the result holds values that are no numbers{place}", details
        )
    refused: Outcome = {"withhold": "withheld", "warn": "warned", "off": "enhanced"}[mode]  # type: ignore[assignment]
    if worst is None:
        return Verdict(None, False, refused, f"TOO_SMALL: sides below 7 pixels cannot be judged{place}", details)
    if worst < thresholds.minimum:
        reason = f"LASSIM: structure changed, {worst:.4f} is below {thresholds.minimum:.4f}{place}"
        return Verdict(worst, False, refused, reason, details)
    if worst < thresholds.warn_below and mode != "off":
        reason = f"LASSIM: structure may have changed, {worst:.4f} is below {thresholds.warn_below:.4f}{place}"
        return Verdict(worst, True, "warned", reason, details)
    return Verdict(worst, True, "enhanced", None, details)


def _rank(score: float | None) -> float:
    """Non-finite before unjudged before any number."""
    if score is None:
        return -2.0
    return -3.0 if math.isnan(score) else score
