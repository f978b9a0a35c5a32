"""Which instances are enhanced, into what, and why the others are not."""

from __future__ import annotations

import pytest
from pydicom import Dataset
from pydicom.dataelem import DataElement
from pydicom.sequence import Sequence
from pydicom.uid import MPEG2MPML, UID_dictionary

from medenhance_dicom import sop_classes
from medenhance_dicom.attributes import attributes_of
from medenhance_dicom.sop_classes import OPT_INS, WRITABLE, derived_image_type, policy
from tests import synthetic

UIDS = synthetic.UIDS
FLOW = synthetic.codes("128259", "DCM", "Retina vasculature flow")


def of_class(suffix, **attributes):
    return synthetic.dataset(SOPClassUID=UIDS + suffix, **attributes)


@pytest.mark.parametrize("name", sorted(set(synthetic.CLASSES) - {"SC"}))
def test_writable_classes_stay_what_they_are(name):
    instance = synthetic.make_instance(name)
    decision = policy(instance, OPT_INS)
    assert (decision.action, decision.target, decision.reason) == ("same", instance.SOPClassUID, "")


@pytest.mark.parametrize("sop_class", WRITABLE.values(), ids=lambda c: c.iod)
def test_every_writable_class_is_the_standards_and_has_attributes(sop_class):
    assert UID_dictionary[sop_class.uid][1] == "SOP Class"
    assert {"PatientName", "StudyInstanceUID", "ContributingEquipmentSequence", "Rows"} <= attributes_of(sop_class.iod)


@pytest.mark.parametrize(
    ("attributes", "target"),
    [
        ({}, "7.2"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "7.4"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422"}, "7.4"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "7.4"),
        ({"BitsAllocated": 16, "BitsStored": 12, "HighBit": 11}, "7.3"),
        # What the multi-frame classes cannot hold stays where it is.
        ({"PhotometricInterpretation": "MONOCHROME1"}, "7"),
        ({"BitsAllocated": 16, "BitsStored": 8, "HighBit": 7}, "7"),
        ({"BitsAllocated": 16, "BitsStored": 16, "HighBit": 15, "PixelRepresentation": 1}, "7"),
        ({"RescaleSlope": "2", "RescaleIntercept": "0"}, "7"),
    ],
)
def test_secondary_capture_goes_to_its_multi_frame_class(attributes, target):
    decision = policy(synthetic.make_instance("SC", **attributes))
    assert decision.target == UIDS + target
    assert decision.action == ("same" if target == "7" else "convert")


def test_colour_in_a_grey_class_becomes_secondary_capture():
    instance = synthetic.make_instance("CR", SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    instance.BitsAllocated = instance.BitsStored = 8
    assert policy(instance).target == UIDS + "7.4"


@pytest.mark.parametrize(
    ("suffix", "reason"),
    [
        ("2", "CT_OFF_BY_DEFAULT"),
        ("2.1", "CT_OFF_BY_DEFAULT"),
        ("1.2", "MG_OFF_BY_DEFAULT"),
        ("1.1.1", "FOR_PROCESSING"),
        ("1.2.1", "FOR_PROCESSING"),
        ("128", "QUANTITATIVE"),
        ("130", "QUANTITATIVE"),
        ("20", "QUANTITATIVE"),
        ("30", "QUANTITATIVE"),
        ("66.4", "QUANTITATIVE"),
        ("481.2", "QUANTITATIVE"),
        ("77.1.5.8", "QUANTITATIVE"),
        ("481.1", "RT_IMAGE"),
        ("13.1.3", "TOMOSYNTHESIS"),
        ("77.1.6", "WHOLE_SLIDE"),
        ("77.1.1.1", "VIDEO"),
        ("77.1.4.1", "VIDEO"),
        ("7.1", "BITS"),
        ("88.11", "NOT_AN_IMAGE"),
        ("11.1", "NOT_AN_IMAGE"),
        ("104.1", "NOT_AN_IMAGE"),
        ("9.1.1", "NOT_AN_IMAGE"),
        ("14.1", "UNKNOWN_SOP_CLASS"),
        ("999.1", "UNKNOWN_SOP_CLASS"),
    ],
)
def test_classes_that_are_refused(suffix, reason):
    decision = policy(of_class(suffix))
    assert (decision.action, decision.reason, decision.target) == ("refuse", reason, "")
    assert decision.note


@pytest.mark.parametrize("uid", [None, ""])
def test_a_missing_class_is_called_missing(uid):
    decision = policy(synthetic.dataset(SOPClassUID=uid))
    assert (decision.reason, decision.note) == ("UNKNOWN_SOP_CLASS", "the SOP Class UID is missing or empty")


def test_every_storage_class_of_the_standard_gets_an_answer():
    for uid, (name, kind, *_) in UID_dictionary.items():
        if kind == "SOP Class" and "Storage" in name:
            decision = policy(synthetic.dataset(SOPClassUID=uid), OPT_INS)
            assert bool(decision.target) == (decision.action != "refuse"), name
            assert bool(decision.reason) == (decision.action == "refuse"), name


@pytest.mark.parametrize(
    ("name", "attributes", "reason"),
    [
        ("MR", {"ImageType": ["DERIVED", "PRIMARY", "ADC"]}, "MR_MAP"),
        ("MR", {"ImageType": ["DERIVED", "PRIMARY", "T2_STAR MAP"]}, "MR_MAP"),
        ("MR", {"ImageType": ["ORIGINAL", "PRIMARY", "PHASE MAP"]}, "MR_MAP"),
        ("MR", {"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "MR_MAP"),
        ("EnhancedMR", {"ImageType": ["DERIVED", "PRIMARY", "VELOCITY", "NONE"]}, "MR_MAP"),
        ("EnhancedMR", {"ComplexImageComponent": "PHASE"}, "MR_MAP"),
        ("CT", {"ImageType": ["DERIVED", "PRIMARY", "AXIAL", "PERFUSION"]}, "QUANTITATIVE"),
        ("CT", {"SeriesDescription": "CaScore 3.0"}, "QUANTITATIVE"),
        ("DX", {"PresentationIntentType": "FOR PROCESSING"}, "FOR_PROCESSING"),
        ("DX", {"Modality": "BMD"}, "QUANTITATIVE"),
        ("CR", {"QualityControlImage": "YES"}, "QUALITY_CONTROL"),
        ("CR", {"QualityControlSubject": "YES"}, "QUALITY_CONTROL"),
        ("US", {"ImageType": ["ORIGINAL", "PRIMARY", "", "0011"]}, "DOPPLER"),
        ("US", {"SequenceOfUltrasoundRegions": [synthetic.dataset(RegionDataType=2)]}, "DOPPLER"),
        ("XA", {"MaskSubtractionSequence": [synthetic.dataset(MaskOperation="AVG_SUB")]}, "DSA"),
        ("EnhancedMR", {"ConcatenationUID": "1.2.3"}, "CONCATENATION"),
        ("OPT", {"InConcatenationTotalNumber": 3}, "CONCATENATION"),
        ("EnFace", {"OphthalmicImageTypeCodeSequence": FLOW}, "OCTA_FLOW"),
        ("OP8", {"InstanceCreatorUID": sop_classes.INSTANCE_CREATOR_UID}, "OWN_DERIVED"),
        ("OP8", {"Manufacturer": "medenhance-dicom", "ManufacturerModelName": "medenhance-dicom"}, "OWN_DERIVED"),
        ("CR", {"BitsAllocated": 32, "BitsStored": 32}, "BITS"),
    ],
)  # fmt: skip
def test_what_a_header_says_against_it(name, attributes, reason):
    assert policy(synthetic.make_instance(name), OPT_INS).action == "same"
    instance = synthetic.make_instance(name)
    for keyword, value in attributes.items():
        setattr(
            instance, keyword, Sequence(value) if isinstance(value, list) and isinstance(value[0], Dataset) else value
        )
    decision = policy(instance, OPT_INS)
    assert (decision.action, decision.reason) == ("refuse", reason)


@pytest.mark.parametrize("flavour", ["T1", "T2", "M", "OTHER", "MPR"])
def test_weighted_pictures_are_no_maps(flavour):
    assert policy(synthetic.make_instance("MR", ImageType=["ORIGINAL", "PRIMARY", flavour])).action == "same"


def test_loop_guard_sees_us_behind_another_processor():
    ours = synthetic.dataset(Manufacturer="medenhance-dicom", ManufacturerModelName="medenhance-dicom")
    instance = synthetic.make_instance("CR", ContributingEquipmentSequence=[ours])
    assert policy(instance).reason == "OWN_DERIVED"


def test_video_by_transfer_syntax():
    instance = synthetic.make_instance("VLEndoscopic")
    instance.file_meta.TransferSyntaxUID = MPEG2MPML
    assert policy(instance).reason == "VIDEO"


def test_a_tile_is_refused_and_a_whole_picture_is_not():
    uid = UIDS + "77.1.9"
    matrix = {"TotalPixelMatrixRows": 4096, "TotalPixelMatrixColumns": 4096}
    assert policy(synthetic.make_instance("Confocal", SOPClassUID=uid, **matrix)).reason == "TILED"
    matrix = {"TotalPixelMatrixRows": 16, "TotalPixelMatrixColumns": 12}
    assert policy(synthetic.make_instance("Confocal", SOPClassUID=uid, **matrix)).target == uid


def test_warnings_are_said_but_do_not_refuse():
    instance = synthetic.make_instance("CR", LossyImageCompression="01", BurnedInAnnotation="YES", SyntheticData="YES")
    decision = policy(instance)
    assert decision.action == "same"
    assert all(word in decision.note for word in ("lossy", "burned-in", "synthetic"))


def test_nonsense_values_never_raise():
    """part10 hands over values that do not fit their VR as bytes."""
    for keyword in sorted(synthetic.make_instance("US").dir()):
        instance = synthetic.make_instance("US")
        instance.SequenceOfUltrasoundRegions = Sequence([Dataset()])
        instance[keyword] = DataElement(instance[keyword].tag, "OB", b"\xff\xfe")
        policy(instance, OPT_INS)


@pytest.mark.parametrize(
    ("name", "source", "expected"),
    [
        ("OP8", ["ORIGINAL", "PRIMARY", "", "COLOR"], ["DERIVED", "PRIMARY", "ENHANCED", "COLOR"]),
        ("OP8", ["DERIVED", "PRIMARY", "MONTAGE", "FA"], ["DERIVED", "PRIMARY", "MONTAGE", "FA"]),
        ("OP8", [], ["DERIVED", "PRIMARY", "ENHANCED"]),
        ("VLEndoscopic", ["ORIGINAL", "PRIMARY"], ["DERIVED", "SECONDARY", "", "ENHANCED"]),
        ("VLPhotographic", ["ORIGINAL", "PRIMARY", "STEREO L"], ["DERIVED", "SECONDARY", "STEREO L", "ENHANCED"]),
        ("CR", ["ORIGINAL", "PRIMARY"], ["DERIVED", "PRIMARY"]),
        ("DX", ["ORIGINAL", "PRIMARY", ""], ["DERIVED", "PRIMARY", ""]),
        ("CT", ["ORIGINAL", "PRIMARY", "LOCALIZER"], ["DERIVED", "SECONDARY", "LOCALIZER"]),
        ("MR", ["ORIGINAL", "PRIMARY"], ["DERIVED", "SECONDARY", "OTHER"]),
        ("EnhancedMR", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], ["DERIVED", "PRIMARY", "VOLUME", "NONE"]),
        ("EnhancedCT", ["MIXED", "PRIMARY", "AXIAL"], ["DERIVED", "PRIMARY", "AXIAL", "NONE"]),
        ("US", ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"], ["DERIVED", "SECONDARY", "ABDOMINAL", "0001"]),
        ("XA", ["ORIGINAL", "PRIMARY", "BIPLANE A"], ["DERIVED", "SECONDARY", "BIPLANE A"]),
        ("TrueColorSC", ["ORIGINAL", "PRIMARY", "X"], ["DERIVED", "SECONDARY"]),
    ],
)
def test_image_type_by_class(name, source, expected):
    assert derived_image_type(WRITABLE[UIDS + synthetic.CLASSES[name]], source) == expected
