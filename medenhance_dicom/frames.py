"""Stored pixel values <-> what they mean.

Three value spaces: `stored` is what the file holds (legal range given by Bits Stored and Pixel Representation),
`modality` is what the modality means (Hounsfield units, say), and units in [0, 1] are `intensity`'s business.
Order of the steps after PS3.3 C.7.6.3 (Image Pixel), C.11.1 (Modality LUT), C.11.2 (VOI LUT), C.7.6.16 (functional
groups).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydicom import Dataset

from medenhance_dicom.errors import DerivationError, UnreadableInstanceError, UnsupportedInstanceError
from medenhance_dicom.overlays import embedded_planes, planes_in
from medenhance_dicom.palette import look_up, palette_of
from medenhance_dicom.transfer_syntaxes import has_cells, kind_of
from medenhance_dicom.unused_bits import check_overshoot, check_unused

Array = npt.NDArray[Any]

_GRAY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "XYB")
_RETIRED = ("ARGB", "CMYK", "HSV", "YBR_PARTIAL_422")


@dataclass(frozen=True)
class PixelFormat:
    """What the frames of one instance look like after `stored_frame`."""

    rows: int
    columns: int
    samples: int
    """1, or 3 (also after palette or YBR became RGB)."""
    number_of_frames: int
    bits_allocated: int
    bits_stored: int
    signed: bool
    photometric_out: str
    """MONOCHROME1, MONOCHROME2 or RGB."""
    dtype: np.dtype[Any]
    """Native byte order, exactly `bits_allocated` wide."""
    minimum: int
    maximum: int
    """The legal stored range, both ends included."""


@dataclass(frozen=True)
class StoredFrame:
    """One frame of stored values.

    stored: (H, W, C) in the format's dtype, bits above Bits Stored cleared or sign-extended.
    padding: bool (H, W), True where the pixel is padding; None without a Pixel Padding Value.
    padding_values: the stored values (lowest, highest) that mean padding and that no other pixel may take.
    overlays: group -> bool (H, W), planes that lay in the pixel cells beside the sample (retired PS3.3 C.9.2).
    """

    stored: Array
    padding: npt.NDArray[np.bool_] | None = None
    padding_values: tuple[int, int] | None = None
    overlays: Mapping[int, npt.NDArray[np.bool_]] = field(default_factory=dict)


@dataclass(frozen=True)
class ModalityLine:
    """modality = slope * stored + intercept (PS3.3 C.11.1)."""

    slope: float
    intercept: float


@dataclass(frozen=True)
class _Cells:
    """The pixel cell as the file has it (PS3.5 section 8.1.1), before palette and colour conversion."""

    allocated: int
    stored: int
    high_bit: int
    signed: bool


def _integer(instance: Dataset, keyword: str, default: int | None = None) -> int:
    value = instance.get(keyword)
    if value is None or value == "":
        if default is None:
            raise UnreadableInstanceError("missing", keyword=keyword)
        return default
    if not isinstance(value, int):
        raise UnreadableInstanceError("is not one whole number", keyword=keyword)
    return int(value)


def _bounded(instance: Dataset, keyword: str, low: int, high: int, default: int | None = None) -> int:
    value = _integer(instance, keyword, default)
    if not low <= value <= high:
        raise UnreadableInstanceError(f"lies outside {low}..{high}", keyword=keyword)
    return value


def _values(item: Dataset, keyword: str) -> list[float | None]:
    """The values of a DS or FD attribute in their places, None for those that are empty or no finite number."""
    value = item.get(keyword)
    values = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    return [float(v) if isinstance(v, int | float) and math.isfinite(v) else None for v in values]


def _cells(instance: Dataset) -> _Cells:
    allocated = _integer(instance, "BitsAllocated")
    if allocated not in (8, 16):
        if 1 <= allocated <= 64:
            raise UnsupportedInstanceError("BITS", f"{allocated} bits allocated; 8 and 16 are handled")
        raise UnreadableInstanceError("is not a legal width", keyword="BitsAllocated")
    stored = _bounded(instance, "BitsStored", 1, allocated)
    if stored == 1:
        raise UnsupportedInstanceError("BITS", "one bit stored is not a picture")
    high_bit = _bounded(instance, "HighBit", stored - 1, allocated - 1, default=stored - 1)
    return _Cells(allocated, stored, high_bit, bool(_bounded(instance, "PixelRepresentation", 0, 1)))


def pixel_format(instance: Dataset) -> PixelFormat:
    """Say what the instance's frames will look like, from the header alone.

    Args:
        instance: Header; pixel data is not needed.

    Returns:
        The format after decoding: palette becomes 8-bit RGB, YBR becomes RGB (PS3.3 C.7.6.3.1).

    Raises:
        UnreadableInstanceError: An attribute of the Image Pixel module is missing or nonsense; `keyword` says which.
        UnsupportedInstanceError: `BITS` for 1-bit, more than 16 bits or float pixels; `PHOTOMETRIC` for others.
    """
    rows = _bounded(instance, "Rows", 1, 65535)
    columns = _bounded(instance, "Columns", 1, 65535)
    samples = _integer(instance, "SamplesPerPixel")
    number_of_frames = _bounded(instance, "NumberOfFrames", 0, 2**31 - 1, default=1) or 1
    cells = _cells(instance)
    photometric = instance.get("PhotometricInterpretation")
    if not isinstance(photometric, str) or not photometric:
        text = "is not one value" if photometric else "missing"
        raise UnreadableInstanceError(text, keyword="PhotometricInterpretation")
    if photometric not in (*_GRAY, *_COLOUR, "PALETTE COLOR"):
        name = photometric if photometric in _RETIRED else "a photometric interpretation that"
        raise UnsupportedInstanceError("PHOTOMETRIC", f"{name} is not handled")
    if samples != (3 if photometric in _COLOUR else 1):
        raise UnreadableInstanceError("does not fit the photometric interpretation", keyword="SamplesPerPixel")
    if photometric == "PALETTE COLOR":
        eight = np.dtype(np.uint8)
        return PixelFormat(rows, columns, 3, number_of_frames, 8, 8, False, "RGB", eight, 0, 255)
    if samples == 3 and cells.signed:
        raise UnreadableInstanceError("colour samples cannot be signed", keyword="PixelRepresentation")
    minimum = -(1 << cells.stored - 1) if cells.signed else 0
    return PixelFormat(
        rows=rows,
        columns=columns,
        samples=samples,
        number_of_frames=number_of_frames,
        bits_allocated=cells.allocated,
        bits_stored=cells.stored,
        signed=cells.signed,
        photometric_out=photometric if samples == 1 else "RGB",
        dtype=np.dtype(f"{'i' if cells.signed else 'u'}{cells.allocated // 8}"),
        minimum=minimum,
        maximum=minimum + (1 << cells.stored) - 1,
    )


def _stored_values(instance: Dataset, raw: Array, cells: _Cells) -> Array:
    """Shift by High Bit, mask above Bits Stored, extend the sign. raw: unsigned cells, (H, W, samples).

    Raises:
        UnreadableInstanceError: As `check_unused` and `check_overshoot`.
    """
    syntax = getattr(getattr(instance, "file_meta", None), "TransferSyntaxUID", None)
    in_cells = syntax is None or has_cells(syntax)  # a codestream's samples always start at bit 0 (PS3.5 8.2)
    high_bit = cells.high_bit if in_cells else cells.stored - 1
    full = (1 << cells.stored) - 1
    planes = embedded_planes(instance)
    if kind_of(syntax or "") == "lossy" and not cells.signed and not planes:  # such a codec overshoots
        check_overshoot(raw, stored=cells.stored)
        raw = np.minimum(raw, full)
    elif cells.stored < cells.allocated:
        check_unused(
            raw,
            stored=cells.stored,
            high_bit=high_bit,
            signed=cells.signed,
            overlay_bits=planes.values(),
            padding=_padding_cell(instance, cells) if raw.shape[2] == 1 else None,
        )
        raw = (raw >> (high_bit + 1 - cells.stored)) & raw.dtype.type(full)
    if not cells.signed:
        return raw
    sign = 1 << (cells.stored - 1)
    extended = (raw.astype(np.int32) ^ sign) - sign
    return extended.astype(np.dtype(f"i{cells.allocated // 8}"))


def _padding_cell(instance: Dataset, cells: _Cells) -> int | None:
    """The raw cell that means padding; writers mix US and SS: -2000 and 63536 are the same."""
    if instance.get("PixelPaddingValue") in (None, ""):
        return None
    return _integer(instance, "PixelPaddingValue") % (1 << cells.allocated)


def _padding_range(instance: Dataset, cells: _Cells, low: int, high: int) -> tuple[int, int, int] | None:
    """(lowest, highest, raw cell) that mean padding; lowest > highest when no legal value does. PS3.3 C.7.5.1.1.2."""
    cell = _padding_cell(instance, cells)
    if cell is None:
        return None
    width = 1 << cells.allocated

    def in_stored_domain(value: int) -> int:
        value %= width
        return value - width if cells.signed and value >= width // 2 else value

    value = _integer(instance, "PixelPaddingValue")
    first = in_stored_domain(value)
    last = in_stored_domain(_integer(instance, "PixelPaddingRangeLimit", default=value))
    return max(min(first, last), low), min(max(first, last), high), cell


def stored_frame(instance: Dataset, decoded: Array, index: int) -> StoredFrame:
    """Turn one decoded frame into stored values: high-bit shift, mask, sign extension, palette to RGB, padding.

    Args:
        instance: Header of the instance.
        decoded: (rows, columns) or (rows, columns, samples), as `Decoder.frame` gives it.
        index: Zero-based frame number.

    Returns:
        The frame as (H, W, C) in `pixel_format(instance).dtype`.

    Raises:
        UnreadableInstanceError: The decoded array does not fit the header, or the palette is broken.
        UnsupportedInstanceError: As `pixel_format`.
    """
    pixels = pixel_format(instance)
    cells = _cells(instance)
    palette = instance.PhotometricInterpretation == "PALETTE COLOR"
    samples = 1 if palette else pixels.samples
    if not 0 <= index < pixels.number_of_frames:
        raise UnreadableInstanceError(f"has no frame {index + 1}", keyword="NumberOfFrames")
    if decoded.size != pixels.rows * pixels.columns * samples or decoded.shape[:2] != (pixels.rows, pixels.columns):
        raise UnreadableInstanceError("the decoded frame has another size than the header says", keyword="PixelData")
    if decoded.dtype.kind not in "iu" or decoded.dtype.itemsize * 8 != cells.allocated:
        raise UnreadableInstanceError("the decoded frame has other bits than the header says", keyword="BitsAllocated")
    native = np.ascontiguousarray(decoded, dtype=decoded.dtype.newbyteorder("="))
    raw = native.view(f"u{cells.allocated // 8}").reshape(pixels.rows, pixels.columns, samples)
    stored = _stored_values(instance, raw, cells)
    overlays = planes_in(raw[..., 0], _embedded_planes(instance)) if samples == 1 else {}
    if palette:
        return StoredFrame(look_up(palette_of(instance), stored[..., 0]), overlays=overlays)
    span = _padding_range(instance, cells, pixels.minimum, pixels.maximum) if samples == 1 else None
    if span is None:
        return StoredFrame(stored, overlays=overlays)
    low, high, cell = span
    padding = (raw[..., 0] == cell) | ((stored[..., 0] >= low) & (stored[..., 0] <= high))
    return StoredFrame(stored, padding, (low, high) if low <= high else None, overlays)


def _embedded_planes(instance: Dataset) -> dict[int, int]:
    """Overlay planes in the pixel cells; a lossy codec keeps none."""
    syntax = getattr(getattr(instance, "file_meta", None), "TransferSyntaxUID", None)
    return {} if kind_of(syntax or "") == "lossy" else embedded_planes(instance)


def _group_item(instance: Dataset, index: int, keyword: str) -> Dataset | None:
    """The functional group macro `keyword` of one frame: its own, else the shared one (PS3.3 C.7.6.16)."""
    per_frame = instance.get("PerFrameFunctionalGroupsSequence")
    shared = instance.get("SharedFunctionalGroupsSequence")
    groups = [per_frame[index]] if isinstance(per_frame, Sequence) and 0 <= index < len(per_frame) else []
    groups += list(shared[:1]) if isinstance(shared, Sequence) else []
    for group in groups:
        items = group.get(keyword)
        if isinstance(items, Sequence) and len(items) and isinstance(items[0], Dataset):
            return items[0]
    return None


def modality_line(instance: Dataset, index: int) -> ModalityLine:
    """The line from stored to modality values of one frame.

    Per-frame or shared Pixel Value Transformation first, then Rescale Slope and Intercept. Colour frames and
    instances with a Modality LUT Sequence get the identity: their values are compared in the stored domain, since a
    table need not be invertible.

    Raises:
        UnreadableInstanceError: A slope or intercept that is there but is no finite number.
    """
    if instance.get("SamplesPerPixel") == 3 or instance.get("ModalityLUTSequence"):
        return ModalityLine(1.0, 0.0)
    item = _group_item(instance, index, "PixelValueTransformationSequence") or instance
    values = {}
    for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0)):
        number = (_values(item, keyword) or [None])[0]
        if number is None and item.get(keyword) not in (None, ""):
            raise UnreadableInstanceError("is not a finite number", keyword=keyword)
        values[keyword] = default if number is None else number
    return ModalityLine(values["RescaleSlope"] or 1.0, values["RescaleIntercept"])


def voi_windows(instance: Dataset, index: int) -> list[tuple[float, float]]:
    """The (low, high) modality values that the instance itself asks to be shown, in its order (PS3.3 C.11.2).

    Windows with a usable width: LINEAR c-0.5-(w-1)/2 .. c-0.5+(w-1)/2, LINEAR_EXACT c-w/2 .. c+w/2, and SIGMOID
    c-w .. c+w, where the curve has passed from 2 % to 98 %. A LINEAR width of 1 or less, which C.11.2.1.2.1 excludes
    and scanners with a tiny slope write, is taken for LINEAR_EXACT. Then the input range of the first VOI LUT. The
    frame's own Frame VOI LUT goes before the instance's window.

    Returns:
        Empty when there is none, for colour, and behind a Modality LUT (see `modality_line`).
    """
    if instance.get("SamplesPerPixel") == 3 or instance.get("ModalityLUTSequence"):
        return []
    item = _group_item(instance, index, "FrameVOILUTSequence") or instance
    function = item.get("VOILUTFunction") or "LINEAR"
    found = []
    for centre, width in zip(_values(item, "WindowCenter"), _values(item, "WindowWidth"), strict=False):
        if centre is None or width is None:
            continue
        exact = 0.0, width / 2
        linear = (0.5, (width - 1) / 2) if width > 1 else exact
        shift, half = {"LINEAR": linear, "SIGMOID": (0.0, width)}.get(function, exact)
        if half > 0:
            found.append((centre - shift - half, centre - shift + half))
    tables = instance.get("VOILUTSequence")
    if isinstance(tables, Sequence) and len(tables) and isinstance(tables[0], Dataset):
        descriptor = tables[0].get("LUTDescriptor")
        if isinstance(descriptor, Sequence) and len(descriptor) == 3 and all(isinstance(v, int) for v in descriptor):
            count, first = int(descriptor[0]) % 65536 or 65536, int(descriptor[1])
            if first >= 32768 and instance.get("PixelRepresentation") == 1:
                first -= 65536  # SS written as US
            if count > 1:
                found.append((float(first), float(first + count - 1)))
    return found


def to_modality(stored: Array, line: ModalityLine) -> npt.NDArray[np.float32]:
    """Return slope * stored + intercept as float32, in the shape of `stored`; infinite beyond its range."""
    with np.errstate(over="ignore"):
        return (stored.astype(np.float64) * line.slope + line.intercept).astype(np.float32)


def encode_residual(frame: StoredFrame, delta_modality: Array, line: ModalityLine, pixels: PixelFormat) -> Array:
    """Add a change, given in modality values, to the stored values (design, decision 4).

    Rounds half to even, clips to the legal range, moves changed pixels off the padding values, and gives padding
    pixels back bit for bit. Where the change is 0, so is the difference.

    Args:
        frame: The source frame.
        delta_modality: (H, W, C) float, finite.
        line: The frame's modality line.
        pixels: The source's format.

    Returns:
        stored: (H, W, C) in `pixels.dtype`.

    Raises:
        DerivationError: Another shape, or a change that is not finite.
    """
    if delta_modality.shape != frame.stored.shape:
        raise DerivationError("the change has another shape than the frame")
    value = frame.stored + delta_modality.astype(np.float64) / line.slope
    if not np.isfinite(value).all():
        raise DerivationError("the change is not finite everywhere")
    value = np.clip(np.rint(value, out=value), pixels.minimum, pixels.maximum)
    if frame.padding_values is not None:
        low, high = frame.padding_values
        lands = (value >= low) & (value <= high)
        value[lands] = np.where(frame.stored[lands] > high, high + 1, low - 1)
    stored = value.astype(pixels.dtype)
    if frame.padding is not None:
        stored[frame.padding] = frame.stored[frame.padding]
    return stored
