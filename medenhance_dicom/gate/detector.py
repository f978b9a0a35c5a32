"""Altered and moved structure, as a network sees it that has learned what honest enhancement looks like."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from medenhance_dicom.gate.working import Pair
from medenhance_dicom.manifest import load_detector, load_manifest, models_folder

__all__ = ["altered_maps", "planes"]


def altered_maps(pair: Pair) -> dict[str, Tensor]:
    """Where structure was changed, and where it was moved.

    Args:
        pair: The frame.

    Returns:
        "local" and "displacement": log(1 + odds) of each place, (h / 4, w / 4), 0 and up; 0 where the enhancer was not
        allowed to work. Nothing where the manifest has no detector.

    Raises:
        ModelError: The detector's weights are missing or altered.
    """
    network = _shipped(models_folder())
    if network is None:
        return {}
    field = functional.avg_pool2d(pair.inside[None, None], 4, ceil_mode=True, count_include_pad=False)[0, 0] > 0.5
    laid_out = planes(pair)[None].contiguous(memory_format=torch.channels_last)
    changed, moved = functional.softplus(network(laid_out)[0]) * field
    return {"local": changed, "displacement": moved}


def planes(pair: Pair) -> Tensor:
    """What the network takes, (7, h, w): the planes before, after, and the field; no colour is 0."""
    before, after = (functional.pad(x, (0, 0, 0, 0, 0, 3 - len(x))) for x in (pair.before, pair.after))
    return torch.cat([before, after, pair.inside[None]])


@cache
def _shipped(folder: Path) -> nn.Module | None:
    network = load_detector(load_manifest(folder))
    return network and network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
