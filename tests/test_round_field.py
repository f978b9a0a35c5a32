"""The round field of a fundus camera: in surrounds of any colour, cut in all ways, and on pictures checked by eye."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medenhance_dicom.masks import field_of_view
from medenhance_dicom.masks.round_field import RoundField

TABLE = Path(__file__).with_name("hand_checked_fields.csv")
SIDE = 360
RADIUS = 165


def boundary(mask):
    return mask & ~ndimage.binary_erosion(mask, border_value=1)


def gap(found, wanted):
    """How far the two boundaries are apart, in widths: the 98th percentile, from each to the other."""
    one, other = boundary(found), boundary(wanted)
    if not one.any() or not other.any():
        return float(one.any() != other.any())
    apart = [np.percentile(ndimage.distance_transform_edt(~a)[b], 98) for a, b in ((one, other), (other, one))]
    return max(apart) / max(found.shape)


def eye(height=SIDE, width=SIDE, row=SIDE / 2, column=SIDE / 2, a=RADIUS, b=RADIUS, seed=0):
    """(picture in [0, 1], where the field is): uneven light, a disc, dark vessels, a dark rim to the left."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(float)
    v, u = (y - row) / a, (x - column) / b
    light = 0.75 + 0.25 * u - 0.15 * v - 0.3 * np.clip(np.hypot(u + 0.2, v) - 0.5, 0, None)
    vessels = np.ones((height, width))
    for _ in range(9):
        line = np.abs(
            np.cos(rng.uniform(0, 3.1)) * u
            + np.sin(rng.uniform(0, 3.1)) * v
            + 0.3 * np.sin(3 * u)
            + rng.uniform(-0.5, 0.5)
        )
        vessels *= 1 - 0.35 * np.exp(-((line / 0.02) ** 2))
    disc = 1 / (1 + np.exp((np.hypot(u - 0.5, v) - 0.17) * 60))
    colour = np.array([0.75, 0.4, 0.2])
    picture = (light * vessels)[..., None] * colour + disc[..., None] * np.array([0.25, 0.3, 0.2])
    picture += 0.01 * rng.standard_normal(picture.shape)
    return np.clip(picture, 0.01, 1), np.hypot(u, v) <= 1


def photograph(picture, inside, surround):
    """The field in a surround, with an edge that is as soft as a camera's, as JPEG has it."""
    share = ndimage.gaussian_filter(inside.astype(float), 0.8)[..., None]
    whole = share * picture + (1 - share) * surround
    buffer = io.BytesIO()
    Image.fromarray((255 * np.clip(whole, 0, 1)).astype(np.uint8)).save(buffer, "JPEG", quality=70)
    return np.asarray(Image.open(buffer)).astype(np.float32) / 255


def surrounds():
    rng = np.random.default_rng(5)
    y, x = np.mgrid[:SIDE, :SIDE] / SIDE
    return {
        "black": 0.01,
        "grey": 0.5,
        "white": 1.0,
        "noisy black": np.abs(rng.normal(0.02, 0.03, (SIDE, SIDE, 3))),
        "noisy grey": 0.4 + rng.normal(0, 0.03, (SIDE, SIDE, 3)),
        "bluish glare": np.clip(0.1 + 0.6 * x + 0.3 * y, 0, 1)[..., None] * np.array([0.5, 0.65, 0.85]),
    }


@pytest.mark.parametrize("name", surrounds())
def test_the_field_is_found_whatever_the_surround_is(name):
    picture, inside = eye()
    assert gap(field_of_view(photograph(picture, inside, surrounds()[name]), "ellipse"), inside) < 0.01


@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        ((60, 300), (0, 360)),
        ((0, 360), (60, 300)),
        ((52, 308), (52, 308)),
        ((0, 360), (0, 200)),
        ((40, 360), (90, 360)),
    ],
)
@pytest.mark.parametrize("surround", [0.01, 0.6])
def test_the_frame_cuts_the_field(rows, columns, surround):
    picture, inside = eye()
    frame = photograph(picture, inside, surround)[slice(*rows), slice(*columns)]
    wanted = inside[slice(*rows), slice(*columns)]
    assert gap(field_of_view(frame, "ellipse"), wanted) < 0.01


@pytest.mark.parametrize("box", [(60, 310, 0, 360), (0, 330, 40, 360), (45, 320, 50, 300)])
@pytest.mark.parametrize("bar", [0.01, 0.5])
def test_straight_bars_cut_the_field(box, bar):
    picture, inside = eye()
    top, bottom, left, right = box
    kept = np.zeros_like(inside)
    kept[top:bottom, left:right] = True
    frame = photograph(picture, inside & kept, bar)
    assert gap(field_of_view(frame, "ellipse"), inside & kept) < 0.01


def test_a_square_cut_out_of_the_field_is_all_field():
    for seed in range(2):
        picture, inside = eye(seed=seed)
        frame = photograph(picture, inside, 0.01)[70:290, 70:290]
        assert field_of_view(frame, "ellipse").all()


@pytest.mark.parametrize(("a", "b"), [(150, 210), (120, 165), (165, 130)])
def test_wide_and_tall_fields_are_ellipses(a, b):
    picture, inside = eye(340, 440, 170, 220, a, b)
    assert gap(field_of_view(photograph(picture, inside, 0.01), "ellipse"), inside) < 0.01


def test_lashes_and_lids_take_nothing_from_a_wide_field():
    picture, inside = eye(340, 440, 170, 220, 150, 205)
    rng = np.random.default_rng(2)
    edge = 270 + ndimage.gaussian_filter1d(rng.normal(0, 40, 440), 3) - 20 * np.sin(np.arange(440) / 140)
    lid = np.clip((np.arange(340)[:, None] - edge) / 6, 0, 1)[..., None]
    frame = photograph(picture * (1 - 0.9 * lid), inside, 0.01)
    assert gap(field_of_view(frame, "ellipse"), inside) < 0.01


def test_a_small_field_with_writing_in_its_surround():
    picture, inside = eye(500, 600, 250, 290, 140, 140)
    surround = np.full((500, 600, 3), 0.02)
    for column in range(20, 200, 9):
        surround[20:34, column : column + 4] = 0.9
    surround[440:470, 500:590] = (0.2, 0.5, 0.2)
    assert gap(field_of_view(photograph(picture, inside, surround), "ellipse"), inside) < 0.01


def test_vignetting_is_no_edge():
    y, x = np.mgrid[:300, :360]
    light = np.exp(-(((y - 150) / 130) ** 2 + ((x - 180) / 160) ** 2))
    frame = (light[..., None] * np.array([0.8, 0.4, 0.2])).astype(np.float32)
    assert field_of_view(frame, "ellipse").all()


@pytest.mark.slow
def test_the_same_picture_larger_has_the_same_field():
    picture, inside = eye()
    frame = photograph(picture, inside, 0.5)
    large = np.asarray(Image.fromarray((255 * frame).astype(np.uint8)).resize((1500, 1500), Image.Resampling.BICUBIC))
    wanted = np.asarray(Image.fromarray(inside).resize((1500, 1500)))
    assert gap(field_of_view(large.astype(np.float32) / 255, "ellipse"), wanted) < 0.01


def checked_by_eye():
    with TABLE.open(encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def check(data_folder, entries):
    wide = []
    for entry in entries:
        path = data_folder / entry["file"]
        frame = np.asarray(Image.open(path).convert("RGB")).astype(np.float32) / 255
        ellipse = tuple(float(entry[key]) for key in ("row", "column", "half_height", "half_width"))
        box = tuple(int(entry[key]) for key in ("top", "bottom", "left", "right"))
        wanted = RoundField(ellipse, *box).mask(frame.shape[:2])
        if (apart := gap(field_of_view(frame, "ellipse"), wanted)) >= 0.01:
            wide.append((entry["file"], round(apart, 4)))
    assert not wide


@pytest.mark.slow
def test_a_picture_of_every_set_checked_by_eye(data_folder):
    entries = {entry["file"].split("/")[1]: entry for entry in checked_by_eye()}
    assert len(entries) == 6
    check(data_folder, entries.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({entry["file"].split("/")[1] for entry in checked_by_eye()}))
def test_all_pictures_checked_by_eye(data_folder, name):
    entries = [entry for entry in checked_by_eye() if entry["file"].split("/")[1] == name]
    assert len(entries) >= 10
    check(data_folder, entries)
