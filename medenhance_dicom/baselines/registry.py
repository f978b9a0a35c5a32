"""Baselines by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import MappingProxyType
from typing import Any

from medenhance_dicom.baselines.cane import Cane
from medenhance_dicom.baselines.control import FlatColour
from medenhance_dicom.baselines.dehazing import DarkChannelPrior
from medenhance_dicom.baselines.frame import Baseline
from medenhance_dicom.baselines.histogram import ClaheLab, HistogramEqualization
from medenhance_dicom.baselines.idrlp import RegionLinePrior
from medenhance_dicom.baselines.lime import Lime
from medenhance_dicom.baselines.retinex import ColourRestoredRetinex, MultiScaleRetinex, SingleScaleRetinex
from medenhance_dicom.baselines.robust_retinex import RobustRetinex
from medenhance_dicom.baselines.shading import N4, ContrastNormalisation
from medenhance_dicom.errors import RecipeError

BASELINES: dict[str, type[Baseline]] = {
    "he": HistogramEqualization,
    "clahe": ClaheLab,
    "dcp": DarkChannelPrior,
    "lime": Lime,
    "ssr": SingleScaleRetinex,
    "msr": MultiScaleRetinex,
    "msrcr": ColourRestoredRetinex,
    "robust-retinex": RobustRetinex,
    "cane": Cane,
    "idrlp": RegionLinePrior,
    "n4": N4,
    "icn": ContrastNormalisation,
    "control": FlatColour,
}


def build_baseline(name: str, parameters: Mapping[str, object] = MappingProxyType({})) -> Baseline:
    """A baseline with some of its parameters; the others keep the papers' values.

    Args:
        name: One of BASELINES.
        parameters: Field names and values of that class; lists are taken for tuples.

    Raises:
        RecipeError: No such baseline or parameter, or a value out of its range.

    >>> build_baseline("lime", {"gamma": 0.6}).gamma
    0.6
    """
    if name not in BASELINES:
        raise RecipeError(f"no baseline {name!r}; there are {', '.join(BASELINES)}")
    method = BASELINES[name]
    known = {f.name for f in fields(method) if f.init}
    if unknown := sorted(set(parameters) - known):
        raise RecipeError(
            f"baseline {name}: no parameter {unknown[0]!r}; there are {', '.join(sorted(known)) or 'none'}"
        )
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in parameters.items()}
    try:
        return method(**values)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"baseline {name}: {error}") from error
