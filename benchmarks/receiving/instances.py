"""What is sent."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT = "1.2.840.10008.5.1.4.1.1.2"
KINDS = {"0.5 MB": (512, 16), "16 kB": (128, 8)}
"""Rows = columns, and bits."""
LARGE_FRAMES = 395
"""Of 512 x 512 and 16 bits: 207 MB."""
PICTURE = Path(__file__).parents[2] / "sample_data" / "study" / "op-fundus.dcm"


def make_instances(folder: Path, count: int, side: int, bits: int, frames: int = 1) -> None:
    """A series of noise in a new folder."""
    folder.mkdir(parents=True)
    study, series = generate_uid(), generate_uid()
    random = np.random.default_rng(0)
    for number in range(count):
        dataset = Dataset()
        dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = CT, generate_uid(), "CT"
        dataset.PatientName, dataset.PatientID = "Bench^Mark", "0"
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.InstanceNumber = study, series, number + 1
        dataset.Rows = dataset.Columns = side
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
        dataset.BitsAllocated = dataset.BitsStored = bits
        dataset.HighBit = bits - 1
        if frames > 1:
            dataset.NumberOfFrames = frames
        pixels = random.integers(0, 256, frames * side * side * bits // 8, dtype=np.uint8).tobytes()
        dataset.add_new(0x7FE00010, "OW", pixels)
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(folder / f"{number:05}.dcm", enforce_file_format=True)


def make_pictures(folder: Path, series: int, pictures: int, side: int = 384) -> None:
    """A study of colour fundus series in a new folder, 8-bit RGB: the sample's picture, each with noise of its own."""
    folder.mkdir(parents=True)
    dataset = pydicom.dcmread(PICTURE)
    base = np.asarray(Image.fromarray(dataset.pixel_array).resize((side, side), Image.Resampling.LANCZOS), np.int16)
    random = np.random.default_rng(0)
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.PhotometricInterpretation = "RGB"
    dataset.Rows = dataset.Columns = side
    dataset.StudyInstanceUID = generate_uid()
    for at in range(series):
        dataset.SeriesInstanceUID, dataset.SeriesNumber = generate_uid(), at + 1
        for number in range(pictures):
            dataset.SOPInstanceUID, dataset.InstanceNumber = generate_uid(), number + 1
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            noisy = np.clip(base + random.integers(-1, 2, base.shape, dtype=np.int16), 0, 255)
            dataset.add_new(0x7FE00010, "OB", noisy.astype(np.uint8).tobytes())
            dataset.save_as(folder / f"{at:03}-{number:04}.dcm", enforce_file_format=True)
