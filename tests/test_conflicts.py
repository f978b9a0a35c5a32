"""Two patients under one UID, two instances under one UID: none of them is enhanced, and the others are."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime

import pytest
from pydicom import dcmwrite
from pydicom.uid import ImplicitVRLittleEndian, RLELossless

from medenhance_dicom.conflicts import patient_of
from medenhance_dicom.enhance import Enhancement
from medenhance_dicom.selection import Settings, plan
from tests import synthetic

NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def enhance(decoder, tmp_path):
    """Name of each file in tmp_path / in -> result and reason."""

    def run():
        settings = Settings(output=tmp_path / "out", recipe="identity", device="cpu")
        outcomes = Enhancement(settings, now=NOON).outcomes([tmp_path / "in"], decoder=decoder)
        return {o.source.rpartition("/")[2]: (o.result, o.reason) for o in outcomes}

    return run


@pytest.fixture
def make(tmp_path):
    (tmp_path / "in").mkdir()

    def one(name, uid, **attributes):
        """A file of study 1, series 2 and an instance, unless told otherwise."""
        return synthetic.make_file(
            tmp_path / "in" / name, "CR", rows=16, columns=16, SOPInstanceUID=f"1.2.3.{uid}", **attributes
        )

    return one


def conflict(names, level):
    return "failed", f"CONFLICT: {names} between instances of one {level} Instance UID"


def test_two_patients_in_a_series(enhance, make, tmp_path):
    make("a", 1)
    make("b", 2, PatientID="P-2", PatientName="Test^Two")
    make("c", 3)
    make("other", 4, StudyInstanceUID="1.2.9", SeriesInstanceUID="1.2.9.1", PatientID="P-3")
    refused = conflict("PatientID, PatientName differ", "Series")
    assert enhance() == {"a": refused, "b": refused, "c": refused, "other": ("enhanced", None)}
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1


def test_two_patients_in_a_study(enhance, make):
    make("a", 1)
    make("b", 2, SeriesInstanceUID="1.2.8", PatientBirthDate="19700102")
    assert enhance() == dict.fromkeys("ab", conflict("PatientBirthDate differs", "Study"))


def test_a_series_in_two_studies_is_one_patients(enhance, make):
    make("a", 1)
    make("b", 2, StudyInstanceUID="1.2.9")
    make("c", 3, SeriesInstanceUID="1.2.8", StudyInstanceUID="1.2.10")
    make("d", 4, SeriesInstanceUID="1.2.8", StudyInstanceUID="1.2.11", PatientSex="M")
    refused = conflict("PatientSex differs", "Series")
    assert enhance() == {"a": ("enhanced", None), "b": ("enhanced", None), "c": refused, "d": refused}


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ({"PatientName": "Test^One"}, {"PatientName": "TEST^ONE^^^"}, True),
        ({"PatientName": "Test^One"}, {"PatientName": " Test ^ One"}, True),
        ({"PatientName": "Test^One"}, {"PatientName": "Test^One=测试^一"}, True),
        ({"PatientName": "Test^One"}, {"PatientName": None}, True),
        ({"PatientName": "Test^One"}, {"PatientName": "TestOne"}, False),
        ({"PatientName": "=测试^一"}, {"PatientName": "=测试^二"}, False),
        ({"PatientSex": "F"}, {"PatientSex": ""}, True),
        ({"PatientSex": "F"}, {"PatientSex": "M"}, False),
        ({"PatientID": "P-1"}, {"PatientID": " P-1 "}, True),
        ({"PatientID": "P-1"}, {"PatientID": "p-1"}, False),
        ({"PatientID": "P-1"}, {"PatientID": ""}, False),
        ({"IssuerOfPatientID": "A"}, {"IssuerOfPatientID": "B"}, False),
        ({"IssuerOfPatientID": "A"}, {}, True),
    ],
)
def test_who_is_the_same(one, other, same, enhance, make):
    make("a", 1, SpecificCharacterSet="ISO_IR 192", **one)
    make("b", 2, SpecificCharacterSet="ISO_IR 192", **other)
    assert {result for result, _ in enhance().values()} == ({"enhanced"} if same else {"failed"})


def test_two_instances_under_one_uid(enhance, make):
    make("a", 1)
    make("b", 1, ImageComments="another")
    make("c", 2)
    refused = conflict("ImageComments differs", "SOP")
    assert enhance() == {"a": refused, "b": refused, "c": ("enhanced", None)}


def test_other_pixels_under_one_uid(enhance, make):
    make("a", 1)
    path = make("b", 1)
    path.write_bytes(path.read_bytes()[:-4] + b"\1\1\1\1")
    assert enhance() == dict.fromkeys("ab", conflict("PixelData differs", "SOP"))


def test_two_patients_under_all_uids(enhance, make):
    make("a", 1)
    make("b", 1, PatientID="P-2")
    make("c", 2)
    found = enhance()
    assert found["a"] == found["b"] == conflict("PatientID differs", "SOP")
    assert found["c"] == conflict("PatientID differs", "Series")


def test_copies_are_enhanced_once(enhance, make, tmp_path):
    path = make("a", 1)
    shutil.copy(path, tmp_path / "in" / "b")
    for name, syntax in (("c", ImplicitVRLittleEndian), ("d", RLELossless)):
        source = synthetic.make_instance("CR", rows=16, columns=16, SOPInstanceUID="1.2.3.1")
        if syntax == RLELossless:
            source.compress(RLELossless, generate_instance_uid=False)
        source.file_meta.TransferSyntaxUID = syntax
        dcmwrite(tmp_path / "in" / name, source)
    copy = ("skipped", "DUPLICATE: the same instance was found before")
    assert enhance() == {"a": ("enhanced", None), "b": copy, "c": copy, "d": copy}


def test_two_encodings_of_colour_are_copies(enhance, tmp_path):
    (tmp_path / "in").mkdir()
    for name, encoding in (("a", 0), ("b", 1)):
        source = synthetic.make_instance("VLPhotographic", rows=16, columns=16)
        if encoding:
            source.PlanarConfiguration = 1
            source.PixelData = source.PixelData[0::3] + source.PixelData[1::3] + source.PixelData[2::3]
        dcmwrite(tmp_path / "in" / name, source)
    assert {name: result for name, (result, _) in enhance().items()} == {"a": "enhanced", "b": "skipped"}


def test_other_polarity_is_another_picture(enhance, make):
    make("a", 1, PhotometricInterpretation="MONOCHROME1")
    make("b", 1, PhotometricInterpretation="MONOCHROME2")
    assert enhance() == dict.fromkeys("ab", conflict("PixelData differs", "SOP"))


def test_a_plan_says_so(make, tmp_path):
    make("a", 1)
    make("b", 2, PatientID="P-2")
    found = list(plan([tmp_path / "in"], Settings(recipe="identity")))
    assert {row["reason"] for row in found} == {conflict("PatientID differs", "Series")[1]}


def test_reasons_and_keys_tell_no_patient(enhance, make):
    make("a", 1, PatientName="Test^Unlikely")
    make("b", 2, PatientName="Test^Improbable")
    assert not any(word in str(enhance()).lower() for word in ("unlikely", "improbable"))
    keys = patient_of(synthetic.make_instance("CR", PatientName="Test^Unlikely"))
    assert sum(map(len, keys)) <= 40


def test_a_cut_copy_does_not_hide_the_whole_one(enhance, make, tmp_path):
    path = make("b", 1)
    (tmp_path / "in" / "a").write_bytes(path.read_bytes()[:-100])
    (tmp_path / "in" / "c").write_bytes(path.read_bytes())
    found = enhance()
    assert (found["a"][0], found["a"][1].split(":")[0]) == ("failed", "UNREADABLE")
    assert found["b"] == ("enhanced", None)
    assert found["c"][1].split(":")[0] == "DUPLICATE"


def test_a_patient_before_and_after_a_correction(cases_folder, decoder, tmp_path):
    paths = [cases_folder / "corrected_before", cases_folder / "corrected_after"]
    settings = Settings(output=tmp_path, recipe="identity", device="cpu")
    outcomes = list(Enhancement(settings, now=NOON).outcomes(paths, decoder=decoder))
    assert [o.result for o in outcomes] == ["failed"] * 2
    assert all(o.reason.startswith("CONFLICT: ") and "PatientID" in o.reason for o in outcomes)
    assert not list(tmp_path.rglob("*.dcm"))
