"""The receiver processes: several on one port, started anew when they die."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from medenhance_dicom.errors import ConfigurationError, MedenhanceError
from medenhance_dicom.node.receive import Mounted, Receiver, listening_ports
from medenhance_dicom.node.settings import NodeSettings
from medenhance_dicom.node.spool import Spool

_log = logging.getLogger(__name__)

_GRACE_SECONDS = 30.0
_START_SECONDS = 60.0
_MOST_DEATHS = 10
"""Within a minute, before something is wrong that starting again does not help."""

Mount = Callable[[Callable[[], NodeSettings], Spool], Mounted]
"""A function of a module, so that another process can call it; of the settings as they are at each moment."""


def mount_nothing(settings: Callable[[], NodeSettings], spool: Spool) -> Mounted:
    """Verification and Storage alone, without an audit trail."""
    return Mounted()


def _receive(settings: NodeSettings, mount: Mount, pipe: Connection) -> None:
    """A receiver process: ends when told, on SIGTERM, and when the process that started it is gone."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    threading.excepthook = lambda args: _log.error("a thread died of %s", args.exc_type.__name__)
    try:
        spool = Spool(settings.store)
        spool.enter()
        tempfile.tempdir = str(spool.incoming)  # what a C-GET rewrites is a patient's too
        receiver = Receiver(settings, spool)
        receiver.mounted = mount(lambda: receiver.settings, spool)
        receiver.start()
    except MedenhanceError as error:
        pipe.send(str(error))
        return
    grace = _GRACE_SECONDS
    try:
        pipe.send("")
        while not stop.is_set():
            if pipe.poll(0.2):
                receiver.settings = pipe.recv()
    except (EOFError, OSError):
        grace = 0.0  # killed: a next node waits for us
    receiver.stop(grace)


class Receivers:
    """`listener.receivers` processes that accept on the same ports (SO_REUSEPORT)."""

    def __init__(self, settings: NodeSettings, mount: Mount = mount_nothing) -> None:
        self._settings, self._mount = settings, mount
        self._children: list[tuple[Any, Connection]] = []
        self._reserved: list[socket.socket] = []
        self._deaths: list[float] = []

    def start(self) -> None:
        """Start them, and wait until they listen.

        Raises:
            ConfigurationError: An address or port cannot be had, the TLS files do not load, or the store is no good.
        """
        listener = self._settings.listener
        for port, _ in listening_ports(listener):
            self._reserved.append(_reserve(listener.bind, port))
        try:
            self._children = [self._start_one() for _ in range(listener.receivers)]
            for child, pipe in self._children:
                _wait_for(child, pipe)
        except MedenhanceError:
            self.stop(0)
            raise

    def _start_one(self) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        child = context.Process(target=_receive, args=(self._settings, self._mount, theirs), name="receiver")
        child.start()
        theirs.close()
        return child, ours

    def watch(self) -> int:
        """Start anew those that died; call it about once a second.

        Returns:
            How many died.

        Raises:
            ConfigurationError: They keep dying.
        """
        dead = [at for at, (child, _) in enumerate(self._children) if not child.is_alive()]
        now = time.monotonic()
        self._deaths = [at for at in self._deaths if now - at < 60] + [now] * len(dead)
        if len(self._deaths) > _MOST_DEATHS:
            raise ConfigurationError("listener: receivers keep dying")
        for at in dead:
            self._children[at][1].close()
            self._children[at] = self._start_one()
        return len(dead)

    def reload(self, settings: NodeSettings) -> None:
        """New peers and limits; addresses, ports and TLS stay until the next start."""
        self._settings = settings
        for _, pipe in self._children:
            with contextlib.suppress(OSError):
                pipe.send(settings)

    def stop(self, grace: float = _GRACE_SECONDS) -> None:
        """Let them finish what is coming in, up to `grace` seconds, and end them."""
        for child, _ in self._children:
            if child.is_alive():
                child.terminate()
        until = time.monotonic() + grace
        for child, pipe in self._children:
            child.join(max(until - time.monotonic(), 1))
            if child.is_alive():
                child.kill()
                child.join()
            pipe.close()
        self._children.clear()
        for reserved in self._reserved:
            reserved.close()
        self._reserved.clear()


def _wait_for(child: Any, pipe: Connection) -> None:
    said = "a receiver does not start"
    with contextlib.suppress(EOFError, OSError):
        if pipe.poll(_START_SECONDS):
            said = pipe.recv()
    if said:
        raise ConfigurationError(said)


def _reserve(bind: str, port: int) -> socket.socket:
    """Hold the port without listening on it: another program cannot take it, and our processes can."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    reserved = socket.socket(family, socket.SOCK_STREAM)
    try:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "SO_REUSEPORT"):
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind((bind, port))
    except OSError as error:
        reserved.close()
        raise ConfigurationError(f"listener: {bind} port {port}: {error.strerror}") from None
    return reserved
