"""A run begins series in its hours, and evenly."""

from datetime import time

import pytest

from medenhance_dicom.archive.pace import OffPeak, Pace


@pytest.mark.parametrize(
    ("hours", "hour", "inside"),
    [("20:00-06:00", 21, True), ("20:00-06:00", 5, True), ("20:00-06:00", 6, False), ("20:00-06:00", 12, False),
     ("9:00-17:00", 9, True), ("9:00-17:00", 17, False), ("9:00-17:00", 3, False)],
)  # fmt: skip
def test_hours_may_go_past_midnight(hours, hour, inside):
    assert OffPeak.parse(hours).contains(time(hour)) is inside


@pytest.mark.parametrize("text", ["20-6", "20:00", "25:00-06:00", "20:00-20:00", "night"])
def test_wrong_hours(text):
    with pytest.raises(ValueError, match=r"."):
        OffPeak.parse(text)


def test_an_hours_number_is_spread_over_the_hour():
    now = [0.0]
    pace = Pace(360, None, clock=lambda: 0.0, monotonic=lambda: now[0])
    begun = []
    for second in range(3600):
        now[0] = float(second)
        while pace.may_begin():
            pace.begun()
            begun.append(second)
    assert 358 <= len(begun) <= 361
    assert max(begun.count(second) for second in set(begun)) <= 1
    now[0] = 10_000.0  # nothing was asked for a long time: no more than a minute's share at once
    at_once = 0
    while pace.may_begin():
        pace.begun()
        at_once += 1
    assert at_once == 6


def test_without_a_number_any_may_begin():
    pace = Pace(None, None, clock=lambda: 0.0, monotonic=lambda: 0.0)
    assert all(pace.may_begin() for _ in range(1000))
    assert pace.closed() == ""
