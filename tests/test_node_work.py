"""What is done for one series, without a queue: gos are driven by hand, and the network is a list."""

import json
import os
import shutil
import threading
from functools import partial
from pathlib import Path

import pytest

from medenhance_dicom.audit import Audit, verify
from medenhance_dicom.errors import ModelError, PeerError
from medenhance_dicom.jobs import Jobs, sqlite_url
from medenhance_dicom.node import delivering, enhancing, work
from medenhance_dicom.node.control import Control
from medenhance_dicom.node.delivering import Commitment, Peers
from medenhance_dicom.node.delivery import read_ledger
from medenhance_dicom.node.forward import Failed, SendReport, Sent
from medenhance_dicom.node.jobfolder import ledger_path, locked, read_whole
from medenhance_dicom.node.retention import Kept, removable, sweep
from medenhance_dicom.node.settings import Destination, NodeSettings, Retention, Rule, Work, load_settings
from medenhance_dicom.node.spool import Spool
from tests import job_stores as stores

JOB = "0" * 32
ARCHIVE = Destination(name="archive", ae_title="ARCHIVE", host="h", port=104)
RESEARCH = Destination(name="research", ae_title="RESEARCH", host="h", port=105, send="derived", commit=False)
PASS_ON = (Rule(destinations=("archive",), enhance=False),)


class Network:
    """Destinations that do as they are told: `says` are the answers to the next sends."""

    def __init__(self):
        self.says, self.got, self.asked, self.reports = [], {}, [], {}
        self.commits = True

    def send(self, paths, destination, calling_ae):
        say = self.says.pop(0) if self.says else None
        if isinstance(say, Exception):
            raise say
        report = SendReport()
        for path in paths:
            if say is not None and path.name in say:
                report.failed.append(Failed(path, *say[path.name]))
            else:
                self.got.setdefault(destination.name, []).append(path.name)
                report.sent.append(Sent(path, "1.2", f"1.{path.stem[-1]}", 0))
        return report

    def ask(self, instances, destination, calling_ae, transaction):
        self.asked.append(sorted(item.sop_instance for item in instances))
        if isinstance(self.commits, Exception):
            raise self.commits
        if self.commits is True:
            self.reports[transaction] = Commitment(frozenset(self.asked[-1]), {})
        elif self.commits is not None:
            self.reports[transaction] = self.commits.pop(0)

    def peers(self):
        return Peers(self.send, self.ask, self.reports.get)


class Node:
    """A store with one job; `drive` goes at stages until nothing follows, and lets the clock run through pauses."""

    def __init__(self, folder, *, instances=2, rules=PASS_ON, destinations=(ARCHIVE, RESEARCH), attempts=3, **facts):
        self.settings = NodeSettings(
            store=folder / "store", destinations=destinations, rules=rules, work=Work(attempts=attempts)
        )
        self.folder = stores.make_job(self.settings.store, JOB, instances=instances, **facts)
        self.network, self.now, self.stopping = Network(), 1_700_000_000.0, threading.Event()
        self.restart()

    def restart(self):
        self.work = work.SeriesWork(lambda: self.settings, self.network.peers(), clock=lambda: self.now)

    def drive(self, *stages, gos=100):
        todo, ended = list(stages or ("enhance",)), {}
        while todo and gos:
            gos -= 1
            stage = todo.pop(0)
            result = ended[stage] = self.work.go(JOB, stage, self.stopping)
            for task in result.then:
                self.now += task.pause
                todo.append(task.stage)
        assert gos, "it does not end"
        return ended

    @property
    def done(self):
        return (self.folder / "done.json").exists()

    def events(self):
        return [line["event"] for line in self.work.audit.events(JOB)]


@pytest.fixture
def enhanced(monkeypatch):
    """A fake enhancement: `enhanced.append(error)` for the next go to fail; its files are the derived ones."""
    errors = []

    def enhance(self, folder, made, settings, stopping):
        if errors:
            raise errors.pop(0)
        target = folder / "derived" / "s" / "t" / "9.dcm"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"derived")
        return {"enhanced": 1, "withheld": 1}, ["derived/s/t/9.dcm"]

    monkeypatch.setattr(enhancing.Enhancing, "_enhance", enhance)
    return errors


# ---------------------------------------------------------------- the whole way


def test_a_series_is_enhanced_sent_and_committed(tmp_path, enhanced):
    node = Node(tmp_path, rules=())
    ended = node.drive()
    assert {stage: result.state for stage, result in ended.items()} == {
        "enhance": "done", "to.archive": "done", "to.research": "done",
    }  # fmt: skip
    assert ended["to.archive"].say == "3 instances sent, 3 committed"
    assert sorted(node.network.got["archive"]) == ["0000-0.dcm", "0000-1.dcm", "9.dcm"]
    assert node.network.got["research"] == ["9.dcm"]
    assert node.network.asked == [["1.0", "1.1", "1.9"]]
    assert node.done
    assert node.events() == [
        "enhanced", "sent", "commitment asked", "committed", "delivered", "sent", "delivered", "done",
    ]  # fmt: skip
    assert verify(node.work.audit.path) is None


def test_going_at_a_finished_job_again_sends_nothing(tmp_path, enhanced):
    node = Node(tmp_path, rules=())
    node.drive()
    got, events = dict(node.network.got), node.events()
    node.restart()
    node.drive()
    assert (node.network.got, node.events()) == (got, events)


@pytest.mark.slow
def test_real_pictures_become_a_derived_series_and_a_repeat_writes_the_same_bytes(tmp_path, samples):
    from medenhance_dicom.node.settings import Enhancing as Options

    node = Node(tmp_path, instances=0, rules=())
    shutil.copy(samples / "study" / "us-abdomen.dcm", node.folder / "source" / "k.0.dcm")
    node.settings = node.settings.model_copy(update={"enhance": Options(recipe="us-clahe", device="cpu", gate="warn")})
    node.restart()
    assert node.drive()["enhance"].state == "done"
    ended = read_whole(node.folder / "enhanced.json")
    (derived,) = ended["derived"]
    assert node.network.got["research"] == [derived.split("/")[-1]]
    report = json.loads((node.folder / "run_report.json").read_text())
    assert report["counts"] == ended["counts"]
    before = (node.folder / derived).read_bytes()
    for path in (node.folder / derived, node.folder / "enhanced.json"):
        path.unlink()
    node.now += 3600
    node.restart()
    node.drive()
    assert (node.folder / derived).read_bytes() == before


# ---------------------------------------------------------------- what goes where


def test_derived_files_of_an_earlier_run_are_not_sent(tmp_path, enhanced):
    node = Node(tmp_path, rules=())
    stale = node.folder / "derived" / "s" / "t" / "8.dcm"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"withheld since")
    node.drive()
    assert "8.dcm" not in node.network.got["archive"] + node.network.got["research"]


def test_a_rule_passes_on_without_enhancing(tmp_path):
    node = Node(tmp_path)
    node.drive()
    assert node.network.got == {"archive": ["0000-0.dcm", "0000-1.dcm"]}
    assert node.done


def test_without_a_destination_a_job_is_done_once_it_is_enhanced(tmp_path, enhanced):
    node = Node(tmp_path, rules=(Rule(destinations=("archive",), Modality=("CT",)),))
    assert list(node.drive()) == ["enhance"]
    assert node.done


def test_what_we_made_goes_on_only_where_a_rule_says_so(tmp_path, enhanced, monkeypatch):
    monkeypatch.setattr(work, "_is_ours", lambda source: True)
    node = Node(tmp_path, rules=())
    assert list(node.drive()) == ["enhance"]
    assert node.network.got == {}
    other = Node(tmp_path / "other")
    other.drive()
    assert other.network.got["archive"]


def test_ours_is_told_by_the_equipment(tmp_path, samples):
    from pydicom import dcmread

    from medenhance_dicom.provenance import MANUFACTURER, MODEL_NAME

    source = tmp_path / "source"
    source.mkdir()
    assert not work._is_ours(source)
    instance = dcmread(samples / "study" / "us-abdomen.dcm")
    instance.save_as(source / "a.dcm")
    assert not work._is_ours(source)
    instance.Manufacturer, instance.ManufacturerModelName = MANUFACTURER, MODEL_NAME
    instance.save_as(source / "a.dcm")
    assert work._is_ours(source)
    (source / "a.dcm").write_bytes(b"broken")
    assert not work._is_ours(source)


def test_a_destination_that_was_taken_out_of_the_configuration_is_a_dead_letter(tmp_path):
    node = Node(tmp_path)
    node.work.go(JOB, "enhance", node.stopping)
    node.settings = node.settings.model_copy(update={"destinations": (), "rules": ()})
    result = node.work.go(JOB, "to.archive", node.stopping)
    assert (result.state, result.say) == ("failed", "the configuration has no destination of that name any more")
    assert not node.done
    assert node.events()[-1] == "dead letter"


def test_an_error_that_nobody_thought_of_is_a_dead_letter_that_names_no_patient(tmp_path):
    node = Node(tmp_path)
    node.network.says = [ZeroDivisionError("Doe^Jane")]
    ended = node.drive()["to.archive"]
    assert ended.state == "failed"
    (line,) = [line for line in node.work.audit.events(JOB) if line["event"] == "dead letter"]
    assert line["destination"] == "archive"
    assert line["why"] == ended.say
    assert ended.say.startswith("ZeroDivisionError at ")


# ---------------------------------------------------------------- failures


def test_an_unreachable_destination_is_tried_again_and_then_given_up(tmp_path):
    node = Node(tmp_path)
    node.network.says = [PeerError("not reachable")] * 3
    began = node.now
    ended = node.drive()
    assert ended["to.archive"].state == "failed"
    assert ended["to.archive"].say == "3 attempts; the last one: not reachable"
    assert node.now - began == 5 + 10
    assert node.events().count("not sent") == 3
    assert not node.done


def test_a_refusal_is_a_dead_letter_at_once(tmp_path):
    node = Node(tmp_path)
    node.network.says = [PeerError("calling AE title not recognized", permanent=True)]
    began = node.now
    assert node.drive()["to.archive"].say == "calling AE title not recognized"
    assert node.now == began


def test_a_retry_sends_only_the_rest(tmp_path):
    node = Node(tmp_path)
    node.network.says = [{"0000-1.dcm": (0xA700, "out of resources", False)}]
    assert node.drive()["to.archive"].state == "done"
    assert node.network.got["archive"] == ["0000-0.dcm", "0000-1.dcm"]
    assert node.network.asked == [["1.0", "1.1"]]


def test_one_refused_instance_is_visible_and_the_others_are_committed(tmp_path):
    node = Node(tmp_path)
    node.network.says = [{"0000-0.dcm": (0x0122, "SOP class not supported", True)}]
    ended = node.drive()
    assert ended["to.archive"].say == "1 instances refused; the last one: SOP class not supported"
    assert node.network.asked == [["1.1"]]
    assert not node.done


def test_batches_are_written_down_one_by_one(tmp_path, monkeypatch):
    monkeypatch.setattr(delivering, "BATCH", 2)
    node = Node(tmp_path, instances=5)
    node.network.says = [None, PeerError("broke off")]
    node.work.go(JOB, "enhance", node.stopping)
    assert node.work.go(JOB, "to.archive", node.stopping).state == "waiting"
    assert len(node.network.got["archive"]) == 2
    node.restart()
    node.now += 60
    node.drive("to.archive")
    assert sorted(node.network.got["archive"]) == [f"0000-{i}.dcm" for i in range(5)]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("CUDA out of memory")])
def test_a_failing_enhancement_is_tried_again_and_then_originals_go_on(tmp_path, enhanced, error):
    node = Node(tmp_path, rules=())
    enhanced += [error] * 3
    ended = node.drive()
    assert ended["enhance"].state == "failed"
    assert ended["enhance"].say.startswith("3 attempts; the last one: ")
    assert "CUDA" not in ended["enhance"].say
    assert node.network.got == {"archive": ["0000-0.dcm", "0000-1.dcm"]}
    assert not node.done


def test_missing_weights_need_a_person_and_a_retry_delivers_the_rest(tmp_path, enhanced):
    node = Node(tmp_path, rules=())
    enhanced.append(ModelError("no weights"))
    began = node.now
    ended = node.drive()
    assert (ended["enhance"].say, node.now) == ("no weights", began)
    assert node.network.got == {"archive": ["0000-0.dcm", "0000-1.dcm"]}
    control = Control(node.settings, clock=lambda: node.now)
    control.jobs.enqueue(JOB)
    assert "Originals are sent on all the same." not in "".join(control.why(JOB))  # the database knows no failure yet
    control.jobs.cancel(JOB)
    assert control.retry(JOB) == ["enhance"]
    control.close()
    assert node.drive("enhance", "to.research")["enhance"].state == "done"
    assert node.network.got["archive"] == ["0000-0.dcm", "0000-1.dcm", "9.dcm"]
    assert node.done


def test_a_job_is_not_done_while_one_destination_waits_for_what_a_retry_made(tmp_path, enhanced):
    node = Node(tmp_path, rules=())
    enhanced.append(ModelError("no weights"))
    node.drive()
    control = Control(node.settings)
    assert control.retry(JOB) == ["enhance"]  # it was never queued
    control.close()
    assert not node.done
    node.work.go(JOB, "enhance", node.stopping)
    node.work.go(JOB, "to.research", node.stopping)
    assert not node.done
    node.work.go(JOB, "to.archive", node.stopping)
    assert node.done


def test_a_picture_that_kills_every_worker_does_not_do_so_for_ever(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def die(*arguments):
        raise Killed

    monkeypatch.setattr(enhancing.Enhancing, "_enhance", die)
    node = Node(tmp_path, rules=())
    for _ in range(3):
        with pytest.raises(Killed):
            node.work.go(JOB, "enhance", node.stopping)
    ended = node.drive()
    assert ended["enhance"].say == "3 attempts; the last one: the worker died"
    assert len(node.network.got["archive"]) == 2


def test_stopping_is_no_failure(tmp_path, monkeypatch):
    def stop(self, folder, made, settings, stopping):
        raise enhancing._StoppedError

    monkeypatch.setattr(enhancing.Enhancing, "_enhance", stop)
    node = Node(tmp_path, rules=())
    for _ in range(5):
        result = node.work.go(JOB, "enhance", node.stopping)
        assert (result.state, result.then) == ("waiting", (("enhance", 0.0, 0),))
    node.stopping.set()
    assert node.work.go(JOB, "to.archive", node.stopping).then == (("to.archive", 0.0, 0),)
    assert node.network.got == {}


def test_a_full_disk_is_waited_for(tmp_path, monkeypatch):
    node = Node(tmp_path)
    node.work.go(JOB, "enhance", node.stopping)

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(delivering, "write_lines", full)
        result = node.work.go(JOB, "to.archive", node.stopping)
        assert (result.state, result.say) == ("waiting", "the disk: No space left on device")
    node.drive("to.archive")
    assert node.done


def test_what_the_machine_lost_of_an_archives_job_is_found_in_the_folder(tmp_path, enhanced):
    node = Node(tmp_path, rules=(), destinations=(Destination(name="out", folder=tmp_path / "out"),))
    way = {"archive": True, "priority": 10, "enhance": True, "made": 0.0, "destinations": ["out"]}
    (node.folder / "plan.json").write_text(json.dumps(way))
    node.drive()
    assert node.done
    shutil.rmtree(node.folder / "sent")  # it was not on the disk when the machine ended
    (node.folder / "done.json").unlink()
    enhanced.append(AssertionError("it is enhanced twice"))
    assert node.drive()["enhance"].state == "done"
    assert node.done
    assert node.events() == ["enhanced", "sent", "delivered", "done", "sent", "delivered", "done"]


def test_a_stage_that_another_worker_is_at_is_left_alone(tmp_path):
    node = Node(tmp_path)
    with locked(node.folder / ".enhance.lock") as free:
        assert free
        result = node.work.go(JOB, "enhance", node.stopping)
        assert (result.say, result.then) == ("another worker is at it", (("enhance", 5.0, 0),))
    assert node.work.go(JOB, "enhance", node.stopping).state == "done"


def test_a_job_that_is_gone_or_given_up_is_left_alone(tmp_path):
    node = Node(tmp_path)
    (node.folder / "cancelled").touch()
    assert node.work.go(JOB, "enhance", node.stopping).state == "cancelled"
    shutil.rmtree(node.folder)
    assert node.work.go(JOB, "enhance", node.stopping).state == "cancelled"


# ---------------------------------------------------------------- commitment


def test_a_late_report_is_taken_when_it_comes(tmp_path):
    node = Node(tmp_path)
    node.network.commits = None
    node.work.go(JOB, "enhance", node.stopping)
    first = node.work.go(JOB, "to.archive", node.stopping)
    assert (first.state, first.then) == ("waiting", (("to.archive", 1.0, 0),))
    assert not node.done
    transaction = read_ledger(ledger_path(node.folder, "archive")).transaction
    node.network.reports[transaction] = Commitment(frozenset({"1.0", "1.1"}), {})
    node.drive("to.archive")
    assert node.done
    assert len(node.network.asked) == 1


def test_what_is_not_committed_is_sent_and_asked_for_again(tmp_path):
    node = Node(tmp_path)
    node.network.commits = [
        Commitment(frozenset({"1.0"}), {"1.1": "no such instance"}), Commitment(frozenset({"1.1"}), {}),
    ]  # fmt: skip
    node.drive()
    assert node.network.got["archive"] == ["0000-0.dcm", "0000-1.dcm", "0000-1.dcm"]
    assert node.network.asked == [["1.0", "1.1"], ["1.1"]]
    assert node.done


def test_a_report_that_never_comes_ends_in_a_dead_letter(tmp_path):
    node = Node(tmp_path, destinations=(ARCHIVE.model_copy(update={"commit_seconds": 20.0}),))
    node.network.commits = None
    ended = node.drive()
    assert ended["to.archive"].say == "3 attempts; the last one: no report in time"
    assert len(node.network.asked) == 3
    assert node.network.got["archive"] == ["0000-0.dcm", "0000-1.dcm"]
    assert not node.done


def test_a_peer_without_the_service_is_a_dead_letter_at_once(tmp_path):
    node = Node(tmp_path)
    node.network.commits = PeerError("it does not offer Storage Commitment", permanent=True)
    assert node.drive()["to.archive"].say == "it does not offer Storage Commitment"
    node = Node(tmp_path / "2")
    node.network.commits = PeerError("not reachable")
    assert node.drive()["to.archive"].say == "3 attempts; the last one: not reachable"


# ---------------------------------------------------------------- what a person sees


@pytest.fixture
def control(tmp_path):
    node = Node(tmp_path, rules=())
    made = Control(node.settings, clock=lambda: node.now)
    made.node = node
    made.jobs.enqueue(JOB)
    yield made
    made.close()


def test_why_tells_what_happened_in_sentences(control, enhanced):
    node = control.node
    node.network.says = [PeerError("not reachable")]
    node.drive()
    said = control.why(JOB[:8])
    assert said[0] == "CT1 sent 2 instances of OP."
    assert said[1].endswith("Z Enhanced: 1 enhanced, 1 withheld.")
    assert said[2].endswith("Z archive did not take anything: not reachable.")
    assert any(line.endswith("Z archive committed 3 instances.") for line in said)
    assert any(line.endswith("Z It is done.") for line in said)
    assert said[-1] == "Its files stay here until retention removes them."
    assert not control.cancel(JOB)
    assert control.retry(JOB) == []


@pytest.mark.slow
def test_what_was_withheld_is_named_kept_beside_the_jobs_and_goes_after_its_days(tmp_path, samples, monkeypatch):
    from medenhance_dicom import selection
    from medenhance_dicom.node.settings import Enhancing as Options

    strict = [
        r.model_copy(update={"gate": r.gate.model_copy(update={"minimum": 1.0})}) for r in selection.load_recipes()
    ]
    monkeypatch.setattr(selection, "load_recipes", lambda: strict)
    node = Node(tmp_path, instances=0, rules=())
    shutil.copy(samples / "study" / "us-abdomen.dcm", node.folder / "source" / "k.0.dcm")
    node.settings = node.settings.model_copy(update={"enhance": Options(device="cpu")})
    node.restart()
    node.drive()
    control = Control(node.settings, clock=lambda: node.now)
    try:
        control.jobs.enqueue(JOB)
        (shown,) = control.show(JOB)["withheld"]
        said = control.why(JOB)
        kept = node.settings.store / "withheld" / JOB / Path(shown["kept"]).name
        assert shown["kept"] == str(kept)
        assert kept.is_file()
        assert shown["reason"].startswith("LASSIM: structure changed")
        assert f"k.0.dcm was withheld: {shown['reason']}." in said
        assert f"Look at it: `medenhance-dicom compare {shown['source']} {kept} --html PAGE`." in said
        assert node.network.got.keys() <= {"archive"}  # nothing derived is there to be sent
        spool, retention = Spool(node.settings.store), Retention(keep_days=1000)
        for days, there in ((29, True), (31, False)):
            sweep(spool, control.jobs, node.work.audit, retention, now=node.now + days * 86400)
            assert kept.parent.exists() == there
        assert control.show(JOB)["withheld"] == [shown | {"kept": None}]
    finally:
        control.close()


def test_list_and_show(control, enhanced):
    (listed,) = control.all()
    assert (listed["job"], listed["state"], listed["Modality"]) == (JOB, "queued", "OP")
    control.node.drive()
    shown = control.show(JOB)
    assert shown["counts"] == {"enhanced": 1, "withheld": 1}
    assert shown["destinations"]["archive"] == {
        "sent": 3, "refused": 0, "committed": 3, "failures": 0, "finished": True,
    }  # fmt: skip
    assert "Enhancement waits for a worker that is free." in control.why(JOB)
    with pytest.raises(KeyError):
        control.show("unknown")
    with pytest.raises(KeyError):
        control.why("../../etc")


def test_cancel_marks_the_folder_and_retry_unmarks_it(control):
    assert control.cancel(JOB)
    assert control.all()[0]["state"] == "cancelled"
    assert control.node.work.go(JOB, "enhance", threading.Event()).state == "cancelled"
    assert control.why(JOB)[-1].startswith("`jobs retry 00000000` takes it up again.")
    assert control.retry(JOB) == ["enhance"]
    assert not (control.node.folder / "cancelled").exists()
    assert control.all()[0]["state"] == "queued"
    assert control.retry(JOB) == []  # it is about to be gone at anyway
    assert [line["event"] for line in Audit(control.node.work.audit.path).events(JOB)] == ["cancelled", "retried"]


def test_a_retry_goes_by_the_rules_as_they_are_now(tmp_path):
    node = Node(tmp_path, rules=(Rule(destinations=("research",), enhance=False),))
    node.network.says = [PeerError("no", permanent=True)]
    node.settings = node.settings.model_copy(update={"rules": (Rule(destinations=("archive",), enhance=False),)})
    node.network.says = [PeerError("no", permanent=True)]
    node.drive()
    made = read_whole(node.folder / "plan.json")["made"]
    control = Control(node.settings)
    control.jobs.enqueue(JOB)
    control.jobs.cancel(JOB)
    node.settings = node.settings.model_copy(update={"rules": (Rule(destinations=("archive", "research")),)})
    control.retry(JOB)
    control.close()
    node.now += 100
    node.restart()
    node.work.go(JOB, "enhance", node.stopping)
    assert read_whole(node.folder / "plan.json") == {
        "destinations": ["archive", "research"], "enhance": True, "made": made,
    }  # fmt: skip


def test_what_no_rule_sends_is_kept_until_one_does(tmp_path, enhanced):
    node = Node(tmp_path, rules=(Rule(calling=("SOMEBODY",), destinations=("archive",)),))
    node.drive()
    assert node.done
    control, spool = Control(node.settings), Spool(node.settings.store)
    control.jobs.enqueue(JOB)
    assert sweep(spool, control.jobs, node.work.audit, Retention(keep_days=0, maximum_bytes=1), now=node.now + 1) == []
    node.settings = node.settings.model_copy(update={"rules": PASS_ON})
    control.jobs.cancel(JOB)
    assert control.retry(JOB) == ["enhance"]
    node.drive()
    assert node.network.got["archive"] == ["0000-0.dcm", "0000-1.dcm", "9.dcm"]
    assert sweep(spool, control.jobs, node.work.audit, Retention(keep_days=0), now=node.now + 1) == [JOB]
    control.close()


def test_why_tells_of_other_bytes_that_were_set_aside(control, enhanced):
    control.node.drive()
    folder = control.node.settings.store / "conflicts"
    folder.mkdir()
    source = next((control.node.folder / "source").iterdir())
    for name in (f"{source.name.split('.')[0]}.0123456789abcdef.dcm", "another.0123456789abcdef.dcm"):
        (folder / name).touch()
    assert any(line.startswith("1 instances came again with other bytes") for line in control.why(JOB))


def test_a_lost_database_is_made_again_from_the_folders(control, enhanced):
    control.node.drive()
    control.jobs.forget([JOB])
    assert control.all() == []
    assert control.why(JOB)[1].startswith("It is not queued.")
    (control.node.folder / "done.json").unlink()
    assert control.retry(JOB) == ["enhance"]
    got = dict(control.node.network.got)
    control.node.drive()
    assert control.node.network.got == got
    assert control.node.done


def test_settings_are_read_anew_and_a_broken_file_changes_nothing(tmp_path):
    config = tmp_path / "node.toml"
    config.write_text('store = "store"\n[work]\nattempts = 3\n')
    read = work.settings_reader(partial(load_settings, config))
    config.write_text('store = "elsewhere"\n[work]\nattempts = 4\n')
    assert read().work.attempts == 4
    assert read().store == tmp_path / "store"
    config.write_text("attempts = ")
    assert read().work.attempts == 4


# ---------------------------------------------------------------- retention


DAY = 86400.0


@pytest.mark.parametrize(
    ("budget", "days", "gone"),
    [
        (None, 7.0, ["old"]),
        (None, 100.0, []),
        (None, 0.0, ["old", "b", "a"]),
        (150, 7.0, ["old"]),
        (149, 100.0, ["old", "b"]),
        (119, 100.0, ["old", "b", "a"]),
        (10, 100.0, ["old", "b", "a"]),  # more than the budget is unfinished: that stays
        (250, 100.0, []),
    ],
)
def test_what_may_be_removed(budget, days, gone):
    now = 1_700_000_000.0
    kept = [
        Kept("a", now - 1 * DAY, 20),
        Kept("open", None, 100),
        Kept("old", now - 8 * DAY, 100),
        Kept("b", now - 2 * DAY, 30),
    ]
    assert removable(kept, Retention(keep_days=days, maximum_bytes=budget), now=now) == gone


def test_the_sweep_removes_a_finished_job_with_its_links_and_nothing_else(tmp_path, samples):
    node = Node(tmp_path)
    spool = Spool(node.settings.store)
    jobs = Jobs(sqlite_url(node.settings.store / "node.sqlite"))
    for name in (JOB, "1" * 32):
        jobs.enqueue(name)
    open_job = stores.make_job(node.settings.store, "1" * 32)
    for folder in (node.folder, open_job):
        for path in (folder / "source").iterdir():
            held = node.settings.store / "held" / path.name[:2] / f"{path.stem}.dcm"
            held.parent.mkdir(exist_ok=True)
            held.hardlink_to(path)
    node.drive()
    now = node.now + 8 * DAY
    assert sweep(spool, jobs, node.work.audit, Retention(keep_days=9), now=now) == []
    assert sweep(spool, jobs, node.work.audit, Retention(), now=now) == [JOB]
    assert not node.folder.exists()
    assert [path.name for path in node.settings.store.glob("held/*/*")] == ["1111-0.dcm"]
    assert [job.job for job in jobs.all()] == ["1" * 32]
    assert open_job.exists()
    jobs.close()


@pytest.mark.parametrize("left", [("done.json",), ("done.json", "job.json", "source")])
def test_a_removal_that_was_killed_is_ended_by_the_next_sweep(tmp_path, left):
    node = Node(tmp_path)
    node.drive()
    for path in list(node.folder.iterdir()):
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    spool, jobs = Spool(node.settings.store), Jobs(sqlite_url(node.settings.store / "node.sqlite"))
    assert sweep(spool, jobs, node.work.audit, Retention(keep_days=0), now=node.now + 1) == [JOB]
    assert not node.folder.exists()
    jobs.close()


def test_the_sweep_drops_what_killed_writers_left(tmp_path):
    node = Node(tmp_path)
    store = node.settings.store
    (store / "commitments" / "asked").mkdir(parents=True)
    left = [store / "commitments" / ".x.part", store / "commitments" / "asked" / ".x.part", node.folder / ".x.part"]
    left.append(node.folder / "derived" / "study" / "series" / ".x.dcm.part")
    left[-1].parent.mkdir(parents=True)
    for path in (*left, node.folder / ".y.part"):
        path.touch()
    now = left[0].stat().st_mtime
    for path in left:
        os.utime(path, (now - 7200, now - 7200))
    jobs = Jobs(sqlite_url(store / "node.sqlite"))
    sweep(Spool(store), jobs, node.work.audit, Retention(), now=now)
    jobs.close()
    assert [path.name for path in store.rglob("*.part")] == [".y.part"]
