"""What needs no learning and no knowledge of the eye, and still has good figures: a control for measures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medenhance_dicom.baselines.frame import Baseline, Mask, Picture, check_fields
from medenhance_dicom.conventional import blur_within


@dataclass(frozen=True)
class FlatColour(Baseline):
    """One colour everywhere, and the green detail times `gain` on it: even, of a good colour, with deep vessels.

    Disc, macula and the colour of lesions are gone. A measure that it wins says nothing by itself.
    """

    colour: tuple[float, ...] = (0.644, 0.315, 0.082)
    """Red, green and blue; by default what `op-field-normalisation` has of good photographs."""
    gain: float = 2.0
    sigma: float = 0.08
    """Of the Gaussian that detail is finer than, as a share of the field's width."""

    def __post_init__(self) -> None:
        check_fields(self, gain=(0, 16), sigma=(0.005, 1))
        if len(self.colour) != 3 or not all(0 <= value <= 1 for value in self.colour):
            raise ValueError("colour must be three numbers in 0..1")

    def _enhance(self, picture: Picture, inside: Mask) -> Picture:
        grey = picture.shape[2] == 1
        plane = picture[..., 0 if grey else 1]
        light = plane.astype(np.float32)
        detail = self.gain * (plane - blur_within(light, inside, max(1.0, self.sigma * light.shape[1])))
        return np.array([np.mean(self.colour)] if grey else self.colour) + detail[..., None]
