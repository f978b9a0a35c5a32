"""Health, metrics and STOW-RS over HTTP.

What is public tells nothing about patients: /healthz, /readyz and /metrics are counts and words about this machine.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect

from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.node.multipart import MultipartError
from medenhance_dicom.node.settings import HTTP, NodeSettings
from medenhance_dicom.node.upload import Stored, TooManyPartsError, UnsupportedMediaTypeError, Upload

Intake = Callable[[str | None], AbstractContextManager[Callable[[Path], Stored]]]
"""Takes the Study Instance UID that a request names, if any; what is entered makes one instance after the other durable
and takes its file away."""
_JSON = "application/dicom+json"
_RETRY = {"Retry-After": "60"}


def read_token(http: HTTP) -> str | None:
    """The bearer token that STOW-RS asks for; None for none.

    Raises:
        ConfigurationError: The file cannot be read or holds nothing, or STOW-RS on other than loopback has none.
    """
    if http.token_file is None:
        if http.stow and not is_loopback(http.bind):
            raise ConfigurationError(f"http.bind is {http.bind}: STOW-RS needs http.token_file there")
        return None
    try:
        token = http.token_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"http.token_file: {http.token_file} cannot be read") from error
    if not token:
        raise ConfigurationError(f"http.token_file: {http.token_file} is empty")
    return token


def is_loopback(bind: str) -> bool:
    """Whether nothing but this machine can reach an address; of names, localhost alone."""
    try:
        return ipaddress.ip_address(bind).is_loopback
    except ValueError:
        return bind == "localhost"


def make_app(
    settings: Callable[[], NodeSettings],
    *,
    incoming: Path,
    intake: Intake,
    problems: Callable[[], list[str]],
    busy: Callable[[], str | None],
    metrics: Callable[[], tuple[bytes, str]],
) -> FastAPI:
    """The HTTP application.

    Args:
        settings: The current settings; read at each request, so that a reload counts at once.
        incoming: Where bodies are written while they come in.
        intake: As `Intake`; used in threads.
        problems: Why the node is not ready, in words; empty when it is.
        busy: Why nothing can be taken now (draining, disk), None when it can.
        metrics: Body and content type of /metrics.

    Raises:
        ConfigurationError: As `read_token`.
    """
    read_token(settings().http)
    app = FastAPI(title="medenhance-dicom node", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz")
    def readyz() -> JSONResponse:
        found = problems()
        return JSONResponse({"ready": not found, "problems": found}, status_code=503 if found else 200)

    @app.get("/metrics")
    def metrics_page() -> Response:
        body, content_type = metrics()
        return Response(body, headers={"Content-Type": content_type})

    @app.post("/dicom-web/studies")
    @app.post("/dicom-web/studies/{study}")
    async def store_instances(request: Request, study: str | None = None) -> Response:
        current = settings()
        if not current.http.stow:
            return _refused(404, "STOW-RS is off")
        if not await run_in_threadpool(_allowed, current.http, request.headers.get("authorization", "")):
            return _refused(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        if (reason := await run_in_threadpool(busy)) is not None:
            return _refused(503, reason, _RETRY)
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal():
            return _refused(400, "Content-Length is not a number")
        if int(declared) > current.http.maximum_body_bytes:
            return _refused(413, "the body is larger than http.maximum_body_bytes")
        try:
            with intake(study) as accept:
                return await _store(request, current, accept, incoming, busy)
        except OSError:
            return _refused(503, "the disk cannot be written", _RETRY)

    return app


def _allowed(http: HTTP, authorization: str) -> bool:
    try:
        token = read_token(http)
    except ConfigurationError:
        return False
    scheme, _, given = authorization.partition(" ")
    if token is None:
        return True
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())


async def _store(
    request: Request,
    settings: NodeSettings,
    accept: Callable[[Path], Stored],
    incoming: Path,
    busy: Callable[[], str | None],
) -> Response:
    """Take the body in block by block; disk work is done in threads."""
    try:
        upload = Upload(request.headers.get("content-type", ""), incoming, accept, has_room=lambda: busy() is None)
    except UnsupportedMediaTypeError:
        return _refused(415, 'send multipart/related; type="application/dicom"')
    except MultipartError as error:
        return _refused(400, str(error))
    size = 0
    blocks = request.stream().__aiter__()
    try:
        while True:
            try:
                block = await asyncio.wait_for(anext(blocks), settings.listener.socket_timeout)
            except StopAsyncIteration:
                break
            size += len(block)
            if size > settings.http.maximum_body_bytes:
                return _refused(413, "the body is larger than http.maximum_body_bytes")
            await run_in_threadpool(upload.feed, block)
        await run_in_threadpool(upload.close)
    except UnsupportedMediaTypeError:
        return _refused(415, "a part is not application/dicom")
    except TooManyPartsError:
        return _refused(413, "too many parts")
    except MultipartError as error:
        return _refused(400, str(error))
    except TimeoutError:
        return _refused(408, "the body does not come in", {"Connection": "close"})
    except ClientDisconnect:
        return Response(status_code=400)
    finally:
        with suppress(OSError):
            await run_in_threadpool(upload.abandon)
    status, module = upload.response()
    return JSONResponse(module, status_code=status, media_type=_JSON, headers=_RETRY if status == 503 else None)


def _refused(status: int, why: str, headers: dict[str, Any] | None = None) -> JSONResponse:
    return JSONResponse({"error": why}, status_code=status, headers=headers)
