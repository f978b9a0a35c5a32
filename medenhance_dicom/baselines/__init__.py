"""Enhancers as other papers have them, for comparison: their own formulas and parameters, behind our protocol."""

from medenhance_dicom.baselines.directory import Directory
from medenhance_dicom.baselines.registry import BASELINES, build_baseline

__all__ = ["BASELINES", "Directory", "build_baseline"]
