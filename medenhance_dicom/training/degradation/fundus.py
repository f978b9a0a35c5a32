"""Colour fundus photographs as they come from clinics, and eyes that are dark but ordinary."""

from __future__ import annotations

import numpy as np

from medenhance_dicom.training.degradation.eye import haze, lens_colour, small_pupil
from medenhance_dicom.training.degradation.light import exposure, flare, reflexes, spots
from medenhance_dicom.training.degradation.model import Model
from medenhance_dicom.training.degradation.optics import defocus, motion
from medenhance_dicom.training.degradation.scene import Mask, Scene, fundus_field
from medenhance_dicom.training.degradation.sensor import camera_colours, jpeg, noise
from medenhance_dicom.training.degradation.simple import Picture


def ordinary_eye(picture: Picture, rng: np.random.Generator, field: Mask | None = None) -> Picture:
    """The same eye as another good camera shows it, or a darker one: nothing poor. Both halves of a pair get it.

    I' = (M I w)^g 2^s V: colours as in `camera_colours` at half strength, s from -1.3 to 0.3 stops (a third of the eyes
    are dark), V a centred vignette of up to 35 % at the rim.

    Args:
        picture: float32 (H, W, 3) in [0, 1].
        rng: All randomness comes from it.
        field: bool (H, W); looked for if it is not given.

    Returns:
        float32 (H, W, 3) in [0, 1]; untouched outside the field.
    """
    scene = Scene(fundus_field(picture) if field is None else field)
    source = np.ascontiguousarray(picture.transpose(2, 0, 1), np.float32).transpose(1, 2, 0)
    out, _ = camera_colours(source, scene, rng, rng.uniform(0, 0.5))
    stops = rng.uniform(-1.3, -0.5) if rng.random() < 0.35 else rng.uniform(-0.4, 0.3)
    # A gain that would burn the bright disc out is no ordinary eye's.
    greens = out[::4, ::4, 1][scene.field[::4, ::4]]
    brightest = float(np.quantile(greens, 0.99)) if greens.size else 1.0
    gain = min(2**stops, max(0.95 / max(brightest, 0.05), 1.0))
    rim = 1 - rng.uniform(0, 0.35) * np.clip(scene.radius, 0, 1.2) ** rng.uniform(2, 4)
    out = out * scene.enlarge(gain * rim)[..., None]
    return np.ascontiguousarray(np.clip(source + scene.weight * (np.clip(out, 0, 1) - source), 0, 1), np.float32)


CLINICAL = Model(
    fundus_field,
    {
        haze: 0.9,
        lens_colour: 0.4,
        small_pupil: 0.25,
        exposure: 0.6,
        flare: 0.5,
        reflexes: 0.2,
        spots: 0.2,
        defocus: 0.3,
        motion: 0.08,
        camera_colours: 0.3,
        noise: 0.9,
        jpeg: 0.4,
    },
    ordinary_eye,
)
