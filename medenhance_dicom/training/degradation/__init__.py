"""Seeded models of how pictures go bad, for pairs with known truth; `docs/degradation.md` has every formula.

Pictures are float32 (H, W, C) in [0, 1]; all randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from medenhance_dicom.training.degradation import endoscopy, fundus, other
from medenhance_dicom.training.degradation.fundus import ordinary_eye
from medenhance_dicom.training.degradation.model import Degraded, Model, single
from medenhance_dicom.training.degradation.relight import flatten_light, lift_veil
from medenhance_dicom.training.degradation.simple import (
    Picture,
    degrade_cornea,
    degrade_endoscopy,
    degrade_fundus,
)

MODELS: dict[str, Model] = {
    "fundus-clinical": fundus.CLINICAL,
    "endoscopy-clinical": endoscopy.CLINICAL,
    "fundus-other": other.FUNDUS,
    "endoscopy-other": other.ENDOSCOPY,
    **{
        f"{kind}-{part.__name__.replace('_', '-')}": single(model, part)
        for kind, model in (("fundus", fundus.CLINICAL), ("endoscopy", endoscopy.CLINICAL))
        for part in model.parts
    },
}
"""Models that also say what can still be seen, by name: `MODELS[name].degrade(picture, rng, field)`."""

DEGRADATIONS: dict[str, Callable[[Picture, np.random.Generator], Picture]] = {
    "fundus": degrade_fundus,
    "cornea": degrade_cornea,
    "endoscopy": degrade_endoscopy,
    **MODELS,
}
"""Every model by name, as a function (picture, rng) -> picture."""

__all__ = [
    "DEGRADATIONS",
    "MODELS",
    "Degraded",
    "Model",
    "Picture",
    "degrade_cornea",
    "degrade_endoscopy",
    "degrade_fundus",
    "flatten_light",
    "lift_veil",
    "ordinary_eye",
]
