"""The verdict on a derived instance as a Comprehensive SR: TID 1500 Measurement Report (PS3.16), one per instance.

It stands in the source's study, in a series of its own for each derived series. Its SOP Instance UID follows from the
derived instance and from what it says, so that a repeat writes the same UID and another calibration another one.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydicom import Dataset
from pydicom.filewriter import dcmwrite
from pydicom.sequence import Sequence

from medenhance_dicom import __version__
from medenhance_dicom.errors import DerivationError
from medenhance_dicom.provenance import CODING_SCHEME, MANUFACTURER, MODEL_NAME, coding_scheme_item
from medenhance_dicom.uids import (
    INSTANCE_CREATOR_UID,
    derived_uid,
)

if TYPE_CHECKING:
    from highdicom.sr import AlgorithmIdentification, CodedConcept, ContentItem, TrackingIdentifier

__all__ = ["COMPREHENSIVE_SR", "report_series_uid", "report_uid", "structured_report"]

COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
_SERIES_NUMBER_STEP = 50
"""From the derived series' number to the report's: recipes take those in between."""
_MOST_SERIES_NUMBER = 2**31 - 1

_PIXELS = ("{pixels}", "UCUM", "Pixels")
_RATIO = ("{ratio}", "UCUM", "ratio")
_OUTCOMES = {
    "enhanced": ("RELEASED", "Structure preserved, released"),
    "warned": ("WARNED", "Structure doubtful, released with a warning"),
    "blended": ("BLENDED", "Structure preserved with the source's pixels in part"),
}
_MEANINGS = {"warn": ("WARN", "Above the limit for a warning"), "withhold": ("WITHHOLD", "Above the limit")}


def report_series_uid(derived_series_uid: str) -> str:
    """Series Instance UID of the reports on a derived series."""
    return derived_uid("structured-report-series", derived_series_uid)


def report_uid(derived_instance_uid: str, document: Dataset) -> str:
    """SOP Instance UID of a report: a function of the instance that it is about, and of its content tree.

    Args:
        derived_instance_uid: SOP Instance UID of the derived instance.
        document: Has the Content Sequence.
    """
    content = Dataset()
    content.ContentSequence = document.ContentSequence
    buffer = io.BytesIO()
    dcmwrite(buffer, content, implicit_vr=False, little_endian=True, force_encoding=True)
    return derived_uid("structured-report", derived_instance_uid, buffer.getvalue())


def structured_report(
    source: Dataset, derived: Dataset, lassim: float | None, outcome: str, verdict: Mapping[str, Any]
) -> Dataset:
    """Build the report on one derived instance.

    Args:
        source: Header of the source.
        derived: Header of the derived instance; patient and study are taken from it, as `derive` copied them.
        lassim: Of the worst frame; None where there is none.
        outcome: `enhanced` or `warned`.
        verdict: As `verdicts.values_of` gives it.

    Returns:
        The document, in ISO_IR 192. What it does not know it does not say.

    Raises:
        DerivationError: A value of the headers that cannot stand in a report.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values, which may be a patient's
        try:
            return _Report(source, derived, lassim, outcome, verdict).document()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise DerivationError(f"no structured report: {type(error).__name__}") from None


class _Report:
    """The content tree, and the document around it."""

    def __init__(
        self, source: Dataset, derived: Dataset, lassim: float | None, outcome: str, verdict: Mapping[str, Any]
    ) -> None:
        self.source, self.derived, self.lassim, self.outcome, self.verdict = source, derived, lassim, outcome, verdict
        self.device = derived.ContributingEquipmentSequence[-1]
        self.frames = int(derived.get("NumberOfFrames") or 1)

    def document(self) -> Dataset:
        """PS3.3 A.35.3."""
        from highdicom.sr import ComprehensiveSR

        derived = self.derived
        number = derived.get("InstanceNumber")
        plain = Dataset()  # the document's constructor refuses odd patient attributes; the true ones follow below
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            setattr(plain, keyword, "")
        plain.StudyDate = plain.StudyTime = ""
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID"):
            plain[keyword] = derived[keyword]
        document = ComprehensiveSR(
            evidence=[plain, self.source],
            content=self.content(),
            series_instance_uid=report_series_uid(derived.SeriesInstanceUID),
            series_number=min(int(derived.SeriesNumber) + _SERIES_NUMBER_STEP, _MOST_SERIES_NUMBER),
            sop_instance_uid=derived.SOPInstanceUID,
            instance_number=int(number) if isinstance(number, int) and number > 0 else 1,
            manufacturer=MANUFACTURER,
            manufacturer_model_name=MODEL_NAME,
            software_versions=__version__,
            device_serial_number=self.device.DeviceSerialNumber,
            series_description="Structure verdict of the enhanced series",
            specific_character_set="ISO_IR 192",
            is_complete=True,
            is_final=True,
        )
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
            document[keyword] = derived[keyword]
        document.copy_patient_and_study_information(derived)
        document.SOPInstanceUID = report_uid(derived.SOPInstanceUID, document)
        document.InstanceCreatorUID = INSTANCE_CREATOR_UID
        if "TimezoneOffsetFromUTC" in derived:
            document.TimezoneOffsetFromUTC = derived.TimezoneOffsetFromUTC
        for place in ("InstanceCreation", "Content", "Series"):
            setattr(document, f"{place}Date", derived.InstanceCreationDate)
            setattr(document, f"{place}Time", derived.InstanceCreationTime)
        document.ContributingEquipmentSequence = Sequence([self.device])  # and not a library, with the time of day
        document.CodingSchemeIdentificationSequence = Sequence([coding_scheme_item()])
        return document

    def content(self) -> Dataset:
        """TID 1500, with the images' library before the measurements."""
        from highdicom.sr import (
            DeviceObserverIdentifyingAttributes,
            MeasurementReport,
            ObservationContext,
            ObserverContext,
        )
        from pydicom.sr.codedict import codes

        device = DeviceObserverIdentifyingAttributes(
            uid=self.device.DeviceUID,
            name=MODEL_NAME,
            manufacturer_name=MANUFACTURER,
            model_name=MODEL_NAME,
            serial_number=self.device.DeviceSerialNumber,
        )
        observer = ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
        report = MeasurementReport(
            observation_context=ObservationContext(observer_device_context=observer),
            procedure_reported=codes.SCT.ImagingProcedure,
            imaging_measurements=[self.structure(), *self.regions()],
            title=codes.DCM.ImagingMeasurementReport,
        )[0]
        report.ContentSequence.insert(len(report.ContentSequence) - 1, self.library())
        return report

    def library(self) -> ContentItem:
        """TID 1600: the source and the derived image, with modality, rows and columns."""
        from highdicom.sr import CodeContentItem, ContainerContentItem, ImageContentItem, NumContentItem
        from highdicom.sr.value_types import ContentSequence
        from pydicom.sr.codedict import codes

        library = ContainerContentItem(codes.DCM.ImageLibrary, relationship_type="CONTAINS")
        group = ContainerContentItem(codes.DCM.ImageLibraryGroup, relationship_type="CONTAINS")
        group.ContentSequence = ContentSequence()
        for image in (self.source, self.derived):  # both are sources of the measurements
            entry = ImageContentItem(
                codes.SCT.Source, image.SOPClassUID, image.SOPInstanceUID, relationship_type="CONTAINS"
            )
            entry.ContentSequence = ContentSequence()
            modality = _modality(str(image.get("Modality") or ""))
            if modality is not None:
                entry.ContentSequence.append(
                    CodeContentItem(codes.DCM.Modality, modality, relationship_type="HAS ACQ CONTEXT")
                )
            for concept, value in (
                (codes.DCM.PixelDataRows, image.Rows), (codes.DCM.PixelDataColumns, image.Columns),
            ):  # fmt: skip
                entry.ContentSequence.append(
                    NumContentItem(concept, int(value), _code(*_PIXELS), relationship_type="HAS ACQ CONTEXT")
                )
            group.ContentSequence.append(entry)
        library.ContentSequence = ContentSequence([group])
        return library

    def structure(self) -> Any:
        """TID 1501: LaSSIM and every check at their worst, with the verdict."""
        from highdicom.sr import (
            MeasurementsAndQualitativeEvaluations,
            QualitativeEvaluation,
            SourceImageForMeasurementGroup,
        )

        verdict = self.verdict
        measured = []
        if self.lassim is not None:
            measured.append(self.measurement("lassim", self.lassim, verdict["worst_frame"]))
        for name, found in verdict["checks"].items():
            if found["value"] is not None:
                measured.append(self.measurement(name, found["value"], found["frame"]))
        if blended := verdict["blended"]:
            measured.append(self.measurement("blended", blended["share"], None))
        images = [
            SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)
            for image in (self.source, self.derived)
        ]
        return MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self.tracking("structure"),
            finding_type=_ours("STRUCTURE", "Structure kept by the enhancement"),
            algorithm_id=self.algorithm(),
            measurements=measured,
            qualitative_evaluations=[
                QualitativeEvaluation(
                    _ours("VERDICT", "Structure verdict"), _ours(*_OUTCOMES["blended" if blended else self.outcome])
                )
            ],
            source_images=images,
        )

    def regions(self) -> list[Any]:
        """TID 1410: where a check objects, on the derived image."""
        import numpy as np
        from highdicom.sr import (
            ImageRegion,
            PlanarROIMeasurementsAndQualitativeEvaluations,
            QualitativeEvaluation,
            SourceImageForRegion,
        )

        groups = []
        for objection in self.verdict["objections"]:
            region, value = objection["region"], objection["value"]
            if region is None or value is None:
                continue
            top, left, bottom, right = (float(region[side]) for side in ("top", "left", "bottom", "right"))
            corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom], [left, top]])
            image = SourceImageForRegion(
                self.derived.SOPClassUID, self.derived.SOPInstanceUID, self.frame_numbers(objection["frame"])
            )
            name, frame = objection["check"], objection["frame"]
            groups.append(
                PlanarROIMeasurementsAndQualitativeEvaluations(
                    tracking_identifier=self.tracking(f"{name} frame {frame + 1}"),
                    referenced_region=ImageRegion("POLYLINE", corners, image),
                    finding_type=_ours("CHANGED", "Structure may have changed"),
                    measurements=[self.measurement(name, value, None)],
                    qualitative_evaluations=[
                        QualitativeEvaluation(_ours("OBJECTION", "Objection"), _ours(*_MEANINGS[objection["severity"]]))
                    ],
                )
            )
        return groups

    def measurement(self, name: str, value: float, frame: int | None) -> Any:
        """TID 300; `frame` (from 0) of the derived image, None where the group says it or it is of all."""
        from highdicom.sr import Measurement, SourceImageForMeasurement

        images = None
        if frame is not None:
            images = [
                SourceImageForMeasurement(
                    self.derived.SOPClassUID, self.derived.SOPInstanceUID, self.frame_numbers(frame)
                )
            ]
        return Measurement(_concept(name), float(f"{value:.6g}"), _code(*_RATIO), referenced_images=images)

    def frame_numbers(self, frame: int) -> list[int] | None:
        """For a reference: from 1, and only where there are several."""
        return [frame + 1] if self.frames > 1 else None

    def tracking(self, what: str) -> TrackingIdentifier:
        """A Tracking Unique Identifier that a repeat gives again."""
        from highdicom import UID
        from highdicom.sr import TrackingIdentifier

        uid = derived_uid("tracking", self.derived.SOPInstanceUID, what)
        return TrackingIdentifier(uid=UID(uid), identifier=f"{MODEL_NAME} {what}")

    def algorithm(self) -> AlgorithmIdentification:
        """TID 4019: the gate, with its calibration."""
        from highdicom.sr import AlgorithmIdentification

        verdict = self.verdict
        return AlgorithmIdentification(
            name=f"{MODEL_NAME} structure gate",
            version=__version__,
            parameters=[
                f"mode {verdict['mode']}",
                f"LaSSIM level {verdict['level']}, minimum {verdict['minimum']:g}, warning {verdict['warn_below']:g}",
                f"calibration {verdict['calibration'] or 'none'}",
                *(
                    f"{name}: warning {found['warn']:.6g}, limit {found['withhold']:.6g}"
                    for name, found in verdict["checks"].items()
                    if found["withhold"] is not None
                ),
            ],
        )


_CONCEPTS = {
    "lassim": ("LASSIM", "Laplacian structural similarity, worst frame"),
    "blended": ("BLENDED", "Share of the picture given back to the source"),
}


def _concept(name: str) -> CodedConcept:
    value, meaning = _CONCEPTS.get(name, (name.upper()[:16], f"Structure check: {name}"[:64]))
    return _ours(value, meaning)


def _ours(value: str, meaning: str) -> CodedConcept:
    return _code(value, CODING_SCHEME, meaning)


def _code(value: str, scheme: str, meaning: str) -> CodedConcept:
    from highdicom.sr import CodedConcept

    return CodedConcept(value, scheme, meaning)


def _modality(name: str) -> Any:
    """CID 33; None for a modality that it does not have."""
    from pydicom.sr.codedict import codes

    with contextlib.suppress(AttributeError):
        for keyword in dir(codes.CID29):
            code = getattr(codes.CID29, keyword)
            if code.value == name:
                return code
    return None
