"""Small valid instances of every SOP class that we write, for any test that needs one.

`make_instance("VLEndoscopic")` gives a data set with Pixel Data and file meta information; `make_file` writes it. Under
dciodvfy they have no Error lines (but for OPT, where it contradicts itself, and classes that it does not know), so that
one in a derived object is ours. Nobody in them has ever lived.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from medenhance_dicom.image_modules import srgb_profile

UIDS = "1.2.840.10008.5.1.4.1.1."
CLASSES = {
    "CR": "1",
    "DX": "1.1",
    "MG": "1.2",
    "IO": "1.3",
    "CT": "2",
    "EnhancedCT": "2.1",
    "MR": "4",
    "EnhancedMR": "4.1",
    "EnhancedMRColor": "4.3",
    "US": "6.1",
    "USMultiFrame": "3.1",
    "EnhancedUSVolume": "6.2",
    "SC": "7",
    "ByteSC": "7.2",
    "WordSC": "7.3",
    "TrueColorSC": "7.4",
    "XA": "12.1",
    "XRF": "12.2",
    "EnhancedXA": "12.1.1",
    "EnhancedXRF": "12.2.1",
    "VLEndoscopic": "77.1.1",
    "VLMicroscopic": "77.1.2",
    "VLSlideCoordinates": "77.1.3",
    "VLPhotographic": "77.1.4",
    "Dermoscopic": "77.1.7",
    "Confocal": "77.1.8",
    "OP8": "77.1.5.1",
    "OP16": "77.1.5.2",
    "OPT": "77.1.5.4",
    "WideFieldStereographic": "77.1.5.5",
    "WideField3D": "77.1.5.6",
    "EnFace": "77.1.5.7",
}
"""Name -> last components of the SOP Class UID."""

_MODALITY = {"EnhancedCT": "CT", "EnhancedMR": "MR", "EnhancedMRColor": "MR", "USMultiFrame": "US"}
_MODALITY |= {"EnhancedUSVolume": "US", "EnhancedXA": "XA", "EnhancedXRF": "XA", "XRF": "RF", "Confocal": "CFM"}
_MODALITY |= {"VLEndoscopic": "ES", "VLMicroscopic": "GM", "VLSlideCoordinates": "SM", "VLPhotographic": "XC"}
_MODALITY |= {"Dermoscopic": "DMS", "OPT": "OPT", "EnFace": "OPTENF", "SC": "OT", "ByteSC": "OT", "WordSC": "OT"}
_MODALITY |= {"TrueColorSC": "OT"}
_COLOUR = ("US", "USMultiFrame", "TrueColorSC", "EnhancedMRColor", "OP8", "OP16", "VLEndoscopic", "VLMicroscopic")
_COLOUR += ("VLSlideCoordinates", "VLPhotographic", "Dermoscopic", "WideFieldStereographic", "WideField3D")
_SIXTEEN = (
    "CR",
    "DX",
    "MG",
    "IO",
    "CT",
    "EnhancedCT",
    "MR",
    "EnhancedMR",
    "WordSC",
    "OP16",
    "EnhancedXA",
    "EnhancedXRF",
)
_MULTI = ("USMultiFrame", "EnhancedCT", "EnhancedMR", "EnhancedMRColor", "EnhancedUSVolume", "ByteSC", "WordSC", "OPT")
_MULTI += ("TrueColorSC", "EnhancedXA", "EnhancedXRF", "Confocal", "XA", "XRF")


def code(value: str, scheme: str, meaning: str) -> Dataset:
    return dataset(CodeValue=value, CodingSchemeDesignator=scheme, CodeMeaning=meaning)


def codes(value: str, scheme: str, meaning: str) -> Sequence:
    return Sequence([code(value, scheme, meaning)])


def dataset(**attributes: object) -> Dataset:
    result = Dataset()
    for keyword, value in attributes.items():
        setattr(
            result,
            keyword,
            Sequence(value) if isinstance(value, list) and value and isinstance(value[0], Dataset) else value,
        )
    return result


EYE = codes("81745001", "SCT", "Eye")
SKIN = codes("39937001", "SCT", "Skin")


def make_instance(
    name: str, *, rows: int = 16, columns: int = 12, frames: int | None = None, **attributes: object
) -> FileDataset:
    """An instance with Pixel Data.

    Args:
        name: One of `CLASSES`.
        rows: Rows.
        columns: Columns.
        frames: Frames; None is 1, or 2 where the class is multi-frame.
        attributes: Keyword -> value on top; None leaves an attribute out. Pixel Data follow bits and samples.
    """
    uid = UIDS + CLASSES[name]
    frames = frames or (2 if name in _MULTI else 1)
    instance = FileDataset("", {}, preamble=b"\0" * 128)
    _patient_study_series(instance, name, uid)
    _pixels(instance, name, rows, columns, frames)
    if "ImageType" in attributes:
        instance.ImageType = attributes["ImageType"]
    _of_class(instance, name, frames)
    for keyword, value in attributes.items():
        if value is None and keyword in instance:
            del instance[keyword]
        elif value is not None:
            setattr(
                instance,
                keyword,
                Sequence(value) if isinstance(value, list) and value and isinstance(value[0], Dataset) else value,
            )
    shape = (frames, rows, columns, instance.SamplesPerPixel)
    top = 2 ** (instance.BitsStored - instance.PixelRepresentation)
    ramp = np.arange(np.prod(shape)).reshape(shape) * 7919 % top
    data = ramp.astype(f"<{'i' if instance.PixelRepresentation else 'u'}{instance.BitsAllocated // 8}").tobytes()
    instance.add_new(0x7FE00010, "OW" if instance.BitsAllocated > 8 else "OB", data + b"\0" * (len(data) % 2))
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = instance.SOPClassUID, instance.SOPInstanceUID
    instance.file_meta = meta
    return instance


def make_file(path: Path, name: str, **arguments: object) -> Path:
    """Write what `make_instance` makes."""
    make_instance(name, **arguments).save_as(path, enforce_file_format=True)  # type: ignore[arg-type]
    return path


def dciodvfy_errors(path: Path) -> Counter[str]:
    """Error lines of dciodvfy without values and item numbers, so that two objects can be compared."""
    tool = Path(sys.executable).with_name("dciodvfy")
    done = subprocess.run([tool, "-new", path], capture_output=True, text=True, errors="replace", check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    return Counter(re.sub(r"= <.*|\[\d+\]|value \S+", "", line) for line in lines)


def _patient_study_series(instance: Dataset, name: str, uid: str) -> None:
    instance.SOPClassUID = uid
    instance.SOPInstanceUID = f"1.2.826.0.1.9999.{CLASSES[name]}.3"
    instance.SpecificCharacterSet = "ISO_IR 100"
    instance.PatientName = "Müller^Änne"
    instance.PatientID, instance.PatientBirthDate, instance.PatientSex = "P-1", "19700101", "F"
    instance.StudyInstanceUID, instance.SeriesInstanceUID = "1.2.826.0.1.9999.1", "1.2.826.0.1.9999.2"
    instance.StudyID, instance.AccessionNumber, instance.ReferringPhysicianName = "S1", "A1", "Doe^Jo"
    instance.StudyDate = instance.SeriesDate = instance.ContentDate = instance.AcquisitionDate = "20240203"
    instance.StudyTime = instance.SeriesTime = instance.ContentTime = instance.AcquisitionTime = "101112"
    instance.Modality = _MODALITY.get(name, "OP" if name[:2] in ("OP", "Wi") else name)
    instance.SeriesNumber, instance.InstanceNumber, instance.SeriesDescription = 3, 7, "a source series"
    instance.Manufacturer, instance.ManufacturerModelName = "Scanners Ltd", "Scan 1"
    instance.DeviceSerialNumber, instance.SoftwareVersions = "SN1", ["1.0", "2.0"]
    instance.InstitutionName = "Hôpital"


def _pixels(instance: Dataset, name: str, rows: int, columns: int, frames: int) -> None:
    colour, sixteen = name in _COLOUR, name in _SIXTEEN
    instance.SamplesPerPixel = 3 if colour else 1
    instance.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        instance.PlanarConfiguration = 0
    instance.Rows, instance.Columns = rows, columns
    instance.BitsAllocated = 16 if sixteen else 8
    instance.BitsStored = (16 if name == "OP16" else 12) if sixteen else 8
    instance.HighBit, instance.PixelRepresentation = instance.BitsStored - 1, 0
    if frames > 1 or name in _MULTI or instance.Modality == "OP":
        instance.NumberOfFrames = frames


def _of_class(instance: Dataset, name: str, frames: int) -> None:
    if name.startswith("VL") or name == "Dermoscopic":
        _visible_light(instance, name)
    elif instance.Modality == "OP":
        _ophthalmic(instance, name)
    elif name in ("CR", "DX", "MG", "IO"):
        _projection(instance, name)
    elif name in ("CT", "MR"):
        _slices(instance, name)
    elif name in ("US", "USMultiFrame"):
        instance.ImageType = ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"]
        instance.Laterality = None
        instance.PatientOrientation = None
        instance.LossyImageCompression = "00"
        if name == "USMultiFrame":
            instance.FrameTime, instance.FrameIncrementPointer = "40", 0x00181063
    elif name in ("XA", "XRF"):
        _angiography(instance, name)
    elif name in ("SC", "ByteSC", "WordSC", "TrueColorSC"):
        instance.ConversionType, instance.ImageType, instance.Laterality = "WSD", ["ORIGINAL", "PRIMARY"], None
        instance.BurnedInAnnotation, instance.PatientOrientation = "NO", None
        if name != "SC":
            instance.FrameTime, instance.FrameIncrementPointer = "40", 0x00181063
        if name in ("ByteSC", "WordSC"):
            instance.RescaleIntercept, instance.RescaleSlope, instance.RescaleType = "0", "1", "US"
            instance.PresentationLUTShape = "IDENTITY"
    elif name == "EnFace":
        _en_face(instance)
    else:
        _enhanced(instance, name, frames)


def _visible_light(instance: Dataset, name: str) -> None:
    instance.ImageType = ["ORIGINAL", "PRIMARY"]
    instance.LossyImageCompression = "00"
    instance.AcquisitionContextSequence = Sequence()
    instance.PatientOrientation = None
    if name != "VLSlideCoordinates":
        instance.Laterality = None
    if name == "Dermoscopic":
        instance.AnatomicRegionSequence = SKIN
        instance.FrameOfReferenceUID, instance.PositionReferenceIndicator = "1.2.826.0.1.9999.9", None
        instance.RecognizableVisualFeatures, instance.LightSourcePolarization = "NO", None
        instance.EmitterColorTemperature = instance.ContactMethod = instance.OpticalMagnificationFactor = None
    if name in ("VLMicroscopic", "VLSlideCoordinates", "Dermoscopic"):
        instance.AcquisitionDateTime = "20240203101112"
    if name == "VLSlideCoordinates":
        instance.FrameOfReferenceUID, instance.PositionReferenceIndicator = "1.2.826.0.1.9999.9", "SLIDE_CORNER"
        instance.ImageCenterPointCoordinatesSequence = Sequence(
            [
                dataset(
                    XOffsetInSlideCoordinateSystem="1",
                    YOffsetInSlideCoordinateSystem="1",
                    ZOffsetInSlideCoordinateSystem=None,
                )
            ]
        )
        instance.ContainerIdentifier = "C1"
        instance.IssuerOfTheContainerIdentifierSequence = Sequence()
        instance.ContainerTypeCodeSequence = codes("258661006", "SCT", "Slide")
        specimen = dataset(SpecimenIdentifier="S1", SpecimenUID="1.2.826.0.1.9999.8")
        specimen.IssuerOfTheSpecimenIdentifierSequence = Sequence()
        specimen.SpecimenPreparationSequence = Sequence()
        instance.SpecimenDescriptionSequence = Sequence([specimen])


def _ophthalmic(instance: Dataset, name: str) -> None:
    instance.ImageType = ["ORIGINAL", "PRIMARY", "", "COLOR"]
    instance.AcquisitionDateTime, instance.BurnedInAnnotation = "20240203101112", "NO"
    instance.LossyImageCompression, instance.ImageLaterality = "00", "R"
    instance.AnatomicRegionSequence = EYE
    instance.PatientOrientation = ["L", "F"]
    instance.PixelSpacing = ["0.01", "0.01"]
    instance.SynchronizationFrameOfReferenceUID = "1.2.826.0.1.9999.10"
    instance.SynchronizationTrigger, instance.AcquisitionTimeSynchronized = "NO TRIGGER", "N"
    instance.FrameIncrementPointer, instance.FrameTime = 0x00181063, "0"
    instance.PatientEyeMovementCommanded = None
    instance.RefractiveStateSequence, instance.EmmetropicMagnification = Sequence(), None
    instance.IntraOcularPressure, instance.HorizontalFieldOfView = None, None
    instance.PupilDilated = None
    instance.AcquisitionDeviceTypeCodeSequence = codes("409898007", "SCT", "Fundus Camera")
    instance.IlluminationTypeCodeSequence = instance.LightPathFilterTypeStackCodeSequence = Sequence()
    instance.ImagePathFilterTypeStackCodeSequence = instance.LensesCodeSequence = Sequence()
    instance.DetectorType = "CCD"
    if name in ("WideFieldStereographic", "WideField3D"):
        instance.OphthalmicAxialLength, instance.OphthalmicAxialLengthMethod = 24.0, "ESTIMATED"
        instance.OphthalmicFOV = 120.0
        instance.TransformationAlgorithmSequence = Sequence([_algorithm()])
        instance.WideFieldOphthalmicPhotographyQualityRatingSequence = Sequence()
        if name == "WideFieldStereographic":
            instance.XCoordinatesCenterPixelViewAngle = instance.YCoordinatesCenterPixelViewAngle = 0.0


def _reference(suffix: str) -> Dataset:
    """To an instance outside, as the source's own source."""
    item = dataset(ReferencedSOPClassUID=UIDS + suffix, ReferencedSOPInstanceUID="1.2.826.0.1.9999.77")
    item.PurposeOfReferenceCodeSequence = codes("121322", "DCM", "Source image for image processing operation")
    return item


def _algorithm() -> Dataset:
    item = dataset(AlgorithmName="project", AlgorithmVersion="1")
    item.AlgorithmFamilyCodeSequence = codes("123109", "DCM", "Manual Processing")
    return item


def _projection(instance: Dataset, name: str) -> None:
    instance.ImageType = ["ORIGINAL", "PRIMARY"] if name == "CR" else ["ORIGINAL", "PRIMARY", ""]
    instance.BodyPartExamined, instance.ViewPosition, instance.PatientOrientation = "CHEST", "PA", ["L", "F"]
    instance.PhotometricInterpretation = "MONOCHROME1" if name == "CR" else "MONOCHROME2"
    instance.WindowCenter, instance.WindowWidth = "2048", "4096"
    if name == "CR":
        return
    instance.ImageLaterality = "U"
    instance.PresentationIntentType, instance.PresentationLUTShape = "FOR PRESENTATION", "IDENTITY"
    instance.PixelIntensityRelationship, instance.PixelIntensityRelationshipSign = "LOG", 1
    instance.RescaleIntercept, instance.RescaleSlope, instance.RescaleType = "0", "1", "US"
    instance.LossyImageCompression, instance.BurnedInAnnotation = "00", "NO"
    instance.DetectorType, instance.DetectorID = "DIRECT", "D1"
    instance.AcquisitionContextSequence = Sequence()
    instance.AnatomicRegionSequence = codes("51185008", "SCT", "Chest")
    instance.ImagerPixelSpacing = ["0.1", "0.1"]
    instance.KVP, instance.PositionerType = "60", None
    if name == "MG":
        instance.BodyPartExamined, instance.ImageLaterality, instance.PositionerType = "BREAST", "R", "MAMMOGRAPHIC"
        instance.AnatomicRegionSequence = codes("76752008", "SCT", "Breast")
        instance.OrganExposed = "BREAST"
        instance.ViewCodeSequence = codes("399162004", "SCT", "cranio-caudal")
        instance.ViewCodeSequence[0].ViewModifierCodeSequence = Sequence()
        instance.BreastImplantPresent, instance.PartialView = "NO", "NO"
    if name == "IO":
        instance.PositionerType, instance.BodyPartExamined, instance.ImageLaterality = "NONE", "JAW", "B"
        instance.AnatomicRegionSequence = codes("661005", "SCT", "Jaw region")
        instance.PrimaryAnatomicStructureSequence = codes("245648009", "SCT", "Permanent upper right 8 tooth")


def _slices(instance: Dataset, name: str) -> None:
    instance.FrameOfReferenceUID, instance.PositionReferenceIndicator = "1.2.826.0.1.9999.9", None
    instance.ImageOrientationPatient = ["1", "0", "0", "0", "1", "0"]
    instance.ImagePositionPatient = ["-10", "-10", "5"]
    instance.PixelSpacing, instance.SliceThickness, instance.SliceLocation = ["0.5", "0.5"], "2", "5"
    instance.PatientPosition, instance.BodyPartExamined, instance.AcquisitionNumber = "HFS", "HEAD", 1
    instance.PatientOrientation = None
    instance.WindowCenter, instance.WindowWidth = "40", "400"
    if name == "CT":
        instance.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        instance.KVP, instance.PixelRepresentation, instance.PixelPaddingValue = "120", 1, -2000
        instance.RescaleIntercept, instance.RescaleSlope, instance.RescaleType = "-1024", "1", "HU"
    else:
        instance.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        instance.ScanningSequence, instance.SequenceVariant, instance.ScanOptions = "SE", "SK", None
        instance.MRAcquisitionType, instance.RepetitionTime, instance.EchoTime = "2D", "500", "10"
        instance.EchoTrainLength = "1"


def _angiography(instance: Dataset, name: str) -> None:
    instance.ImageType = ["ORIGINAL", "PRIMARY", "SINGLE PLANE"]
    instance.PixelIntensityRelationship, instance.LossyImageCompression = "LIN", "00"
    instance.KVP, instance.RadiationSetting = "70", "GR"
    instance.XRayTubeCurrent, instance.ExposureTime, instance.Exposure = "10", "10", "1"
    instance.FrameTime, instance.FrameIncrementPointer = "40", 0x00181063
    instance.PatientOrientation, instance.BodyPartExamined = ["L", "F"], "HEART"
    if name == "XA":
        instance.PositionerMotion, instance.PositionerPrimaryAngle, instance.PositionerSecondaryAngle = (
            "STATIC",
            "0",
            "0",
        )
    instance.BurnedInAnnotation = "NO"
    instance.TableMotion = "STATIC"


def _en_face(instance: Dataset) -> None:
    instance.ImageType = ["DERIVED", "PRIMARY"]
    instance.BurnedInAnnotation, instance.LossyImageCompression = "NO", "00"
    instance.RecognizableVisualFeatures = "NO"
    instance.FrameOfReferenceUID, instance.PositionReferenceIndicator = "1.2.826.0.1.9999.9", None
    instance.ImageOrientationPatient, instance.PixelSpacing = ["1", "0", "0", "0", "1", "0"], ["0.01", "0.01"]
    instance.WindowCenter, instance.WindowWidth, instance.PresentationLUTShape = "128", "256", "IDENTITY"
    instance.AnatomicRegionSequence, instance.ImageLaterality = EYE, "R"
    volume = dataset(ReferencedSOPClassUID=UIDS + "77.1.5.4", ReferencedSOPInstanceUID="1.2.826.0.1.9999.77")
    volume.PurposeOfReferenceCodeSequence = codes("128250", "DCM", "Structural image for image processing")
    instance.SourceImageSequence = Sequence([volume])
    location = dataset(ReferencedSOPClassUID=UIDS + "77.1.5.1", ReferencedSOPInstanceUID="1.2.826.0.1.9999.78")
    location.ReferenceCoordinates, location.OphthalmicImageOrientation = [1.0, 1.0, 9.0, 9.0], "LINEAR"
    location.PurposeOfReferenceCodeSequence = codes("121311", "DCM", "Localizer")
    instance.OphthalmicFrameLocationSequence = Sequence([location])
    instance.PatientOrientation = None
    mesh = dataset(ReferencedSOPClassUID=UIDS + "68.1", ReferencedSOPInstanceUID="1.2.826.0.1.9999.79")
    mesh.ReferencedSurfaceNumber, mesh.SurfaceMeshZPixelOffset = 1, 0
    mesh.SegmentedPropertyTypeCodeSequence = codes("128293", "DCM", "OPL-Henle - ONL")
    instance.ReferencedSurfaceMeshIdentificationSequence = Sequence([mesh])
    instance.DerivationAlgorithmSequence = Sequence([_algorithm()])
    instance.OphthalmicImageTypeCodeSequence = codes("128254", "DCM", "Retina structural reflectance map")
    item = dataset(ReferencedSOPClassUID=UIDS + "77.1.5.4", ReferencedSOPInstanceUID="1.2.826.0.1.9999.77")
    series = dataset(SeriesInstanceUID="1.2.826.0.1.9999.2")
    series.ReferencedInstanceSequence = Sequence([item])
    instance.ReferencedSeriesSequence = Sequence([series])


def _enhanced(instance: Dataset, name: str, frames: int) -> None:
    """Objects with functional groups."""
    kind = {"CT": ["VOLUME", "NONE"], "MR": ["VOLUME", "NONE"]}.get(instance.Modality, [])
    kind = {"EnhancedUSVolume": ["VOLUME", "NONE"], "EnhancedXA": ["SINGLE PLANE", "NONE"]}.get(name, kind)
    kind = {"EnhancedXRF": ["SINGLE PLANE", "NONE"], "OPT": []}.get(name, kind)
    if "ImageType" not in instance:  # an ORIGINAL would need all acquisition macros to be valid
        instance.ImageType = ["DERIVED", "PRIMARY", *kind]
    instance.AcquisitionDateTime, instance.AcquisitionDuration, instance.AcquisitionNumber = "20240203101112", 1.0, 1
    instance.BurnedInAnnotation, instance.LossyImageCompression = "NO", "00"
    instance.FrameOfReferenceUID, instance.PositionReferenceIndicator = "1.2.826.0.1.9999.9", None
    instance.AcquisitionContextSequence = Sequence()
    instance.InstanceCreationDate = "20240203"
    instance.PresentationLUTShape, instance.PatientPosition = "IDENTITY", "HFS"
    organization = "1.2.826.0.1.9999.11"
    instance.DimensionOrganizationSequence = Sequence([dataset(DimensionOrganizationUID=organization)])
    index = dataset(DimensionOrganizationUID=organization, DimensionIndexPointer=0x00209057)
    index.FunctionalGroupPointer = 0x00209111
    index.DimensionDescriptionLabel = "position"
    instance.DimensionIndexSequence = Sequence([index])
    shared = Dataset()
    if instance.Modality in ("CT", "XA", "RF"):
        event = dataset(IrradiationEventUID="1.2.826.0.1.9999.13")
        shared.IrradiationEventIdentificationSequence = Sequence([event])
    if name == "OPT" or not name.endswith(("XA", "XRF")):
        shared.PixelMeasuresSequence = Sequence([dataset(PixelSpacing=["0.5", "0.5"], SliceThickness="2")])
        shared.PlaneOrientationSequence = Sequence([dataset(ImageOrientationPatient=["1", "0", "0", "0", "1", "0"])])
    anatomy = dataset(FrameLaterality="U")
    anatomy.AnatomicRegionSequence = codes("69536005", "SCT", "Head")
    shared.FrameAnatomySequence = Sequence([anatomy])
    {
        "EnhancedCT": _enhanced_ct,
        "EnhancedMR": _enhanced_mr,
        "EnhancedMRColor": _enhanced_mr,
        "EnhancedUSVolume": _enhanced_us,
        "EnhancedXA": _enhanced_xa,
        "EnhancedXRF": _enhanced_xa,
        "OPT": _opt,
        "Confocal": _confocal,
    }[name](instance, shared)
    groups = []
    for number in range(1, frames + 1):
        content = dataset(FrameAcquisitionNumber=1, FrameAcquisitionDateTime="20240203101112")
        content.FrameReferenceDateTime, content.FrameAcquisitionDuration = "20240203101112", 1.0
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", number, [number]
        group = dataset(FrameContentSequence=[content])
        if "PixelMeasuresSequence" in shared:
            if name == "EnhancedUSVolume":
                place = dataset(ImagePositionVolume=[0.0, 0.0, float(number)])
                group.PlanePositionVolumeSequence = Sequence([place])
            else:
                group.PlanePositionSequence = Sequence([dataset(ImagePositionPatient=["0", "0", str(number)])])
        groups.append(group)
    instance.SharedFunctionalGroupsSequence = Sequence([shared])
    instance.PerFrameFunctionalGroupsSequence = Sequence(groups)


def _frame_type(instance: Dataset) -> Dataset:
    item = dataset(FrameType=list(instance.ImageType))
    item.PixelPresentation = "TRUE_COLOR" if instance.SamplesPerPixel == 3 else "MONOCHROME"
    item.VolumetricProperties, item.VolumeBasedCalculationTechnique = "VOLUME", "NONE"
    return item


def _linear(shared: Dataset, kind: str) -> None:
    shared.PixelValueTransformationSequence = Sequence(
        [dataset(RescaleIntercept="0", RescaleSlope="1", RescaleType=kind)]
    )
    shared.FrameVOILUTSequence = Sequence([dataset(WindowCenter="2048", WindowWidth="4096")])


def _enhanced_ct(instance: Dataset, shared: Dataset) -> None:
    item = _frame_type(instance)
    instance.update({element.tag: element for element in item if element.keyword != "FrameType"})
    instance.ContentQualification, instance.MultienergyCTAcquisition = "PRODUCT", "NO"
    shared.CTImageFrameTypeSequence = Sequence([item])
    _linear(shared, "HU")


def _enhanced_mr(instance: Dataset, shared: Dataset) -> None:
    item = _frame_type(instance)
    item.ComplexImageComponent, item.AcquisitionContrast = "MAGNITUDE", "T1"
    instance.update({element.tag: element for element in item if element.keyword != "FrameType"})
    instance.ContentQualification = "PRODUCT"
    instance.MagneticFieldStrength, instance.ResonantNucleus, instance.KSpaceFiltering = 1.5, "1H", "NONE"
    instance.ApplicableSafetyStandardAgency = "IEC"
    instance.ImageComments = ""
    if instance.SamplesPerPixel == 3:
        instance.ICCProfile, instance.ColorSpace = srgb_profile(), "SRGB"
    shared.MRImageFrameTypeSequence = Sequence([item])
    if instance.SamplesPerPixel == 1:
        _linear(shared, "US")


def _enhanced_us(instance: Dataset, shared: Dataset) -> None:
    item = _frame_type(instance)
    instance.update({element.tag: element for element in item if element.keyword != "FrameType"})
    instance.UltrasoundAcquisitionGeometry, instance.PositionMeasuringDeviceUsed = "PATIENT", "FREEHAND"
    instance.PatientOrientation, instance.SourceImageSequence = None, Sequence([_reference("6.2")])
    instance.SynchronizationFrameOfReferenceUID = "1.2.826.0.1.9999.10"
    instance.SynchronizationTrigger, instance.AcquisitionTimeSynchronized = "NO TRIGGER", "N"
    del shared.PlaneOrientationSequence
    orientation = dataset(ImageOrientationVolume=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    shared.PlaneOrientationVolumeSequence = Sequence([orientation])
    kind = dataset(DataType="TISSUE_INTENSITY", AliasedDataType="NO")
    shared.ImageDataTypeSequence = Sequence([kind])
    shared.FrameVOILUTSequence = Sequence([dataset(WindowCenter="128", WindowWidth="256")])
    instance.VolumeToTransducerMappingMatrix = [1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 1.0]
    instance.VolumeFrameOfReferenceUID = "1.2.826.0.1.9999.12"
    instance.MechanicalIndex, instance.BoneThermalIndex, instance.CranialThermalIndex = 0.1, 0.1, 0.1
    instance.SoftTissueThermalIndex, instance.DepthOfScanField, instance.DepthsOfFocus = 0.1, 10, [10.0]
    instance.TransducerScanPatternCodeSequence = codes("125242", "DCM", "Phased")
    instance.TransducerGeometryCodeSequence = codes("125252", "DCM", "Linear ultrasound transducer geometry")
    instance.TransducerBeamSteeringCodeSequence = codes("125258", "DCM", "Phased beam steering")
    instance.TransducerApplicationCodeSequence = codes("125261", "DCM", "External Transducer")
    instance.DimensionOrganizationType, instance.RescaleIntercept, instance.RescaleSlope = "3D", "0", "1"
    instance.ViewCodeSequence = codes("399067008", "SCT", "lateral")
    instance.AnatomicRegionSequence = codes("818981001", "SCT", "Abdomen")
    shared.USImageDescriptionSequence = Sequence([item])


def _enhanced_xa(instance: Dataset, shared: Dataset) -> None:
    instance.ContentQualification, instance.AcquisitionProtocolName = "PRODUCT", "p"
    instance.PixelIntensityRelationship, instance.PlanesInAcquisition = "LIN", "SINGLE PLANE"
    instance.PlaneIdentification = "MONOPLANE"
    item = dataset(FrameType=list(instance.ImageType))
    shared.XAXRFFrameCharacteristicsSequence = Sequence([item])
    properties = dataset(FrameType=list(instance.ImageType), PixelIntensityRelationship="LIN")
    properties.PixelIntensityRelationshipSign, properties.GeometricalProperties = 1, "UNIFORM"
    properties.ImageProcessingApplied = "NONE"
    shared.FramePixelDataPropertiesSequence = Sequence([properties])
    _linear(shared, "US")


def _opt(instance: Dataset, shared: Dataset) -> None:
    instance.DetectorType, instance.LightPathFilterTypeStackCodeSequence = "CCD", Sequence()
    instance.AcquisitionDeviceTypeCodeSequence = codes("392012008", "SCT", "Optical Coherence Tomography Scanner")
    instance.AnatomicRegionSequence, instance.ImageLaterality = EYE, "R"
    instance.AxialLengthOfTheEye = instance.HorizontalFieldOfView = instance.IntraOcularPressure = None
    instance.RefractiveStateSequence, instance.EmmetropicMagnification = Sequence(), None
    instance.PupilDilated = None


def _confocal(instance: Dataset, shared: Dataset) -> None:
    instance.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
