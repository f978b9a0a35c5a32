"""Derived objects: valid for every class, true about their making, and free of what no longer holds."""

from __future__ import annotations

import hashlib
import io
import json
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import resources
from pathlib import Path

import pydicom.data
import pytest
from PIL import ImageCms
from pydicom import Dataset, dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.uid import HTJ2K, JPEG2000, UID, ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSNearLossless

from medenhance_dicom.attributes import EQUIPMENT, NEVER, allowed, attributes_of, forbidden_in
from medenhance_dicom.derive import PixelSummary, derive_instance
from medenhance_dicom.errors import DerivationError, MedenhanceError, UnsupportedInstanceError
from medenhance_dicom.frames import pixel_format
from medenhance_dicom.identity import derived_series_uid
from medenhance_dicom.image_modules import srgb_profile
from medenhance_dicom.lossy import Encoding
from medenhance_dicom.part10 import read_instance, write_instance
from medenhance_dicom.provenance import CODES, Provenance, Step, digests, steps_of
from medenhance_dicom.sop_classes import OPT_INS, WRITABLE, policy
from medenhance_dicom.verify import assert_derived, check_file
from tests import synthetic

MADE = datetime(2026, 11, 22, 12, 30, 45, 250000, tzinfo=UTC)
PROVENANCE = Provenance(
    recipe="test",
    recipe_digest="ab" * 32,
    method="stillgan",
    made=MADE,
    weights="tiny-1",
    weights_digest="cd" * 32,
    guide="clear-day",
    guide_digest="ef" * 32,
    steps=steps_of(["ai", "contrast", "denoise"]),
    parameters="strength 0.5",
    verdict="Structure check passed: LaSSIM 0.973.",
    engine="torch",
    precision="fp32",
)
TEST_FILES = Path(pydicom.data.__file__).parent / "test_files"

needs_dciodvfy = pytest.mark.skipif(not Path(sys.executable).with_name("dciodvfy").is_file(), reason="no dciodvfy")


def derive(source, provenance=PROVENANCE, *, data=None, **summary):
    pixels = pixel_format(source)
    data = data if data is not None else pixel_bytes(pixels)
    digest = hashlib.sha256(data).hexdigest()
    summary = PixelSummary(digest, pixels, pixels.number_of_frames, **{"source_digest": "5e" * 32} | summary)
    return derive_instance(source, summary, provenance)


def pixel_bytes(pixels):
    samples = pixels.rows * pixels.columns * pixels.samples * pixels.number_of_frames
    return bytes(samples * pixels.bits_allocated // 8)


def derive_file(source_path, folder, provenance=PROVENANCE):
    """Read, derive and write as the product does; the derived file and the source's header."""
    source = read_instance(source_path)
    data = pixel_bytes(pixel_format(source))
    pixels, target = folder / "pixels", folder / "derived.dcm"
    pixels.write_bytes(data)
    write_instance(derive(source, provenance, data=data), pixels, target)
    return target, source


@pytest.fixture
def op():
    return synthetic.make_instance("OP8")


# ------------------------------------------------------------------------------------------------ every class


@pytest.mark.slow
@needs_dciodvfy
@pytest.mark.parametrize("name", synthetic.CLASSES)
def test_every_class_is_valid_and_verifies(name, tmp_path):
    source_path = synthetic.make_file(tmp_path / "source.dcm", name)
    target, source = derive_file(source_path, tmp_path)
    before, after = synthetic.dciodvfy_errors(source_path), synthetic.dciodvfy_errors(target)
    assert not after - before
    assert check_file(target, {str(source.SOPInstanceUID): [source_path]}) == []
    written = dcmread(target)
    assert written.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert ("OW" if written.BitsAllocated == 16 else "OB") == written["PixelData"].VR
    assert written.SOPClassUID == policy(source, OPT_INS).target
    assert written.ImageType[0] == "DERIVED"


@needs_dciodvfy
@pytest.mark.parametrize("name", ["EnhancedCT", "EnhancedMR", "EnhancedXA"])
def test_original_enhanced_objects(name, tmp_path):
    third = "SINGLE PLANE" if name == "EnhancedXA" else "VOLUME"
    image_type = ["ORIGINAL", "PRIMARY", third, "NONE"]
    source_path = synthetic.make_file(tmp_path / "source.dcm", name, ImageType=image_type, frames=3)
    target, _ = derive_file(source_path, tmp_path)
    assert not synthetic.dciodvfy_errors(target) - synthetic.dciodvfy_errors(source_path)
    derived = dcmread(target)
    types = [
        list(item.FrameType)
        for group in [*derived.SharedFunctionalGroupsSequence, *derived.PerFrameFunctionalGroupsSequence]
        for element in group
        if element.VR == "SQ"
        for item in element.value
        if "FrameType" in item
    ]
    assert types
    assert all(t == ["DERIVED", "PRIMARY", third, "NONE"] for t in [*types, list(derived.ImageType)])


@pytest.mark.slow
@needs_dciodvfy
@pytest.mark.parametrize("path", sorted(TEST_FILES.glob("*.dcm")), ids=lambda p: p.stem)
def test_pydicoms_files(path, tmp_path):
    try:
        target, source = derive_file(path, tmp_path, replace(PROVENANCE, not_quantitative=True))
    except MedenhanceError as error:
        pytest.skip(f"refused: {error}")
    inherited = {line.split(" - ", 1)[-1] for line in synthetic.dciodvfy_errors(path)}
    new = synthetic.dciodvfy_errors(target) - synthetic.dciodvfy_errors(path)
    # A source UID that is illegal is illegal again where we refer to it.
    new = [line for line in new if "UID" not in line or line.split(" - ", 1)[-1] not in inherited]
    assert new == []
    assert check_file(target, {str(source.SOPInstanceUID): [path]}) == []


# ------------------------------------------------------------------------------------------------ identifiers


def test_uids_follow_the_content(op):
    again = derive(op)
    assert again.SOPInstanceUID == derive(op).SOPInstanceUID
    other_pixels = derive(op, data=b"\1" + bytes(16 * 12 * 3 - 1))  # another engine's
    assert other_pixels.SOPInstanceUID == again.SOPInstanceUID
    other_source = derive(op, source_digest="5f" * 32)
    assert other_source.SOPInstanceUID != again.SOPInstanceUID
    assert other_source.SeriesInstanceUID == again.SeriesInstanceUID
    for field in ("recipe_digest", "weights_digest", "guide_digest"):
        other = derive(op, replace(PROVENANCE, **{field: "99" * 32}))
        assert other.SOPInstanceUID != again.SOPInstanceUID
        assert other.SeriesInstanceUID != again.SeriesInstanceUID
    later = derive(op, replace(PROVENANCE, made=MADE + timedelta(days=1)))
    assert (later.SOPInstanceUID, later.SeriesInstanceUID) == (again.SOPInstanceUID, again.SeriesInstanceUID)
    assert again.SeriesInstanceUID == derived_series_uid(op, digests(PROVENANCE, "")) != op.SeriesInstanceUID


def test_patient_study_and_geometry_are_the_sources():
    source = synthetic.make_instance("MR")
    derived = derive(source)
    for keyword in (
        "PatientID",
        "PatientBirthDate",
        "PatientSex",
        "StudyInstanceUID",
        "StudyID",
        "StudyDate",
        "StudyTime",
        "AccessionNumber",
        "FrameOfReferenceUID",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "PixelSpacing",
        "SliceThickness",
        "InstanceNumber",
        "Modality",
        "AcquisitionTime",
        "RepetitionTime",
        "WindowCenter",
    ):
        assert derived[keyword].value == source[keyword].value, keyword
    assert str(derived.PatientName) == str(source.PatientName)


def test_the_source_is_not_changed(op):
    before = op.to_json()
    derive(op)
    assert op.to_json() == before


@pytest.mark.parametrize(
    ("number", "offset", "expected"),
    [
        (3, 1, 301),
        (3, 42, 342),
        (None, 7, 9007),
        (0, 7, 9007),
        (-2, 1, 9001),
        (21474836, 47, 2147483647),
        (21474836, 48, 9048),
    ],
)
def test_series_number(number, offset, expected, op):
    op.SeriesNumber = number
    assert derive(op, replace(PROVENANCE, series_number_offset=offset)).SeriesNumber == expected


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("OD macula", "OD macula [enhanced]"),
        (None, "[enhanced]"),
        ("x" * 64, "x" * 48 + " [enhanced]"),
        ("Netzhaut für März", "Netzhaut für März [enhanced]"),
    ],
)
def test_series_description(description, expected, op):
    op.SeriesDescription = description
    assert derive(op).SeriesDescription == expected


def test_ct_says_that_it_must_not_be_measured():
    source = synthetic.make_instance("CT", SeriesDescription="y" * 64)
    derived = derive(source, replace(PROVENANCE, not_quantitative=True))
    assert derived.SeriesDescription.endswith(" [enhanced, not for HU measurement]")
    assert len(derived.SeriesDescription) <= 64
    assert "Not for HU measurement" in derived.DerivationDescription
    assert (derived.RescaleSlope, derived.RescaleIntercept, derived.RescaleType) == (1, -1024, "HU")


@pytest.mark.parametrize(
    ("zone", "date", "time"), [("+0900", "20261122", "213045.250000"), ("-1300", "20261121", "233045.250000")]
)
def test_times_are_in_the_sources_zone(zone, date, time, op):
    op.TimezoneOffsetFromUTC = zone
    derived = derive(op)
    assert derived.TimezoneOffsetFromUTC == zone
    for kind in ("InstanceCreation", "Content", "Series"):
        assert (derived[f"{kind}Date"].value, derived[f"{kind}Time"].value) == (date, time)
    assert derived.ContributingEquipmentSequence[-1].ContributionDateTime == f"{date}{time}{zone}"
    assert (derived.StudyTime, derived.AcquisitionTime) == (op.StudyTime, op.AcquisitionTime)


def test_no_zone_is_added(op):
    assert "TimezoneOffsetFromUTC" not in derive(op)


# ------------------------------------------------------------------------------------------------ provenance


def test_provenance_of_a_photograph(op):
    derived = derive(op)
    (reference,) = derived.SourceImageSequence
    assert (reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID) == (op.SOPClassUID, op.SOPInstanceUID)
    assert reference.SpatialLocationsPreserved == "YES"
    (purpose,) = reference.PurposeOfReferenceCodeSequence
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("121322", "DCM")
    codes = [(c.CodeValue, c.CodingSchemeDesignator, c.CodeMeaning) for c in derived.DerivationCodeSequence]
    assert codes == [
        ("123110", "DCM", "Artificial Intelligence"),
        ("CONTRAST", "99MEDENH", "Contrast enhancement"),
        ("113087", "DCM", "Smoothing"),
        ("DENOISE", "99MEDENH", "Noise reduction"),
    ]
    assert [s.CodingSchemeDesignator for s in derived.CodingSchemeIdentificationSequence] == ["99MEDENH"]
    assert "tiny-1" in derived.DerivationDescription
    assert "0.973" in derived.DerivationDescription
    assert derived.Manufacturer == derived.ManufacturerModelName == "medenhance-dicom"
    assert "InstitutionName" not in derived


def test_contributing_equipment(op):
    earlier = synthetic.dataset(Manufacturer="Gateway", ContributionDescription="coerced")
    earlier.PurposeOfReferenceCodeSequence = synthetic.codes("109103", "DCM", "Modifying Equipment")
    earlier.add_new((0x0009, 0x0010), "LO", "PRIVATE")
    op.ContributingEquipmentSequence = [earlier]
    first, scanner, ours = derive(op).ContributingEquipmentSequence
    assert (first.Manufacturer, [e.tag.is_private for e in first].count(True)) == ("Gateway", 0)
    assert scanner.PurposeOfReferenceCodeSequence[0].CodeValue == "109101"
    assert (scanner.Manufacturer, scanner.DeviceSerialNumber) == ("Scanners Ltd", "SN1")
    assert list(scanner.SoftwareVersions) == ["1.0", "2.0"]
    assert scanner.InstitutionName == "Hôpital"
    assert ours.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"
    assert UID(ours.DeviceUID).is_valid
    versions = list(ours.SoftwareVersions)
    assert versions[0].startswith("medenhance-dicom ")
    assert {"weights tiny-1", "engine torch fp32"} <= set(versions)
    assert {f"weights sha256:{'cd' * 16}", f"recipe sha256:{'ab' * 16}"} <= set(versions)
    assert all(len(version) <= 64 for version in versions)
    assert f"weights sha256:{'cd' * 32}" in ours.ContributionDescription
    assert len(ours.ContributionDescription) <= 1024


def test_equipment_of_a_derived_source_was_processing_and_may_be_unknown(op):
    op.ImageType = ["DERIVED", "PRIMARY", "MONTAGE", "COLOR"]
    for keyword in EQUIPMENT:
        if keyword in op:
            del op[keyword]
    scanner = derive(op).ContributingEquipmentSequence[0]
    assert scanner.Manufacturer == "UNKNOWN"
    assert scanner.PurposeOfReferenceCodeSequence[0].CodeValue == "109102"


def test_faults_of_the_scanners_equipment_are_not_repeated(op):
    op.SpatialResolution, op.StationName, op.InstitutionName = ["0.1", "0.2"], "s" * 20, "i" * 65
    scanner = derive(op).ContributingEquipmentSequence[0]
    assert not {"SpatialResolution", "StationName", "InstitutionName"} & set(scanner.dir())
    op.SpatialResolution, op.StationName, op.InstitutionName = "0.1", "s" * 16, "i" * 64
    scanner = derive(op).ContributingEquipmentSequence[0]
    assert (scanner.SpatialResolution, scanner.StationName, scanner.InstitutionName) == (0.1, "s" * 16, "i" * 64)


def test_another_training_is_another_device(op):
    one, other = (derive(op, replace(PROVENANCE, weights_digest=d * 32)) for d in ("11", "22"))
    assert one.ContributingEquipmentSequence[-1].DeviceUID != other.ContributingEquipmentSequence[-1].DeviceUID


def test_provenance_frame_by_frame():
    source = synthetic.make_instance("EnhancedMR", frames=4)
    before = synthetic.dataset(DerivationDescription="of the scanner")
    source.SharedFunctionalGroupsSequence[0].DerivationImageSequence = [before]
    derived = derive(source)
    assert "SourceImageSequence" not in derived
    assert "DerivationImageSequence" not in derived.SharedFunctionalGroupsSequence[0]
    for number, group in enumerate(derived.PerFrameFunctionalGroupsSequence, start=1):
        (derivation,) = group.DerivationImageSequence
        (reference,) = derivation.SourceImageSequence
        assert (reference.ReferencedSOPInstanceUID, reference.ReferencedFrameNumber) == (source.SOPInstanceUID, number)
        assert group.PlanePositionSequence[0].ImagePositionPatient[2] == number
    study = derived.SourceImageEvidenceSequence[0]
    series = study.ReferencedSeriesSequence[0]
    assert (study.StudyInstanceUID, series.SeriesInstanceUID) == (source.StudyInstanceUID, source.SeriesInstanceUID)
    assert series.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


def test_groups_that_do_not_match_the_frames_are_refused():
    source = synthetic.make_instance("EnhancedMR", frames=2, NumberOfFrames=3)
    with pytest.raises(DerivationError, match="one item per frame"):
        derive(source)


@pytest.mark.parametrize(
    ("of_source", "synthetic_model", "expected"),
    [(None, False, None), ("NO", False, "NO"), ("YES", False, "YES"), (None, True, "YES"), ("NO", True, "YES")],
)
def test_synthetic_data(of_source, synthetic_model, expected, op):
    if of_source:
        op.SyntheticData = of_source
    assert derive(op, replace(PROVENANCE, synthetic=synthetic_model)).get("SyntheticData") == expected


def test_long_texts_are_cut_and_plain(op):
    wordy = replace(PROVENANCE, parameters="a\\b\n" * 500, weights="w" * 90)
    derived = derive(op, wordy)
    assert 1000 < len(derived.DerivationDescription) <= 1024
    assert "\\" not in derived.DerivationDescription
    assert "\n" not in derived.DerivationDescription
    assert assert_derived(derived, op) == []


def test_provenance_is_checked():
    with pytest.raises(ValueError, match="time zone"):
        replace(PROVENANCE, made=datetime(2026, 1, 1))  # noqa: DTZ001
    with pytest.raises(ValueError, match="offset"):
        replace(PROVENANCE, series_number_offset=100)
    with pytest.raises(KeyError):
        steps_of(["sparkle"])


def test_code_meanings_are_the_standards():
    dcm = pytest.importorskip("pydicom.sr._concepts_dict").concepts["DCM"]
    meanings = {code: meaning for entry in dcm.values() for code, (meaning, _) in entry.items()}
    from medenhance_dicom.provenance import ACQUISITION, PROCESSING, SOURCE_PURPOSE

    steps: list[Step] = [step for group in CODES.values() for step in group]
    for step in [*steps, ACQUISITION, PROCESSING, SOURCE_PURPOSE]:
        assert step.scheme == "99MEDENH" or meanings[step.value] == step.meaning


# ------------------------------------------------------------------------------------------------ contents


def test_allow_list_is_the_standards():
    """highdicom ships the standard's module tables: an independent copy of ours."""
    pytest.importorskip("highdicom")
    folder = resources.files("highdicom").joinpath("_standard")
    modules, iods, classes = (
        json.loads(folder.joinpath(f"{name}.json").read_text("utf-8"))
        for name in ("module_attribute_map", "iod_module_map", "sop_class_iod_map")
    )
    left_out = {"palette-color-lookup-table", "frame-extraction", "image-histogram"}
    left_out |= {"overlay-plane", "multi-frame-overlay"}
    for sop_class in WRITABLE.values():
        names = {entry["key"] for entry in iods[classes[sop_class.uid]]} - left_out
        standard = {a["keyword"] for name in names for a in modules[name] if not a["path"]}
        standard = {keyword for keyword in standard if tag_for_keyword(keyword)}
        ours = attributes_of(sop_class.iod)
        assert standard <= ours
        assert len(ours - standard) <= 2  # the additions


def test_nothing_of_the_drop_list_survives_at_any_depth():
    source = synthetic.make_instance("US")
    for keyword in NEVER - {"ConcatenationUID"}:
        tag = tag_for_keyword(keyword)
        vr = pydicom.datadict.dictionary_VR(tag).split(" or ")[0]
        text = {"DA": "20200101", "TM": "1200", "DT": "2020", "UI": "1.2.3"}.get(vr, "X")
        value = {"SQ": [Dataset()], "US": 1, "OB": b"ab", "OV": b"abcdefgh"}.get(vr, text)
        source[tag] = DataElement(tag, vr, value)
    source.add_new((0x0009, 0x0010), "LO", "VENDOR")
    source.add_new((0x0009, 0x1001), "LO", "private")
    source.add_new((0x0010, 0x1000), "LO", "retired")
    item = synthetic.code("X", "L", "inner")
    item.add_new((0x0029, 0x0010), "LO", "VENDOR")
    item.IconImageSequence = [Dataset()]
    item.SpecificCharacterSet = "ISO_IR 100"
    source.ProcedureCodeSequence = [item]
    derived = derive(source)
    assert list(forbidden_in(derived)) == []
    assert (0x0010, 0x1000) not in derived
    assert list(derived.ProcedureCodeSequence[0].dir()) == ["CodeMeaning", "CodeValue", "CodingSchemeDesignator"]


def test_what_describes_the_performed_step_is_dropped_and_the_request_stays(op):
    op.PerformedProcedureStepID = "PPS"
    op.RequestAttributesSequence = [synthetic.dataset(RequestedProcedureID="R1")]
    derived = derive(op)
    assert "PerformedProcedureStepID" not in derived
    assert derived.RequestAttributesSequence[0].RequestedProcedureID == "R1"


@pytest.mark.parametrize("spacing", [["0", "0"], ["0.1", "-0.1"], "0.1", [float("nan"), "1"], None])
def test_nonsense_spacing_stays_behind_where_it_may_and_is_named(spacing):
    source = synthetic.make_instance("CR", ImagerPixelSpacing=["0.2", "0.2"])
    source.PixelSpacing = spacing
    derived = derive(source)
    assert "PixelSpacing" not in derived
    named = "PixelSpacing: a value that cannot be carried" in derived.DerivationDescription
    assert named == (spacing is not None)
    assert list(derived.ImagerPixelSpacing) == [0.2, 0.2]


def test_padding_and_monochrome1_stay_with_grey_pixels():
    source = synthetic.make_instance("CR", PixelPaddingValue=4095, PixelPaddingRangeLimit=4090)
    derived = derive(source)
    assert (derived.PhotometricInterpretation, derived.PixelPaddingValue) == ("MONOCHROME1", 4095)
    assert derived.PixelPaddingRangeLimit == 4090


@pytest.mark.parametrize(("burned_in", "expected"), [(None, "YES"), ("NO", "NO"), ("no", "NO"), ("MAYBE", "YES")])
def test_burned_in_annotation_of_converted_captures(burned_in, expected):
    source = synthetic.make_instance("SC", BurnedInAnnotation=burned_in)
    derived = derive(source)
    assert (derived.BurnedInAnnotation, derived.ConversionType) == (expected, "WSD")
    assert derived.NumberOfFrames == 1
    assert "FrameIncrementPointer" not in derived


def test_palette_becomes_rgb():
    source = synthetic.make_instance(
        "US", PhotometricInterpretation="PALETTE COLOR", SamplesPerPixel=1, PlanarConfiguration=None
    )
    for colour in ("Red", "Green", "Blue"):
        source[f"{colour}PaletteColorLookupTableDescriptor"] = DataElement(
            tag_for_keyword(f"{colour}PaletteColorLookupTableDescriptor"), "US", [256, 0, 16]
        )
        source.__setattr__(f"{colour}PaletteColorLookupTableData", bytes(512))
    derived = derive(source)
    assert (derived.PhotometricInterpretation, derived.SamplesPerPixel, derived.PlanarConfiguration) == ("RGB", 3, 0)
    assert not [keyword for keyword in derived.dir() if "Palette" in keyword]


def test_colour_photographs_get_a_profile_and_keep_theirs(op):
    derived = derive(op)
    assert derived.ColorSpace == "SRGB"
    assert derived.ICCProfile == srgb_profile()
    op.ICCProfile, op.ColorSpace = b"theirs", "ADOBERGB"
    derived = derive(op)
    assert (derived.ICCProfile, derived.ColorSpace) == (b"theirs", "ADOBERGB")
    grey = synthetic.make_instance("OP8", SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2")
    assert "ICCProfile" not in derive(grey)
    assert "ICCProfile" not in derive(synthetic.make_instance("US"))


def test_profile_is_srgb_and_repeatable():
    profile = srgb_profile()
    srgb_profile.cache_clear()
    assert srgb_profile() == profile
    assert len(profile) % 2 == 0
    opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    assert opened.profile.device_class == "scnr"
    assert "sRGB" in ImageCms.getProfileDescription(opened)


# ------------------------------------------------------------------------------------------------ lossy history


def lossy_source(syntax, **attributes):
    source = synthetic.make_instance("VLEndoscopic", LossyImageCompression=None, **attributes)
    source.file_meta.TransferSyntaxUID = syntax
    return source


def test_lossy_history_is_carried_untouched():
    history = {
        "LossyImageCompressionRatio": ["5.1", "7"],
        "LossyImageCompressionMethod": ["ISO_10918_1", "ISO_15444_1"],
    }
    source = lossy_source(JPEGBaseline8Bit, **history)
    source.LossyImageCompression = "01"
    derived = derive(source, encoding=Encoding(10, "JPEG", False))
    assert derived.LossyImageCompression == "01"
    assert list(derived.LossyImageCompressionRatio) == [5.1, 7.0]
    assert list(derived.LossyImageCompressionMethod) == ["ISO_10918_1", "ISO_15444_1"]


@pytest.mark.parametrize("said", [None, "00"])
@pytest.mark.parametrize(
    ("syntax", "kind", "method"),
    [
        (JPEGBaseline8Bit, "JPEG", "ISO_10918_1"),
        (JPEGLSNearLossless, "JPEG-LS", "ISO_14495_1"),
        (JPEG2000, "JPEG 2000", "ISO_15444_1"),
        (HTJ2K, "JPEG 2000", "ISO_15444_15"),
        ("1.2.840.10008.1.2.4.111", "JPEG XL", "ISO_10918_1"),
        ("1.2.840.10008.1.2.4.112", "JPEG XL", "ISO_18181_1"),
        (JPEG2000, "JPEG", "ISO_10918_1"),  # what a codestream is counts, not what the file calls it
    ],
)
def test_a_loss_that_the_codestream_proves_is_noted_where_the_source_forgot(said, syntax, kind, method):
    source = lossy_source(syntax)
    source.LossyImageCompression = said
    derived = derive(source, encoding=Encoding(64, kind, False))
    assert (derived.LossyImageCompression, derived.LossyImageCompressionMethod) == ("01", method)
    assert derived.LossyImageCompressionRatio == 9.0  # 16 * 12 * 3 bytes of 64


def test_a_ratio_that_is_no_number_stays_behind_and_the_loss_remains(tmp_path):
    source_path = tmp_path / "source.dcm"
    history = {"LossyImageCompression": "01", "LossyImageCompressionRatio": "1234"}
    synthetic.make_file(source_path, "OP8", **history)
    source_path.write_bytes(source_path.read_bytes().replace(b"1234", b"10:1"))
    target, source = derive_file(source_path, tmp_path)
    assert check_file(target, {str(source.SOPInstanceUID): [source_path]}) == []
    derived = dcmread(target)
    assert (derived.LossyImageCompression, derived.LossyImageCompressionRatio) == ("01", None)
    assert "LossyImageCompressionRatio: a value that cannot be carried" in derived.DerivationDescription


@pytest.mark.parametrize(
    ("methods", "ratios", "expected"),
    [
        (["ISO_15444_1"], ["7"], (["ISO_15444_1", "ISO_10918_1"], [7.0, 9.0])),
        (["ISO_15444_1"], ["7", "3"], (["ISO_15444_1", "ISO_10918_1"], [7.0, 3.0])),
        (["ISO_10918_1", "ISO_14495_1"], ["7", "3"], (["ISO_10918_1", "ISO_14495_1"], [7.0, 3.0])),
        (["ISO_10918_2"], ["7"], ("ISO_10918_2", 7.0)),
    ],
)
def test_another_loss_is_added_to_those_that_the_source_tells(methods, ratios, expected):
    history = {"LossyImageCompressionMethod": methods, "LossyImageCompressionRatio": ratios}
    source = lossy_source(JPEGBaseline8Bit, **history)
    source.LossyImageCompression = "01"
    derived = derive(source, encoding=Encoding(64, "JPEG", False))
    assert (derived.LossyImageCompressionMethod, derived.LossyImageCompressionRatio) == expected


@pytest.mark.parametrize("said", [None, "00"])
@pytest.mark.parametrize("encoding", [Encoding(64, "JPEG 2000", True), Encoding(64, "JPEG XL", None), Encoding(64)])
def test_a_transfer_syntax_that_may_be_lossy_proves_nothing(said, encoding):
    source = synthetic.make_instance("CR", LossyImageCompression=said)
    source.file_meta.TransferSyntaxUID = JPEG2000
    derived = derive(source, encoding=encoding)
    assert derived.get("LossyImageCompression") == said
    assert "LossyImageCompressionMethod" not in derived
    assert "LossyImageCompressionRatio" not in derived


def test_visible_light_has_the_attribute_at_least_empty():
    derived = derive(lossy_source(ExplicitVRLittleEndian))
    assert "LossyImageCompression" in derived
    assert not derived.LossyImageCompression


# ------------------------------------------------------------------------------------------------ text


@pytest.mark.parametrize(
    ("charset", "name"),
    [
        ("ISO_IR 100", "Müller^Änne"),
        ("ISO_IR 144", "Люкceмбypг"),
        ("ISO_IR 203", "Œuvre^Žofia"),
        (["", "ISO 2022 IR 203"], "Œuvre^Žofia"),
        (["ISO 2022 IR 6", "ISO 2022 IR 58"], "Wang^XiaoDong=王^小东"),
        ("ISO_IR 192", "Wang^XiaoDong=王^小东"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
    ],
)
def test_names_survive_the_way_to_utf8(charset, name, tmp_path):
    source_path = tmp_path / "source.dcm"
    synthetic.make_file(source_path, "OP8", SpecificCharacterSet=charset, PatientName=name, InstitutionName=None)
    target, _ = derive_file(source_path, tmp_path)
    written = dcmread(target)
    assert written.SpecificCharacterSet == "ISO_IR 192"
    assert str(written.PatientName) == name
    assert name.encode() in target.read_bytes()


@pytest.mark.parametrize(
    ("charset", "raw"),
    [
        (None, "Müller".encode("latin-1")),
        ("ISO_IR 6", "Müller".encode("latin-1")),
        ("ISO_IR 999", "Müller".encode("latin-1")),
        ("ISO_IR 192", b"M\xfcller"),
        ("\\ISO 2022 IR 58", "王小东".encode("gb2312")),
    ],
)
def test_names_that_cannot_be_read_are_refused_without_being_shown(charset, raw, tmp_path):
    source_path = tmp_path / "source.dcm"
    text = {"SpecificCharacterSet": charset or "ISO_IR 100", "PatientName": "XXXXXXXXXX", "InstitutionName": None}
    synthetic.make_file(source_path, "OP8", **text)
    data = source_path.read_bytes().replace(b"XXXXXXXXXX", raw.ljust(10))
    if charset is None:
        data = data.replace(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", b"")
    source_path.write_bytes(data)
    with pytest.raises(DerivationError, match="PatientName") as caught:
        derive_file(source_path, tmp_path)
    assert "ller" not in str(caught.value)


def test_names_of_others_that_cannot_be_read_stay_behind(tmp_path):
    source_path = tmp_path / "source.dcm"
    text = {"SpecificCharacterSet": "ISO_IR 192", "PatientName": "Test^One", "InstitutionName": None}
    synthetic.make_file(source_path, "OP8", **text, OperatorsName="XXXXXX")
    source_path.write_bytes(source_path.read_bytes().replace(b"XXXXXX", b"M\xfcller"))
    target, _ = derive_file(source_path, tmp_path)
    derived = dcmread(target)
    assert (derived.PatientName, derived.OperatorsName) == ("Test^One", "")
    assert "Left behind: OperatorsName: a value that cannot be carried." in derived.DerivationDescription


@pytest.mark.parametrize("keyword", ["PatientID", "AccessionNumber", "StudyID"])
def test_identifiers_in_undeclared_letters_are_refused(tmp_path, keyword):
    source_path = tmp_path / "source.dcm"
    synthetic.make_file(source_path, "OP8", SpecificCharacterSet=None, **{keyword: "XXXX"}, PatientName="A^B")
    data = source_path.read_bytes()
    source_path.write_bytes(data.replace(b"XXXX", "ÄB-1".encode("latin-1")))
    with pytest.raises(DerivationError, match=f"{keyword} has letters beyond ASCII"):
        derive_file(source_path, tmp_path)


def test_chinese_names_with_escape_sequences_are_carried(tmp_path):
    """PS3.5 annex K.3: each component designates GB 2312 anew."""
    raw, source_path = b"Wang^XiaoDong=\x1b$)A\xcd\xf5^\x1b$)A\xd0\xa1\xb6\xab=", tmp_path / "source.dcm"
    text = {"SpecificCharacterSet": ["", "ISO 2022 IR 58"], "PatientName": "X" * len(raw), "InstitutionName": None}
    synthetic.make_file(source_path, "OP8", **text, StudyDescription="Y" * 10)
    data = source_path.read_bytes().replace(b"X" * len(raw), raw)
    source_path.write_bytes(data.replace(b"Y" * 10, b"\x1b$)A\xd1\xdb\xb5\xd7  "))
    target, source = derive_file(source_path, tmp_path)
    written = dcmread(target)
    assert str(written.PatientName) == "Wang^XiaoDong=王^小东"
    assert written.StudyDescription == "眼底"
    assert assert_derived(written, source) == []


def test_no_warning_quotes_a_value(recwarn):
    source = synthetic.make_instance("OP8", SOPInstanceUID="not a uid", PatientName="x" * 70)
    recwarn.clear()
    derive(source)
    assert not [w for w in recwarn if "xxx" in str(w.message) or "not a uid" in str(w.message)]


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("keyword", ["SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID"])
def test_a_source_without_identity_is_refused(keyword, op):
    del op[keyword]
    with pytest.raises(DerivationError, match=keyword):
        derive(op)


def test_what_is_not_a_number_is_the_same_in_the_source(tmp_path):
    source_path = tmp_path / "source.dcm"
    synthetic.make_file(source_path, "MR", SliceThickness="123")
    data = source_path.read_bytes()
    at = data.index(b"\x18\x00\x50\x00DS\x04\x00123 ")
    source_path.write_bytes(data[: at + 8] + b"NaN " + data[at + 12 :])
    target, source = derive_file(source_path, tmp_path)
    assert assert_derived(dcmread(target), source) == []


def test_an_identity_that_does_not_fit_its_vr_is_refused(op):
    op["PatientID"] = DataElement(tag_for_keyword("PatientID"), "OB", b"\xff")
    op["PatientID"].VR = "UN"
    with pytest.raises(DerivationError, match="PatientID"):
        derive(op)


def test_our_own_objects_are_not_enhanced_again(op):
    derived = derive(op)
    with pytest.raises(UnsupportedInstanceError, match="OWN_DERIVED"):
        derive(derived)


def test_missing_type_2_attributes_are_written_empty(op):
    del op.PatientBirthDate, op.AccessionNumber
    derived = derive(op)
    assert derived.PatientBirthDate in (None, "")
    assert "AccessionNumber" in derived


def test_allowed_never_holds_what_is_written_or_dropped():
    for sop_class in WRITABLE.values():
        assert not allowed(sop_class.iod) & (NEVER | {"SOPInstanceUID", "Rows", "Manufacturer", "ImageType"})
