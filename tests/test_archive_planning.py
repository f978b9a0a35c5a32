"""A plan is made of what is there: found, judged, sampled; killed in the middle it is made to its end."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from medenhance_dicom.archive import planning, reporting
from medenhance_dicom.archive.plan import Method, Plan
from medenhance_dicom.errors import ConfigurationError, InputError, PeerError
from tests import archives
from tests.synthetic import make_file

NOW = datetime(2024, 2, 3, tzinfo=UTC)


def make_archive(folder):
    """Two series of ultrasound, one of endoscopy, CT that is off by default, and what is no picture."""
    for series, name, count in ((1, "US", 2), (2, "US", 1), (3, "VLEndoscopic", 2), (4, "CT", 1)):
        (folder / str(series)).mkdir(parents=True)
        for n in range(count):
            make_file(
                folder / str(series) / f"{n}.dcm",
                name,
                SeriesInstanceUID=f"1.2.826.0.1.9999.2.{series}",
                SOPInstanceUID=f"1.2.826.0.1.9999.3.{series}.{n}",
                Manufacturer="Maker",
                ManufacturerModelName=f"M{series % 2}",
            )
    (folder / "notes.txt").write_text("not a picture\n" * 20)
    (folder / "empty.dcm").touch()
    shutil.copy(folder / "1" / "0.dcm", folder / "copy.dcm")
    (folder / "4" / "1.dcm").write_bytes((folder / "4" / "0.dcm").read_bytes()[:400])
    return folder


def on_disk(folder):
    return sorted(str(path) for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def archive(tmp_path):
    return make_archive(tmp_path / "archive")


@pytest.fixture
def plan(tmp_path, archive):
    with Plan(tmp_path / "plan", create=True) as made:
        made.set_options({"recipe": "auto"})
        made.add_source(planning.source_name(str(archive)))
        yield made


def test_every_series_has_a_method_or_a_reason(plan, archive):
    assert planning.make_plan(plan) == planning.Judged(chosen=3, left_out=1)
    methods = plan.methods()
    chosen = {series.series[-1]: methods[series.method].recipe for series in plan.open_series()}
    assert chosen == {"1": "us-clahe", "2": "us-clahe", "3": "es-endoscopy-hqgnet"}
    assert any(method.guide_digest for method in methods.values())
    found = list(reporting.files(plan))
    assert sorted(one["file"] for one in found) == on_disk(archive)
    reasons = {one["file"].removeprefix(f"{archive}/"): one["reason"] for one in found}
    assert reasons["notes.txt"].startswith("NOT_DICOM")
    assert reasons["4/0.dcm"].startswith("OFF_BY_DEFAULT") or "CT" in reasons["4/0.dcm"]
    assert sum((one["reason"] or "").startswith("DUPLICATE") for one in found) == 1
    assert planning.make_plan(plan) == planning.Judged()  # nothing is new


def test_two_patients_in_one_series_are_refused_by_name_until_that_is_corrected(plan, archive):
    planning.make_plan(plan)
    more = {"SeriesInstanceUID": "1.2.826.0.1.9999.2.1", "SOPInstanceUID": "1.2.826.0.1.9999.3.1.9"}
    make_file(archive / "1" / "9.dcm", "US", PatientID="another", **more)
    assert planning.make_plan(plan) == planning.Judged(left_out=1)
    reasons = {one["file"]: one["reason"] for one in reporting.files(plan)}
    for name in ("0", "1", "9"):
        said = "CONFLICT: PatientID differs between instances of one Series Instance UID"
        assert reasons[str(archive / "1" / f"{name}.dcm")] in (said, "DUPLICATE")
    make_file(archive / "1" / "9.dcm", "US", **more)
    assert planning.make_plan(plan) == planning.Judged(chosen=1)


def test_a_series_that_was_left_out_is_judged_again_when_more_of_it_is_there(plan, archive):
    planning.make_plan(plan)
    more = archive / "4" / "2.dcm"
    make_file(more, "US", SeriesInstanceUID="1.2.826.0.1.9999.2.4", SOPInstanceUID="1.2.826.0.1.9999.3.4.9")
    assert planning.make_plan(plan) == planning.Judged(chosen=1)
    assert len({row["file"]: row["result"] for row in reporting.files(plan)}) == len(on_disk(archive))


def test_other_options_have_everything_judged_again(plan):
    planning.make_plan(plan)
    plan.set_options({"recipe": "auto", "allow": ["CT"]})
    assert planning.make_plan(plan).chosen == 4


def test_a_named_recipe_is_planned_only_for_what_it_is_for(plan):
    plan.set_options({"recipe": "us-clahe"})
    assert planning.make_plan(plan) == planning.Judged(chosen=2, left_out=2)
    reasons = {one["reason"] for one in reporting.files(plan) if (one["reason"] or "").startswith("WRONG_KIND")}
    assert reasons == {"WRONG_KIND: recipe us-clahe is not for SOP Class UID VL Endoscopic Image Storage, Modality ES"}


def test_other_recipes_have_everything_judged_again(plan, monkeypatch):
    planning.make_plan(plan)
    before = {series.series: series.method for series in plan.open_series()}
    changed = [r.model_copy(update={"version": r.version + 1}) for r in planning.recipes_of(planning.settings_of({}))]
    monkeypatch.setattr(planning, "recipes_of", lambda settings: changed)
    assert planning.make_plan(plan).chosen == 3
    after = {series.series: series.method for series in plan.open_series()}
    assert not set(before.values()) & set(after.values())


class Failing:
    """A source that breaks off after some items."""

    def __init__(self, source, after):
        self.source, self.after, self.name = source, after, source.name
        self.read = 0

    def scan(self, known):
        for n, item in enumerate(self.source.scan(known)):
            if n == self.after:
                raise InputError("the share went away")
            self.read += 1
            yield item

    def fetch(self, wanted, folder):
        return self.source.fetch(wanted, folder)


def test_a_walk_that_broke_off_is_taken_up(plan, archive, monkeypatch):
    sources = []

    def open_failing(text, **options):
        sources.append(Failing(planning_open(text, **options), 4 if not sources else 10**9))
        return sources[-1]

    planning_open = planning.open_source
    monkeypatch.setattr(planning, "open_source", open_failing)
    with pytest.raises(InputError, match="went away"):
        planning.find(plan)
    known = sum(1 for _ in plan.query("SELECT 1 FROM instance"))
    assert known + plan.counts()["left_out"] == 4
    planning.make_plan(plan)
    assert sources[1].read == len(on_disk(archive)) - known  # what is an instance was not read twice
    assert sorted(one["file"] for one in reporting.files(plan)) == on_disk(archive)


def test_a_source_that_fails_for_now_leaves_series_for_later(plan, monkeypatch):
    planning.find(plan)
    calls = []

    def away(self, rows, folder):
        calls.append(rows)
        if len(calls) == 1:
            raise PeerError("busy")
        return bring(self, rows, folder)

    bring = planning.Bringing.__call__
    monkeypatch.setattr(planning.Bringing, "__call__", away)
    assert planning.judge(plan).later == 1
    monkeypatch.setattr(planning.Bringing, "__call__", bring)
    judged = planning.judge(plan)
    assert judged.chosen + judged.left_out == 1

    monkeypatch.setattr(planning.Bringing, "__call__", lambda *_: (_ for _ in ()).throw(PeerError("gone")))
    plan.judge_again()
    with pytest.raises(PeerError):
        planning.judge(plan)


def test_an_unreadable_representative_speaks_only_for_itself(plan, archive, monkeypatch):
    planning.find(plan)
    verdict = planning._Judge._verdict
    first = {}

    def broken(self, row):
        return "UNREADABLE: broken" if first.setdefault(row.series, row.id) == row.id else verdict(self, row)

    monkeypatch.setattr(planning._Judge, "_verdict", broken)
    planning.judge(plan)
    told = {s.series[-1]: s.reason for s in (plan.series(n) for (n,) in plan.query("SELECT id FROM series"))}
    assert told["1"] is None  # its other instance can be read
    assert told["2"] == "UNREADABLE: broken"


def test_two_do_not_plan_at_once(plan):
    with planning.locked(plan.folder / "plan.lock"), pytest.raises(ConfigurationError, match="another process"):
        planning.make_plan(plan)
    assert planning.make_plan(plan).chosen == 3


def test_methods_of_a_mixed_series_are_one():
    one, other = Method("a", "1" * 64), Method("b", "2" * 64, "w", "3" * 64)
    assert planning.joined([one, one]) == one
    both = planning.joined([one, other])
    assert both == planning.joined([other, one])
    assert sorted(both.recipe.split(" + ")) == ["a", "b"]
    assert both.key not in (one.key, other.key)
    assert planning.joined([one, Method("b", "2" * 64)]).key != both.key


def test_source_names_hold_everywhere(tmp_path, monkeypatch):
    (tmp_path / "pics").mkdir()
    monkeypatch.chdir(tmp_path)
    assert planning.source_name("pics") == str(tmp_path / "pics")
    assert planning.source_name("@some.csv from PACS@host:104") == f"@{tmp_path}/some.csv from PACS@host:104"
    for text in ("PACS@host:104?Modality=OP", "https://host/dicom-web", "s3://bucket/prefix"):
        assert planning.source_name(text) == text


@pytest.mark.slow
def test_a_sample_forecasts_and_is_measured_once(plan, tmp_path, monkeypatch):
    plan.set_options({"recipe": "identity"})
    planning.make_plan(plan)
    told = []
    found = planning.Sampling(plan, 1.0, now=NOW).run(tell=lambda *step: told.append(step))
    assert found.total.series == found.total.sampled == 3
    assert found.total.withheld_share.value == 0
    assert found.total.bytes.value > 0
    assert told[-1] == ("sampling", 3, 3)
    stored = plan.meta("forecast")
    assert stored["total"]["series"] == 3
    assert {row["modality"] for row in stored["strata"]} == {"US", "ES"}
    monkeypatch.setattr(planning.Sampling, "_measure", None)  # it would be called
    assert planning.Sampling(plan, 1.0, now=NOW).run().total == found.total
    assert not list((tmp_path / "plan" / "scratch").glob("*/*"))


CHILD = """
import os, signal, sys
from pathlib import Path
from medenhance_dicom.archive import plan, planning

planning.BATCH, left = 2, [int(sys.argv[3])]

def step():
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def around(function):
    def called(*args, **kwargs):
        step()
        result = function(*args, **kwargs)
        step()
        return result
    return called

for name in ("add", "end", "known"):
    setattr(plan.Scan, name, around(getattr(plan.Scan, name)))
for name in ("choose", "leave_out", "begin_scan", "judge_again", "set_meta"):
    setattr(plan.Plan, name, around(getattr(plan.Plan, name)))
planning.Bringing.__call__ = around(planning.Bringing.__call__)
with plan.Plan(Path(sys.argv[2]), create=True) as opened:
    opened.set_options({"recipe": "auto"})
    opened.add_source(sys.argv[1])
    planning.make_plan(opened)
"""


def explained(folder):
    with Plan(folder, readonly=True) as plan:
        series = [(s.key, s.method, s.instances, s.bytes, s.reason) for s in plan._series("id > 0")]
        files = [(one["file"], one["result"], one["reason"], one["recipe"]) for one in reporting.files(plan)]
        return sorted(series), sorted(files, key=str)


@pytest.mark.slow
def test_a_planner_that_is_killed_again_and_again_makes_the_same_plan(archive, tmp_path):
    def lives(folder, death):
        command = [sys.executable, "-c", CHILD, str(archive), str(folder), str(death)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert lives(tmp_path / "undisturbed", 0).returncode == 0
    deaths = 0
    for death in (3, 6, 9, 12, 15, 18, 21, 24, 27, 30):  # each life comes further than the one before
        done = lives(tmp_path / "killed", death)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        deaths += done.returncode != 0
    assert deaths >= 5
    assert lives(tmp_path / "killed", 0).returncode == 0
    assert explained(tmp_path / "killed") == explained(tmp_path / "undisturbed")
    assert not list((tmp_path / "killed" / "scratch").glob("*/*"))
    outputs = []
    for name in ("undisturbed", "killed"):
        done = archives.run(tmp_path / name, tmp_path / f"{name} out")
        assert done.returncode in (0, 4), done.stderr
        outputs.append(archives.digests(tmp_path / f"{name} out"))
    assert outputs[0] == outputs[1] != {}


@pytest.mark.slow
def test_every_file_of_the_corpus_is_explained(data_folder, tmp_path):
    """Malformed files included: planning ends, and each file has a result and, where nothing is done, a reason."""
    folder = data_folder / "dicom"
    with Plan(tmp_path / "plan", create=True) as plan:
        plan.set_options({"allow": ["CT"]})
        plan.add_source(planning.source_name(str(folder)))
        assert planning.make_plan(plan).chosen > 10
        found = list(reporting.files(plan))
        assert sorted(one["file"] for one in found) == on_disk(folder)
        for one in found:
            assert one["result"] in ("open", "skipped", "failed")
            assert one["result"] == "open" or one["reason"].partition(":")[0].isupper(), one
        told = reporting.report(plan, now=NOW)
        assert told["files"] == sum(told["results"].values()) == len(on_disk(folder))
        explained = sum(row["files"] for row in told["reasons"])
        assert explained == told["results"]["skipped"] + told["results"]["failed"]
