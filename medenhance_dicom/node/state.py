"""That a node runs on a store, and what it says of itself: STORE/node.lock, STORE/node.json and STORE/settings.json.

The lock is the truth about "running": the kernel lets go of it when the process dies, whatever it wrote before.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from pydantic import ValidationError

from medenhance_dicom.errors import ConfigurationError, OutputError
from medenhance_dicom.node.jobfolder import write_whole
from medenhance_dicom.node.settings import NodeSettings

_LOCK, _STATE, _SETTINGS = "node.lock", "node.json", "settings.json"


class NodeState:
    """Held by the running node; one of a store."""

    def __init__(self, store: Path) -> None:
        """Take the store.

        Raises:
            OutputError: Another node runs on it, or it cannot be written.
        """
        self.store = store
        self._facts: dict[str, Any] = {}
        try:
            store.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock: IO[bytes] = os.fdopen(os.open(store / _LOCK, os.O_RDWR | os.O_CREAT, 0o600), "r+b")
        except OSError as error:
            raise OutputError(f"{store}: {error.strerror}") from error
        for pause in (0.05, 0.2, None):  # `running_process` may hold it for a moment
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if pause is None:
                    self._lock.close()
                    raise OutputError(f"{store}: another node runs on it") from None
                time.sleep(pause)
        (store / _STATE).unlink(missing_ok=True)
        os.ftruncate(self._lock.fileno(), 0)
        os.pwrite(self._lock.fileno(), str(os.getpid()).encode(), 0)

    def say(self, **facts: Any) -> None:
        """Add facts to what `read_state` tells, such as the process id; none about patients.

        Raises:
            OutputError: The disk is full or read-only.
        """
        self._facts |= facts
        part = self.store / f".{_STATE}.part"
        try:
            part.write_text(json.dumps(self._facts, indent=1) + "\n")
            part.chmod(0o600)
            part.replace(self.store / _STATE)
        except OSError as error:
            raise OutputError(f"{part}: {error.strerror}") from error

    def close(self) -> None:
        """Let go of the store."""
        self._lock.close()

    def __enter__(self) -> NodeState:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()


def running_process(store: Path) -> int | None:
    """Process id of the node that runs on the store, on this host; None where none does.

    Raises:
        OutputError: The store may not be looked into.
    """
    try:
        handle = os.open(store / _LOCK, os.O_RDWR)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"{store / _LOCK}: {error.strerror}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        said = os.pread(handle, 20, 0)
        return int(said) if said.isdigit() else None
    finally:
        os.close(handle)
    return None


def read_state(store: Path) -> dict[str, Any]:
    """What the last node said of itself; empty where there was none."""
    try:
        found: dict[str, Any] = json.loads((store / _STATE).read_text())
    except (OSError, ValueError):
        return {}
    return found


def put_in_force(settings: NodeSettings) -> None:
    """Write down what the node goes by, for its workers: a file that is being edited is not yet meant.

    Raises:
        OSError: It was not written; what was in force stays so.
    """
    write_whole(settings.store / _SETTINGS, settings.model_dump(mode="json"))


def settings_in_force(store: Path) -> NodeSettings:
    """What the node on the store goes by.

    Raises:
        ConfigurationError: No node ever ran on it, or one of another release did.
    """
    try:
        return NodeSettings.model_validate_json((store / _SETTINGS).read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigurationError(f"{store / _SETTINGS}: {type(error).__name__}") from error
