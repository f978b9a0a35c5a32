"""The commands `echo`, `send` and `query`: other machines, without a node."""

from __future__ import annotations

import re
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medenhance_dicom.errors import PeerError
from medenhance_dicom.node.console import Json, note, print_json, table

if TYPE_CHECKING:
    from medenhance_dicom.node.forward import SendReport
    from medenhance_dicom.node.settings import Destination

Address = Annotated[str, typer.Argument(help="AE title, host and port of the peer.", metavar="AET@HOST:PORT")]
Calling = Annotated[str, typer.Option("--calling", help="Our AE title.", metavar="AET")]
Certificate = Annotated[Path | None, typer.Option("--tls-certificate", help="Ours, PEM; with it TLS is used.")]
Key = Annotated[Path | None, typer.Option("--tls-key", help="Of the certificate, PEM.")]
Authority = Annotated[Path | None, typer.Option("--tls-authority", help="That the peer's certificate comes from, PEM.")]
Timeout = Annotated[float, typer.Option(help="Seconds for one answer.", min=0.1)]
_TITLE = "MEDENHANCE"

_ADDRESS = re.compile(
    r"(?P<title>[^@]{1,16})@(?:\[(?P<v6>[0-9a-fA-F:.%]+)\]|(?P<host>[^:@\[\]]+)):(?P<port>[0-9]{1,5})"
)


def destination_of(
    address: str, certificate: Path | None, key: Path | None, authority: Path | None, timeout: float
) -> Destination:
    """A peer as people write it: AET@HOST:PORT, [v6] in brackets, or the URL of a DICOMweb server's studies.

    Raises:
        typer.BadParameter: Neither, or TLS files are missing.
    """
    from pydantic import ValidationError

    from medenhance_dicom.node.settings import Destination, TLSFiles

    files = [path for path in (certificate, key, authority) if path is not None]
    if len(files) not in (0, 3):
        raise typer.BadParameter("TLS needs --tls-certificate, --tls-key and --tls-authority")
    common: dict[str, Any] = {"name": "peer", "response_timeout": timeout, "commit": False}
    if files:
        common["tls"] = TLSFiles(certificate=files[0], key=files[1], authority=files[2])
    if address.startswith(("http://", "https://")):
        return Destination(stow=address, **common)
    found = _ADDRESS.fullmatch(address)
    try:
        if found is None:
            raise ValueError(address)
        host = found["v6"] or found["host"]
        return Destination(ae_title=found["title"], host=host, port=int(found["port"]), **common)
    except (ValueError, ValidationError):
        raise typer.BadParameter(f"{address} is not AET@HOST:PORT") from None


def echo(
    address: Address,
    calling: Calling = _TITLE,
    certificate: Certificate = None,
    key: Key = None,
    authority: Authority = None,
    timeout: Timeout = 10.0,
    json: Json = False,
) -> None:
    """Verify a DICOM peer by C-ECHO. Exit code 11 where it refuses or cannot be reached."""
    from medenhance_dicom.node.query import echo as send_echo

    destination = destination_of(address, certificate, key, authority, timeout)
    started = time.monotonic()
    send_echo(destination, calling_ae=calling)
    seconds = round(time.monotonic() - started, 4)
    if json:
        print_json({"peer": address, "seconds": seconds})
    else:
        typer.echo(f"{address} answers, {seconds * 1000:.0f} ms")


def send(
    paths: Annotated[
        list[Path], typer.Argument(help="DICOM files, folders, zip archives or a DICOMDIR.", metavar="PATH...")
    ],
    to: Annotated[str, typer.Option(help="Peer, or URL of a DICOMweb server's studies.", metavar="AET@HOST:PORT|URL")],
    commit: Annotated[
        bool, typer.Option("--commit", help="Ask for Storage Commitment, and wait for the report.")
    ] = False,
    commit_seconds: Annotated[float, typer.Option(help="How long to wait for it.", min=0)] = 30.0,
    listen: Annotated[
        str | None,
        typer.Option(
            help="Take the report at this address of ours, for peers that bring it over an association of their own.",
            metavar="HOST:PORT",
        ),
    ] = None,
    calling: Calling = _TITLE,
    certificate: Certificate = None,
    key: Key = None,
    authority: Authority = None,
    timeout: Timeout = 300.0,
    json: Json = False,
) -> None:
    """Send DICOM files by C-STORE or STOW-RS, and count what the peer says it has stored.

    Exit codes: 0 all stored, 3 nothing found, 4 some failed, 5 all failed, 11 peer refused, unreachable, or did not
    commit.
    """
    from contextlib import ExitStack

    from medenhance_dicom.node.commit import taking_reports
    from medenhance_dicom.node.forward import send_files
    from medenhance_dicom.node.stow import store_rs
    from medenhance_dicom.part10 import find_instances, looks_like_dicom

    destination = destination_of(to, certificate, key, authority, timeout)
    if commit and destination.stow is not None:
        raise typer.BadParameter("STOW-RS has no Storage Commitment", param_hint="--commit")
    here = _own_address(listen) if listen is not None else None
    with tempfile.TemporaryDirectory(prefix="medenhance-") as folder, ExitStack() as listening:
        scratch, store = Path(folder, "found"), Path(folder)
        if commit and here is not None:
            listener = taking_reports(store, destination, ae_title=calling, bind=here[0], port=here[1])
            listening.enter_context(listener)
        scratch.mkdir()
        names = {found.path: found.name for found in find_instances(paths, scratch) if looks_like_dicom(found.path)}
        if not names:
            note("nothing found")
            raise typer.Exit(3)
        files = list(names)
        report = (
            store_rs(files, destination) if destination.stow else send_files(files, destination, calling_ae=calling)
        )
        committed = None
        if commit and report.sent:
            committed = _commit(store, report, destination, calling, commit_seconds, here is not None)
    failed = [
        {"file": names[f.path], "status": f.status, "why": f.why, "permanent": f.permanent} for f in report.failed
    ]
    if json:
        print_json({"sent": len(report.sent), "failed": failed, "committed": committed})
    else:
        for line in failed:
            typer.echo(f"failed  {line['file']}: {line['why']}")
        typer.echo(
            f"{len(report.sent)} of {len(files)} stored" + ("" if committed is None else f", {committed} committed")
        )
    if failed:
        raise typer.Exit(4 if report.sent else 5)
    raise typer.Exit(11 if committed is not None and committed < len(report.sent) else 0)


def _own_address(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) < 65536:
        raise typer.BadParameter(f"{text} is not HOST:PORT", param_hint="--listen")
    return host.strip("[]"), int(port)


def _commit(
    store: Path,
    report: SendReport,
    destination: Destination,
    calling: str,
    seconds: float,
    listening: bool,
) -> int:
    """How many of the sent instances the peer reports as committed, over the same association or where we listen."""
    import uuid

    from medenhance_dicom.node.commit import report_of, request_commitment

    instances = sorted({(sent.sop_class, sent.sop_instance) for sent in report.sent})
    transaction, until = f"2.25.{uuid.uuid4().int}", time.monotonic() + seconds
    try:
        said = request_commitment(
            store, instances, destination, calling_ae=calling, transaction_uid=transaction,
            linger=min(seconds, 1.0) if listening else seconds,
        )  # fmt: skip
    except PeerError as error:
        note(f"commitment: {error}")
        return 0
    while listening and said is None and time.monotonic() < until:
        time.sleep(0.05)
        said = report_of(store, transaction)
    if said is None:
        elsewhere = "" if listening else " over this association; --listen, or a node, takes those that come later"
        note(f"commitment: no report within {seconds:.0f} s{elsewhere}")
        return 0
    return len(said.committed)


def query(
    address: Address,
    keys: Annotated[list[str] | None, typer.Argument(help="KEYWORD=VALUE to match.", metavar="KEY=VALUE...")] = None,
    level: Annotated[Literal["study", "series", "image"], typer.Option(help="What is listed.")] = "study",
    limit: Annotated[int | None, typer.Option(help="At most so many.", min=1)] = None,
    retrieve: Annotated[Path | None, typer.Option(help="Retrieve what matches by C-GET.", metavar="DIR")] = None,
    calling: Calling = _TITLE,
    certificate: Certificate = None,
    key: Key = None,
    authority: Authority = None,
    timeout: Timeout = 60.0,
    json: Json = False,
) -> None:
    """Ask a DICOM peer what it has (C-FIND, Study Root), and retrieve it. Exit code 3 where nothing matches."""
    from pydicom import Dataset

    from medenhance_dicom.node.query import find

    destination = destination_of(address, certificate, key, authority, timeout)
    identifier = _identifier(level, keys or [])
    found: list[Dataset] = list(find(destination, identifier, calling_ae=calling, limit=limit))
    columns = [element.keyword for element in identifier if element.keyword != "QueryRetrieveLevel"]
    rows = [[_text(match.get(column)) for column in columns] for match in found]
    retrieved = None
    if retrieve is not None and found:
        retrieved = _retrieve(destination, level, found, retrieve, calling)
    if json:
        matches = [dict(zip(columns, row, strict=True)) for row in rows]
        print_json({"matches": matches, "retrieved": retrieved})
    else:
        table(columns, rows)
        if retrieved is not None:
            typer.echo(f"{retrieved['completed']} instances retrieved, {retrieved['failed']} failed")
    if not found:
        raise typer.Exit(3)
    if retrieved is not None and retrieved["failed"]:
        raise typer.Exit(4 if retrieved["completed"] else 5)


_RETURNED = {
    "study": ("PatientID", "StudyDate", "AccessionNumber", "StudyDescription", "StudyInstanceUID"),
    "series": ("StudyInstanceUID", "Modality", "SeriesNumber", "SeriesDescription", "SeriesInstanceUID"),
    "image": ("StudyInstanceUID", "SeriesInstanceUID", "InstanceNumber", "SOPClassUID", "SOPInstanceUID"),
}
_UNIQUE = {
    "study": ("StudyInstanceUID",),
    "series": ("StudyInstanceUID", "SeriesInstanceUID"),
    "image": ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"),
}


def _identifier(level: str, keys: list[str]) -> Any:
    from pydicom import Dataset
    from pydicom.datadict import tag_for_keyword

    identifier = Dataset()
    identifier.QueryRetrieveLevel = level.upper()
    for keyword in _RETURNED[level]:
        setattr(identifier, keyword, None)
    for item in keys:
        keyword, equals, value = item.partition("=")
        if not equals or tag_for_keyword(keyword) is None:
            raise typer.BadParameter(f"{item} is not KEYWORD=VALUE with a keyword of the DICOM dictionary")
        setattr(identifier, keyword, value.split("\\") if "\\" in value else value)
    return identifier


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _retrieve(destination: Destination, level: str, found: list[Any], folder: Path, calling: str) -> dict[str, int]:
    from pydicom import Dataset

    from medenhance_dicom.node.query import get

    folder.mkdir(parents=True, exist_ok=True)
    done = {"completed": 0, "failed": 0}
    for match in found:
        identifier = Dataset()
        identifier.QueryRetrieveLevel = level.upper()
        for keyword in _UNIQUE[level]:
            setattr(identifier, keyword, match.get(keyword))
        last = None
        for last in get(destination, identifier, folder, calling_ae=calling):
            if sys.stderr.isatty():
                note(f"{last.completed} retrieved, {last.remaining} to come")
        if last is not None:
            done["completed"] += last.completed + last.warning
            done["failed"] += last.failed
    return done
