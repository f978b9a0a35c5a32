"""Verification finds what validators pass: each rule is broken once and must be the one that is reported."""

from __future__ import annotations

import hashlib
import struct
from datetime import UTC, datetime

import pytest
from pydicom import Dataset
from pydicom.dataelem import DataElement

from medenhance_dicom import verify
from medenhance_dicom.derive import PixelSummary, derive_instance
from medenhance_dicom.errors import UnreadableInstanceError
from medenhance_dicom.frames import pixel_format
from medenhance_dicom.identity import header_digest, object_digest, recorded_digests
from medenhance_dicom.part10 import read_instance, write_instance
from medenhance_dicom.provenance import Provenance, steps_of
from medenhance_dicom.verify import assert_derived, check_file, pixel_digest
from tests import synthetic

PROVENANCE = Provenance(
    recipe="test",
    recipe_digest="ab" * 32,
    method="clahe",
    made=datetime(2026, 11, 22, 12, 30, tzinfo=UTC),
    steps=steps_of(["contrast", "sharpen"]),
)


def pair(name="OP8", **attributes):
    source = synthetic.make_instance(name, **attributes)
    pixels = pixel_format(source)
    size = pixels.rows * pixels.columns * pixels.samples * pixels.number_of_frames * pixels.bits_allocated // 8
    data = bytes(i % 251 for i in range(size))
    if pixels.bits_allocated == 16:
        data = b"".join(bytes((value, 0)) for value in data[: size // 2])  # within Bits Stored
    taken = hashlib.sha256(source.PixelData[:size]).hexdigest()
    summary = PixelSummary(hashlib.sha256(data).hexdigest(), pixels, pixels.number_of_frames, taken)
    return source, derive_instance(source, summary, PROVENANCE), data


@pytest.fixture
def good():
    return pair()


@pytest.fixture
def written(tmp_path):
    """Source file, derived file and the derived pixels: 15 x 13 x 3 bytes, an odd number."""
    source, derived, data = pair(rows=15, columns=13)
    source.save_as(tmp_path / "source.dcm", enforce_file_format=True)
    (tmp_path / "pixels").write_bytes(data)
    write_instance(derived, tmp_path / "pixels", tmp_path / "derived.dcm")
    return tmp_path / "source.dcm", tmp_path / "derived.dcm", data


def test_a_good_object_has_no_problems(good):
    source, derived, data = good
    assert assert_derived(derived) == []
    assert assert_derived(derived, source, pixel_digest=hashlib.sha256(data).hexdigest()) == []


def test_recorded_digests(good):
    source, derived, data = good
    assert recorded_digests(derived) == {
        "rule": "2",
        "recipe": "ab" * 32,
        "pixels": hashlib.sha256(data).hexdigest(),
        "source": hashlib.sha256(source.PixelData).hexdigest(),
        "header": header_digest(derived),
        "object": object_digest(derived),
    }
    assert recorded_digests(Dataset()) == {}


def without(keyword):
    def breaks(derived):
        del derived[keyword]

    return breaks


def setting(keyword, value, *path):
    def breaks(derived):
        item = derived
        for sequence, index in path:
            item = item[sequence].value[index]
        setattr(item, keyword, value)

    return breaks


def private(derived):
    derived.add_new((0x0029, 0x0010), "LO", "VENDOR")


def stale_icon(derived):
    derived.SourceImageSequence[0].IconImageSequence = [Dataset()]


SOURCE = ("SourceImageSequence", 0)
OURS = ("ContributingEquipmentSequence", -1)


@pytest.mark.parametrize(
    ("breaks", "problem"),
    [
        (setting("ImageType", ["ORIGINAL", "PRIMARY"]), "ImageType"),
        (setting("SpecificCharacterSet", "ISO_IR 100"), "SpecificCharacterSet"),
        (setting("Manufacturer", "Scanners Ltd"), "Manufacturer"),
        (without("InstanceCreatorUID"), "InstanceCreatorUID"),
        (setting("SyntheticData", "MAYBE"), "SyntheticData"),
        (setting("SeriesDescription", "a source series"), "SeriesDescription"),
        (without("ContributingEquipmentSequence"), "ContributingEquipmentSequence"),
        (setting("PurposeOfReferenceCodeSequence", [Dataset()], OURS), "ContributingEquipmentSequence"),
        (setting("Manufacturer", "", ("ContributingEquipmentSequence", 0)), "ContributingEquipmentSequence"),
        (setting("ContributionDescription", "nothing", OURS), "ContributionDescription"),
        (setting("SOPInstanceUID", "1.2.3"), "SOPInstanceUID"),
        (without("SourceImageSequence"), "SourceImageSequence"),
        (setting("CodeMeaning", "Wrong", SOURCE, ("PurposeOfReferenceCodeSequence", 0)), "SourceImageSequence"),
        (without("DerivationDescription"), "DerivationDescription"),
        (setting("DerivationDescription", "x" * 1025), "DerivationDescription"),
        (setting("DerivationDescription", "Enhanced."), "DerivationDescription"),
        (without("DerivationCodeSequence"), "DerivationCodeSequence"),
        (setting("CodeMeaning", "Sparkle", ("DerivationCodeSequence", 0)), "DerivationCodeSequence"),
        (setting("CodeValue", "SPARKLE", ("DerivationCodeSequence", 0)), "DerivationCodeSequence"),
        (without("CodingSchemeIdentificationSequence"), "CodingSchemeIdentificationSequence"),
        (private, "private"),
        (stale_icon, "IconImageSequence"),
        (setting("SmallestImagePixelValue", 1), "SmallestImagePixelValue"),
        (setting("RescaleSlope", "2"), "RescaleSlope"),
        (setting("SOPClassUID", "1.2.840.10008.5.1.4.1.1.128"), "SOPClassUID"),
    ],
)
def test_each_rule_of_the_object_alone(breaks, problem, good):
    _, derived, _ = good
    breaks(derived)
    problems = assert_derived(derived)
    assert any(p.startswith(problem) for p in problems), problems


@pytest.mark.parametrize(
    ("breaks", "problem"),
    [
        (setting("PatientID", "P-2"), "PatientID"),
        (setting("PatientName", "Other^One"), "PatientName"),
        (setting("StudyInstanceUID", "1.2.3"), "StudyInstanceUID"),
        (setting("AccessionNumber", "A2"), "AccessionNumber"),
        (setting("SeriesInstanceUID", "1.2.826.0.1.9999.2"), "SeriesInstanceUID"),
        (setting("Rows", 8), "Rows"),
        (setting("PixelSpacing", ["1", "1"]), "PixelSpacing"),
        (setting("NumberOfFrames", 2), "NumberOfFrames"),
        (setting("LossyImageCompression", "00"), "LossyImageCompression"),
        (setting("LossyImageCompressionRatio", "2"), "LossyImageCompression"),
        (setting("SyntheticData", "NO"), "SyntheticData"),
        (setting("ContributingEquipmentSequence", []), "ContributingEquipmentSequence"),
        (setting("ReferencedSOPInstanceUID", "1.2.3", SOURCE), "SourceImageSequence"),
    ],
)
def test_each_rule_against_the_source(breaks, problem):
    history = {"LossyImageCompression": "01", "LossyImageCompressionRatio": "9"}
    source, derived, _ = pair(SyntheticData="YES", LossyImageCompressionMethod="ISO_10918_1", **history)
    assert assert_derived(derived, source) == []
    breaks(derived)
    problems = assert_derived(derived, source)
    assert any(p.startswith(problem) for p in problems), problems


def test_a_reference_to_itself(good):
    _, derived, _ = good
    derived.SourceImageSequence[0].ReferencedSOPInstanceUID = derived.SOPInstanceUID
    assert "SourceImageSequence: refers to the object itself" in assert_derived(derived)


@pytest.mark.parametrize("keyword", ["ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"])
def test_geometry(keyword):
    source, derived, _ = pair("MR")
    derived[keyword] = DataElement(
        derived[keyword].tag, derived[keyword].VR, "1.2" if "UID" in keyword else ["1", "2", "3"]
    )
    assert f"{keyword}: differs from the source" in assert_derived(derived, source)


def test_frames_one_by_one():
    source, derived, _ = pair("EnhancedMR", frames=3)
    assert assert_derived(derived, source) == []
    del derived.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence
    assert "DerivationImageSequence: not one for every frame" in assert_derived(derived, source)
    source, derived, _ = pair("EnhancedMR", frames=3)
    derived.SharedFunctionalGroupsSequence[0].MRImageFrameTypeSequence[0].FrameType = ["ORIGINAL", "PRIMARY", "", ""]
    assert any(p.startswith("FrameType") for p in assert_derived(derived, source))


def test_problems_quote_no_values():
    source, derived, _ = pair(PatientName="Secret^Person", PatientID="SECRET")
    derived.PatientName, derived.PatientID = "Hidden^Other", "HIDDEN"
    text = " ".join(assert_derived(derived, source)).lower()
    assert "patientname" in text
    assert not any(word in text for word in ("secret", "hidden", "person"))


def test_other_pixels_than_recorded(good):
    source, derived, _ = good
    assert "PixelData: not the pixels whose digest was recorded" in assert_derived(
        derived, source, pixel_digest="0" * 64
    )


# ------------------------------------------------------------------------------------------------ files


def test_a_file_with_an_odd_number_of_pixel_bytes(written):
    source, target, data = written
    derived = read_instance(target)
    assert len(data) % 2
    assert pixel_digest(target, derived) == hashlib.sha256(data).hexdigest()
    assert check_file(target) == []
    assert check_file(target, {str(read_instance(source).SOPInstanceUID): [source]}) == []


def test_pixels_are_read_in_pieces(written, monkeypatch):
    _, target, data = written
    monkeypatch.setattr(verify, "_CHUNK", 100)
    assert pixel_digest(target, read_instance(target)) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("at", [-3, -300, -586])
def test_one_altered_pixel_is_found(at, written):
    _, target, _ = written
    content = bytearray(target.read_bytes())
    content[at] ^= 1
    target.write_bytes(content)
    assert check_file(target) == ["PixelData: not the pixels whose digest was recorded"]


def test_the_pad_byte_is_no_pixel(written):
    _, target, _ = written
    content = bytearray(target.read_bytes())
    content[-1] ^= 1
    target.write_bytes(content)
    assert check_file(target) == []


def test_something_behind_the_pixels(written):
    _, target, _ = written
    target.write_bytes(target.read_bytes() + struct.pack("<HH2sHL", 0xFFFC, 0xFFFC, b"OB", 0, 2) + b"\0\0")
    assert any(p.startswith("Pixel Data is not") for p in check_file(target))


def test_an_altered_header_is_found(written):
    source, target, _ = written
    target.write_bytes(target.read_bytes().replace(b"P-1 ", b"P-9 "))
    uid = str(read_instance(source).SOPInstanceUID)
    altered = [
        "ContributionDescription: what the header takes over is not what was recorded",
        "ContributionDescription: the object says something else than what was recorded",
    ]
    assert check_file(target) == altered
    problems = check_file(target, {uid: [source]})
    assert problems[: len(altered) + 1] == [*altered, "PatientID: differs from the source"]
    assert "SOPInstanceUID: differs from the source" not in problems


def test_files_that_are_not_ours_and_sources_that_are_missing(written):
    source, target, _ = written
    assert check_file(source) is None
    assert check_file(target, {"1.2.3": [source]}) == ["its source is not among the files given"]


def test_unreadable_files_raise(tmp_path):
    (tmp_path / "x").write_bytes(b"no DICOM at all")
    with pytest.raises(UnreadableInstanceError):
        check_file(tmp_path / "x")


@pytest.mark.parametrize(
    "broken", [{}, {"Rows": None}, {"Rows": 4, "Columns": 4, "SamplesPerPixel": 1, "BitsAllocated": 8}]
)
def test_headers_that_do_not_fit_the_file(broken, tmp_path):
    (tmp_path / "x").write_bytes(b"short")
    assert pixel_digest(tmp_path / "x", synthetic.dataset(**broken)) is None


def test_an_empty_object_is_all_problems():
    assert len(assert_derived(Dataset(), Dataset())) > 5
