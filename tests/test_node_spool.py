"""The spool: what is acknowledged is durable, whatever dies when; and nothing is there twice."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import stat
from pathlib import Path

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset, FileMetaDataset

from medenhance_dicom.errors import OutputError, UnreadableInstanceError
from medenhance_dicom.node import spool as spool_module
from medenhance_dicom.node.identity import data_set_digest, read_identity
from medenhance_dicom.node.intake import take_in
from medenhance_dicom.node.spool import Fate, Spool

CT = "1.2.840.10008.5.1.4.1.1.2"
SYNTAXES = {
    "implicit": "1.2.840.10008.1.2",
    "explicit": "1.2.840.10008.1.2.1",
    "deflated": "1.2.840.10008.1.2.1.99",
    "big": "1.2.840.10008.1.2.2",
}


def instance(number=1, *, series="1.2.3.2", sop_class=CT, note="a", syntax="explicit"):
    dataset = Dataset()
    dataset.SOPClassUID = sop_class
    dataset.SOPInstanceUID = f"1.2.3.4.{number}"
    dataset.ReferencedStudySequence = [Dataset()]
    dataset.ReferencedStudySequence[0].ReferencedSOPInstanceUID = "9.9.9"
    dataset.Modality = "CT"
    dataset.PatientName = "Nobody^Ever"
    dataset.StudyInstanceUID = "1.2.3.1"
    dataset.SeriesInstanceUID = series
    dataset.ImageComments = note
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    return dataset


def put(spool, dataset):
    part = spool.new_part()
    dataset.save_as(part, enforce_file_format=True)
    return part


def accept(spool, dataset, calling_ae="CT1"):
    part = put(spool, dataset)
    return spool.accept(part, read_identity(part), calling_ae=calling_ae, called_ae="NODE")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def pending(spool):
    return list((spool.store / "pending").rglob("*.dcm"))


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path / "store")


# ---------------------------------------------------------------- identity


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_identity_in_every_encoding(spool, syntax):
    identity = read_identity(put(spool, instance(5, syntax=syntax)))
    assert (identity.sop_class, identity.sop_instance) == (CT, "1.2.3.4.5")
    assert (identity.study, identity.series, identity.modality) == ("1.2.3.1", "1.2.3.2", "CT")
    assert identity.transfer_syntax == SYNTAXES[syntax]


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small_bigendian.dcm", "JPEG2000.dcm", "rtplan.dcm", "UN_sequence.dcm", "image_dfl.dcm",
     "nested_priv_SQ.dcm", "SC_rgb_jpeg_gdcm.dcm", "liver_1frame.dcm", "test-SR.dcm", "examples_ybr_color.dcm"],
)  # fmt: skip
def test_identity_of_real_files(name):
    path = Path(get_testdata_file(name))
    expected = pydicom.dcmread(path, stop_before_pixels=True)
    if "SOPInstanceUID" not in expected or "SeriesInstanceUID" not in expected:
        with pytest.raises(UnreadableInstanceError, match="UID"):
            read_identity(path)
        return
    identity = read_identity(path)
    assert identity.sop_instance == expected.SOPInstanceUID
    assert identity.series == expected.SeriesInstanceUID
    assert identity.modality == expected.Modality


def test_digest_is_of_the_data_set_alone(spool):
    explicit = instance(1)
    part = put(spool, explicit)
    plain = part.read_bytes()
    start = plain.index(b"\x08\x00\x16\x00UI")
    assert read_identity(part).digest == data_set_digest(part) == hashlib.sha256(plain[start:]).hexdigest()


def test_an_identity_without_uids_is_refused(spool):
    dataset = instance(1)
    dataset.SeriesInstanceUID = ""
    with pytest.raises(UnreadableInstanceError, match="series UID"):
        read_identity(put(spool, dataset))


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(132, 420), value=st.binary(min_size=1, max_size=8), cut=st.integers(0, 460))
def test_broken_files_are_unreadable_and_nothing_else(tmp_path, at, value, cut):
    path = tmp_path / "broken.dcm"
    instance(1).save_as(path, enforce_file_format=True)
    data = path.read_bytes()
    path.write_bytes((data[:at] + value + data[at + len(value) :])[: max(cut, 0) or None])
    try:
        identity = read_identity(path)
    except UnreadableInstanceError:
        return
    assert identity.sop_instance
    assert identity.series


def test_file_meta_information_in_the_data_set_is_unreadable(spool):
    """Other readers would go by it, and by another digest than the one in the name."""
    path = put(spool, instance(1))
    data = path.read_bytes()
    end = 144 + int.from_bytes(data[140:144], "little")
    smuggled = b"\x02\x00\x03\x00UI\x08\x001.2.3.9\0"
    path.write_bytes(data[:end] + smuggled + data[end:])
    with pytest.raises(UnreadableInstanceError, match="begins with file meta information"):
        read_identity(path)


def test_a_sequence_without_end_is_unreadable(spool):
    part = put(spool, instance(1))
    head = part.read_bytes()
    start = head.index(b"\x08\x00\x16\x00UI")
    part.write_bytes(head[:start] + b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff" * 100_000)
    with pytest.raises(UnreadableInstanceError):
        read_identity(part)


# ---------------------------------------------------------------- accept


def test_an_instance_is_stored_as_it_came(spool):
    dataset = instance(1)
    part = put(spool, dataset)
    content = part.read_bytes()
    accepted = spool.accept(part, read_identity(part), calling_ae="CT1 ", called_ae="NODE")
    assert accepted.fate is Fate.STORED
    (path,) = pending(spool)
    assert path.read_bytes() == content
    assert path.name.startswith(accepted.instance_key)
    assert path.parent.name == accepted.series_key == spool.series_key("CT1", "1.2.3.1", "1.2.3.2")
    assert path.samefile(spool.held("1.2.3.4.1"))
    assert not list(spool.incoming.iterdir())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE((spool.store / "secret").stat().st_mode) == 0o600


def test_names_tell_nothing(spool):
    accept(spool, instance(1))
    spool.seal(spool.series_key("CT1", "1.2.3.1", "1.2.3.2"), partial=False)
    names = "\n".join(files(spool.store))
    assert "1.2.3" not in names
    assert "Nobody" not in names
    other = Spool(spool.store.with_name("other"))
    assert other.instance_key("1.2.3.4.1") != spool.instance_key("1.2.3.4.1")


def test_the_same_bytes_are_acknowledged_and_not_stored_again(spool):
    accept(spool, instance(1))
    before = files(spool.store)
    assert accept(spool, instance(1)).fate is Fate.DUPLICATE
    assert accept(spool, instance(1), calling_ae="OTHER").fate is Fate.DUPLICATE
    assert files(spool.store) == before


def test_other_bytes_are_set_aside_and_the_first_kept(spool):
    accept(spool, instance(1, note="first"))
    assert accept(spool, instance(1, note="second")).fate is Fate.CONFLICT
    assert accept(spool, instance(1, note="second")).fate is Fate.CONFLICT
    (kept,) = pending(spool)
    assert pydicom.dcmread(kept).ImageComments == "first"
    (aside,) = (spool.store / "conflicts").iterdir()
    assert pydicom.dcmread(aside).ImageComments == "second"
    assert accept(spool, instance(1, note="first")).fate is Fate.DUPLICATE


BOTH_WAYS = pytest.mark.parametrize("quick", [0.0, 60.0], ids=["slow disk", "quick disk"])


@BOTH_WAYS
def test_everything_is_flushed_before_it_counts_as_held(tmp_path, monkeypatch, quick):
    monkeypatch.setattr(spool_module, "_QUICK_SECONDS", quick)
    flushed = set()
    real = os.fsync

    def fsync(handle):
        real(handle)
        flushed.add(os.fstat(handle).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)

    class Watching(Spool):
        def _hold(self, name, folder, held):
            inodes = {os.stat(name, dir_fd=folder).st_ino, os.fstat(folder).st_ino}
            assert inodes <= flushed
            super()._hold(name, folder, held)

    spool = Watching(tmp_path / "store")
    flushed.clear()
    accept(spool, instance(1))
    assert (spool.store / "pending").stat().st_ino in flushed
    flushed.clear()
    accept(spool, instance(2))
    assert (spool.store / "pending").stat().st_ino not in flushed  # once is enough
    second = Watching(spool.store)
    flushed.clear()
    accept(second, instance(3))  # another process cannot know whether the first got that far
    assert (spool.store / "pending").stat().st_ino in flushed


@BOTH_WAYS
@pytest.mark.parametrize("failing", ["file", "folder", "parent"])
def test_a_failed_flush_accepts_nothing(spool, monkeypatch, failing, quick):
    monkeypatch.setattr(spool_module, "_QUICK_SECONDS", quick)
    accept(spool, instance(9))
    spool._rooted.clear()
    real = os.fsync
    parent = (spool.store / "pending").stat().st_ino

    def fsync(handle):
        found = os.fstat(handle)
        kind = "file" if stat.S_ISREG(found.st_mode) else "parent" if found.st_ino == parent else "folder"
        if kind == failing:
            raise OSError(errno.EIO, "broken disk")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    part = put(spool, instance(1))
    with pytest.raises(OSError, match="broken disk"):
        spool.accept(part, read_identity(part), calling_ae="CT1", called_ae="NODE")
    assert len(pending(spool)) == 1
    assert spool.held("1.2.3.4.1") is None
    monkeypatch.undo()
    assert accept(spool, instance(1)).fate is Fate.STORED


def test_a_store_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Spool(tmp_path / "file")


# ---------------------------------------------------------------- take_in


def test_statuses(spool):
    def status(dataset, **announced):
        return take_in(spool, put(spool, dataset), calling_ae="CT1", called_ae="NODE", **announced).status

    assert status(instance(1)) == 0x0000
    assert status(instance(1)) == 0x0000
    assert status(instance(1, note="b")) == 0x0111
    assert status(instance(2), sop_class=CT, sop_instance="1.2.3.4.3") == 0xA900
    assert status(instance(2), sop_class=CT + ".1", sop_instance="1.2.3.4.2") == 0xA900
    assert status(instance(2, sop_class="1.2.840.10008.1.1")) == 0x0122
    assert len(pending(spool)) == 1
    assert not list(spool.incoming.iterdir())


def test_what_cannot_be_read_is_quarantined(spool):
    said = []
    part = spool.new_part()
    part.write_bytes(bytes(128) + b"DICM" + b"garbage")
    taken = take_in(
        spool, part, calling_ae="CT1", called_ae="NODE", audit=lambda event, **facts: said.append((event, facts))
    )
    assert taken.status == 0xC000
    (kept,) = (spool.store / "quarantine").iterdir()
    assert kept.read_bytes().endswith(b"garbage")
    assert said[0][0] == "quarantined"
    assert said[0][1]["file"] == kept.name


def test_a_full_disk_is_out_of_resources(spool, monkeypatch):
    part = put(spool, instance(1))

    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(spool, "_make_durable", full)
    assert take_in(spool, part, calling_ae="CT1", called_ae="NODE").status == 0xA700
    assert not pending(spool)
    assert not list(spool.incoming.iterdir())


def test_an_audit_trail_that_fails_takes_nothing_back(spool):
    def broken(*_, **__):
        raise OSError(errno.ENOSPC, "full")

    for note in "ab":
        part = put(spool, instance(1, note=note))
        taken = take_in(spool, part, calling_ae="CT1", called_ae="NODE", audit=broken)
    assert taken.status == 0x0111


# ---------------------------------------------------------------- seal


def test_seal_makes_a_job(spool):
    for number in range(3):
        accept(spool, instance(number))
    key = spool.series_key("CT1", "1.2.3.1", "1.2.3.2")
    (series,) = spool.pending()
    assert (series.key, series.count) == (key, 3)
    assert (series.origin["calling_ae"], series.origin["called_ae"]) == ("CT1", "NODE")
    job = spool.seal(key, partial=True)
    assert job.facts == {
        "calling_ae": "CT1", "called_ae": "NODE", "instances": 3, "partial": True, "series_key": key, "Modality": "CT",
    }  # fmt: skip
    assert json.loads((job.folder / "job.json").read_bytes()) == job.facts
    assert len(job.job_id) == 32
    assert [path.suffix for path in job.source.iterdir()] == [".dcm"] * 3
    assert not list(spool.pending())
    assert spool.seal(key, partial=False) is None
    assert list(spool.jobs()) == [job]
    assert accept(spool, instance(1)).fate is Fate.DUPLICATE


def test_late_instances_are_another_job(spool):
    accept(spool, instance(1))
    key = spool.series_key("CT1", "1.2.3.1", "1.2.3.2")
    first = spool.seal(key, partial=False)
    accept(spool, instance(2))
    second = spool.seal(key, partial=False)
    assert first.job_id != second.job_id
    assert second.facts["instances"] == 1


def test_what_comes_again_after_its_job_was_removed_is_a_new_job(spool):
    accept(spool, instance(1))
    key = spool.series_key("CT1", "1.2.3.1", "1.2.3.2")
    first = spool.seal(key, partial=False)
    spool.forget(first)
    assert spool.held("1.2.3.4.1") is None
    for path in sorted(first.folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    first.folder.rmdir()
    assert accept(spool, instance(1)).fate is Fate.STORED
    assert spool.seal(key, partial=False).job_id != first.job_id


def test_seal_waits_for_receivers(spool, monkeypatch):
    accept(spool, instance(1))
    key = spool.series_key("CT1", "1.2.3.1", "1.2.3.2")
    monkeypatch.setattr(spool_module, "_SEAL_SECONDS", 0.05)
    handle = spool._open_series(key, {})
    assert spool.seal(key, partial=False) is None
    assert len(pending(spool)) == 1
    os.close(handle)
    assert spool.seal(key, partial=False) is not None


# ---------------------------------------------------------------- crashes


class Fatal(Spool):
    """Dies without a word before or after one of its steps."""

    def __init__(self, store, step, when):
        self.step, self.when = step, when
        super().__init__(store)

    def _do(self, step, call, *args):
        if self.step == step and self.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        call(*args)
        if self.step == step and self.when == "after":
            os.kill(os.getpid(), signal.SIGKILL)

    def _new_series(self, *args):
        self._do("new series", super()._new_series, *args)

    def _enter(self, *args):
        self._do("enter", super()._enter, *args)

    def _make_durable(self, *args):
        self._do("make durable", super()._make_durable, *args)

    def _hold(self, *args):
        self._do("hold", super()._hold, *args)

    def _finish(self, *args):
        self._do("finish", super()._finish, *args)

    def _rename_sealed(self, *args):
        self._do("rename sealed", super()._rename_sealed, *args)


def dies(action):
    child = os.fork()
    if child == 0:
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


RECEIVING = [(step, when) for step in ("new series", "enter", "make durable", "hold") for when in ("before", "after")]
SEALING = [(step, when) for step in ("finish", "rename sealed") for when in ("before", "after")]


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize(("step", "when"), RECEIVING)
def test_killed_while_receiving(tmp_path, step, when, restart):
    store = tmp_path / "store"
    Spool(store)
    assert dies(lambda: accept(Fatal(store, step, when), instance(1)))
    spool = Spool(store)
    if restart:
        spool.reconcile()
        assert not list(spool.incoming.iterdir())
    assert accept(spool, instance(1)).fate in (Fate.STORED, Fate.DUPLICATE)  # the sender tries again
    (path,) = pending(spool)
    assert path.samefile(spool.held("1.2.3.4.1"))
    job = spool.seal(spool.series_key("CT1", "1.2.3.1", "1.2.3.2"), partial=False)
    assert job.facts["instances"] == 1


@pytest.mark.parametrize(("step", "when"), RECEIVING)
def test_killed_while_receiving_and_then_other_bytes_come(tmp_path, step, when):
    store = tmp_path / "store"
    Spool(store)
    assert dies(lambda: accept(Fatal(store, step, when), instance(1, note="lost")))
    spool = Spool(store)
    fate = accept(spool, instance(1, note="other")).fate
    job = spool.seal(spool.series_key("CT1", "1.2.3.1", "1.2.3.2"), partial=False)
    (source,) = job.source.iterdir()
    kept = pydicom.dcmread(source).ImageComments
    assert kept == ("other" if fate is Fate.STORED else "lost")
    assert source.samefile(spool.held("1.2.3.4.1"))


@pytest.mark.parametrize(("step", "when"), SEALING)
def test_killed_while_sealing(tmp_path, step, when):
    store = tmp_path / "store"
    spool = Spool(store)
    for number in range(3):
        accept(spool, instance(number))
    key = spool.series_key("CT1", "1.2.3.1", "1.2.3.2")
    spool._flushers.shutdown()
    assert dies(lambda: Fatal(store, step, when).seal(key, partial=False))
    spool = Spool(store)
    spool.reconcile()
    sealed = [*spool.jobs()] or [spool.seal(key, partial=False)]
    assert [job.facts["instances"] for job in sealed] == [3]
    assert sorted(path.suffix for path in sealed[0].source.iterdir()) == [".dcm"] * 3
    assert not list(spool.pending())
    assert list(spool.jobs()) == sealed


def test_the_same_batch_has_the_same_job_after_a_crash(tmp_path):
    store = tmp_path / "store"
    accept(Spool(store), instance(1))
    key = Spool(store).series_key("CT1", "1.2.3.1", "1.2.3.2")
    assert dies(lambda: Fatal(store, "rename sealed", "before").seal(key, partial=False))
    (begun,) = (store / "jobs").iterdir()
    assert not list(Spool(store).jobs())
    assert Spool(store).seal(key, partial=False).job_id == begun.name


@pytest.mark.parametrize("size", [0, 100, 300, 400])
def test_a_power_cut_leaves_half_a_file(tmp_path, size):
    """The name is on the disk and the bytes are not: nobody was told of it."""
    store = tmp_path / "store"
    Spool(store)
    assert dies(lambda: accept(Fatal(store, "make durable", "before"), instance(1)))
    spool = Spool(store)
    (path,) = pending(spool)
    os.truncate(path, size)
    spool.reconcile()
    assert not pending(spool)
    assert len(list((store / "quarantine").iterdir())) == 1
    assert accept(spool, instance(1)).fate is Fate.STORED


def test_a_power_cut_takes_links_that_were_not_flushed(spool):
    accept(spool, instance(1))
    key = spool.series_key("CT1", "1.2.3.1", "1.2.3.2")
    job = spool.seal(key, partial=False)
    accept(spool, instance(2))
    for number in (1, 2):
        spool.held(f"1.2.3.4.{number}").unlink()
    spool.reconcile()
    assert accept(spool, instance(1)).fate is Fate.DUPLICATE
    assert accept(spool, instance(2)).fate is Fate.DUPLICATE
    assert spool.held("1.2.3.4.1").parent.parent.parent == spool.store
    assert next(job.source.iterdir()).samefile(spool.held("1.2.3.4.1"))


def test_a_disk_that_cannot_be_read_makes_nothing_disappear(spool, monkeypatch):
    accept(spool, instance(1))
    spool.held("1.2.3.4.1").unlink()

    def broken(_):
        raise OSError(errno.EIO, "cannot be read")

    monkeypatch.setattr(spool_module, "data_set_digest", broken)
    with pytest.raises(OSError, match="cannot be read"):
        spool.reconcile()
    assert len(pending(spool)) == 1


def test_reconcile_drops_what_belongs_to_nothing(spool):
    accept(spool, instance(1))
    job = spool.seal(spool.series_key("CT1", "1.2.3.1", "1.2.3.2"), partial=False)
    for path in (*job.source.iterdir(), job.folder / "job.json"):  # retention was killed before it let go of `held/`
        path.unlink()
    job.source.rmdir()
    (spool.incoming / "x.part").write_bytes(b"half")
    (spool.store / "pending" / ".young").mkdir()
    spool.reconcile()
    assert spool.held("1.2.3.4.1") is None
    assert not list(spool.incoming.iterdir())
    assert not list((spool.store / "pending").iterdir())
    assert not list((spool.store / "jobs").iterdir())


def test_reconcile_drops_what_killed_writers_left(spool):
    accept(spool, instance(1))
    (spool.incoming / "rewritten-x").mkdir()
    (spool.incoming / "rewritten-x" / "instance.dcm").write_bytes(b"a patient")
    begun = spool.store / "jobs" / ("0" * 32)
    begun.mkdir()
    for name in ("job.json", ".job.json.0a1b2c3d.part"):
        (begun / name).write_text("{}")
    spool.reconcile()
    assert not list(spool.incoming.iterdir())
    assert not begun.exists()
    assert len(pending(spool)) == 1


def test_a_reconcile_in_the_middle_of_an_instance_does_not_lose_it(tmp_path):
    """A receiver outlives its node that was killed, and the next node is faster with the link in `held/`."""

    class Overtaken(Spool):
        def _hold(self, name, folder, held):
            self._finish(next(self.pending()).folder)
            super()._hold(name, folder, held)

    spool = Overtaken(tmp_path / "store")
    assert accept(spool, instance(1)).fate is Fate.STORED
    (path,) = pending(spool)
    assert path.samefile(spool.held("1.2.3.4.1"))
    assert not list(spool.incoming.iterdir())


def test_reconcile_waits_for_receivers_of_a_node_that_was_killed(spool, monkeypatch):
    monkeypatch.setattr(spool_module, "_LEAVE_SECONDS", 0.1)
    said, say = os.pipe()
    child = os.fork()
    if child == 0:
        spool.enter()
        os.write(say, b"in")
        signal.pause()
    assert os.read(said, 2) == b"in"
    part = spool.new_part()
    part.write_bytes(b"half")
    with pytest.raises(OutputError, match="still there"):
        spool.reconcile()
    assert part.exists()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    spool.reconcile()
    assert not part.exists()


# ---------------------------------------------------------------- several at once


def test_many_processes_with_the_same_instances(tmp_path):
    store = tmp_path / "store"
    Spool(store)
    key = Spool(store).series_key("CT1", "1.2.3.1", "1.2.3.2")
    children = []
    for at in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                spool = Spool(store)
                fates = [accept(spool, instance((number + at * 4) % 12)).fate for number in range(12)]
                code = 0 if Fate.CONFLICT not in fates else 2
            finally:
                os._exit(code)
        children.append(child)
    spool = Spool(store)
    running = set(children)
    while running:
        spool.seal(key, partial=True)
        for child in list(running):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                assert status == 0
                running.discard(child)
    spool.seal(key, partial=False)
    stored = [path.name for job in spool.jobs() for path in job.source.iterdir()]
    assert len(stored) == len(set(stored)) == 12
    assert sum(job.facts["instances"] for job in spool.jobs()) == 12
    assert not list(spool.incoming.iterdir())


def test_markers(spool):
    marker = spool.open_association("CT1 ")
    (seen,) = spool.associations()
    assert (seen.calling_ae, seen.series_keys, seen.receiving) == ("CT1", frozenset(), False)
    marker.carried("a" * 24)
    marker.carried("a" * 24)
    marker.receiving(True)
    marker.carried("b" * 24)
    (seen,) = spool.associations()
    assert (seen.calling_ae, seen.series_keys, seen.receiving) == ("CT1", {"a" * 24, "b" * 24}, True)
    marker.receiving(False)
    assert not next(spool.associations()).receiving
    marker.close()
    assert not list(spool.associations())


def test_the_marker_of_a_dead_process_is_dropped(tmp_path):
    store = tmp_path / "store"

    def open_and_die():
        spool = Spool(store)
        spool.marker = spool.open_association("CT1")
        os.kill(os.getpid(), signal.SIGKILL)

    assert dies(open_and_die)
    assert len(list((store / "associations").iterdir())) == 1
    assert not list(Spool(store).associations())
    assert not list((store / "associations").iterdir())
