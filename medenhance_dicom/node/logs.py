"""Logs of the node's processes: one line per event on stderr, as text or JSON, and nothing of a patient in them.

Other libraries' words may quote what they choke on, so of them only errors come through, by their place alone.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import traceback
import warnings
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

LogFormat = Literal["text", "json"]
_OURS = "medenhance_dicom"
_AUDIT_ALONE = {"calling_ae", "address"}
"""Facts that go to the audit trail and not to a log."""


def set_up_logs(log_format: LogFormat = "text") -> None:
    """Send this process's logs to stderr; call once, first thing."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(log_format))
    handler.addFilter(lambda record: record.name.split(".")[0] == _OURS or record.levelno >= logging.ERROR)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(_OURS).setLevel(logging.INFO)
    logging.captureWarnings(capture=False)
    warnings.simplefilter("ignore")
    sys.excepthook = _uncaught
    threading.excepthook = lambda args: _uncaught(args.exc_type, args.exc_value, args.exc_traceback)


class _Lines(logging.Formatter):
    """A record as one line. An exception is its type and place: its text may quote a file."""

    def __init__(self, log_format: LogFormat) -> None:
        super().__init__()
        self._json = log_format == "json"

    def format(self, record: logging.LogRecord) -> str:
        ours = record.name.split(".")[0] == _OURS
        said = record.getMessage() if ours else "error"
        if record.exc_info and record.exc_info[1] is not None:
            said += f" ({place(record.exc_info[1])})"
        facts = {k: v for k, v in getattr(record, "facts", {}).items() if k not in _AUDIT_ALONE} if ours else {}
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        where = record.name.removeprefix(f"{_OURS}.")
        if self._json:
            line = {"time": when, "level": record.levelname.lower(), "logger": where, "pid": record.process}
            return json.dumps(line | {"message": said} | facts)
        said += "".join(f" {name}={value}" for name, value in facts.items())
        return f"{when} {record.levelname.lower()} {where}[{record.process}]: {' '.join(said.split())}"


def place(error: BaseException) -> str:
    """Type of an exception and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return type(error).__name__ + (f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "")


def _uncaught(kind: type[BaseException], error: BaseException | None, _: TracebackType | None) -> None:
    if not issubclass(kind, SystemExit):
        logging.getLogger(_OURS).error("unexpected: %s", place(error) if error is not None else kind.__name__)
