"""Functional groups of enhanced multi-frame objects (PS3.3 C.7.6.16): carried over, with provenance per frame."""

from __future__ import annotations

from pydicom import Dataset
from pydicom.sequence import Sequence

from medenhance_dicom.attributes import copied_item
from medenhance_dicom.errors import DerivationError
from medenhance_dicom.provenance import source_image_item


def derive_groups(
    derived: Dataset, source: Dataset, number_of_frames: int, description: str, derivation_codes: Sequence
) -> None:
    """Write Shared and Per-Frame Functional Groups.

    Frame Type becomes DERIVED, PRIMARY; Derivation Image Sequence says frame by frame what it was made of, and replaces
    the source's own (which lies one reference further back).

    Args:
        derived: Gets the sequences.
        source: A multi-frame object with functional groups.
        number_of_frames: Of both.
        description: Derivation Description.
        derivation_codes: Derivation Code Sequence.

    Raises:
        DerivationError: The source's groups do not match its frames.
    """
    per_frame = source.get("PerFrameFunctionalGroupsSequence") or []
    if len(per_frame) != number_of_frames:
        raise DerivationError("Per-Frame Functional Groups Sequence does not have one item per frame")
    groups = []
    for number, item in enumerate(per_frame, start=1):
        derivation = Dataset()
        derivation.DerivationDescription = description
        derivation.DerivationCodeSequence = derivation_codes
        reference = source_image_item(source.SOPClassUID, source.SOPInstanceUID, frame=number)
        derivation.SourceImageSequence = Sequence([reference])
        group = _group(item)
        group.DerivationImageSequence = Sequence([derivation])
        groups.append(group)
    shared = [_group(item) for item in source.get("SharedFunctionalGroupsSequence") or []]
    if "SharedFunctionalGroupsSequence" in source:
        derived.SharedFunctionalGroupsSequence = Sequence(shared)
    derived.PerFrameFunctionalGroupsSequence = Sequence(groups)


def _group(item: Dataset) -> Dataset:
    group = copied_item(item)
    if "DerivationImageSequence" in group:
        del group.DerivationImageSequence
    for element in group:
        for inner in element.value if element.VR == "SQ" else []:
            frame_type = inner.get("FrameType")
            if frame_type is not None and not isinstance(frame_type, str):
                inner.FrameType = ["DERIVED", "PRIMARY", *list(frame_type)[2:]]
    return group


def evidence_item(source: Dataset) -> Dataset:
    """Item of Source Image Evidence Sequence (0008,9154): study, series, instance (PS3.3 table 10-4)."""
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ReferencedSOPSequence = Sequence([_instance(source)])
    study = Dataset()
    study.StudyInstanceUID = source.StudyInstanceUID
    study.ReferencedSeriesSequence = Sequence([series])
    return study


def referenced_series_item(source: Dataset) -> Dataset:
    """Item of Referenced Series Sequence (0008,1115) of the Common Instance Reference module (PS3.3 C.12.2)."""
    series = Dataset()
    series.SeriesInstanceUID = source.SeriesInstanceUID
    series.ReferencedInstanceSequence = Sequence([_instance(source)])
    return series


def _instance(source: Dataset) -> Dataset:
    item = Dataset()
    item.ReferencedSOPClassUID = source.SOPClassUID
    item.ReferencedSOPInstanceUID = source.SOPInstanceUID
    return item
