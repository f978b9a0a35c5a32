"""Find, read and write DICOM files (PS3.10); the only dcmread, the only writer.

pydicom's warnings and log records quote the values they complain about, which may be a patient's. Importing this module
silences the `pydicom` logger for good, and reading and writing here run with its warnings off.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import secrets
import shutil
import stat
import struct
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, cast

import numpy as np
from pydicom import Dataset, charset, config
from pydicom.datadict import keyword_for_tag
from pydicom.dataelem import DataElement, RawDataElement
from pydicom.dataset import FileMetaDataset
from pydicom.filereader import read_dataset, read_partial
from pydicom.filewriter import correct_ambiguous_vr, dcmwrite
from pydicom.tag import BaseTag
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from medenhance_dicom.codestream import Codestream, inspect
from medenhance_dicom.errors import (
    DerivationError,
    InputError,
    LimitExceededError,
    MedenhanceError,
    OutputError,
    UnreadableInstanceError,
)
from medenhance_dicom.headers import plausible
from medenhance_dicom.uids import IMPLEMENTATION_CLASS_UID, IMPLEMENTATION_VERSION_NAME

_MIB = 1 << 20
_PREAMBLE = 132
_TAG = 8
"""Bytes that pydicom reads for the tag of an element or an item."""
_MOST_INFLATED_TAGS = 200_000
_DICOMDIR_SOP_CLASS = "1.2.840.10008.1.3.10"
_PIXEL_DATA = 0x7FE00010
_PIXEL_TAGS = {0x7FE00008: "FloatPixelData", 0x7FE00009: "DoubleFloatPixelData", _PIXEL_DATA: "PixelData"}
_WORDS = {"OW": "u2", "OF": "u4", "OL": "u4", "OD": "u8", "OV": "u8"}  # PS3.5 section 7.3: byte order matters in these
_ITEM = 0xE000FFFE
"""The tag of an item as a little endian 32-bit word reads it."""
_CODESTREAM_HEAD = 4096
"""As many bytes as the main header of a codestream takes, and more."""
_BITS_STORED = {
    "1.2.840.10008.5.1.4.1.1.2": range(12, 17),
    "1.2.840.10008.5.1.4.1.1.2.1": (12, 16),
    "1.2.840.10008.5.1.4.1.1.4.1": (8, 12, 16),
    "1.2.840.10008.5.1.4.1.1.77.1.5.2": (16,),
}
"""What classes allow for Bits Stored, where they do not allow for all (PS3.3 C.8.2.1, C.8.13.1, C.8.15.2, C.8.17.2)."""
UNDEFINED_LENGTH = 0xFFFFFFFF

_pydicom_log = logging.getLogger("pydicom")
_pydicom_log.addHandler(logging.NullHandler())
_pydicom_log.propagate = False
_pydicom_log.addFilter(lambda record: False)  # whatever handlers an application hangs onto it
_settings_lock = threading.RLock()
# pydicom leaves the escape sequences of ISO 2022 IR 58 (Chinese) to Python's codec, which leaves them in the text.
charset.handled_encodings = tuple(name for name in charset.handled_encodings if name != "iso_ir_58")
# It lacks Latin alphabet No. 9 (PS3.3 tables C.12-2 and C.12-3).
charset.python_encoding |= {"ISO_IR 203": "iso8859_15", "ISO 2022 IR 203": "iso8859_15"}
charset.CODES_TO_ENCODINGS[b"\x1b-b"] = "iso8859_15"
charset.ENCODINGS_TO_CODES["iso8859_15"] = b"\x1b-b"


@dataclass(frozen=True)
class Located:
    """A file that may be DICOM. `name` is what a person is shown ("study.zip!IMG1"), `path` the real file."""

    path: Path
    name: str


@dataclass(frozen=True)
class Limits:
    """How much a file may ask of us before it is refused."""

    max_pixel_bytes: int = 512 * _MIB
    """Decoded size of one frame."""
    max_instance_bytes: int = int(3.9 * 1024) * _MIB
    """Decoded size of all frames; more would not fit into an uncompressed Pixel Data element."""
    max_frames: int = 100_000
    max_nesting: int = 32
    max_elements: int = 1_000_000
    """Data elements of the header, nested ones included."""
    max_header_bytes: int = 256 * _MIB
    """Everything before Pixel Data."""
    max_inflated_bytes: int = 512 * _MIB
    """A deflated data set, which has to be held in memory."""
    max_members: int = 100_000
    """Files of one archive."""
    max_archive_bytes: int = 64 * 1024 * _MIB
    """Unpacked size of one archive."""
    memory_bytes: int = 1536 * _MIB
    """Address space that the decoding child may take on top of its own code."""
    seconds: float = 30.0
    """Time that the decoding child has for one request."""


@dataclass(frozen=True)
class PixelElement:
    """Where Pixel Data lies: `offset` of its value in the stream, `length` as declared, UNDEFINED_LENGTH included.

    in_order: before it each tag is greater than the one before (PS3.5 section 7.1); else readers differ in what an
    attribute that is there twice says.
    """

    keyword: str
    vr: str
    offset: int
    length: int
    in_order: bool = True


# ---------------------------------------------------------------- find


def find_instances(
    paths: Iterable[Path],
    scratch: Path,
    *,
    limits: Limits | None = None,
    unlisted: Callable[[Path, str], None] | None = None,
) -> Iterator[Located]:
    """Yield the files below the given paths, in a stable order.

    A folder is walked (extension-less files too, hidden ones and DICOMDIRs not), a zip is unpacked member by member
    into `scratch` under names of our own, a DICOMDIR yields the files that it references. Whether a file is DICOM turns
    out on reading; one that a DICOMDIR references in vain is yielded with a path that does not exist, and reading
    reports it.

    Args:
        paths: Files, folders, zips, DICOMDIRs.
        scratch: An existing folder for members of zips.
        limits: Caps on archives and headers.
        unlisted: Is told of a folder that cannot be listed, and why; the others go on. None: it is an error.

    Raises:
        InputError: A path does not exist, or cannot be listed.
        UnreadableInstanceError: A broken or encrypted zip, or a broken DICOMDIR.
        LimitExceededError: A zip with too many members or bytes.
        OutputError: `scratch` is full.
    """
    limits = limits or Limits()
    for path in paths:
        if path.is_dir():
            yield from _walk(path, unlisted)
        elif not path.is_file():
            raise InputError(f"no such file or folder: {path}")
        elif is_dicomdir(path):
            yield from _referenced_files(path, limits)
        elif _starts_with(path, b"PK\x03\x04", b"PK\x05\x06"):
            yield from _unpack(path, scratch, limits)
        else:
            yield Located(path, str(path))


def _walk(folder: Path, unlisted: Callable[[Path, str], None] | None) -> Iterator[Located]:
    def refuse(error: OSError) -> None:
        if unlisted is not None:
            unlisted(Path(str(error.filename)), error.strerror or "")
            return
        raise InputError(f"cannot list {error.filename}") from None

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            path = Path(parent, name)
            if not name.startswith(".") and name.upper() != "DICOMDIR" and _is_regular(path):
                yield Located(path, str(path))


def _is_regular(path: Path) -> bool:
    """False for pipes and devices, on which reading may wait for ever. Reading reports a dangling link."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return path.is_symlink()


def _starts_with(path: Path, *magic: bytes) -> bool:
    return any(_head(path).startswith(m) for m in magic)


def _head(path: Path) -> bytes:
    """The first 512 bytes; empty when the file cannot be read, which reading reports in its turn."""
    try:
        with path.open("rb") as file:
            return file.read(512)
    except OSError:
        return b""


def is_dicomdir(path: Path) -> bool:
    """Whether a file is a directory of others (PS3.3 annex F), by its name or its SOP class."""
    head = _head(path)
    return head[128:132] == b"DICM" and (
        path.name.upper() == "DICOMDIR" or re.search(rf"{_DICOMDIR_SOP_CLASS}(?![\d.])".encode(), head) is not None
    )


def _unpack(archive: Path, scratch: Path, limits: Limits) -> Iterator[Located]:
    broken = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, struct.error, ValueError)
    left = limits.max_archive_bytes
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = [m for m in zipped.infolist() if not m.is_dir() and not _is_hidden(m.filename)]
            if len(members) > limits.max_members:
                raise LimitExceededError(f"{archive.name} has more than {limits.max_members} members")
            for member in members:
                target = scratch / f"{secrets.token_hex(8)}.dcm"
                with zipped.open(member) as source, _writing(target) as sink:
                    while block := source.read(min(_MIB, left + 1)):
                        left -= len(block)
                        if left < 0:
                            raise LimitExceededError(f"{archive.name} unpacks to more than it may")
                        _write(sink, block)
                shown = "".join(c if c.isprintable() else "?" for c in member.filename)
                yield Located(target, f"{archive}!{shown}")
    except broken as error:
        raise UnreadableInstanceError(f"{archive.name} is not a zip that can be read: {type(error).__name__}") from None


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[BinaryIO]:
    try:
        sink = target.open("xb")
    except OSError as error:
        raise OutputError(f"cannot write into {target.parent}: {error.strerror}") from None
    with sink:
        try:
            yield sink
        except BaseException:
            target.unlink(missing_ok=True)
            raise


def _write(sink: BinaryIO, block: bytes) -> None:
    try:
        sink.write(block)
        sink.flush()
    except OSError as error:
        raise OutputError(f"cannot write: {error.strerror}") from None


def _is_hidden(member: str) -> bool:
    parts = PurePosixPath(member.replace("\\", "/")).parts
    return any((part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts)


def _referenced_files(dicomdir: Path, limits: Limits) -> Iterator[Located]:
    """Files that a DICOMDIR names, in its order (PS3.3 F.3.2.2); a name that leads out of its folder is refused."""
    records = read_instance(dicomdir, limits=replace(limits, max_header_bytes=64 * _MIB)).get("DirectoryRecordSequence")
    root = dicomdir.parent.resolve()
    for record in records or []:
        file_id = record.get("ReferencedFileID")
        if file_id is None or file_id == "":
            continue
        parts = [file_id] if isinstance(file_id, str) else [str(part) for part in file_id]
        if any(part in ("", ".", "..") or set(part) & set("/\\:\0") for part in parts):
            raise UnreadableInstanceError("leads out of the DICOMDIR's folder", keyword="ReferencedFileID")
        path = _ignoring_case(root, parts)
        if not path.resolve().is_relative_to(root):
            raise UnreadableInstanceError("leads out of the DICOMDIR's folder", keyword="ReferencedFileID")
        yield Located(path, str(dicomdir.parent.joinpath(*path.relative_to(root).parts)))


def _ignoring_case(root: Path, parts: list[str]) -> Path:
    """File IDs are upper case; copies onto a disk often are not."""
    path = root
    for part in parts:
        candidate = path / part
        if not candidate.exists() and path.is_dir():
            candidate = next((c for c in sorted(path.iterdir()) if c.name.upper() == part.upper()), candidate)
        path = candidate
    return path


# ---------------------------------------------------------------- read


def looks_like_dicom(path: Path) -> bool:
    """True with the DICM prefix (PS3.10 section 7.1), or when the file starts like a data set without one."""
    return plausible(_head(path))


class _Metered:
    """A stream for pydicom that hands out no more than the header may have, whatever lengths a file declares.

    Nor does it hand out more tags: an empty item is 8 bytes in the file, next to none in a deflated one, and a
    kilobyte in memory.
    """

    def __init__(self, stream: BinaryIO, budget: int, tags: int) -> None:
        self._stream = stream
        self._left, self._tags = budget, tags
        self._size = stream.seek(0, os.SEEK_END)
        self.seek = stream.seek
        self.tell = stream.tell
        stream.seek(0)

    def read(self, size: int = -1) -> bytes:
        remaining = max(self._size - self._stream.tell(), 0)
        size = remaining if size < 0 else min(size, remaining)
        self._left -= size
        self._tags -= size == _TAG
        if self._left < 0:
            raise LimitExceededError("the header is larger than it may be")
        if self._tags < 0:
            raise LimitExceededError("the header has more elements than it may have")
        return self._stream.read(size)


@contextlib.contextmanager
def _quiet_pydicom(writing_validation: int | None = None) -> Iterator[None]:
    """Warnings off, and pydicom's global validation setting ours for a while."""
    with _settings_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = config.settings.writing_validation_mode
        if writing_validation is not None:
            config.settings.writing_validation_mode = writing_validation
        try:
            yield
        finally:
            config.settings.writing_validation_mode = before


def read_instance(path: Path, *, limits: Limits | None = None, last: int = 0xFFFFFFFF) -> Dataset:
    """Read the header of one instance: everything before Pixel Data, with its file meta information.

    Nothing behind the tag `last` is looked at.

    Let `Decoder.probe` look at a file of unknown origin first: it does the same in a process that may die. Elements
    whose value does not fit their VR become UN with their bytes. A big endian data set comes back with little endian
    OW, OF, OL, OD and OV values, as it will be written. A missing Transfer Syntax UID is filled in as guessed, and what
    of the Image Pixel module leaves one value only (`_complete`). Sign and bits are the codestream's
    (`_believe_codestream`). `overruled` has what the file says instead: keyword -> "UN", where the dictionary knows the
    VR, or the value.

    Raises:
        UnreadableInstanceError: Not DICOM, truncated, or unparsable.
        LimitExceededError: Larger, deeper or with more elements than `limits` allow.
    """
    limits = limits or Limits()
    with open_instance(path, limits, header_only=True, last=last) as (instance, _, _):
        return instance


@contextlib.contextmanager
def open_instance(
    path: Path, limits: Limits, *, header_only: bool = False, last: int = 0xFFFFFFFF
) -> Iterator[tuple[Dataset, BinaryIO, PixelElement | None]]:
    """The header, the stream in which Pixel Data lies (inflated if need be), and where it lies there.

    The stream is closed on leaving. With `header_only` the stream of a deflated data set may stop after the header.

    Raises:
        As `read_instance`.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UnreadableInstanceError(f"cannot be opened: {error.strerror}") from None
    with file:
        try:
            with _quiet_pydicom():
                opened = _parse(file, limits, header_only, last)
        except MedenhanceError:
            raise
        except Exception as error:  # the boundary: pydicom raises anything on a hostile file
            if isinstance(error.__context__, LimitExceededError):
                raise error.__context__ from None
            raise UnreadableInstanceError(f"the header does not parse: {type(error).__name__}") from None
        yield opened


def _parse(
    file: BinaryIO, limits: Limits, header_only: bool, last: int
) -> tuple[Dataset, BinaryIO, PixelElement | None]:
    if not plausible(file.read(512)):
        raise UnreadableInstanceError("not DICOM")
    stream = file
    found: list[PixelElement] = []
    before, in_order = 0, True

    def at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
        nonlocal before, in_order
        before, in_order = tag, in_order and tag > before
        if tag not in _PIXEL_TAGS:
            return tag > last
        found[:] = [PixelElement(_PIXEL_TAGS[tag], vr or "OW", metered.tell(), length, in_order)]
        return True

    metered = _Metered(stream, limits.max_header_bytes, limits.max_elements)
    meta_end = _end_of_deflated_meta(metered)
    if meta_end is None:
        metered.seek(0)
        whole = read_partial(cast(BinaryIO, metered), stop_when=at_pixels, force=True)
        whole.buffer = None
        instance: Dataset = whole
    else:
        metered.seek(0)
        meta = read_partial(io.BytesIO(metered.read(meta_end)), force=True).file_meta
        most = min(limits.max_header_bytes, limits.max_inflated_bytes) if header_only else limits.max_inflated_bytes
        file.seek(meta_end)
        stream = io.BytesIO(_inflate(file, most, cut=header_only))
        metered = _Metered(stream, limits.max_header_bytes, min(limits.max_elements, _MOST_INFLATED_TAGS))
        instance = read_dataset(cast(BinaryIO, metered), False, True, stop_when=at_pixels)
        instance.file_meta = meta
    _settle_meta(instance)
    little = instance.original_encoding[1] is not False
    raw = [instance.get_item(tag) for tag in list(instance.keys())]
    instance.overruled = {keyword_for_tag(element.tag): "UN" for element in raw if element.VR == "UN"}
    _settle(instance, little, 0, [limits.max_elements], limits)
    if not little:
        instance.set_original_encoding(instance.original_encoding[0], True, instance.original_character_set)
    if not len(instance):
        raise UnreadableInstanceError("not DICOM")
    _complete(instance)
    if found and found[0].length == UNDEFINED_LENGTH:
        _believe_codestream(instance, stream, found[0].offset)
    return instance, stream, found[0] if found else None


def _end_of_deflated_meta(stream: _Metered) -> int | None:
    """Where the file meta information ends, if it says that the data set is deflated (PS3.5 A.5); else None."""
    stream.seek(_PREAMBLE)
    deflated = False
    while len(head := stream.read(8)) == 8:
        group, element, vr, length = struct.unpack("<HH2sH", head)
        if group != 0x0002:
            return stream.tell() - 8 if deflated else None
        if vr in (b"OB", b"UN", b"UT", b"OW", b"SQ"):
            length = int.from_bytes(stream.read(4), "little")
        value = stream.read(min(length, 65536))
        if element == 0x0010:
            deflated = value.rstrip(b"\0 ") == DeflatedExplicitVRLittleEndian.encode()
    return None


def _inflate(file: BinaryIO, most: int, *, cut: bool) -> bytes:
    """Raw deflate up to `most` bytes; more raises LimitExceededError, or is cut off."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    parts: list[bytes] = []
    size = 0
    pending = b""
    while not inflater.eof:
        pending = pending or file.read(65536)
        part = inflater.decompress(pending, min(_MIB, most + 1 - size))
        pending_after = inflater.unconsumed_tail
        if not part and not pending:
            raise UnreadableInstanceError("the deflated data set is truncated")
        pending = pending_after
        parts.append(part)
        size += len(part)
        if size > most:
            if not cut:
                raise LimitExceededError("the deflated data set is larger than it may be")
            break
    return b"".join(parts)


def _settle_meta(instance: Dataset) -> None:
    """Convert the file meta information and fill in a guessed Transfer Syntax UID."""
    meta = getattr(instance, "file_meta", None)
    if meta is None:
        meta = instance.file_meta = FileMetaDataset()
    for tag in list(meta.keys()):
        meta.get(tag)  # converts it, so that it raises here rather than later
    if not isinstance(meta.get("TransferSyntaxUID"), str) or not meta.TransferSyntaxUID:
        implicit, little = instance.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _complete(instance: Dataset) -> None:
    """Fill in what Photometric Interpretation leaves one value for (PS3.3 C.7.6.3.1.1, C.7.6.3.1.2).

    Samples per Pixel, and for colour Pixel Representation, whose samples cannot be signed. Nothing says what a missing
    Photometric Interpretation is (MONOCHROME1 or 2, RGB or YBR), nor whether gray values are signed.
    """
    declared = instance.get("PhotometricInterpretation")
    if not isinstance(declared, str):
        return
    photometric = declared.strip().upper()  # blanks mean nothing in a CS, PS3.5 section 6.2
    if photometric != declared:
        instance.PhotometricInterpretation = photometric
    samples = 3 if photometric.startswith(("RGB", "YBR")) else 1
    if not photometric.startswith(("RGB", "YBR", "MONOCHROME", "PALETTE")):
        return
    for keyword, value in (("SamplesPerPixel", samples), ("PixelRepresentation", 0)):
        if instance.get(keyword) is None and (samples == 3 or keyword == "SamplesPerPixel"):
            setattr(instance, keyword, value)


def _believe_codestream(instance: Dataset, stream: BinaryIO, offset: int) -> None:
    """Pixel Representation, Bits Stored and High Bit as the first codestream has them (PS3.5 sections 8.2.1, 8.2.4).

    CT scanners have written signed JPEG 2000 codestreams under 0. Under 1 an unsigned one holds two's complement, which
    decoding undoes. Fewer bits than Bits Stored are all that there are: in the range of the header a picture without a
    window would turn black (JPEG-LS is left as it is: readers show it in that range). Not where the codestream has
    more bits than Bits Stored: decoding says whether its values need them.
    """
    stored = instance.get("BitsStored")
    found = _first_codestream(stream, offset)
    if found is None or not isinstance(stored, int) or found.precision > stored:
        return
    if found.kind == "JPEG 2000" and instance.get("SamplesPerPixel") == 1 and not instance.get("PixelRepresentation"):
        if found.signed and instance.get("PixelRepresentation") == 0:
            instance.overruled["PixelRepresentation"] = "0"
        instance.PixelRepresentation = int(found.signed)
    unsigned = instance.get("PixelRepresentation") == 0
    if found.kind == "JPEG 2000" or (found.kind in ("JPEG", "JPEG XL") and unsigned):
        allowed = _BITS_STORED.get(str(instance.get("SOPClassUID")), range(stored + 1))
        bits = next((bits for bits in allowed if found.precision <= bits <= stored), stored)
        if bits < stored:
            instance.overruled["BitsStored"] = str(stored)
            instance.BitsStored, instance.HighBit = bits, bits - 1


def _first_codestream(stream: BinaryIO, offset: int) -> Codestream | None:
    """What the first fragment of encapsulated Pixel Data says of itself, where it is a codestream."""
    stream.seek(offset)
    value = b""
    for _ in range(2):  # the offset table, the first fragment
        tag, length = struct.unpack("<LL", stream.read(8).ljust(8, b"\0"))
        if tag != _ITEM:
            return None
        value = stream.read(min(length, _CODESTREAM_HEAD))
        stream.seek(length - len(value), os.SEEK_CUR)
    try:
        return inspect(value)
    except UnreadableInstanceError:
        return None


def _settle(dataset: Dataset, little: bool, depth: int, left: list[int], limits: Limits) -> None:
    """Convert every element now, so that no access later on fails, warns or reads."""
    if depth > limits.max_nesting:
        raise LimitExceededError("the header is nested deeper than it may be")
    left[0] -= len(dataset)
    if left[0] < 0:
        raise LimitExceededError("the header has more elements than it may have")
    for tag in sorted(dataset.keys()):
        raw = dataset.get_item(tag)
        if isinstance(raw, RawDataElement) and raw.length != UNDEFINED_LENGTH and len(raw.value or b"") < raw.length:
            raise UnreadableInstanceError("the header is truncated")
        try:
            element = dataset[tag]
            if element.VR == "PN":
                str(element.value)  # decodes it
        except (MemoryError, RecursionError):
            raise
        except Exception:  # the same boundary: a value that does not fit its VR
            value = raw.value if isinstance(raw, RawDataElement) and isinstance(raw.value, bytes) else b""
            unknown = DataElement(tag, "UN", value)
            unknown.VR = "UN"  # the constructor puts the dictionary's VR back
            dataset[tag] = unknown
            continue
        if element.VR == "SQ":
            for item in element.value:
                _settle(item, little, depth + 1, left, limits)
        elif not little and element.VR in _WORDS and isinstance(element.value, bytes):
            words = _WORDS[element.VR]
            if len(element.value) % int(words[1]) == 0:
                element.value = np.frombuffer(element.value, words).byteswap().tobytes()


# ---------------------------------------------------------------- write


def write_instance(derived: Dataset, pixels: Path, target: Path, *, before: bytes = b"") -> None:
    """Write an instance with its Pixel Data copied from a file, as Explicit VR Little Endian, all or nothing.

    The bytes go to `.<name>.<random>.part` beside the target, are flushed to disk, and take the target's name in one
    step; a crash leaves at most that dot-file. Memory does not grow with the pixels. `derived` keeps its values, but
    attributes of ambiguous VR get their VR, as pydicom must know it for writing.

    Args:
        derived: The data set without Pixel Data.
        pixels: Little endian frames, one after the other; the pad byte is added here.
        target: The file to be; its folders are made, an existing file is replaced.
        before: Bytes in front, with which the file is no DICOM file.

    Raises:
        OutputError: The disk does not take it.
        DerivationError: Values that DICOM or the character set cannot carry, or pixels of another size than declared.
    """
    length = _checked_length(derived, pixels)
    header = io.BytesIO()
    try:
        with _quiet_pydicom(config.RAISE):
            correct_ambiguous_vr(derived, True)
            dcmwrite(header, _with_our_meta(derived), enforce_file_format=True)
    except (
        Exception
    ) as error:  # pydicom raises ValueError, TypeError, struct.error, ... for values that cannot be written
        raise DerivationError(f"a value cannot be written: {type(error).__name__}") from None
    vr = b"OW" if derived.BitsAllocated > 8 else b"OB"
    element = struct.pack("<HH2sHL", _PIXEL_DATA >> 16, _PIXEL_DATA & 0xFFFF, vr, 0, length + length % 2)
    with _put_in_place(target) as sink, pixels.open("rb") as source:
        sink.write(before)
        sink.write(header.getbuffer())
        sink.write(element)
        shutil.copyfileobj(source, sink, _MIB)
        sink.write(b"\0" * (length % 2))


def write_document(document: Dataset, target: Path) -> None:
    """Write an object without pixels as Explicit VR Little Endian, all or nothing, as `write_instance` does.

    Args:
        document: The data set. Values that it has from a source may break rules; they are written as they are.
        target: The file to be; its folders are made, an existing file is replaced.

    Raises:
        OutputError: The disk does not take it.
        DerivationError: A value that cannot be written.
    """
    content = io.BytesIO()
    try:
        with _quiet_pydicom():
            dcmwrite(content, _with_our_meta(document), enforce_file_format=True)
    except Exception as error:  # pydicom raises anything for values that cannot be written
        raise DerivationError(f"a value cannot be written: {type(error).__name__}") from None
    with _put_in_place(target) as sink:
        sink.write(content.getbuffer())


@contextlib.contextmanager
def _put_in_place(target: Path) -> Iterator[BinaryIO]:
    """A file beside `target`, which takes its name when the block ends, flushed; nothing is left where it fails."""
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with part.open("xb") as sink:
            yield sink
            _sync(sink)
        part.replace(target)
        _sync_folder(target.parent)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def pixel_bytes(instance: Dataset) -> int | None:
    """Bytes of all frames, uncompressed and without the pad byte; None where the header does not say."""
    try:
        frames = int(instance.get("NumberOfFrames") or 1)
        cells = instance.Rows * instance.Columns * instance.SamplesPerPixel * frames
        return int(cells * instance.BitsAllocated // 8)
    except (AttributeError, TypeError, ValueError):
        return None


def _checked_length(derived: Dataset, pixels: Path) -> int:
    late = [tag for tag in list(derived.keys()) if tag >= 0x7FE00000]
    if late:
        raise DerivationError("the data set must not hold Pixel Data or anything after it")
    declared = pixel_bytes(derived)
    if declared is None:
        raise DerivationError("the Image Pixel module is incomplete")
    try:
        length = pixels.stat().st_size
    except OSError as error:
        raise OutputError(f"cannot read the new pixels: {error.strerror}") from None
    if length != declared:
        raise DerivationError("the new pixels have another size than the data set declares")
    if length > UNDEFINED_LENGTH - 2:
        raise DerivationError("the new pixels do not fit into one Pixel Data element")
    return length


def _with_our_meta(derived: Dataset) -> Dataset:
    """A shallow copy with file meta information that names us as the writer (PS3.10 section 7.1)."""
    written = Dataset(derived)
    written.file_meta = FileMetaDataset()
    written.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    written.file_meta.ImplementationClassUID = IMPLEMENTATION_CLASS_UID
    written.file_meta.ImplementationVersionName = IMPLEMENTATION_VERSION_NAME
    return written


def _sync(sink: IO[Any]) -> None:
    sink.flush()
    os.fsync(sink.fileno())


def _sync_folder(folder: Path) -> None:
    """Make the rename durable. Systems that cannot open a folder (Windows) do without."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
