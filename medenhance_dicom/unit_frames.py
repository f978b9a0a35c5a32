"""Frames of a series on their way to the enhancer: decoded, brought to [0, 1], with where they may change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom import frames, intensity
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import InputError, MedenhanceError, UnsupportedInstanceError
from medenhance_dicom.part10 import Limits, read_instance
from medenhance_dicom.recipe import Recipe
from medenhance_dicom.report import UNREADABLE, Outcome
from medenhance_dicom.selection import outcome_of
from medenhance_dicom.series import Member, Series

if TYPE_CHECKING:
    from pydicom import Dataset

Region = Callable[[NDArray[np.float32], NDArray[np.bool_] | None], NDArray[np.bool_]]
"""(H, W, C) in [0, 1] and padding or None -> bool (H, W)."""

SAMPLED_FRAMES = 8  # of a series, to fit its one intensity map


@dataclass(frozen=True)
class UnitFrame:
    """One frame on its way: `stored` as in the file, `unit` for the enhancer, `after` when it comes back."""

    member: Member
    instance: Dataset
    pixels: frames.PixelFormat
    index: int
    stored: frames.StoredFrame
    line: frames.ModalityLine
    map: intensity.IntensityMap
    unit: NDArray[np.float32]
    """(H, W, C) in [0, 1]."""
    enhance_here: NDArray[np.bool_]
    """(H, W): False where text, surround or padding must stay as it is."""
    after: NDArray[np.float32] | None = None


class SeriesIntensity:
    """The one intensity map of a series, fitted when the first frame asks for it."""

    def __init__(self, series: Series, recipe: Recipe, decoder: Decoder, limits: Limits) -> None:
        self.series, self.recipe, self.decoder, self.limits = series, recipe, decoder, limits
        self._map: intensity.IntensityMap | None = None

    def map_for(self, instance: Dataset, pixels: frames.PixelFormat) -> intensity.IntensityMap:
        """The series' map; its method, limits and sampled frames come from the recipe and the first members."""
        if self._map is None:
            self._map = self._fit(instance, pixels)
        return self._map

    def _fit(self, instance: Dataset, pixels: frames.PixelFormat) -> intensity.IntensityMap:
        how = self.recipe.intensity
        line = frames.modality_line(instance, 0)
        legal = sorted(line.slope * v + line.intercept for v in (pixels.minimum, pixels.maximum))
        window = frames.voi_window(instance, 0)
        sample: list[tuple[NDArray[np.float32], NDArray[np.bool_] | None]] = []
        if how.method == "percentile" or (how.method == "window" and window is None):
            sample = list(self._sample())
        return intensity.fit_intensity(
            [values for values, _ in sample],
            how.method,
            paddings=[padding for _, padding in sample],
            window=window,
            legal_range=(legal[0], legal[1]),
            percentiles=(how.low, how.high),
            inverted=pixels.photometric_out == "MONOCHROME1",
        )

    def _sample(self) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_] | None]]:
        """Up to SAMPLED_FRAMES frames, spread evenly over the series; what does not decode is passed over."""
        members = self.series.members
        chosen = [members[i] for i in sorted({round(x) for x in np.linspace(0, len(members) - 1, SAMPLED_FRAMES)})]
        for member in chosen:
            try:
                instance = read_instance(member.located.path, limits=self.limits)
                count = frames.pixel_format(instance).number_of_frames
                share = max(SAMPLED_FRAMES // len(chosen), 1)
                for index in sorted({round(x) for x in np.linspace(0, count - 1, min(share, count))}):
                    stored = frames.stored_frame(instance, self.decoder.frame(member.located.path, index), index)
                    yield frames.to_modality(stored.stored, frames.modality_line(instance, index)), stored.padding
            except MedenhanceError:
                continue


def unit_frame(
    member: Member, instance: Dataset, pixels: frames.PixelFormat, index: int, line: SeriesIntensity, region: Region
) -> UnitFrame:
    """One frame, decoded and brought to [0, 1]; `region` says where it may change."""
    stored = frames.stored_frame(instance, line.decoder.frame(member.located.path, index), index)
    to_modality = frames.modality_line(instance, index)
    unit_map = line.map_for(instance, pixels)
    unit = intensity.to_unit(frames.to_modality(stored.stored, to_modality), unit_map)
    return UnitFrame(member, instance, pixels, index, stored, to_modality, unit_map, unit, region(unit, stored.padding))


def unit_frames(
    series: Series, line: SeriesIntensity, region: Region, **names: str | None
) -> Iterator[UnitFrame | Outcome]:
    """Frames of a series in [0, 1], one at a time; an instance that does not decode ends in an Outcome with `names`."""
    for member in series.members:
        try:
            instance = read_instance(member.located.path, limits=line.limits)
            pixels = frames.pixel_format(instance)
            for index in range(pixels.number_of_frames):
                yield unit_frame(member, instance, pixels, index, line, region)
        except InputError as error:
            yield outcome_of(member, "failed", f"{UNREADABLE}: {error}", **names)
        except UnsupportedInstanceError as error:
            yield outcome_of(member, "skipped", str(error), **names)
