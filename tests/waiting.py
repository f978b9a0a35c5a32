"""Waiting for what another thread or process does. Holds no tests."""

from __future__ import annotations

import time


def wait_until(true, seconds=120.0, what="it did not come about in time"):
    """What `true` returns, as soon as that is true; so long that a busy machine does not fail a test."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found
