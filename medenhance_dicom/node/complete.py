"""When a series is complete. That is a guess: what comes after it makes another job."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from medenhance_dicom.errors import MedenhanceError
from medenhance_dicom.node.markers import OpenAssociation
from medenhance_dicom.node.settings import NodeSettings
from medenhance_dicom.node.spool import PendingSeries, Spool

_ASK_AGAIN = 10.0
"""Seconds between two questions for the number of instances of one series."""

Count = Callable[[PendingSeries], int | None]
"""How many instances a series has elsewhere; None where nobody knows. May raise `MedenhanceError`."""


@dataclass
class _Watched:
    batch: str
    signature: int
    since: float
    """When it was seen to change last."""
    first: float
    """When its first instance came; both on the clock of this process."""
    asked: float = -_ASK_AGAIN


class Completeness:
    """Watches the pending series. Poll `due` about once a second.

    The idle time of a series counts from when this process saw its last instance, on a clock that nobody sets: neither
    a clock that jumps nor a restart makes a series complete too early. The hard cap counts from its first instance,
    across restarts.
    """

    def __init__(
        self,
        settings: NodeSettings,
        spool: Spool,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        count: Count | None = None,
    ) -> None:
        """Watch nothing yet.

        Args:
            settings: Replace the attribute of this name to change them.
            spool: The series.
            clock: Seconds, never set.
            wall: Seconds since the epoch, for the age of a series that was there before this process.
            count: Where `settings.completeness.count_at` is to be asked.
        """
        self.settings = settings
        self._spool, self._clock, self._wall, self._count = spool, clock, wall, count
        self._watched: dict[str, _Watched] = {}

    def due(self) -> list[tuple[str, bool]]:
        """The series to seal now, each with whether it is sealed for its age, and thus perhaps incomplete.

        Raises:
            OSError: The store cannot be read.
        """
        now = self._clock()
        # First: what an association brings that ends while we look is seen in `pending`.
        associations = list(self._spool.associations())
        seen: dict[str, _Watched] = {}
        due: list[tuple[str, bool]] = []
        for series in self._spool.pending():
            watched = self._watched.get(series.key)
            if watched is None or watched.batch != series.origin["batch"]:
                age = max(self._wall() - series.first_seen, 0.0)
                watched = _Watched(series.origin["batch"], series.signature, now, now - age)
            elif watched.signature != series.signature or _is_carried(series, associations):
                watched.signature, watched.since = series.signature, now
            seen[series.key] = watched
            if now - watched.first >= self.settings.completeness.maximum_seconds:
                due.append((series.key, True))
            elif now - watched.since >= self._idle_seconds(series) and self._is_counted(series, watched, now):
                due.append((series.key, False))
        self._watched = seen
        return due

    def _idle_seconds(self, series: PendingSeries) -> float:
        peer = self.settings.peer(series.origin["calling_ae"])
        if peer is not None and peer.idle_seconds is not None:
            return peer.idle_seconds
        return self.settings.completeness.idle_seconds

    def _is_counted(self, series: PendingSeries, watched: _Watched, now: float) -> bool:
        """Whether all instances have come. A peer that does not know, or does not answer, holds nothing up."""
        if self._count is None or self.settings.completeness.count_at is None:
            return True
        if now - watched.asked < _ASK_AGAIN:
            return False
        watched.asked = now
        try:
            expected = self._count(series)
        except MedenhanceError:
            return True
        if expected is not None and series.count < expected:
            return False
        watched.asked = now - _ASK_AGAIN
        return True


def _is_carried(series: PendingSeries, associations: list[OpenAssociation]) -> bool:
    """By an open association, or perhaps by one of the same sender that is in the middle of an instance."""
    return any(
        series.key in open_.series_keys or (open_.receiving and open_.calling_ae == series.origin["calling_ae"])
        for open_ in associations
    )
