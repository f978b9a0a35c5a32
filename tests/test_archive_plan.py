"""A plan knows what was found and done, by what things are and not by where they lie."""

import sqlite3
import stat

import pytest

from medenhance_dicom.archive.plan import Done, JobRow, Method, Plan, instance_key, job_id, series_key
from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.node.sources import Found, LeftOut

CLAHE, RETINEX = Method("clahe", "a" * 64), Method("retinex", "b" * 64)


def found(series, instance, *, where="/a", size=100, stamp="1", header="h", **facts):
    uids = {
        "StudyInstanceUID": "1.2.1", "SeriesInstanceUID": f"1.2.2.{series}",
        "SOPInstanceUID": f"1.2.3.{series}.{instance}", "SOPClassUID": "1.2.4",
    }  # fmt: skip
    more = {"Modality": "CR", "Rows": "4", "Columns": "5"} | facts
    return Found(f"{where}/{series}/{instance}", size, stamp, uids | more, header)


def walk(plan, items, name="/a"):
    """What of the items was read."""
    scan = plan.begin_scan(plan.add_source(name).id)
    new = [item for item in items if isinstance(item, LeftOut) or not scan.known(item.locator, item.size, item.stamp)]
    scan.add(new)
    return len(new), scan.end()


def choose(plan, method=CLAHE):
    for series in plan.new_series():
        plan.choose(series.id, method)


def finish(plan, series, result="enhanced", **more):
    instances = plan.open_instances(series)
    job = begin(plan, series)
    for _ in range(2):
        plan.end_job(job, [Done(row.key, result, header=row.header, **more) for row in instances], at=2.0)
    plan.forget_job(job.id)
    return len(instances)


def begin(plan, series):
    instances = plan.open_instances(series)
    names = [row.name for row in instances]
    job = JobRow(job_id(series.key, series.method, names), series.id, series.method, False, "open", "",
                 tuple(row.id for row in instances), 1.0)  # fmt: skip
    plan.open_jobs([job])
    return job


@pytest.fixture
def plan(tmp_path):
    with Plan(tmp_path / "plan", create=True) as made:
        yield made


ARCHIVE = [found(series, n) for series in range(3) for n in range(2)]


def test_what_was_found_is_grouped_chosen_and_done_once(plan):
    assert walk(plan, ARCHIVE) == (6, 0)
    assert [(s.instances, s.bytes, s.frames, s.pixels, s.modality) for s in plan.new_series()] == [
        (2, 200, 2, 40, "CR")
    ] * 3
    choose(plan)
    assert [finish(plan, series) for series in plan.open_series()] == [2, 2, 2]
    assert list(plan.open_series()) == []
    counts = plan.counts()
    assert counts["results"] == {"enhanced": 6}
    assert counts["jobs"] == {}


def test_a_walk_that_was_cut_short_reads_only_the_rest(plan):
    scan = plan.begin_scan(plan.add_source("/a").id)
    scan.add(ARCHIVE[:4])
    assert walk(plan, ARCHIVE) == (2, 0)
    assert walk(plan, ARCHIVE) == (0, 0)
    assert walk(plan, [*ARCHIVE[:5], found(2, 1, stamp="2")]) == (1, 0)
    assert plan.counts()["instances"] == 6


def test_an_archive_that_moved_and_a_second_copy_are_no_new_work(plan):
    walk(plan, ARCHIVE)
    choose(plan)
    first, *_ = plan.open_series()
    finish(plan, first)
    walk(plan, [found(series, n, where="/b") for series in range(3) for n in range(2)], "/b")
    counts = plan.counts()
    assert (counts["instances"], counts["open_series"], counts["open_instances"]) == (6, 2, 4)
    [second, _] = plan.open_series()
    assert [row.locator for row in plan.open_instances(second)] == ["/b/1/0", "/b/1/1"]
    walk(plan, [], "/b")
    assert [row.locator for row in plan.open_instances(second)] == ["/a/1/0", "/a/1/1"]


def test_what_is_gone_is_not_asked_for_until_it_comes_back(plan):
    walk(plan, ARCHIVE)
    choose(plan)
    assert walk(plan, ARCHIVE[:3]) == (0, 3)
    assert plan.counts()["open_series"] == 2
    assert plan.counts()["instances"] == 3
    assert walk(plan, ARCHIVE) == (0, 0)
    assert plan.counts()["open_series"] == 3
    assert plan.counts()["open_instances"] == 6


def test_a_new_instance_of_a_series_that_is_done(plan):
    walk(plan, ARCHIVE)
    choose(plan)
    for series in plan.open_series():
        finish(plan, series)
    walk(plan, [*ARCHIVE, found(1, 7)])
    [series] = plan.open_series()
    assert [row.locator for row in plan.open_instances(series)] == ["/a/1/7"]
    assert plan.counts()["open_instances"] == 1


def test_another_method_does_all_again_and_the_first_one_nothing(plan):
    walk(plan, ARCHIVE)
    choose(plan)
    for series in plan.open_series():
        finish(plan, series)
    plan.judge_again()
    choose(plan, RETINEX)
    assert [finish(plan, series) for series in plan.open_series()] == [2, 2, 2]
    assert plan.counts()["earlier"] == {"enhanced": 6}
    plan.judge_again()
    choose(plan)
    assert list(plan.open_series()) == []


def test_what_could_not_be_fetched_stays_open(plan):
    walk(plan, ARCHIVE)
    choose(plan)
    for series in plan.open_series():
        finish(plan, series, "failed", reason="MISSING: gone", again=True)
    assert plan.counts()["open_instances"] == 6
    for series in plan.open_series():
        finish(plan, series)
    assert plan.counts()["results"] == {"enhanced": 6}


def test_a_shadow_leaves_its_series_as_it_is(plan):
    walk(plan, ARCHIVE)
    choose(plan)
    series = next(plan.open_series())
    job = JobRow("s", series.id, RETINEX.key, True, "open", "", (1, 2), 1.0)
    plan.open_jobs([job])
    assert not plan.has_job(series.id)
    plan.end_job(job, [Done(row.key, "enhanced") for row in plan.open_instances(series)], at=1.0)
    assert plan.counts()["open_instances"] == 6
    assert plan.counts()["results"] == {}


def test_left_out_files_and_series(plan):
    walk(plan, [*ARCHIVE, LeftOut("/a/x", "NOT_DICOM: no")])
    plan.leave_out(1, "MODALITY_OFF: CT is off by default")
    assert plan.counts()["left_out"] == 1
    assert plan.counts()["series"] == {"left out": 1, "new": 2}
    walk(plan, [*ARCHIVE[1:], LeftOut("/a/0/0", "UNREADABLE: torn")])
    assert plan.counts()["instances"] == 5
    assert plan.counts()["left_out"] == 1


def test_keys_are_of_what_a_thing_is():
    assert instance_key("1", "2", "3") != instance_key("1", "2.3", "3")
    assert series_key("1.2", "3") != series_key("1", "2.3")
    assert job_id("s", "m", ["a", "b"]) == job_id("s", "m", ["b", "a"]) != job_id("s", "m", ["a", "b"], shadow=True)
    assert CLAHE.key == Method("another name", "a" * 64).key != RETINEX.key
    assert Method("c", "a" * 64, None, None, None, None).key != Method("c", "a" * 64, "w", "c" * 64).key


def test_it_is_for_its_owner_and_for_this_release(tmp_path, plan):
    assert stat.S_IMODE(plan.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((plan.folder / "plan.sqlite").stat().st_mode) == 0o600
    with pytest.raises(ConfigurationError, match="no plan"):
        Plan(tmp_path / "nothing")
    sqlite3.connect(plan.folder / "plan.sqlite").execute("PRAGMA user_version = 99")
    with pytest.raises(ConfigurationError, match="version 99"):
        Plan(plan.folder)


def test_who_only_looks_does_not_write(plan):
    walk(plan, ARCHIVE)
    with Plan(plan.folder, readonly=True) as looking:
        assert looking.counts()["instances"] == 6
        with pytest.raises(Exception, match="readonly"):
            looking.set_meta(paused=True)


# ---------------------------------------------------------------- corrections


@pytest.fixture
def done(plan):
    """Everything is done."""
    walk(plan, ARCHIVE)
    choose(plan)
    for series in plan.open_series():
        finish(plan, series, derived="1.2.3")
    return plan


def open_now(plan):
    choose(plan)
    return [row.locator for series in plan.open_series() for row in plan.open_instances(series)]


@pytest.mark.parametrize("where", ["/a", "/b"], ids=["in-its-place", "elsewhere"])
def test_a_corrected_header_is_new_work_once(done, where):
    corrected = found(1, 1, where=where, stamp="2", header="corrected")
    archive = [*ARCHIVE[:3], corrected, *ARCHIVE[4:]] if where == "/a" else [corrected]
    walk(done, archive, where)
    assert done.counts()["series"] == {"chosen": 2, "new": 1}  # what it says may ask for another method
    assert open_now(done) == [f"{where}/1/1"]
    [series] = done.open_series()
    finish(done, series)
    assert done.counts()["results"] == {"enhanced": 6}
    assert list(done.query("SELECT header, derived FROM corrected")) == [("h", "1.2.3")]
    walk(done, archive, where)
    assert open_now(done) == []


def test_a_corrected_instance_makes_another_job_and_a_repeat_the_same(plan):
    jobs = []
    for header in ("h", "h", "corrected"):
        walk(plan, [found(0, 0, stamp=header, header=header)])
        choose(plan)
        [series] = plan.open_series()
        jobs.append(begin(plan, series).id)
    assert jobs[0] == jobs[1] != jobs[2]
    assert len(plan.jobs()) == 2


def test_the_copy_that_was_corrected_last_counts(done):
    walk(done, [found(1, 1, where="/b")], "/b")
    assert open_now(done) == []
    walk(done, [*ARCHIVE[:3], found(1, 1, stamp="2", header="corrected"), *ARCHIVE[4:]])
    assert open_now(done) == ["/a/1/1"]
    walk(done, [found(1, 1, where="/b")], "/b")  # the copy that was not corrected
    assert open_now(done) == ["/a/1/1"]


def test_another_time_of_a_file_is_no_correction(done):
    assert walk(done, [found(series, n, stamp="2") for series in range(3) for n in range(2)]) == (6, 0)
    assert done.counts()["series"] == {"chosen": 3}
    assert open_now(done) == []
    for where, header in (("/c", ""), ("/d", "q1")):  # of a source that does not say, and of one that is queried
        walk(done, [found(1, 1, where=where, header=header)], where)
        assert open_now(done) == []
    walk(done, [found(1, 1, where="/e")], "/e")
    assert open_now(done) == []


def test_an_answer_that_says_something_else_is_new_work(plan):
    for stamp, expected in (("q1", ["/a/0/0"]), ("q1", []), ("q2", ["/a/0/0"]), ("q2", [])):
        walk(plan, [found(0, 0, size=0, stamp=stamp, header=stamp)])
        assert open_now(plan) == expected
        for series in list(plan.open_series()):
            finish(plan, series)


def test_conflicts_of_a_series_are_tried_again_when_one_of_it_is_corrected(plan):
    walk(plan, ARCHIVE[:2])
    choose(plan)
    [series] = plan.open_series()
    finish(plan, series, "failed", reason="CONFLICT: PatientName differs between instances of one Series Instance UID")
    walk(plan, ARCHIVE[:2])
    assert open_now(plan) == []
    walk(plan, [ARCHIVE[0], found(0, 1, stamp="2", header="corrected")])
    assert open_now(plan) == ["/a/0/0", "/a/0/1"]


def test_somebody_else_in_a_series_has_it_judged_again(done):
    items = [found(series, n, PatientID="1") for series in range(3) for n in range(2)]
    assert [done.patients(series) for series in (1, 2, 3)] == [1, 1, 1]  # nobody's, all of them
    walk(done, [found(0, 0), found(0, 2, PatientID="2"), *items[2:]])
    assert done.counts()["series"] == {"chosen": 2, "new": 1}
    assert [series.id for series in done.new_series()] == [1]
    assert done.patients(1) == 2


def test_what_is_corrected_while_it_is_worked_on_is_done_again(plan):
    walk(plan, ARCHIVE[:2])
    choose(plan)
    [series] = plan.open_series()
    job, rows = begin(plan, series), plan.open_instances(series)
    walk(plan, [ARCHIVE[0], found(0, 1, stamp="2", header="corrected")])
    plan.end_job(job, [Done(row.key, "enhanced", header=row.header) for row in rows], at=2.0)
    plan.forget_job(job.id)
    assert open_now(plan) == ["/a/0/1"]
    assert plan.counts()["open_instances"] == 1
