"""Make the sample data: seeded, no patient was ever involved. Run `python sample_data/make.py` from the project's root.

The fundus photograph is `skimage.data.retina()` (CC0), made worse; everything else is drawn here.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, JPEGBaseline8Bit, JPEGLSLossless
from scipy.ndimage import gaussian_filter
from skimage.data import retina

HERE = Path(__file__).parent
OPHTHALMIC_8BIT = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
ENDOSCOPIC = "1.2.840.10008.5.1.4.1.1.77.1.1"
COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"
ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6.1"
COMPUTED_TOMOGRAPHY = "1.2.840.10008.5.1.4.1.1.2"


def uid(*words: object) -> str:
    """A UID that follows from words, so that every run makes the same files."""
    digest = hashlib.sha256("/".join(map(str, ("medenhance sample", *words))).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """One item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def instance(name: str, sop_class: str, modality: str, number: int = 1) -> Dataset:
    """Patient, study, series, equipment and SOP common modules of a phantom."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID = sop_class
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid(name, number)
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = f"Phantom^{name.title()}", name.upper(), "", "O"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = uid(name, "study"), uid(name, "series")
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = "20250102"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = ds.AcquisitionTime = "101500"
    ds.AcquisitionDateTime = "20250102101500"
    ds.AccessionNumber, ds.StudyID, ds.ReferringPhysicianName = "", "1", ""
    ds.Modality, ds.SeriesNumber, ds.InstanceNumber = modality, 1, number
    ds.SeriesDescription = f"{name} phantom"
    ds.Manufacturer, ds.ManufacturerModelName, ds.SoftwareVersions = "medenhance-dicom samples", "make.py", "1"
    ds.DeviceSerialNumber = "0"
    ds.ImageType = ["ORIGINAL", "PRIMARY"]
    ds.BurnedInAnnotation = "NO"
    return ds


def set_pixels(ds: Dataset, pixels: np.ndarray, photometric: str, bits_stored: int = 8) -> None:
    """Image Pixel module, uncompressed; pixels (H, W[, 3]) or (N, H, W[, 3])."""
    colour = photometric == "RGB"
    shape = pixels.shape[:-1] if colour else pixels.shape
    ds.Rows, ds.Columns = shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = (3, "RGB") if colour else (1, photometric)
    if colour:
        ds.PlanarConfiguration = 0
    ds.BitsAllocated = 8 * pixels.dtype.itemsize
    ds.BitsStored, ds.HighBit = bits_stored, bits_stored - 1
    ds.PixelRepresentation = int(pixels.dtype.kind == "i")
    data = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
    ds.PixelData = data + b"\0" * (len(data) % 2)
    ds["PixelData"].VR = "OW" if ds.BitsAllocated == 16 else "OB"


def smooth(rng: np.random.Generator, shape: tuple[int, int], sigma: float) -> np.ndarray:
    """Smooth noise in [0, 1]."""
    field = gaussian_filter(rng.normal(size=shape), sigma)
    return (field - field.min()) / (field.max() - field.min())


def fundus() -> Dataset:
    """A colour fundus photograph with haze, a yellow veil and uneven light; JPEG baseline as cameras write it."""
    picture = Image.fromarray(retina()).resize((640, 640), Image.Resampling.LANCZOS)
    x = np.asarray(picture).astype(np.float64) / 255
    inside = gaussian_filter((x.max(axis=2) > 0.07).astype(float), 1)[..., None]
    v, u = np.mgrid[-1:1:640j, -1:1:640j]
    t = (0.5 + 0.2 * u - 0.12 * v)[..., None]
    x = x * t + np.array([0.6, 0.5, 0.3]) * (1 - t)
    x = gaussian_filter(x, (1.0, 1.0, 0)) * (0.78 + 0.5 * u - 0.3 * v)[..., None].clip(0.25, 1.4)
    x = np.clip(x * inside + np.random.default_rng(1).normal(0, 0.006, x.shape) * inside, 0, 1)
    ds = instance("fundus", OPHTHALMIC_8BIT, "OP")
    set_pixels(ds, np.round(x * 255).astype(np.uint8), "RGB")
    stream = io.BytesIO()
    Image.fromarray(np.round(x * 255).astype(np.uint8)).save(stream, "JPEG", quality=92, subsampling=1)
    ds.PixelData = encapsulate([stream.getvalue()])
    ds["PixelData"].is_undefined_length = True
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PhotometricInterpretation = "YBR_FULL_422"
    ds.LossyImageCompression, ds.LossyImageCompressionMethod = "01", "ISO_10918_1"
    ds.LossyImageCompressionRatio = f"{640 * 640 * 3 / len(stream.getvalue()):.1f}"
    ophthalmic(ds, ["ORIGINAL", "PRIMARY", "", "COLOR"])
    return ds


def ophthalmic(ds: Dataset, image_type: list[str]) -> None:
    """What the Ophthalmic Photography IOD asks for (PS3.3 A.41)."""
    ds.ImageType, ds.NumberOfFrames, ds.FrameIncrementPointer = image_type, 1, 0x00181063
    ds.FrameTime = "0"
    ds.PatientOrientation = ""
    ds.ImageLaterality = "R"
    if ds.PhotometricInterpretation == "MONOCHROME2":
        ds.PresentationLUTShape = "IDENTITY"
    ds.LossyImageCompression = ds.get("LossyImageCompression", "00")
    ds.SynchronizationFrameOfReferenceUID = uid("synchronization")
    ds.SynchronizationTrigger, ds.AcquisitionTimeSynchronized = "NO TRIGGER", "N"
    ds.PatientEyeMovementCommanded = "NO"
    ds.AnatomicRegionSequence = [code("81745001", "SCT", "Eye")]
    ds.AcquisitionDeviceTypeCodeSequence = [code("409898007", "SCT", "Fundus Camera")]
    ds.IlluminationTypeCodeSequence = [code("111741", "DCM", "Transmitted light")]
    ds.LightPathFilterTypeStackCodeSequence = ds.ImagePathFilterTypeStackCodeSequence = []
    ds.LensesCodeSequence = []
    ds.DetectorType = "CCD"
    ds.EmmetropicMagnification = ds.IntraOcularPressure = ds.HorizontalFieldOfView = None
    ds.RefractiveStateSequence, ds.PupilDilated = [], ""
    ds.AcquisitionContextSequence = []


def cornea() -> Dataset:
    """A corneal confocal frame: beaded nerves on speckle, vignetted."""
    rng = np.random.default_rng(2)
    n = 384
    canvas = Image.new("F", (n, n), 0.0)
    draw = ImageDraw.Draw(canvas)
    for width, value, count in ((3, 0.75, 5), (2, 0.5, 8), (1, 0.4, 8)):
        for _ in range(count):
            y, x, angle = rng.uniform(-60, n + 60), -10.0, rng.uniform(-0.3, 0.4)
            points = []
            while x < n + 10:
                points.append((x, y))
                angle = np.clip(angle + rng.normal(0, 0.05), -0.6, 0.6)
                x, y = x + 6, y + 6 * np.tan(angle)
            draw.line(points, fill=value, width=width, joint="curve")
    nerves = gaussian_filter(np.asarray(canvas), 0.8) * (0.75 + 0.5 * smooth(rng, (n, n), 2))
    cells = 0.25 + 0.12 * smooth(rng, (n, n), 6) + gaussian_filter(rng.normal(0, 0.16, (n, n)), 0.7)
    v, u = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j]
    light = 1.5 / (1 + 1.2 * ((u - 0.15) ** 2 + (v + 0.1) ** 2)) - 0.15
    x = np.clip((cells + nerves) * light, 0, 1)
    ds = instance("cornea", OPHTHALMIC_8BIT, "OP")
    set_pixels(ds, np.round(x * 255).astype(np.uint8), "MONOCHROME2")
    ophthalmic(ds, ["ORIGINAL", "PRIMARY"])
    ds.AcquisitionDeviceTypeCodeSequence = [code("392012008", "SCT", "Confocal microscope")]
    ds.AnatomicRegionSequence = [code("28726007", "SCT", "Cornea")]
    return ds


def text(pixels: np.ndarray, lines: dict[tuple[int, int], str], value: int | tuple[int, int, int]) -> np.ndarray:
    """Burn text into a picture."""
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    for place, line in lines.items():
        draw.text(place, line, fill=value)
    return np.array(picture)


def endoscopy() -> Dataset:
    """Six endoscopic frames: a lumen with folds, falling light, an octagonal field and burned-in date."""
    rng = np.random.default_rng(3)
    h, w = 200, 240
    texture = smooth(rng, (h, w), 5)
    v, u = np.mgrid[-1 : 1 : h * 1j, -1.2 : 1.2 : w * 1j]
    frames = []
    for k in range(6):
        r = np.hypot(u - 0.15 + 0.02 * k, v + 0.1)
        folds = 0.5 + 0.5 * np.sin(9 * r ** (0.6) + 0.8 * np.sin(3 * np.arctan2(v, u)) + 0.25 * k)
        light = np.clip(1.1 - np.exp(-3 * r**2) * 1.3, 0.03, 1) * np.clip(1.15 - 0.55 * (u + 0.8), 0.15, 1)
        base = light * (0.45 + 0.25 * folds + 0.3 * texture)
        x = base[..., None] * np.array([0.85, 0.46, 0.38]) + gaussian_filter(
            rng.normal(0, 0.02, (h, w, 3)), (0.6, 0.6, 0)
        )
        field = (np.abs(u) < 1.05) & (np.abs(v) < 0.95) & (np.abs(u) + np.abs(v) < 1.65)
        x = np.round(np.clip(x, 0, 1) * 255).astype(np.uint8) * field[..., None]
        frames.append(text(x, {(2, 2): "02.01.25", (2, 186): "10:15"}, (230, 230, 230)))
    ds = instance("endoscopy", ENDOSCOPIC, "ES")
    set_pixels(ds, np.stack(frames), "RGB")
    ds.NumberOfFrames, ds.FrameIncrementPointer, ds.FrameTime = 6, 0x00181063, "40"
    ds.ImageType, ds.BurnedInAnnotation, ds.LossyImageCompression = ["ORIGINAL", "PRIMARY"], "YES", "00"
    ds.PatientOrientation = ""
    ds.AcquisitionContextSequence = []
    ds.AnatomicRegionSequence = [code("71854001", "SCT", "Colon")]
    ds.compress(JPEGLSLossless, encoding_plugin="pyjpegls", generate_instance_uid=False)
    return ds


def radiograph() -> Dataset:
    """A low-contrast chest-like radiograph, 12 bits, MONOCHROME1."""
    rng = np.random.default_rng(4)
    h, w = 360, 320
    v, u = np.mgrid[-1 : 1 : h * 1j, -1 : 1 : w * 1j]
    body = np.exp(-((u / 0.9) ** 6) - ((v / 1.1) ** 8))
    lungs = sum(np.exp(-(((u - s * 0.42) / 0.3) ** 4) - (((v + 0.05) / 0.62) ** 4)) for s in (-1, 1))
    ribs = 0.06 * (np.sin(26 * (v + 0.25 * np.abs(u) ** 1.5)) > 0.55) * lungs
    heart = 0.25 * np.exp(-(((u - 0.15) / 0.32) ** 2) - (((v - 0.3) / 0.3) ** 2))
    absorbed = 0.75 * body - 0.42 * lungs + gaussian_filter(ribs, 1.2) + heart + 0.05 * smooth(rng, (h, w), 4) * lungs
    nodule = 0.07 * np.exp(-(((u + 0.45) / 0.05) ** 2) - (((v + 0.2) / 0.045) ** 2))
    value = 900 + 1400 * (absorbed + nodule) + rng.normal(0, 12, (h, w))
    ds = instance("radiograph", COMPUTED_RADIOGRAPHY, "CR")
    set_pixels(ds, np.round(4095 - value).clip(0, 4095).astype(np.uint16), "MONOCHROME1", 12)
    ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = "CHEST", "PA", ["L", "F"]
    ds.WindowCenter, ds.WindowWidth, ds.PixelSpacing = "2300", "2400", ["1", "1"]
    ds.ImagerPixelSpacing = ["1", "1"]
    ds.compress(JPEGLSLossless, encoding_plugin="pyjpegls", generate_instance_uid=False)
    return ds


def ultrasound() -> Dataset:
    """A B-mode sector with burned-in text and a depth scale."""
    rng = np.random.default_rng(5)
    h, w = 300, 380
    y, x = np.mgrid[0:h, 0:w].astype(float)
    radius, angle = np.hypot(y + 20, x - w / 2), np.arctan2(x - w / 2, y + 20)
    sector = (np.abs(angle) < 0.65) & (radius > 50) & (radius < 300)
    tissue = 0.3 + 0.35 * smooth(rng, (h, w), 12)
    tissue[((x - 170) / 45) ** 2 + ((y - 170) / 30) ** 2 < 1] = 0.05
    speckle = gaussian_filter(rng.rayleigh(1.0, (h, w)), (0.7, 1.4))
    b_mode = np.clip(tissue * speckle * np.exp(-(radius - 50) / 260), 0, 1) * sector
    pixels = text(np.round(b_mode * 200).astype(np.uint8), {
        (6, 4): "PHANTOM  L5-12  MI 0.9", (6, 284): "Depth 12 cm", (330, 284): "2D 45%",
    }, 255)  # fmt: skip
    pixels[60:280:20, 368:376] = 255
    ds = instance("ultrasound", ULTRASOUND, "US")
    set_pixels(ds, pixels, "MONOCHROME2")
    ds.ImageType, ds.BurnedInAnnotation, ds.PatientOrientation = ["ORIGINAL", "PRIMARY", "ABDOMINAL", "0001"], "YES", ""
    ds.BodyPartExamined = "ABDOMEN"
    ds.LossyImageCompression = "00"
    return ds


def tomogram(number: int) -> Dataset:
    """One CT slice; CT numbers are measurements, so it is refused unless asked for."""
    rng = np.random.default_rng(6 + number)
    n = 128
    v, u = np.mgrid[-1 : 1 : n * 1j, -1 : 1 : n * 1j]
    hounsfield = np.where((u / 0.8) ** 2 + (v / 0.6) ** 2 < 1, 40.0, -1000.0)
    hounsfield[((u - 0.3) / 0.2) ** 2 + (v / 0.25) ** 2 < 1] = 90
    hounsfield[(u / 0.12) ** 2 + ((v - 0.42) / 0.1) ** 2 < 1] = 700
    ds = instance("tomogram", COMPUTED_TOMOGRAPHY, "CT", number)
    set_pixels(
        ds, np.round(hounsfield + 1024 + rng.normal(0, 15, (n, n))).clip(0, 4095).astype(np.int16), "MONOCHROME2", 16
    )
    ds.ImageType, ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = (
        ["ORIGINAL", "PRIMARY", "AXIAL"],
        "1",
        "-1024",
        "HU",
    )
    ds.WindowCenter, ds.WindowWidth = "40", "400"
    ds.ImagePositionPatient, ds.ImageOrientationPatient = (
        ["-160", "-160", str(5 * number)],
        ["1", "0", "0", "0", "1", "0"],
    )
    ds.PixelSpacing, ds.SliceThickness, ds.FrameOfReferenceUID = ["2.5", "2.5"], "5", uid("tomogram", "frame")
    ds.PositionReferenceIndicator, ds.KVP, ds.AcquisitionNumber, ds.PatientPosition = "", "120", 1, "HFS"
    ds.BodyPartExamined = "ABDOMEN"
    return ds


def main() -> None:
    """Write everything below `sample_data/`."""
    made = {
        "study/op-fundus.dcm": fundus(), "study/op-cornea.dcm": cornea(), "study/es-colon.dcm": endoscopy(),
        "study/cr-chest.dcm": radiograph(), "study/us-abdomen.dcm": ultrasound(),
        "study/ct/slice1": tomogram(1), "study/ct/slice2": tomogram(2),
    }  # fmt: skip
    for name, ds in made.items():
        path = HERE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        ds.save_as(path, enforce_file_format=True)
    broken = HERE / "broken"
    broken.mkdir(exist_ok=True)
    whole = (HERE / "study/us-abdomen.dcm").read_bytes()
    (broken / "cut-in-the-pixels.dcm").write_bytes(whole[: len(whole) // 2])
    (broken / "cut-in-the-header.dcm").write_bytes(whole[:700])
    (broken / "not-dicom.dcm").write_bytes(b"This is no DICOM file.\n")
    files = sorted(p for p in HERE.rglob("*") if p.is_file() and p.parent != HERE)
    lines = [f'"{p.relative_to(HERE).as_posix()}" = "{hashlib.sha256(p.read_bytes()).hexdigest()}"' for p in files]
    (HERE / "hashes.toml").write_text("[sha256]\n" + "\n".join(lines) + "\n")
    for p in files:
        print(f"{p.stat().st_size:8} {p.relative_to(HERE)}")


if __name__ == "__main__":
    main()
