"""Pictures for training: held in memory, drawn by (seed, step), so a resumed run draws what it would have drawn."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation
from torch import Tensor

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.training.degradation import DEGRADATIONS, Picture, flatten_light, lift_veil
from medenhance_dicom.training.recipe import Data, Pictures, TrainingRecipe

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
FULL = np.float32(255)
FUNDUS_FLOOR = 12  # grey level below which a fundus photograph's surround lies


def list_pictures(root: Path, choice: Pictures) -> list[Path]:
    """The files of one `Pictures` table, sorted by name, numbers in it by value.

    Raises:
        RecipeError: The folder or the table is missing, or nothing is left.
    """
    folder = root / choice.folder
    files = sorted((p for p in folder.glob(choice.pattern) if p.suffix.lower() in SUFFIXES), key=_by_number)
    if choice.table:
        table = root / choice.table
        if not table.is_file():
            raise RecipeError(f"{table}: no such table")
        with table.open(newline="") as handle:
            value = {row["file"]: float(row[choice.column or ""]) for row in csv.DictReader(handle)}
        low = -np.inf if choice.at_least is None else choice.at_least
        high = np.inf if choice.at_most is None else choice.at_most
        files = [p for p in files if p.name in value and low <= value[p.name] <= high]
    files = files[round(choice.first * len(files)) : round(choice.last * len(files))]
    if not files:
        raise RecipeError(f"{folder}: no pictures match {choice.pattern!r}")
    return files


def _by_number(path: Path) -> list[str | int]:
    # Text and numbers alternate, so that like meets like: frame 9 comes before frame 10.
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]


def load_picture(path: Path, channels: int, size: int) -> NDArray[np.uint8]:
    """A picture as (size, size, C): longer side brought to `size`, the rest filled with black.

    Args:
        path: Picture file.
        channels: 1 or 3.
        size: Side in pixels.
    """
    with Image.open(path) as opened:
        picture = opened.convert("L" if channels == 1 else "RGB")
    scale = size / max(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BOX)
    pixels = np.asarray(picture).reshape(picture.height, picture.width, channels)
    canvas = np.zeros((size, size, channels), np.uint8)
    top, left = (size - picture.height) // 2, (size - picture.width) // 2
    canvas[top : top + picture.height, left : left + picture.width] = pixels
    return canvas


def _load_all(root: Path, choices: Sequence[Pictures], data: Data) -> list[NDArray[np.uint8]]:
    loaded = []
    for choice in choices:
        for path in list_pictures(root, choice):
            picture = load_picture(path, data.channels, data.size)
            bright = picture[picture.max(axis=2) > FUNDUS_FLOOR]
            if bright.size and bright.mean() / 255 >= choice.minimum_brightness:
                loaded.append(picture)
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
    `pair_high` aligned, `guide` is any high one, `task_low` has its truth in `task_target` (B, 1, size, size), 0 or 1.
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
        self.task = self._with_masks(root, task.pictures, task.masks)
        self.task_validation = self._with_masks(root, task.validation_pictures, task.validation_masks)

    def _with_masks(
        self, root: Path, pictures: list[Pictures], masks: list[Pictures]
    ) -> list[tuple[NDArray[np.uint8], NDArray[np.bool_]]]:
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
            out |= self.segmented(rng)
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

    def segmented(self, rng: np.random.Generator) -> Batch:
        """`task_low` and `task_target`."""
        low, target = [], []
        for i in rng.integers(0, len(self.task), self.recipe.task.batch):
            picture, mask = self.task[i]
            unit = (picture / FULL).astype(np.float32)
            if self.degrade and rng.random() < self.recipe.task.degraded_fraction:
                unit = self.degrade(unit, rng)
            seed = rng.integers(0, 2**32)
            low.append(_turn(unit, np.random.default_rng(seed)))
            target.append(_turn(mask.astype(np.float32), np.random.default_rng(seed)))
        return {"task_low": to_batch(low), "task_target": (to_batch(target) + 1) / 2}

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

    def validation_task(self) -> list[tuple[Tensor, Tensor, NDArray[np.bool_]]]:
        """Fixed (good picture, degraded picture, mask): two of (1, C, H, W) in [-1, 1], one (H, W)."""
        triples = []
        for i, (picture, mask) in enumerate(self.task_validation):
            good = (picture / FULL).astype(np.float32)
            poor = self.degrade(good, np.random.default_rng((13, i))) if self.degrade else good
            triples.append((to_batch([good]), to_batch([poor]), mask[..., 0]))
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
