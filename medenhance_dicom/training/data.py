"""Pictures for training: held in memory, drawn by (seed, step), so a resumed run draws what it would have drawn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation
from torch import Tensor

from medenhance_dicom.conventional import luminance
from medenhance_dicom.errors import RecipeError
from medenhance_dicom.guides import PICTURE_SUFFIXES, read_picture
from medenhance_dicom.placement import Placement, squared
from medenhance_dicom.training.choosing import Chosen, DicomReader, choose, list_pictures, numbers
from medenhance_dicom.training.degradation import DEGRADATIONS, Model, Picture, flatten_light, lift_veil
from medenhance_dicom.training.poor import PoorPictures
from medenhance_dicom.training.recipe import Data, Pictures, TrainingRecipe

Stored = NDArray[np.uint8] | NDArray[np.uint16]
"""A picture (size, size, C) as it is held in memory."""
Window = tuple[slice, slice]
Truth = NDArray[Any]
"""Of a task: a mask (size, size, 1), a place (2,), a level or a quality ()."""
FUNDUS_FLOOR = 12 / 255  # below which a fundus photograph's surround lies


def load_picture(path: Path, channels: int, size: int) -> Stored:
    """A picture file as it is learned from: `squared`, of 8 bits where the file has no more, else of 16.

    Args:
        path: Picture file.
        channels: 1 or 3.
        size: Side in pixels.

    Raises:
        InputError: No picture, or a damaged one.
    """
    return stored(read_picture(path), channels, size)


def stored(picture: Picture, channels: int, size: int) -> Stored:
    """A picture (H, W, 1 or 3) in [0, 1] as (size, size, C), uint8 where nothing is lost by it, else uint16."""
    few = np.abs(picture * 255 - np.rint(picture * 255)).max() < 1e-3
    if picture.shape[2] != channels:
        picture = np.repeat(picture, 3, axis=2) if channels == 3 else luminance(picture)[..., None]
    square = squared(picture, size).clip(0, 1)
    return np.rint(square * 255).astype(np.uint8) if few else np.rint(square * 65535).astype(np.uint16)


def unit(picture: Stored) -> Picture:
    """What `stored` gave, in [0, 1]."""
    return picture / np.float32(np.iinfo(picture.dtype).max)


@dataclass(frozen=True)
class Loaded:
    """A picture as it is learned from."""

    picture: Stored
    place: Placement
    """Where the file's own pixels lie in it."""
    chosen: Chosen
    folder: str
    """Of the recipe's `Pictures`: the set that it belongs to."""


def _load(root: Path, choice: Pictures, data: Data, dicom: DicomReader | None) -> list[Loaded]:
    def loaded(one: Chosen, picture: Picture) -> Loaded:
        height, width = picture.shape[:2]
        return Loaded(
            stored(picture, data.channels, data.size), Placement(height, width, data.size), one, choice.folder
        )

    chosen = choose(root, choice, dicom)
    instances = {one.path: one for one in chosen if one.path.suffix.lower() not in PICTURE_SUFFIXES}
    frames = dicom.first_frames(list(instances)) if instances and dicom else ()
    found = {path: loaded(instances[path], frame) for path, frame in frames}
    found |= {one.path: loaded(one, read_picture(one.path)) for one in chosen if one.path not in instances}
    return [
        found[one.path]
        for one in chosen
        if one.path in found and _brightness(found[one.path].picture) >= choice.minimum_brightness
    ]


def _brightness(picture: Stored) -> float:
    bright = unit(picture)[unit(picture).max(axis=2) > FUNDUS_FLOOR]
    return float(bright.mean()) if bright.size else -1.0


def _masks(root: Path, choices: Sequence[Pictures], size: int, dilate: int) -> list[NDArray[np.bool_]]:
    """Masks (size, size, 1), placed as their pictures are; True where they are above half."""
    masks = [unit(load_picture(path, 1, size)) > 0.5 for choice in choices for path in list_pictures(root, choice)]
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

    def __init__(self, root: Path, recipe: TrainingRecipe, dicom: DicomReader | None = None) -> None:
        """Load them.

        Args:
            root: Of the recipe's relative paths.
            recipe: What is trained.
            dicom: Reads DICOM files; None: they are an error.

        Raises:
            RecipeError: A folder or table is missing, or what has to fit together does not.
            InputError: A picture cannot be read.
        """
        self.recipe, self.data = recipe, recipe.data
        data, task = recipe.data, recipe.task
        self._root, self._dicom = root, dicom
        self._of_training: set[tuple[str, str]] = set()
        self.loaded_low = list(self._loaded(data.low, learned=True))
        self.loaded_high = list(self._loaded(data.high, learned=True))
        self.low, self.high = ([one.picture for one in side] for side in (self.loaded_low, self.loaded_high))
        self.pairs_low, self.pairs_high = self._all(data.pairs_low), self._all(data.pairs_high)
        low = list(self._loaded(data.validation_low, learned=False))
        high = list(self._loaded(data.validation_high, learned=False))
        if low and recipe.method != "quality":
            _require_pairs(low, high)
        self.validation_low, self.validation_high = [one.picture for one in low], [one.picture for one in high]
        self.validation_windows = [one.place.window for one in high]
        """Rows and columns of `validation` in which the pictures themselves lie."""
        self._good = high if data.validation_poor else []
        self._poor = list(self._loaded(data.validation_poor, learned=False))
        if len(self.pairs_low) != len(self.pairs_high):
            raise RecipeError(f"{len(self.pairs_low)} low and {len(self.pairs_high)} high halves do not make pairs")
        self.degrade = DEGRADATIONS.get(data.degradation)
        self.task = self._with_truth(task.pictures, task.masks)
        self.task_validation = self._with_truth(task.validation_pictures, task.validation_masks, learned=False)

    def _loaded(self, choices: Sequence[Pictures], *, learned: bool) -> Iterator[Loaded]:
        """Pictures in the order of the choices.

        Raises:
            RecipeError: A person or sequence is learned from and validated on, too, where the recipe tells them apart.
        """
        for choice in choices:
            for one in _load(self._root, choice, self.data, self._dicom):
                if choice.group or choice.part:
                    whose = (choice.folder, one.chosen.group)
                    if learned:
                        self._of_training.add(whose)
                    elif whose in self._of_training:
                        what = choice.group or "group"
                        raise RecipeError(f"{one.chosen.path}: its {what} is learned from and validated on")
                yield one

    def _all(self, choices: Sequence[Pictures], *, learned: bool = True) -> list[Stored]:
        return [one.picture for one in self._loaded(choices, learned=learned)]

    def _with_truth(
        self, pictures: list[Pictures], masks: list[Pictures], *, learned: bool = True
    ) -> list[tuple[Stored, Truth]]:
        task = self.recipe.task
        if task.kind != "segmentation":
            for choice in pictures:
                if not choice.table:
                    raise RecipeError(f"task: {choice.folder}: a {task.kind} task needs a table beside its pictures")
            return [(one.picture, self._truth(one)) for one in self._loaded(pictures, learned=learned)]
        loaded = self._all(pictures, learned=learned)
        truth = _masks(self._root, masks, self.data.size, task.dilate)
        if len(loaded) != len(truth):
            raise RecipeError(f"{len(loaded)} pictures of the task and {len(truth)} masks")
        return list(zip(loaded, truth, strict=True))

    def _truth(self, one: Loaded) -> Truth:
        """From the tables: a place (2,) as fractions of the square, or a level, int64."""
        task, path = self.recipe.task, one.chosen.path
        values = numbers(one.chosen.row, task.columns, one.chosen.table)
        if task.kind == "fovea":
            row, column = np.mean(np.reshape(values, (2, -1)), axis=1)
            return np.array(one.place.point(row, column), np.float32)
        level = np.array(values[0], np.int64)
        if level != values[0] or not 0 <= level < task.levels:
            raise RecipeError(f"{path}: level {values[0]:g} is none of 0 to {task.levels - 1}")
        return level

    def unpaired(self, rng: np.random.Generator) -> Batch:
        """`low`, `high`; with them `pair_low`, `pair_high` and the task's where the recipe weighs them."""
        batch = self.recipe.schedule.batch
        low = [_turn(unit(self.low[i]), rng) for i in rng.integers(0, len(self.low), batch)]
        high = [_turn(unit(self.high[i]), rng) for i in rng.integers(0, len(self.high), batch)]
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
            out["guide"] = to_batch([unit(self.high[i]) for i in rng.integers(0, len(self.high), batch)])
        return out

    def both_kinds(self, rng: np.random.Generator) -> Batch:
        """`pictures` of high and low quality, half each."""
        half = max(self.recipe.schedule.pretrain_batch // 2, 1)
        chosen = [self.low[i] for i in rng.integers(0, len(self.low), half)]
        chosen += [self.high[i] for i in rng.integers(0, len(self.high), half)]
        return {"pictures": to_batch([_turn(unit(p), rng) for p in chosen])}

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
        return {"task_low": to_batch([_turn(unit(p), rng) for p in chosen]), "task_target": target}

    def task_item(self, i: int, rng: np.random.Generator) -> tuple[Picture, Truth]:
        """Picture i of the task in [0, 1], by chance degraded, and its truth, turned alike."""
        picture, truth = self.task[i]
        shown = unit(picture)
        if self.degrade and rng.random() < self.recipe.task.degraded_fraction:
            shown = self.degrade(shown, rng)
        seed = rng.integers(0, 2**32)
        shown, again = _turn(shown, np.random.default_rng(seed)), np.random.default_rng(seed)
        if truth.ndim == 3:
            return shown, _turn(truth.astype(np.float32), again)
        return shown, _turn_place(truth, again) if truth.ndim == 1 else truth

    def _task_items(self, rng: np.random.Generator) -> tuple[Tensor, list[Truth]]:
        drawn = rng.integers(0, len(self.task), self.recipe.task.batch)
        items = [self.task_item(int(i), rng) for i in drawn]
        return to_batch([picture for picture, _ in items]), [truth for _, truth in items]

    def _pairs(self, rng: np.random.Generator, batch: int) -> Batch:
        halves = [self._pair(rng) for _ in range(batch)]
        return {"pair_low": to_batch([low for low, _ in halves]), "pair_high": to_batch([high for _, high in halves])}

    def _pair(self, rng: np.random.Generator) -> tuple[Picture, Picture]:
        data = self.data
        targets = self.pairs_high or self.high
        i = int(rng.integers(0, len(targets)))
        low = high = unit(targets[i])
        if rng.random() < data.unchanged_fraction:
            if isinstance(self.degrade, Model):
                low = high = self.degrade.ordinary(high, rng)
        elif rng.random() < data.relit_fraction:
            low = unit(self.low[int(rng.integers(0, len(self.low)))])
            high = lift_veil(flatten_light(low, 0.85, detail=1.8), 0.5)
        elif self.degrade and (not self.pairs_low or rng.random() < data.degraded_fraction):
            if isinstance(self.degrade, Model):
                high = self.degrade.ordinary(high, rng)
            elif data.channels == 3:
                # Cameras differ in colour: a small change of both halves alike.
                high = np.clip(high * rng.uniform(0.85, 1.15, 3).astype(np.float32), 0, 1).astype(np.float32)
            low = self.degrade(high, rng)
            high = flatten_light(high, data.flatten) if data.flatten else high
        else:
            low = unit(self.pairs_low[i])
        seed = rng.integers(0, 2**32)
        return _turn(low, np.random.default_rng(seed)), _turn(high, np.random.default_rng(seed))

    @cached_property
    def poor(self) -> PoorPictures | None:
        """What is asked of the real poor pictures; None where there are none."""
        if not self._poor:
            return None
        poor, good = (
            [(one.chosen.path, unit(one.picture)[one.place.window]) for one in side]
            for side in (self._poor, self._good)
        )
        return PoorPictures(poor, good)

    @cached_property
    def validation_poor(self) -> list[tuple[Tensor, Window]]:
        """Real poor pictures, each (1, C, H, W) in [-1, 1], and where it lies in the square."""
        return [(to_batch([unit(one.picture)]), one.place.window) for one in self._poor]

    @property
    def knows_truth(self) -> bool:
        """Whether `validation` has pairs of two different pictures."""
        return bool(self.validation_low) or self.degrade is not None

    @cached_property
    def validation(self) -> list[tuple[Tensor, Tensor]]:
        """Fixed (low, high) pairs, each (1, C, H, W) in [-1, 1]."""
        pairs = []
        for i, target in enumerate(self.validation_high):
            low = high = unit(target)
            if self.validation_low:
                low = unit(self.validation_low[i])
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
            judged = [(to_batch([unit(p)]), np.array(high, np.float32)) for side, high in kinds for p in side]
            return [(x, x, truth) for x, truth in judged]
        triples = []
        for i, (picture, truth) in enumerate(self.task_validation):
            good = unit(picture)
            poor = self.degrade(good, np.random.default_rng((13, i))) if self.degrade else good
            triples.append((to_batch([good]), to_batch([poor]), truth[..., 0] if truth.ndim == 3 else truth))
        return triples


def _require_pairs(low: Sequence[Loaded], high: Sequence[Loaded]) -> None:
    """Raises RecipeError where validation pictures are no pairs."""
    if len(low) != len(high):
        raise RecipeError(
            f"data.validation_low has {len(low)} pictures, validation_high {len(high)}: they are no pairs; poor ones "
            "without a better half are validation_poor"
        )
    for a, b in zip(low, high, strict=True):
        names = [one.chosen.path.stem for one in (a, b)]
        if not names[0].startswith(names[1]) and not names[1].startswith(names[0]) and _digits(*names):
            raise RecipeError(f"{a.chosen.path}: data.validation_high has {b.chosen.path.name} in its place")
        if a.place != b.place:
            raise RecipeError(f"{a.chosen.path}: not of the size of {b.chosen.path}, its better half")


def _digits(one: str, other: str) -> bool:
    """Whether the numbers in two names differ."""
    return re.findall(r"\d+", one) != re.findall(r"\d+", other)


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
