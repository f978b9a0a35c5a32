"""Pictures for training: held in memory, drawn by (seed, step), so a resumed run draws what it would have drawn."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation
from torch import Tensor

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.guides import PICTURE_SUFFIXES
from medenhance_dicom.training.degradation import DEGRADATIONS, Picture, flatten_light, lift_veil
from medenhance_dicom.training.recipe import Data, Pictures, TrainingRecipe

FULL = np.float32(255)
Truth = NDArray[Any]
"""Of a task: a mask (size, size, 1), a place (2,), a level or a quality ()."""
FUNDUS_FLOOR = 12  # grey level below which a fundus photograph's surround lies


def list_pictures(root: Path, choice: Pictures) -> list[Path]:
    """The files of one `Pictures` table, sorted by name, numbers in it by value.

    Raises:
        RecipeError: The folder or the table is missing, or nothing is left.
    """
    folder = root / choice.folder
    files = sorted((p for p in folder.glob(choice.pattern) if p.suffix.lower() in PICTURE_SUFFIXES), key=_by_number)
    if choice.table:
        value = read_table(root / choice.table, (choice.column,) if choice.column else ())
        files = [p for p in files if p.name in value]
        if choice.column:
            low = -np.inf if choice.at_least is None else choice.at_least
            high = np.inf if choice.at_most is None else choice.at_most
            files = [p for p in files if low <= value[p.name][0] <= high]
    files = files[round(choice.first * len(files)) : round(choice.last * len(files))]
    if not files:
        raise RecipeError(f"{folder}: no pictures match {choice.pattern!r}")
    return files


def read_table(table: Path, columns: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Numbers of a CSV's columns by its `file` column.

    Raises:
        RecipeError: The table or a column is missing, or a value is no number.
    """
    if not table.is_file():
        raise RecipeError(f"{table}: no such table")
    with table.open(newline="") as handle:
        rows = csv.DictReader(handle)
        for column in ("file", *columns):
            if column not in (rows.fieldnames or ()):
                raise RecipeError(f"{table}: no column {column!r}")
        try:
            return {row["file"]: tuple(float(row[column]) for column in columns) for row in rows}
        except (TypeError, ValueError) as error:
            raise RecipeError(f"{table}: line {rows.line_num}: a value is no number") from error


def _by_number(path: Path) -> list[str | int]:
    # Text and numbers alternate, so that like meets like: frame 9 comes before frame 10.
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


@dataclass(frozen=True)
class Placement:
    """Where a picture of height x width lies in the middle of a square, its longer side being the square's."""

    height: int
    width: int
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width inside the square."""
        scale = self.size / max(self.height, self.width)
        return max(round(self.height * scale), 1), max(round(self.width * scale), 1)

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the square that it fills."""
        (h, w), n = self.shape, self.size
        top, left = (n - h) // 2, (n - w) // 2
        return slice(top, top + h), slice(left, left + w)

    def point(self, row: float, column: float) -> tuple[float, float]:
        """A place in pixels of the picture as fractions of the square; pixel i has its centre at i + 1/2."""
        (h, w), (rows, columns) = self.shape, self.window
        y, x = (row + 0.5) * h / self.height + rows.start, (column + 0.5) * w / self.width + columns.start
        return y / self.size, x / self.size

    def point_back(self, y: float, x: float) -> tuple[float, float]:
        """The reverse of `point`."""
        (h, w), (rows, columns) = self.shape, self.window
        row, column = (y * self.size - rows.start) * self.height / h, (x * self.size - columns.start) * self.width / w
        return row - 0.5, column - 0.5


def squared(picture: Image.Image, channels: int, size: int) -> NDArray[np.uint8]:
    """A picture as (size, size, C): longer side brought to `size`, the rest filled with black."""
    place = Placement(picture.height, picture.width, size)
    height, width = place.shape
    resized = picture.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BOX)
    canvas = np.zeros((size, size, channels), np.uint8)
    canvas[place.window] = np.asarray(resized).reshape(height, width, channels)
    return canvas


def load_picture(path: Path, channels: int, size: int) -> NDArray[np.uint8]:
    """A picture file as `squared` gives it.

    Args:
        path: Picture file.
        channels: 1 or 3.
        size: Side in pixels.
    """
    with Image.open(path) as opened:
        return squared(opened, channels, size)


def _load_each(
    root: Path, choices: Sequence[Pictures], data: Data
) -> Iterator[tuple[Pictures, Path, NDArray[np.uint8]]]:
    for choice in choices:
        for path in list_pictures(root, choice):
            picture = load_picture(path, data.channels, data.size)
            bright = picture[picture.max(axis=2) > FUNDUS_FLOOR]
            if bright.size and bright.mean() / 255 >= choice.minimum_brightness:
                yield choice, path, picture


def _load_all(root: Path, choices: Sequence[Pictures], data: Data) -> list[NDArray[np.uint8]]:
    return [picture for _, _, picture in _load_each(root, choices, data)]


def _load_labelled(
    root: Path, choices: Sequence[Pictures], recipe: TrainingRecipe
) -> list[tuple[NDArray[np.uint8], Truth]]:
    """Pictures with their truth from the tables: a place (2,) as fractions of the square, or a level, int64."""
    for choice in choices:
        if choice.table is None:
            raise RecipeError(f"task: {choice.folder}: a {recipe.task.kind} task needs a table beside its pictures")
    tables = {c.table: read_table(root / str(c.table), recipe.task.columns) for c in choices}
    loaded: list[tuple[NDArray[np.uint8], Truth]] = []
    for choice, path, picture in _load_each(root, choices, recipe.data):
        values = tables[choice.table][path.name]
        if recipe.task.kind == "fovea":
            with Image.open(path) as opened:
                place = Placement(opened.height, opened.width, recipe.data.size)
            row, column = np.mean(np.reshape(values, (2, -1)), axis=1)
            truth: Truth = np.array(place.point(row, column), np.float32)
        else:
            truth = np.array(values[0], np.int64)
            if truth != values[0] or not 0 <= truth < recipe.task.levels:
                raise RecipeError(f"{path}: level {values[0]:g} is none of 0 to {recipe.task.levels - 1}")
        loaded.append((picture, truth))
    return loaded


def _load_masks(root: Path, choices: Sequence[Pictures], size: int, dilate: int) -> list[NDArray[np.bool_]]:
    """Masks (size, size, 1), placed as `load_picture` places their pictures; True where they are above half."""
    masks = [load_picture(path, 1, size) > 127 for choice in choices for path in list_pictures(root, choice)]
    return [binary_dilation(m, np.ones((3, 3, 1)), iterations=dilate) for m in masks] if dilate else masks


def to_batch(pictures: Sequence[Picture]) -> Tensor:
    """Pictures (H, W, C) in [0, 1] -> float32 (B, C, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures).astype(np.float32)).permute(0, 3, 1, 2).mul(2).sub(1).contiguous()


Batch = dict[str, Tensor]


class TrainingPictures:
    """All pictures of a recipe; batches are functions of the random generator that is passed in.

    Every picture in a batch is (B, C, size, size) in [-1, 1]. Names: `low` and `high` are unpaired, `pair_low` and
    `pair_high` aligned, `guide` is any high one, `task_low` has its truth in `task_target`.
    """

    def __init__(self, root: Path, recipe: TrainingRecipe) -> None:
        self.recipe, self.data = recipe, recipe.data
        data, task = recipe.data, recipe.task
        self.low, self.high = _load_all(root, data.low, data), _load_all(root, data.high, data)
        self.pairs_low = _load_all(root, data.pairs_low, data)
        self.pairs_high = _load_all(root, data.pairs_high, data)
        self.validation_low = _load_all(root, data.validation_low, data)
        self.validation_high = _load_all(root, data.validation_high, data)
        if len(self.pairs_low) != len(self.pairs_high):
            raise RecipeError(f"{len(self.pairs_low)} low and {len(self.pairs_high)} high halves do not make pairs")
        self.degrade = DEGRADATIONS.get(data.degradation)
        self.task = self._with_truth(root, task.pictures, task.masks)
        self.task_validation = self._with_truth(root, task.validation_pictures, task.validation_masks)

    def _with_truth(
        self, root: Path, pictures: list[Pictures], masks: list[Pictures]
    ) -> list[tuple[NDArray[np.uint8], Truth]]:
        if self.recipe.task.kind != "segmentation":
            return _load_labelled(root, pictures, self.recipe)
        loaded = _load_all(root, pictures, self.data)
        truth = _load_masks(root, masks, self.data.size, self.recipe.task.dilate)
        if len(loaded) != len(truth):
            raise RecipeError(f"{len(loaded)} pictures of the task and {len(truth)} masks")
        return list(zip(loaded, truth, strict=True))

    def unpaired(self, rng: np.random.Generator) -> Batch:
        """`low`, `high`; with them `pair_low`, `pair_high` and the task's where the recipe weighs them."""
        batch = self.recipe.schedule.batch
        low = [_turn(self.low[i] / FULL, rng) for i in rng.integers(0, len(self.low), batch)]
        high = [_turn(self.high[i] / FULL, rng) for i in rng.integers(0, len(self.high), batch)]
        out = {"low": to_batch(low), "high": to_batch(high)}
        if self.recipe.weights.paired:
            out |= self._pairs(rng, batch)
        if self.recipe.task.mode != "none":
            out |= self.of_task(rng)
        return out

    def supervised(self, rng: np.random.Generator) -> Batch:
        """`pair_low`, `pair_high`, and for HQG-Net as many of `guide`."""
        batch = self.recipe.schedule.warm_up_batch
        out = self._pairs(rng, batch)
        if self.recipe.method == "hqgnet":
            out["guide"] = to_batch([self.high[i] / FULL for i in rng.integers(0, len(self.high), batch)])
        return out

    def both_kinds(self, rng: np.random.Generator) -> Batch:
        """`pictures` of high and low quality, half each."""
        half = max(self.recipe.schedule.pretrain_batch // 2, 1)
        chosen = [self.low[i] for i in rng.integers(0, len(self.low), half)]
        chosen += [self.high[i] for i in rng.integers(0, len(self.high), half)]
        return {"pictures": to_batch([_turn(p / FULL, rng) for p in chosen])}

    def of_task(self, rng: np.random.Generator) -> Batch:
        """`task_low` and `task_target`, whatever the task."""
        draws = {"segmentation": self.segmented, "quality": self.judged}
        return draws.get(self.recipe.task.kind, self.labelled)(rng)

    def segmented(self, rng: np.random.Generator) -> Batch:
        """`task_target` (B, 1, size, size) in {0, 1}."""
        low, masks = self._task_items(rng)
        return {"task_low": low, "task_target": (to_batch(masks) + 1) / 2}

    def labelled(self, rng: np.random.Generator) -> Batch:
        """`task_target`: (B, 2) float32, row and column as fractions of the side, or (B,) int64, levels."""
        low, truth = self._task_items(rng)
        return {"task_low": low, "task_target": torch.from_numpy(np.stack(truth))}

    def judged(self, rng: np.random.Generator) -> Batch:
        """`task_target` (B,): 1 for high quality, 0 for low, half each; beside an enhancer low ones that ask for 1."""
        batch, alone = self.recipe.task.batch, self.recipe.task.mode == "none"
        kinds = [alone and i % 2 == 0 for i in range(batch)]
        chosen = [p[int(rng.integers(0, len(p)))] for p in (self.high if high else self.low for high in kinds)]
        target = torch.tensor([float(high or not alone) for high in kinds])
        return {"task_low": to_batch([_turn(p / FULL, rng) for p in chosen]), "task_target": target}

    def task_item(self, i: int, rng: np.random.Generator) -> tuple[Picture, Truth]:
        """Picture i of the task in [0, 1], by chance degraded, and its truth, turned alike."""
        picture, truth = self.task[i]
        unit = (picture / FULL).astype(np.float32)
        if self.degrade and rng.random() < self.recipe.task.degraded_fraction:
            unit = self.degrade(unit, rng)
        seed = rng.integers(0, 2**32)
        unit, again = _turn(unit, np.random.default_rng(seed)), np.random.default_rng(seed)
        if truth.ndim == 3:
            return unit, _turn(truth.astype(np.float32), again)
        return unit, _turn_place(truth, again) if truth.ndim == 1 else truth

    def _task_items(self, rng: np.random.Generator) -> tuple[Tensor, list[Truth]]:
        drawn = rng.integers(0, len(self.task), self.recipe.task.batch)
        items = [self.task_item(int(i), rng) for i in drawn]
        return to_batch([unit for unit, _ in items]), [truth for _, truth in items]

    def _pairs(self, rng: np.random.Generator, batch: int) -> Batch:
        halves = [self._pair(rng) for _ in range(batch)]
        return {"pair_low": to_batch([low for low, _ in halves]), "pair_high": to_batch([high for _, high in halves])}

    def _pair(self, rng: np.random.Generator) -> tuple[Picture, Picture]:
        data = self.data
        targets = self.pairs_high or self.high
        i = int(rng.integers(0, len(targets)))
        low = high = (targets[i] / FULL).astype(np.float32)
        if rng.random() < data.unchanged_fraction:
            pass
        elif rng.random() < data.relit_fraction:
            low = (self.low[int(rng.integers(0, len(self.low)))] / FULL).astype(np.float32)
            high = lift_veil(flatten_light(low, 0.85, detail=1.8), 0.5)
        elif self.degrade and (not self.pairs_low or rng.random() < data.degraded_fraction):
            if data.channels == 3:
                # Cameras differ in colour: a small change of both halves alike.
                high = np.clip(high * rng.uniform(0.85, 1.15, 3).astype(np.float32), 0, 1).astype(np.float32)
            low = self.degrade(high, rng)
            high = flatten_light(high, data.flatten) if data.flatten else high
        else:
            low = (self.pairs_low[i] / FULL).astype(np.float32)
        seed = rng.integers(0, 2**32)
        return _turn(low, np.random.default_rng(seed)), _turn(high, np.random.default_rng(seed))

    @cached_property
    def validation(self) -> list[tuple[Tensor, Tensor]]:
        """Fixed (low, high) pairs, each (1, C, H, W) in [-1, 1]."""
        pairs = []
        for i, target in enumerate(self.validation_high):
            low = high = (target / FULL).astype(np.float32)
            if self.validation_low:
                low = (self.validation_low[i] / FULL).astype(np.float32)
            elif self.degrade and i % 6:
                low = self.degrade(high, np.random.default_rng((7, i)))
            pairs.append((to_batch([low]), to_batch([high])))
        return pairs

    def validation_task(self) -> list[tuple[Tensor, Tensor, Truth]]:
        """Fixed (good picture, degraded picture, mask): two of (1, C, H, W) in [-1, 1], one (H, W).

        Of other tasks than segmentation the truth as it is loaded; of quality each picture twice, with 1 or 0.
        """
        if self.recipe.task.kind == "quality":
            kinds = ((self.validation_high, 1), (self.validation_low, 0))
            judged = [(to_batch([p / FULL]), np.array(high, np.float32)) for side, high in kinds for p in side]
            return [(x, x, truth) for x, truth in judged]
        triples = []
        for i, (picture, truth) in enumerate(self.task_validation):
            good = (picture / FULL).astype(np.float32)
            poor = self.degrade(good, np.random.default_rng((13, i))) if self.degrade else good
            triples.append((to_batch([good]), to_batch([poor]), truth[..., 0] if truth.ndim == 3 else truth))
        return triples


def _turn(picture: Picture, rng: np.random.Generator) -> Picture:
    """Random flips and transposition: the eight symmetries of the square."""
    if rng.random() < 0.5:
        picture = picture[::-1]
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    if rng.random() < 0.5:
        picture = picture.transpose(1, 0, 2)
    return picture


def _turn_place(place: Truth, rng: np.random.Generator) -> Truth:
    """A place (2,) as fractions of the sides, moved as `_turn` moves the picture."""
    row, column = place
    row = 1 - row if rng.random() < 0.5 else row
    column = 1 - column if rng.random() < 0.5 else column
    return np.array([column, row] if rng.random() < 0.5 else [row, column], np.float32)
