"""Real poor pictures in validation: without a truth, measured against what good pictures have.

In the field of view that is not black; a picture of another kind than a fundus photograph has dark lines for vessels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.masks import field_of_view
from medenhance_dicom.metrics.fundus import FundusField, GoodColours, fit_colours

Unit = NDArray[np.float32]

ALL = ("unevenness", "vessel_depth", "contrast_to_noise", "chroma_spread", "colour_distance")
GREY = ("unevenness", "contrast_to_noise")


@dataclass(frozen=True)
class _Measured:
    """A poor picture, and its own figures."""

    field: FundusField
    before: dict[str, float]


class PoorPictures:
    """Poor pictures, and the figures of good ones.

    Args:
        poor: File and picture, (H, W, 1 or 3) in [0, 1]; they need not be of one size.
        good: Three and more that are as the poor ones should become, with the same channels.

    Raises:
        RecipeError: Too few good ones, or a picture in which nothing can be measured; names it.
    """

    def __init__(self, poor: Sequence[tuple[Path, Unit]], good: Sequence[tuple[Path, Unit]]) -> None:
        self._colours: GoodColours | None = None
        self.names = ALL if poor[0][1].shape[2] == 3 else GREY
        fields = [self._field(*one) for one in good]
        try:
            if self.names is ALL:
                self._colours = fit_colours((field.source, field.inside) for field in fields)
            elif len(good) < 3:
                raise ValueError(f"{len(good)} pictures; three and more are wanted")
        except ValueError as error:
            raise RecipeError(f"data.validation_high: beside validation_poor: {error}") from error
        figures = [self._figures(field, field.source) for field in fields]
        self.good = {name: (float(np.mean(v)), float(np.std(v))) for name, v in _columns(figures).items()}
        """Of the good ones: mean and deviation by name."""
        self._poor: list[_Measured] = []
        for one in poor:
            field = self._field(*one)
            self._poor.append(_Measured(field, self._figures(field, field.source)))

    def scores(self, enhanced: Sequence[Unit]) -> dict[str, float]:
        """Means over the pictures by name, `poor_..`; the source's `poor_.._input`; and `poor_score`, at most 0.

        The score of pictures in colour is minus the mean of two distances, each in deviations of good pictures: of
        vessel depth, more being as bad as less, and of colour as far as it is beyond theirs. Taken off are the shares
        by which contrast-to-noise fell below the source's, and chroma spread rose above it: neither gain, smoothing nor
        blotches pay. Of grey pictures it is the distance of unevenness instead.

        Args:
            enhanced: In the order of the poor ones.
        """
        after = _columns([self._figures(one.field, x) for one, x in zip(self._poor, enhanced, strict=True)])
        mean = {name: float(np.mean(values)) for name, values in after.items()}
        before = {name: float(np.mean(v)) for name, v in _columns([one.before for one in self._poor]).items()}
        lost = max(0.0, 1 - mean["contrast_to_noise"] / max(before["contrast_to_noise"], 1e-6))
        if self._colours is None:
            score = -self._beyond("unevenness", mean) - lost
        else:
            colour = max(0.0, mean["colour_distance"] - self.good["colour_distance"][0])
            blotches = max(0.0, mean["chroma_spread"] / max(before["chroma_spread"], 1e-6) - 1)
            score = -(self._beyond("vessel_depth", mean) + colour) / 2 - lost - blotches
        found = {f"poor_{name}": value for name, value in mean.items()}
        return found | {f"poor_{name}_input": value for name, value in before.items()} | {"poor_score": score}

    def _beyond(self, name: str, mean: dict[str, float]) -> float:
        middle, deviation = self.good[name]
        return abs(mean[name] - middle) / max(deviation, 1e-6)

    def _field(self, path: Path, picture: Unit) -> FundusField:
        colour = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
        try:
            field = FundusField(colour, field_of_view(picture, "border"))
            if not field.ground.any():
                raise ValueError("no quiet ground between dark lines")
        except ValueError as error:
            raise RecipeError(f"{path}: nothing can be measured in it: {error}") from error
        return field

    def _figures(self, field: FundusField, picture: Unit) -> dict[str, float]:
        colour = np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture
        found = {name: float(getattr(field, name)(colour)) for name in self.names if name != "colour_distance"}
        if self._colours is not None:
            found["colour_distance"] = field.colour_distance(colour, self._colours)
        return found


def _columns(rows: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}
