"""What all baselines share: frames one by one, the field of view filled up, value kept apart from colour."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, fields
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from medenhance_dicom.conventional import FLAT, FrameByFrame, luminance
from medenhance_dicom.enhancer import EnhancerSpec
from medenhance_dicom.field_edge import fill_outside

Unit = NDArray[np.float32]
Picture = NDArray[np.float64]
Plane = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Baseline(FrameByFrame):
    """A published method: whole frames, each by itself, constant ones too.

    The method sees the bounding box of the field of view. What lies outside within that box is filled with the nearest
    pixel inside, so the black surround has no part in the result; those pixels come back untouched.
    """

    spec: EnhancerSpec = field(default=EnhancerSpec(channels=None, whole=True), init=False)

    def enhance_within(self, frames: Unit, inside: Mask) -> Unit:
        """As called, for the pixels of `inside` (N, H, W) only."""
        result = frames.copy()
        for frame, here, out in zip(frames, inside, result, strict=True):
            if here.any():
                self._enhance_frame(frame, luminance(frame), here, out)
        return result

    def _enhance_frame(self, frame: Unit, light: Unit, here: Mask, out: Unit) -> None:
        box = find_objects(here.astype(np.uint8))[0]
        inside = here[box]
        wanted = self._enhance(fill_outside(frame[box], inside).astype(np.float64), inside)
        out[box][inside] = np.clip(wanted, 0, 1)[inside]

    @abstractmethod
    def _enhance(self, picture: Picture, inside: Mask) -> Picture:
        """(H, W, 1 or 3) in [0, 1] -> the same shape; clipped afterwards. Statistics are taken where `inside`."""


def is_flat(picture: Picture, inside: Mask) -> bool:
    """Whether no channel of (H, W) or (H, W, C) varies inside, so that there is nothing to stretch."""
    return float(np.ptp(picture[inside], axis=0).max()) < FLAT


def value(picture: Picture) -> Plane:
    """V of HSV: the largest channel, (H, W, C) -> (H, W)."""
    plane: Plane = picture.max(axis=2)
    return plane


def relight(picture: Picture, old: Plane, new: Plane) -> Picture:
    """The picture (H, W, C) times new / old, (H, W) each, so that hue and saturation stay; `new` where old is 0."""
    old, new = old[..., None], np.clip(new, 0, 1)[..., None]
    gain = np.divide(new, old, out=np.ones_like(new), where=old > 0)
    return np.where(old > 0, picture * gain, new)


def stretch(plane: Picture, low: float, high: float) -> Picture:
    """The line that takes `low` to 0 and `high` to 1, clipped."""
    return np.clip((plane - low) / (high - low), 0, 1)


def check_fields(method: object, **ranges: tuple[float, float]) -> None:
    """Hold the named fields of a method to their ranges, ends included, and those annotated int and bool to their type.

    Raises:
        ValueError: A value is no number, not whole where it must be, or out of its range.
    """
    types = {f.name: str(f.type) for f in fields(method)}  # type: ignore[arg-type]
    for name, (low, high) in ranges.items():
        given = getattr(method, name)
        kind, word = (Integral, "a whole number") if types[name] == "int" else (Real, "a number")
        if isinstance(given, bool) or not isinstance(given, kind) or not low <= float(given) <= high:
            raise ValueError(f"{name} must be {word} in {low:g}..{high:g}, not {given!r}")
    for name in (n for n, kind in types.items() if kind == "bool"):
        if not isinstance(getattr(method, name), bool):
            raise ValueError(f"{name} must be true or false, not {getattr(method, name)!r}")
