"""Honest and altered pairs without end, to learn the gate's detector from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from medenhance_dicom.calibration.fields import smooth_fields
from medenhance_dicom.calibration.honest import METHODS, SOURCES, conventional
from medenhance_dicom.calibration.measuring import Prepared, area_means
from medenhance_dicom.gate import colour
from medenhance_dicom.gate.alterations import alter
from medenhance_dicom.gate.detector import planes
from medenhance_dicom.gate.working import prepare
from medenhance_dicom.masks import field_of_view

__all__ = ["Example", "Examples", "Sees", "store_pairs"]

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]

Sees = Literal["structure", "colour"]
"""What a detector learns to see: everything in `OFTEN`, or colour alone in `COLOUR_OFTEN`."""
ALTERED = 0.6  # of the examples; where a picture has no place for an alteration it stays honest
OFTEN = {"invented lesion": 3, "erased lesion": 3, "recoloured lesion": 1, "faded lesion": 0.5, "erased vessel": 4,
         "added vessel": 2, "warp": 4, "inversion": 0.5, "inverted region": 1, "swapped patch": 1,
         "invented texture": 1}  # fmt: skip
COLOUR_OFTEN = {"recoloured lesion": 2.0, "faded lesion": 1.0}
BOUNDS = {"invented lesion": (2.5, 22), "erased lesion": (2.5, 22), "recoloured lesion": (3, 22),
          "faded lesion": (3, 22), "erased vessel": (14, 42), "added vessel": (14, 42), "warp": (1.5, 4),
          "inversion": (1, 1), "inverted region": (14, 42), "swapped patch": (10, 34),
          "invented texture": (10, 34)}  # fmt: skip
"""Kind -> smallest and largest size; drawn evenly on a logarithmic scale, so small ones come as often as large ones."""
BY_NETWORK = 0.55
BY_FIELDS = 0.3  # of those that learn colour, in place of a network or a conventional method
OTHER_STRENGTH = 0.25  # of a network's results are weakened or strengthened
CHAINED = 0.25  # of the honest results go through one more conventional method
GREY_FRACTION, NEGATIVE_FRACTION, SMALLER_FRACTION = 0.12, 0.04, 0.15


@dataclass(frozen=True)
class Example:
    """One pair."""

    before: Unit
    """(H, W, C) in [0, 1], C = 1 or 3 (RGB)."""
    after: Unit
    inside: Mask
    """(H, W), where the enhancer may have worked."""
    truth: Mask
    """(H, W), what was altered; nothing of an honest pair."""
    kind: str | None
    """A key of `alterations.KINDS`; None: honest."""


def store_pairs(path: Path, picture: Unit, enhancers: Sequence[Prepared], rng: np.random.Generator) -> None:
    """Write a picture as it is and a little worse, with what networks make of both, to draw examples from.

    Args:
        path: A .npz: b0 and b1 (H, W, C), of the k-th enhancer a0-k, a1-k and the masks i0-k, i1-k (H, W).
        picture: (H, W, C) in [0, 1], at working size.
        enhancers: Of this kind of picture; none is fine.
        rng: Decides how the second becomes worse.
    """
    found: dict[str, NDArray[Any]] = {}
    for j, name in enumerate(("as it is", str(rng.choice(list(SOURCES)[1:])))):
        before = np.clip(SOURCES[name](picture, rng), 0, 1).astype(np.float32)
        found[f"b{j}"] = before.astype(np.float16)
        for k, prepared in enumerate(enhancers):
            found[f"a{j}-{k}"] = prepared.recipe.enhance_picture(before).astype(np.float16)
            found[f"i{j}-{k}"] = prepared.recipe.region(before, None)
    part = path.with_suffix(".part.npz")
    np.savez(part, **found)  # type: ignore[arg-type]
    part.replace(path)


class Examples(torch.utils.data.Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Example number i of a run, always the same: planes (7, S, S), truth (S, S) and whether structure was moved.

    Args:
        files: What `store_pairs` wrote.
        side: S, in pixels; smaller frames are filled up with what lies outside every field.
        seed: Of the run.
        sees: Of colour the planes are (11, S / 2, S / 2).
    """

    def __init__(self, files: Sequence[Path], side: int, seed: int, sees: Sees = "structure") -> None:
        self.files, self.side, self.seed, self.sees = files, side, seed, sees
        self._read: dict[Path, dict[str, NDArray[Any]]] = {}

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        rng = np.random.default_rng((self.seed, number))
        path = self.files[int(rng.integers(len(self.files)))]
        if path not in self._read:
            with np.load(path) as stored:
                self._read[path] = dict(stored)
        found = example(self._read[path], rng, self.sees)
        prepared, altered, half = prepare(found.before, found.after, found.inside), found.truth, 1
        if self.sees == "colour":
            half = 2
            if colour.halving(prepared) == 1:  # twice as large as half of it
                altered = altered.repeat(2, 0).repeat(2, 1)
        top, left = (corner // half * half for corner in _window(altered, self.side, rng))
        pair = planes(prepared) if half == 1 else colour.planes(prepared)
        pair = _cut(pair, (top // half, left // half), self.side // half)
        truth = _cut(torch.from_numpy(altered)[None], (top, left), self.side)
        for turned in (k for k in range(3) if rng.random() < 0.5):
            pair, truth = (x.transpose(1, 2) if turned == 2 else x.flip(1 + turned) for x in (pair, truth))
        return pair.contiguous(), truth[0].float().contiguous(), torch.tensor(found.kind == "warp")


def example(stored: dict[str, NDArray[Any]], rng: np.random.Generator, sees: Sees = "structure") -> Example:
    """An honest pair, most often with an alteration in it.

    Args:
        stored: As `store_pairs` wrote it.
        rng: Decides on everything that is drawn.
        sees: Whether it is for a detector of structure, or of colour.
    """
    kinds = OFTEN if sees == "structure" else COLOUR_OFTEN
    before, after, inside = _honest(stored, rng) if sees == "structure" else _honest_colour(stored, rng)
    if rng.random() < ALTERED:
        often = np.array(list(kinds.values()))
        kind = str(rng.choice(list(kinds), p=often / often.sum()))
        size = float(np.exp(rng.uniform(*np.log(BOUNDS[kind]))))
        altered = alter(kind, before, after, size, rng, inside=inside)
        if altered is not None:
            return Example(altered.before, altered.after, inside, altered.truth, kind)
    return Example(before, after, inside, np.zeros(inside.shape, bool), None)


def _honest(
    stored: dict[str, NDArray[Any]], rng: np.random.Generator, *, coloured: bool = False
) -> tuple[Unit, Unit, Mask]:
    j = int(rng.integers(2))
    before = stored[f"b{j}"].astype(np.float32)
    made = [name for name in stored if name.startswith(f"a{j}-")]
    if made and rng.random() < BY_NETWORK:
        name = made[int(rng.integers(len(made)))]
        after, inside = stored[name].astype(np.float32), stored["i" + name[1:]]
        if rng.random() < OTHER_STRENGTH:
            after = np.clip(before + rng.uniform(0.4, 1.2) * (after - before), 0, 1)
        before, after, inside = _another_look(before, after, inside, rng, coloured)
        rounds = int(rng.random() < CHAINED)
    else:
        inside = field_of_view(before, "border")
        before, after, inside = _another_look(before, before, inside, rng, coloured)
        rounds = 1 + int(rng.random() < CHAINED)
    for _ in range(rounds):
        after = conventional(str(rng.choice(list(METHODS))), after, inside, rng)
    return before, after, inside


def _honest_colour(stored: dict[str, NDArray[Any]], rng: np.random.Generator) -> tuple[Unit, Unit, Mask]:
    if rng.random() >= BY_FIELDS:
        return _honest(stored, rng, coloured=True)
    before = stored[f"b{int(rng.integers(2))}"].astype(np.float32)
    inside = field_of_view(before, "border")
    return before, smooth_fields(before, inside, rng), inside


def _another_look(
    before: Unit, after: Unit, inside: Mask, rng: np.random.Generator, coloured: bool
) -> tuple[Unit, Unit, Mask]:
    """Now and then one plane of a colour picture, its negative, the same smaller: other modalities are not at hand."""
    if not coloured and before.shape[2] == 3 and rng.random() < GREY_FRACTION:
        plane = int(rng.integers(3))
        before, after = (x[..., plane : plane + 1] for x in (before, after))
    if not coloured and rng.random() < NEGATIVE_FRACTION:
        before, after = 1 - before, 1 - after
    if rng.random() < SMALLER_FRACTION:
        share = rng.uniform(0.5, 0.95)
        size = max(64, round(inside.shape[0] * share)), max(64, round(inside.shape[1] * share))
        before, after = (area_means(x, size) for x in (before, after))
        inside = area_means(inside[..., None].astype(np.float32), size)[..., 0] > 0.99
    return before, np.ascontiguousarray(after, np.float32), inside


def _window(truth: Mask, side: int, rng: np.random.Generator) -> tuple[int, int]:
    """The corner of a window; one that shows some of what was altered, nine times in ten."""
    places = np.argwhere(truth)
    rooms = [max(0, length - side) for length in truth.shape]
    if len(places) and rng.random() < 0.9:
        place = places[int(rng.integers(len(places)))]
        top, left = (int(np.clip(p - rng.integers(side), 0, room)) for p, room in zip(place, rooms, strict=True))
        return top, left
    return int(rng.integers(rooms[0] + 1)), int(rng.integers(rooms[1] + 1))


def _cut(x: Tensor, window: tuple[int, int], side: int) -> Tensor:
    """(K, S, S) of (K, H, W), filled up with zeros."""
    cut = x[:, window[0] : window[0] + side, window[1] : window[1] + side]
    return functional.pad(cut, (0, side - cut.shape[2], 0, side - cut.shape[1]))
