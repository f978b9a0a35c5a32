"""The header against what the file holds: right values of small files that real devices could have written."""

from __future__ import annotations

import functools
import itertools
from datetime import UTC, datetime

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.datadict import tag_for_keyword
from pydicom.encaps import generate_fragments

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.enhance import Enhancement
from medenhance_dicom.selection import Settings


@pytest.fixture(scope="module")
def enhance(tmp_path_factory, cases_folder):
    """The outcome of a case under the identity recipe, and the derived object, None where there is none."""
    settings = Settings(output=tmp_path_factory.mktemp("out"), recipe="identity", gate="off", overwrite=True)
    run = Enhancement(settings, now=datetime(2026, 1, 2, tzinfo=UTC))
    with Decoder() as decoder:

        @functools.cache
        def one(name):
            (outcome,) = run.outcomes([cases_folder / name], decoder=decoder)
            return outcome, dcmread(outcome.derived) if outcome.derived else None

        yield one


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("uid_empty_study", "UNREADABLE: StudyInstanceUID: missing or empty"),
        ("cr_no_photometric", "UNREADABLE: PhotometricInterpretation: missing"),
        ("cr_no_pixelrep", "UNREADABLE: PixelRepresentation: missing"),
        ("cr_bitsstored_too_small", "UNREADABLE: BitsStored: the header says 10, the values need 12"),
        ("sc_argb", "PHOTOMETRIC: ARGB is not handled"),
        ("charset_declared_utf8_but_latin1", "PatientName is not readable in the Specific Character Set"),
        ("charset_none_latin1", "PatientName has letters beyond ASCII, and no Specific Character Set says which"),
    ],
)
def test_what_cannot_be_right_is_refused_in_words(enhance, name, reason):
    outcome, derived = enhance(f"{name}.dcm")
    assert derived is None
    assert reason in outcome.reason


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("charset_gb18030", "Wang^XiaoDong=王^小东"),
        ("charset_ir13", "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎=やまだ^たろう"),
        ("charset_ir87", "Yamada^Tarou=山田^太郎=やまだ^たろう"),
    ],
)
def test_names_are_the_same_in_utf8(enhance, name, expected):
    _, derived = enhance(f"{name}.dcm")
    assert str(derived.PatientName) == expected


@pytest.mark.parametrize(
    ("name", "keyword"),
    [
        ("accession_long", "AccessionNumber"),
        ("age_bad", "PatientAge"),
        ("cs_long", "BodyPartExamined"),
        ("cs_lower", "BodyPartExamined"),
        ("date_bad", "PatientBirthDate"),
        ("date_dots", "PatientBirthDate"),
        ("ds_long", "PixelSpacing"),
        ("dt_bad", "AcquisitionDateTime"),
        ("for_uid_zero", "FrameOfReferenceUID"),
        ("ipp_ds_long", "ImagePositionPatient"),
        ("is_big", "AcquisitionNumber"),
        ("is_float", "InstanceNumber"),
        ("lo_newline", "StudyDescription"),
        ("patientid_long", "PatientID"),
        ("patientid_trailing_null", "PatientID"),
        ("pn_backslash", "PatientName"),
        ("pn_long", "PatientName"),
        ("sex_bad", "PatientSex"),
        ("st_long", "StudyDescription"),
        ("studydate_bad", "StudyDate"),
        ("studyid_long", "StudyID"),
        ("time_colon", "StudyTime"),
        ("uid_space", "FrameOfReferenceUID"),
    ],
)
def test_values_that_break_rules_are_carried_byte_by_byte(enhance, cases_folder, name, keyword):
    outcome, _ = enhance(f"vr/{name}.dcm")
    assert outcome.result == "enhanced", outcome.reason
    tag = tag_for_keyword(keyword)
    before = dcmread(cases_folder / f"vr/{name}.dcm", stop_before_pixels=True).get_item(tag).value
    after = dcmread(outcome.derived, stop_before_pixels=True).get_item(tag).value
    assert after.rstrip(b"\0 ") == before.rstrip(b"\0 ")


@pytest.mark.parametrize(
    ("name", "keyword"),
    [("slice_nan", "SliceThickness"), ("lo_long", "InstitutionName"), ("weight_comma", "PatientWeight")],
)
def test_what_cannot_be_carried_is_named_as_left_behind(enhance, name, keyword):
    outcome, derived = enhance(f"vr/{name}.dcm")
    assert outcome.left_behind == [f"{keyword}: a value that cannot be carried"]
    assert not derived.get(keyword)


@pytest.mark.parametrize("name", ["vr/is_text", "vr/empty_multi", "vr/window_ds_long", "mr_window_nan"])
def test_what_is_not_needed_whole_does_not_keep_a_picture_back(enhance, name):
    assert enhance(f"{name}.dcm")[0].result == "enhanced"


def test_an_old_devices_uid_is_the_one_that_is_referred_to(enhance):
    _, derived = enhance("uid_leading_zero.dcm")
    assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID == "1.2.840.113619.2.0055.1.20240110"


@pytest.mark.parametrize(
    ("name", "twin", "largest"),
    [
        ("pal_8in16", "pal_16", 0),
        ("pal_desc8_data16_scaled", "pal_16", 0),
        ("pal_signed_first", "pal_16", 1),
        ("vl_rle_ybr_full", "vl_planar1", 2),
        ("vl_ybr_full_planar1", "vl_planar1", 2),
        ("vl_ybr422_native", "vl_planar1", 60),  # its chroma is shared by two pixels
    ],
)
def test_colours_are_the_twins(enhance, name, twin, largest):
    _, derived = enhance(f"{name}.dcm")
    off = np.abs(derived.pixel_array.astype(int) - enhance(f"{twin}.dcm")[1].pixel_array)
    assert off.max() <= largest
    assert off.mean() < 1.5


@pytest.mark.parametrize(("name", "bits"), [("pal_8in16", (16, 8)), ("pal_desc8_data16_scaled", (8, 16))])
def test_a_palette_that_is_not_believed_is_named(enhance, name, bits):
    outcome, _ = enhance(f"{name}.dcm")
    words = "what the palette's descriptors say: {} bits, while its entries have {}"
    assert outcome.left_behind == [words.format(*bits)]
    assert enhance("pal_16.dcm")[0].left_behind == []


@pytest.mark.parametrize("name", ["vl_planar1", "usmf_planar1"])
def test_colour_by_plane_is_read_so(enhance, cases_folder, name):
    np.testing.assert_array_equal(
        enhance(f"{name}.dcm")[1].pixel_array, dcmread(cases_folder / f"{name}.dcm").pixel_array
    )


@pytest.mark.parametrize(
    ("name", "lowest", "highest"), [("cr_overlay_high_bits", 300, 3800), ("mr_signed12_junk_high", -1500, 1500)]
)
def test_overlays_and_junk_in_unused_bits_do_not_disturb(enhance, name, lowest, highest):
    _, derived = enhance(f"{name}.dcm")
    values = derived.pixel_array
    assert (values.min(), values.max()) == (lowest, highest)


@pytest.mark.parametrize("name", ["htj2k203_lossless_00", "j2k90_lossless_00", "j2k91_lossless_00", "jls81_near0_00"])
def test_coding_without_loss_stays_without_loss(enhance, name):
    _, derived = enhance(f"transfer_syntaxes/{name}.dcm")
    assert derived.get("LossyImageCompression") == "00"
    assert "LossyImageCompressionMethod" not in derived
    assert "LossyImageCompressionRatio" not in derived


@pytest.mark.parametrize(
    "name", ["jls81_near0", "transfer_syntaxes/htj2k202", "transfer_syntaxes/encunc_m12", "transfer_syntaxes/difc_m12"]
)
def test_no_loss_is_invented(enhance, cases_folder, name):
    _, derived = enhance(f"{name}.dcm")
    source = dcmread(cases_folder / f"{name}.dcm", stop_before_pixels=True)
    assert derived.get("LossyImageCompression") == source.get("LossyImageCompression")
    assert "LossyImageCompressionMethod" not in derived


def test_a_dct_is_a_loss_whatever_the_header_says(enhance, cases_folder):
    name = "us_frametimevector_split_fragments.dcm"
    _, derived = enhance(name)
    assert (derived.LossyImageCompression, derived.LossyImageCompressionMethod) == ("01", "ISO_10918_1")
    source = dcmread(cases_folder / name)
    encoded = sum(map(len, itertools.islice(generate_fragments(source.PixelData), 1, None)))
    cells = source.Rows * source.Columns * source.SamplesPerPixel * source.NumberOfFrames
    assert float(derived.LossyImageCompressionRatio) == pytest.approx(cells / encoded, abs=0.006)


@pytest.mark.parametrize("name", ["no_meta_implicit", "trailing_zeros", "cr_no_samples"])
def test_what_is_missing_or_too_much_in_a_file_but_follows_from_the_rest(enhance, name):
    outcome, derived = enhance(f"{name}.dcm")
    assert outcome.result == "enhanced", outcome.reason
    assert derived.SamplesPerPixel == 1
