"""A model of how pictures go bad: which parts, how often, in which order, and what can still be seen afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from medenhance_dicom.training.degradation.scene import Mask, Part, Scene
from medenhance_dicom.training.degradation.simple import Picture


class Degraded(NamedTuple):
    """A picture made worse."""

    picture: Picture
    """float32 (H, W, C) in [0, 1]."""
    seen: Picture
    """float32 (H, W) in [0, 1]: the share of the truth's fine contrast that can be seen here; 1 outside the field."""
    strength: float
    """In [0, 1]: the mean of the strengths of the parts that were drawn, 0 where none was."""


def _as_it_is(picture: Picture, rng: np.random.Generator) -> Picture:
    return picture


@dataclass(frozen=True)
class Model:
    """Parts in the order of the light's way, each drawn by its own chance.

    Called, it gives the degraded picture alone: a model stands where a function (picture, rng) -> picture does.
    """

    find_field: Callable[[Picture], Mask]
    parts: Mapping[Part, float]
    """How often each part is applied. Where chance leaves all out, the first is applied."""
    ordinary: Callable[[Picture, np.random.Generator], Picture] = _as_it_is
    """How other pictures that are not poor differ from one; both halves of a pair get it."""

    def __call__(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """The degraded picture alone."""
        return self.degrade(picture, rng).picture

    def degrade(
        self,
        picture: Picture,
        rng: np.random.Generator,
        field: Mask | None = None,
        strength: float | None = None,
    ) -> Degraded:
        """Make a picture worse.

        Args:
            picture: float32 (H, W, 3) in [0, 1]; it is not written to.
            rng: All randomness comes from it.
            field: bool (H, W), the field of view; looked for if it is not given. Outside it nothing changes.
            strength: In [0, 1], of the whole; 0 changes nothing. Drawn from U(0.35, 1) if it is not given. A part's own
                is this times U(0.5, 1).

        Returns:
            The picture and what can be seen in it.
        """
        scene = Scene(self.find_field(picture) if field is None else field)
        drawn = rng.uniform(0.35, 1.0)
        whole = drawn if strength is None else strength
        chances = rng.random(len(self.parts))
        chosen = [part for part, chance in zip(self.parts, chances, strict=True) if chance < self.parts[part]]
        source = np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32).transpose(1, 2, 0)
        seen, out, strengths = np.ones(scene.shape, np.float32), source, []
        if whole > 0 and scene.field.any():
            for part in chosen or list(self.parts)[:1]:
                strengths.append(whole * rng.uniform(0.5, 1.0))
                out, left = part(out, scene, rng, strengths[-1])
                seen *= left
            out = np.clip(source + scene.weight * (np.clip(out, 0, 1) - source), 0, 1)
        seen = np.where(scene.field, seen, np.float32(1))
        return Degraded(np.ascontiguousarray(out, np.float32), seen, float(np.mean(strengths)) if strengths else 0.0)


def single(model: Model, part: Part) -> Model:
    """One part alone, always."""
    return Model(model.find_field, {part: 1.0})
