"""Is the structure still there? Frames before and after are examined one by one, and an instance gets one verdict."""

from medenhance_dicom.gate.checks import FrameScores, Region, examine
from medenhance_dicom.gate.verdict import LEVEL, Limit, Mode, Outcome, Thresholds, Verdict, judge, verdict_of

__all__ = [
    "LEVEL",
    "FrameScores",
    "Limit",
    "Mode",
    "Outcome",
    "Region",
    "Thresholds",
    "Verdict",
    "examine",
    "judge",
    "verdict_of",
]
