"""Frames of a series on their way to the enhancer: decoded, brought to [0, 1], with where they may change."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom import frames, intensity
from medenhance_dicom.colour_flow import shows_flow
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import FrameError, InputError, MedenhanceError, UnsupportedInstanceError
from medenhance_dicom.part10 import Limits, read_instance
from medenhance_dicom.recipe import Recipe
from medenhance_dicom.series import Member, Series, parallel_slices
from medenhance_dicom.sop_classes import DOPPLER, VOLUMES, is_ultrasound

if TYPE_CHECKING:
    from pydicom import Dataset

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]
Region = Callable[[Unit, Mask | None], Mask]
"""(H, W, C) in [0, 1] and padding or None -> bool (H, W)."""

SAMPLED_FRAMES = 8  # of what shares an intensity map, to fit it


@dataclass(frozen=True)
class UnitFrame:
    """One frame on its way: `stored` as in the file, `unit` for the enhancer."""

    member: Member
    instance: Dataset
    pixels: frames.PixelFormat
    index: int
    stored: frames.StoredFrame
    line: frames.ModalityLine
    map: intensity.IntensityMap
    unit: Unit
    """(H, W, C) in [0, 1]."""
    enhance_here: Mask
    """(H, W): False where text, surround or padding must stay as it is."""
    shared_map: bool = False
    """The map is that of other instances, too: it does not follow from this one."""

    def encode(self, after: Unit) -> NDArray[np.integer]:
        """Stored values (H, W, C) of the enhanced frame `after` (H, W, C); only `enhance_here` changes.

        Raises:
            FrameError: NOT_FINITE.
        """
        if not np.isfinite(after).all():
            raise FrameError("NOT_FINITE", "the enhancer gives values that are no numbers")
        after = np.where(self.enhance_here[..., None], after, self.unit)
        delta = intensity.delta_to_modality(self.unit, after, self.map)
        return frames.encode_residual(self.stored, delta, self.line, self.pixels)

    def shown(self, stored: NDArray[np.integer], line: frames.ModalityLine | None = None) -> Unit:
        """Stored values of a derived frame, (H, W, C), in [0, 1] on this frame's scale: the picture that is judged.

        Args:
            stored: As `encode` gives them, or as read from a file.
            line: Of the derived frame; None: the source's, which derived frames keep.
        """
        return intensity.to_unit(frames.to_modality(stored, line or self.line), self.map)


class SeriesIntensity:
    """The intensity maps of a series: who shares one, and how it is fitted.

    A window belongs to its image (PS3.3 C.11.2): by "window" every frame has its own, the first that holds pixels of
    it. By "percentile" (and by "window" where none holds any) these share a map, in modality values:

    * the frames of a multi-frame instance;
    * the single-frame instances of a series that are slices of one volume: of `sop_classes.VOLUMES`, all with a
      position and in one orientation. A recipe's `scope` can widen this to any series or narrow it to no two instances.

    Both only if they are on one scale: one Rescale Slope and Intercept for all, or one window for all. Where every one
    has its own of both, each was scaled for itself (C.7.6.16.2.9, C.7.6.16.2.10), and has a map of its own. So has one
    that stands out of its fellows (`intensity.stands_out`), and it has no part in theirs. All others (radiographs,
    photographs, ultrasound) have their own, whatever lies beside them.
    """

    def __init__(
        self,
        series: Series,
        recipe: Recipe,
        decoder: Decoder,
        limits: Limits,
        known: tuple[float, float] | None = None,
    ) -> None:
        """Args: known: (lo, hi) of the map that the series' instances shared when they were enhanced."""
        self.series, self.recipe, self.decoder, self.limits, self.known = series, recipe, decoder, limits, known
        self._shared: tuple[object, intensity.IntensityMap] | None = None
        self._are_slices: bool | None = None

    def map_for(
        self,
        member: Member,
        instance: Dataset,
        pixels: frames.PixelFormat,
        index: int,
        modality: Unit,
        padding: Mask | None,
    ) -> intensity.IntensityMap:
        """The map of one frame.

        Args:
            member: Of the series.
            instance: Its whole header.
            pixels: Its format.
            index: Zero-based frame number.
            modality: The frame's modality values (H, W, C).
            padding: (H, W), or None.
        """
        how = self.recipe.intensity
        window = None
        if how.method == "window":
            window = intensity.usable_window(modality, padding, frames.voi_windows(instance, index))
        if window is not None or how.method == "range":
            return self._fit([], instance, pixels, index, window)
        if self.known is not None:
            return intensity.IntensityMap(*self.known, pixels.photometric_out == "MONOCHROME1", "percentile")
        sharers = self._sharers(member, instance, pixels)
        if sharers is None:
            return self._fit([(modality, padding)], instance, pixels, index)
        if self._shared is None or self._shared[0] is not sharers:
            sample = self._sample(sharers)
            if how.scope != "series":
                sample = intensity.without_outliers(sample, (how.low, how.high))
            self._shared = sharers, self._fit(sample or [(modality, padding)], instance, pixels, index)
        shared = self._shared[1]
        if how.scope != "series" and intensity.stands_out(modality, padding, shared.lo, shared.hi, (how.low, how.high)):
            return self._fit([(modality, padding)], instance, pixels, index)
        return shared

    def is_shared(self, found: intensity.IntensityMap) -> bool:
        """Whether a map that `map_for` gave is the series'."""
        return self._shared is not None and self._shared[0] is self.series and self._shared[1] is found

    def _fit(
        self,
        sample: list[tuple[Unit, Mask | None]],
        instance: Dataset,
        pixels: frames.PixelFormat,
        index: int,
        window: tuple[float, float] | None = None,
    ) -> intensity.IntensityMap:
        how = self.recipe.intensity
        line = frames.modality_line(instance, index)
        legal = sorted(line.slope * v + line.intercept for v in (pixels.minimum, pixels.maximum))
        return intensity.fit_intensity(
            [values for values, _ in sample],
            how.method,
            paddings=[padding for _, padding in sample],
            window=window,
            legal_range=(legal[0], legal[1]),
            percentiles=(how.low, how.high),
            inverted=pixels.photometric_out == "MONOCHROME1",
        )

    def _sharers(self, member: Member, instance: Dataset, pixels: frames.PixelFormat) -> Series | Member | None:
        """With whom a frame shares its map: all of the series, the frames of its own instance, or None."""
        scope = self.recipe.intensity.scope
        if scope == "series":
            return self.series
        if pixels.number_of_frames > 1:
            return member if on_one_scale((instance, n) for n in range(pixels.number_of_frames)) else None
        if self._are_slices is None:
            members = self.series.members
            self._are_slices = (
                scope == "auto"
                and all(m.instance.get("SOPClassUID") in VOLUMES for m in members)
                and parallel_slices(members)
                and on_one_scale((m.instance, 0) for m in members)
            )
        return self.series if self._are_slices else None

    def _sample(self, sharers: Series | Member) -> list[tuple[Unit, Mask | None]]:
        """Up to SAMPLED_FRAMES frames, spread evenly; what does not decode is passed over."""
        members = [sharers] if isinstance(sharers, Member) else sharers.members
        chosen = [members[i] for i in sorted({round(x) for x in np.linspace(0, len(members) - 1, SAMPLED_FRAMES)})]
        share = max(SAMPLED_FRAMES // len(chosen), 1)
        found: list[tuple[Unit, Mask | None]] = []
        for member in chosen:
            try:
                instance = read_instance(member.located.path, limits=self.limits)
                count = frames.pixel_format(instance).number_of_frames
                for index in sorted({round(x) for x in np.linspace(0, count - 1, min(share, count))}):
                    stored = frames.stored_frame(instance, self.decoder.frame(member.located.path, index), index)
                    modality = frames.to_modality(stored.stored, frames.modality_line(instance, index))
                    found.append((modality, stored.padding))
            except MedenhanceError:
                continue
        return found


def on_one_scale(headers: Iterable[tuple[Dataset, int]]) -> bool:
    """Whether frames, each a header and a zero-based number, have one modality line or one window for all."""
    lines: set[frames.ModalityLine] = set()
    windows: set[tuple[tuple[float, float], ...]] = set()
    for header, index in headers:
        try:
            lines.add(frames.modality_line(header, index))
        except InputError:
            continue  # it fails when its turn comes
        windows.add(tuple(frames.voi_windows(header, index)))
    return len(lines) <= 1 or len(windows) <= 1


def unit_frame(
    member: Member, instance: Dataset, pixels: frames.PixelFormat, index: int, maps: SeriesIntensity, region: Region
) -> UnitFrame:
    """One frame, decoded and brought to [0, 1]; `region` says where it may change.

    Raises:
        FrameError: NOT_FINITE.
        InputError: It does not decode.
        UnsupportedInstanceError: It is refused.
    """
    stored = frames.stored_frame(instance, maps.decoder.frame(member.located.path, index), index)
    if pixels.samples == 3 and is_ultrasound(instance) and shows_flow(_picture(stored, pixels)):
        raise UnsupportedInstanceError("DOPPLER", f"frame {index + 1} shows colour in grey tissue; {DOPPLER}")
    line = frames.modality_line(instance, index)
    modality = frames.to_modality(stored.stored, line)
    if not np.isfinite(modality).all():
        raise FrameError("NOT_FINITE", "rescaled values are too large to compute with")
    unit_map = maps.map_for(member, instance, pixels, index, modality, stored.padding)
    unit = intensity.to_unit(modality, unit_map)
    here = region(unit, stored.padding)
    shared = maps.is_shared(unit_map)
    return UnitFrame(member, instance, pixels, index, stored, line, unit_map, unit, here, shared)


def _picture(frame: frames.StoredFrame, pixels: frames.PixelFormat) -> Unit:
    return frame.stored.astype(np.float32) / np.float32(pixels.maximum)


def unit_frames(member: Member, maps: SeriesIntensity, region: Region) -> Iterator[UnitFrame]:
    """The frames of an instance in [0, 1], one at a time; raises as `unit_frame`."""
    instance = read_instance(member.located.path, limits=maps.limits)
    pixels = frames.pixel_format(instance)
    for index in range(pixels.number_of_frames):
        yield unit_frame(member, instance, pixels, index, maps, region)
