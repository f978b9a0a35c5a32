"""One STOW-RS request (PS3.18 section 10.5): parts to disk as they come, each through the rules of C-STORE."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from medenhance_dicom.audit import Audit
from medenhance_dicom.errors import InputError
from medenhance_dicom.node.forward import read_instance_meta
from medenhance_dicom.node.identity import read_identity
from medenhance_dicom.node.intake import GUARD_BYTES, NOT_AS_ANNOUNCED, OUT_OF_RESOURCES, SUCCESS, take_in
from medenhance_dicom.node.multipart import Event, MultipartError, MultipartReader, PartBegins, PartData, media_type
from medenhance_dicom.node.settings import NodeSettings
from medenhance_dicom.node.spool import Spool

STOW_PEER = "STOW-RS"
"""The calling AE title of what comes in over HTTP."""
DICOM = "application/dicom"
MAXIMUM_PARTS = 20_000


class UnsupportedMediaTypeError(Exception):
    """A body, or a part of it, that is not application/dicom."""


class TooManyPartsError(Exception):
    """More than `MAXIMUM_PARTS` in one request."""


@dataclass(frozen=True)
class Stored:
    """What became of one part; UIDs are empty where they could not be read."""

    status: int
    """As a C-STORE response would have it."""
    sop_class: str = ""
    sop_instance: str = ""


class Upload:
    """Takes one body in; after `close` every part has its result."""

    def __init__(
        self, content_type: str, folder: Path, accept: Callable[[Path], Stored], *, has_room: Callable[[], bool]
    ) -> None:
        """Read the Content-Type of the request.

        Args:
            content_type: `multipart/related; type="application/dicom"; boundary=...`, or application/dicom for one
                instance.
            folder: Where parts are written, on the spool's file system.
            accept: Makes a whole part durable and takes it away, or removes it.
            has_room: Whether the disk has more than what is kept back; asked every `GUARD_BYTES`.

        Raises:
            UnsupportedMediaTypeError: Anything else.
            MultipartError: No usable boundary.
        """
        kind, parameters = media_type(content_type)
        if kind == "multipart/related" and parameters.get("type", "").lower() == DICOM:
            self._reader: MultipartReader | None = MultipartReader(parameters.get("boundary", ""))
        elif kind == DICOM:
            self._reader = None
        else:
            raise UnsupportedMediaTypeError
        self._folder, self._accept, self._has_room = folder, accept, has_room
        self._unguarded = 0
        self._file: IO[bytes] | None = None
        self._full = False
        self.results: list[Stored] = []

    def feed(self, block: bytes) -> None:
        """Take the next block of the body.

        Raises:
            MultipartError: Malformed; the parts before that are stored.
            UnsupportedMediaTypeError: A part of another media type.
            TooManyPartsError: As it says.
        """
        if self._reader is not None:
            for event in self._reader.feed(block):
                self._take(event)
        elif block:
            if self._file is None:
                self._begin()
            self._write(block)

    def close(self) -> None:
        """The body is over.

        Raises:
            MultipartError: Before its end, or it has no part.
        """
        if self._reader is not None:
            self._reader.close()
        elif self._file is not None:
            self._end()
        if not self.results:
            raise MultipartError("no part in the body")

    def abandon(self) -> None:
        """Remove what there is of an unfinished part."""
        if self._file is not None:
            self._file.close()
            Path(self._file.name).unlink(missing_ok=True)
            self._file = None

    def _take(self, event: Event) -> None:
        if isinstance(event, PartBegins):
            if event.content_type not in (None, DICOM):
                raise UnsupportedMediaTypeError
            self._begin()
        elif isinstance(event, PartData):
            self._write(event.data)
        else:
            self._end()

    def _begin(self) -> None:
        if len(self.results) >= MAXIMUM_PARTS:
            raise TooManyPartsError
        path = self._folder / f"{secrets.token_hex(16)}.part"
        self._file, self._full = path.open("xb"), False

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        if self._full:
            return
        self._unguarded += len(data)
        try:
            if self._unguarded >= GUARD_BYTES:
                self._unguarded = 0
                if not self._has_room():
                    raise OSError
            self._file.write(data)
        except OSError:
            self._full = True
            with suppress(OSError):
                self._file.truncate(0)

    def _end(self) -> None:
        assert self._file is not None
        path = Path(self._file.name)
        try:
            self._file.close()
        except OSError:
            self._full = True
        self._file = None
        if self._full:
            path.unlink(missing_ok=True)
            self.results.append(Stored(OUT_OF_RESOURCES))
        else:
            self.results.append(self._accept(path))

    def response(self) -> tuple[int, dict[str, Any]]:
        """Status code (10.5.3) and the Store Instances Response Module in the DICOM JSON model."""
        stored = [r for r in self.results if r.status == SUCCESS]
        failed = [r for r in self.results if r.status != SUCCESS]
        module: dict[str, Any] = {"00081190": {"vr": "UR"}}  # Retrieve URL: we serve none
        if stored:
            module["00081199"] = {"vr": "SQ", "Value": [_reference(r) | {"00081190": {"vr": "UR"}} for r in stored]}
        if known := [r for r in failed if r.sop_instance]:
            module["00081198"] = {"vr": "SQ", "Value": [_reference(r) | _reason(r) for r in known]}
        if unknown := [r for r in failed if not r.sop_instance]:
            module["0008119A"] = {"vr": "SQ", "Value": [_reason(r) for r in unknown]}
        if not failed:
            return 200, module
        if stored:
            return 202, module
        return 503 if all(r.status == OUT_OF_RESOURCES for r in failed) else 409, module


@contextmanager
def open_intake(
    spool: Spool, audit: Audit, settings: Callable[[], NodeSettings], study: str | None
) -> Iterator[Callable[[Path], Stored]]:
    """What makes the parts of one request durable, under the rules of C-STORE; the request counts as an association.

    Args:
        spool: Where they go.
        audit: Is told of conflicts and of what cannot be read.
        settings: For the disk space that is kept back.
        study: Study Instance UID that all parts must have; None for any.

    Raises:
        OSError: The disk does not take the marker.
    """
    marker = spool.open_association(STOW_PEER)

    def accept(part: Path) -> Stored:
        listener = settings().listener
        try:
            if spool.draining or spool.free_bytes() < listener.reserve_bytes:
                return Stored(OUT_OF_RESOURCES)
            announced = _announced(part, study)
            if isinstance(announced, Stored):
                return announced
            taken = take_in(
                spool, part, calling_ae=STOW_PEER, called_ae=listener.ae_title, sop_class=announced[0],
                sop_instance=announced[1], carried=marker.carried, audit=audit.append,
            )  # fmt: skip
            identity = taken.identity
            return Stored(taken.status, identity.sop_class, identity.sop_instance) if identity else Stored(taken.status)
        except OSError:
            return Stored(OUT_OF_RESOURCES)
        finally:
            part.unlink(missing_ok=True)

    try:
        yield accept
    finally:
        marker.close()


def _announced(part: Path, study: str | None) -> Stored | tuple[str | None, str | None]:
    """SOP Class and Instance UID of the file meta information; a refusal where the study is not the request's."""
    try:
        identity = read_identity(part, digest="")
        meta = read_instance_meta(part)
    except InputError:
        return None, None  # `take_in` will say so, and keeps it
    if study not in (None, identity.study):
        return Stored(NOT_AS_ANNOUNCED, identity.sop_class, identity.sop_instance)
    return meta.sop_class, meta.sop_instance


def _reference(result: Stored) -> dict[str, Any]:
    return {
        "00081150": {"vr": "UI", "Value": [result.sop_class]},
        "00081155": {"vr": "UI", "Value": [result.sop_instance]},
    }


def _reason(result: Stored) -> dict[str, Any]:
    return {"00081197": {"vr": "US", "Value": [result.status]}}
