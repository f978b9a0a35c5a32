from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from medenhance_dicom.masks import burned_in_text, field_of_view


def picture(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(np.float32) / 255


def disk(height, width, row, column, radius):
    y, x = np.ogrid[:height, :width]
    return (y - row) ** 2 + (x - column) ** 2 <= radius**2


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def sector():
    """Speckle in a fan on black, 480 x 640, as ultrasound has it."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:480, :640]
    fan = (np.hypot(y - 20, x - 320) < 400) & (np.abs(np.arctan2(x - 320, y - 20)) < 0.7) & (y > 40)
    speckle = np.clip(0.1 + 0.25 * rng.rayleigh(0.6, (480, 640)), 0, 0.6)
    return (fan * speckle).astype(np.float32), fan


def test_everything_counts_where_no_field_is_asked_for_or_found():
    grey = np.full((50, 60, 3), 0.5, np.float32)
    for kind in ("none", "ellipse", "border"):
        assert field_of_view(grey, kind).all()
        assert field_of_view(np.zeros((40, 40, 1), np.float32), kind).all()
        assert field_of_view(np.zeros((1, 5, 1), np.float32), kind).shape == (1, 5)


@pytest.mark.parametrize("shape", [(300, 320), (1868, 2226), (960, 999)])
def test_a_round_field_is_found_at_every_size(shape):
    height, width = shape
    inside = disk(height, width, height / 2, width / 2, 0.45 * height)
    frame = np.repeat(np.where(inside, 0.5, 0.01)[..., None], 3, axis=2).astype(np.float32)
    assert overlap(field_of_view(frame, "ellipse"), inside) > 0.97


def test_a_dark_part_of_the_rim_still_belongs_to_a_round_field():
    inside = disk(400, 400, 200, 200, 180)
    shade = np.clip(np.linspace(-0.15, 0.8, 400), 0.005, 1)
    frame = (inside * shade)[..., None].repeat(3, 2).astype(np.float32)
    found = field_of_view(frame, "ellipse")
    assert (found & inside).sum() / inside.sum() > 0.85
    assert not (found & ~disk(400, 400, 200, 200, 182)).any()


def test_a_lens_shape_is_cut_where_the_picture_ends():
    inside = disk(300, 400, 150, 200, 190)
    frame = np.repeat(np.where(inside, 0.4, 0.0)[..., None], 3, axis=2).astype(np.float32)
    found = field_of_view(frame, "ellipse")
    assert overlap(found, inside) > 0.97
    assert found[0, 200]


def test_an_endoscope_s_field_leaves_out_corners_inset_and_writing_but_not_the_lumen():
    inside = np.ones((400, 400), bool)
    y, x = np.mgrid[:400, :400]
    inside &= (np.abs(y - 200) + np.abs(x - 200)) < 300
    inside[300:, :150] = False
    frame = np.where(inside, 0.6, 0.0)
    frame[disk(400, 400, 150, 220, 40)] = 0.0
    frame[20:28, 10:60:6] = 1.0  # writing in the corner
    found = field_of_view(frame[..., None].astype(np.float32), "border")
    assert overlap(found, inside) > 0.97
    assert found[150, 220]
    assert not found[20:28, 10:60].any()
    assert not found[350, 50]


def test_real_endoscopic_fields(data_folder):
    for path in sorted((data_folder / "endoscopy" / "kvasir_seg_fullres" / "images").glob("*")):
        frame = picture(path)
        found = field_of_view(frame, "border")
        bright = frame.max(axis=2) > 0.2
        assert (found & bright).sum() / bright.sum() > 0.97, path.name
        assert not found[:6, :6].any()


def test_captions_and_rulers_of_ultrasound_are_found_and_speckle_is_not():
    clean, fan = sector()
    canvas = Image.fromarray((clean * 255).astype(np.uint8))
    draw = ImageDraw.Draw(canvas)
    draw.text((10, 10), "NAME 12.5 cm", fill=255)
    draw.text((300, 200), "LIVER 42 mm", fill=255)  # upon the picture itself
    draw.line((20, 440, 120, 440), fill=200)
    frame = (np.asarray(canvas).astype(np.float32) / 255)[..., None]
    written = np.abs(frame[..., 0] - clean) > 0.2
    text = burned_in_text(frame)
    assert text.dtype == bool
    assert text[written].mean() > 0.97
    far = fan.copy()
    far[180:230, 270:400] = False
    assert text[far].mean() < 0.02


def test_coloured_overlays_of_a_grey_picture_are_kept():
    clean, _ = sector()
    frame = clean[..., None].repeat(3, 2)
    frame[200:203, 250:400] = [0.1, 0.9, 0.2]
    assert burned_in_text(frame)[201, 250:400].all()


def test_a_date_on_mucosa_is_found(data_folder):
    path = sorted((data_folder / "endoscopy" / "kvasir_seg_fullres" / "images").glob("*"))[0]
    frame = picture(path)  # 15/03/2012 and three more lines at the left edge
    text = burned_in_text(frame)
    rows = np.flatnonzero(text[:, :60].sum(axis=1) > 5)
    assert text.mean() < 0.06
    assert rows.min() > 120
    assert rows.max() < 260
    assert rows.size > 40


@pytest.mark.parametrize("colour", [(0.9, 0.55, 0.45), (0.75, 0.45, 0.3), (0.6, 0.25, 0.2)])
def test_white_writing_on_bright_pink_is_found(colour):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256]
    light = 1 + 0.1 * np.sin(x / 40) * np.cos(y / 50)
    tissue = np.clip(light[..., None] * np.array(colour) + 0.01 * rng.standard_normal((256, 256, 3)), 0, 1)
    canvas = Image.fromarray((255 * tissue).astype(np.uint8))
    for line, words in enumerate(("15/03/2012", "12:31:02", "CVP:5")):
        ImageDraw.Draw(canvas).text((4, 90 + 12 * line), words, fill=(235, 235, 235))
    frame = np.asarray(canvas).astype(np.float32) / 255
    written = np.abs(frame - np.floor(tissue * 255) / 255).max(axis=2) > 0.2
    text = burned_in_text(frame)
    assert text[written].mean() > 0.97
    assert text[:, 90:].mean() < 0.01


def test_a_picture_without_writing_is_left_alone():
    rng = np.random.default_rng(0)
    smooth = np.clip(0.5 + 0.02 * rng.standard_normal((300, 300, 1)), 0, 1).astype(np.float32)
    assert not burned_in_text(smooth).any()
    assert not burned_in_text(np.zeros((1, 5, 3), np.float32)).any()
