"""A folder as destination: each file whole, under its UIDs, once."""

from __future__ import annotations

import pytest

from medenhance_dicom.errors import ConfigurationError, OutputError
from medenhance_dicom.node import tofolder
from medenhance_dicom.node.settings import Destination
from medenhance_dicom.node.tofolder import store_in_folder
from tests.synthetic import make_file, make_instance

STUDY, SERIES = "1.2.826.0.1.9999.1", "1.2.826.0.1.9999.2"


def to(folder):
    return Destination(name="there", folder=folder)


def test_files_lie_by_their_uids_and_a_repeat_is_harmless(tmp_path):
    paths = [make_file(tmp_path / f"{name}.dcm", name) for name in ("CT", "OP8")]
    for _ in range(2):
        report = store_in_folder(paths, to(tmp_path / "out" / "here"))
        assert not report.failed
        assert [(sent.path, sent.sop_instance, sent.status) for sent in report.sent] == [
            (paths[0], "1.2.826.0.1.9999.2.3", 0),
            (paths[1], "1.2.826.0.1.9999.77.1.5.1.3", 0),
        ]
    there = sorted(path for path in (tmp_path / "out").rglob("*") if path.is_file())
    series = tmp_path / "out" / "here" / STUDY / SERIES
    assert there == [series / "1.2.826.0.1.9999.2.3.dcm", series / "1.2.826.0.1.9999.77.1.5.1.3.dcm"]
    assert [path.read_bytes() for path in there] == [path.read_bytes() for path in paths]


def test_another_file_of_that_name_stays(tmp_path):
    path = make_file(tmp_path / "a.dcm", "CT")
    store_in_folder([path], to(tmp_path / "out"))
    other = make_file(tmp_path / "b.dcm", "CT", rows=20)
    (failed,) = store_in_folder([other], to(tmp_path / "out")).failed
    assert failed.permanent
    assert "another file" in failed.why
    (there,) = (tmp_path / "out").rglob("*.dcm")
    assert there.read_bytes() == path.read_bytes()


def test_what_has_no_place(tmp_path):
    (tmp_path / "text.dcm").write_text("no")
    climbing = make_instance("CT")
    climbing.SeriesInstanceUID = "../../1"
    climbing.save_as(tmp_path / "climbing.dcm", enforce_file_format=True)
    paths = [tmp_path / "text.dcm", tmp_path / "climbing.dcm", tmp_path / "none.dcm"]
    report = store_in_folder(paths, to(tmp_path / "out"))
    assert [(failed.path, failed.permanent) for failed in report.failed] == [
        (paths[0], True), (paths[1], True), (paths[2], False),
    ]  # fmt: skip
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_takes_nothing(tmp_path):
    path = make_file(tmp_path / "a.dcm", "CT")
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="there: the folder cannot be made"):
        store_in_folder([path], to(tmp_path / "file"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / STUDY).touch()  # in the way
    (failed,) = store_in_folder([path], to(tmp_path / "out")).failed
    assert not failed.permanent
    with pytest.raises(ConfigurationError):
        store_in_folder([path], Destination(name="there", stow="http://127.0.0.1/studies"))


def test_what_is_not_flushed_does_not_count_as_sent(tmp_path, monkeypatch):
    paths = [make_file(tmp_path / f"{name}.dcm", name) for name in ("CT", "OP8")]

    def broken(folder):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(tofolder, "flush", broken)
        report = store_in_folder(paths, to(tmp_path / "out"))
    assert not report.sent
    assert [(failed.path, failed.permanent, failed.why) for failed in report.failed] == [
        (path, False, "cannot be written: Input/output error") for path in paths
    ]
    assert [sent.path for sent in store_in_folder(paths, to(tmp_path / "out")).sent] == paths


def test_a_file_that_is_not_kept_gets_another_name(tmp_path):
    path = make_file(tmp_path / "a.dcm", "CT")
    for _ in range(2):  # a killed worker did it before
        report = store_in_folder([path], to(tmp_path / "out"), link=True)
        assert [sent.path for sent in report.sent] == [path]
    (there,) = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert there.samefile(path)
    other = make_file(tmp_path / "b.dcm", "CT", rows=20)
    (failed,) = store_in_folder([other], to(tmp_path / "out"), link=True).failed
    assert failed.permanent
    assert there.samefile(path)


def test_an_original_is_never_linked_nor_is_a_file_on_another_disk(tmp_path, monkeypatch):
    original = make_file(tmp_path / "original.dcm", "CT")
    path = tmp_path / "a.dcm"
    path.symlink_to(original)
    store_in_folder([path], to(tmp_path / "out"), link=True)
    monkeypatch.setattr("os.link", lambda *_, **__: (_ for _ in ()).throw(OSError(18, "another file system")))
    store_in_folder([original], to(tmp_path / "far"), link=True)
    for there in [*(tmp_path / "out").rglob("*.dcm"), *(tmp_path / "far").rglob("*.dcm")]:
        assert there.read_bytes() == original.read_bytes()
        assert not there.samefile(original)
        assert not there.is_symlink()
    assert original.stat().st_nlink == 1


def test_a_folder_that_hands_its_group_on_gets_copies(tmp_path):
    path = make_file(tmp_path / "a.dcm", "CT")
    (tmp_path / "out").mkdir()
    (tmp_path / "out").chmod(0o2770)
    store_in_folder([path], to(tmp_path / "out"), link=True)
    (there,) = (tmp_path / "out").rglob("*.dcm")
    assert there.read_bytes() == path.read_bytes()
    assert not there.samefile(path)
