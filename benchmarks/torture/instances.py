"""Tiny instances of many patients, each known by its SOP Instance UID and the digest of its data set."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

CR = "1.2.840.10008.5.1.4.1.1.1"
ROOT = "1.2.826.0.1.3680043.8.498.77"
SIDE = 64


@dataclass(frozen=True)
class Instance:
    """One instance as a sender has it; `digest` is the SHA-256 of the encoded data set."""

    path: Path
    uid: str
    digest: str
    patient: str


class Maker:
    """Makes series of one seed; safe to use from one thread."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._random, self._numbers = folder, random.Random(seed), 0
        self._run = self._random.randrange(10**9)
        self._template = _template()

    def series(self, count: int, *, side: int = SIDE) -> list[Instance]:
        """A series of a patient who has others too."""
        number = self._next()
        patient = f"P{self._random.randrange(1, 40):03}"
        uids = f"{ROOT}.{self._run}.{patient[1:].lstrip('0')}", f"{ROOT}.{self._run}.1.{number}"
        return [
            self._instance(patient, *uids, f"{ROOT}.{self._run}.2.{number}.{n}", n, side) for n in range(1, count + 1)
        ]

    def other_bytes(self, like: Instance) -> Instance:
        """Another instance under the same SOP Instance UID."""
        number = self._next()
        series = f"{ROOT}.{self._run}.1.{number}"
        return self._instance(
            like.patient, f"{ROOT}.{self._run}.{like.patient[1:].lstrip('0')}", series, like.uid, 1, SIDE
        )

    def _next(self) -> int:
        self._numbers += 1
        return self._numbers

    def _instance(self, patient: str, study: str, series: str, uid: str, number: int, side: int) -> Instance:
        dataset = self._template
        dataset.SOPInstanceUID = uid
        dataset.PatientID, dataset.PatientName = patient, f"Torture^{patient}"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.InstanceNumber = study, series, number
        dataset.Rows = dataset.Columns = side
        rows = np.linspace(200, 3800, side)[:, None] + self._random.randrange(200) * np.sin(np.arange(side) / 3.0)
        noise = np.frombuffer(self._random.randbytes(side * side), np.uint8).reshape(side, side)
        dataset.PixelData = (rows + noise % 32).clip(0, 4095).astype("<u2").tobytes()
        dataset.file_meta.MediaStorageSOPInstanceUID = uid
        buffer = DicomBytesIO()
        dcmwrite(buffer, dataset, enforce_file_format=True)
        content = buffer.getvalue()
        digest = hashlib.sha256(content[_data_set_at(content) :]).hexdigest()
        path = self._folder / f"{self._next():06}.dcm"
        path.write_bytes(content)
        return Instance(path, uid, digest, patient)


def _data_set_at(content: bytes) -> int:
    """Where the data set starts: after preamble, prefix and the group length element and what that counts."""
    return 144 + int.from_bytes(content[140:144], "little")


def _template() -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.Modality = CR, "CR"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20240102", "030405", "1", ""
    dataset.ReferringPhysicianName, dataset.PatientBirthDate, dataset.PatientSex = "", "", "O"
    dataset.SeriesNumber, dataset.BodyPartExamined, dataset.ViewPosition = 1, "CHEST", "PA"
    dataset.Manufacturer, dataset.PatientOrientation, dataset.Laterality = "Torture", "", ""
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = CR
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return dataset
