"""What was done before: not done again, taken up where it stopped, and named by what replaces it."""

from __future__ import annotations

import importlib.util
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread, dcmwrite
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

from medenhance_dicom import prepare
from medenhance_dicom.enhance import Enhancement, InstanceResult
from medenhance_dicom.gate import Thresholds
from medenhance_dicom.identity import recorded_digests, replaced_uid
from medenhance_dicom.ledger import Entry, Ledger
from medenhance_dicom.selection import Settings
from medenhance_dicom.verification.files import verify_files
from tests import synthetic

NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)

needs_openvino = pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is not installed")


@pytest.fixture
def enhance(decoder, tmp_path):
    """The outcomes of a run over some paths into one folder."""

    def run(*paths, output=tmp_path / "out", **options):
        settings = Settings(output=output, device="cpu", **{"recipe": "identity"} | options)
        return Enhancement(settings, now=NOON).outcomes(paths, decoder=decoder)

    return run


@pytest.fixture
def enhanced(monkeypatch):
    """Names of the sources whose frames went through an enhancer, as they come."""
    seen = []
    add = InstanceResult.add

    def counted(self, frame, after):
        seen.append(frame.member.located.path.name)
        return add(self, frame, after)

    monkeypatch.setattr(InstanceResult, "add", counted)
    return seen


def make_series(folder, number=6, name="CR", **attributes):
    folder.mkdir()
    return [
        synthetic.make_file(folder / f"{n}.dcm", name, rows=24, columns=24, SOPInstanceUID=f"1.2.3.{n}",
                            InstanceNumber=n, **attributes)
        for n in range(1, number + 1)
    ]  # fmt: skip


def make(path, **attributes):
    return synthetic.make_file(path, "CR", rows=24, columns=24, **attributes)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_stopped(enhance, enhanced, tmp_path):
    make_series(tmp_path / "in")
    whole = [o.result for o in enhance(tmp_path / "in", output=tmp_path / "whole")]
    with closing(enhance(tmp_path / "in")) as outcomes:
        done = [next(outcomes) for _ in range(3)]
    enhanced.clear()
    again = list(enhance(tmp_path / "in"))
    assert enhanced == ["4.dcm", "5.dcm", "6.dcm"]
    assert [o.result for o in again] == whole
    assert [o.repeated for o in again] == [True] * 3 + [False] * 3
    for before, after in zip(done, again, strict=False):
        assert (after.derived, after.lassim, after.verdict) == (before.derived, before.lassim, before.verdict)
    enhanced.clear()
    assert all(o.repeated for o in enhance(tmp_path / "in"))
    assert not enhanced


def test_what_was_withheld_is_not_enhanced_again_until_the_gate_changes(enhance, enhanced, monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, "thresholds_of", lambda recipe: Thresholds(minimum=1, warn_below=1))
    source = make(tmp_path / "a.dcm")
    (first,), (second,) = enhance(source, recipe="cr-dx-clahe"), enhance(source, recipe="cr-dx-clahe")
    assert (first.result, first.repeated, second.result, second.repeated) == ("withheld", False, "withheld", True)
    assert (second.reason, second.lassim, second.verdict) == (first.reason, first.lassim, first.verdict)
    assert enhanced == ["a.dcm"]
    (released,) = enhance(source, recipe="cr-dx-clahe", gate="off")
    assert (released.result, released.repeated, len(enhanced)) == ("enhanced", False, 2)
    monkeypatch.setattr(prepare, "thresholds_of", lambda recipe: Thresholds(minimum=0, warn_below=0))
    (judged,) = enhance(source, recipe="cr-dx-clahe", gate="off")  # by other limits
    assert (judged.derived, judged.repeated, len(enhanced)) == (released.derived, True, 3)


def test_other_pixels_under_the_same_header_are_enhanced(enhance, tmp_path):
    source = make(tmp_path / "a.dcm")
    (before,) = enhance(source)
    content = bytearray(source.read_bytes())
    content[-4] ^= 1
    source.write_bytes(content)
    (after,) = enhance(source)
    assert (after.result, after.repeated, after.replaces) == ("enhanced", False, before.derived_sop_instance_uid)


def test_what_was_removed_or_damaged_is_made_again(enhance, enhanced, tmp_path):
    source = make(tmp_path / "a.dcm")
    (before,) = enhance(source)
    target, whole = Path(before.derived), Path(before.derived).read_bytes()
    target.unlink()
    (again,) = enhance(source)
    assert (again.reason, again.repeated, target.read_bytes()) == (None, False, whole)
    target.write_bytes(whole[:-50])
    (again,) = enhance(source)
    assert (again.reason, target.read_bytes()) == ("REWRITTEN: the file there was damaged", whole)
    assert next(enhance(source)).reason is None
    assert len(enhanced) == 3
    (overwritten,) = enhance(source, overwrite=True)
    assert (overwritten.repeated, len(enhanced)) == (False, 4)


@pytest.mark.slow
def test_what_is_asked_for_beside_the_object_is_made(enhance, enhanced, tmp_path):
    source = make(tmp_path / "a.dcm")
    list(enhance(source))
    (drawn,) = enhance(source, preview=True)
    assert drawn.repeated
    assert Path(drawn.derived).with_suffix(".png").is_file()
    assert len(enhanced) == 2
    (reported,) = enhance(source, preview=True, structured_report=True)
    assert len(enhanced) == 2
    assert Path(reported.structured_report).is_file()
    assert [r.problems for r in verify_files(tmp_path / "out", source)] == [[], []]


def test_corrections_name_what_they_replace_and_make_no_circle(enhance, tmp_path):
    source = tmp_path / "a.dcm"
    made = {}
    for name in ("Test^One", "Test^Two", "Test^Three"):
        (made[name],) = enhance(make(source, PatientName=name))
    one, two, three = (outcome.derived_sop_instance_uid for outcome in made.values())
    assert [outcome.replaces for outcome in made.values()] == [None, one, two]
    for outcome, replaced in zip(made.values(), (None, one, two), strict=True):
        assert replaced_uid(dcmread(outcome.derived)) == replaced
    content = Path(made["Test^Three"].derived).read_bytes()
    assert b"Test^Three" in content
    assert b"Test^One" not in content
    assert b"Test^Two" not in content
    (back,) = enhance(make(source, PatientName="Test^One"))
    assert (back.derived_sop_instance_uid, back.repeated, back.replaces) == (one, True, None)
    assert back.reason == f"RETURNED: its source says again what it said before {three} was made of it"
    assert next(enhance(source)).reason is None
    (four,) = enhance(make(source, PatientName="Test^Four"))
    assert four.replaces == one
    for name, outcome in made.items():  # made anew, they say what they said
        make(source, PatientName=name)
        before = Path(outcome.derived).read_bytes()
        (again,) = enhance(source, overwrite=True)
        assert (again.replaces, Path(again.derived).read_bytes()) == (outcome.replaces, before)
    assert [r.problems for r in verify_files(tmp_path / "out", None)] == [[]] * 4


@pytest.mark.parametrize(
    "corrected", [{"AccessionNumber": "A2"}, {"PatientOrientation": ["R", "F"]}, {"WindowCenter": "1000"}]
)
def test_any_correction_replaces(corrected, enhance, tmp_path):
    (before,) = enhance(make(tmp_path / "a.dcm"))
    (after,) = enhance(make(tmp_path / "a.dcm", **corrected))
    assert after.replaces == before.derived_sop_instance_uid != after.derived_sop_instance_uid


@pytest.mark.parametrize(
    ("before", "after", "keyword", "value"),
    [
        ("corrected_before", "corrected_after", "PatientID", "RIGHT-2"),
        ("lat_before", "lat_after", "ImageLaterality", "L"),
    ],
)
def test_corrected_files(before, after, keyword, value, enhance, cases_folder):
    (first,), (second,) = enhance(cases_folder / before), enhance(cases_folder / after)
    assert second.replaces == first.derived_sop_instance_uid
    assert dcmread(second.derived)[keyword].value == value
    assert [r.problems for r in verify_files(Path(second.derived), cases_folder / after)] == [[]]


def test_the_ledger_names_no_patient(enhance, tmp_path):
    said = {"PatientName": "Test^Unlikely", "PatientID": "UNLIKELY-1", "AccessionNumber": "ACC-UNLIKELY"}
    list(enhance(make(tmp_path / "a.dcm", PatientBirthDate="19630207", StudyDescription="unlikely", **said)))
    (ledger,) = (tmp_path / "out" / ".derived").iterdir()
    content = ledger.read_bytes().lower()
    assert json.loads(content)["result"] == "enhanced"
    assert b"unlikely" not in content
    assert b"19630207" not in content


def test_the_ledger_may_lie_elsewhere(enhance, enhanced, tmp_path):
    source = make(tmp_path / "a.dcm")
    (one,) = enhance(source, output=tmp_path / "one", ledger=tmp_path / "ledger")
    make(source, PatientID="P-2")
    (two,) = enhance(source, output=tmp_path / "two", ledger=tmp_path / "ledger")
    assert two.replaces == one.derived_sop_instance_uid
    assert not (tmp_path / "two" / ".derived").exists()


# ------------------------------------------------------------------------------------------------ one identity


def test_containers_of_one_instance_are_one_object(enhance, tmp_path):
    uids = set()
    for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless, ExplicitVRBigEndian):
        source = synthetic.make_instance("CR", rows=24, columns=24)
        if syntax == RLELossless:
            source.compress(RLELossless, generate_instance_uid=False)
        source.file_meta.TransferSyntaxUID = syntax
        path = tmp_path / f"{syntax}.dcm"
        if syntax == ExplicitVRBigEndian:
            source["PixelData"].value = np.frombuffer(source.PixelData, "<u2").byteswap().tobytes()
        dcmwrite(path, source)
        (outcome,) = enhance(path, output=tmp_path / syntax)
        uids.add((outcome.derived_sop_instance_uid, Path(outcome.derived).parent.name))
        recorded = recorded_digests(dcmread(outcome.derived))
        uids.add(tuple(recorded.values()))
    assert len(uids) == 2


def test_a_series_and_its_instances_one_by_one_are_the_same_objects(enhance, tmp_path):
    paths = make_series(tmp_path / "in", 3)

    def made(outcome):
        derived = dcmread(outcome.derived)
        return derived.SOPInstanceUID, derived.SeriesInstanceUID, recorded_digests(derived)

    how = {"recipe": "cr-dx-clahe", "gate": "off"}
    together = [made(outcome) for outcome in enhance(*paths, **how)]
    assert [made(next(enhance(path, output=tmp_path / path.stem, **how))) for path in paths] == together


@pytest.mark.slow
@pytest.mark.parametrize("how", [("torch", "bf16"), pytest.param(("openvino", "fp32"), marks=needs_openvino)])
def test_engine_and_precision_give_other_pixels_and_the_same_object(how, samples, decoder, tmp_path):
    made = []
    for engine, precision in (("torch", "fp32"), how):
        output = tmp_path / f"{engine}-{precision}"
        settings = Settings(output=output, device="cpu", engine=engine, precision=precision, gate="warn")
        made += Enhancement(settings, now=NOON).outcomes([samples / "study" / "op-cornea.dcm"], decoder=decoder)
    one, other = (dcmread(outcome.derived) for outcome in made)
    assert one.SOPInstanceUID == other.SOPInstanceUID
    assert recorded_digests(one)["pixels"] != recorded_digests(other)["pixels"]
    assert recorded_digests(one)["header"] == recorded_digests(other)["header"]


# ------------------------------------------------------------------------------------------------ the ledger itself


def entry(source="1.2.3", derived="2.25.1", **values):
    known = {"said": "aa", "pixels": "bb", "gate": "cc", "rule": 2, "result": "enhanced", "derived_series": "2.25.9"}
    return Entry(source=source, derived=derived, header="h" + str(derived), **known | values)


def test_entries_come_back_last_first(tmp_path):
    ledger = Ledger(tmp_path / "new", "1.2", "r", None, None)
    assert list(ledger.entries("1.2.3")) == []
    lines = [entry(), entry(source="1.2.4"), entry(derived="2.25.2", replaces="2.25.1", verdict={"passed": True})]
    for line in lines:
        ledger.add(line)
    for opened in (ledger, Ledger(tmp_path / "new", "1.2", "r", None, None)):
        assert list(opened.entries("1.2.3")) == [lines[2], lines[0]]
        assert opened.last("1.2.3") == "2.25.2"
        assert opened.replaced("1.2.3", "2.25.3", ("h3", "bb")) == ("2.25.2", "2.25.9")
        assert opened.replaced("1.2.3", "2.25.2", ("h2.25.2", "bb")) == ("2.25.1", "2.25.9")
        assert opened.replaced("1.2.3", "2.25.1", ("h2.25.1", "bb")) is None
    assert list(Ledger(tmp_path / "new", "1.2", "r", "weights", None).entries("1.2.3")) == []


def test_a_torn_or_foreign_line_is_passed_over(tmp_path):
    ledger = Ledger(tmp_path, "1.2", "r", None, None)
    ledger.add(entry())
    with ledger.path.open("ab") as file:
        file.write(b'[1]\n{"source": "1.2.3"}\n{"source": "1.2.3", "said"')
    opened = Ledger(tmp_path, "1.2", "r", None, None)
    opened.add(entry(derived="2.25.2"))
    opened.add(entry(derived="2.25.3"))
    for one in (opened, Ledger(tmp_path, "1.2", "r", None, None)):
        assert [found.derived for found in one.entries("1.2.3")] == ["2.25.3", "2.25.2", "2.25.1"]


@pytest.mark.slow
@pytest.mark.parametrize("values", [
    {"source": ["x"]}, {"source": {}}, {"result": "of a version to come"}, {"result": []}, {"reason": 5}, {"kept": 5},
    {"derived": "a\0b"}, {"derived": "../../x"}, {"derived": ["x"]}, {"derived_series": None}, {"verdict": None},
    {"left_behind": None}, {"left_behind": [1]}, {"lassim": "x"}, {"rule": "1"}, {"header": {}},
])  # fmt: skip
def test_a_line_of_another_kind_is_passed_over(values, enhance, tmp_path):
    source = make(tmp_path / "a.dcm")
    list(enhance(source))
    (path,) = (tmp_path / "out" / ".derived").iterdir()
    line = json.dumps(json.loads(path.read_text()) | values)
    path.write_text(f"{line}\n{'[' * 100_000}\n")
    (again,) = enhance(source)
    assert (again.result, again.repeated) == ("enhanced", True)
    (corrected,) = enhance(make(tmp_path / "a.dcm", PatientID="P-2"))
    assert (corrected.result, corrected.replaces) == ("enhanced", again.derived_sop_instance_uid)


def test_what_an_earlier_run_judged_otherwise_is_told(enhance, monkeypatch, tmp_path):
    limits = Thresholds(minimum=0, warn_below=0)
    monkeypatch.setattr(prepare, "thresholds_of", lambda recipe: limits)
    source = make(tmp_path / "a.dcm")
    (first,) = enhance(source, recipe="cr-dx-clahe")
    limits = Thresholds(minimum=1, warn_below=1)
    for repeated in (False, True):
        (again,) = enhance(source, recipe="cr-dx-clahe")
        assert (again.result, again.repeated) == ("withheld", repeated)
        assert f"EARLIER: {Path(first.derived).name} is still there" in again.reason
    for _ in range(2):
        (again,) = enhance(source, recipe="cr-dx-clahe", gate="warn")
        assert (again.result, again.repeated, again.derived) == ("warned", True, first.derived)
        assert "what an earlier run found (structure check passed)" in again.reason
    (written,) = enhance(source, recipe="cr-dx-clahe", gate="warn", overwrite=True)
    (again,) = enhance(source, recipe="cr-dx-clahe", gate="warn")
    assert "EARLIER" not in written.reason + again.reason
    assert again.repeated


def test_many_append_at_once(tmp_path):
    def fill(worker):
        ledger = Ledger(tmp_path, "1.2", "r", None, None)
        for number in range(20):
            ledger.add(entry(source=f"1.2.{worker}", derived=f"2.25.{number}", reason="x" * 5000))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fill, range(8)))
    ledger = Ledger(tmp_path, "1.2", "r", None, None)
    assert [len(list(ledger.entries(f"1.2.{worker}"))) for worker in range(8)] == [20] * 8
