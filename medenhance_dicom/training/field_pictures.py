"""What the network of fields learns from: photographs with their surround filled, what is where in them, and batches.

A batch is made of three kinds: a good picture made worse, with its truth; a good picture and itself; and a really poor
one, which has no truth but the measures of `field_losses`. Each is asked for in one of two looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor
from torch.nn import functional as F

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.field_edge import fill_outside
from medenhance_dicom.masks import field_of_view
from medenhance_dicom.metrics.fundus import FundusField
from medenhance_dicom.placement import squared
from medenhance_dicom.resampling import cubic_weights, resample
from medenhance_dicom.training.data import Batch, Loaded, unit
from medenhance_dicom.training.degradation import MODELS, Picture, ordinary_eye
from medenhance_dicom.training.field_losses import low_pass_lab, mean_within
from medenhance_dicom.training.recipe import TrainingRecipe

Mask = NDArray[np.bool_]
Kind = Literal["pair", "same", "poor"]

LEAST_FIELD = 0.3  # of the picture
LIGHT_CELLS = 48
LIGHT_DEGREE = 4
GUIDE_SIDE = 96
GUIDES = 2  # whose mean leads
ORDINARY = 0.08  # of the good pictures in the natural look: of another camera or darker, which is nothing to mend
LEAST_DEVIATION = 1.5  # of a camera's good pictures in L*, a*, b*
SEEN_NOTHING, SEEN_ENOUGH = 0.05, 0.25
"""Share of contrast left below which a picture is to stay as it is, and from which it is to become its truth."""


@dataclass(frozen=True)
class FieldPicture:
    """A photograph squeezed to a square, as the network sees it."""

    picture: NDArray[np.uint8]
    """(S, S, 3), what lies outside the field filled from its edge."""
    inside: Mask
    """(S, S), a little inside the field's edge."""
    vessels: Mask
    """(S, S), the darkest lines."""
    quiet: Mask
    """(S, S), where no line is."""
    light: NDArray[np.float32]
    """(3, 48, 48), the light that fell on it, see `light_of`."""
    guide: Tensor
    """(3, 96, 96) in [0, 1], as a guide's picture is encoded: on black."""
    camera: str
    """The set that it belongs to."""


def field_picture(loaded: Loaded) -> FieldPicture | None:
    """Measure a loaded picture; None where there is hardly any field."""
    size, square = loaded.place.size, unit(loaded.picture)
    flat = resample(square[loaded.place.window], *(_stretched(n, size) for n in loaded.place.shape)).clip(0, 1)
    seen = field_of_view(flat, "ellipse")
    if seen.mean() < LEAST_FIELD:
        return None
    inside = FundusField(flat, seen).inside
    filled = np.rint(fill_outside(flat, inside) * 255).astype(np.uint8)
    field = FundusField(unit(filled), seen)
    guide = torch.from_numpy(squared(square[loaded.place.window], GUIDE_SIDE).transpose(2, 0, 1).clip(0, 1).copy())
    return FieldPicture(filled, inside, field.vessels, field.ground, light_of(filled, inside), guide, loaded.folder)


def _stretched(old: int, new: int) -> csr_array | None:
    return None if old == new else cubic_weights(old, new)


def light_of(picture: NDArray[np.uint8], inside: Mask) -> NDArray[np.float32]:
    """The light that fell on a retina: a polynomial of its log colours that leaves disc, macula, vessels, lesions out.

    Of degree 4, fitted by iterated least squares with Tukey's weights to medians of small blocks; beyond the field it
    stays within its range inside. After Foracchia et al. 2005, but robust instead of local.

    Args:
        picture: (S, S, 3), S a multiple of 48.
        inside: (S, S).

    Returns:
        float32 (3, 48, 48), the fitted colour itself.
    """
    n, block = LIGHT_CELLS, picture.shape[0] // LIGHT_CELLS
    tiles = picture.reshape(n, block, n, block, 3).transpose(0, 2, 1, 3, 4).reshape(n * n, block * block, 3)
    logs = np.log(np.maximum(np.median(tiles, axis=1) / 255, 0.01))
    here = inside.reshape(n, block, n, block).mean(axis=(1, 3)).ravel() > 0.9
    y, x = (axis.ravel() for axis in np.mgrid[0:n, 0:n] / (n - 1) * 2 - 1)
    terms = np.stack([x**i * y**j for i in range(LIGHT_DEGREE + 1) for j in range(LIGHT_DEGREE + 1 - i)], axis=1)
    weight = here.astype(np.float64)
    fitted = np.zeros_like(logs)
    for _ in range(12):
        root = np.sqrt(weight)[:, None]
        fitted = terms @ np.linalg.lstsq(terms * root, logs * root, rcond=None)[0]
        off = (logs - fitted)[:, :2].mean(axis=1)
        scale = 1.4826 * float(np.median(np.abs(off[here]))) + 1e-4
        weight = here * np.clip(1 - (off / (3.5 * scale)) ** 2, 0, 1) ** 2
    bounded = np.clip(fitted, fitted[here].min(axis=0), fitted[here].max(axis=0))
    return np.exp(bounded).reshape(n, n, 3).transpose(2, 0, 1).astype(np.float32)


class FieldPictures:
    """The pictures of a recipe, and its batches as functions of a generator.

    Args:
        high: Good ones.
        low: Really poor ones; where there are none, good ones made worse stand for them.
        recipe: What is learned; its degradation is one that tells what can still be seen.

    Raises:
        RecipeError: No good picture has a field, or the degradation is of another kind.
    """

    def __init__(self, high: Sequence[Loaded], low: Sequence[Loaded], recipe: TrainingRecipe) -> None:
        if recipe.data.degradation not in MODELS:
            raise RecipeError(f"data.degradation: fields are learned with one of {', '.join(MODELS)}")
        self.recipe, self.degrade = recipe, MODELS[recipe.data.degradation].degrade
        self.high = [one for one in map(field_picture, high) if one]
        self.low = [one for one in map(field_picture, low) if one]
        if not self.high:
            raise RecipeError("data.high: no picture has a field of view")
        self._by_camera = {
            camera: [one for one in self.high if one.camera == camera] for camera in {one.camera for one in self.high}
        }

    @cached_property
    def colours(self) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """Of the good pictures of each camera: mean colour (3,) in [0, 1], mean and deviation of L*, a*, b* (3,)."""
        found = {}
        for camera, pictures in self._by_camera.items():
            means, labs = [], []
            for one in pictures:
                x, inside = _planes(one.picture), torch.from_numpy(one.inside)[None, None].float()
                lab, where = low_pass_lab(x, inside)
                means.append(mean_within(x, inside)[0])
                labs.append(mean_within(lab, where)[0])
            lab = torch.stack(labs)
            deviation = lab.std(dim=0, unbiased=False).clamp_min(LEAST_DEVIATION)
            found[camera] = (torch.stack(means).mean(dim=0), lab.mean(dim=0), deviation)
        return found

    @property
    def cameras(self) -> list[str]:
        """Names of the sets that have good pictures."""
        return sorted(self._by_camera)

    def guides_of(self, camera: str) -> Tensor:
        """All good pictures of a camera as guides, (N, 3, 96, 96) in [0, 1]."""
        return torch.stack([one.guide for one in self._by_camera[camera]])

    def batch(self, rng: np.random.Generator) -> Batch:
        """A batch of `schedule.warm_up_batch` pictures, every tensor float32, B pictures of S x S.

        `y`, `target` (B, 3, S, S) in [0, 1]; `inside`, `vessels`, `quiet`, `sure` (B, 1, S, S) in [0, 1]; `guide`
        (B, 2, 3, 96, 96); `look` (B, 1), 0 or 1; `poor`, `same` (B,), 0 or 1; `colour`, `deviation` (B, 3), mean and
        deviation of the camera's good pictures in L*, a*, b*.
        """
        size = self.recipe.schedule.warm_up_batch
        kinds: list[Kind] = ["poor" if b < size // 4 else "same" if b < size // 2 else "pair" for b in range(size)]
        items = [self._item(kind, rng) for kind in kinds]
        return {name: torch.stack([item[name] for item in items]) for name in items[0]}

    def _item(self, kind: Kind, rng: np.random.Generator) -> Batch:
        look = float(rng.random() < (0.25 if kind == "same" else 0.5))
        poor = kind == "poor" and bool(self.low)
        one = self._draw(self.low if poor else self.high, rng)
        camera = one.camera if one.camera in self.colours else self.cameras[0]
        tint = _tint(rng)
        x = (_planes(one.picture) * tint).clamp(0, 1)
        if kind != "poor" and not look and rng.random() < ORDINARY:
            x = _planes(ordinary_eye(x[0].permute(1, 2, 0).numpy(), rng, np.ones_like(one.inside)))
        y, seen = x, torch.ones(1, 1, *one.inside.shape)
        if kind != "same" and not poor:
            worse = self.degrade(x[0].permute(1, 2, 0).numpy(), rng, np.ones_like(one.inside))
            y, seen = _planes(worse.picture), torch.from_numpy(worse.seen)[None, None]
        mean, lab, deviation = self.colours[camera]
        truth = self._evened(x, one, mean, tint) if look else x
        sure = ((seen - SEEN_NOTHING) / (SEEN_ENOUGH - SEEN_NOTHING)).clamp(0, 1)
        truth = sure * truth + (1 - sure) * y
        masks = [torch.from_numpy(m)[None, None].float() for m in (one.inside, one.vessels, one.quiet)]
        turned = _turned([y, truth, *masks, sure], int(rng.integers(8)))
        names = ("y", "target", "inside", "vessels", "quiet", "sure")
        shifted = lab + _lab_of(mean * tint[0, :, 0, 0]) - _lab_of(mean)
        return {name: t[0] for name, t in zip(names, turned, strict=True)} | {
            "guide": self._guides(camera, tint, rng),
            "look": torch.tensor([look]),
            "poor": torch.tensor(float(kind == "poor")),
            "same": torch.tensor(float(kind == "same")),
            "colour": shifted,
            "deviation": deviation,
        }

    def _draw(self, pictures: Sequence[FieldPicture], rng: np.random.Generator) -> FieldPicture:
        """A camera by the square root of how many it has, then one of its pictures."""
        cameras = sorted({one.camera for one in pictures})
        counts = np.array([sum(one.camera == camera for one in pictures) for camera in cameras])
        camera = cameras[int(rng.choice(len(cameras), p=np.sqrt(counts) / np.sqrt(counts).sum()))]
        own = [one for one in pictures if one.camera == camera]
        return own[int(rng.integers(len(own)))]

    def _guides(self, camera: str, tint: Tensor, rng: np.random.Generator) -> Tensor:
        own = self._by_camera[camera]
        chosen = [own[int(i)].guide for i in rng.integers(0, len(own), GUIDES)]
        chosen = chosen if rng.random() < 0.5 else [chosen[0]] * GUIDES
        return (torch.stack(chosen) * tint).clamp(0, 1)

    def _evened(self, x: Tensor, one: FieldPicture, mean: Tensor, tint: Tensor) -> Tensor:
        """The picture under the camera's mean light instead of its own."""
        light = F.interpolate(
            torch.from_numpy(one.light)[None], size=x.shape[-2:], mode="bicubic", align_corners=False
        ).clamp_min(0.02)
        return (x * (mean.view(1, 3, 1, 1) / light).clamp(0.25, 5)).clamp(0, 1)


def _planes(picture: NDArray[np.uint8] | Picture) -> Tensor:
    """(H, W, 3) -> float32 (1, 3, H, W) in [0, 1]."""
    planes = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float()
    return planes / 255 if picture.dtype == np.uint8 else planes


def _tint(rng: np.random.Generator) -> Tensor:
    """Another camera's white, (1, 3, 1, 1); for picture, truth and guide alike, so that the guide is looked at."""
    if rng.random() < 0.4:
        return torch.ones(1, 3, 1, 1)
    return torch.tensor(rng.uniform((0.85, 0.8, 0.7), (1.15, 1.2, 1.35)), dtype=torch.float32).view(1, 3, 1, 1)


def _lab_of(colour: Tensor) -> Tensor:
    lab, _ = low_pass_lab(colour.clamp(0, 1).view(1, 3, 1, 1).expand(1, 3, 32, 32), torch.ones(1, 1, 32, 32))
    return lab[0, :, 0, 0]


def _turned(planes: list[Tensor], way: int) -> list[Tensor]:
    """One of the eight symmetries of the square."""
    if way & 1:
        planes = [p.flip(-1) for p in planes]
    if way & 2:
        planes = [p.flip(-2) for p in planes]
    return [p.transpose(-1, -2) for p in planes] if way & 4 else planes
