"""The field of view: where the picture is, without its surround."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.masks.dark_surround import find_dark_bordered_field
from medenhance_dicom.masks.insets import insets
from medenhance_dicom.masks.round_field import find_round_field

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]
Kind = Literal["none", "ellipse", "border"]


def field_of_view(frame: Unit, kind: Kind) -> Mask:
    """Where the picture is, without its surround.

    Args:
        frame: float32 (H, W, C) in [0, 1].
        kind: "none": everywhere; "ellipse": the round field of a fundus camera, its dark parts included, in a surround
            of any colour, cut by the frame or by straight bars or not; "border": an endoscope's field of any shape,
            without black corners, insets and everything written beside it.

    Returns:
        bool (H, W), True inside. All True where no surround is found.
    """
    height, width = frame.shape[:2]
    found: Mask | None = None
    if kind != "none" and min(height, width) >= 16:
        if kind == "ellipse":
            rounded = find_round_field(frame)
            found = None if rounded is None else rounded.mask((height, width))
        else:
            found = find_dark_bordered_field(frame)
            panels = insets(frame)
            if panels.any():
                found = ~panels if found is None else found & ~panels
    return np.ones((height, width), bool) if found is None else found
