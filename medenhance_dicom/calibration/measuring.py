"""What the gate measures of honest and altered pairs, picture by picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.calibration.honest import METHODS, SOURCES, conventional
from medenhance_dicom.calibration.pictures import Sample
from medenhance_dicom.gate import FrameScores, examine
from medenhance_dicom.gate.alterations import alter
from medenhance_dicom.gate.working import LONGEST
from medenhance_dicom.guides import read_picture
from medenhance_dicom.masks import field_of_view
from medenhance_dicom.prepare import PreparedRecipe

__all__ = ["HONEST", "Conventional", "Honest", "Measured", "Prepared", "bounded", "measure"]

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]

HONEST = "honest"


@dataclass(frozen=True)
class Measured:
    """One pair."""

    kind: str
    """`honest`, or a key of `alterations.KINDS`."""
    method: str
    """The honest enhancement, also of an altered pair."""
    group: str
    """The patient or sequence."""
    size: float
    contrast: float
    scores: FrameScores


class Honest(Protocol):
    """Makes honest pairs of a picture."""

    def pairs(self, picture: Unit, rng: np.random.Generator, count: int) -> Iterator[tuple[str, Unit, Unit, Mask]]:
        """`count` times: the method, before, after (H, W, C) and where it may have worked (H, W)."""


@dataclass(frozen=True)
class Prepared:
    """A recipe's enhancer, on the picture as it is and on worse ones."""

    recipe: PreparedRecipe
    channels: int | None = None

    def seen(self, picture: Unit) -> Unit:
        """Of a colour picture its green plane, where the enhancer is of grey ones."""
        return picture[..., 1:2] if self.channels == 1 and picture.shape[2] == 3 else picture

    def pairs(self, picture: Unit, rng: np.random.Generator, count: int) -> Iterator[tuple[str, Unit, Unit, Mask]]:
        """See `Honest`."""
        picture = self.seen(picture)
        for name in ["as it is", *rng.permutation(list(SOURCES)[1:])][:count]:
            before = np.clip(SOURCES[name](picture, rng), 0, 1).astype(np.float32)
            yield str(name), before, self.recipe.enhance_picture(before), self.recipe.region(before, None)


@dataclass(frozen=True)
class Conventional:
    """Methods without weights, within the field of view."""

    names: Sequence[str] = tuple(METHODS)

    def pairs(self, picture: Unit, rng: np.random.Generator, count: int) -> Iterator[tuple[str, Unit, Unit, Mask]]:
        """See `Honest`."""
        inside = field_of_view(picture, "border")
        for name in rng.permutation(self.names)[:count]:
            yield str(name), picture, conventional(str(name), picture, inside, rng), inside


def measure(
    samples: Iterable[Sample],
    honest: Honest,
    rng: np.random.Generator,
    *,
    count: int,
    alterations: Mapping[str, Sequence[float]] | None = None,
    draws: Mapping[str, int] | None = None,
    level: int = 3,
) -> Iterator[Measured]:
    """Examine honest pairs of every picture, and alterations of them.

    Args:
        samples: The pictures.
        honest: Makes the honest pairs.
        rng: Decides on everything that is drawn.
        count: Honest pairs of each picture.
        alterations: Kind -> sizes, see `alterations.SIZES`; None: none.
        draws: Kind -> how many sizes of it a picture gets, on one of its honest pairs each; by default 1.
        level: LaSSIM's.

    Yields:
        The pairs measured; an alteration for which a picture has no place is left out.
    """
    for sample in samples:
        picture = bounded(read_picture(sample.path))
        pairs = list(honest.pairs(picture, rng, count))
        for method, before, after, inside in pairs:
            scores = examine(before, after, level=level, inside=inside)
            yield Measured(HONEST, method, sample.group, 0, 0, scores)
        sizes = {kind: rng.choice(all_, (draws or {}).get(kind, 1)) for kind, all_ in (alterations or {}).items()}
        todo = [(kind, float(size)) for kind, drawn in sizes.items() for size in drawn]
        for kind, size in todo:
            method, before, after, inside = pairs[int(rng.integers(len(pairs)))]
            altered = alter(kind, before, after, size, rng, inside=inside)
            if altered is not None:
                scores = examine(altered.before, altered.after, level=level, inside=inside)
                yield Measured(kind, method, sample.group, altered.size, altered.contrast, scores)


def bounded(picture: Unit) -> Unit:
    """At most `LONGEST` pixels long, by area means, as the gate itself works."""
    share = LONGEST / max(picture.shape)
    if share >= 1:
        return picture
    return area_means(picture, (round(picture.shape[0] * share), round(picture.shape[1] * share)))


def area_means(picture: Unit, size: tuple[int, int]) -> Unit:
    """A picture (H, W, C) in smaller: (h, w, C)."""
    import torch
    from torch.nn.functional import adaptive_avg_pool2d

    planes = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
    return np.ascontiguousarray(adaptive_avg_pool2d(planes[None], size)[0].permute(1, 2, 0).numpy())
