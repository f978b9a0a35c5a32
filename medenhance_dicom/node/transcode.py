"""Rewrite a file in an uncompressed transfer syntax, for a peer that takes no other. Nothing is compressed here."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import BinaryIO

from pydicom import Dataset, config
from pydicom.dataset import FileMetaDataset
from pydicom.filewriter import correct_ambiguous_vr, dcmwrite
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medenhance_dicom.decoding import Decoder
from medenhance_dicom.errors import UnreadableInstanceError, UnsupportedInstanceError
from medenhance_dicom.lossy import enter_loss
from medenhance_dicom.part10 import UNDEFINED_LENGTH, Limits, PixelElement, _quiet_pydicom, open_instance
from medenhance_dicom.transfer_syntaxes import coding_of, has_cells
from medenhance_dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

TARGETS = (ExplicitVRLittleEndian, ImplicitVRLittleEndian)
"""What we rewrite into, better first: Implicit VR loses the VRs of private attributes."""
_TAGS = {"PixelData": (0x7FE0, 0x0010), "FloatPixelData": (0x7FE0, 0x0008), "DoubleFloatPixelData": (0x7FE0, 0x0009)}
_CHUNK = 1 << 20
_NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian)


def targets_of(syntax: str) -> tuple[UID, ...]:
    """Into which syntaxes a file of that one can be rewritten; none for big endian and what has no decoder."""
    if syntax == ExplicitVRBigEndian or coding_of(syntax) is None:
        return ()
    return tuple(target for target in TARGETS if target != syntax)


def transcode(source: Path, target: Path, syntax: str, decoder: Decoder | None = None) -> None:
    """Write `source` again as `syntax`, one of `TARGETS`; the SOP Instance UID stays, as every value does.

    Native pixels are copied byte for byte. Compressed ones are decoded frame by frame in a child process; colour
    comes out as RGB by pixel. Lossy Image Compression, its method and ratio stay, and are filled in where the file
    lacked them and its codestreams prove a loss: nothing else would tell any more. What comes after Pixel Data (digital
    signatures, padding) is left out.

    Raises:
        UnreadableInstanceError, LimitExceededError, UnsupportedInstanceError: It does not decode.
    """
    with open_instance(source, Limits()) as (instance, stream, element), target.open("xb") as sink:
        compressed = instance.file_meta.TransferSyntaxUID not in _NATIVE
        if instance.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
            raise UnsupportedInstanceError("TRANSFER_SYNTAX", "big endian is not rewritten")
        if _is_mangled(instance):
            raise UnsupportedInstanceError("CHARACTER_SET", "a text is not in the character set that is declared")
        if element is None:
            _write_header(instance, sink, syntax)
        elif compressed:
            _write_decoded(source, instance, sink, syntax, decoder)
        else:
            if element.length == UNDEFINED_LENGTH:
                raise UnsupportedInstanceError("TRANSFER_SYNTAX", "native pixels of undefined length")
            _write_header(instance, sink, syntax)
            sink.write(_pixel_header(element, syntax))
            stream.seek(element.offset)
            left = element.length
            while block := stream.read(min(left, _CHUNK)):
                sink.write(block)
                left -= len(block)
            if left:
                raise UnreadableInstanceError("the pixel data is truncated")


def _write_decoded(source: Path, instance: Dataset, sink: BinaryIO, syntax: str, decoder: Decoder | None) -> None:
    frames = int(instance.get("NumberOfFrames") or 1)
    owned = decoder or Decoder()
    try:
        owned.probe(source)
        first = owned.frame(source, 0)
        length = first.nbytes * frames
        if first.dtype.itemsize * 8 != instance.BitsAllocated:
            raise UnsupportedInstanceError("BITS_ALLOCATED", "the decoded pixels have another depth than declared")
        if length >= UNDEFINED_LENGTH - 1:
            raise UnsupportedInstanceError("SIZE", "the decoded pixels do not fit into one element")
        for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths"):
            if keyword in instance:
                del instance[keyword]
        enter_loss(instance, owned.encoding(source), instance.file_meta.TransferSyntaxUID, length)
        if first.ndim == 3:
            instance.PhotometricInterpretation = "RGB"
            instance.PlanarConfiguration = 0
        if not has_cells(instance.file_meta.TransferSyntaxUID):  # samples of a codestream begin at bit 0
            instance.HighBit = instance.BitsStored - 1
        _write_header(instance, sink, syntax)
        vr = "OW" if instance.BitsAllocated > 8 else "OB"
        sink.write(_pixel_header(PixelElement("PixelData", vr, 0, length + length % 2), syntax))
        sink.write(first.tobytes())
        for index in range(1, frames):
            sink.write(owned.frame(source, index).tobytes())
        sink.write(b"\0" * (length % 2))
    finally:
        if decoder is None:
            owned.close()


def _is_mangled(dataset: Dataset) -> bool:
    """Whether a text did not decode, and would be written with replacement characters."""
    for element in dataset:
        if element.VR == "SQ":
            if any(_is_mangled(item) for item in element.value):
                return True
        elif not isinstance(element.value, bytes | int | float) and "\ufffd" in str(element.value):
            return True
    return False


def _write_header(instance: Dataset, sink: BinaryIO, syntax: str) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = instance.file_meta.get("MediaStorageSOPClassUID", instance.get("SOPClassUID"))
    meta.MediaStorageSOPInstanceUID = instance.file_meta.get(
        "MediaStorageSOPInstanceUID", instance.get("SOPInstanceUID")
    )
    meta.TransferSyntaxUID = UID(syntax)
    meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    written = Dataset(instance)
    written.file_meta = meta
    buffer = io.BytesIO()
    try:
        with _quiet_pydicom(config.RAISE):
            correct_ambiguous_vr(written, True)
            dcmwrite(buffer, written, enforce_file_format=True)
    except Exception as error:  # pydicom raises anything for values that cannot be written
        raise UnsupportedInstanceError("HEADER", f"a value cannot be written: {type(error).__name__}") from None
    sink.write(buffer.getbuffer())


def _pixel_header(element: PixelElement, syntax: str) -> bytes:
    tag = struct.pack("<HH", *_TAGS[element.keyword])
    if syntax == ImplicitVRLittleEndian:
        return tag + struct.pack("<L", element.length)
    return tag + element.vr.encode() + struct.pack("<HL", 0, element.length)
