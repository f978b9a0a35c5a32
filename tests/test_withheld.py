"""What the gate withholds: kept to be looked at, taken for a picture by nobody, and released by a person alone."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from typer.testing import CliRunner

from medenhance_dicom import releasing, selection, withheld
from medenhance_dicom.audit import Audit
from medenhance_dicom.cli import _exit_code_of, app
from medenhance_dicom.comparison.judging import judge_pairs
from medenhance_dicom.comparison.pairs import open_pairs
from medenhance_dicom.derive import PixelSummary, derive_instance
from medenhance_dicom.enhance import Enhancement
from medenhance_dicom.errors import ConfigurationError, InputError, TargetTakenError
from medenhance_dicom.frames import pixel_format
from medenhance_dicom.identity import recorded_digests, replaced_uid
from medenhance_dicom.node.jobfolder import LEDGER
from medenhance_dicom.node.trail import trail_path
from medenhance_dicom.part10 import looks_like_dicom
from medenhance_dicom.provenance import Provenance
from medenhance_dicom.recipe import load_recipes
from medenhance_dicom.releasing import release
from medenhance_dicom.selection import Settings
from medenhance_dicom.site_keys import create_key
from medenhance_dicom.verification.files import verify_files
from medenhance_dicom.verify import assert_derived
from tests import synthetic
from tests.test_report import SCHEMA

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
ULTRASOUND = Path("study", "us-abdomen.dcm")


def strict_recipes():
    """Those that are shipped, with a limit that nothing reaches."""
    return [r.model_copy(update={"gate": r.gate.model_copy(update={"minimum": 1.0})}) for r in load_recipes()]


def enhance(source, output, **options):
    run = Enhancement(Settings(output=output, device="cpu", **options), now=NOON)
    (outcome,) = run.outcomes([source])
    return outcome


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of a run that withheld its only picture, with previews, and the outcome."""
    output = tmp_path_factory.mktemp("run")
    source = Path(__file__).resolve().parent.parent / "sample_data" / ULTRASOUND
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "load_recipes", strict_recipes)
        return source, output, enhance(source, output, preview=True)


@pytest.fixture
def kept(run, tmp_path):
    """A copy of the kept picture, as if a run into `tmp_path` had kept it."""
    folder = tmp_path / "withheld"
    folder.mkdir()
    path = folder / Path(run[2].kept).name
    path.write_bytes(Path(run[2].kept).read_bytes())
    return path


def test_a_withheld_picture_is_kept_with_its_previews_and_nothing_is_written_where_pictures_lie(run):
    _, output, outcome = run
    assert (outcome.result, outcome.derived) == ("withheld", None)
    assert outcome.reason.startswith("LASSIM")
    stem = Path(outcome.kept).stem
    found = [path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()]
    assert sorted(name for name in found if not name.startswith(".")) == [
        f"withheld/{stem}{end}" for end in (".first-map.png", ".png", ".withheld")
    ]
    said = withheld.said_of(Path(outcome.kept))
    assert said["outcome"]["reason"] == outcome.reason
    assert datetime.fromisoformat(said["until"]) == NOON + timedelta(days=30)


def test_no_program_takes_it_for_a_picture(run):
    source, output, outcome = run
    kept = Path(outcome.kept)
    assert not looks_like_dicom(kept)
    with pytest.raises(InvalidDicomError):
        dcmread(kept)
    assert list(verify_files(output, source)) == []
    assert {o.result for o in Enhancement(Settings(device="cpu"), now=NOON).outcomes([output])} == {"skipped"}
    with open_pairs(source, output) as pairs:
        assert list(pairs) == []


@pytest.mark.slow
@pytest.mark.parametrize("place", ["file", "folder"])
def test_the_pair_can_be_judged_and_shown(run, place, monkeypatch, tmp_path):
    source, _, outcome = run
    monkeypatch.setattr(selection, "load_recipes", strict_recipes)
    kept = Path(outcome.kept)
    with open_pairs(source, kept if place == "file" else kept.parent, recipe="us-clahe") as pairs:
        (judged,) = judge_pairs(pairs)
    assert (judged.result, judged.pair.derived) == ("withheld", str(kept))
    assert judged.lassim == pytest.approx(outcome.lassim, abs=1e-6)
    if place == "file":
        page = tmp_path / "page.html"
        done = CliRunner().invoke(app, ["compare", str(source), str(kept), "--recipe", "us-clahe", "--html", str(page)])
        assert done.exit_code == 9
        assert page.read_text().count("data:image") >= 2


@pytest.mark.slow
def test_what_was_withheld_is_kept_where_that_is_asked_for_and_not_computed_again(samples, tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "load_recipes", strict_recipes)
    outcome = enhance(samples / ULTRASOUND, tmp_path / "out", keep_withheld=0)
    assert (outcome.result, outcome.kept) == ("withheld", None)
    assert not (tmp_path / "out" / "withheld").exists()
    outcome = enhance(samples / ULTRASOUND, tmp_path / "out")
    again = enhance(samples / ULTRASOUND, tmp_path / "out")
    assert (again.result, again.repeated, again.kept) == ("withheld", True, outcome.kept)
    Path(outcome.kept).unlink()  # as when its days are over
    again = enhance(samples / ULTRASOUND, tmp_path / "out")
    assert (again.result, again.repeated, again.kept) == ("withheld", True, None)
    assert enhance(samples / ULTRASOUND, tmp_path / "out", overwrite=True).kept == outcome.kept
    assert Path(outcome.kept).is_file()


def test_what_is_kept_goes_when_its_time_is_over(kept):
    (kept.parent / f"{kept.stem}.first-map.png").write_bytes(b"")
    (kept.parent / "other.withheld").write_bytes(b"something else")
    day = timedelta(days=1)
    assert withheld.drop_expired(kept.parent.parent, now=NOON + 29 * day) == []
    assert withheld.drop_expired(kept.parent.parent, now=NOON + 30 * day) == [kept]
    assert [path.name for path in kept.parent.iterdir()] == ["other.withheld"]


# ---------------------------------------------------------------- released


def test_a_released_object_says_who_why_and_the_verdict(run, kept, tmp_path):
    source = run[0]
    outcome, _ = release(kept, tmp_path, by="Test^One", reason="Both eyes  are compared", now=NOON)
    derived, before = dcmread(outcome.derived), dcmread(source)
    assert (outcome.result, outcome.reason) == ("released", f"RELEASED: by a person, although {run[2].reason}")
    assert "Structure check failed and was overruled (released by a person)" in derived.DerivationDescription
    assert derived.DerivationDescription.endswith("Released by a person: Both eyes are compared.")
    assert derived.SeriesDescription.endswith("[enhanced, released by a person]")
    assert str(derived.ContributingEquipmentSequence[-1].OperatorsName) == "Test^One"
    assert recorded_digests(derived)["released"] == "yes"
    assert derived.PatientID == before.PatientID
    assert not np.array_equal(derived.pixel_array, before.pixel_array)
    assert [found.problems for found in verify_files(Path(outcome.derived), source)] == [[]]


@pytest.mark.slow
def test_it_is_the_picture_that_was_withheld_in_a_series_of_its_own(run, kept, tmp_path):
    source = run[0]
    outcome, _ = release(kept, tmp_path, by="Test^One", reason="why", now=NOON)
    released = dcmread(outcome.derived)
    overruled = dcmread(enhance(source, tmp_path / "warned", recipe="us-clahe", gate="warn").derived)
    assert released.PixelData == overruled.PixelData
    assert released.StudyInstanceUID == overruled.StudyInstanceUID
    assert released.SeriesInstanceUID != overruled.SeriesInstanceUID
    assert released.SOPInstanceUID != overruled.SOPInstanceUID


def test_releasing_again_is_the_same_object_and_nobody_else_can_put_his_name_there(kept, tmp_path):
    said = {"by": "Test^One", "reason": "why", "now": NOON}
    first, _ = release(kept, tmp_path, **said)
    content = Path(first.derived).read_bytes()
    again, _ = release(kept, tmp_path, **said | {"now": NOON + timedelta(days=1)})
    assert (again.repeated, again.derived, first.repeated) == (True, first.derived, False)
    for other in ({"by": "Test^Two"}, {"reason": "another"}):
        with pytest.raises(TargetTakenError, match="released before"):
            release(kept, tmp_path, **said | other)
    assert Path(first.derived).read_bytes() == content


def test_a_key_that_comes_later_signs_and_lets_nobody_else_in(kept, tmp_path):
    said = {"by": "Test^One", "reason": "why", "now": NOON}
    release(kept, tmp_path, **said)
    key = create_key(tmp_path / "key")
    with pytest.raises(TargetTakenError):
        release(kept, tmp_path, **said | {"by": "Test^Two"}, sign_key=tmp_path / "key")
    signed, _ = release(kept, tmp_path, **said, sign_key=tmp_path / "key")
    assert [found.state for found in verify_files(Path(signed.derived), keys={key.id: key})] == ["ok"]
    assert release(kept, tmp_path, **said, sign_key=tmp_path / "key")[0].repeated


@pytest.mark.slow
def test_a_corrected_source_replaces_what_was_released(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "load_recipes", strict_recipes)
    source, output = tmp_path / "a.dcm", tmp_path / "out"
    made = []
    for side in "RLU":
        synthetic.make_file(source, "CR", rows=64, columns=64, ImageLaterality=side)
        withheld_now = enhance(source, output)
        assert withheld_now.result == "withheld"
        for _ in range(2):  # twice is once
            released, _ = release(Path(withheld_now.kept), output, by="Test^One", reason="why", now=NOON)
        assert released.replaces == (made[-1].derived_sop_instance_uid if made else None)
        assert replaced_uid(dcmread(released.derived)) == released.replaces
        made.append(released)
    plain = enhance(source, output, gate="warn")  # of the same source
    assert plain.replaces == made[1].derived_sop_instance_uid


def test_what_is_named_by_mistake_is_called_what_it_is(kept, tmp_path):
    done = CliRunner().invoke(app, ["enhance", str(kept), "-o", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 6
    assert "withheld, see `compare` and `release`" in json.loads(done.stdout)["outcomes"][0]["reason"]
    (found,) = verify_files(kept)
    assert (found.state, "withheld" in found.problems[0]) == ("unreadable", True)
    words = ["release", str(kept), "--reason", "why", "--by"]
    assert CliRunner().invoke(app, [*words, "Test^One"]).exit_code == 0
    error = CliRunner().invoke(app, [*words, "Test^Two"]).exception
    assert isinstance(error, TargetTakenError)
    assert _exit_code_of(error) == 7


@pytest.mark.parametrize("name", ["CT", "EnhancedMR", "OP8"])
def test_objects_of_every_build_can_be_released(name):
    source = synthetic.make_instance(name)
    summary = PixelSummary("ab" * 32, pixel_format(source), int(source.get("NumberOfFrames", 1)), "5e" * 32)
    said = "Structure check failed and the picture was withheld: LaSSIM 0.412 of at least 0.8."
    provenance = Provenance(
        recipe="r", recipe_digest="cd" * 32, method="clahe", made=NOON, verdict=said, not_quantitative=True
    )
    derived = derive_instance(source, summary, provenance)
    before = derived.to_json()
    made = releasing.released(derived, by="Test^One", reason="why", now=NOON)
    assert derived.to_json() == before
    assert assert_derived(made, source, pixel_digest="ab" * 32) == []
    assert len(made.SeriesDescription) <= 64
    assert made.SeriesDescription.endswith("released by a person]")
    groups = made.get("PerFrameFunctionalGroupsSequence", [])
    for place in [g.DerivationImageSequence[0] for g in groups] or [made]:
        assert "withheld" not in place.DerivationDescription
        assert place.DerivationDescription.endswith("Released by a person: why.")


def test_a_released_object_is_signed_where_the_site_has_a_key(kept, tmp_path):
    key = create_key(tmp_path / "key")
    outcome, _ = release(kept, tmp_path, by="Test^One", reason="why", now=NOON, sign_key=tmp_path / "key")
    (found,) = verify_files(Path(outcome.derived), keys={key.id: key})
    assert (found.state, found.problems) == ("ok", [])


@pytest.mark.parametrize("place", [600, -1, 2000])
def test_an_altered_picture_is_not_released(kept, tmp_path, place):
    content = bytearray(kept.read_bytes())
    content[place if place < 0 else content.index(b"DICM") + place] ^= 1
    kept.write_bytes(content)
    with pytest.raises(InputError):
        release(kept, tmp_path, by="Test^One", reason="why", now=NOON)
    kept.write_bytes(content[:-100])
    with pytest.raises(InputError):
        release(kept, tmp_path, by="Test^One", reason="why", now=NOON)
    assert not list(tmp_path.rglob("*.dcm"))


@pytest.mark.parametrize("line", [
    b"[]", b"null", b"{}", b'{"until": 5}', b"[" * 100_000, b"\xff",
    b'{"until": "2026-01-01", "device": "cpu", "engine": "torch", "precision": "fp32", "outcome": {}}',
])  # fmt: skip
def test_a_damaged_line_is_an_altered_picture_and_stops_no_run(line, kept, tmp_path):
    first, _, rest = kept.read_bytes().split(b"\n", 2)
    kept.write_bytes(b"\n".join([first, line, rest]))
    with pytest.raises(InputError, match="cut or altered"):
        release(kept, tmp_path, by="Test^One", reason="why", now=NOON)
    assert withheld.drop_expired(tmp_path, now=NOON + timedelta(days=1000)) == []
    assert kept.exists()


@pytest.mark.slow
def test_what_was_kept_and_is_damaged_is_kept_again(tmp_path, monkeypatch):
    monkeypatch.setattr(selection, "load_recipes", strict_recipes)
    source = synthetic.make_file(tmp_path / "a.dcm", "CR", rows=64, columns=64)
    path = Path(enhance(source, tmp_path).kept)
    whole = path.read_bytes()
    for damaged in (b"", whole[:2000], whole[:-1], whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:]):
        path.write_bytes(damaged)
        again = enhance(source, tmp_path)
        assert (again.result, again.repeated, again.kept) == ("withheld", False, str(path))
        assert path.read_bytes()[-1000:] == whole[-1000:]
        assert enhance(source, tmp_path).repeated
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("withheld", ".derived"):
        (tmp_path / name).rename(moved / name)
    again = enhance(source, moved)
    assert (again.repeated, again.kept) == (True, str(moved / "withheld" / path.name))


@pytest.mark.parametrize("said", [
    {"by": ""}, {"by": "A" * 65}, {"by": "A\\B"}, {"by": "A=B"}, {"reason": " "},
    {"reason": "x" * (releasing.MOST_REASON + 1)}, {"reason": "a\0b"},
])  # fmt: skip
def test_who_and_why_have_to_be_said(kept, tmp_path, said):
    with pytest.raises(ConfigurationError):
        release(kept, tmp_path, **{"by": "Test^One", "reason": "why", "now": NOON} | said)


def test_the_longest_reason_fits_the_description(kept, tmp_path):
    outcome, _ = release(kept, tmp_path, by="Test^One", reason="y" * releasing.MOST_REASON, now=NOON)
    derived = dcmread(outcome.derived)
    assert len(derived.DerivationDescription) <= 1024
    assert derived.DerivationDescription.endswith(f"{'y' * releasing.MOST_REASON}.")


def test_the_command_reports_and_the_trail_of_a_node_gets_a_line(kept, tmp_path):
    words = ["release", str(kept), "--by", "Test^One", "--reason", "why", "--json"]
    done = CliRunner().invoke(app, words)
    value = json.loads(done.stdout)
    jsonschema.validate(value, SCHEMA)
    assert (done.exit_code, value["counts"]) == (0, {"released": 1})
    assert value == json.loads((tmp_path / "run_report.json").read_text())

    store = tmp_path / "store"
    Audit(trail_path(store)).append("begun")
    of_node = store / "withheld" / "job" / kept.name
    of_node.parent.mkdir(parents=True)
    kept.rename(of_node)
    config = tmp_path / "node.toml"
    config.write_text('store = "store"\n')
    words[1] = str(of_node)
    assert CliRunner().invoke(app, words).exit_code == 2
    done = CliRunner().invoke(app, [*words, "--config", str(config), "-o", str(tmp_path / "given")])
    assert done.exit_code == 0
    assert list((store / LEDGER).iterdir())  # where the node looks for what a correction replaces
    (event,) = Audit(trail_path(store)).events("job")
    assert (event["event"], event["by"], event["why"]) == ("released", "Test^One", "why")
