"""A source that is corrected makes a new object in a node and in an archive, which names the one that it replaces."""

import json
import shutil
import threading

import pydicom
import pytest

from medenhance_dicom.identity import replaced_uid
from medenhance_dicom.jobs import Jobs, sqlite_url
from medenhance_dicom.node.identity import read_identity
from medenhance_dicom.node.retention import sweep
from medenhance_dicom.node.settings import Destination, Enhancing, NodeSettings, Retention
from medenhance_dicom.node.spool import Fate, Spool
from medenhance_dicom.node.work import SeriesWork, network_peers
from medenhance_dicom.verify import check_file
from tests.synthetic import make_file

STUDY, SERIES, SOURCE = (f"1.2.826.0.1.9999.{n}.1" for n in (1, 2, 3))


class Node:
    """A store, driven by hand, whose destination is a folder."""

    def __init__(self, folder, **enhance):
        self.folder, self.out = folder, folder / "out"
        self.settings = NodeSettings(
            store=folder / "store",
            destinations=(Destination(name="folder", folder=self.out, send="derived"),),
            enhance=Enhancing(recipe="identity", device="cpu") if not enhance else Enhancing(**enhance),
        )
        self.spool = Spool(self.settings.store)
        self.work = SeriesWork(lambda: self.settings, network_peers(self.settings.store))

    def receive(self, **attributes):
        """What becomes of an instance, and its series."""
        part = make_file(
            self.spool.new_part(), attributes.pop("kind", "CR"), rows=32, columns=32,
            StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES, **{"SOPInstanceUID": SOURCE} | attributes,
        )  # fmt: skip
        accepted = self.spool.accept(part, read_identity(part), calling_ae="CR1", called_ae="US")
        return accepted.fate, accepted.series_key

    def take_in(self, **attributes):
        """Receive, seal and work on an instance; the job."""
        fate, key = self.receive(**attributes)
        assert fate is Fate.STORED
        job = self.spool.seal(key, partial=False)
        self.go(job.job_id)
        return job

    def go(self, job):
        todo = ["enhance"]
        while todo:
            result = self.work.go(job, todo.pop(0), threading.Event())
            assert result.state == "done", result
            todo += [task.stage for task in result.then]

    def remove_finished(self):
        jobs = Jobs(sqlite_url(self.settings.store / "node.sqlite"))
        try:
            assert sweep(self.spool, jobs, self.work.audit, Retention(keep_days=0), now=2e10)
        finally:
            jobs.close()

    def delivered(self):
        """SOP Instance UID -> object."""
        found = {}
        for path in self.out.rglob("*.dcm"):
            assert check_file(path) == [], path
            derived = pydicom.dcmread(path)
            assert derived.SourceImageSequence[0].ReferencedSOPInstanceUID.startswith(SOURCE)
            found[derived.SOPInstanceUID] = derived
        return found


def replacements(found):
    """Patient's name -> the name in the object that it replaces."""
    names = {uid: str(derived.PatientName) for uid, derived in found.items()}
    return {names[uid]: names.get(replaced_uid(derived)) for uid, derived in found.items()}


@pytest.mark.slow
def test_corrections_after_the_first_job_was_removed_form_a_chain(tmp_path):
    node = Node(tmp_path)
    for name in ("Test^One", "Test^Two", "Test^Three"):
        node.take_in(PatientName=name)
        node.remove_finished()
    found = node.delivered()
    assert replacements(found) == {"Test^One": None, "Test^Two": "Test^One", "Test^Three": "Test^Two"}
    before = {path: path.read_bytes() for path in node.out.rglob("*.dcm")}
    node.take_in(PatientName="Test^Three")  # the same again
    assert {path: path.read_bytes() for path in node.out.rglob("*.dcm")} == before


def test_other_bytes_while_the_first_are_held_are_set_aside_and_nothing_is_made_of_them(tmp_path):
    node = Node(tmp_path)
    job = node.take_in(PatientName="Test^One")
    assert node.receive(PatientName="Test^One")[0] is Fate.DUPLICATE
    assert node.receive(PatientName="Test^Two")[0] is Fate.CONFLICT
    assert list(node.spool.pending()) == []
    node.go(job.job_id)
    assert replacements(node.delivered()) == {"Test^One": None}


@pytest.mark.slow
def test_two_patients_in_one_series_are_refused_by_name_and_never_mixed(tmp_path):
    node = Node(tmp_path)
    node.receive(PatientID="1")
    job = node.take_in(PatientID="2", SOPInstanceUID=f"{SOURCE}.2")
    assert node.delivered() == {}
    outcomes = json.loads((job.folder / "run_report.json").read_text())["outcomes"]
    said = "CONFLICT: PatientID differs between instances of one Series Instance UID"
    assert [(outcome["result"], outcome["reason"]) for outcome in outcomes] == [("failed", said)] * 2
    for number in (3, 4):  # one after the other
        node.take_in(PatientID=str(number), SOPInstanceUID=f"{SOURCE}.{number}")
    found = node.delivered().values()
    assert {derived.PatientID for derived in found} == {"3", "4"}
    assert len({derived.SeriesInstanceUID for derived in found}) == 2


@pytest.mark.slow
def test_what_stands_damaged_is_replaced_and_somebody_elses_object_keeps_the_job_from_ending(tmp_path):
    node = Node(tmp_path)
    node.take_in(PatientName="Test^One")
    (there,) = node.out.rglob("*.dcm")
    good = there.read_bytes()
    for damaged in (good[: len(good) // 3], good[:-9] + bytes([good[-9] ^ 1]) + good[-8:]):
        node.remove_finished()
        there.write_bytes(damaged)
        node.take_in(PatientName="Test^One")
        assert replacements(node.delivered()) == {"Test^One": None}
    node.remove_finished()
    other = good.replace(b"Test^One", b"Test^Two")
    there.write_bytes(other)
    _, key = node.receive(PatientName="Test^One")
    job = node.spool.seal(key, partial=False)
    assert node.work.go(job.job_id, "enhance", threading.Event()).then
    result = node.work.go(job.job_id, "to.folder", threading.Event())
    assert (result.state, "PatientName" in result.say) == ("failed", True)
    assert there.read_bytes() == other
    assert list((job.folder / "derived").rglob("*.dcm"))
    assert not (job.folder / "done.json").exists()


@pytest.mark.slow
def test_a_job_that_another_host_does_again_puts_no_second_object_into_the_destination(tmp_path):
    """With another engine, whose pixels differ."""
    node = Node(tmp_path, recipe="op-fundus-stillgan", device="cpu", engine="torch", gate="warn")
    job = node.take_in(kind="OP8")
    [(uid, first)] = node.delivered().items()
    for name in ("derived", "sent"):  # a disk that came back from before all that
        shutil.rmtree(job.folder / name)
    for name in ("enhanced.json", "done.json"):
        (job.folder / name).unlink()
    other = Enhancing(recipe="op-fundus-stillgan", device="cpu", engine="openvino", gate="warn")
    node.settings = node.settings.model_copy(update={"enhance": other})
    node.go(job.job_id)
    assert node.delivered() == {uid: first}
    (made,) = (job.folder / "derived").rglob("*.dcm")
    assert pydicom.dcmread(made).PixelData != first.PixelData
