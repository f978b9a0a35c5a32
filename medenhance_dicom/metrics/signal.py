"""SNR of thin bright structures against what lies round them (StillGAN, Ma et al., IEEE TMI 2021, section IV)."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy.ndimage import distance_transform_edt

from medenhance_dicom.metrics.picture import Mask, Unit, field_of, grey

__all__ = ["signal_to_noise"]


def signal_to_noise(
    picture: Unit,
    lines: Mask,
    radius: float,
    *,
    mode: Literal["ring", "outside"] = "ring",
    signal: Literal["max", "p99"] = "max",
    inside: Mask | None = None,
) -> float:
    """10 log10(max(I_s)^2 / sigma_b^2) in dB; higher is better. Infinite where the background does not vary.

    The maximum lets one bright pixel decide, and a flat or dark background wins: never judge by it alone.

    Args:
        picture: (H, W, C) in [0, 1]; its grey is what is measured.
        lines: (H, W), centre lines of the structures: I_s are their pixels.
        radius: r in pixels. The background is within r of the lines, without the lines.
        mode: "outside" takes everything beyond r instead.
        signal: "p99" takes the 99th percentile of I_s instead of the maximum.
        inside: (H, W), the field of view; other pixels are neither signal nor background.

    Raises:
        ValueError: No line or no background is inside, or the shapes differ.
    """
    light, here, true = grey(picture), field_of(picture.shape, inside), np.asarray(lines, bool)
    if true.shape != light.shape:
        raise ValueError(f"a mask of {true.shape} for a picture of {light.shape}")
    if not (true & here).any():
        raise ValueError("the mask holds no line inside the field of view")
    distance = distance_transform_edt(~true)
    background = here & ~true & ((distance <= radius) if mode == "ring" else (distance > radius))
    if not background.any():
        raise ValueError("there is no background about the lines")
    peak = light[true & here].max() if signal == "max" else np.percentile(light[true & here], 99)
    noise = float(light[background].std())
    if noise == 0 or peak == 0:
        return math.inf if peak else -math.inf
    return 20 * math.log10(float(peak) / noise)
