"""What decides how a picture looks goes along as one, and what cannot go along is named."""

from __future__ import annotations

import hashlib
import random
import re
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataelem import DataElement

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.derive import PixelSummary, derivation
from medenhance_dicom.enhance import Enhancement
from medenhance_dicom.frames import pixel_format, stored_frame
from medenhance_dicom.lossy import Encoding
from medenhance_dicom.part10 import read_instance, write_instance
from medenhance_dicom.provenance import Provenance
from medenhance_dicom.selection import Settings
from medenhance_dicom.sop_classes import BYTE_SC, COLOUR_SC, SINGLE_SC
from medenhance_dicom.verify import assert_derived
from tests import synthetic

PROVENANCE = Provenance(
    recipe="test", recipe_digest="ab" * 32, method="identity", made=datetime(2026, 1, 2, tzinfo=UTC)
)
FRAME_TIME, FRAME_LABELS = 0x00181063, 0x00182002


def derive(source, **summary):
    """Derived object and what was left behind; it has to satisfy our own checks."""
    pixels = pixel_format(source)
    size = pixels.rows * pixels.columns * pixels.samples * pixels.number_of_frames * pixels.bits_allocated // 8
    digest = hashlib.sha256(bytes(size)).hexdigest()
    made = derivation(source, PixelSummary(digest, pixels, pixels.number_of_frames, digest, **summary), PROVENANCE)
    assert assert_derived(made.instance, source) == []
    return made


def with_overlay(source, group=0x6000, *, embedded=None):
    for element, vr, value in (
        (0x0010, "US", source.Rows),
        (0x0011, "US", source.Columns),
        (0x0040, "CS", "G"),
        (0x0050, "SS", [1, 1]),
        (0x0100, "US", 16 if embedded else 1),
        (0x0102, "US", embedded or 0),
    ):
        source.add_new((group, element), vr, value)
    if embedded is None:
        source.add_new((group, 0x3000), "OW", bytes(range(source.Rows * source.Columns // 8)))
    return source


def table(first=0):
    return synthetic.dataset(LUTDescriptor=[256, first, 16], LUTExplanation="curve", LUTData=bytes(512))


WINDOW = {"WindowCenter": [40, 600], "WindowWidth": [400, 1500], "WindowCenterWidthExplanation": ["A", "B"]}
RESCALE = {"RescaleSlope": "3.2", "RescaleIntercept": "-200", "RescaleType": "US"}


@pytest.mark.parametrize("name", ["MR", "CR", "DX", "OP16", "VLEndoscopic", "EnhancedMR", "US", "XA"])
@pytest.mark.parametrize(
    "shown",
    [
        WINDOW | RESCALE | {"VOILUTFunction": "SIGMOID"},
        {"ModalityLUTSequence": [table()], "VOILUTSequence": [table(), table(7)], "PresentationLUTShape": "INVERSE"},
        {"RescaleSlope": "-1", "RescaleIntercept": "4095"},
        {"RescaleSlope": "0", "RescaleIntercept": "0"},
    ],
    ids=["rescale and window", "tables", "negative slope", "illegal slope"],
)
def test_a_grey_object_keeps_its_transforms_in_every_class(name, shown):
    source = synthetic.make_instance(
        name, SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", PlanarConfiguration=None, **shown
    )
    made = derive(source)
    assert {keyword: made.instance.get(keyword) for keyword in shown} == {k: source[k].value for k in shown}
    assert made.left_behind == []


def test_colour_objects_get_no_transform_that_their_class_does_not_have():
    source = synthetic.make_instance("OP8", **WINDOW, **RESCALE)
    assert not {*WINDOW, *RESCALE} & set(derive(source).instance.dir())


@pytest.mark.slow
@pytest.mark.skipif(not Path(sys.executable).with_name("dciodvfy").is_file(), reason="no dciodvfy")
@pytest.mark.parametrize("name", ["CR", "CT", "DX", "XA"])
def test_colour_in_a_class_of_grey_pictures_becomes_a_true_colour_capture(name, tmp_path):
    colour = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0, "BitsAllocated": 8}
    colour |= {"BitsStored": 8, "HighBit": 7, "PixelRepresentation": 0, "PixelPaddingValue": None}
    colour |= {"PresentationLUTShape": "IDENTITY"}
    frames = {"frames": 1, "NumberOfFrames": 1, "FrameTime": "40", "FrameIncrementPointer": FRAME_TIME}
    source = tmp_path / "source.dcm"
    synthetic.make_file(source, name, **colour, **RESCALE, **(frames if name == "XA" else {}))
    settings = Settings(output=tmp_path / "out", recipe="identity", gate="off", allow=frozenset({"CT"}))
    (outcome,) = Enhancement(settings, now=datetime(2026, 1, 2, tzinfo=UTC)).outcomes([source])
    derived = read_instance(Path(outcome.derived))
    assert derived.SOPClassUID == COLOUR_SC
    assert not {*RESCALE, "PresentationLUTShape", "FrameIncrementPointer"} & set(derived.dir())
    assert not synthetic.dciodvfy_errors(Path(outcome.derived)) - synthetic.dciodvfy_errors(source)


def test_a_shutter_covers_the_same_in_every_class():
    shutter = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [8, 6], "RadiusOfCircularShutter": 5}
    for name in ("CR", "OP8", "MR", "SC"):
        derived, left_behind = derive(synthetic.make_instance(name, ShutterPresentationValue=0, **shutter))
        assert {k: derived.get(k) for k in shutter} == shutter
        assert left_behind == []


def test_converted_captures_keep_rescale_and_window():
    source = synthetic.make_instance(
        "SC", SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2", PlanarConfiguration=None,
        BitsAllocated=16, BitsStored=12, HighBit=11, **WINDOW, **RESCALE,
    )  # fmt: skip
    derived = derive(source).instance
    assert derived.SOPClassUID != source.SOPClassUID
    assert all(derived[k].value == source[k].value for k in {**WINDOW, **RESCALE})
    assert derived.PresentationLUTShape == "IDENTITY"


def test_transforms_of_single_frames_stay_with_their_frames():
    source = synthetic.make_instance("EnhancedMR", frames=3)
    for number, group in enumerate(source.PerFrameFunctionalGroupsSequence):
        group.PixelValueTransformationSequence = [
            synthetic.dataset(RescaleSlope=10**number, RescaleIntercept=number, RescaleType="US")
        ]
        group.FrameVOILUTSequence = [synthetic.dataset(WindowCenter=number, WindowWidth=10 + number)]
    derived, left_behind = derive(source)
    for before, after in zip(
        source.PerFrameFunctionalGroupsSequence, derived.PerFrameFunctionalGroupsSequence, strict=True
    ):
        for keyword in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            assert after[keyword].value == before[keyword].value
    assert left_behind == []


def unfit(keyword):
    """An element as `part10` gives it where its value does not fit its VR."""
    element = DataElement(keyword, "UN", b"")
    element.VR = "UN"
    element.value = b"\xff?"
    return element


def numbers(keyword, text):
    """An element of VR DS as a file has it, of whatever numbers."""
    return DataElement(keyword, "DS", [float(part) if part else None for part in text.split("\\")])


@pytest.mark.parametrize(
    ("centres", "widths", "kept"),
    [
        ("nan", "400", None),
        ("40", "inf", None),
        (r"nan\40", r"400\80", (40, 80, "B")),
    ],
)
def test_windows_that_are_no_numbers_stay_behind_alone(centres, widths, kept):
    source = synthetic.make_instance("MR", WindowCenterWidthExplanation=["A", "B"], VOILUTFunction="SIGMOID")
    source["WindowCenter"], source["WindowWidth"] = numbers("WindowCenter", centres), numbers("WindowWidth", widths)
    derived, left_behind = derive(source)
    there = tuple(derived.get(k) for k in ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation"))
    assert there == (kept or (None,) * 3)
    assert derived.get("VOILUTFunction") == ("SIGMOID" if kept else None)
    assert any(line.startswith(("WindowCenter", "WindowWidth")) for line in left_behind)


@pytest.mark.parametrize(("centres", "widths"), [("40\\", "400\\"), (r"40\50", "400"), ("40", ""), ("", "400")])
def test_half_a_window_stays_as_it_is(centres, widths):
    source = synthetic.make_instance("MR", WindowCenterWidthExplanation=["A", "B"])
    source["WindowCenter"], source["WindowWidth"] = numbers("WindowCenter", centres), numbers("WindowWidth", widths)
    derived, left_behind = derive(source)
    for keyword in ("WindowCenter", "WindowWidth", "WindowCenterWidthExplanation"):
        assert derived[keyword].value == source[keyword].value
    assert left_behind == []


def test_a_number_that_is_none_stays_behind_and_is_named_without_its_value():
    source = synthetic.make_instance("MR")
    source["SliceThickness"] = numbers("SliceThickness", "nan")
    source["PatientWeight"] = unfit("PatientWeight")
    derived, left_behind = derive(source)
    assert (derived.SliceThickness, derived.PatientWeight) == (None, None)  # the first of them is of type 2
    named = ["PatientWeight: a value that cannot be carried", "SliceThickness: a value that cannot be carried"]
    assert sorted(left_behind) == named
    assert "Left behind: " in derived.DerivationDescription
    assert all(line in derived.DerivationDescription for line in named)


def test_what_lies_deep_in_a_sequence_is_named_too():
    item = synthetic.dataset(RequestedProcedureID="R1")
    item["ScheduledProcedureStepID"] = unfit("ScheduledProcedureStepID")
    source = synthetic.make_instance("MR", RequestAttributesSequence=[item])
    assert derive(source).left_behind == ["ScheduledProcedureStepID: a value that cannot be carried"]


@pytest.mark.parametrize("name", ["CR", "OP8", "US", "SC", "Dermoscopic", "ByteSC"])
def test_overlay_planes_stay_where_the_class_stays(name):
    source = with_overlay(synthetic.make_instance(name))
    derived, left_behind = derive(source)
    assert derived.SOPClassUID == source.SOPClassUID
    assert derived[0x6000, 0x3000].value == source[0x6000, 0x3000].value
    assert left_behind == []


def test_a_capture_without_overlays_is_converted_and_one_with_them_is_not():
    assert derive(synthetic.make_instance("SC")).instance.SOPClassUID == BYTE_SC
    assert derive(with_overlay(synthetic.make_instance("SC"))).instance.SOPClassUID == SINGLE_SC


def test_what_a_new_class_cannot_carry_is_named_in_outcome_and_object():
    source = with_overlay(synthetic.make_instance("SC", frames=2))
    source.add_new((0x5000, 0x3000), "OW", bytes(8))
    source.add_new((0x5002, 0x200C), "OW", bytes(8))
    source.GraphicAnnotationSequence = [synthetic.dataset(GraphicLayer="L")]
    derived, left_behind = derive(source)
    assert left_behind == [
        "overlay plane 1 (group 6000)", "curve (group 5000)", "audio (group 5002)", "graphic annotations",
    ]  # fmt: skip
    assert not [element for element in derived if element.tag.group >= 0x5000]
    assert f"Left behind: {'; '.join(left_behind)}." in derived.DerivationDescription


def test_a_long_list_leaves_room_for_the_rest_of_the_description():
    source = synthetic.make_instance("MR")
    for keyword in ("PatientWeight", "PatientSize", "EchoTime", "FlipAngle", "SAR", "RepetitionTime", "InversionTime"):
        source[keyword] = unfit(keyword)
    derived, left_behind = derive(source)
    assert len(left_behind) == 7
    assert "and others." in derived.DerivationDescription
    assert len(derived.DerivationDescription) <= 1024


def cells_with_planes(frames, planes):
    """CR or MR cells: 12-bit samples with overlay bits above them; planes: bit -> bool (frames, 16, 12)."""
    samples = np.arange(frames * 16 * 12, dtype=np.uint16).reshape(frames, 16, 12) * 7 % 4096
    cells = samples.copy()
    for bit, plane in planes.items():
        cells |= plane.astype(np.uint16) << bit
    return samples, cells


def test_planes_in_the_pixel_cells_become_overlay_data(tmp_path):
    rng = np.random.default_rng(3)
    planes = {bit: rng.random((3, 16, 12)) < 0.3 for bit in (12, 15)}
    samples, cells = cells_with_planes(3, planes)
    source = synthetic.make_instance(
        "XA", frames=3, BitsAllocated=16, BitsStored=12, HighBit=11, FrameTime="40", FrameIncrementPointer=FRAME_TIME
    )
    for group, bit in ((0x6000, 12), (0x6004, 15)):
        with_overlay(source, group, embedded=bit)
    source[0x7FE00010].value = cells.tobytes()
    source[0x7FE00010].VR = "OW"
    path = tmp_path / "x.dcm"
    source.save_as(path, enforce_file_format=True)
    settings = Settings(output=tmp_path / "out", recipe="identity", gate="off")
    (outcome,) = Enhancement(settings, now=datetime(2026, 1, 2, tzinfo=UTC)).outcomes([path])
    assert (outcome.result, outcome.left_behind) == ("enhanced", [])
    derived = read_instance(Path(outcome.derived))
    with Decoder() as decoder:
        for index in range(3):
            stored = stored_frame(derived, decoder.frame(Path(outcome.derived), index), index).stored[..., 0]
            assert np.array_equal(stored, samples[index])
    for group, bit in ((0x6000, 12), (0x6004, 15)):
        data = np.frombuffer(derived[group, 0x3000].value, np.uint8)
        bits = np.unpackbits(data, bitorder="little")[: planes[bit].size].reshape(planes[bit].shape)
        assert np.array_equal(bits, planes[bit])
        layout = [derived[group, element].value for element in (0x0010, 0x0011, 0x0015, 0x0100, 0x0102)]
        assert layout == [16, 12, 3, 1, 0]


def test_a_plane_that_lies_in_the_samples_is_left_behind():
    source = with_overlay(synthetic.make_instance("CR", BitsAllocated=16, BitsStored=12, HighBit=11), embedded=3)
    stored = stored_frame(source, np.zeros((16, 12), np.uint16), 0)
    assert not stored.overlays
    assert derive(source).left_behind == ["overlay plane 1 (group 6000, in the pixel cells)"]


@pytest.mark.parametrize(("origin", "kept"), [([3, 4], [3, 4]), (None, [1, 1])])
def test_a_plane_of_the_pixel_cells_keeps_its_origin(origin, kept):
    source = with_overlay(synthetic.make_instance("CR"), embedded=13)
    source[0x6000, 0x0050].value = origin
    assert list(derive(source, overlays={0x6000: bytes(24)}).instance[0x6000, 0x0050].value) == kept


def test_a_plane_without_data_or_place_is_none():
    source = with_overlay(synthetic.make_instance("CR", BitsAllocated=16, BitsStored=12, HighBit=15), embedded=1)
    source[0x6000, 0x0100].value, source[0x6000, 0x0102].value = 1, 0
    assert not stored_frame(source, np.zeros((16, 12), np.uint16), 0).overlays
    assert derive(source).left_behind == []


@pytest.mark.parametrize("name", ["ByteSC", "TrueColorSC", "US", "USMultiFrame", "OP8"])
def test_frames_without_timing_get_none(name):
    source = synthetic.make_instance(name, frames=3, FrameIncrementPointer=None, FrameTime=None)
    derived = derive(source).instance
    assert derived.FrameIncrementPointer == FRAME_LABELS
    assert list(derived.FrameLabelVector) == ["1", "2", "3"]
    assert not {"FrameTime", "FrameTimeVector", "CineRate"} & set(derived.dir())


def test_timing_that_no_pointer_names_is_pointed_at():
    source = synthetic.make_instance("ByteSC", frames=3, FrameIncrementPointer=None, FrameTime="40")
    derived = derive(source).instance
    assert (derived.FrameIncrementPointer, derived.FrameTime) == (FRAME_TIME, 40)
    assert "FrameLabelVector" not in derived


@pytest.mark.parametrize(
    ("name", "keyword", "value"),
    [
        ("US", "FrameTimeVector", [0, 40, 45]),
        ("USMultiFrame", "FrameTimeVector", [0, 40, 45]),
        ("ByteSC", "PageNumberVector", [1, 2, 3]),
    ],
)
def test_pointer_and_vector_go_along(name, keyword, value):
    source = synthetic.make_instance(name, frames=3, FrameTime=None, **{keyword: value})
    source.FrameIncrementPointer = source[keyword].tag
    derived = derive(source).instance
    assert (derived.FrameIncrementPointer, list(derived[keyword].value)) == (source[keyword].tag, value)


@pytest.mark.parametrize("name", ["ByteSC", "USMultiFrame", "XA"])
def test_a_pointer_to_what_stays_behind_goes_too(name):
    source = synthetic.make_instance(name, frames=2, FrameTime=None, FrameIncrementPointer=None)
    block = source.private_block(0x0019, "SOME MAKER", create=True)
    block.add_new(1, "DS", "12")
    source.FrameIncrementPointer = [block.get_tag(1)]
    assert derive(source).instance.FrameIncrementPointer == FRAME_LABELS


@pytest.mark.parametrize("pointer", [None, FRAME_TIME])
def test_an_x_ray_that_names_no_step_keeps_its_fault(pointer):
    source = synthetic.make_instance("XA", frames=2, FrameTime=None, FrameIncrementPointer=pointer)
    derived = derive(source).instance
    assert (derived.get("FrameIncrementPointer"), "FrameLabelVector" in derived) == (pointer, False)


@pytest.mark.parametrize("name", ["SC", "ByteSC"])
def test_a_capture_without_orientation_says_that_it_is_unknown(name):
    source = with_overlay(synthetic.make_instance(name, PatientOrientation=None, Laterality=None))
    derived = derive(source).instance
    assert derived["PatientOrientation"].value in (None, "")
    assert derived["Laterality"].value in (None, "")


@pytest.mark.parametrize(
    ("photometric", "encoding", "said"),
    [
        ("RGB", Encoding(9, "JPEG", False, 8, False, "YCbCr"), "what PhotometricInterpretation says"),
        ("YBR_FULL_422", Encoding(9, "JPEG", False, 8, False, "RGB"), "what PhotometricInterpretation says"),
        ("RGB", Encoding(9, "JPEG 2000", True, 7), "what BitsStored says: 8, while the codestream has 7"),
        ("RGB", Encoding(9, "JPEG 2000", True, 8), None),
        ("YBR_FULL_422", Encoding(9, "JPEG", False, 8, False, "YCbCr"), None),
        ("RGB", Encoding(9, "JPEG", True, 16, False, "RGB"), None),
    ],
)
def test_what_a_header_says_against_its_codestream_is_named(photometric, encoding, said):
    source = synthetic.make_instance("OP8", PhotometricInterpretation=photometric)
    left_behind = derive(source, encoding=encoding).left_behind
    assert [line.startswith(said) for line in left_behind] == [True] if said else left_behind == []


def test_no_sentence_of_the_description_went():
    said = derive(synthetic.make_instance("MR")).instance.DerivationDescription
    assert re.fullmatch(
        r"Enhanced by medenhance-dicom \S+: recipe test, identity\. Structure check not made\. "
        r"Rows, columns and geometry are the source image's\.",
        said,
    )


def test_a_transform_that_the_file_calls_unknown_is_carried_and_named(tmp_path):
    source = synthetic.make_instance("MR", RescaleSlope="2", RescaleIntercept="5", WindowCenter="40", WindowWidth="80")
    path = tmp_path / "x.dcm"
    for keyword, value in (("RescaleSlope", b"2 "), ("WindowWidth", b"80")):
        source[keyword].VR = "UN"
        source[keyword].value = value
    source.save_as(path, enforce_file_format=True)
    derived, left_behind = derive(read_instance(path))
    assert (derived.RescaleSlope, derived.WindowWidth) == (2, 80)
    named = "the VR UN of RescaleSlope, WindowWidth: a reader that leaves it alone shows another picture"
    assert left_behind == [named]


_NEEDED = {"SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "SpecificCharacterSet", "Rows"}
_NEEDED |= {"Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PixelData"}
_NEEDED |= {"PhotometricInterpretation", "PlanarConfiguration", "PerFrameFunctionalGroupsSequence"}


def without_or_empty(count, seed):
    """(class, keyword, whether it stays as an empty attribute), of attributes of all classes."""
    rng = random.Random(seed)
    for _ in range(count):
        name = rng.choice(list(synthetic.CLASSES))
        there = sorted(e.keyword for e in synthetic.make_instance(name) if e.keyword not in _NEEDED)
        yield name, rng.choice(there), rng.random() < 0.5


@pytest.mark.slow
@pytest.mark.skipif(not Path(sys.executable).with_name("dciodvfy").is_file(), reason="no dciodvfy")
def test_a_source_that_lacks_something_gets_no_new_error(tmp_path):
    """24 attributes of sources of all classes, seeded, are absent or empty."""
    found = {}
    for case in without_or_empty(24, 7):
        name, keyword, stays = case
        source = synthetic.make_instance(name)
        if stays:
            source[keyword].value = [] if source[keyword].VR == "SQ" else None
        else:
            del source[keyword]
        source.save_as(tmp_path / "source.dcm", enforce_file_format=True)
        derived = derive(read_instance(tmp_path / "source.dcm")).instance
        frames = derived.get("NumberOfFrames") or 1
        size = derived.Rows * derived.Columns * derived.SamplesPerPixel * derived.BitsAllocated // 8 * frames
        (tmp_path / "pixels").write_bytes(bytes(size))
        write_instance(derived, tmp_path / "pixels", tmp_path / "derived.dcm")
        before, after = (synthetic.dciodvfy_errors(tmp_path / f"{which}.dcm") for which in ("source", "derived"))
        found[case] = after - before
    assert not {case: errors for case, errors in found.items() if errors}
