"""Health, metrics and STOW-RS over HTTP.

What is public tells nothing about patients: /healthz, /readyz and /metrics are counts and words about this machine.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol

from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.node.multipart import MultipartError
from medenhance_dicom.node.settings import HTTP, NodeSettings
from medenhance_dicom.node.upload import Stored, TooManyPartsError, UnsupportedMediaTypeError, Upload

Intake = Callable[[str | None], AbstractContextManager[Callable[[Path], Stored]]]
"""Takes the Study Instance UID that a request names, if any; what is entered makes one instance after the other durable
and takes its file away."""
_JSON = "application/dicom+json"
_RETRY = {"Retry-After": "60"}
_SLOWEST = 1024
"""Bytes of a body that have to come in within `listener.socket_timeout` seconds of waiting for it."""
_MOST_CONNECTIONS = 64
_DRAIN_SECONDS = 10


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
    size = got = 0
    timeout = left = settings.listener.socket_timeout
    blocks = request.stream().__aiter__()
    try:
        while True:
            began = time.monotonic()
            try:
                block = await asyncio.wait_for(anext(blocks), left)
            except StopAsyncIteration:
                break
            left -= time.monotonic() - began
            size, got = size + len(block), got + len(block)
            if got >= _SLOWEST:
                got, left = 0, timeout
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


def make_server(app: FastAPI, *, acse_timeout: Callable[[], float]) -> uvicorn.Server:
    """A server for the application, to be run in a thread with its listening sockets.

    Args:
        app: As `make_app` makes it.
        acse_timeout: Seconds in which a request's head has to come in, as `_Connection` has it; asked for each time.
    """

    class Connection(_Connection):
        waits = staticmethod(acse_timeout)

    config = uvicorn.Config(
        app, http=Connection, ws="none", log_config=None, access_log=False, lifespan="off", server_header=False,
        limit_concurrency=_MOST_CONNECTIONS, timeout_graceful_shutdown=_DRAIN_SECONDS,
    )  # fmt: skip
    return uvicorn.Server(config)


class _Connection(H11Protocol):
    """A connection that neither silence nor dripping bytes hold.

    It is cut off where the head of a request is not whole `waits()` seconds after the connection was made or after the
    head's first byte, where the body of a request that is answered already does not end in that time, and where the
    peer does not take what it is sent. An idle kept-alive connection has uvicorn's own timeout.

    Where there are too many, the one that has waited longest without a request makes room: a flood of silent ones
    keeps nobody out.
    """

    waits: Callable[[], float]
    _deadline: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._quiet_since = self.loop.time()
        self._deadline = self.loop.call_later(self.waits(), self._cut_off)
        if self.limit_concurrency is not None and len(self.connections) >= self.limit_concurrency:
            quiet = [each for each in self.connections if isinstance(each, _Connection) and each is not self]
            quiet = [each for each in quiet if each._has_no_request()]
            if quiet:
                min(quiet, key=lambda each: each._quiet_since)._cut_off()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._deadline, self._stall):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._has_no_request():
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.waits(), self._cut_off)

    def on_response_complete(self) -> None:
        self._quiet_since = self.loop.time()
        super().on_response_complete()
        ends = self.transport.is_closing() or self.cycle.more_body
        if ends and self._has_no_request() and self._deadline is None:
            self._deadline = self.loop.call_later(self.waits(), self._cut_off)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self.waits(), self._cut_off)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _has_no_request(self) -> bool:
        cycle: Any = self.cycle
        return cycle is None or bool(cycle.response_complete)

    def _cut_off(self) -> None:
        self.connections.discard(self)
        self.transport.abort()


def _refused(status: int, why: str, headers: dict[str, Any] | None = None) -> JSONResponse:
    return JSONResponse({"error": why}, status_code=status, headers=headers)
