"""When a run may begin another series: in its hours, and no more of them than were asked for."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time


@dataclass(frozen=True)
class OffPeak:
    """Hours of the day, local time; they may go past midnight."""

    begin: time
    end: time

    @classmethod
    def parse(cls, text: str) -> OffPeak:
        """From `20:00-06:00`.

        Raises:
            ValueError: Not of that form.
        """
        found = re.fullmatch(r"(\d{1,2}:\d{2})-(\d{1,2}:\d{2})", text.strip())
        if found is None:
            raise ValueError(f"{text!r} is not of the form 20:00-06:00")
        begin, end = (time.fromisoformat(part.zfill(5)) for part in found.groups())
        if begin == end:
            raise ValueError("begin and end are the same")
        return cls(begin, end)

    def contains(self, now: time) -> bool:
        """Whether it is that time of the day."""
        if self.begin < self.end:
            return self.begin <= now < self.end
        return now >= self.begin or now < self.end


class Pace:
    """At most so many series an hour, evenly: of an hour's number never more than a minute's share at once."""

    def __init__(
        self,
        max_per_hour: int | None,
        off_peak: OffPeak | None,
        *,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        """Args: max_per_hour; off_peak; clock: seconds since the epoch; monotonic: seconds."""
        self._per_second = None if max_per_hour is None else max_per_hour / 3600
        self._most = 1.0 if max_per_hour is None else max(1.0, max_per_hour / 60)
        self._off_peak, self._clock, self._monotonic = off_peak, clock, monotonic
        self._allowed, self._at = 1.0, monotonic()

    def closed(self) -> str:
        """Why no series may be begun or worked on at this hour; empty when it may."""
        if self._off_peak is None:
            return ""
        now = datetime.fromtimestamp(self._clock()).astimezone().time()
        begin = self._off_peak.begin.isoformat("minutes")
        return "" if self._off_peak.contains(now) else f"it goes on at {begin}"

    def may_begin(self) -> bool:
        """Whether one more may be begun now."""
        if self._per_second is None:
            return True
        now = self._monotonic()
        self._allowed = min(self._most, self._allowed + (now - self._at) * self._per_second)
        self._at = now
        return self._allowed >= 1.0

    def begun(self) -> None:
        """One was."""
        self._allowed -= 1.0
