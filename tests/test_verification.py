"""Folders of what we made: each file that is ours, or was, comes with its state, and none stops the others."""

import hashlib
import json
import zipfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.dataelem import DataElement
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless
from typer.testing import CliRunner

from medenhance_dicom.cli import app
from medenhance_dicom.enhance import Enhancement
from medenhance_dicom.errors import InputError
from medenhance_dicom.identity import seal
from medenhance_dicom.part10 import write_document, write_instance
from medenhance_dicom.selection import Settings
from medenhance_dicom.site_keys import create_key
from medenhance_dicom.verification.files import exit_code, verify_files
from medenhance_dicom.verify import SIGNED_AS_IT_IS, WHOLE
from tests import synthetic
from tests.test_structured_report import case
from tests.test_verify import pair

NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)


def write(folder, name="OP8", **attributes):
    """Source and derived file; the derived one where `enhance` puts it."""
    source, derived, data = pair(name, **attributes)
    folder.mkdir(parents=True, exist_ok=True)
    source.save_as(folder / "source.dcm", enforce_file_format=True)
    (folder / "pixels").write_bytes(data)
    target = folder / "out" / derived.StudyInstanceUID / derived.SeriesInstanceUID / f"{derived.SOPInstanceUID}.dcm"
    write_instance(derived, folder / "pixels", target)
    return folder / "source.dcm", target


@pytest.fixture
def good(tmp_path):
    return write(tmp_path)[1]


def states(*arguments, **more):
    return {result.path.rpartition("/")[2]: result.state for result in verify_files(*arguments, **more)}


def unmark(path, **changes):
    """Without the marks of ours, and altered; the rest stays."""
    content = dcmread(path)
    del content.InstanceCreatorUID, content.Manufacturer, content.ManufacturerModelName
    for keyword, value in changes.items():
        setattr(content, keyword, value)
    content.save_as(path)


@pytest.mark.parametrize("size", [0, 120, 140, 600, -9000, -100])
def test_a_cut_file_is_named_and_the_others_go_on(good, size):
    whole = good.read_bytes()
    cut = good.with_name("2.25.1.dcm")
    cut.write_bytes(whole[:size])
    (good.parent / "z.dcm").write_bytes(whole)
    found = states(good.parent)
    assert found.pop("2.25.1.dcm") in ("unreadable", "altered")
    assert found == {good.name: "ok", "z.dcm": "ok"}


def test_every_place_at_which_a_file_may_be_cut_is_seen(good):
    whole = good.read_bytes()
    for size in [*range(0, 4000, 61), *range(4000, len(whole), 397)]:
        good.write_bytes(whole[:size])
        assert set(states(good).values()) <= {"unreadable", "altered"}, size
        assert states(good), size


def test_an_unmarked_altered_file_is_reported(good):
    other = good.with_name("other.dcm")
    other.write_bytes(good.read_bytes())
    unmark(other, PatientID="P-9")
    assert states(good.parent) == {good.name: "ok", "other.dcm": "altered"}
    assert states(other) == {"other.dcm": "altered"}


@pytest.mark.parametrize("kept", ["CodingSchemeIdentificationSequence", "DerivationCodeSequence", None])
def test_what_still_shows_of_ours(good, kept):
    traces = {"ContributingEquipmentSequence", "CodingSchemeIdentificationSequence", "DerivationCodeSequence"} - {kept}
    other = good.with_name("2.25.12345678901234567890.dcm")
    other.write_bytes(good.read_bytes())
    unmark(other, **{keyword: [] for keyword in traces})
    assert states(good.parent) == {good.name: "ok", other.name: "altered"}
    assert states(other) == ({other.name: "altered"} if kept else {})  # alone, nothing tells


def test_what_others_made_is_passed_over(tmp_path, good):
    for name in ("1.2.3.4.5", "scan.dcm"):
        synthetic.make_file(good.with_name(name), "OP8")
    made_of_ours = dcmread(good)
    made_of_ours.Manufacturer = made_of_ours.ManufacturerModelName = "Others"
    made_of_ours.InstanceCreatorUID = "1.2.3"
    made_of_ours.DerivationCodeSequence = made_of_ours.CodingSchemeIdentificationSequence = []
    item = synthetic.dataset(Manufacturer="Others")
    made_of_ours.ContributingEquipmentSequence = [*made_of_ours.ContributingEquipmentSequence, item]
    made_of_ours.save_as(good.with_name("theirs.dcm"))
    (good.parent / "notes.txt").write_text("no DICOM")
    (good.parent / "empty").write_bytes(b"")
    assert states(tmp_path) == {good.name: "ok"}


def test_what_is_named_is_never_passed_over(tmp_path):
    (tmp_path / "notes.txt").write_text("no DICOM")
    assert states(tmp_path / "notes.txt") == {"notes.txt": "unreadable"}
    assert states(tmp_path) == {}
    with pytest.raises(InputError):
        list(verify_files(tmp_path / "none"))


def test_a_uid_for_a_name_is_enough_to_miss_what_was_in_it(good):
    bare = good.with_name(good.stem)
    bare.write_bytes(b"")
    assert states(good.parent) == {bare.name: "unreadable", good.name: "ok"}


def test_values_that_cannot_be_checked_stop_nothing(good):
    broken = good.with_name("a.dcm")
    content = dcmread(good)
    element = DataElement(0x0018A001, "OB", b"\1\2\3\4")
    element.VR = "UN"
    content[0x0018A001] = element
    content.save_as(broken)
    found = states(good.parent)
    assert found.pop("a.dcm") in ("unreadable", "altered")
    assert found == {good.name: "ok"}


def test_a_folder_that_cannot_be_listed_stops_nothing(tmp_path):
    for name in "ac":
        _, derived = write(tmp_path / "all" / name)
    (tmp_path / "all" / "b").mkdir()
    results = verify_files(tmp_path / "all")
    found = [next(results)]  # the walk has begun
    (tmp_path / "all" / "b").rmdir()
    found += results
    assert [(result.state, result.path.endswith(".dcm")) for result in found] == [
        ("ok", True), ("unreadable", False), ("ok", True)
    ]  # fmt: skip
    assert derived.name in found[-1].path


def test_a_zip_and_its_broken_end(tmp_path, good):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(good, "first.dcm")
        archive.writestr("second.dcm", b"")
        archive.writestr("notes.txt", "no DICOM")
    found = [(result.path.partition("!")[2], result.state) for result in verify_files(tmp_path / "a.zip")]
    assert found == [("first.dcm", "ok"), ("second.dcm", "unreadable")]
    content = bytearray((tmp_path / "a.zip").read_bytes())
    at = content.rindex(b"no DICOM", 0, content.index(b"PK\1\2"))
    content[at] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    assert [result.state for result in verify_files(tmp_path / "a.zip")] == ["ok", "unreadable", "unreadable"]


def test_meta_information_that_names_another_object(good):
    content = dcmread(good)
    content.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    content.save_as(good, enforce_file_format=False)
    assert [result.problems for result in verify_files(good)] == [
        ["MediaStorageSOPInstanceUID: another one than SOPInstanceUID"]
    ]


def test_something_between_header_and_pixels(good):
    content = good.read_bytes()
    at = content.rindex(b"\xe0\x7f\x10\x00OB")
    hidden = b"\xe0\x7f\x09\x00OD\0\0\x08\0\0\0" + b"\0" * 8  # Double Float Pixel Data
    good.write_bytes(content[:at] + hidden + content[at:])
    assert [result.state for result in verify_files(good)] == ["altered"]


@pytest.mark.parametrize("kind", ["CT", "US"])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_an_archive_may_keep_it_in_another_transfer_syntax(tmp_path, syntax, kind, decoder):
    source, derived = write(tmp_path, kind)
    content = dcmread(derived)
    if syntax == RLELossless:
        content.compress(RLELossless, generate_instance_uid=False)
    else:
        content.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian and kind == "CT":
            content.PixelData = np.frombuffer(content.PixelData, "<u2").byteswap().tobytes()
    dcmwrite(derived, content, enforce_file_format=True)
    assert [result.problems for result in verify_files(derived, source, decoder=decoder)] == [[]]
    content = bytearray(derived.read_bytes())
    content[-19] ^= 1
    derived.write_bytes(content)
    assert states(derived, source, decoder=decoder) == {derived.name: "altered"}


def test_an_element_that_is_there_twice(good):
    content = good.read_bytes()
    at = content.index(b"\x10\0\x20\0LO")
    good.write_bytes(content[:at] + b"\x10\0\x20\0LO\x04\0P-9 " + content[at:])
    assert dcmread(good).PatientID == "P-1"  # others take the first
    assert [result.problems for result in verify_files(good)] == [["an element that is there twice, or out of order"]]


def test_a_source_that_is_missing_cut_or_there_twice(tmp_path, decoder):
    source, derived = write(tmp_path / "one")
    assert states(derived, source, decoder=decoder) == {derived.name: "ok"}
    (tmp_path / "empty").mkdir()
    assert states(derived, tmp_path / "empty", decoder=decoder) == {derived.name: "source missing"}
    synthetic.make_file(tmp_path / "one" / "a-corrected.dcm", "OP8", PatientID="P-2")  # under the same UID
    assert states(derived, tmp_path / "one", decoder=decoder) == {derived.name: "ok"}
    (tmp_path / "one" / "b-cut.dcm").write_bytes(source.read_bytes()[:900])
    assert states(derived, tmp_path / "one", decoder=decoder) == {derived.name: "ok"}
    source.unlink()
    assert states(derived, tmp_path / "one", decoder=decoder) == {derived.name: "altered"}


@pytest.mark.slow
def test_a_corrected_source_is_told_from_an_altered_object(tmp_path):
    source = synthetic.make_file(tmp_path / "a.dcm", "CR", rows=24, columns=24)
    key = create_key(tmp_path / "key")
    settings = Settings(output=tmp_path / "out", recipe="identity", device="cpu", sign_key=tmp_path / "key")
    (outcome,) = Enhancement(settings, now=NOON).outcomes([source])
    target = Path(outcome.derived)
    assert [found.problems for found in verify_files(target, source, {key.id: key})] == [[]]
    synthetic.make_file(source, "CR", rows=24, columns=24, ImageLaterality="L")
    for keys, last in (({key.id: key}, SIGNED_AS_IT_IS), (None, WHOLE)):
        (found,) = verify_files(target, source, keys)
        assert (found.state, found.problems[-1]) == ("altered", last)
    target.write_bytes(target.read_bytes().replace(b"P-1 ", b"P-2 "))
    (found,) = verify_files(target, source)
    assert WHOLE not in found.problems
    (found,) = verify_files(target, source, {key.id: key})
    assert (found.state, SIGNED_AS_IT_IS in found.problems) == ("bad signature", False)


def test_a_report_is_held_against_its_image_wherever_that_comes(tmp_path):
    _, derived, document = case()
    (tmp_path / "pixels").write_bytes(bytes(16 * 12 * 3))
    recorded = derived.ContributingEquipmentSequence[-1]
    pixels = hashlib.sha256(bytes(16 * 12 * 3)).hexdigest()
    recorded.ContributionDescription = recorded.ContributionDescription.replace("00" * 32, pixels)
    seal(derived)
    write_document(document, tmp_path / "out" / "a-report.dcm")
    write_instance(derived, tmp_path / "pixels", tmp_path / "out" / "derived.dcm")
    assert states(tmp_path / "out") == {"derived.dcm": "ok", "a-report.dcm": "ok"}
    document.PatientID = "P-9"
    write_document(document, tmp_path / "out" / "a-report.dcm")
    assert states(tmp_path / "out") == {"derived.dcm": "ok", "a-report.dcm": "altered"}


@pytest.mark.parametrize(
    ("found", "code"),
    [
        ([], 3), (["ok"], 0), (["unreadable"], 6), (["ok", "unreadable"], 13), (["ok", "altered"], 13),
        (["altered"], 13), (["source missing"], 13), (["not signed"], 13), (["unknown key", "unreadable"], 13),
    ],
)  # fmt: skip
def test_exit_codes(found, code):
    assert exit_code(Counter(found)) == code


def test_the_command_names_every_file(good):
    whole = good.read_bytes()
    (good.parent / "cut.dcm").write_bytes(whole[:120])
    (good.parent / "altered.dcm").write_bytes(whole[:-9] + b"\1" + whole[-8:])
    done = CliRunner().invoke(app, ["verify", str(good.parent), "--json"])
    assert done.exit_code == 13
    said = json.loads(done.stdout)
    assert said["counts"] == {"altered": 1, "ok": 1, "unreadable": 1}
    assert {item["path"].rpartition("/")[2]: item["state"] for item in said["objects"]} == {
        good.name: "ok", "cut.dcm": "unreadable", "altered.dcm": "altered"
    }  # fmt: skip
    done = CliRunner().invoke(app, ["verify", str(good.parent)])
    assert "cut.dcm" in done.stdout
    assert "2 derived objects, 1 with problems, 1 unreadable files" in done.stdout
