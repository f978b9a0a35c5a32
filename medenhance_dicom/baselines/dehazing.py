"""Dark channel prior, on the picture for haze and on its inverse for low light."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from medenhance_dicom.baselines.filters import dark_channel, guided_filter
from medenhance_dicom.baselines.frame import Baseline, Mask, Picture, check_fields

DARKEST_LIGHT = 1e-3  # least airlight in a channel, which is divided by


@dataclass(frozen=True)
class DarkChannelPrior(Baseline):
    """Dehazing (He, Sun and Tang, IEEE TPAMI 2011, eqs. 5, 12 and 22), with a guided filter in place of matting.

    J = (I - A) / max(t, t0) + A; A is the brightest pixel among the `top` share of the dark channel. Inverted, after
    Dong et al. (ICME 2011): 1 - J of 1 - I, since a dark picture's inverse looks hazy.
    """

    inverted: bool = True
    patch: int = 15
    omega: float = 0.95
    t0: float = 0.1
    radius: int = 60
    eps: float = 1e-3
    top: float = 1e-3

    def __post_init__(self) -> None:
        check_fields(self, patch=(1, 255), omega=(0, 1), t0=(0.01, 1), radius=(1, 1000), eps=(1e-9, 1), top=(0, 1))

    def _enhance(self, picture: Picture, inside: Mask) -> Picture:
        hazy = 1 - picture if self.inverted else picture
        clear = self._dehaze(hazy, inside)
        return 1 - clear if self.inverted else clear

    def _dehaze(self, hazy: Picture, inside: Mask) -> Picture:
        dark = dark_channel(hazy, self.patch)[inside]
        candidates = hazy[inside][dark >= np.quantile(dark, 1 - self.top)]
        airlight = np.maximum(candidates[candidates.sum(axis=1).argmax()], DARKEST_LIGHT)
        rough = 1 - self.omega * dark_channel(hazy / airlight, self.patch)
        t = guided_filter(hazy, rough, self.radius, self.eps)
        cleared: Picture = (hazy - airlight) / np.maximum(t, self.t0)[..., None] + airlight
        return np.clip(cleared, 0, 1)
