"""Folders, files, zips, DICOMDIRs and lists as sources: everything in them is found or left out for a reason."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from pathlib import Path

import pydicom
import pydicom.data
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.data import get_testdata_file

from medenhance_dicom.errors import InputError, OutputError
from medenhance_dicom.node.sources import Found, LeftOut, Wanted, open_source
from medenhance_dicom.node.sources.source import bringing
from tests.synthetic import make_instance

REASON = re.compile(r"(NOT_DICOM|UNREADABLE|HIDDEN|DICOMDIR|MISSING): \S")


def nothing_known(locator, size, stamp):
    return False


def scan(text, known=nothing_known, **more):
    items = list(open_source(str(text), **more).scan(known))
    found = {item.locator: item for item in items if isinstance(item, Found)}
    left = {item.locator: item.reason for item in items if isinstance(item, LeftOut)}
    assert len(found) + len(left) == len(items)
    assert all(REASON.match(reason) for reason in left.values()), left
    return found, left


def write(path, number=1, **more):
    instance = make_instance("CT", **more)
    instance.SOPInstanceUID = instance.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{number}"
    path.parent.mkdir(parents=True, exist_ok=True)
    instance.save_as(path, enforce_file_format=True)
    return path


def wanted(item):
    facts = item.facts
    uids = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID")
    return Wanted(item.locator, *(facts[uid] for uid in uids))


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "archive"
    write(root / "a" / "one", 1)
    write(root / "a" / "deep" / "two.dcm", 2)
    write(root / "three.dcm", 3)
    (root / "notes.txt").write_text("not a picture of anything in particular")
    (root / "empty").touch()
    (root / ".hidden").touch()
    (root / "DICOMDIR").touch()
    write(root / ".cache" / "four.dcm", 4)
    (root / "gone.dcm").symlink_to(root / "nowhere")
    (root / "linked").symlink_to(root / "a")
    os.mkfifo(root / "pipe")
    (root / "old.zip").write_bytes(b"PK\x03\x04" + bytes(200))
    return root


# ---------------------------------------------------------------- folders


def test_a_folder_is_explained_to_the_last_file(archive):
    found, left = scan(archive)
    assert set(found) == {str(archive / name) for name in ("a/one", "a/deep/two.dcm", "three.dcm")}
    reasons = {Path(locator).name: reason.split(":")[0] for locator, reason in left.items()}
    assert reasons == {
        "notes.txt": "NOT_DICOM", "empty": "NOT_DICOM", ".hidden": "HIDDEN", "DICOMDIR": "DICOMDIR",
        ".cache": "HIDDEN", "gone.dcm": "UNREADABLE", "linked": "NOT_DICOM", "pipe": "NOT_DICOM",
        "old.zip": "NOT_DICOM",
    }  # fmt: skip
    one = found[str(archive / "a/one")]
    status = (archive / "a/one").stat()
    assert (one.size, one.stamp) == (status.st_size, str(status.st_mtime_ns))
    assert one.facts == {
        "StudyInstanceUID": "1.2.826.0.1.9999.1", "SeriesInstanceUID": "1.2.826.0.1.9999.2",
        "SOPInstanceUID": "1.2.3.1", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.2", "Modality": "CT",
        "Manufacturer": "Scanners Ltd", "ManufacturerModelName": "Scan 1", "Rows": "16", "Columns": "12",
        "TransferSyntaxUID": "1.2.840.10008.1.2.1", "PatientID": "P-1",
    }  # fmt: skip


def test_what_is_known_is_not_read_again(archive):
    first, _ = scan(archive)
    seen = {(item.locator, item.size, item.stamp) for item in first.values()}
    write(archive / "three.dcm", 33, rows=20)
    write(archive / "a" / "new", 5)
    again, _ = scan(archive, lambda *key: key in seen)
    assert {item.facts["SOPInstanceUID"] for item in again.values()} == {"1.2.3.33", "1.2.3.5"}


def test_a_scan_is_lazy_and_may_be_left(tmp_path):
    for number in range(3000):
        (tmp_path / f"{number}").write_bytes(b"")
    asked = []
    source = open_source(str(tmp_path), readers=2)
    items = source.scan(lambda *key: asked.append(key) or False)
    next(items)
    items.close()
    assert 0 < len(asked) < 1500


def test_a_source_that_is_not_there():
    with pytest.raises(InputError, match="No such file"):
        scan("/nowhere/at/all")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_folder_that_may_not_be_listed_is_left_out(archive):
    (archive / "a").chmod(0)
    found, left = scan(archive)
    (archive / "a").chmod(0o700)
    assert len(found) == 1
    assert "cannot be listed" in left[str(archive / "a")]


def test_names_that_are_not_utf8_come_back(tmp_path):
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/a\xff!b.dcm")
    write(tmp_path / "x", 1).rename(odd)
    folder = tmp_path / "fetched"
    folder.mkdir()
    found, _ = scan(odd)
    (item,) = found.values()
    item.locator.encode()
    assert list(open_source(odd).fetch([wanted(item)], folder)) == []
    assert pydicom.dcmread(folder / "0.dcm").SOPInstanceUID == "1.2.3.1"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(at=st.integers(0, 1200), value=st.binary(min_size=1, max_size=8), cut=st.integers(0, 1300))
def test_a_damaged_file_is_found_or_left_out(tmp_path, at, value, cut):
    path = tmp_path / "x.dcm"
    data = write(path).read_bytes()
    path.write_bytes((data[:at] + value + data[at + len(value) :])[: cut or None])
    found, left = scan(path)
    assert len(found) + len(left) == 1


@pytest.mark.parametrize("corpus", ["shared", "pydicom"])
def test_every_malformed_file_is_explained(corpus, request):
    pydicoms = Path(pydicom.data.__file__).parent / "test_files"
    folder = request.getfixturevalue("data_folder") / "dicom" if corpus == "shared" else pydicoms
    found, left = scan(folder)
    assert {*found, *left} == {str(path) for path in folder.rglob("*") if path.is_file()}
    assert len(found) > 100
    assert len(left) > 20


# ---------------------------------------------------------------- zips, DICOMDIRs, lists


def test_a_zip(tmp_path, archive):
    target = tmp_path / "study!1.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.write(archive / "a/one", "x/one!.dcm")
        zipped.write(archive / "three.dcm", "x/one!.dcm")
        zipped.write(archive / "notes.txt", "notes.txt")
        zipped.writestr("__MACOSX/._one", b"x")
        zipped.writestr("MR_small", Path(get_testdata_file("MR_small_bigendian.dcm")).read_bytes())
        zipped.writestr("twisted", b"DICM".rjust(132, b"\0") + b"\x02\0\0\0" * 20)
    found, left = scan(target)
    assert {item.facts["SOPInstanceUID"] for item in found.values()} >= {"1.2.3.1", "1.2.3.3"}
    assert len(found) == 3
    assert sorted(reason.split(":")[0] for reason in left.values()) == ["HIDDEN", "NOT_DICOM", "UNREADABLE"]
    assert scan(target, lambda *_: True)[0] == {}
    folder = tmp_path / "fetched"
    folder.mkdir()
    items = list(found.values())
    assert list(open_source(str(target)).fetch([wanted(item) for item in items], folder)) == []
    for number, item in enumerate(items):
        assert pydicom.dcmread(folder / f"{number}.dcm").SOPInstanceUID == item.facts["SOPInstanceUID"]
        assert not (folder / f"{number}.dcm").is_symlink()
    assert len(list(folder.iterdir())) == len(items)


def test_a_zip_that_is_broken_is_left_out(tmp_path, archive):
    target = tmp_path / "a.zip"
    with zipfile.ZipFile(target, "w") as zipped:
        zipped.write(archive / "a/one", "one")
        zipped.write(archive / "three.dcm", "three")
    found, _ = scan(target)
    data = bytearray(target.read_bytes())
    data[200:210] = b"0123456789"  # of the first member: its checksum fails
    target.write_bytes(data)
    folder = tmp_path / "fetched"
    folder.mkdir()
    reasons = list(open_source(str(target)).fetch([wanted(item) for item in found.values()], folder))
    assert len(reasons) == 1
    assert reasons[0].startswith("UNREADABLE: does not unpack")
    assert [path.name for path in folder.iterdir()] == ["1.dcm"]
    target.write_bytes(data[: len(data) // 2])
    assert "not a zip that can be read" in scan(target)[1][str(target)]
    target.unlink()
    assert len(list(open_source(str(target)).fetch([wanted(item) for item in found.values()], folder))) == 1


def test_a_dicomdir(tmp_path):
    media = tmp_path / "media"
    shutil.copytree(Path(get_testdata_file("DICOMDIR")).parent, media)
    found, left = scan(media / "DICOMDIR")
    assert len(found) == 31
    first = next(iter(found))
    Path(first).unlink()
    found, left = scan(media / "DICOMDIR")
    assert len(found) == 30
    assert left[first].startswith("MISSING")
    (media / "DICOMDIR").write_bytes((media / "DICOMDIR").read_bytes()[:3000])
    found, left = scan(media / "DICOMDIR")
    assert list(left) == [str(media / "DICOMDIR")]


def test_a_list_of_paths(tmp_path, archive):
    listed = archive / "list.csv"
    listed.write_text("note,path\nx,a/one\ny,three.dcm\n\nz,nowhere.dcm\n# no,b\nw,a/deep\nv,notes.txt\n")
    found, left = scan(f"@{listed}")
    assert {item.facts["SOPInstanceUID"] for item in found.values()} == {"1.2.3.1", "1.2.3.2", "1.2.3.3"}
    assert {Path(locator).name: reason.split(":")[0] for locator, reason in left.items()} == {
        "nowhere.dcm": "UNREADABLE",
        "notes.txt": "NOT_DICOM",
    }
    listed.write_text(f"{archive}/three.dcm\n")
    assert list(scan(f"@{listed}")[0]) == [str(archive / "three.dcm")]


@pytest.mark.parametrize("text", ["note\nx\n1.2\n", "1.2.3,1.2.4\n"])
def test_a_list_of_something_else(tmp_path, text):
    listed = tmp_path / "list.csv"
    listed.write_text("path,x\n,1\n" if text.startswith("note") else text)
    with pytest.raises(InputError, match="row 1 has no path"):
        scan(f"@{listed}")
    with pytest.raises(InputError, match="cannot be read as a list"):
        scan(f"@{tmp_path}/none.csv")


# ---------------------------------------------------------------- fetching files


def test_files_are_linked_and_checked(tmp_path, archive):
    found, _ = scan(archive)
    items = sorted(found.values(), key=lambda item: item.facts["SOPInstanceUID"])
    folder = tmp_path / "fetched"
    folder.mkdir()
    source = open_source(str(archive))
    assert list(source.fetch([wanted(item) for item in items], folder)) == []
    assert [(folder / f"{n}.dcm").readlink() for n in range(3)] == [Path(item.locator) for item in items]
    write(archive / "a/one", 9)
    (archive / "a/deep/two.dcm").unlink()
    reasons = list(source.fetch([wanted(item) for item in items], folder))
    assert [reason.split(":")[0] for reason in reasons] == ["CHANGED", "MISSING"]
    assert [path.name for path in folder.iterdir()] == ["2.dcm"]


def test_what_is_brought_is_whole_or_not_there(tmp_path):
    def half():
        with bringing(tmp_path / "a") as write_block:
            write_block(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert not list(tmp_path.iterdir())
    with pytest.raises(OutputError), bringing(tmp_path / "none" / "a"):
        pass


# ---------------------------------------------------------------- how sources are written


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("QR@host:104", "PeerSource"),
        ("QR@[::1]:104?StudyDate=20200101-20200131&calling=ME", "PeerSource"),
        ("https://host/dicom-web?Modality=OP", "WebSource"),
        ("s3://bucket/prefix", "S3Source"),
        ("folder", "FileSource"),
        ("@list.csv", "FileSource"),
        ("@list.csv from QR@host:104", "PeerSource"),
    ],
)
def test_what_is_written_says_the_kind(text, kind):
    source = open_source(text)
    assert type(source).__name__ == kind
    assert source.name == text
    assert type(open_source(source.name)).__name__ == kind


def test_an_origin_makes_another_name():
    assert open_source("@uids.csv", origin="QR@host:104").name == "@uids.csv from QR@host:104"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("QR@host:104?NoSuchKeyword=1", "neither a DICOM keyword"),
        ("QR@host:104?retrieve=move", "listen"),
        ("QR@host:104?retrieve=steal", "get or move"),
        ("QR@host:104?listen=x", "HOST:PORT"),
        ("QR@host:104?timeout=soon", "option is wrong"),
        ("QR@host:99999", "address"),
        ("https://host/x?timeout=soon", "timeout"),
        ("s3://", "no bucket"),
        ("@list.csv from /folder", "neither a DICOM peer"),
    ],
)
def test_what_is_written_wrongly(text, words):
    with pytest.raises(InputError, match=words):
        open_source(text)
