"""How glibc keeps this process's memory; on other systems nothing happens here.

A worker enhances in threads. glibc gives each thread an arena of its own, which goes back to the system whenever it
falls empty: the pages of every picture are then zeroed and mapped anew, which takes up to an eighth of an
enhancement's processor time. It also scatters what lives long over the arenas, so that a process grows over
thousands of series. One arena that is kept ends both. See mallopt(3).
"""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_MMAP_THRESHOLD = 32 << 20
"""Bytes of a block that is mapped for itself, and given back as soon as it is freed. glibc allows no more."""
_TRIM_THRESHOLD = 256 << 20
"""Free bytes at the end of the heap that are kept."""


def keep_one_arena() -> bool:
    """Have all threads share one arena that keeps its memory. Call it before there are threads.

    Returns:
        Whether glibc took it.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    asked = ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD), (_M_TRIM_THRESHOLD, _TRIM_THRESHOLD))
    taken = [mallopt(option, value) == 1 for option, value in asked]
    return all(taken)
