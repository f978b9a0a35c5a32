"""The stage that fetches, what a job of an archive says of itself, and who enhances first."""

import json
import threading
import time
from pathlib import Path

import pydicom
import pytest

from medenhance_dicom.errors import PeerError
from medenhance_dicom.jobs import ENHANCE, FETCH, Result, Task
from medenhance_dicom.node import enhancing, sources
from medenhance_dicom.node.delivering import Peers
from medenhance_dicom.node.enhancing import Turns
from medenhance_dicom.node.fetching import Fetching, places_of, settings_of
from medenhance_dicom.node.jobfolder import locked
from medenhance_dicom.node.settings import Destination, NodeSettings, Work
from medenhance_dicom.node.work import SeriesWork
from tests.synthetic import make_file

WORK = Work(attempts=3, first_pause=2.0, longest_pause=60.0)


class Shelf:
    """A source that has some instances, and fails as it is told to."""

    def __init__(self, *missing, errors=()):
        self.missing, self.errors, self.asked = missing, list(errors), 0

    def fetch(self, wanted, folder):
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        for n, one in enumerate(wanted):
            if one.locator in self.missing:
                yield f"MISSING: no {one.locator}"
            else:
                (folder / f"{n}.dcm").write_text(one.locator)


@pytest.fixture
def job(tmp_path):
    folder = tmp_path / "job"
    (folder / "source").mkdir(parents=True)
    return folder


def ask(job, *groups):
    told = [
        {"source": name, "options": {}, "wanted": [[n, "1", "2", n, "3"] for n in names], "keys": list(names)}
        for name, names in groups
    ]
    (job / "job.json").write_text(json.dumps({"groups": told}))


def go(job, monkeypatch, stopping=None, **shelves):
    monkeypatch.setattr(sources, "open_source", lambda name: shelves[name])
    return Fetching(lambda: 1000.0).go(job, WORK, stopping or threading.Event())


def files(job):
    return {str(p.relative_to(job / "source")): p.read_text() for p in (job / "source").rglob("*.dcm")}


def test_what_came_and_what_did_not(job, monkeypatch):
    ask(job, ("pacs", "abc"))
    shelf = Shelf("b")
    assert go(job, monkeypatch, pacs=shelf) == Result("done", "1 instances did not come", (Task(ENHANCE),))
    assert files(job) == {"0.dcm": "a", "2.dcm": "c"}
    assert json.loads((job / "fetched.json").read_text()) == {"missing": {"1.dcm": "MISSING: no b"}}
    assert go(job, monkeypatch, pacs=shelf).state == "done"
    assert shelf.asked == 1


def test_several_sources_keep_apart(job, monkeypatch):
    ask(job, ("one", "ab"), ("two", "cd"))
    go(job, monkeypatch, one=Shelf(), two=Shelf("c"))
    assert files(job) == {"0/0.dcm": "a", "0/1.dcm": "b", "1/1.dcm": "d"}
    assert json.loads((job / "fetched.json").read_text())["missing"] == {"1/0.dcm": "MISSING: no c"}
    assert places_of(1, 2, 2) == ["1/0.dcm", "1/1.dcm"]


def test_a_peer_that_is_away_is_tried_again_with_growing_pauses(job, monkeypatch):
    ask(job, ("pacs", "a"))
    shelf = Shelf(errors=[PeerError("away"), PeerError("away still")])
    assert go(job, monkeypatch, pacs=shelf) == Result("waiting", "away", (Task(FETCH, 2.0),))
    assert go(job, monkeypatch, pacs=shelf) == Result("waiting", "away still", (Task(FETCH, 4.0),))
    assert go(job, monkeypatch, pacs=shelf).state == "done"


def test_it_is_given_up_after_so_many_attempts_or_when_refused(job, monkeypatch):
    ask(job, ("pacs", "a"))
    shelf = Shelf(errors=[PeerError("away")] * 3)
    for _ in range(3):
        assert go(job, monkeypatch, pacs=shelf).state == "waiting"
    assert go(job, monkeypatch, pacs=shelf) == Result("failed", "3 attempts to fetch; the last one: away")
    (job / "fetch.jsonl").unlink()
    assert go(job, monkeypatch, pacs=Shelf(errors=[PeerError("who are you", permanent=True)])) == Result(
        "failed", "who are you"
    )


def test_stopping_is_no_failure(job, monkeypatch):
    ask(job, ("pacs", "a"))
    stopping = threading.Event()
    stopping.set()
    for _ in range(5):
        assert go(job, monkeypatch, stopping, pacs=Shelf()).then == (Task(FETCH),)
    assert go(job, monkeypatch, pacs=Shelf()).state == "done"


def test_what_lies_on_disks_needs_no_stage(job, tmp_path):
    (tmp_path / "archive").mkdir()
    path = make_file(tmp_path / "archive" / "a.dcm", "CT")
    instance = pydicom.dcmread(path)
    uids = [instance.StudyInstanceUID, instance.SeriesInstanceUID, instance.SOPInstanceUID]
    wanted = [[str(path), *uids, "3"], [str(path.with_name("gone.dcm")), *uids, "3"]]
    group = {"source": str(path.parent), "options": {}, "wanted": wanted[:1], "keys": ["a"]}
    (job / "job.json").write_text(json.dumps({"groups": [group]}))
    fetching, running = Fetching(lambda: 1000.0), threading.Event()
    for _ in range(2):  # as often as it is enhanced
        assert fetching.at_once(job, running) is None
        assert (job / "source" / "0.dcm").readlink() == path
    assert not (job / "fetched.json").exists()
    (job / "job.json").write_text(json.dumps({"groups": [group | {"wanted": wanted, "keys": ["a", "b"]}]}))
    assert fetching.at_once(job, running) is None
    assert list(json.loads((job / "fetched.json").read_text())["missing"]) == ["1.dcm"]
    assert [p.name for p in (job / "source").iterdir()] == ["0.dcm"]


def test_what_comes_over_a_network_is_left_to_its_stage(job):
    ask(job, ("PACS@127.0.0.1:104", "a"), ("/archive", "b"))
    assert Fetching(lambda: 1000.0).at_once(job, threading.Event()).then == (Task(FETCH),)
    assert list((job / "source").iterdir()) == []
    (job / "fetched.json").write_text('{"missing": {}}')
    assert Fetching(lambda: 1000.0).at_once(job, threading.Event()) is None


def test_a_source_on_disks(tmp_path):
    (tmp_path / "list.csv").write_text("1.2.3\n")
    near = [str(tmp_path), "/not/there", f"@{tmp_path / 'list.csv'}"]
    far = ["PACS@127.0.0.1:104", "http://127.0.0.1/dicom-web", f"@{tmp_path / 'list.csv'} from PACS@127.0.0.1:104"]
    assert [sources.on_disks(text) for text in near + far] == [True] * 3 + [False] * 3


def test_whatever_an_archives_job_comes_to_it_stays_behind_the_work_of_the_day(tmp_path):
    settings = NodeSettings(store=tmp_path / "store")
    folder = settings.store / "archive" / ("a" * 32)
    (folder / "source").mkdir(parents=True)
    (folder / "plan.json").write_text(json.dumps({"archive": True, "priority": 10, "enhance": True, "made": 0.0,
                                                  "destinations": []}))  # fmt: skip
    work = SeriesWork(lambda: settings, Peers(*[None] * 3))
    stopping = threading.Event()
    with locked(folder / ".enhance.lock"):
        assert work.go(folder.name, ENHANCE, stopping).then == (Task(ENHANCE, 5.0, 10),)
    stopping.set()
    assert work.go(folder.name, ENHANCE, stopping).then == (Task(ENHANCE, 0.0, 10),)


def test_a_job_enhances_in_its_own_way_and_sends_nothing_but_derived_files():
    settings = NodeSettings(store=Path("/s"), destinations=(Destination(name="pacs", stow="https://a", send="both"),))
    assert settings_of({"destinations": ["pacs"]}, settings) is settings
    own = settings_of(
        {"archive": True, "options": {"recipe": "identity", "allow": ["CT"]}, "folders": {"out": "/o"}}, settings
    )
    assert (own.enhance.recipe, own.enhance.allow, own.enhance.gate) == ("identity", ("CT",), "withhold")
    assert [(there.name, there.send) for there in own.destinations] == [("pacs", "derived"), ("out", "derived")]
    assert own.destination("out").folder == Path("/o")


def test_live_work_goes_before_an_archives():
    turns, stopping, order = Turns(), threading.Event(), []

    def enhance(name, behind):
        with turns.turn(behind=behind, stopping=stopping) as mine:
            assert mine
            order.append(name)
            time.sleep(0.05)

    with turns.turn(behind=True, stopping=stopping):
        threads = []
        for name, behind in (("archive", True), ("live", False), ("live too", False)):
            threads.append(threading.Thread(target=enhance, args=(name, behind)))
            threads[-1].start()
            time.sleep(0.05)
        assert order == []
    for thread in threads:
        thread.join()
    assert order[-1] == "archive"
    with turns.turn(behind=False, stopping=stopping):
        stopping.set()
        with turns.turn(behind=True, stopping=stopping) as mine:
            assert not mine


def crowd(turns, stopping, enhance, count):
    """As many threads, all of which wait before the first of them has a turn."""
    with turns.turn(behind=False, stopping=stopping):
        threads = [threading.Thread(target=enhance, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        while len(turns._behind._waiters) < count:
            time.sleep(0.01)
    for thread in threads:
        thread.join(10)


def test_everyone_that_waits_gets_a_turn():
    turns, stopping, order = Turns(), threading.Event(), []

    def enhance(name):
        with turns.turn(behind=True, stopping=stopping) as mine:
            order.append((name, mine))

    crowd(turns, stopping, enhance, 16)
    assert sorted(order) == [(number, True) for number in range(16)]


def test_series_that_are_enhanced_wait_for_each_other():
    turns, stopping, order = Turns(), threading.Event(), []

    def enhance(number):
        with turns.turn(behind=True, stopping=stopping) as mine:
            assert mine
            order.append("enhanced")
        turns.gather(stopping)
        order.append("went on")

    crowd(turns, stopping, enhance, 8)
    assert order == ["enhanced"] * 8 + ["went on"] * 8


@pytest.mark.parametrize("ends", ["time", "stopping"])
def test_none_waits_for_long(monkeypatch, ends):
    turns, stopping = Turns(), threading.Event()
    monkeypatch.setattr(enhancing, "_GATHERED_SECONDS", 0.2)
    with turns.turn(behind=True, stopping=stopping):  # a series that takes long
        if ends == "stopping":
            stopping.set()
        threads = [threading.Thread(target=turns.gather, args=(stopping,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads)
