"""What is measured of a frame before and after enhancement: the published LaSSIM, and checks for what it misses."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CHECKS", "FrameScores", "Region", "detail_of", "examine", "structure_map"]

if TYPE_CHECKING:
    from torch import Tensor

Unit = NDArray[np.floating[Any]]

CHECKS = ("local", "displacement", "inversion", "blur", "colour")
SMALLEST = 32
"""Rows and columns from which on the checks say something."""
FAINT = 0.1  # a statistic that is nowhere larger has no worst place
PROMINENT = 0.5  # a region is what hangs together with the worst place at this share of its value


@dataclass(frozen=True)
class Region:
    """A part of a frame, in pixels; `bottom` and `right` are beyond it."""

    top: int
    left: int
    bottom: int
    right: int

    def __str__(self) -> str:
        return f"rows {self.top + 1}-{self.bottom}, columns {self.left + 1}-{self.right}"


@dataclass(frozen=True)
class FrameScores:
    """What was measured of one frame; small, so that an instance of any length can keep them all."""

    lassim: float | None
    """NaN for non-finite values, None for a frame below 7 x 7."""
    checks: dict[str, float] = field(default_factory=dict)
    """Check -> its statistic; the larger, the worse. Empty where `lassim` is no number, and below 32 x 32 pixels."""
    regions: dict[str, Region] = field(default_factory=dict)
    """Check -> where its statistic is worst; not of one that is next to nothing everywhere."""
    detail: float | None = None
    """How much fine detail the source shows, `working.seen_detail`, by which a calibration tells really poor pictures;
    None where there are no checks."""

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def examine(before: Unit, after: Unit, *, level: int = 3, inside: NDArray[np.bool_] | None = None) -> FrameScores:
    """Measure one frame: LaSSIM in double precision, and the checks at 384 pixels of the longer side or fewer.

    local: how sure the detector is that structure was invented, erased or changed somewhere, log(1 + odds).
    displacement: how sure it is that structure was moved, log(1 + odds); see `detector.altered_maps`.
    inversion: 1 - the lowest local correlation, in [0, 2]; above 1 local contrast has changed its sign.
    blur: how much less of the fine detail than of the coarse is left along strong edges; 1: nothing lost.
    colour: how sure it is that a spot changed its colour alone, log(1 + odds); see `colour.colour_map`.

    Args:
        before: (H, W, C) in [0, 1], C = 1 or 3 (RGB).
        after: The same shape.
        level: LaSSIM's Laplacian level.
        inside: (H, W), where the enhancer may have changed something; None: everywhere. LaSSIM looks everywhere.

    Raises:
        ValueError: The shapes differ.
        ModelError: A detector's weights are missing or altered. Where the manifest has no detector at all, `local`
            and `displacement` are not measured, nor `colour` where it has none of colour.
    """
    import torch

    from medenhance_dicom.lassim import WINDOW, lassim

    _require_pair(before, after)
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return FrameScores(math.nan)
    height, width = before.shape[:2]
    if min(height, width) < WINDOW:
        return FrameScores(None)
    with torch.inference_mode(), one_thread():
        a, b = (torch.from_numpy(x.astype(np.float64)).permute(2, 0, 1)[None] for x in (before, after))
        score = lassim(a, b, level).item()
        if min(height, width) < SMALLEST:
            return FrameScores(score)
        if np.array_equal(before, after):
            return FrameScores(score, dict.fromkeys(CHECKS, 0.0) | {"blur": 1.0})
        maps, sharpness, detail = _measured(before, after, inside)
        checks = {name: float(values.max()) for name, values in maps.items()} | {"blur": sharpness}
        regions = {n: _worst_region(m, (height, width)) for n, m in maps.items() if checks[n] > FAINT}
        return FrameScores(score, checks, regions, detail)


def structure_map(
    before: Unit, after: Unit, inside: NDArray[np.bool_] | None = None, check: str = "local"
) -> NDArray[np.float32]:
    """Where a check objects, and how much; divided by its limit, it objects from 1 up.

    Args:
        before: (H, W, C) in [0, 1], C = 1 or 3 (RGB), finite.
        after: The same shape.
        inside: (H, W), where the enhancer may have changed something; None: everywhere.
        check: `local`, `displacement` or `colour`.

    Returns:
        (H, W), 0 and up; its largest value is that of the check. 0 below 32 x 32 pixels and without detector.

    Raises:
        ValueError: The shapes differ.
        ModelError: As `examine`.
    """
    import torch
    from torch.nn import functional

    _require_pair(before, after)
    size = before.shape[:2]
    if min(size) < SMALLEST or np.array_equal(before, after):
        return np.zeros(size, np.float32)
    from medenhance_dicom.gate.colour import colour_map
    from medenhance_dicom.gate.detector import altered_maps
    from medenhance_dicom.gate.working import prepare

    with torch.inference_mode(), one_thread():
        pair = prepare(before, after, inside)
        found = (colour_map(pair) if check == "colour" else altered_maps(pair)).get(check)
        if found is None:
            return np.zeros(size, np.float32)
        full = functional.interpolate(found[None, None], size=size, mode="nearest")[0, 0]
        return full.numpy().astype(np.float32)


def detail_of(before: Unit, inside: NDArray[np.bool_] | None = None) -> float | None:
    """`FrameScores.detail` of a source (H, W, 1 or 3) in [0, 1] by itself."""
    import torch

    from medenhance_dicom.gate.working import prepare, seen_detail

    if min(before.shape[:2]) < SMALLEST:
        return None
    with torch.inference_mode(), one_thread():
        pair = prepare(before, before, inside)
        return seen_detail(pair.before, pair.inside)


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch use one thread: frames of this size gain little from more.

    Where other processes want the cores, several wait for each other spinning: seen to cost twenty times as much.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _measured(
    before: Unit, after: Unit, inside: NDArray[np.bool_] | None
) -> tuple[dict[str, Tensor], float, float | None]:
    """The maps of the checks, (h, w) of any size each, the blur of the frame, and the detail that the source shows."""
    from medenhance_dicom.gate.blur import lost_sharpness
    from medenhance_dicom.gate.colour import colour_map
    from medenhance_dicom.gate.detector import altered_maps
    from medenhance_dicom.gate.inversion import correlation_map
    from medenhance_dicom.gate.working import prepare, seen_detail

    pair = prepare(before, after, inside)
    maps = altered_maps(pair) | {"inversion": correlation_map(pair)} | colour_map(pair)
    return maps, lost_sharpness(pair), seen_detail(pair.before, pair.inside)


def _worst_region(found: Tensor, shape: tuple[int, int]) -> Region:
    """The box of the worst place of a map, in pixels of a frame of (H, W) `shape`."""
    from scipy.ndimage import find_objects, label

    values = found.numpy()
    row, column = np.unravel_index(values.argmax(), values.shape)
    parts, _ = label(values >= PROMINENT * values[row, column])
    rows, columns = find_objects(parts)[parts[row, column] - 1]
    down, across = (size / cells for size, cells in zip(shape, values.shape, strict=True))
    return Region(
        int(rows.start * down),
        int(columns.start * across),
        math.ceil(rows.stop * down),
        math.ceil(columns.stop * across),
    )


def _require_pair(before: Unit, after: Unit) -> None:
    if before.shape != after.shape or before.ndim != 3 or before.shape[2] not in (1, 3):
        raise ValueError(f"two (H, W, 1 or 3) of one shape wanted, not {before.shape} and {after.shape}")
