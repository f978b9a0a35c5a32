"""Send files to a DICOMweb server by STOW-RS (PS3.18 section 10.5), and say what became of each."""

from __future__ import annotations

import secrets
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from medenhance_dicom.errors import ConfigurationError, PeerError
from medenhance_dicom.node.forward import DUPLICATE, PERMANENT, Failed, Instance, SendReport, Sent, readable
from medenhance_dicom.node.settings import Destination
from medenhance_dicom.node.wire import client_tls

_INSTANCES, _BYTES = 100, 256 << 20
"""Of one request; a larger instance goes alone."""
_CHUNK = 1 << 17
_HTTP_PERMANENT = {400, 401, 403, 404, 405, 406, 411, 413, 415, 501}
"""HTTP statuses that a repeat does not mend. 409 (all refused) has its reasons in the body."""


def store_rs(paths: Sequence[Path], destination: Destination) -> SendReport:
    """Send files as they are. What counts is the answer's list of instances: one that is not in it is not stored.

    Raises:
        PeerError: The server could not be reached, or refused the first request as a whole.
        ConfigurationError: The authorization or a TLS file does not load.
    """
    report = SendReport()
    instances = readable(paths, report)
    if not instances:
        return report
    with _client(destination) as client:
        answered = False
        for batch in _batches(instances):
            try:
                _store(client, destination, batch, report)
                answered = True
            except PeerError as error:
                if not answered:
                    raise
                report.failed += [Failed(item.path, None, str(error), error.permanent) for item in batch]
    return report


def _client(destination: Destination) -> httpx.Client:
    headers = {"Accept": "application/dicom+json"}
    if destination.authorization_file is not None:
        try:
            headers["Authorization"] = destination.authorization_file.read_text().strip()
        except (OSError, UnicodeDecodeError):
            raise ConfigurationError(f"{destination.authorization_file} cannot be read") from None
    verify: ssl.SSLContext | bool = client_tls(destination.tls, named=True) if destination.tls is not None else True
    timeout = httpx.Timeout(destination.response_timeout, connect=destination.connect_timeout)
    return httpx.Client(verify=verify, headers=headers, timeout=timeout, trust_env=False)


def _batches(instances: Sequence[Instance]) -> Iterator[list[Instance]]:
    batch: list[Instance] = []
    total = 0
    for item in instances:
        size = item.path.stat().st_size
        if batch and (len(batch) >= _INSTANCES or total + size > _BYTES):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


def _store(client: httpx.Client, destination: Destination, batch: Sequence[Instance], report: SendReport) -> None:
    boundary = secrets.token_hex(16)
    head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
    tail = f"--{boundary}--\r\n".encode()
    length = sum(len(head) + item.path.stat().st_size + 2 for item in batch) + len(tail)
    headers = {
        "Content-Type": f'multipart/related; type="application/dicom"; boundary={boundary}',
        "Content-Length": str(length),
    }
    try:
        response = client.post(destination.stow or "", content=_body(batch, head, tail), headers=headers)
    except httpx.ConnectError:
        raise PeerError(f"{destination.name} cannot be reached") from None
    except httpx.InvalidURL:
        raise PeerError(f"{destination.name}: its URL is not one", permanent=True) from None
    except (httpx.HTTPError, httpx.StreamError) as error:
        raise PeerError(f"{destination.name} broke the request off: {type(error).__name__}") from None
    if response.status_code not in (200, 202, 409):
        permanent = response.status_code in _HTTP_PERMANENT or response.is_redirect
        raise PeerError(f"{destination.name} answers HTTP {response.status_code}", permanent=permanent)
    stored, refused = _outcome(response)
    for item in batch:
        reason = refused.get(item.sop_instance)
        if item.sop_instance in stored:
            report.sent.append(Sent(item.path, item.sop_class, item.sop_instance, stored[item.sop_instance]))
        elif reason == DUPLICATE:
            report.sent.append(Sent(item.path, item.sop_class, item.sop_instance, DUPLICATE))
        elif reason is not None:
            why = f"failure reason 0x{reason:04X}"
            report.failed.append(Failed(item.path, reason, why, reason in PERMANENT))
        else:
            report.failed.append(Failed(item.path, None, "the server does not say that it stored it", False))


def _body(batch: Sequence[Instance], head: bytes, tail: bytes) -> Iterator[bytes]:
    for item in batch:
        yield head
        with item.path.open("rb") as file:
            while block := file.read(_CHUNK):
                yield block
        yield b"\r\n"
    yield tail


def _outcome(response: httpx.Response) -> tuple[dict[str, int], dict[str, int]]:
    """Store Instances Response (PS3.18 I.2): UID to warning reason (0 for none) of the stored, to reason of the others.

    An instance that is in both lists is taken as refused.
    """
    try:
        answer = response.json()
        answer = answer[0] if isinstance(answer, list) else answer
        refused = dict(_items(answer, "00081198", "00081197", 0x0110))
        stored = dict(_items(answer, "00081199", "00081196", 0x0000))
    except (ValueError, TypeError, LookupError, AttributeError):
        return {}, {}
    return {uid: reason for uid, reason in stored.items() if uid not in refused}, refused


def _items(answer: dict[str, Any], sequence: str, reason: str, default: int) -> Iterator[tuple[str, int]]:
    for item in answer.get(sequence, {}).get("Value", []):
        yield item["00081155"]["Value"][0], int((item.get(reason, {}).get("Value") or [default])[0])
