"""Identity: what decides which object a derived object is, and that its digests survive every way of writing it."""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from pydicom import dcmwrite
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medenhance_dicom import identity
from medenhance_dicom.derive import PixelSummary, derive_instance
from medenhance_dicom.frames import pixel_format
from medenhance_dicom.identity import header_digest, object_digest, recorded_digests
from medenhance_dicom.part10 import read_instance, write_instance
from medenhance_dicom.provenance import Provenance, steps_of
from medenhance_dicom.uids import derived_uid
from medenhance_dicom.verify import assert_derived
from tests import synthetic

PROVENANCE = Provenance(
    recipe="test",
    recipe_digest="ab" * 32,
    method="clahe",
    made=datetime(2026, 11, 22, 12, 30, tzinfo=UTC),
    steps=steps_of(["contrast"]),
)
ODD = {
    "PatientName": "Test^One^^",
    "PatientComments": "  leading, and trailing  ",
    "OtherPatientNames": ["A^B", "", "C^D=E"],
    "PatientSize": "1.80",
    "PatientWeight": "7.0e1",
    "ImageComments": " ",
    "AccessionNumber": " A1 ",
}


def derive(source, provenance=PROVENANCE, **summary):
    pixels = pixel_format(source)
    known = {"digest": "00" * 32, "source_digest": "5e" * 32} | summary
    return derive_instance(
        source, PixelSummary(format=pixels, number_of_frames=pixels.number_of_frames, **known), provenance
    )


def written(derived, folder):
    """The derived object as it is read back from its file."""
    size = derived.Rows * derived.Columns * derived.SamplesPerPixel * derived.BitsAllocated // 8
    (folder / "pixels").write_bytes(bytes(size * int(derived.get("NumberOfFrames") or 1)))
    write_instance(derived, folder / "pixels", folder / "derived.dcm")
    return read_instance(folder / "derived.dcm")


@pytest.mark.parametrize("name", synthetic.CLASSES)
def test_digests_survive_writing_and_reading(name, tmp_path):
    source = synthetic.make_instance(name, **ODD)
    derived = derive(source)
    again = written(derived, tmp_path)
    recorded = recorded_digests(again)
    assert (header_digest(derived), object_digest(derived)) == (header_digest(again), object_digest(again))
    assert (recorded["header"], recorded["object"]) == (header_digest(again), object_digest(again))
    assert len(again.ContributingEquipmentSequence[-1].ContributionDescription) <= 1024
    assert assert_derived(again) == []


@pytest.mark.slow
@pytest.mark.skipif(not Path(sys.executable).with_name("dciodvfy").is_file(), reason="no dciodvfy")
@pytest.mark.parametrize("name", synthetic.CLASSES)
def test_every_class_can_say_what_it_replaces(name, tmp_path):
    derived = derive(synthetic.make_instance(name))
    written(derived, tmp_path)
    before = synthetic.dciodvfy_errors(tmp_path / "derived.dcm")
    identity.name_replaced(derived, "2.25.1", "2.25.2")
    again = written(derived, tmp_path)
    assert identity.replaced_uid(again) == "2.25.1"
    assert header_digest(again) == header_digest(derive(synthetic.make_instance(name)))
    assert assert_derived(again) == []
    assert synthetic.dciodvfy_errors(tmp_path / "derived.dcm") == before


@pytest.mark.parametrize(
    "breaks",
    [
        lambda item: setattr(item.ModifiedAttributesSequence[0], "PatientName", "Test^One"),
        lambda item: setattr(item, "ModifyingSystem", "another"),
        lambda item: item.ModifiedAttributesSequence.append(synthetic.dataset(SOPInstanceUID="1.2")),
    ],
)
def test_original_attributes_say_nothing_else(breaks):
    derived = derive(synthetic.make_instance("OP8"))
    identity.name_replaced(derived, "2.25.1", "2.25.2")
    breaks(derived.OriginalAttributesSequence[0])
    identity.seal(derived)
    assert assert_derived(derived) == ["OriginalAttributesSequence: must not be in a derived object"]


@pytest.mark.parametrize("name", ["OP8", "CT", "EnhancedMR", "US", "CR"])
def test_the_container_of_the_source_changes_nothing(name, tmp_path):
    uids = set()
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian):
        source = synthetic.make_instance(name, VOILUTSequence=[lut()] if name == "CR" else None)
        source.file_meta.TransferSyntaxUID = syntax
        path = tmp_path / f"{syntax}.dcm"
        dcmwrite(path, source)
        read = read_instance(path)
        assert read.file_meta.TransferSyntaxUID == syntax
        derived = derive(read)
        uids.add((derived.SOPInstanceUID, derived.SeriesInstanceUID, header_digest(derived), object_digest(derived)))
    assert len(uids) == 1


def lut():
    item = synthetic.dataset(LUTDescriptor=[4, 0, 16])
    item["LUTDescriptor"].VR = "US"
    item.add_new("LUTData", "US", [0, 1, 2, 0xFF7F])  # in implicit VR, OW
    return item


@pytest.mark.parametrize(
    ("charset", "other"), [("ISO_IR 100", "ISO_IR 192"), ("ISO_IR 144", "ISO_IR 192"), ("ISO_IR 192", "GB18030")]
)
def test_the_character_set_changes_nothing_and_the_name_does(charset, other, tmp_path):
    name = {"ISO_IR 100": "Prüfung^Eins", "ISO_IR 144": "Тест^Один"}.get(charset, "Test^One=测试^一")
    found = []
    for number, (encoding, who) in enumerate([(charset, name), (other, name), (other, name + "x")]):
        path = synthetic.make_file(tmp_path / f"{number}.dcm", "OP8", SpecificCharacterSet=encoding, PatientName=who,
                                   InstitutionName=None, ReferringPhysicianName=None)  # fmt: skip
        found.append(derive(read_instance(path)))
    assert found[0].SOPInstanceUID == found[1].SOPInstanceUID != found[2].SOPInstanceUID
    assert found[0].SeriesInstanceUID == found[1].SeriesInstanceUID != found[2].SeriesInstanceUID


@pytest.mark.parametrize(
    ("keyword", "value", "same_series"),
    [
        ("PatientName", "Test^Other", False),
        ("PatientID", "P-2", False),
        ("PatientBirthDate", "19700102", False),
        ("AccessionNumber", "A2", False),
        ("StudyInstanceUID", "1.2.826.0.1.9999.99", False),
        ("SeriesInstanceUID", "1.2.826.0.1.9999.98", False),
        ("StudyDate", "20240204", False),
        ("ImageLaterality", "L", True),
        ("PatientOrientation", ["R", "F"], True),
        ("AcquisitionDateTime", "20240203101113", True),
        ("PixelSpacing", ["0.02", "0.01"], True),
        ("PatientAge", "054Y", True),
        ("SeriesDescription", "another series", True),
        ("StationName", "ROOM 2", True),
        ("InstanceNumber", 8, True),
    ],
)
def test_a_corrected_source_is_another_object(keyword, value, same_series):
    before = derive(synthetic.make_instance("OP8"))
    after = derive(synthetic.make_instance("OP8", **{keyword: value}))
    assert after.SOPInstanceUID != before.SOPInstanceUID
    assert (after.SeriesInstanceUID == before.SeriesInstanceUID) is same_series


@pytest.mark.parametrize("keyword", ["WindowCenter", "RescaleSlope", "ImagePositionPatient", "SliceThickness"])
def test_display_and_geometry_belong_to_the_identity(keyword):
    value = ["1", "2", "3"] if keyword == "ImagePositionPatient" else "3"
    before, after = derive(synthetic.make_instance("CT")), derive(synthetic.make_instance("CT", **{keyword: value}))
    assert after.SOPInstanceUID != before.SOPInstanceUID


def test_values_in_functional_groups_belong_to_the_identity():
    source = synthetic.make_instance("EnhancedMR")
    before = derive(source)
    source.PerFrameFunctionalGroupsSequence[1].PlanePositionSequence[0].ImagePositionPatient = ["0", "0", "9"]
    assert derive(source).SOPInstanceUID != before.SOPInstanceUID


def test_neither_time_nor_engine_nor_verdict_nor_pixels_change_the_identity():
    source = synthetic.make_instance("ByteSC", frames=3)
    one = derive(source)
    more = {"engine": "openvino", "precision": "bf16", "verdict": "Structure check passed: LaSSIM 0.973."}
    other = derive(source, replace(PROVENANCE, made=PROVENANCE.made + timedelta(days=1), **more), digest="11" * 32)
    assert (one.SOPInstanceUID, header_digest(one)) == (other.SOPInstanceUID, header_digest(other))
    assert object_digest(one) != object_digest(other)


def test_pixels_that_came_back_make_another_object():
    source = synthetic.make_instance("OP8")
    one, other = derive(source), derive(source, blended=True)
    assert one.SOPInstanceUID != other.SOPInstanceUID
    assert recorded_digests(other)["blended"] == "yes"
    assert assert_derived(other) == []


def test_what_we_write_ourselves_does_not_change_the_identity(monkeypatch):
    source = synthetic.make_instance("ByteSC", frames=3)
    one = derive(source)
    assert derive(source, replace(PROVENANCE, version="99.9")).SOPInstanceUID == one.SOPInstanceUID
    monkeypatch.setattr("medenhance_dicom.derive.METHOD_VERSION", identity.METHOD_VERSION + 1)
    assert derive(source).SOPInstanceUID != one.SOPInstanceUID


def test_numbers_are_compared_by_value_and_texts_by_letter():
    plain = synthetic.make_instance("CT", SliceThickness="2")
    assert header_digest(derive(plain)) == header_digest(derive(synthetic.make_instance("CT", SliceThickness="2.00 ")))
    assert header_digest(derive(plain)) != header_digest(derive(synthetic.make_instance("CT", SliceThickness="2.001")))
    one, other = (synthetic.make_instance("CT", StudyDescription=text) for text in ("a", "A"))
    assert header_digest(derive(one)) != header_digest(derive(other))


def test_boundaries_of_values_and_items_matter():
    def digest(**attributes):
        return object_digest(synthetic.dataset(**attributes))

    assert digest(ImageType=["A", "B"]) != digest(ImageType=["AB"])
    assert digest(PatientID="AB") != digest(PatientID="A", PatientComments="B")
    inner, other = synthetic.dataset(CodeValue="1"), synthetic.dataset(CodeMeaning="2")
    both = synthetic.dataset(CodeValue="1", CodeMeaning="2")
    assert digest(ViewCodeSequence=[inner, other]) != digest(ViewCodeSequence=[both])


def test_every_edit_is_in_the_objects_digest():
    derived = derive(synthetic.make_instance("EnhancedMR"))
    seen = {object_digest(derived)}
    derived.InstanceCreationTime = "000000.000001"
    seen.add(object_digest(derived))
    derived.PerFrameFunctionalGroupsSequence[1].DerivationImageSequence[0].DerivationDescription += " Edited."
    seen.add(object_digest(derived))
    own = derived.ContributingEquipmentSequence[-1]
    own.ContributionDescription = own.ContributionDescription.replace("pixels sha256:00", "pixels sha256:01")
    seen.add(object_digest(derived))
    assert len(seen) == 4
    identity.seal(derived)
    assert recorded_digests(derived)["object"] in seen


def test_objects_of_the_first_rule_are_still_verified():
    derived = derive(synthetic.make_instance("OP8"))
    own = derived.ContributingEquipmentSequence[-1]
    source = str(derived.SourceImageSequence[0].ReferencedSOPInstanceUID)
    own.ContributionDescription = f"recipe test; recipe sha256:{'ab' * 32}; pixels sha256:{'00' * 32}"
    derived.SOPInstanceUID = derived_uid(source, "ab" * 32, "", "", "00" * 32)
    assert assert_derived(derived, pixel_digest="00" * 32) == []
    derived.SOPInstanceUID = derived_uid(source, "ab" * 32, "", "", "01" * 32)
    assert [p.split(":")[0] for p in assert_derived(derived)] == ["SOPInstanceUID"]
