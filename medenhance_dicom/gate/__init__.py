"""Is the structure still there? Frames before and after are examined one by one, and an instance gets one verdict."""

from medenhance_dicom.gate.checks import CHECKS, FrameScores, Region, examine, structure_map
from medenhance_dicom.gate.verdict import (
    LEVEL,
    NOT_CALIBRATED,
    NOT_CHECKED,
    Evidence,
    Limit,
    Mode,
    Outcome,
    Poor,
    Thresholds,
    Verdict,
    judge,
    verdict_of,
)

__all__ = [
    "CHECKS",
    "LEVEL",
    "NOT_CALIBRATED",
    "NOT_CHECKED",
    "Evidence",
    "FrameScores",
    "Limit",
    "Mode",
    "Outcome",
    "Poor",
    "Region",
    "Thresholds",
    "Verdict",
    "examine",
    "judge",
    "structure_map",
    "verdict_of",
]
