"""Structured reports: valid TID 1500, true to the verdict, with UIDs that a repeat gives again."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydicom import Dataset, dcmread

from medenhance_dicom.derive import PixelSummary, derive_instance
from medenhance_dicom.frames import pixel_format
from medenhance_dicom.gate import FrameScores, Limit, Region, Thresholds, verdict_of
from medenhance_dicom.part10 import read_instance, write_document
from medenhance_dicom.provenance import CODING_SCHEME, Provenance
from medenhance_dicom.structured_report import COMPREHENSIVE_SR, report_uid, structured_report
from medenhance_dicom.verdicts import Blending, values_of
from medenhance_dicom.verify import check_report
from tests import synthetic

DSRDUMP = Path("/usr/bin/dsrdump")
LIMITS = Thresholds(0.5, 0.6, {"local": Limit(1.0, 2.0), "displacement": Limit(0.5, 1.0)}, "tiny 0123456789ab")
SCORES = FrameScores(0.55, {"local": 1.5, "displacement": 0.25}, {"local": Region(2, 3, 6, 8)})

needs_dciodvfy = pytest.mark.skipif(not Path(sys.executable).with_name("dciodvfy").is_file(), reason="no dciodvfy")


def case(name="OP8", *, scores=SCORES, limits=LIMITS, blending=None, **attributes):
    source = synthetic.make_instance(name, **attributes)
    pixels = pixel_format(source)
    made = datetime(2026, 11, 22, 12, 30, tzinfo=UTC)
    provenance = Provenance(recipe="t", recipe_digest="ab" * 32, method="clahe", made=made)
    derived = derive_instance(source, PixelSummary("00" * 32, pixels, pixels.number_of_frames, "5e" * 32), provenance)
    frames = [scores] * pixels.number_of_frames
    verdict = verdict_of(frames, limits)
    values = values_of(verdict, frames, limits, mode="withhold", blending=blending)
    return source, derived, structured_report(source, derived, verdict.lassim, verdict.outcome, values)


def items(item: Dataset, value_type=None):
    """Every content item below one, in order."""
    for child in item.get("ContentSequence") or []:
        if value_type in (None, child.ValueType):
            yield child
        yield from items(child, value_type)


def meaning(item):
    return item.ConceptNameCodeSequence[0].CodeMeaning


@needs_dciodvfy
@pytest.mark.slow
@pytest.mark.parametrize("name", synthetic.CLASSES)
def test_a_report_on_every_class_is_valid(name, tmp_path):
    _, _, document = case(name, blending=Blending(0.01, 1, 0.02))
    write_document(document, tmp_path / "sr.dcm")
    errors = set(synthetic.dciodvfy_errors(tmp_path / "sr.dcm"))
    if name == "Confocal":  # a class that it does not know, and takes for one without frames
        errors = {error for error in errors if "SOP Class that is not multi-frame" not in error}
    assert not errors
    assert check_report(read_instance(tmp_path / "sr.dcm")) == []


@pytest.mark.slow
@needs_dciodvfy
def test_what_is_written_is_valid_for_others(tmp_path):
    _, _, document = case("EnhancedMR", frames=3)
    write_document(document, tmp_path / "a" / "sr.dcm")
    assert not synthetic.dciodvfy_errors(tmp_path / "a" / "sr.dcm")
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["sr.dcm"]
    assert dcmread(tmp_path / "a" / "sr.dcm").SOPClassUID == COMPREHENSIVE_SR
    if DSRDUMP.is_file():
        done = subprocess.run([DSRDUMP, tmp_path / "a" / "sr.dcm"], capture_output=True, text=True, check=True)
        assert "Laplacian structural similarity" in done.stdout


def test_patient_and_study_are_the_sources_and_nothing_is_invented():
    source, derived, document = case(PatientName="Möller^Zoë", PatientSex="O", PatientAge="041Y")
    for keyword in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyID",
                    "StudyDate", "AccessionNumber", "ReferringPhysicianName", "PatientAge"):  # fmt: skip
        assert str(document.get(keyword) or "") == str(source.get(keyword) or ""), keyword
    assert document.SeriesInstanceUID not in (source.SeriesInstanceUID, derived.SeriesInstanceUID)
    assert (document.VerificationFlag, document.Modality) == ("UNVERIFIED", "SR")
    assert document.InstanceCreationDate == derived.InstanceCreationDate


def test_odd_patient_attributes_of_a_source_are_no_obstacle():
    _, derived, document = case(PatientSex="UNKNOWN", PatientBirthDate="")
    assert document.PatientSex == derived.PatientSex == "UNKNOWN"


def test_scores_units_and_verdict_stand_in_the_tree():
    _, _, document = case(blending=Blending(0.013, 1, 0.013))
    numbers = {
        meaning(item): (
            float(item.MeasuredValueSequence[0].NumericValue),
            item.MeasuredValueSequence[0].MeasurementUnitsCodeSequence[0].CodeValue,
        )
        for item in items(document, "NUM")
    }
    assert numbers["Laplacian structural similarity, worst frame"] == (0.55, "{ratio}")
    assert numbers["Structure check: local"] == (1.5, "{ratio}")
    assert numbers["Structure check: displacement"] == (0.25, "{ratio}")
    assert numbers["Share of the picture given back to the source"] == (0.013, "{ratio}")
    codes = {meaning(item): item.ConceptCodeSequence[0].CodeValue for item in items(document, "CODE")}
    assert codes["Structure verdict"] == "BLENDED"
    assert codes["Observer Type"] == "121007"
    texts = [item.TextValue for item in items(document, "TEXT")]
    assert "calibration tiny 0123456789ab" in texts
    assert document.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == CODING_SCHEME


def test_a_warning_and_a_release_have_their_codes():
    for scores, value in ((SCORES, "WARNED"), (FrameScores(0.9), "RELEASED")):
        found = {meaning(i): i.ConceptCodeSequence[0].CodeValue for i in items(case(scores=scores)[2], "CODE")}
        assert found["Structure verdict"] == value


def test_source_and_derived_are_referred_to_and_are_the_evidence():
    source, derived, document = case()
    referred = {i.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for i in items(document, "IMAGE")}
    assert referred == {source.SOPInstanceUID, derived.SOPInstanceUID}
    study = document.CurrentRequestedProcedureEvidenceSequence[0]
    evidence = {i.ReferencedSOPInstanceUID for s in study.ReferencedSeriesSequence for i in s.ReferencedSOPSequence}
    assert evidence == referred
    assert study.StudyInstanceUID == source.StudyInstanceUID


def test_an_objection_is_a_region_of_the_derived_frame():
    _, derived, document = case("EnhancedMR", frames=3)
    regions = list(items(document, "SCOORD"))
    assert len(regions) == 3  # one a frame
    assert list(regions[1].GraphicData) == [3, 2, 8, 2, 8, 6, 3, 6, 3, 2]  # column, row
    frames = [r.ContentSequence[0].ReferencedSOPSequence[0].ReferencedFrameNumber for r in regions]
    assert sorted(frames) == [1, 2, 3]
    assert all(
        r.ContentSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == derived.SOPInstanceUID
        for r in regions
    )


def test_a_repeat_gives_the_same_uid_and_another_calibration_another():
    first, again = case()[2], case()[2]
    assert first.SOPInstanceUID == again.SOPInstanceUID
    assert first == again
    other = case(limits=Thresholds(0.5, 0.6, LIMITS.checks, "tiny ba9876543210"))[2]
    assert other.SOPInstanceUID != first.SOPInstanceUID
    assert other.SeriesInstanceUID == first.SeriesInstanceUID


def test_an_altered_report_is_found(tmp_path):
    source, derived, document = case()
    write_document(document, tmp_path / "sr.dcm")
    synthetic_source = tmp_path / "source.dcm"
    source.save_as(synthetic_source, enforce_file_format=True)
    written = read_instance(tmp_path / "sr.dcm")
    assert report_uid(derived.SOPInstanceUID, written) == document.SOPInstanceUID
    images = {str(source.SOPInstanceUID): [synthetic_source]}
    assert check_report(written, images) == []
    written.PatientID = "P-9"
    next(items(written, "NUM")).MeasuredValueSequence[0].NumericValue = "0.99"
    assert check_report(written, images) == [
        "PatientID: differs from the image",
        "SOPInstanceUID: does not follow from the derived image and the content",
    ]
    written.InstanceCreatorUID = "1.2.3"
    assert check_report(written) is None
