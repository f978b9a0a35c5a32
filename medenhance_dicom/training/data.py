"""Pictures for training: held in memory, drawn by (seed, step), so a resumed run draws what it would have drawn."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.training.degradation import DEGRADATIONS, Picture, flatten_light, lift_veil
from medenhance_dicom.training.recipe import Data, Pictures

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}
FULL = np.float32(255)
FUNDUS_FLOOR = 12  # grey level below which a fundus photograph's surround lies


def list_pictures(root: Path, choice: Pictures) -> list[Path]:
    """The files of one `Pictures` table, sorted by name.

    Raises:
        RecipeError: The folder or the table is missing, or nothing is left.
    """
    folder = root / choice.folder
    files = sorted(p for p in folder.glob(choice.pattern) if p.suffix.lower() in SUFFIXES)
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


def to_batch(pictures: Sequence[Picture]) -> Tensor:
    """Pictures (H, W, C) in [0, 1] -> float32 (B, C, H, W) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures).astype(np.float32)).permute(0, 3, 1, 2).mul(2).sub(1).contiguous()


class TrainingPictures:
    """All pictures of a recipe; batches are functions of the random generator that is passed in."""

    def __init__(self, root: Path, data: Data) -> None:
        self.data = data
        self.low, self.high = _load_all(root, data.low, data), _load_all(root, data.high, data)
        self.pairs_low = _load_all(root, data.pairs_low, data)
        self.pairs_high = _load_all(root, data.pairs_high, data)
        self.validation_low = _load_all(root, data.validation_low, data)
        self.validation_high = _load_all(root, data.validation_high, data)
        if len(self.pairs_low) != len(self.pairs_high):
            raise RecipeError(f"{len(self.pairs_low)} low and {len(self.pairs_high)} high halves do not make pairs")
        self.degrade = DEGRADATIONS.get(data.degradation)

    def unpaired(self, rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """A batch of low-quality and one of high-quality pictures, each (B, C, H, W) in [-1, 1]."""
        low = [_turn(self.low[i] / FULL, rng) for i in rng.integers(0, len(self.low), batch)]
        high = [_turn(self.high[i] / FULL, rng) for i in rng.integers(0, len(self.high), batch)]
        return to_batch(low), to_batch(high)

    def pairs(self, rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor]:
        """A batch of aligned (low, high), each (B, C, H, W) in [-1, 1]."""
        halves = [self._pair(rng) for _ in range(batch)]
        return to_batch([low for low, _ in halves]), to_batch([high for _, high in halves])

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


def _turn(picture: Picture, rng: np.random.Generator) -> Picture:
    """Random flips and transposition: the eight symmetries of the square."""
    if rng.random() < 0.5:
        picture = picture[::-1]
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    if rng.random() < 0.5:
        picture = picture.transpose(1, 0, 2)
    return picture
