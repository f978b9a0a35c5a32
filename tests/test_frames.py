"""Pixel values in, pixel values out: every format, worked by hand or against the law that no change changes nothing."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom import Dataset, dcmwrite
from pydicom.dataset import FileMetaDataset
from pydicom.pixels import convert_color_space
from pydicom.uid import (
    JPEG2000,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import DerivationError, UnreadableInstanceError, UnsupportedInstanceError
from medenhance_dicom.frames import (
    ModalityLine,
    StoredFrame,
    encode_residual,
    modality_line,
    pixel_format,
    stored_frame,
    to_modality,
    voi_windows,
)
from medenhance_dicom.part10 import read_instance

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian)


def header(rows=2, columns=3, allocated=16, stored=12, signed=False, photometric="MONOCHROME2", **more):
    instance = Dataset()
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    instance.SOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    instance.SOPInstanceUID = "2.25.1"
    instance.SamplesPerPixel = 3 if photometric.startswith(("RGB", "YBR")) else 1
    instance.PhotometricInterpretation = photometric
    if instance.SamplesPerPixel == 3:
        instance.PlanarConfiguration = 0
    instance.Rows, instance.Columns = rows, columns
    instance.BitsAllocated, instance.BitsStored, instance.HighBit = allocated, stored, stored - 1
    instance.PixelRepresentation = int(signed)
    for keyword, value in more.items():
        setattr(instance, keyword, value)
    return instance


def write(instance: Dataset, cells: np.ndarray, syntax: str, path: Path) -> None:
    """cells: (frames, ...) unsigned, little endian by value."""
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    data = cells.astype(cells.dtype.newbyteorder(order)).tobytes()
    instance.PixelData = data + b"\0" * (len(data) % 2)
    instance["PixelData"].VR = "OW" if instance.BitsAllocated > 8 else "OB"
    instance.NumberOfFrames = len(cells)
    instance.file_meta.TransferSyntaxUID = syntax
    dcmwrite(path, instance, enforce_file_format=True)


def frames_of(path: Path, decoder: Decoder):
    decoder.probe(path)
    instance = read_instance(path)
    pixels = pixel_format(instance)
    return instance, pixels, [stored_frame(instance, decoder.frame(path, i), i) for i in range(pixels.number_of_frames)]


def assert_nothing_changes(instance, pixels, frame, index=0):
    again = encode_residual(frame, np.zeros(frame.stored.shape), modality_line(instance, index), pixels)
    assert again.dtype == frame.stored.dtype == pixels.dtype
    np.testing.assert_array_equal(again, frame.stored)


@st.composite
def gray_instances(draw):
    allocated = draw(st.sampled_from([8, 16]))
    stored = draw(st.sampled_from([b for b in (7, 8, 10, 12, 15, 16) if b <= allocated]))
    high_bit = draw(st.integers(stored - 1, allocated - 1))
    signed = draw(st.booleans())
    frames, rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    low = -(1 << stored - 1) if signed else 0
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.integers(low, low + (1 << stored), (frames, rows, columns))
    shift = high_bit + 1 - stored
    mask = ((1 << stored) - 1) << shift
    junk = rng.integers(0, 1 << allocated, values.shape) if draw(st.booleans()) else 0
    cells = (((values & ((1 << stored) - 1)) << shift) | (junk & ~mask)).astype(f"u{allocated // 8}")
    instance = header(
        rows,
        columns,
        allocated,
        stored,
        signed,
        draw(st.sampled_from(["MONOCHROME1", "MONOCHROME2"])),
        HighBit=high_bit,
    )
    if draw(st.booleans()):
        instance.RescaleSlope = draw(st.sampled_from(["0", "1", "0.00123", "-2", "1e6"]))
        instance.RescaleIntercept = draw(st.sampled_from(["0", "-1024", "0.5"]))
    if draw(st.booleans()):
        vr = "SS" if signed else "US"
        instance.add_new("PixelPaddingValue", vr, int(values.flat[0]))
        if draw(st.booleans()):
            instance.add_new("PixelPaddingRangeLimit", vr, int(values.flat[-1]))
    return instance, cells, values, draw(st.sampled_from(NATIVE))


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(gray_instances())
def test_no_change_gives_the_stored_pixels_back_for_every_gray_format(decoder, tmp_path, case):
    instance, cells, values, syntax = case
    write(instance, cells, syntax, tmp_path / "gray.dcm")
    instance, pixels, frames = frames_of(tmp_path / "gray.dcm", decoder)
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.stored[..., 0], values[index])
        assert_nothing_changes(instance, pixels, frame, index)
        if "PixelPaddingValue" in instance:
            ends = sorted(
                [instance.PixelPaddingValue, instance.get("PixelPaddingRangeLimit", instance.PixelPaddingValue)]
            )
            meant = (values[index] >= ends[0]) & (values[index] <= ends[1])
            assert frame.padding[meant].all()


@st.composite
def colour_instances(draw):
    allocated = draw(st.sampled_from([8, 16]))
    photometric = draw(st.sampled_from(["RGB", "YBR_FULL"] if allocated == 8 else ["RGB"]))
    planar = draw(st.integers(0, 1))
    frames, rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.integers(0, 1 << allocated, (frames, rows, columns, 3)).astype(f"u{allocated // 8}")
    cells = np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if planar else values
    instance = header(rows, columns, allocated, allocated, False, photometric, PlanarConfiguration=planar)
    expected = convert_color_space(values, "YBR_FULL", "RGB") if photometric == "YBR_FULL" else values
    return instance, cells, expected, draw(st.sampled_from(NATIVE))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(colour_instances())
def test_no_change_gives_the_stored_pixels_back_for_every_colour_format(decoder, tmp_path, case):
    instance, cells, expected, syntax = case
    write(instance, cells, syntax, tmp_path / "colour.dcm")
    instance, pixels, frames = frames_of(tmp_path / "colour.dcm", decoder)
    assert (pixels.photometric_out, pixels.samples) == ("RGB", 3)
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.stored, expected[index])
        assert frame.padding is None
        assert_nothing_changes(instance, pixels, frame, index)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("stored", [8, 12, 16])
def test_lossless_codecs_give_the_stored_values(decoder, tmp_path, syntax, signed, stored):
    if signed and syntax == JPEGLSLossless:
        pytest.skip("pydicom does not encode signed JPEG-LS")
    low = -(1 << stored - 1) if signed else 0
    allocated = 8 if stored == 8 else 16
    values = np.random.default_rng(7).integers(low, low + (1 << stored), (38, 33))
    instance = header(38, 33, allocated, stored, signed)
    instance.PixelData = values.astype(f"<i{allocated // 8}").tobytes()
    instance["PixelData"].VR = "OW" if allocated == 16 else "OB"
    instance.compress(syntax, generate_instance_uid=False)
    instance.save_as(tmp_path / "x.dcm", enforce_file_format=True)
    instance, pixels, (frame,) = frames_of(tmp_path / "x.dcm", decoder)
    np.testing.assert_array_equal(frame.stored[..., 0], values)
    assert_nothing_changes(instance, pixels, frame)


def test_big_endian_words_of_8_bit_cells_are_swapped(decoder, tmp_path):
    values = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)  # odd frames: a word spans two of them
    instance = header(3, 3, 8, 8)
    padded = np.append(values.ravel(), np.uint8(0)).reshape(-1, 2)
    write(instance, values, ExplicitVRLittleEndian, tmp_path / "x.dcm")
    instance.PixelData = padded[:, ::-1].tobytes()
    instance["PixelData"].VR = "OW"
    instance.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    dcmwrite(tmp_path / "x.dcm", instance, enforce_file_format=True)
    _, _, frames = frames_of(tmp_path / "x.dcm", decoder)
    np.testing.assert_array_equal([f.stored[..., 0] for f in frames], values)


def test_uncompressed_422_is_expanded(decoder, tmp_path):
    instance = header(1, 2, 8, 8, photometric="YBR_FULL_422")
    write(instance, np.array([[100, 200, 128, 128]], np.uint8), ExplicitVRLittleEndian, tmp_path / "x.dcm")
    _, _, (frame,) = frames_of(tmp_path / "x.dcm", decoder)
    np.testing.assert_array_equal(frame.stored, [[[100, 100, 100], [200, 200, 200]]])


def test_embedded_overlay_bits_are_masked_and_the_sign_is_extended():
    signed = header(1, 2, 16, 12, signed=True)
    frame = stored_frame(signed, np.array([[0xF800, 0x17FF]], np.uint16), 0)
    np.testing.assert_array_equal(frame.stored[..., 0], [[-2048, 2047]])


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000, "1.2.840.10008.1.2.4.112"])
def test_a_lossy_overshoot_is_clipped_not_wrapped(syntax):
    instance = header(1, 2, 16, 10)
    instance.file_meta.TransferSyntaxUID = syntax
    frame = stored_frame(instance, np.array([[1025, 3]], np.uint16), 0)
    np.testing.assert_array_equal(frame.stored[..., 0], [[1023, 3]])


def test_an_overlay_in_the_cells_of_a_codec_that_may_lose_something_is_masked_not_clipped():
    instance = header(1, 2, 16, 10)
    instance.file_meta.TransferSyntaxUID = JPEG2000
    instance.add_new(0x60000102, "US", 12)
    frame = stored_frame(instance, np.array([[4096 + 7, 3]], np.uint16), 0)
    np.testing.assert_array_equal(frame.stored[..., 0], [[7, 3]])


def test_padding_written_as_the_wrong_vr_is_found():
    instance = header(1, 3, 16, 16, signed=True)
    instance.add_new("PixelPaddingValue", "US", 63536)  # -2000
    frame = stored_frame(instance, np.array([[-2000, 5, -1999]], np.int16), 0)
    np.testing.assert_array_equal(frame.padding, [[True, False, False]])
    assert frame.padding_values == (-2000, -2000)


def test_padding_outside_the_legal_range_matches_raw_cells_only():
    instance = header(1, 3, 16, 12)
    instance.add_new("PixelPaddingValue", "US", 63536)  # its low 12 bits are 2096, an ordinary gray
    frame = stored_frame(instance, np.array([[63536, 2096, 5]], np.uint16), 0)
    np.testing.assert_array_equal(frame.padding, [[True, False, False]])
    assert frame.padding_values is None


@pytest.mark.parametrize(
    ("keyword", "value", "error"),
    [
        ("Rows", None, UnreadableInstanceError),
        ("Rows", 0, UnreadableInstanceError),
        ("Columns", [3, 3], UnreadableInstanceError),
        ("BitsStored", 17, UnreadableInstanceError),
        ("HighBit", 3, UnreadableInstanceError),
        ("PixelRepresentation", 2, UnreadableInstanceError),
        ("SamplesPerPixel", 3, UnreadableInstanceError),
        ("BitsAllocated", 0, UnreadableInstanceError),
        ("BitsAllocated", 1, UnsupportedInstanceError),
        ("BitsAllocated", 32, UnsupportedInstanceError),
        ("PhotometricInterpretation", "CMYK", UnsupportedInstanceError),
    ],
)
def test_nonsense_is_refused_by_name(keyword, value, error):
    instance = header()
    setattr(instance, keyword, value)
    with pytest.raises(error) as caught:
        pixel_format(instance)
    if error is UnreadableInstanceError:
        assert caught.value.keyword == keyword


def test_a_retired_photometric_interpretation_is_named():
    with pytest.raises(UnsupportedInstanceError, match="PHOTOMETRIC: ARGB is not handled"):
        pixel_format(header(PhotometricInterpretation="ARGB", SamplesPerPixel=4))


def test_decoded_frames_that_do_not_fit_the_header_are_refused():
    for decoded in (np.zeros((3, 2), np.uint16), np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.float32)):
        with pytest.raises(UnreadableInstanceError):
            stored_frame(header(), decoded, 0)


def group(**attributes):
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def test_the_frames_own_rescale_goes_before_the_shared_and_the_top_level_one():
    instance = header(RescaleSlope="9", RescaleIntercept="9")
    assert modality_line(instance, 0) == ModalityLine(9, 9)
    shared = group(PixelValueTransformationSequence=[group(RescaleSlope="2", RescaleIntercept="-10")])
    own = group(PixelValueTransformationSequence=[group(RescaleSlope="3", RescaleIntercept="1")])
    instance.SharedFunctionalGroupsSequence = [shared]
    instance.PerFrameFunctionalGroupsSequence = [own, Dataset()]
    assert modality_line(instance, 0) == ModalityLine(3, 1)
    assert modality_line(instance, 1) == ModalityLine(2, -10)


def test_absent_or_zero_slopes_are_one_and_lookup_tables_stay_in_the_stored_domain():
    assert modality_line(header(), 0) == ModalityLine(1, 0)
    assert modality_line(header(RescaleSlope="0", RescaleIntercept="-5"), 0) == ModalityLine(1, -5)
    table = header(RescaleSlope="7", ModalityLUTSequence=[Dataset()], WindowCenter="5", WindowWidth="10")
    assert modality_line(table, 0) == ModalityLine(1, 0)
    assert voi_windows(table, 0) == []


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"WindowCenter": "40", "WindowWidth": "401"}, [(-160.5, 239.5)]),
        ({"WindowCenter": "40", "WindowWidth": "400", "VOILUTFunction": "LINEAR_EXACT"}, [(-160, 240)]),
        ({"WindowCenter": "40", "WindowWidth": "400", "VOILUTFunction": "SIGMOID"}, [(-360, 440)]),
        ({"WindowCenter": ["1", "40"], "WindowWidth": ["0", "401"]}, [(-160.5, 239.5)]),
        ({"WindowCenter": ["-600", "40"], "WindowWidth": ["201", "401"]}, [(-700.5, -500.5), (-160.5, 239.5)]),
        ({"WindowCenter": "0.25", "WindowWidth": "0.5"}, [(0, 0.5)]),
        ({"WindowCenter": ["nan", "40"], "WindowWidth": ["10", "401"]}, [(-160.5, 239.5)]),
        ({"WindowCenter": "NaN", "WindowWidth": "NaN"}, []),
        ({"WindowCenter": "1"}, []),
        ({}, []),
    ],
)
def test_windows(attributes, expected):
    assert voi_windows(header(**attributes), 0) == expected


def test_voi_tables_give_their_input_range_and_frames_have_their_own_windows():
    instance = header(signed=True, VOILUTSequence=[Dataset()])
    instance.VOILUTSequence[0].add_new("LUTDescriptor", "US", [256, 65436, 8])
    assert voi_windows(instance, 0) == [(-100, 155)]
    item = group(FrameVOILUTSequence=[group(WindowCenter="10.5", WindowWidth="21")])
    instance.PerFrameFunctionalGroupsSequence = [item]
    assert voi_windows(instance, 0)[0] == (0, 20)


def test_hounsfield_units_by_hand():
    line = ModalityLine(2.0, -1024.0)
    np.testing.assert_array_equal(to_modality(np.array([[[0], [512]]], np.uint16), line), [[[-1024], [0]]])


def frame_of(values, padding=None, padding_values=None, dtype=np.uint16):
    stored = np.array([values], dtype)[..., None]
    return StoredFrame(stored, None if padding is None else np.array([padding]), padding_values)


def test_a_change_is_divided_by_the_slope_rounded_half_to_even_and_clipped():
    pixels = pixel_format(header(1, 5))
    delta = np.array([[[1.0], [3.0], [-2.0], [1e9], [-1e9]]])
    out = encode_residual(frame_of([10, 10, 10, 10, 10]), delta, ModalityLine(2.0, -7.0), pixels)
    np.testing.assert_array_equal(out[0, :, 0], [10, 12, 9, 4095, 0])  # 10.5 -> 10, 11.5 -> 12


def test_nothing_lands_on_padding_and_padding_stays():
    pixels = pixel_format(header(1, 4, signed=True))
    frame = frame_of([0, 90, 110, 2000], [False, False, False, False], (95, 105), np.int16)
    out = encode_residual(frame, np.array([[[100.0], [10], [-10], [0]]]), ModalityLine(1, 0), pixels)
    np.testing.assert_array_equal(out[0, :, 0], [94, 94, 106, 2000])
    padded = frame_of([100, 5], [True, False], (100, 100), np.int16)
    out = encode_residual(padded, np.full((1, 2, 1), 7.0), ModalityLine(1, 0), pixels)
    np.testing.assert_array_equal(out[0, :, 0], [100, 12])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_change_that_is_not_finite_is_an_error(bad):
    with pytest.raises(DerivationError):
        encode_residual(frame_of([1]), np.full((1, 1, 1), bad), ModalityLine(1, 0), pixel_format(header(1, 1)))
