"""Decode pixel data in a child process that may die without taking us along.

Codecs are C code and headers lie, so both are handled by `python -m medenhance_dicom.decoding_child`, which has a
memory limit and a time limit per request and is replaced when it is gone. Requests and answers are one JSON line each;
an answer with a frame is followed by its bytes. Nothing that pydicom or a codec says crosses over: it may quote values.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

import numpy as np

from medenhance_dicom.errors import (
    LimitExceededError,
    MedenhanceError,
    UnreadableInstanceError,
    UnsupportedInstanceError,
)
from medenhance_dicom.frames import Array, StoredFrame, pixel_format, stored_frame
from medenhance_dicom.lossy import Encoding
from medenhance_dicom.part10 import Limits

if TYPE_CHECKING:
    from pydicom import Dataset

_START_SECONDS = 60.0
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


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
            (rows, columns), or (rows, columns, 3) in RGB; planar configuration and YBR undone, bits as in the file:
            a codestream may hold more of them than Bits Stored says.

        Raises:
            UnreadableInstanceError: The pixel data is broken, contradicts the header (with both values) or has another
                number of frames than it says, or the child died over it.
            LimitExceededError: As `probe`.
            UnsupportedInstanceError: `TRANSFER_SYNTAX`, `VIDEO`, `NO_PIXELS`, or as `pixel_format`.
        """
        return self._request({"do": "frame", "path": os.fspath(path), "index": index})[1]

    def stored_frames(self, path: Path, instance: Dataset) -> Iterator[StoredFrame]:
        """All frames of an instance as stored values, one at a time.

        Args:
            path: A file that `probe` has passed.
            instance: Its header.

        Raises:
            As `frame` and `frames.stored_frame`.
        """
        for index in range(pixel_format(instance).number_of_frames):
            yield stored_frame(instance, self.frame(path, index), index)

    def encoding(self, path: Path) -> Encoding:
        """Say how long the frames are as encoded, and whether their codestreams lose something.

        Args:
            path: A file that `probe` has passed.

        Raises:
            As `frame`.
        """
        answer, _ = self._request({"do": "encoding", "path": os.fspath(path)})
        return Encoding(**answer["encoding"])

    def _request(self, request: dict[str, Any]) -> tuple[dict[str, Any], Any]:
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
        return answer, data

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
            [sys.executable, "-m", "medenhance_dicom.decoding_child"],
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
