"""The eye before the retina: its lens (colour and haze) and its pupil.

After the double-pass fundus reflection model (Zhang, Webers, Berendschot 2022, "A double-pass fundus reflection model
for efficient single retinal image enhancement", Signal Processing 192): light goes through the lens to the retina and
back, so what the retina sends is weakened by the square of the lens's transmission, while what the lens itself scatters
back was weakened once. The transmission falls to the blue (van de Kraats, van Norren 2007, JOSA A 24).
"""

from __future__ import annotations

import numpy as np

from medenhance_dicom.training.degradation.scene import Scene, Seen
from medenhance_dicom.training.degradation.simple import Picture

DENSITY = np.array([0.08, 0.32, 1.0], np.float32)  # of an ageing lens in red, green and blue, of its density in blue
WHITE = np.array([0.86, 0.74, 0.58], np.float32)  # of the lamp as a fundus camera shows white
FLOOR = 0.03  # noise of a camera: contrast at this level is half seen


def contrast_left(signal: Picture, veil: Picture) -> Picture:
    """The share of relative contrast that is left of a signal under a veil: signal / (signal + veil)."""
    return signal / np.maximum(signal + veil, 1e-4)


def lens_colour(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """A yellow lens: I T^2 with T = 10^(-D), D = `DENSITY` d (S + 0.5), exposed again by a share.

    d, the density in the blue of one pass, goes to 0.5; S is a smooth field.
    """
    density = strength * rng.uniform(0.1, 0.5)
    place = density * (scene.waves(rng) + 0.5)
    exposed = 10 ** (2 * density * rng.uniform(0, 0.15))
    passed = [exposed * 10 ** (-2 * d * place) for d in DENSITY]
    return picture * scene.enlarge_colours(*passed), 1.0


def haze(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """A cloudy lens: I t + A (1 - t), t = exp(-thickness), A the lamp's white after one pass through the lens.

    The thickness, 2.5 at most, varies smoothly, grows to the rim, or sits in one place; A lies between the fundus's own
    mean and white.
    """
    mean = scene.mean(picture)
    lens = 10 ** (-DENSITY * rng.uniform(0.15, 0.85))
    white = WHITE * lens * rng.uniform(0.85, 1.35) * rng.uniform(0.9, 1.1, 3)
    veil = (mean + (white - mean) * rng.uniform(0.35, 1.0)).astype(np.float32)
    kind = rng.random()
    place = scene.waves(rng)
    if kind < 0.3:
        place = np.clip(0.35 * place + 0.75 * scene.radius ** rng.uniform(1.5, 5), 0, 1.3)
    elif kind < 0.45:
        y, x = scene.place
        cy, cx = rng.uniform(-0.7, 0.7, 2)
        place = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * rng.uniform(0.25, 0.7) ** 2))
    least = rng.uniform(0.0, 0.85)
    thickness = strength * rng.uniform(0.7, 2.4) * (least + (1 - least) * place)
    passed = np.exp(-np.minimum(thickness, 2.5))
    seen = contrast_left(passed * scene.coarse(picture), (1 - passed) * veil[1])
    t = scene.enlarge(passed)[..., None]
    return veil + t * (picture - veil), scene.enlarge(seen)


def small_pupil(picture: Picture, scene: Scene, rng: np.random.Generator, strength: float) -> tuple[Picture, Seen]:
    """Light through too small or missed a pupil: a dark ring or an off-centre dark crescent, red to the last.

    I L^(0.85, 1, 1.1), L = f + (1 - f) / (1 + exp((r - r0) / w)): r is the distance from a point off the centre.
    """
    y, x = scene.place
    angle, off = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.75)
    distance = np.sqrt((y - off * np.sin(angle)) ** 2 + (x - off * np.cos(angle)) ** 2)
    floor = 1 - strength * rng.uniform(0.4, 0.95)
    edge = (distance - rng.uniform(0.65, 1.15)) / rng.uniform(0.08, 0.32)
    light = floor + (1 - floor) / (1 + np.exp(np.clip(edge, -30, 30)))
    signal = scene.coarse(picture)
    seen = np.minimum(1, light * (signal + FLOOR) / (light * signal + FLOOR))
    return picture * scene.enlarge_colours(light**0.85, light, light**1.1), scene.enlarge(seen)
