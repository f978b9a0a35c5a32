"""The process that decodes: `python -m medenhance_dicom.decoding_child`, which `decoding.Decoder` starts and talks to.

It reads its limits as the first line of standard input, then one request a line, and answers each (see `decoding`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pydicom import Dataset
from pydicom.uid import ExplicitVRBigEndian

from medenhance_dicom import pixel_codecs
from medenhance_dicom.allocator import keep_one_arena
from medenhance_dicom.codestream import Codestream, inspect
from medenhance_dicom.errors import InputError, LimitExceededError, UnreadableInstanceError, UnsupportedInstanceError
from medenhance_dicom.fragments import Fragment, frames_of_fragments, peek
from medenhance_dicom.frames import Array, pixel_format
from medenhance_dicom.lossy import Encoding
from medenhance_dicom.part10 import UNDEFINED_LENGTH, Limits, PixelElement, open_instance
from medenhance_dicom.pixel_codecs import Cells
from medenhance_dicom.transfer_syntaxes import Coding, coding_of, kind_of

_HEAD = 16384


@dataclass(frozen=True)
class _Frames:
    """How to get at the encoded bytes of each frame."""

    cells: Cells
    coding: Coding
    count: int
    fragments: list[list[Fragment]] | None
    """Per frame, when encapsulated."""
    start: int
    stride: int
    """Where native frames begin, and their length."""
    swap_pairs: bool
    """8-bit cells in big endian words (PS3.5 Annex A.3)."""


@dataclass
class _Opened:
    """The file that the child has open: kept until another path is asked for."""

    key: tuple[str, int, int, int]
    closing: contextlib.ExitStack
    instance: Dataset
    stream: BinaryIO
    element: PixelElement | None
    frames: _Frames | None = None


def check_declared_size(instance: Dataset, limits: Limits) -> None:
    """Compare Rows x Columns x samples x bytes x frames with the limits; a missing attribute counts as 1.

    Raises:
        LimitExceededError: With the keyword of what is too much.
    """

    def number(keyword: str) -> int:
        value = instance.get(keyword)
        return int(value) if isinstance(value, int) and value > 0 else 1

    frames = number("NumberOfFrames")
    if frames > limits.max_frames:
        raise LimitExceededError("declares more frames than allowed", keyword="NumberOfFrames")
    samples = 3 if instance.get("PhotometricInterpretation") == "PALETTE COLOR" else number("SamplesPerPixel")
    frame = number("Rows") * number("Columns") * samples * -(-number("BitsAllocated") // 8)
    if frame > limits.max_pixel_bytes:
        raise LimitExceededError("declares a larger frame than allowed", keyword="Rows")
    if frame * frames > limits.max_instance_bytes:
        raise LimitExceededError("declares more pixels than allowed", keyword="NumberOfFrames")


def _open(path: Path, limits: Limits) -> _Opened:
    try:
        status = path.stat()
    except OSError as error:
        raise UnreadableInstanceError(f"cannot be opened: {error.strerror}") from None
    with contextlib.ExitStack() as stack:
        instance, stream, element = stack.enter_context(open_instance(path, limits))
        check_declared_size(instance, limits)
        return _Opened(_key(path, status), stack.pop_all(), instance, stream, element)


def _key(path: Path, status: os.stat_result) -> tuple[str, int, int, int]:
    return os.fspath(path), status.st_mtime_ns, status.st_size, status.st_ino


def _plan(opened: _Opened) -> _Frames:
    """Find every frame of the pixel data, and refuse data that holds more or fewer of them than the header says."""
    instance, element = opened.instance, opened.element
    if element is None:
        raise UnsupportedInstanceError("NO_PIXELS", "the instance has no pixel data")
    if element.keyword != "PixelData":
        raise UnsupportedInstanceError("BITS", "float pixels")
    pixels = pixel_format(instance)
    syntax = instance.file_meta.TransferSyntaxUID
    how = coding_of(syntax)
    if how is None:
        if kind_of(syntax) == "video":
            raise UnsupportedInstanceError("VIDEO", "a video transfer syntax")
        raise UnsupportedInstanceError("TRANSFER_SYNTAX", "a transfer syntax without a decoder")
    big_endian = syntax == ExplicitVRBigEndian
    cells = Cells(
        rows=pixels.rows,
        columns=pixels.columns,
        samples=1 if instance.PhotometricInterpretation == "PALETTE COLOR" else pixels.samples,
        allocated=int(instance.BitsAllocated),
        stored=int(instance.BitsStored),
        signed=instance.PixelRepresentation == 1,
        photometric=str(instance.PhotometricInterpretation),
        planar=instance.get("PlanarConfiguration") == 1,
        big_endian=big_endian,
    )
    if kind_of(syntax) != "uncompressed":
        if element.length != UNDEFINED_LENGTH:
            raise UnreadableInstanceError("is not encapsulated although its transfer syntax is", keyword="PixelData")
        extended = instance.get("ExtendedOffsetTable")
        fragments = frames_of_fragments(
            opened.stream,
            element.offset,
            pixels.number_of_frames,
            extended_offsets=extended if isinstance(extended, bytes) else b"",
            codestreams=how == "codestream",
            frame_lengths=cells.frame_lengths() if how == "cells" else (),
        )
        return _Frames(cells, how, pixels.number_of_frames, fragments, element.offset, 0, False)
    stride = _native_stride(opened.stream, element, cells, pixels.number_of_frames)
    swap = big_endian and cells.allocated == 8 and element.vr == "OW"
    return _Frames(cells, how, pixels.number_of_frames, None, element.offset, stride, swap)


def _native_stride(stream: BinaryIO, element: PixelElement, cells: Cells, number_of_frames: int) -> int:
    """The length of a native frame: of those that it may have, the one with which Pixel Data comes out even."""
    if element.length == UNDEFINED_LENGTH:
        raise UnreadableInstanceError("is encapsulated although its transfer syntax is not", keyword="PixelData")
    there = min(element.length, stream.seek(0, os.SEEK_END) - element.offset)
    lengths = cells.frame_lengths()
    for stride in lengths:
        declared = stride * number_of_frames
        if there in (declared, declared + declared % 2):
            return stride
    stride = max(lengths)
    expected = " or ".join(str(length * number_of_frames) for length in lengths)
    if there < stride * number_of_frames or len(lengths) > 1:
        text = f"has {'fewer' if there < stride * number_of_frames else 'more'} bytes than the header declares"
        raise UnreadableInstanceError(f"{text}: {there}, not {expected}", keyword="PixelData")
    if there >= stride * (number_of_frames + 1):
        text = f"the header says {number_of_frames}, Pixel Data holds more frames than declared: {there // stride}"
        raise UnreadableInstanceError(text, keyword="NumberOfFrames")
    return stride


def _planned(opened: _Opened) -> _Frames:
    if opened.frames is None:
        opened.frames = _plan(opened)
    return opened.frames


def _encoding(opened: _Opened, limits: Limits) -> Encoding:
    """How all frames are encoded; looks at codestreams until one loses something."""
    plan = _planned(opened)
    if plan.fragments is None:
        return Encoding(plan.stride * plan.count)
    length = sum(length for frame in plan.fragments for _, length in frame)
    if plan.coding != "codestream":
        return Encoding(length)
    first = _inspected(opened, 0, limits)
    found = [first.reversible]
    for index in range(1, plan.count):
        if found[-1] is False:
            break
        found.append(_inspected(opened, index, limits).reversible)
    reversible = False if False in found else None if None in found else True
    return Encoding(length, first.kind, reversible, first.precision, first.signed, first.colour)


def _inspected(opened: _Opened, index: int, limits: Limits) -> Codestream:
    """What a frame's codestream says, from its first kilobytes where these suffice."""
    fragments = _planned(opened).fragments
    assert fragments is not None
    at, length = fragments[index][0]
    with contextlib.suppress(UnreadableInstanceError):
        return inspect(peek(opened.stream, at, min(length, _HEAD)))
    return inspect(_encoded(opened, index, limits)[1])


def _encoded(opened: _Opened, index: int, limits: Limits) -> tuple[_Frames, bytes]:
    """The bytes of one frame as they lie in the file."""
    plan, stream = _planned(opened), opened.stream
    if not 0 <= index < plan.count:
        raise UnreadableInstanceError(f"has no frame {index + 1}", keyword="NumberOfFrames")
    if plan.fragments is None:
        return plan, _native_frame(plan, stream, index)
    fragments = plan.fragments[index]
    if sum(length for _, length in fragments) > limits.max_pixel_bytes:
        raise LimitExceededError("an encoded frame is larger than allowed", keyword="PixelData")
    return plan, b"".join(peek(stream, at, length) for at, length in fragments)


def _decode(opened: _Opened, index: int, limits: Limits) -> Array:
    plan, data = _encoded(opened, index, limits)
    if plan.coding == "codestream":
        return pixel_codecs.from_codestream(data, plan.cells)
    if plan.coding == "rle":
        return pixel_codecs.from_rle(data, plan.cells)
    if plan.coding == "deflate":
        return pixel_codecs.from_deflated(data, plan.cells)
    return pixel_codecs.from_cells(pixel_codecs.checked_length(data, plan.cells.frame_lengths()), plan.cells)


def _native_frame(plan: _Frames, stream: BinaryIO, index: int) -> bytes:
    at = index * plan.stride
    if not plan.swap_pairs:
        return peek(stream, plan.start + at, plan.stride)
    odd = at % 2
    data = peek(stream, plan.start + at - odd, (plan.stride + odd + 1) // 2 * 2)
    return np.frombuffer(data[: len(data) // 2 * 2], "u2").byteswap().tobytes()[odd : odd + plan.stride]


def _answer_of(error: Exception) -> dict[str, Any]:
    """What the parent may hear of an error: our own texts, and the bare type of any other."""
    if isinstance(error, UnsupportedInstanceError):
        return {"error": "unsupported", "reason": error.reason, "message": str(error).partition(": ")[2]}
    if isinstance(error, InputError):
        kind = "limit" if isinstance(error, LimitExceededError) else "unreadable"
        text = str(error).removeprefix(f"{error.keyword}: ")
        return {"error": kind, "message": text, "keyword": error.keyword}
    spent = isinstance(error, MemoryError | RecursionError)
    return {"error": "unreadable", "message": f"decoding failed: {type(error).__name__}", "spent": spent}


def _limit_resources(memory_bytes: int) -> None:
    """Cap the address space at what is in use plus `memory_bytes`, and write no core dumps (they hold pixels)."""
    try:
        import resource
    except ImportError:  # Windows has no such limits; the deadline still holds
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        pages = 0
    total = pages * resource.getpagesize() + memory_bytes
    with contextlib.suppress(ValueError, OSError):  # a lower hard limit is already in force
        resource.setrlimit(resource.RLIMIT_AS, (total, total))


def _serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until the parent closes the pipe."""
    limits = Limits(**json.loads(requests.readline()))
    opened: _Opened | None = None
    pixel_codecs.load()
    _limit_resources(limits.memory_bytes)
    answers.write(b"{}\n")
    answers.flush()
    for line in requests:
        request = json.loads(line)
        path = Path(request["path"])
        frame: Array | None = None
        try:
            if opened is not None and not _is_current(opened, path):
                opened.closing.close()
                opened = None
            opened = opened or _open(path, limits)
            answer: dict[str, Any] = {}
            if request["do"] == "frame":
                frame = _decode(opened, int(request["index"]), limits)
                answer = {"shape": frame.shape, "dtype": frame.dtype.str}
            elif request["do"] == "encoding":
                answer = {"encoding": asdict(_encoding(opened, limits))}
        except Exception as error:  # the boundary: codecs and pydicom raise anything
            answer = _answer_of(error)
        answers.write(json.dumps(answer).encode() + b"\n")
        if frame is not None:
            answers.write(frame.data.cast("B"))
        answers.flush()


def _is_current(opened: _Opened, path: Path) -> bool:
    try:
        return _key(path, path.stat()) == opened.key
    except OSError:
        return False


def _main() -> None:
    """Keep the pipe for ourselves: C libraries print to standard output."""
    keep_one_arena()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with os.fdopen(os.dup(1), "wb") as answers:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        _serve(sys.stdin.buffer, answers)


if __name__ == "__main__":
    _main()
