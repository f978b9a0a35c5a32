"""What is measured: metrics, and the trained tasks that some of them need."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from medenhance_dicom.metrics.registry import Metric, SetMetric, build_metrics

if TYPE_CHECKING:
    from medenhance_dicom.training.predictors import Predictor

DEFAULT_METRICS = ("lassim@l3", "ssim-source@wang11", "ag@fusion", "en@256", "piqe@matlab")
"""What every picture has, and no file is needed for."""
TARGET_METRICS = ("psnr@8bit", "ssim@wang11", "lassim-target@l3")
"""Also taken by default where there are targets."""

PREDICTED = {"segmented": "segmentation", "graded": "grading", "found": "fovea"}
"""Fields of a sample that a trained task fills, and its kind."""
_WANTED = {"segmentation": "segmenter", "grading": "grader", "fovea": "locator"}
_ABSENT = {
    "target": "the pictures have no targets",
    "truth_mask": "the pictures have no masks",
    "inside": "no field of view was asked for",
    "grade": "the pictures have no grades",
    "point": "the pictures have no points",
}


@dataclass(frozen=True)
class Column:
    """A metric, with the trained task that it looks through, if it needs one."""

    asked: str
    """The metric as it was asked for: an id, or its name alone."""
    metric: Metric | SetMetric
    predictor: Predictor | None = None
    unavailable: str = ""
    """Why there are no figures; empty: there are."""

    @property
    def id(self) -> str:
        """The metric's id, and the task's where one is looked through."""
        through = "" if self.predictor is None or self.predictor.kind == "quality" else f" by {self.predictor.id}"
        return f"{self.metric.id}{through}"

    @property
    def is_of_set(self) -> bool:
        """Whether it is one figure of all pictures, not one of each."""
        return isinstance(self.metric, SetMetric)


def build_columns(
    ids: Sequence[str], models: Mapping[str, Path], predictors: Sequence[Predictor], has: frozenset[str]
) -> list[Column]:
    """The columns of an evaluation; one that cannot be filled says why.

    Args:
        ids: Metric ids.
        models: Parameter files of metrics.
        predictors: Trained tasks. One for quality adds its own score as a column.
        has: What the pictures come with, see `PictureSet.has`.

    Raises:
        RecipeError: An unknown metric.
    """
    columns = []
    for asked, metric in zip(ids, build_metrics(ids, models), strict=True):
        fields = sorted(metric.needs & set(PREDICTED))
        absent = "; ".join(_ABSENT[name] for name in sorted(metric.needs & set(_ABSENT)) if name not in has)
        if not fields:
            columns.append(Column(asked, metric, None, metric.unavailable or absent))
            continue
        able = [predictor for predictor in predictors if predictor.kind == PREDICTED[fields[0]]]
        why = metric.unavailable or absent
        if not able:
            lacking = f"no trained {_WANTED[PREDICTED[fields[0]]]} was named (--predictor)"
            columns.append(Column(asked, metric, None, "; ".join(filter(None, (why, lacking)))))
        columns += [Column(asked, metric, predictor, why) for predictor in able]
    return columns + [Column(one.id, _quality(one), one) for one in predictors if one.kind == "quality"]


def _quality(predictor: Predictor) -> Metric:
    return Metric(
        id=predictor.id, label="s_HQ", better="higher", unit="", needs=frozenset(), unavailable="",
        score=lambda sample: float("nan") if (found := predictor(sample.result).quality) is None else found,
    )  # fmt: skip
