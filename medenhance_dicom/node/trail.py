"""The audit trail of a store, with the anchor that the configuration names."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from medenhance_dicom.audit import Audit
from medenhance_dicom.node.settings import NodeSettings


def trail_path(store: Path) -> Path:
    """Where a store has its trail."""
    return store / "audit" / "audit.jsonl"


def open_trail(settings: NodeSettings, *, clock: Callable[[], float] = time.time) -> Audit:
    """The trail of a node, for appending; `clock` gives seconds since the epoch."""
    return Audit(trail_path(settings.store), anchor=settings.audit.anchor, clock=clock)
