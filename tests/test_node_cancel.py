"""A cancelled job lets go of its instances: sent again they make another job, and nothing of either is lost."""

from __future__ import annotations

import json
import threading

import pytest
import typer
from typer.testing import CliRunner

from medenhance_dicom.audit import Audit
from medenhance_dicom.jobs import ENHANCE, Jobs
from medenhance_dicom.node import control as controlling
from medenhance_dicom.node.commands import add_to
from medenhance_dicom.node.commit import verify_held
from medenhance_dicom.node.control import Control, database_of
from medenhance_dicom.node.identity import read_identity
from medenhance_dicom.node.index import Index
from medenhance_dicom.node.jobfolder import locked
from medenhance_dicom.node.metrics import unfinished
from medenhance_dicom.node.retention import sweep
from medenhance_dicom.node.settings import NodeSettings, Retention, load_settings
from medenhance_dicom.node.spool import Fate, Spool
from medenhance_dicom.node.work import SeriesWork, network_peers


class Node:
    """A spool, its jobs, and one sender of the sample's CT series."""

    def __init__(self, settings: NodeSettings, pictures):
        self.settings, self.pictures = settings, pictures
        self.spool = Spool(settings.store)
        self.jobs = Jobs(database_of(settings))
        self.control = Control(settings)
        identities = [read_identity(path) for path in pictures]
        self.pairs = [(identity.sop_class, identity.sop_instance) for identity in identities]

    def send(self, pictures=None):
        fates = []
        for picture in pictures or self.pictures:
            part = self.spool.new_part()
            part.write_bytes(picture.read_bytes())
            accepted = self.spool.accept(part, read_identity(part), calling_ae="CT1", called_ae="NODE")
            fates.append(accepted.fate)
        return fates

    def seal(self):
        (series,) = self.spool.pending()
        sealed = self.spool.seal(series.key, partial=False)
        self.jobs.enqueue(sealed.job_id)
        return sealed

    def restart(self):
        self.spool = Spool(self.settings.store)
        self.spool.reconcile()

    def held(self):
        return [held.sop_instance for held in Index(self.spool).instances({})]

    def go(self, job):
        work = SeriesWork(lambda: self.settings, network_peers(self.settings.store))
        return work.go(job, ENHANCE, threading.Event()).state


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "node.toml"
    path.write_text('store = "store"\n[listener]\nreserve_bytes = 0\n')
    return path


@pytest.fixture
def node(config, samples):
    made = Node(load_settings(config), sorted((samples / "study" / "ct").iterdir())[:2])
    yield made
    made.control.close()
    made.jobs.close()


STORED, DUPLICATE = [Fate.STORED] * 2, [Fate.DUPLICATE] * 2


def bytes_of(folder):
    return sorted(path.read_bytes() for path in folder.glob("*.dcm"))


@pytest.mark.parametrize("restarts", [False, True])
def test_the_same_instances_make_another_job_after_a_cancel(node, restarts):
    assert node.send() == STORED
    first = node.seal()
    assert node.send() == DUPLICATE
    assert len(node.held()) == 2
    assert node.control.cancel(first.job_id)
    assert node.control.may_come_again(first.job_id)
    if restarts:
        node.restart()
    assert node.held() == []
    assert verify_held(node.spool, node.pairs) == dict.fromkeys(node.pairs, 0x0112)
    assert node.send() == STORED
    second = node.seal()
    assert second.job_id != first.job_id
    if restarts:
        node.restart()
    assert [job.job_id for job in node.spool.jobs()] == [second.job_id]
    assert list(unfinished(node.settings.store)) == [second.job_id]
    assert bytes_of(second.source) == bytes_of(first.folder / "given_up" / "source")
    assert len(bytes_of(second.source)) == 2
    assert verify_held(node.spool, node.pairs) == dict.fromkeys(node.pairs, 0)
    assert len(node.held()) == 2
    assert node.send() == DUPLICATE
    states = {job["job"]: job["state"] for job in node.control.all()}
    assert states == {first.job_id: "cancelled", second.job_id: "queued"}
    assert node.go(first.job_id) == "cancelled"


def test_a_power_cut_that_loses_the_new_links_loses_no_instance_of_the_new_job(node):
    node.send()
    first = node.seal()
    node.control.cancel(first.job_id)
    node.send()
    second = node.seal()
    whole = bytes_of(second.source)
    for link in (node.settings.store / "held").glob("*/*.dcm"):
        link.unlink()
    node.restart()
    assert bytes_of(second.source) == bytes_of(first.folder / "given_up" / "source") == whole
    assert node.send() == DUPLICATE


def test_a_cancelled_job_is_taken_up_again(node):
    node.send()
    job = node.seal()
    before = bytes_of(job.source)
    node.control.cancel(job.job_id)
    assert not job.source.exists()
    assert "The same instances, sent again, make another job." in node.control.why(job.job_id)
    assert node.control.retry(job.job_id) == [ENHANCE]
    assert bytes_of(job.source) == before
    assert sorted(path.name for path in job.folder.iterdir()) == ["job.json", "source"]
    assert node.send() == DUPLICATE
    node.restart()
    assert bytes_of(job.source) == before
    assert not node.control.may_come_again(job.job_id)
    assert verify_held(node.spool, node.pairs) == dict.fromkeys(node.pairs, 0)


@pytest.mark.parametrize("sealed", [False, True])
def test_what_came_again_is_not_taken_up_twice(node, sealed):
    node.send()
    first = node.seal()
    node.control.cancel(first.job_id)
    node.send(node.pictures[1:])
    if sealed:
        node.seal()
    assert node.control.retry(first.job_id) == []
    assert node.control.why(first.job_id)[-1] == "1 of its instances were sent again, and go on in a job of their own."
    assert (first.folder / "cancelled").exists()
    assert len(bytes_of(first.folder / "given_up" / "source")) == 2
    assert node.send() == [Fate.STORED, Fate.DUPLICATE]  # the other one is still nobody's


def test_while_a_step_runs_its_files_stay_where_they_are(node, monkeypatch):
    monkeypatch.setattr(controlling, "_STEP_SECONDS", 0.2)
    node.send()
    job = node.seal()
    with locked(job.folder / ".enhance.lock"):
        assert node.control.cancel(job.job_id)
        assert not node.control.may_come_again(job.job_id)
        assert len(bytes_of(job.source)) == 2
        assert any(line.startswith("A step of it was running") for line in node.control.why(job.job_id))
    assert node.send() == DUPLICATE
    assert node.control.cancel(job.job_id)
    assert node.send() == STORED


def test_a_cancel_that_was_cut_off_is_ended_by_the_next(node, monkeypatch):
    node.send()
    job = node.seal()

    def killed(self, job):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Spool, "forget", killed)
        with pytest.raises(KeyboardInterrupt):
            node.control.cancel(job.job_id)
    assert node.send() == DUPLICATE
    assert node.control.cancel(job.job_id)
    assert node.send() == STORED


def test_a_job_that_was_never_queued_can_be_cancelled_and_retried(node):
    node.send()
    job = node.seal()
    node.jobs.forget([job.job_id])
    assert node.control.cancel(job.job_id)
    assert node.send() == STORED
    assert node.go(job.job_id) == "cancelled"


def test_retention_leaves_cancelled_jobs_alone(node):
    node.send()
    job = node.seal()
    node.control.cancel(job.job_id)
    audit = Audit(node.settings.store / "audit" / "audit.jsonl")
    assert sweep(node.spool, node.jobs, audit, Retention(keep_days=0, maximum_bytes=1), now=4e9) == []
    assert len(bytes_of(job.folder / "given_up" / "source")) == 2


def test_the_command_says_whether_a_step_still_runs(node, config, monkeypatch):
    monkeypatch.setattr(controlling, "_STEP_SECONDS", 0.1)
    app = typer.Typer()
    add_to(app)

    def run(*words):
        return CliRunner().invoke(app, ["jobs", *words, "-c", str(config)])

    node.send()
    job = node.seal().job_id
    with locked(node.settings.store / "jobs" / job / ".enhance.lock"):
        assert "a step of it still runs" in run("cancel", job[:8]).stderr
    assert run("cancel", job[:8]).stderr == f"{job[:8]}  cancelled\n"
    node.send()
    answer = run("retry", job[:8], "--json")
    assert (answer.exit_code, json.loads(answer.stdout)) == (3, {job[:8]: []})
    assert "see `jobs why`" in answer.stderr


def test_status_tells_how_much_was_set_aside(node, config):
    (node.settings.store / "conflicts" / "a.dcm").write_bytes(b"x" * 2_000_000)
    app = typer.Typer()
    add_to(app)
    answer = json.loads(CliRunner().invoke(app, ["node", "status", str(config), "--json"]).stdout)
    assert (answer["conflicts"], answer["quarantine"]) == (1, 0)
    assert answer["conflicts_gigabytes"] == pytest.approx(0.002, abs=1e-3)
    assert answer["quarantine_gigabytes"] == 0
