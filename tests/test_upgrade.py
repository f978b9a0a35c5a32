"""What an earlier release was stopped in the middle of, this one finishes: once, and for the right patient.

The store is made by `old_store`, which says what is in it.
"""

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import threading
from collections import Counter
from pathlib import Path

import pydicom
import pytest

from medenhance_dicom.archive import planning, reporting
from medenhance_dicom.archive.plan import Plan
from medenhance_dicom.archive.running import Coordinator, Request
from medenhance_dicom.audit import verify
from medenhance_dicom.identity import replaced_uid
from medenhance_dicom.jobs import Jobs, sqlite_url
from medenhance_dicom.node.identity import read_identity
from medenhance_dicom.node.retention import sweep
from medenhance_dicom.node.settings import Retention, load_settings
from medenhance_dicom.node.spool import Spool
from medenhance_dicom.node.work import SeriesWork, network_peers
from medenhance_dicom.part10 import read_instance
from medenhance_dicom.sop_classes import policy
from medenhance_dicom.verify import check_file
from tests import archives
from tests.waiting import wait_until

STORE = Path(__file__).with_name("data") / "old_store.tar.xz"
INSTANCES = 2


@pytest.fixture
def old(tmp_path):
    """The store, as if it had been made here."""
    with tarfile.open(STORE) as tar:
        tar.extractall(tmp_path, filter="fully_trusted")
    before, here = (tmp_path / "made-in").read_text(), str(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_symlink():
            there = str(path.readlink()).replace(before, here)
            path.unlink()
            path.symlink_to(there)
        elif path.suffix in (".json", ".jsonl"):
            text = path.read_text()
            if before in text:
                path.write_text(text.replace(before, here))
    with contextlib.closing(sqlite3.connect(tmp_path / "plan" / "plan.sqlite")) as plan, plan:
        for table, column in (("source", "name"), ("instance", "locator")):
            plan.execute(f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (before, here))
    return tmp_path


def delivered(folder):
    """Source -> derived files, whole and of the source's patient."""
    found = {}
    for path in sorted(folder.rglob("*.dcm")):
        assert check_file(path) == [], path
        derived = pydicom.dcmread(path)
        source = derived.SourceImageSequence[0].ReferencedSOPInstanceUID
        number = source.split(".")[-2]
        assert derived.PatientName == f"Test^{number}"
        assert derived.PatientID == f"T{number}"
        assert derived.StudyInstanceUID == f"1.2.826.0.1.9999.1.{number}"
        found.setdefault(source, []).append(path.relative_to(folder))
    assert not [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".dcm"]
    return found


def assert_each_once(folder, series, before):
    """All instances of all series, and what was there before as it was."""
    found = delivered(folder)
    assert sorted(found) == [f"1.2.826.0.1.9999.3.{s}.{n + 1}" for s in series for n in range(INSTANCES)]
    assert {len(paths) for paths in found.values()} == {1}
    assert Counter(len(list(study.iterdir())) for study in folder.iterdir()) == {1: len(series)}  # one derived series
    assert {path: (folder / path).read_bytes() for path in before} == before


def bytes_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.dcm")}


def test_derived_objects_of_an_earlier_release_are_ours_and_whole(old):
    sources = {str(read_instance(path).SOPInstanceUID): [path] for path in (old / "objects" / "source").iterdir()}
    derived = sorted((old / "objects" / "derived").rglob("*.dcm"))
    images = {str(read_instance(path).SOPInstanceUID): [path] for path in derived}
    assert len(derived) == 8
    for path in derived:
        assert check_file(path, sources | images) == [], path
        if read_instance(path).Modality != "SR":
            assert policy(read_instance(path), frozenset()).reason == "OWN_DERIVED"


def test_a_damaged_object_of_an_earlier_release_is_found(old):
    for path in (old / "node" / "out").rglob("*.dcm"):
        data = bytearray(path.read_bytes())
        data[-9] ^= 0x55
        path.write_bytes(data)
        assert check_file(path) == ["PixelData: not the pixels whose digest was recorded"]


def finish(job, work, stages=("enhance",)):
    """Go at what follows until nothing does."""
    todo = list(stages)
    while todo:
        result = work.go(job, todo.pop(0), threading.Event())
        assert result.state in ("done", "waiting"), result
        todo += [task.stage for task in result.then]


@pytest.mark.slow
def test_the_jobs_of_a_node_end_by_hand(old):
    node = old / "node"
    before, settings = bytes_of(node / "out"), load_settings(node / "node.toml")
    half = sorted(path.name for path in (node / "store" / "jobs").rglob("derived/1.2.826.0.1.9999.1.4/*/*.dcm"))
    assert (len(before), len(half)) == (3, 1)
    spool = Spool(settings.store)
    spool.reconcile()
    (pending,) = spool.pending()
    sealed = spool.seal(pending.key, partial=False)
    jobs = json.loads((node / "jobs.json").read_text())
    work = SeriesWork(lambda: settings, network_peers(settings.store))
    finish(jobs["2"], work, ["to.folder"])
    for job in [*jobs.values(), sealed.job_id]:
        finish(job, work)
        assert (settings.store / "jobs" / job / "done.json").exists()
    assert_each_once(node / "out", range(1, 7), before)
    assert verify(settings.store / "audit" / "audit.jsonl") is None


def corrected(path, target=None):
    """A file, with another patient's name; returns the SOP Instance UID."""
    instance = pydicom.dcmread(path)
    instance.PatientName = "Test^Corrected"
    instance.save_as(target or path)
    return instance.SOPInstanceUID


def replacement(folder, source):
    """What the object that was made of a corrected source says that it replaces."""
    headers = [read_instance(path) for path in folder.rglob("*.dcm")]
    of_it = [one for one in headers if one.SourceImageSequence[0].ReferencedSOPInstanceUID == source]
    (made,) = (one for one in of_it if one.PatientName == "Test^Corrected")
    assert replaced_uid(made) in {one.SOPInstanceUID for one in headers}
    return replaced_uid(made)


@pytest.mark.slow
def test_what_is_corrected_in_a_node_names_the_object_of_the_earlier_release(old):
    node = old / "node"
    settings = load_settings(node / "node.toml")
    before = {uid: paths[0].stem for uid, paths in delivered(node / "out").items()}
    spool, work = Spool(settings.store), SeriesWork(lambda: settings, network_peers(settings.store))
    with contextlib.closing(Jobs(sqlite_url(settings.store / "node.sqlite"))) as queue:
        sweep(spool, queue, work.audit, Retention(keep_days=0), now=2e10)
    part = spool.new_part()
    source = corrected(old / "archive" / "1" / "1-0.dcm", part)
    accepted = spool.accept(part, read_identity(part), calling_ae="CR1", called_ae="US")
    finish(spool.seal(accepted.series_key, partial=False).job_id, work)
    assert replacement(node / "out", source) == before[source]


@pytest.mark.slow
def test_what_is_corrected_in_an_archive_names_the_object_of_the_earlier_release(old):
    before = {uid: paths[0].stem for uid, paths in delivered(old / "enhanced").items()}
    archives.make_plan(old / "plan", old / "archive")
    source = corrected(old / "archive" / "1" / "1-0.dcm")
    archives.make_plan(old / "plan", old / "archive")
    settings = load_settings(old / "plan" / "node.toml")
    with Plan(old / "plan") as plan:
        request = Request(output=old / "enhanced", workers=0)
        coordinator = Coordinator(plan, settings, request, config=old / "plan" / "node.toml")
        coordinator.step()
        coordinator.close()
        (job,) = (row.id for row in plan.jobs() if row.series == 1)
    finish(job, SeriesWork(lambda: settings, network_peers(settings.store)))
    assert replacement(old / "enhanced", source) == before[source]


@pytest.mark.slow
def test_the_queue_of_a_node_is_worked_on(old):
    node = old / "node"
    before, settings = bytes_of(node / "out"), load_settings(node / "node.toml")
    jobs = json.loads((node / "jobs.json").read_text())
    worker = subprocess.Popen([sys.executable, "-m", "medenhance_dicom", "worker", str(node / "node.toml")])
    try:
        wait_until(lambda: all((settings.store / "jobs" / job / "done.json").exists() for job in jobs.values()))
    finally:
        worker.terminate()
        assert worker.wait(60) == 0
    assert_each_once(node / "out", range(1, 6), before)
    with contextlib.closing(Jobs(sqlite_url(settings.store / "node.sqlite"))) as queue:
        assert {job.job: job.state for job in queue.all()} == dict.fromkeys(jobs.values(), "done")
    assert verify(settings.store / "audit" / "audit.jsonl") is None


def test_a_plan_opens_and_has_what_was_done(old):
    with Plan(old / "plan", readonly=True) as plan:  # and is left as it is
        results = Counter(row["result"] for row in reporting.files(plan))
        assert results == {"enhanced": 2, "open": 8}
        assert not plan.has_headers
    with Plan(old / "plan") as plan:
        assert plan.meta("judged by") == planning.judged_by(plan)  # or all of it would be done again
        counts = plan.counts()
        assert (counts["instances"], counts["open_series"], counts["open_instances"]) == (10, 4, 8)
        assert counts["results"] == {"enhanced": 2}
        assert [job.state for job in plan.jobs()] == ["open"] * 3


@pytest.mark.slow
def test_a_plan_knows_what_was_done_where_it_moved_to_and_what_is_corrected(old):
    archives.make_plan(old / "plan", old / "archive")
    assert archives.counts(old / "plan")["open_instances"] == 8
    (old / "archive").rename(old / "moved")
    (old / "archive").mkdir()
    shutil.copytree(old / "moved" / "5", old / "archive" / "5")
    archives.make_plan(old / "plan", old / "moved")
    assert archives.counts(old / "plan")["open_instances"] == 8
    corrected(old / "moved" / "1" / "1-0.dcm")
    archives.make_plan(old / "plan", old / "moved")
    assert archives.counts(old / "plan")["open_instances"] == 9
    with Plan(old / "plan", readonly=True) as plan:
        assert len(list(plan.query("SELECT derived FROM corrected WHERE derived IS NOT NULL"))) == 1


def test_a_plan_of_which_a_file_was_corrected_before_it_was_planned_again(old):
    corrected(old / "archive" / "1" / "1-0.dcm")
    archives.make_plan(old / "plan", old / "archive")
    assert archives.counts(old / "plan")["open_instances"] == 9


@pytest.mark.slow
@pytest.mark.parametrize("again", [False, True], ids=["run", "planned-and-run"])
def test_a_plan_is_run_to_its_end(old, again):
    before = bytes_of(old / "enhanced")
    if again:
        archives.make_plan(old / "plan", old / "archive")
    done = archives.run(old / "plan", old / "enhanced")
    assert done.returncode == 0, done.stderr
    archives.assert_done(old / "plan", 5)
    assert_each_once(old / "enhanced", range(1, 6), before)
    assert archives.run(old / "plan", old / "enhanced").returncode == 0
    assert_each_once(old / "enhanced", range(1, 6), before)
