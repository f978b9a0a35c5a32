"""Decode pixel data in a child process that may die without taking us along.

Codecs are C code and headers lie, so both are handled by `python -m medenhance_dicom.decoding`, which has a memory
limit and a time limit per request and is replaced when it is gone. Requests and answers are one JSON line each; an
answer with a frame is followed by its bytes. Nothing that pydicom or a codec says crosses over: it may quote values.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import logging
import os
import signal
import struct
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, BinaryIO, Self

import numpy as np
from pydicom import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGLSTransferSyntaxes, MPEGTransferSyntaxes

from medenhance_dicom.allocator import keep_one_arena
from medenhance_dicom.errors import (
    InputError,
    LimitExceededError,
    MedenhanceError,
    UnreadableInstanceError,
    UnsupportedInstanceError,
)
from medenhance_dicom.frames import Array, PixelFormat, pixel_format
from medenhance_dicom.part10 import UNDEFINED_LENGTH, Limits, PixelElement, open_instance

if TYPE_CHECKING:
    from pydicom.pixels.decoders.base import Decoder as PixelDecoder

_START_SECONDS = 60.0
_ITEM = 0xFFFEE000
_SEQUENCE_END = 0xFFFEE0DD
_CODESTREAM_STARTS = (b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP")
_END_OF_IMAGE = b"\xff\xd9"
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

Fragment = tuple[int, int]
"""(offset, length) of the bytes of one item."""


class Decoder:
    """A child process that reads headers and decodes frames. Safe to share between threads; one request at a time.

    Example:
        with Decoder() as decoder:
            decoder.probe(path)
            frame = decoder.frame(path, 0)
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the child, if there is one. The next request starts another."""
        with self._lock:
            self._end_child()

    def probe(self, path: Path) -> None:
        """Have the header read, and compare what it declares with the limits.

        Raises:
            UnreadableInstanceError: Not DICOM or broken, or the child died, hung or ran out of memory over it.
            LimitExceededError: It declares more pixels, frames, nesting or elements than the limits allow.
        """
        self._request({"do": "probe", "path": os.fspath(path)})

    def frame(self, path: Path, index: int) -> Array:
        """Decode one frame.

        Args:
            path: A file that `probe` has passed.
            index: Zero-based frame number.

        Returns:
            (rows, columns), or (rows, columns, 3) in RGB; planar configuration and YBR undone, bits as in the file.

        Raises:
            UnreadableInstanceError: The pixel data is broken or has another number of frames than the header says, or
                the child died over it.
            LimitExceededError: As `probe`.
            UnsupportedInstanceError: `TRANSFER_SYNTAX`, `VIDEO`, `NO_PIXELS`, or as `pixel_format`.
        """
        return self._request({"do": "frame", "path": os.fspath(path), "index": index})

    def _request(self, request: dict[str, Any]) -> Any:
        with self._lock:
            child = self._started_child()
            with self._deadline(child, self.limits.seconds) as late:
                answer, data = self._exchange(child, request)
            if answer is None or late.is_set():
                how = "took too long" if late.is_set() else self._last_words(child)
                self._end_child()
                raise UnreadableInstanceError(f"decoding {how}")
            if answer.get("spent"):
                self._end_child()
        if "error" in answer:
            raise _error_of(answer)
        return data

    def _exchange(self, child: subprocess.Popen[bytes], request: dict[str, Any]) -> tuple[dict[str, Any] | None, Any]:
        """One request and its answer; (None, None) when the child is gone."""
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            line = child.stdout.readline()
            if not line.endswith(b"\n"):
                return None, None
            answer: dict[str, Any] = json.loads(line)
            if "shape" not in answer:
                return answer, None
            data = np.empty(answer["shape"], answer["dtype"])
            if data.nbytes and _read_into(child.stdout, data.data.cast("B")) != data.nbytes:
                return None, None
        except (OSError, ValueError):
            return None, None
        return answer, data

    def _started_child(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._end_child()
        self._child = child = subprocess.Popen(
            [sys.executable, "-m", "medenhance_dicom.decoding"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **_ONE_THREAD},
            start_new_session=True,  # Ctrl-C is the parent's business
        )
        with self._deadline(child, _START_SECONDS):
            answer, _ = self._exchange(child, asdict(self.limits))
        if answer is None:
            self._end_child()
            raise MedenhanceError("the decoding process does not start")
        return child

    @contextlib.contextmanager
    def _deadline(self, child: subprocess.Popen[bytes], seconds: float) -> Iterator[threading.Event]:
        """Kill the child after so many seconds; the event says whether that was needed."""
        late = threading.Event()

        def kill() -> None:
            late.set()
            child.kill()

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        try:
            yield late
        except BaseException:  # interrupted half-way through an answer: the pipe is out of step
            child.kill()
            raise
        finally:
            timer.cancel()

    @staticmethod
    def _last_words(child: subprocess.Popen[bytes]) -> str:
        code = child.wait()
        if code < 0 and -code in signal.valid_signals():
            return f"ended with {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def _end_child(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _read_into(stream: IO[bytes], target: memoryview) -> int:
    done = 0
    while done < len(target):
        block = stream.readinto(target[done:])  # type: ignore[attr-defined]
        if not block:
            break
        done += block
    return done


def _error_of(answer: dict[str, Any]) -> MedenhanceError:
    message = str(answer["message"])
    if answer["error"] == "unsupported":
        return UnsupportedInstanceError(str(answer["reason"]), message)
    kind = LimitExceededError if answer["error"] == "limit" else UnreadableInstanceError
    return kind(message, keyword=answer.get("keyword"))


# ---------------------------------------------------------------- inside the child


@dataclass(frozen=True)
class _Frames:
    """How to get at the encoded bytes of each frame."""

    pixels: PixelFormat
    decoder: PixelDecoder
    plugins: tuple[str, ...]
    """Codecs to try, in this order."""
    options: dict[str, Any]
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
    from pydicom.pixels.decoders.base import get_decoder  # loads the codecs, which only the child needs

    instance, element = opened.instance, opened.element
    if element is None:
        raise UnsupportedInstanceError("NO_PIXELS", "the instance has no pixel data")
    if element.keyword != "PixelData":
        raise UnsupportedInstanceError("BITS", "float pixels")
    pixels = pixel_format(instance)
    syntax = instance.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        if syntax in MPEGTransferSyntaxes:
            raise UnsupportedInstanceError("VIDEO", "a video transfer syntax") from None
        raise UnsupportedInstanceError("TRANSFER_SYNTAX", "a transfer syntax without a decoder") from None
    palette = instance.PhotometricInterpretation == "PALETTE COLOR"
    samples = 1 if palette else pixels.samples
    allocated, signed = int(instance.BitsAllocated), int(instance.PixelRepresentation)
    planar = instance.get("PlanarConfiguration")
    options = {
        "transfer_syntax_uid": syntax,
        "pixel_keyword": "PixelData",
        "pixel_vr": "OB",
        "rows": pixels.rows,
        "columns": pixels.columns,
        "samples_per_pixel": samples,
        "photometric_interpretation": str(instance.PhotometricInterpretation),
        "planar_configuration": int(planar) if isinstance(planar, int) else 0,
        "number_of_frames": 1,
        "bits_allocated": allocated,
        "bits_stored": int(instance.BitsStored),
        "pixel_representation": signed,
        "correct_unused_bits": False,  # frames.stored_frame does that, with High Bit
    }
    stride = pixels.rows * pixels.columns * samples * allocated // 8
    fragments = None
    if syntax.is_encapsulated:
        plugins = ("pyjpegls", "pylibjpeg") if syntax in JPEGLSTransferSyntaxes else ("pylibjpeg",)
        if element.length != UNDEFINED_LENGTH:
            raise UnreadableInstanceError("is not encapsulated although its transfer syntax is", keyword="PixelData")
        fragments = _frames_of_fragments(opened.stream, element.offset, pixels.number_of_frames, instance)
    else:
        plugins = ("",)
        if instance.PhotometricInterpretation == "YBR_FULL_422":
            stride = stride // 3 * 2
        _check_native_length(opened.stream, element, stride, pixels.number_of_frames)
    swap = not syntax.is_little_endian and allocated == 8 and element.vr == "OW"
    return _Frames(pixels, decoder, plugins, options, fragments, element.offset, stride, swap)


def _check_native_length(stream: BinaryIO, element: PixelElement, stride: int, number_of_frames: int) -> None:
    if element.length == UNDEFINED_LENGTH:
        raise UnreadableInstanceError("is encapsulated although its transfer syntax is not", keyword="PixelData")
    there = min(element.length, stream.seek(0, os.SEEK_END) - element.offset)
    declared = stride * number_of_frames
    if there < declared:
        raise UnreadableInstanceError("has fewer bytes than the header declares", keyword="PixelData")
    if there >= declared + stride and there > declared + declared % 2:  # the pad byte alone is no frame
        raise UnreadableInstanceError("Pixel Data holds more frames than declared", keyword="NumberOfFrames")


def _items(stream: BinaryIO, offset: int) -> list[Fragment]:
    """The items of encapsulated Pixel Data, the offset table first (PS3.5 A.4). A missing delimiter is forgiven."""
    size = stream.seek(0, os.SEEK_END)
    items: list[Fragment] = []
    while True:
        stream.seek(offset)
        head = stream.read(8)
        if len(head) < 8:
            return items
        group, element, length = struct.unpack("<HHL", head)
        tag = group << 16 | element
        if tag == _SEQUENCE_END:
            return items
        if tag != _ITEM or length == UNDEFINED_LENGTH:
            raise UnreadableInstanceError("is not a row of fragments", keyword="PixelData")
        if offset + 8 + length > size:
            raise UnreadableInstanceError("is truncated", keyword="PixelData")
        items.append((offset + 8, length))
        offset += 8 + length


def _frames_of_fragments(stream: BinaryIO, offset: int, frames: int, instance: Dataset) -> list[list[Fragment]]:
    """Which fragments make which frame: by offset table, by count, or by where codestreams end."""
    items = _items(stream, offset)
    if len(items) < 2:
        raise UnreadableInstanceError("has no fragments", keyword="PixelData")
    (table_at, table_length), *fragments = items
    stream.seek(table_at)
    table = stream.read(table_length)
    starts = [at - 8 - (table_at + table_length) for at, _ in fragments]
    offsets = list(struct.unpack(f"<{len(table) // 4}L", table[: len(table) // 4 * 4]))
    extended = instance.get("ExtendedOffsetTable")
    if isinstance(extended, bytes) and extended:
        offsets = list(struct.unpack(f"<{len(extended) // 8}Q", extended[: len(extended) // 8 * 8]))
    where = {start: number for number, start in enumerate(starts)}
    bounds = [where.get(at, -1) for at in offsets]
    if bounds and bounds[0] == 0 and all(a < b for a, b in itertools.pairwise(bounds)):
        found = [fragments[a:b] for a, b in zip(bounds, [*bounds[1:], len(fragments)], strict=True)]
    elif len(fragments) == frames:
        found = [[fragment] for fragment in fragments]
    elif frames == 1 and sum(_peek(stream, at, 8).startswith(_CODESTREAM_STARTS) for at, _ in fragments) <= 1:
        found = [fragments]
    else:
        found = [[]]
        for at, length in fragments:
            found[-1].append((at, length))
            tail = min(length, 10)
            if _END_OF_IMAGE in _peek(stream, at + length - tail, tail):
                found.append([])
        found = [frame for frame in found if frame]
    if len(found) != frames:
        more = "more" if len(found) > frames else "fewer"
        raise UnreadableInstanceError(f"Pixel Data holds {more} frames than declared", keyword="NumberOfFrames")
    return found


def _peek(stream: BinaryIO, offset: int, length: int) -> bytes:
    stream.seek(offset)
    return stream.read(length)


def _decode(opened: _Opened, index: int, limits: Limits) -> Array:
    if opened.frames is None:
        opened.frames = _plan(opened)
    plan, stream = opened.frames, opened.stream
    if not 0 <= index < plan.pixels.number_of_frames:
        raise UnreadableInstanceError(f"has no frame {index + 1}", keyword="NumberOfFrames")
    if plan.fragments is not None:
        fragments = plan.fragments[index]
        if sum(length for _, length in fragments) > limits.max_pixel_bytes:
            raise LimitExceededError("an encoded frame is larger than allowed", keyword="PixelData")
        codestream = b"".join(_peek(stream, at, length) for at, length in fragments)
        source = encapsulate([_repaired(codestream)], has_bot=False)
    else:
        source = _native_frame(plan, stream, index)
    *others, last = plan.plugins
    for plugin in others:
        with contextlib.suppress(RuntimeError):  # what pydicom makes of a codec's complaint
            return _decode_with(plan, plugin, source)
    return _decode_with(plan, last, source)


def _decode_with(plan: _Frames, plugin: str, source: bytes) -> Array:
    frame, _ = plan.decoder.as_array(source, index=0, decoding_plugin=plugin, **plan.options)
    return np.ascontiguousarray(frame, dtype=frame.dtype.newbyteorder("="))


def _repaired(codestream: bytes) -> bytes:
    """Set the spectral selection of a sequential JPEG scan to 0..63, the only legal one (ITU-T T.81 B.2.3).

    Writers of 12-bit JPEG (the WG-04 sample images among them) left it 0..0, which libjpeg refuses.
    """
    if not codestream.startswith(b"\xff\xd8"):
        return codestream
    at, sequential = 2, False
    while at + 4 <= len(codestream) and codestream[at] == 0xFF:
        marker, length = codestream[at + 1], int.from_bytes(codestream[at + 2 : at + 4], "big")
        if marker == 0xDA:
            scan = at + 2 + length - 3
            wrong = sequential and codestream[scan : scan + 3] == b"\0\0\0"
            return codestream[:scan] + b"\0\x3f\0" + codestream[scan + 3 :] if wrong else codestream
        sequential |= marker in (0xC0, 0xC1)
        at += 2 + length
    return codestream


def _native_frame(plan: _Frames, stream: BinaryIO, index: int) -> bytes:
    at = index * plan.stride
    if not plan.swap_pairs:
        return _peek(stream, plan.start + at, plan.stride)
    odd = at % 2
    data = _peek(stream, plan.start + at - odd, (plan.stride + odd + 1) // 2 * 2)
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
    importlib.import_module("pydicom.pixels.decoders.base")  # before the limit counts what is in use
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
            if request["do"] == "frame":
                frame = _decode(opened, int(request["index"]), limits)
            answer: dict[str, Any] = {"shape": frame.shape, "dtype": frame.dtype.str} if frame is not None else {}
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
