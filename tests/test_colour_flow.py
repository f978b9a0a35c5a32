"""Doppler is recognised by its pixels, whatever the header says."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from medenhance_dicom.colour_flow import shows_flow
from medenhance_dicom.decoding import Decoder
from medenhance_dicom.frames import pixel_format, stored_frame
from medenhance_dicom.part10 import read_instance
from tests.flow import enhance, write

HEIGHT, WIDTH = 240, 320


def tissue():
    """Speckle in a sector, (HEIGHT, WIDTH, 3) in 0..255."""
    rng = np.random.default_rng(3)
    speckle = ndimage.gaussian_filter(rng.rayleigh(1, (HEIGHT, WIDTH)), 1.2)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    sector = (np.hypot(y, x - WIDTH / 2) < 230) & (np.abs(x - WIDTH / 2) < 0.7 * y) & (y > 20)
    grey = np.clip(40 + 120 * (speckle - 0.8), 0, 255) * sector
    return np.repeat(grey[..., None], 3, axis=2)


def with_flow(picture, *, hot=False, side=60):
    """A box of velocities in red and blue, or of power in red to yellow, beside what is left of the tissue."""
    rng = np.random.default_rng(4)
    field = ndimage.gaussian_filter(rng.normal(size=(side, side)), side / 12)
    field = np.clip(field / field.std(), -2, 2) / 2
    strong = np.abs(field) > 0.2
    speed = 90 + 160 * np.abs(field)
    if hot:
        colour = np.stack([speed, 0.6 * speed * np.abs(field), np.zeros_like(speed)], axis=-1)
    else:
        ahead, away = (np.where(side_, speed, 0) for side_ in (field > 0, field <= 0))
        colour = np.stack([ahead, 0.3 * speed * np.abs(field), away], axis=-1)
    result = picture.copy()
    box = result[100 : 100 + side, 140 : 140 + side]
    box[strong] = colour[strong]
    return result


def with_graphics(picture):
    """Coloured text, calipers, an ECG trace, a header with a gradient, a logo, a box outline and a body mark."""
    drawn = Image.fromarray(picture.astype(np.uint8))
    pen = ImageDraw.Draw(drawn)
    for row in range(14):
        pen.line([(0, row), (WIDTH, row)], fill=(20, 40 + 4 * row, 90 + 6 * row))
    pen.text((4, 30), "Vel 12.3 cm/s", fill=(255, 255, 0))
    pen.text((4, 45), "HR 72", fill=(0, 255, 0))
    pen.line([(10 * n, 225 - 12 * (n % 4 == 0)) for n in range(33)], fill=(0, 255, 60), width=2)
    pen.line([(120, 80), (180, 130)], fill=(0, 255, 255), width=1)
    pen.polygon([(130, 90), (200, 90), (220, 180), (110, 180)], outline=(0, 200, 255))
    pen.ellipse([(290, 20), (310, 40)], fill=(0, 90, 200))
    pen.rounded_rectangle([(285, 190), (305, 215)], 4, fill=(210, 160, 130))
    return np.asarray(drawn).astype(np.float64)


def tinted(picture, colour=(1.0, 0.78, 0.5)):
    """Seen through a map from grey to a colour, as B-mode often is."""
    return picture * np.array(colour)


def jpeg(picture):
    buffer = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(buffer, "JPEG", quality=80)
    return np.asarray(Image.open(buffer)).astype(np.float64)


def found(picture):
    return [shows_flow((p / 255).astype(np.float32)) for p in (picture, jpeg(picture))]


def test_grey_tissue_shows_no_flow_whatever_is_drawn_on_it():
    assert found(tissue()) == [False, False]
    assert found(with_graphics(tissue())) == [False, False]


@pytest.mark.parametrize("hot", [False, True])
@pytest.mark.parametrize("side", [24, 60, 110])
def test_velocity_and_power_in_colour_are_found(hot, side):
    assert found(with_flow(tissue(), hot=hot, side=side)) == [True, True]
    assert found(with_flow(with_graphics(tissue()), hot=hot, side=side)) == [True, True]


def test_even_colour_is_found_amid_tissue_or_where_it_runs_two_ways():
    for row, column, colours, flow in (
        (100, 140, ((220, 0, 0), (220, 0, 0)), True),
        (100, 140, ((220, 0, 0), (0, 0, 220)), True),
        (100, 4, ((220, 0, 0), (0, 0, 220)), True),  # a colour bar
        (100, 4, ((0, 60, 220), (0, 60, 220)), False),  # a logo
    ):
        picture = tissue()
        picture[row : row + 30, column : column + 20], picture[row : row + 30, column + 20 : column + 40] = colours
        assert found(picture) == [flow, flow], (row, column, colours)


def test_a_map_over_all_tissue_is_found():
    """As elastography: from red to blue, half transparent."""
    hue = np.linspace(0, 4, WIDTH)[None, :, None]
    rainbow = 255 * np.clip(2 - np.abs((hue - np.array([0, 2, 4]) + 3) % 6 - 3), 0, 1)
    picture = tissue()
    assert found(np.where(picture > 0, (picture + rainbow) / 2, 0)) == [True, True]


@pytest.mark.parametrize("colour", [(1.0, 0.78, 0.5), (0.45, 0.65, 1.0), (1.0, 0.6, 0.25), (0.4, 1.0, 0.8)])
def test_a_tint_common_to_all_tissue_is_no_flow(colour):
    assert found(tinted(tissue(), colour)) == [False, False]
    assert found(with_flow(tinted(tissue(), colour), side=40)) == [True, True]


def test_a_picture_that_is_coloured_all_over_is_no_ultrasound_of_tissue():
    from skimage import data

    assert found(data.retina()[300:700, 300:800]) == [False, False]
    assert found(data.coffee()) == [False, False]
    assert not shows_flow(np.zeros((64, 64, 3), np.float32))


# ---------------------------------------------------------------------------------------------------- in DICOM files


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("US", {}),
        ("US", {"UltrasoundColorDataPresent": 0}),
        ("SC", {"Modality": "US", "SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0,
                "BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}),
    ],
)  # fmt: skip
def test_colour_doppler_without_the_flag_is_refused(tmp_path, name, more):
    path = write(tmp_path, 1, name, with_flow(tissue()), **more)
    (outcome,) = enhance([path], tmp_path / "out", recipe="identity")
    assert outcome.result == "skipped"
    assert outcome.reason.startswith("DOPPLER: ")
    assert not list(tmp_path.rglob("out/**/*.dcm"))


def test_grey_tissue_with_the_flag_is_enhanced(tmp_path):
    path = write(tmp_path, 1, "US", with_graphics(tissue()), UltrasoundColorDataPresent=1)
    (outcome,) = enhance([path], tmp_path / "out", gate="off")
    assert outcome.result == "enhanced", outcome.reason
    assert outcome.verdict["max_change"] > 0


def test_every_frame_is_looked_at(tmp_path):
    cine = np.stack([tissue(), tissue(), with_flow(tissue())])
    path = write(tmp_path, 1, "USMultiFrame", cine, UltrasoundColorDataPresent=0)
    (outcome,) = enhance([path], tmp_path / "out", recipe="identity")
    assert outcome.reason.startswith("DOPPLER: frame 3 ")


def first_frame(path, decoder):
    instance = read_instance(Path(path))
    stored = stored_frame(instance, decoder.frame(Path(path), 0), 0).stored
    return (stored / pixel_format(instance).maximum).astype(np.float32)


@pytest.mark.slow
def test_real_pictures(data_folder):
    """As they look: power and colour Doppler without the flag, and a grey picture with a coloured header."""
    from pydicom.data import get_testdata_file

    dicom = data_folder / "dicom"
    frames = dicom / "dicomParser" / "testImages" / "encapsulated" / "multi-frame"
    doppler = (
        dicom / "htj2k_chafey" / "US1_UNC.dcm",
        dicom / "dcm4che" / "US-PAL-8-10x-echo",
        frames / "IM00001.implicit_little_endian.dcm",
        frames / "IM00001.fragmented_no_bot_jpeg_baseline.50.dcm",
    )
    grey = [get_testdata_file(name) for name in ("examples_palette.dcm", "examples_ybr_color.dcm")]
    with Decoder() as decoder:
        assert [path.name for path in doppler if not shows_flow(first_frame(path, decoder))] == []
        assert [path for path in grey if shows_flow(first_frame(path, decoder))] == []
