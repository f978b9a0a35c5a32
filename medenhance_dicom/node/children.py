"""Processes that the node keeps alive: one that dies is started anew, after a pause that grows."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any

from medenhance_dicom.allocator import keep_one_arena
from medenhance_dicom.errors import MedenhanceError
from medenhance_dicom.node.logs import LogFormat, place, set_up_logs

_LONGEST_PAUSE = 30.0
_SOUND = 60.0
"""Seconds of life after which an earlier death no longer counts."""
log = logging.getLogger(__name__)


@dataclass
class _Child:
    name: str
    target: Callable[..., None]
    arguments: tuple[Any, ...]
    process: BaseProcess | None = None
    started: float = 0.0
    deaths: int = 0
    due: float = field(default=0.0)


class Children:
    """Spawned, not forked: the node has threads. Each runs `target(*arguments)` and handles SIGTERM itself."""

    def __init__(self, log_format: LogFormat = "text", *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log_format, self._clock = log_format, clock
        self._children: list[_Child] = []
        self._context = multiprocessing.get_context("spawn")

    def add(self, name: str, target: Callable[..., None], *arguments: Any) -> None:
        """Start one. `target` is a module's function, and the arguments can be pickled."""
        child = _Child(name, target, arguments)
        self._children.append(child)
        self._start(child)

    def tend(self) -> None:
        """Start anew what has died; call about once a second."""
        now = self._clock()
        for child in self._children:
            if child.process is not None and child.process.exitcode is not None:
                child.deaths = 1 if now - child.started > _SOUND else child.deaths + 1
                pause = 0.0 if child.deaths == 1 else min(_LONGEST_PAUSE, 2.0 ** (child.deaths - 2))
                log.error("%s died (%s); it is started anew in %.0f s", child.name, child.process.exitcode, pause)
                child.process, child.due = None, now + pause
            if child.process is None and now >= child.due:
                self._start(child)

    def problems(self) -> list[str]:
        """Those that are not alive, or died lately more than once, in words."""
        return [
            f"{child.name} {'is down' if child.process is None else 'keeps dying'}"
            for child in self._children
            if child.process is None
            or not child.process.is_alive()
            or (child.deaths > 1 and self._clock() - child.started < _SOUND)
        ]

    def pids(self) -> dict[str, int | None]:
        """Name -> process id, None for one that is down."""
        return {child.name: child.process.pid if child.process else None for child in self._children}

    def terminate(self) -> None:
        """SIGTERM to all."""
        for child in self._children:
            if child.process is not None:
                child.process.terminate()

    def stop(self, seconds: float) -> bool:
        """SIGTERM to all, then wait; what is still there after `seconds` is killed.

        Returns:
            Whether all ended by themselves.
        """
        self.terminate()
        deadline = self._clock() + seconds
        living = [child for child in self._children if child.process is not None]
        clean = True
        for child in living:
            assert child.process is not None
            child.process.join(max(0.0, deadline - self._clock()))
            if child.process.exitcode is None:
                log.warning("%s did not end within %.0f s and is killed", child.name, seconds)
                child.process.kill()
                child.process.join()
                clean = False
        return clean

    def _start(self, child: _Child) -> None:
        process = self._context.Process(
            target=_child_main, args=(self._log_format, child.target, child.arguments), name=child.name
        )
        process.start()
        child.process, child.started = process, self._clock()


def _child_main(log_format: LogFormat, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """First thing in a child: memory, logs, Ctrl-C left to the parent, and an end when the parent is gone."""
    keep_one_arena()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    set_up_logs(log_format)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    try:
        target(*arguments)
    except MedenhanceError as error:
        log.error("%s", error)
        sys.exit(1)
    except Exception as error:
        log.error("unexpected: %s", place(error))
        sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
