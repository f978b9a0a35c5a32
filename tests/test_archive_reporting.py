"""Every file is explained, and so is where a plan stands."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime
from html.parser import HTMLParser

import pytest

from medenhance_dicom.archive import reporting, shadow
from medenhance_dicom.archive.forecast import Measured, Population, Stratum, forecast
from medenhance_dicom.archive.plan import Done, JobRow, Method, Plan, job_id
from medenhance_dicom.archive.planning import as_json
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.node.sources import Found, LeftOut

NOW = datetime(2024, 2, 3, 12, tzinfo=UTC)
AT = NOW.timestamp()
FIRST, SECOND = Method("first", "1" * 64), Method("second", "2" * 64)


def found(series, n, *, locator=None, modality="OP", model="M1"):
    facts = {
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": f"1.2.3.{series}",
        "SOPInstanceUID": f"1.2.3.{series}.{n}",
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.77.1.5.1",
        "Modality": modality,
        "Manufacturer": "Maker & <Sons>",
        "ManufacturerModelName": model,
    }
    return Found(locator or f"/archive/{series}/{n}.dcm", 100, "", facts)


def scan(plan, items, source="/archive"):
    walk = plan.begin_scan(plan.add_source(source).id)
    walk.add(items)
    walk.end()


def judge(plan, methods):
    """`methods`: end of the Series Instance UID -> method or reason; every other series: FIRST."""
    for series in plan.new_series():
        verdict = methods.get(int(series.series.rpartition(".")[2]), FIRST)
        if isinstance(verdict, Method):
            plan.choose(series.id, verdict)
        else:
            plan.leave_out(series.id, verdict)


def finish(plan, series, results, *, at=AT - 60, is_shadow=False, method=None):
    """`results`: (result, reason, lassim, mean change) of every instance of a series."""
    row = next(plan.series(n) for (n,) in plan.query("SELECT id FROM series WHERE series LIKE ?", f"%.{series}"))
    keys = [
        key for (key,) in plan.query("SELECT DISTINCT key FROM instance WHERE series = ? ORDER BY sop_instance", row.id)
    ]
    used = (method or plan.methods()[row.method]).key
    job = JobRow(job_id(row.key, used, keys, shadow=is_shadow), row.id, used, is_shadow, "open", "", (), at - 10)
    plan.open_jobs([job])
    done = [
        Done(key, result, reason, lassim, change, 0.5, 200, f"2.25.{n}")
        for n, (key, (result, reason, lassim, change)) in enumerate(zip(keys, results, strict=True))
    ]
    plan.end_job(job, done, at=at)
    plan.forget_job(job.id)


@pytest.fixture
def plan(tmp_path):
    with Plan(tmp_path / "plan", create=True) as made:
        yield made


@pytest.fixture
def worked(plan):
    """Eleven files: of every kind of end one at least."""
    scan(
        plan,
        [
            *(found(1, n) for n in range(4)),
            found(2, 0, modality="CT"),
            found(3, 0, model="M2"),
            found(4, 0),
            found(1, 0, locator="/archive/copy.dcm"),
            LeftOut("/archive/notes.txt", "NOT_DICOM: not a DICOM file"),
            LeftOut("/archive/torn.dcm", "UNREADABLE: PixelData: has 12 of 90 bytes"),
            LeftOut("/archive/torn too.dcm", "UNREADABLE: PixelData: has 77 of 80 bytes"),
        ],
    )
    judge(plan, {2: "OFF_BY_DEFAULT: CT, unless it is allowed"})
    results = [
        ("enhanced", None, 0.98, 2.0),
        ("warned", "LASSIM_LOW: below 0.9", 0.88, 4.0),
        ("withheld", "LASSIM: below 0.8", 0.7, 9.0),
        ("skipped", "NOT_AN_IMAGE: not an image", None, None),
    ]
    finish(plan, 1, results)
    dead = next(row for row in plan.open_series() if row.series.endswith(".4"))
    plan.open_jobs([JobRow("d" * 32, dead.id, FIRST.key, False, "open", "", (), AT)])
    plan.mark_job("d" * 32, "failed", "the peer refuses: 0x0122")
    return plan


def test_each_file_has_one_result(worked):
    rows = {row["file"].removeprefix("/archive/"): row for row in reporting.files(worked)}
    assert {file: row["result"] for file, row in rows.items()} == {
        "1/0.dcm": "skipped",
        "copy.dcm": "enhanced",  # of copies the one that was found last is taken
        "1/1.dcm": "warned",
        "1/2.dcm": "withheld",
        "1/3.dcm": "skipped",
        "2/0.dcm": "skipped",
        "3/0.dcm": "open",
        "4/0.dcm": "failed",
        "notes.txt": "skipped",
        "torn.dcm": "failed",
        "torn too.dcm": "failed",
    }
    assert rows["1/0.dcm"]["reason"].startswith("DUPLICATE: ")
    assert rows["4/0.dcm"]["reason"] == "NOT_DONE: the peer refuses: 0x0122"
    assert rows["2/0.dcm"]["reason"].startswith("OFF_BY_DEFAULT: ")


def test_a_file_that_was_corrected_elsewhere_is_replaced(tmp_path):
    with Plan(tmp_path / "plan", create=True) as plan:
        scan(plan, [replace(found(1, 0), header="1"), replace(found(1, 1), header="1")])
        scan(plan, [replace(found(1, n, locator=f"/b/{n}.dcm"), header=str(n + 1)) for n in range(2)], "/b")
        reasons = {row["file"]: (row["reason"] or "").partition(":")[0] for row in reporting.files(plan)}
    assert reasons == {
        "/archive/1/0.dcm": "DUPLICATE",
        "/archive/1/1.dcm": "REPLACED",
        "/b/0.dcm": "NOT_JUDGED",
        "/b/1.dcm": "NOT_JUDGED",
    }


def test_the_report_adds_up(worked):
    told = reporting.report(worked, now=NOW)
    assert told["files"] == 11
    assert told["results"] == {"enhanced": 1, "warned": 1, "withheld": 1, "skipped": 4, "failed": 3, "open": 1}
    reasons = {(row["result"], row["reason"]): row["files"] for row in told["reasons"]}
    assert reasons["failed", "UNREADABLE: PixelData: has … of … bytes"] == 2  # of one kind
    assert ("failed", "NOT_DONE: the peer refuses: 0x0122") in reasons
    assert sum(reasons.values()) == 11 - 1 - 1  # but for what is enhanced or open
    assert sum(group["files"] for group in told["groups"]) == 11
    eye = next(group for group in told["groups"] if group["recipe"] == "first" and group["device"].endswith("M1"))
    assert eye["withheld_share"] == pytest.approx(1 / 3)
    assert eye["lassim_mean"] == pytest.approx((0.98 + 0.88 + 0.7) / 3)
    assert eye["lassim_lowest"] == 0.7
    assert eye["bytes_made"] == 800
    assert reporting.report_lines(told)[0] == "11 files: 1 enhanced, 1 warned, 1 withheld, 4 skipped, 3 failed, 1 open"


def test_rare_reasons_are_summed_up_and_still_add_up(plan, monkeypatch):
    monkeypatch.setattr(reporting, "_MOST_REASONS", 2)
    words = ["a", "a", "a", "b", "b", "c", "d", "e"]
    scan(plan, [LeftOut(f"/x/{n}", f"NOT_DICOM: {word}") for n, word in enumerate(words)])
    told = reporting.report(plan, now=NOW)["reasons"]
    assert [(row["reason"], row["files"]) for row in told] == [
        ("NOT_DICOM: a", 3),
        ("NOT_DICOM: b", 2),
        ("NOT_DICOM: of other kinds", 3),
    ]


def test_what_is_gone_is_not_reported(worked):
    scan(worked, [found(3, 0, model="M2")])
    assert [row["file"] for row in reporting.files(worked)] == ["/archive/3/0.dcm"]


def test_status(worked):
    finish_at = AT - 1800
    scan(worked, [found(9, n) for n in range(2)], source="/more")
    judge(worked, {})
    finish(worked, 9, [("enhanced", None, 0.9, 1.0)] * 2, at=finish_at)
    told = reporting.status(worked, now=AT)
    assert told["state"] == "open"
    assert told["series"] == {"open": 2, "done": 2, "left out": 1, "new": 0}
    assert told["rate"] == pytest.approx(2 / (1800 - 60))
    assert told["seconds_left"] == pytest.approx(2 / (6 / (1800 - 60)))
    assert told["dead_letters"] == [{"job": "d" * 32, "why": "the peer refuses: 0x0122"}]
    lines = reporting.status_lines(told)
    assert lines[0] == "open: 2 of 4 series done, 1 left out"
    assert "9 min 40 s left" in lines[2]
    assert lines[-1] == "dead letter dddddddd: the peer refuses: 0x0122"


def test_the_rate_is_of_the_last_run(worked, monkeypatch):
    monkeypatch.setattr("medenhance_dicom.archive.plan.time.time", lambda: AT - 100)
    worked.note("begun")
    assert reporting.status(worked, now=AT)["rate"] == pytest.approx(1 / 40)  # one series, 40 s after it
    monkeypatch.setattr("medenhance_dicom.archive.plan.time.time", lambda: AT - 10)
    worked.note("begun")
    assert reporting.status(worked, now=AT)["rate"] is None


def test_whether_it_is_run_shows(worked):
    running = pytest.importorskip("medenhance_dicom.archive.running")
    assert not reporting.status(worked, now=AT)["running"]
    with running.only_one(worked.folder) as alone:
        assert alone
        told = reporting.status(worked, now=AT)
    assert told["running"]
    assert reporting.status_lines(told)[0].startswith("open, running: ")
    assert not reporting.status(worked, now=AT)["running"]


def test_status_of_plans_that_are_not_run(plan):
    assert reporting.status(plan, now=AT)["rate"] is None
    scan(plan, [found(1, 0)])
    assert reporting.status(plan, now=AT)["state"] == "being planned"
    judge(plan, {})
    assert reporting.status(plan, now=AT)["state"] == "open"
    finish(plan, 1, [("enhanced", None, 0.9, 1.0)])
    told = reporting.status(plan, now=AT)
    assert (told["state"], told["seconds_left"]) == ("done", 0)


def test_it_can_be_read_while_another_writes(worked, tmp_path):
    with Plan(tmp_path / "plan", readonly=True) as looking, worked._transaction():
        worked._db.execute("UPDATE series SET state = 'new'")
        assert reporting.report(looking, now=NOW)["results"]["enhanced"] == 1


def test_files_are_written_for_their_owner_alone(worked, tmp_path):
    assert reporting.write_files(worked, tmp_path / "files.jsonl") == 11
    assert (tmp_path / "files.jsonl").stat().st_mode & 0o777 == 0o600
    assert len((tmp_path / "files.jsonl").read_text().splitlines()) == 11


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_needs_nothing_else(worked, tmp_path):
    one = Measured("k", Stratum("OP", "Maker & <Sons> M1"), 4, 2.0, 0.1, 800, 3, 1)
    worked.set_meta(forecast=as_json(forecast([one, one], {one.stratum: Population(50, 200)})))
    shadow_series(worked)
    reporting.write_page(reporting.report(worked, now=NOW), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "img", "iframe")]
    assert not re.search(r"https?://|url\(|@import", text)
    assert "Maker & <Sons> M1" in page.text  # escaped
    assert "Forecast" in page.text
    assert "Shadow" in page.text
    assert re.search(r"= 71 files", "".join(page.text))


# ---------------------------------------------------------------- shadow


def shadow_series(plan):
    """Series 1 of `worked`, and thirty more, under a recipe that withholds less and changes more."""
    first = [("enhanced", None, 0.90, 2.0), ("withheld", "LASSIM: low", 0.7, 3.0)]
    other = [("enhanced", None, 0.95, 3.0), ("enhanced", None, 0.80, 5.0)]
    scan(plan, [found(100 + s, n) for s in range(30) for n in range(2)], source="/other")
    judge(plan, {})
    worse = next(iter(plan.query("SELECT id FROM series LIMIT 1")))[0]
    before = plan.series(worse)
    plan.choose(worse, SECOND)  # makes the method known
    if before.method:
        plan.choose(worse, FIRST)
    for s in range(30):
        finish(plan, 100 + s, first)
        if s < 20:
            finish(plan, 100 + s, other, is_shadow=True, method=SECOND)


def test_shadows_are_compared_on_the_same_instances(worked):
    shadow_series(worked)
    told = shadow.shadow_report(worked)
    assert [(one["modality"], one["device"]) for one in told] == [("all", "all"), ("OP", "Maker & <Sons> M1")]
    one = told[1]
    assert (one["instances"], one["series"]) == (40, 20)
    assert one["first"]["results"] == {"enhanced": 20, "withheld": 20}
    assert one["first"]["withheld_share"]["value"] == 0.5
    assert one["shadow"]["withheld_share"]["value"] == 0
    assert one["first"]["lassim"] == pytest.approx(0.8)
    assert one["differences"]["lassim"]["value"] == pytest.approx(0.075)
    assert one["differences"]["mean_change"] == pytest.approx({"value": 1.5, "low": 1.5, "high": 1.5})
    assert one["says"] == "withholds less, keeps structure better, changes more"
    assert "withheld 50.0 %" in reporting.shadow_lines(one)[1]


def test_no_difference_is_told_where_there_is_none():
    eye = Stratum("OP", "x")
    pairs = [
        shadow.Pair(eye, ("a", "b"), s, ("enhanced", "enhanced"), (0.9, 0.9 + d), (1.0, 1.0 + d), (1.0, 2.0))
        for s, d in enumerate((-0.02, 0.01, 0.02, -0.01, 0.0))
    ]
    one = shadow.compare(pairs)[0]
    assert one.says == "no difference can be told"
    assert one.shadow.seconds == 2.0
    assert shadow.compare(pairs[:4])[0].says == "too few series to tell"
    assert shadow.compare(pairs[:1])[0].differences["lassim"].low is None
    assert shadow.compare([]) == []


def test_results_without_a_verdict_are_counted_and_not_compared():
    eye = Stratum("OP", "x")
    failed = shadow.Pair(eye, ("a", "b"), 1, ("enhanced", "failed"), (0.9, None), (1.0, None), (1.0, None))
    one = shadow.compare([failed])[0]
    assert one.instances == 0
    assert one.shadow.results == {"failed": 1}


def test_a_share_is_about_as_large_as_asked_and_always_the_same():
    keys = [f"{n:032x}" for n in range(4000)]
    chosen = {key for key in keys if shadow.in_share(key, 0.05, seed=1)}
    assert 150 < len(chosen) < 250
    assert chosen == {key for key in reversed(keys) if shadow.in_share(key, 0.05, seed=1)}
    assert chosen < {key for key in keys if shadow.in_share(key, 0.1, seed=1)}
    assert not shadow.in_share(keys[0], 0.0)
    assert all(shadow.in_share(key, 1.0) for key in keys)


def test_a_shadow_recipe_is_only_for_series_that_it_fits(plan):
    fundus, gut = "1.2.840.10008.5.1.4.1.1.77.1.5.1", "1.2.840.10008.5.1.4.1.1.77.1.1"
    scan(plan, [found(1, 0), found(2, 0, modality="ES")])
    eye, endoscopy = (plan.series(n) for (n,) in list(plan.query("SELECT id FROM series ORDER BY series")))
    methods = shadow.ShadowMethods("op-fundus-hqgnet", load_manifest())
    method = methods.of(eye, [fundus])
    assert method is not None
    assert method.recipe == "op-fundus-hqgnet"
    assert len(method.guide_digest) == 64
    assert methods.of(endoscopy, [gut]) is None
    with pytest.raises(Exception, match="no recipe"):
        shadow.ShadowMethods("nothing", load_manifest())


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "0.4 s"), (75, "1 min 15 s"), (3600, "1 h"), (90061, "1 d 1 h"), (None, "unknown")]
)
def test_durations(seconds, words):
    assert reporting.duration(seconds) == words
