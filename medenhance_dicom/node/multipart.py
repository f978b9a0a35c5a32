"""Multipart bodies (RFC 2046 section 5.1) taken apart as they come; memory holds one block and a part's header."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.message import Message

_HEADER_BYTES = 8192
_PADDING = 256
"""White space that may follow a boundary."""


class MultipartError(Exception):
    """A body that is not well-formed multipart. Its text holds nothing of the body."""


@dataclass(frozen=True)
class PartBegins:
    """The header of a part is there; `content_type` is its media type in lower case, None where it has none."""

    content_type: str | None


@dataclass(frozen=True)
class PartData:
    """More of the current part."""

    data: bytes


@dataclass(frozen=True)
class PartEnds:
    """The current part is whole."""


Event = PartBegins | PartData | PartEnds


def media_type(value: str) -> tuple[str, dict[str, str]]:
    """Media type and parameters of a Content-Type field; the type and the names in lower case.

    Parameters in the extended notation of RFC 2231 are left out: nobody needs it for what is looked at here.
    """
    message = Message()
    message["content-type"] = value
    given: Sequence[tuple[str, object]] = message.get_params(failobj=[], header="content-type")
    parameters = {name.lower(): text for name, text in given[1:] if isinstance(text, str)}
    return message.get_content_type() if "/" in value else "", parameters


class MultipartReader:
    """Reads one body: `feed` it block by block, then `close`."""

    def __init__(self, boundary: str) -> None:
        """Args: boundary: as declared, 1 to 70 characters.

        Raises:
            MultipartError: No boundary that RFC 2046 allows.
        """
        if not 1 <= len(boundary) <= 70 or not boundary.isascii() or not boundary.isprintable():
            raise MultipartError("boundary is not 1 to 70 printable characters")
        self._delimiter = b"\r\n--" + boundary.encode()
        self._buffer = bytearray(b"\r\n")  # the first boundary may start the body
        self._state = "preamble"

    def feed(self, block: bytes) -> Iterator[Event]:
        """Events of the next block; data comes in pieces of any size.

        Raises:
            MultipartError: Not multipart, or a part's header of more than 8 KiB.
        """
        self._buffer += block
        while self._state != "epilogue":
            if self._state == "header":
                end = self._buffer.find(b"\r\n\r\n")
                if end > _HEADER_BYTES or (end < 0 and len(self._buffer) > _HEADER_BYTES):
                    raise MultipartError("header of a part is too long")
                if end < 0:
                    return
                yield PartBegins(_content_type(bytes(self._buffer[:end])))
                del self._buffer[: end + 4]
                self._state = "body"
            at = self._buffer.find(self._delimiter)
            data = self._take(at if at >= 0 else max(0, len(self._buffer) - len(self._delimiter) + 1))
            if data and self._state == "body":
                yield PartData(data)
            if at < 0 or (line := self._boundary_line()) is None:
                return
            if self._state == "body":
                yield PartEnds()
            self._state = "epilogue" if line.startswith(b"--") else "header"
        self._buffer.clear()

    def close(self) -> None:
        """The body is over.

        Raises:
            MultipartError: Before its last boundary.
        """
        if self._state != "epilogue":
            raise MultipartError("body ends before its last boundary")

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def _boundary_line(self) -> bytes | None:
        """What follows the boundary at the buffer's start; takes it off but for its line end. None: not there yet."""
        start = len(self._delimiter)
        if self._buffer[start : start + 2] == b"--":
            return self._take(start + 2)[start:]
        end = self._buffer.find(b"\r\n", start)
        if len(self._buffer if end < 0 else self._buffer[:end]) - start > _PADDING:
            raise MultipartError("more than white space follows a boundary")
        if end < 0:
            return None
        line = self._take(end)[start:]
        if line.strip(b" \t"):
            raise MultipartError("more than white space follows a boundary")
        return line


def _content_type(header: bytes) -> str | None:
    for line in header.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-type":
            return media_type(value.decode("latin-1").strip())[0]
    return None
