"""Image-level modules of a derived object: what its pixels are, and what was done to them before us."""

from __future__ import annotations

import functools
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from pydicom import Dataset
from pydicom.datadict import tag_for_keyword
from pydicom.multival import MultiValue

from medenhance_dicom.attributes import LOSSY, POINTED_AT, attributes_of, copied
from medenhance_dicom.lossy import Encoding, enter_loss
from medenhance_dicom.provenance import MANUFACTURER, MODEL_NAME, Provenance
from medenhance_dicom.sop_classes import SopClass, derived_image_type, image_type, transfer_syntax

if TYPE_CHECKING:
    from medenhance_dicom.frames import PixelFormat

_MOST_CHARACTERS = 65534  # of a value of VR SH, PS3.5 section 7.1.2
_INCREMENTS = ("FrameTime", "FrameTimeVector", *sorted(POINTED_AT - {"FrameTime", "FrameTimeVector"}))


@dataclass(frozen=True)
class PixelSummary:
    """What is known of the new Pixel Data."""

    digest: str
    """Hex SHA-256 of all frames as they will stand in the file, little endian, without the pad byte."""
    format: PixelFormat
    number_of_frames: int
    source_digest: str
    """Hex SHA-256 of the source's decoded frames, little endian, in the format above."""
    blended: bool = False
    """Pixels of the source came back where the structure check objected: other pixels on purpose, another object."""
    shared_range: tuple[float, float] | None = None
    """Modality values that became 0 and 1, where other instances of the series had a part in them."""
    encoding: Encoding | None = None
    """Of the source's Pixel Data, to enter a loss that its attributes do not tell; None: not looked at."""
    overlays: Mapping[int, bytes] = field(default_factory=dict)
    """Group -> Overlay Data of the planes that lay in the source's pixel cells, see `overlays.packed`."""


@dataclass(frozen=True)
class Making:
    """All that the modules below are written from."""

    source: Dataset
    sop_class: SopClass
    converted: bool
    """The SOP class changes."""
    pixels: PixelSummary
    provenance: Provenance
    made: datetime
    """In the zone of the object's times."""
    description: str
    """Derivation Description."""


def image(derived: Dataset, making: Making) -> None:
    """PS3.3 C.7.6.1, and the multi-frame module's count (C.7.6.6)."""
    derived.ContentDate, derived.ContentTime = date_and_time(making.made)
    values = derived_image_type(making.sop_class, image_type(making.source), converted=making.converted)
    derived.ImageType = values
    if making.sop_class.kind == "OP" and not derived.get("AcquisitionDateTime", True):
        del derived.AcquisitionDateTime  # type 1C of ORIGINAL images, C.8.17.2
    if "InstanceNumber" not in derived and making.sop_class.kind not in ("OP", "OCT", "ENHANCED"):  # where it is type 1
        derived.InstanceNumber = None
    frames = making.pixels.number_of_frames
    if frames > 1 or "NumberOfFrames" in attributes_of(making.sop_class.iod):
        derived.NumberOfFrames = frames


def image_pixel(derived: Dataset, making: Making) -> None:
    """PS3.3 C.7.6.3, and a colour space for colour photographs that name none (C.11.15)."""
    pixels = making.pixels.format
    derived.SamplesPerPixel = pixels.samples
    derived.PhotometricInterpretation = pixels.photometric_out
    derived.Rows, derived.Columns = pixels.rows, pixels.columns
    derived.BitsAllocated, derived.BitsStored = pixels.bits_allocated, pixels.bits_stored
    derived.HighBit = pixels.bits_stored - 1
    derived.PixelRepresentation = int(pixels.signed)
    if pixels.samples == 3:
        derived.PlanarConfiguration = 0
        if making.sop_class.kind in ("OP", "VL") and "ICCProfile" not in derived:
            derived.ICCProfile = srgb_profile()
            derived.ColorSpace = "SRGB"


@functools.cache
def srgb_profile() -> bytes:
    """An sRGB input profile of even length (PS3.3 C.11.15.1.1), the same bytes whenever it is made.

    Little CMS stamps the time and calls it a display profile; DICOM wants an input device, and repeats must be equal.
    """
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[12:16] = b"scnr"
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)
    profile[84:100] = bytes(16)  # profile id, a digest of the above: zero means not computed
    return bytes(profile) + bytes(len(profile) % 2)


def lossy_history(derived: Dataset, making: Making) -> None:
    """PS3.3 C.7.6.1.1.5: once lossy, always lossy; methods and ratios add up (requirement R9)."""
    source, pixels = making.source, making.pixels
    history = copied(source, LOSSY)
    if pixels.encoding is not None:
        cells = pixels.format.rows * pixels.format.columns * source.SamplesPerPixel * source.BitsAllocated // 8
        enter_loss(history, pixels.encoding, transfer_syntax(source), cells * pixels.number_of_frames)
    if making.sop_class.kind == "VL" and "LossyImageCompression" not in history:
        history.LossyImageCompression = None  # type 2, and nobody knows
    derived.update(history)


def multi_frame_secondary_capture(derived: Dataset, making: Making) -> None:
    """PS3.3 C.8.6.1, C.8.6.3 and the content constraints of A.8.3.4, A.8.4.4 and A.8.5.4."""
    if making.converted or not derived.get("ConversionType"):
        derived.ConversionType = "WSD"
    derived.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    derived.SecondaryCaptureDeviceManufacturerModelName = MODEL_NAME
    derived.SecondaryCaptureDeviceSoftwareVersions = making.provenance.version
    burned_in = str(making.source.get("BurnedInAnnotation") or "").upper()
    derived.BurnedInAnnotation = "NO" if burned_in == "NO" else "YES"
    if making.pixels.format.samples == 1:
        _with_defaults(derived, PresentationLUTShape="IDENTITY")
        if "ModalityLUTSequence" not in derived:  # the one or the other, C.11.1
            _with_defaults(derived, RescaleSlope="1", RescaleIntercept="0", RescaleType="US")


def _with_defaults(derived: Dataset, **values: str) -> None:
    for keyword, value in values.items():
        if derived.get(keyword) in (None, ""):
            setattr(derived, keyword, value)


def frame_increment(derived: Dataset, making: Making) -> None:
    """Frame Increment Pointer (PS3.3 C.7.6.6, C.8.6.3): what the source says of the step from frame to frame.

    It names what is there. Where the source says nothing, or what it names cannot come along (a private sequence, say),
    frames are labelled by their numbers, which claims no timing. X-ray IODs know timing only (C.8.7.1): there a source
    that names nothing keeps its fault.
    """
    iod, frames = making.sop_class.iod, making.pixels.number_of_frames
    named = derived.get("FrameIncrementPointer")
    pointers = list(named) if isinstance(named, MultiValue) else [named] if named else []
    there = [tag for tag in pointers if tag in derived]
    if (
        not there
        and (frames > 1 or "FrameIncrementPointer" in derived)
        and "FrameIncrementPointer" in attributes_of(iod)
    ):
        known = [keyword for keyword in _INCREMENTS if derived.get(keyword) not in (None, "")]
        labels = [str(number) for number in range(1, frames + 1)]
        if known:
            there = [tag_for_keyword(known[0])]
        elif making.sop_class.kind == "XA" and not any(tag in making.source for tag in pointers):
            there = pointers
        elif len("\\".join(labels)) <= _MOST_CHARACTERS:
            derived.FrameLabelVector, there = labels, [tag_for_keyword("FrameLabelVector")]
    if "FrameIncrementPointer" in derived:
        del derived.FrameIncrementPointer
    if making.converted and frames == 1:  # Secondary Capture has it for several frames only
        there = []
    if there:
        derived.FrameIncrementPointer = there if len(there) > 1 else there[0]


def orientation(derived: Dataset, making: Making) -> None:
    """What is type 2C of where the patient lies: empty where nothing says it.

    Laterality of the series, without which part of whose body it is (PS3.3 C.7.3.1); Patient Orientation of Secondary
    Capture without a position (C.7.6.1).
    """
    kind = making.sop_class.kind
    said = ("Laterality", "BodyPartExamined", "ImageLaterality", "AnatomicRegionSequence", "ContainerIdentifier")
    if kind not in ("ENHANCED", "OCT") and not any(keyword in derived for keyword in said):
        derived.Laterality = None
    if kind == "SC" and "PatientOrientation" not in derived and "ImageOrientationPatient" not in derived:
        derived.PatientOrientation = None


def date_and_time(moment: datetime) -> tuple[str, str]:
    """As DA and TM values (PS3.5 section 6.2)."""
    return moment.strftime("%Y%m%d"), moment.strftime("%H%M%S.%f")
