"""A folder as destination: each file whole, under its UIDs, once."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from medenhance_dicom.derive import PixelSummary, derive_instance
from medenhance_dicom.errors import ConfigurationError, OutputError
from medenhance_dicom.frames import pixel_format
from medenhance_dicom.identity import recorded_digests
from medenhance_dicom.node import tofolder
from medenhance_dicom.node.settings import Destination
from medenhance_dicom.node.tofolder import store_in_folder
from medenhance_dicom.part10 import read_instance, write_instance
from medenhance_dicom.provenance import Provenance
from medenhance_dicom.signature import sign
from medenhance_dicom.site_keys import create_key, load_signing_key
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


# ---------------------------------------------------------------- what stands there already


def derived(folder, *, minute=0, value=7, engine="torch", **attributes):
    """A derived object of ours in a file: of one source, whenever and by whatever engine it was made."""
    source = make_instance("OP8", rows=16, columns=16, **attributes)
    pixels = pixel_format(source)
    data = bytes([value]) * (16 * 16 * pixels.samples)
    made = datetime(2026, 11, 22, 12, minute, tzinfo=UTC)
    provenance = Provenance(recipe="test", recipe_digest="ab" * 32, method="clahe", made=made, engine=engine)
    summary = PixelSummary(hashlib.sha256(data).hexdigest(), pixels, pixels.number_of_frames, "5e" * 32)
    (folder / "pixels").write_bytes(data)
    path = folder / f"{minute}-{value}-{engine}.dcm"
    write_instance(derive_instance(source, summary, provenance), folder / "pixels", path)
    return path


@pytest.fixture
def stored(tmp_path):
    """A derived object, and where it lies in a folder that it was stored in."""
    path = derived(tmp_path)
    store_in_folder([path], to(tmp_path / "out"))
    (there,) = (tmp_path / "out").rglob("*.dcm")
    return path, there


def test_the_same_object_made_again_is_stored(tmp_path, stored):
    _, there = stored
    before = there.read_bytes()
    again = derived(tmp_path, minute=5)
    assert again.read_bytes() != before
    report = store_in_folder([again], to(tmp_path / "out"))
    assert [sent.path for sent in report.sent] == [again]
    assert there.read_bytes() == before


def cut(data):
    return data[: len(data) // 3]


def cut_to_its_preamble(data):
    return data[:100]


def emptied(data):
    return b""


def zeros(data):
    return bytes(len(data))


def with_another_pixel(data):
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def with_another_transfer_syntax(data):
    return data.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2\0\0\0", 1)


def with_another_eye(data):
    assert b"\x20\x00\x62\x00CS\x02\x00" in data
    return data.replace(b"\x20\x00\x62\x00CS\x02\x00R ", b"\x20\x00\x62\x00CS\x02\x00L ", 1)


@pytest.mark.parametrize("minute", [0, 5], ids=["same", "made-again"])
@pytest.mark.parametrize(
    "damage",
    [cut, cut_to_its_preamble, emptied, zeros, with_another_pixel, with_another_transfer_syntax, with_another_eye],
)
def test_what_is_there_damaged_is_replaced(tmp_path, stored, damage, minute):
    _, there = stored
    good = there.read_bytes()
    there.write_bytes(damage(good))
    assert there.read_bytes() != good
    wanted = derived(tmp_path, minute=minute)
    for link in (False, True):
        report = store_in_folder([wanted], to(tmp_path / "out"), link=link)
        assert [sent.path for sent in report.sent] == [wanted]
        assert there.read_bytes() == wanted.read_bytes()
    assert [found for found in (tmp_path / "out").rglob("*") if found.is_file()] == [there]


@pytest.mark.parametrize("keyword", ["PatientName", "PatientID", "AccessionNumber"])
@pytest.mark.parametrize(
    ("value", "end"), [("Test^Two", None), ("Test^Two", -9), ("", None)], ids=["", "cut", "emptied"]
)
def test_another_patients_object_is_not_replaced(tmp_path, keyword, value, end):
    path = derived(tmp_path, AccessionNumber="1")
    store_in_folder([path], to(tmp_path / "out"))
    (there,) = (tmp_path / "out").rglob("*.dcm")
    other = derived(tmp_path, minute=5, **{"AccessionNumber": "1", keyword: value}).read_bytes()
    there.write_bytes(other[:end])
    before = there.read_bytes()
    (failed,) = store_in_folder([path], to(tmp_path / "out")).failed
    assert failed.permanent
    assert failed.why.endswith(f"object of that name is there: {keyword}")
    assert there.read_bytes() == before


def test_what_others_put_there_is_not_replaced(tmp_path, stored):
    path, there = stored
    foreign = make_instance("OP8", SOPInstanceUID=there.stem)
    for why, write in {
        "which is not ours": lambda: foreign.save_as(there, enforce_file_format=True),
        "which is not DICOM": lambda: there.write_text("a letter"),
    }.items():
        write()
        before = there.read_bytes()
        (failed,) = store_in_folder([path], to(tmp_path / "out")).failed
        assert failed.permanent
        assert failed.why.endswith(why)
        assert there.read_bytes() == before


def test_a_damaged_file_replaces_nothing_and_is_not_delivered_by_its_own_link(tmp_path):
    path = derived(tmp_path)
    store_in_folder([path], to(tmp_path / "out"), link=True)
    (there,) = (tmp_path / "out").rglob("*.dcm")
    assert there.samefile(path)
    with path.open("r+b") as file:  # a fault of the disk under both names
        file.seek(-9, 2)
        file.write(b"\xff")
    (failed,) = store_in_folder([path], to(tmp_path / "out"), link=True).failed
    assert failed.permanent
    assert "damaged" in failed.why


def test_one_without_the_signature_that_it_is_to_have_is_replaced(tmp_path, stored):
    path, there = stored
    instance = read_instance(path)
    create_key(tmp_path / "site.pem")
    sign(instance, load_signing_key(tmp_path / "site.pem"), recorded_digests(instance)["pixels"])
    write_instance(instance, tmp_path / "pixels", tmp_path / "signed.dcm")
    for _ in range(2):
        assert store_in_folder([tmp_path / "signed.dcm"], to(tmp_path / "out")).sent
        assert there.read_bytes() == (tmp_path / "signed.dcm").read_bytes()
    assert store_in_folder([path], to(tmp_path / "out")).sent
    assert there.read_bytes() == (tmp_path / "signed.dcm").read_bytes()
    whole = there.read_bytes()
    place = whole.rindex(b"\x99\x00\x03\x10OB") + 12
    there.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert store_in_folder([tmp_path / "signed.dcm"], to(tmp_path / "out")).sent
    assert there.read_bytes() == whole


def test_a_cut_original_is_replaced(tmp_path):
    path = make_file(tmp_path / "a.dcm", "CT")
    store_in_folder([path], to(tmp_path / "out"))
    (there,) = (tmp_path / "out").rglob("*.dcm")
    there.write_bytes(path.read_bytes()[:-100])
    assert store_in_folder([path], to(tmp_path / "out")).sent
    assert there.read_bytes() == path.read_bytes()
