"""Panels, other views and blotted-out boxes within an endoscopic picture stay as they are."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from medenhance_dicom.masks import field_of_view, insets


def mucosa(height=256, width=256, seed=0):
    """Folds, reflexes and a dark lumen in an octagon on black."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    folds = ndimage.gaussian_filter(rng.standard_normal((height, width)), 12)
    light = 0.7 + 4 * folds - 0.6 * np.exp(-(((y - 100) / 30) ** 2 + ((x - 150) / 40) ** 2))
    frame = light[..., None] * np.array([0.9, 0.55, 0.45])
    frame += (ndimage.gaussian_filter(rng.standard_normal((height, width)), 2) > 0.32)[..., None] * 0.6
    frame += 0.01 * rng.standard_normal(frame.shape)
    octagon = np.abs(y - height / 2) / height + np.abs(x - width / 2) / width < 0.75
    return np.where(octagon[..., None], np.clip(frame, 0.02, 1), 0.01).astype(np.float32)


def panel(height, width, colour):
    """A shaded panel with a coiled endoscope drawn upon it."""
    canvas = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(canvas)
    for row in range(height):
        draw.line((0, row, width, row), fill=tuple(int(c * (0.75 + 0.4 * row / height)) for c in colour))
    coil = [(width * (0.5 + 0.35 * np.sin(i / 4)), height * (0.1 + 0.8 * i / 20)) for i in range(21)]
    draw.line(coil, fill=(185, 215, 175), width=max(2, width // 14))
    return np.asarray(canvas).astype(np.float32) / 255


@pytest.mark.parametrize("corner", ["lower left", "lower right", "upper left", "upper right"])
@pytest.mark.parametrize("colour", [(20, 130, 60), (60, 110, 80), (3, 3, 3), (70, 70, 70), (30, 60, 150)])
def test_a_panel_in_a_corner_is_found(corner, colour):
    frame, (height, width) = mucosa(), (84, 82)
    rows = slice(256 - height, 256) if "lower" in corner else slice(0, height)
    columns = slice(256 - width, 256) if "right" in corner else slice(0, width)
    frame[rows, columns] = panel(height, width, colour)
    found = insets(frame)
    assert found[rows, columns].all()
    assert found.mean() < 1.15 * height * width / 256**2
    assert not field_of_view(frame, "border")[rows, columns].any()


@pytest.mark.parametrize("place", [(150, 12), (100, 120), (20, 90)])
def test_a_green_panel_is_found_anywhere_and_in_large_frames(place):
    frame = np.kron(mucosa(), np.ones((4, 4, 1), np.float32))
    rows, columns = (slice(4 * start, 4 * start + 280) for start in place)
    frame[rows, columns] = panel(280, 280, (25, 120, 60))
    found = insets(frame)
    assert found[rows, columns].all()
    assert found.mean() < 0.1


@pytest.mark.parametrize("seed", range(6))
def test_reflexes_dye_and_bluish_light_are_no_insets(seed):
    frame = mucosa(seed=seed)
    assert not insets(frame).any()
    assert not insets(frame[..., [2, 1, 0]]).any()  # bluish all over
    y, x = np.ogrid[:256, :256]
    dyed = (y - 150) ** 2 + ((x - 120) / 1.5) ** 2 < 35**2
    frame[dyed] *= np.array([0.3, 0.8, 1.3], np.float32)
    assert not insets(frame).any()
    assert not insets(frame[:40, :40]).any()


@pytest.mark.slow
def test_real_endoscopes_corner_boxes_are_found_and_nothing_else(data_folder):
    """Boxes at the lower left that upstream blotted out, redrawn as green panels; beside pictures that have none."""
    paths = sorted((data_folder / "endoscopy/kvasir_seg_256/images").glob("*"))[::7]
    boxes, others = 0, 0
    for path in paths:
        frame = np.asarray(Image.open(path).convert("RGB")).astype(np.float32) / 255
        black = frame.max(axis=2) < 0.1
        square = black[190:, 4:70]
        if square.all() and not black[190:, :130].all():
            row = int(np.flatnonzero(~black[:, 4:60].all(axis=1))[-1]) + 1
            column = int(np.flatnonzero(~black[190:].all(axis=0))[0])
            boxes += 1
            frame[row:, :column] = panel(256 - row, column, (25, 120, 60))
            assert insets(frame)[row:, :column].mean() > 0.98, path.name
            assert not field_of_view(frame, "border")[row:, :column][2:-2, 2:-2].any(), path.name
        elif square[:, :22].mean() < 0.9 and square[:, 26:].mean() < 0.5:
            others += 1
            assert not insets(frame).any(), path.name
    assert boxes >= 25
    assert others >= 20
