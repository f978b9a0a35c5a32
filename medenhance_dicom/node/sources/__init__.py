"""Where instances of an archive come from: files, DICOM peers, DICOMweb servers, object stores."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from medenhance_dicom.errors import InputError, MedenhanceError
from medenhance_dicom.node.sources.source import UNIQUE, Found, Known, LeftOut, Source, Wanted, place_of

__all__ = ["Found", "Known", "LeftOut", "Source", "Wanted", "on_disks", "open_source", "place_of"]

_PEER = re.compile(r"[^@/\\]{1,16}@(\[[0-9a-fA-F:.%]+\]|[^:@\[\]/?]+):[0-9]{1,5}(\?.*)?")
_FROM = " from "


def open_source(text: str, *, origin: str | None = None, readers: int | None = None) -> Source:
    """A source as people write it. Nothing is read or asked yet.

    Args:
        text: A folder, file, zip or DICOMDIR; `@list.csv` of paths or UIDs; `AET@HOST:PORT[?KEY=VALUE&...]`; the URL of
            a DICOMweb service, `https://host/dicom-web[?KEY=VALUE&...]`; `s3://bucket/prefix`. KEY is a DICOM keyword
            to match, or in lower case an option of the kind of source.
        origin: Where the UIDs of a list are looked up: a DICOM peer or a DICOMweb service. `@list.csv from ORIGIN` as
            `text` says the same, and is then the source's name.
        readers: Threads that read headers of files or objects; None: as many as is good for the kind.

    Raises:
        InputError: Not a source, an option is wrong, or there is no such file.
        ConfigurationError: The extra that it needs is not installed.
    """
    if text.startswith("@"):
        text, found, behind = text.partition(_FROM)
        return _of_list(text, behind if found else origin, readers)
    if origin is not None:
        raise InputError(f"{text}: only a list is looked up elsewhere")
    if text.startswith(("http://", "https://")):
        from medenhance_dicom.node.sources.web import WebSource

        return WebSource(text)
    if text.startswith("s3://"):
        from medenhance_dicom.node.sources.s3 import S3Source

        return S3Source(text, readers=readers)
    path = Path(text)
    if not path.exists() and _PEER.fullmatch(text):
        from medenhance_dicom.node.sources.dimse import PeerSource

        return PeerSource(text)
    from medenhance_dicom.node.sources.files import FileSource

    return FileSource(text, path, readers=readers)


def on_disks(text: str) -> bool:
    """Whether what is fetched from a source is linked or unpacked, and nobody is asked for it over a network."""
    from medenhance_dicom.node.sources.files import FileSource

    try:
        return isinstance(open_source(text), FileSource)
    except MedenhanceError:
        return False


def _of_list(text: str, origin: str | None, readers: int | None) -> Source:
    path = Path(text[1:])
    if origin is None:
        from medenhance_dicom.node.sources.files import FileSource

        return FileSource(text, path, listed=lambda: _with(path, "path"), readers=readers)
    from medenhance_dicom.node.sources.queried import QueriedSource

    source = open_source(origin)
    if not isinstance(source, QueriedSource):
        raise InputError(f"{origin}: neither a DICOM peer nor a DICOMweb service")
    source.restrict(f"{text}{_FROM}{origin}", lambda: _with(path, UNIQUE[0]))
    return source


def _with(path: Path, column: str) -> Iterator[dict[str, str]]:
    for number, row in enumerate(_rows(path), 1):
        if not row.get(column):
            raise InputError(f"{path}: row {number} has no {column}")
        yield row


def _rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a list: column -> value. Without a header line columns are the path, or study, series and instance UID.

    Raises:
        InputError: It cannot be read.
    """
    columns: list[str] | None = None
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.reader(file):
                cells = [cell.strip() for cell in row]
                if not any(cells) or cells[0].startswith("#"):
                    continue
                if columns is None:
                    if "path" in cells or UNIQUE[0] in cells:
                        columns = cells
                        continue
                    columns = list(UNIQUE) if re.fullmatch(r"[0-9.]+", cells[0]) else ["path"]
                yield {column: cell for column, cell in zip(columns, cells, strict=False) if cell}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a list: {type(error).__name__}") from None
