"""What every enhancer gives and needs: the one protocol that networks and conventional methods share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args, runtime_checkable

if TYPE_CHECKING:
    import numpy as np

Look = Literal["natural", "even"]
"""As a good camera would have taken it, or of even light and colour."""
LOOKS: tuple[Look, ...] = get_args(Look)
"""In the order of the numbers by which a network knows them."""


@dataclass(frozen=True)
class EnhancerSpec:
    """What a caller must know before it calls an enhancer."""

    channels: int | None
    """Channels it takes and gives; None: as many as the frames have."""
    multiple: int = 1
    """Rows and columns must be a multiple of this; `pyramid` pads and crops."""
    whole: bool = False
    """True: it normalises over the frame, so it must see whole frames, never tiles."""
    working_size: int | None = None
    """The longest side it was made for; None: any."""


class Enhancer(Protocol):
    """Unit frames in, unit frames out."""

    @property
    def spec(self) -> EnhancerSpec:
        """What it needs."""
        ...

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Enhance `frames`: float32 (N, H, W, C) in [0, 1]. Returns the same shape and range."""
        ...


@runtime_checkable
class MaskedEnhancer(Protocol):
    """An enhancer whose statistics can be restricted to the field of view."""

    @property
    def spec(self) -> EnhancerSpec:
        """What it needs."""
        ...

    def enhance_within(self, frames: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Enhance `frames` (N, H, W, C) where `inside` (N, H, W) is True; the other pixels neither count nor change."""
        ...
