"""How much detail there is: average gradient and entropy, in the forms of image fusion (HQG-Net, Table V).

Both rise with noise as well, so neither says by itself that a picture became better.
"""

from __future__ import annotations

import numpy as np

from medenhance_dicom.metrics.picture import Mask, Unit, field_of, grey_bytes

__all__ = ["average_gradient", "entropy"]


def average_gradient(picture: Unit, inside: Mask | None = None) -> float:
    """AG: mean of sqrt((dx^2 + dy^2) / 2), forward differences of the 8-bit grey, over (H - 1)(W - 1) pixels.

    Args:
        picture: (H, W, C) in [0, 1].
        inside: (H, W), the field of view; a pixel counts when it and both neighbours are inside.

    Raises:
        ValueError: No pixel counts.
    """
    light, here = grey_bytes(picture), field_of(picture.shape, inside)
    down, right = light[1:, :-1] - light[:-1, :-1], light[:-1, 1:] - light[:-1, :-1]
    counts = here[:-1, :-1] & here[1:, :-1] & here[:-1, 1:]
    if not counts.any():
        raise ValueError("no pixel has both neighbours inside")
    return float(np.sqrt((down**2 + right**2) / 2)[counts].mean())


def entropy(picture: Unit, inside: Mask | None = None) -> float:
    """EN: -sum p log2 p over the 256 levels of the 8-bit grey, in bits, 0 to 8.

    Args:
        picture: (H, W, C) in [0, 1].
        inside: (H, W), the field of view.
    """
    light = grey_bytes(picture)[field_of(picture.shape, inside)]
    share = np.bincount(light.astype(np.intp), minlength=256) / light.size
    share = share[share > 0]
    return float(np.sum(share * np.log2(1 / share)))
