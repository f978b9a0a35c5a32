"""The gate's verdict on pairs of files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from medenhance_dicom.comparison.pairs import FramePair, Pair
from medenhance_dicom.errors import FrameError, InputError, UnsupportedInstanceError
from medenhance_dicom.gate import FrameScores, examine, verdict_of
from medenhance_dicom.report import UNREADABLE
from medenhance_dicom.verdicts import values_of

__all__ = ["Judgement", "judge_pairs"]

Result = Literal["enhanced", "warned", "withheld", "skipped", "failed"]
See = Callable[[Pair, FramePair, FrameScores], None]


@dataclass(frozen=True)
class Judgement:
    """What the gate says of one pair."""

    pair: Pair
    result: Result
    reason: str | None = None
    """CODE: sentence."""
    lassim: float | None = None
    """Of the worst frame."""
    verdict: dict[str, Any] = field(default_factory=dict)
    """As `verdicts.values_of` gives it; empty where nothing could be judged."""
    frames: list[FrameScores] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "source": self.pair.source,
            "derived": self.pair.derived,
            "result": self.result,
            "reason": self.reason,
            "lassim": self.lassim,
            "verdict": self.verdict,
            "per_frame": [{"frame": n, **scores.to_json()} for n, scores in enumerate(self.frames)],
        }


def judge_pairs(pairs: Iterable[tuple[Pair, Iterator[FramePair]]], see: See | None = None) -> Iterator[Judgement]:
    """Judge each pair by its limits, as `enhance --gate withhold` does, on the values that are stored.

    Args:
        pairs: As `pairs.Pairs` gives them.
        see: Called with every frame and what was measured of it, before the pair's judgement comes.
    """
    for pair, frames in pairs:
        if pair.problem:
            yield Judgement(pair, "skipped", pair.problem)
            continue
        scores: list[FrameScores] = []
        try:
            for frame in frames:
                scores.append(examine(frame.before, frame.after, level=pair.level, inside=frame.inside))
                if see:
                    see(pair, frame, scores[-1])
        except InputError as error:
            yield Judgement(pair, "failed", f"{UNREADABLE}: {error}")
            continue
        except UnsupportedInstanceError as error:
            yield Judgement(pair, "skipped", str(error))
            continue
        except FrameError as error:
            yield Judgement(pair, "failed", str(error))
            continue
        verdict = verdict_of(scores, pair.thresholds, "withhold", level=pair.level)
        values = values_of(verdict, scores, pair.thresholds, mode="withhold")
        yield Judgement(pair, verdict.outcome, verdict.reason, verdict.lassim, values, scores)
