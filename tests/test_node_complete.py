"""When a series is taken to be complete, on a clock that the test turns."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medenhance_dicom.errors import ConfigurationError, PeerError
from medenhance_dicom.node.complete import Completeness
from medenhance_dicom.node.settings import NodeSettings
from medenhance_dicom.node.spool import Spool
from tests.test_node_spool import accept, instance


class Clock:
    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now


class Watch:
    def __init__(self, store, *, count=None, **completeness):
        self.spool = Spool(store)
        self.clock, self.wall = Clock(), Clock(0.0)
        table = {"idle_seconds": 10, "maximum_seconds": 100} | completeness
        self.settings = NodeSettings.model_validate(
            {
                "store": store,
                "completeness": table,
                "peers": [{"ae_title": "CT1"}, {"ae_title": "SLOW", "idle_seconds": 40}],
                "destinations": [{"name": "archive", "ae_title": "A", "host": "h", "port": 104}],
            }
        )
        self.complete = Completeness(self.settings, self.spool, clock=self.clock, wall=self.wall, count=count)

    def after(self, seconds):
        """Poll once a second for that long; the result of the last."""
        found = self.complete.due()
        for _ in range(seconds):
            self.clock.now += 1
            found = self.complete.due()
        return found

    def key(self, calling_ae="CT1", series="1.2.3.2"):
        return self.spool.series_key(calling_ae, "1.2.3.1", series)


@pytest.fixture
def watch(tmp_path):
    return Watch(tmp_path / "store")


def touch(folder):
    """A later time on the folder: two instances within a tick of the file system's clock look like one."""
    now = folder.stat().st_mtime_ns
    os.utime(folder, ns=(now + 1000, now + 1000))


def test_idle(watch):
    assert watch.after(5) == []
    accept(watch.spool, instance(1))
    assert watch.after(9) == []
    assert watch.after(1) == [(watch.key(), False)]
    watch.spool.seal(watch.key(), partial=False)
    assert watch.after(20) == []


def test_every_instance_starts_the_idle_time_anew(watch):
    accept(watch.spool, instance(1))
    assert watch.after(9) == []
    accept(watch.spool, instance(2))
    assert watch.after(9) == []
    assert watch.after(1) == [(watch.key(), False)]


def test_each_series_has_its_own_time(watch):
    accept(watch.spool, instance(1))
    assert watch.after(6) == []
    accept(watch.spool, instance(2, series="1.2.3.3"))
    assert watch.after(4) == [(watch.key(), False)]
    assert sorted(watch.after(6)) == sorted([(watch.key(), False), (watch.key(series="1.2.3.3"), False)])


def test_idle_time_of_a_peer(watch):
    accept(watch.spool, instance(1), calling_ae="SLOW")
    assert watch.after(39) == []
    assert watch.after(1) == [(watch.key("SLOW"), False)]


def test_an_open_association_holds_the_series_that_it_carried(watch):
    marker = watch.spool.open_association("CT1")
    marker.carried(watch.key())
    accept(watch.spool, instance(1))
    accept(watch.spool, instance(2, series="1.2.3.3"))
    assert watch.after(50) == [(watch.key(series="1.2.3.3"), False)]
    marker.close()
    assert (watch.key(), False) not in watch.after(9)
    assert (watch.key(), False) in watch.after(1)


def test_an_instance_that_comes_in_holds_all_of_its_sender(watch):
    accept(watch.spool, instance(1))
    accept(watch.spool, instance(2), calling_ae="OTHER")
    marker = watch.spool.open_association("CT1")
    marker.receiving(True)
    assert watch.after(30) == [(watch.key("OTHER"), False)]
    marker.receiving(False)
    assert (watch.key(), False) in watch.after(10)
    marker.close()


def test_hard_cap(watch):
    marker = watch.spool.open_association("CT1")
    marker.carried(watch.key())
    watch.wall.now = 0.0  # as if the file's time were in the future
    for number in range(20):
        accept(watch.spool, instance(number))
        touch(watch.spool.store / "pending" / watch.key())
        assert watch.after(4) == []
    assert watch.after(19) == []
    assert watch.after(1) == [(watch.key(), True)]
    watch.spool.seal(watch.key(), partial=True)
    accept(watch.spool, instance(99))
    assert watch.after(99) == []  # the rest has its own hundred seconds
    assert watch.after(1) == [(watch.key(), True)]
    marker.close()


def test_a_restart_starts_the_idle_time_anew_and_not_the_hard_cap(watch):
    accept(watch.spool, instance(1))
    (series,) = watch.spool.pending()
    watch.wall.now = series.first_seen + 60
    assert watch.after(9) == []
    touch(series.folder)
    again = Completeness(watch.settings, watch.spool, clock=watch.clock, wall=watch.wall)
    watch.complete = again
    for _ in range(13):
        assert watch.after(3) == []
        touch(series.folder)
    assert watch.after(1) == [(watch.key(), True)]


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jumps=st.lists(st.sampled_from([-1e9, -3600.0, 3600.0, 1e9]), min_size=1, max_size=12))
def test_a_clock_that_jumps_changes_nothing(tmp_path_factory, jumps):
    watch = Watch(tmp_path_factory.mktemp("jump") / "store")
    accept(watch.spool, instance(1))
    watch.wall.now = next(watch.spool.pending()).first_seen
    watch.after(0)
    for at in range(10):
        watch.wall.now += jumps[at % len(jumps)]
        assert watch.after(1) == ([(watch.key(), False)] if at == 9 else [])


def test_a_late_instance_is_a_series_of_its_own(watch):
    accept(watch.spool, instance(1))
    assert watch.after(10)
    watch.spool.seal(watch.key(), partial=False)
    accept(watch.spool, instance(2))
    assert watch.after(9) == []
    assert watch.after(1) == [(watch.key(), False)]


def test_the_archive_is_asked_how_many_there_are(tmp_path):
    asked = []

    def count(series):
        asked.append(series.key)
        return 2

    watch = Watch(tmp_path / "store", count=count, count_at="archive")
    accept(watch.spool, instance(1))
    assert watch.after(40) == []
    assert len(asked) == 4  # from the tenth second, every ten seconds
    accept(watch.spool, instance(2))
    assert watch.after(11) == [(watch.key(), False)]


@pytest.mark.parametrize("answer", [None, PeerError("not there"), ConfigurationError("no such file"), 1, 0])
def test_an_archive_that_does_not_know_holds_nothing_up(tmp_path, answer):
    def count(_):
        if isinstance(answer, Exception):
            raise answer
        return answer

    watch = Watch(tmp_path / "store", count=count, count_at="archive")
    accept(watch.spool, instance(1))
    assert watch.after(10) == [(watch.key(), False)]


def test_the_hard_cap_does_not_wait_for_the_count(tmp_path):
    watch = Watch(tmp_path / "store", count=lambda _: 5, count_at="archive")
    accept(watch.spool, instance(1))
    assert watch.after(99) == []
    assert watch.after(1) == [(watch.key(), True)]
