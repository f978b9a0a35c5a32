"""A process that works on jobs: one of the node's own, or `worker` on another host that shares store and database."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from medenhance_dicom.errors import OutputError
from medenhance_dicom.node.settings import NodeSettings
from medenhance_dicom.node.state import settings_in_force
from medenhance_dicom.node.work import launch_worker

if TYPE_CHECKING:
    from medenhance_dicom.worker import Surroundings

STEP_SECONDS = 30.0
"""That the current step has when the worker is to stop. What it does not finish is repeated."""

log = logging.getLogger(__name__)


def worker_main(store: Path, of: int) -> None:
    """One of `of` workers of the node on a store; behind its receivers in the line for the processor."""
    os.nice(5)
    if of > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // of)))
    work_until_stopped(partial(settings_in_force, store))


def work_until_stopped(load: Callable[[], NodeSettings], surroundings: Surroundings | None = None) -> NoReturn:
    """Work on jobs until SIGTERM or SIGINT; then end the current step, and the process with exit code 0.

    Args:
        load: Reads the node's configuration. Its store has to be the same folder on every host.
        surroundings: As `worker.launch` takes it.

    Raises:
        ConfigurationError: The configuration is wrong, or the database cannot be reached.
        OutputError: The store cannot be written.
    """
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    scratch = own_scratch(load().store)
    worker = launch_worker(load, surroundings)
    log.info("worker %s works", worker.executor)
    stop.wait()
    worker.stop(STEP_SECONDS)
    log.info("worker %s stopped", worker.executor)
    sys.stderr.flush()
    shutil.rmtree(scratch, ignore_errors=True)
    os._exit(0)  # a step that did not end in time would keep the process


def own_scratch(store: Path) -> Path:
    """A folder in the store for this process's temporary files, which hold pixels; those of dead processes go.

    Raises:
        OutputError: The store cannot be written.
    """
    folder = store / "scratch" / socket.gethostname()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old in folder.iterdir():
            if not is_alive(int(old.name)):
                shutil.rmtree(old, ignore_errors=True)
        own = folder / str(os.getpid())
        own.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder}: {error.strerror}") from error
    os.environ["TMPDIR"] = tempfile.tempdir = str(own)
    return own


def is_alive(pid: int) -> bool:
    """Whether there is a process of that number on this host, whoever has started it."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True
