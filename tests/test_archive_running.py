"""A plan is run: once, again, with more in it, by another recipe, and killed in the middle as often as it takes."""

import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pydicom
import pytest

from medenhance_dicom.archive import running
from medenhance_dicom.archive.plan import Plan
from medenhance_dicom.identity import replaced_uid
from medenhance_dicom.node.settings import load_settings
from medenhance_dicom.part10 import read_instance
from tests import archives
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
SERIES = int(os.environ.get("MEDENHANCE_KILL_SERIES", "24"))
KILLS = 6
SEED = int(os.environ.get("MEDENHANCE_KILL_SEED", "0"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Some series, and what an undisturbed run makes of them."""
    folder = tmp_path_factory.mktemp("undisturbed")
    archives.make_series(folder / "archive", 0, SERIES)
    archives.make_plan(folder / "plan", folder / "archive")
    done = archives.run(folder / "plan", folder / "out")
    assert done.returncode == 0, done.stderr
    archives.assert_done(folder / "plan", SERIES)
    expected = archives.digests(folder / "out")
    assert len(expected) == 2 * SERIES
    return folder / "archive", expected


def copies(folder, archive):
    """The archive, moved, and a plan of it."""
    shutil.copytree(archive, folder / "archive")
    archives.make_plan(folder / "plan", folder / "archive")
    return folder / "plan", folder / "out"


def workers_of(process):
    """Process ids of a run's workers."""
    found = []
    for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        try:
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
        except OSError:
            continue
    return found


def ended(plan):
    found = archives.counts(plan)
    return not found["open_series"] and not found["jobs"]


def done_so_far(plan):
    return sum(archives.counts(plan)["results"].values())


def has_begun(plan):
    with Plan(plan, readonly=True) as opened:
        return any(found["event"] == "begun" for found in opened.events())


def control(plan, what):
    subprocess.run([*archives.COMMAND, what, str(plan)], check=True)


def assert_as_undisturbed(plan, out, expected):
    archives.assert_done(plan, SERIES)
    assert archives.digests(out) == expected
    assert set(archives.times_enhanced(plan / "store").values()) == {1}
    assert len(archives.times_enhanced(plan / "store")) == SERIES


def test_a_second_run_does_only_what_is_new(tmp_path, undisturbed):
    archive, plan, out = tmp_path / "archive", tmp_path / "plan", tmp_path / "out"
    archives.make_series(archive, 0, 4)
    archives.make_plan(plan, archive)
    assert archives.run(plan, out).returncode == 0
    trail = plan / "store" / "audit" / "audit.jsonl"
    assert len(archives.times_enhanced(plan / "store")) == 4
    again = archives.run(plan, out)
    assert again.returncode == 0
    assert "nothing was left to do" in again.stdout
    assert len(archives.times_enhanced(plan / "store")) == 4
    archives.make_series(archive, 4, 5)  # a study more, and an instance more of the first series
    shutil.copytree(archive / "4", tmp_path / "elsewhere" / "4")
    archives.make_series(archive, 0, 1, instances=3)
    archives.make_plan(plan, archive, tmp_path / "elsewhere")
    assert archives.counts(plan)["open_instances"] == 3
    assert archives.run(plan, out).returncode == 0
    assert archives.counts(plan)["results"] == {"enhanced": 11}
    assert len(archives.times_enhanced(plan / "store")) == 6
    archives.make_plan(plan, archive, recipe="identity")  # another recipe: all of it, beside the first
    assert archives.counts(plan)["open_instances"] == 11
    assert archives.run(plan, out).returncode == 0
    assert archives.counts(plan)["results"]["enhanced"] == 11
    assert archives.counts(plan)["earlier"] == {"enhanced": 11}
    assert len(archives.digests(out)) == 22
    assert trail.exists()


def test_a_correction_makes_an_object_that_names_the_one_before(tmp_path):
    """In its place, then elsewhere; what was not corrected is left alone, and so is what was made before."""
    archive, plan, out = tmp_path / "archive", tmp_path / "plan", tmp_path / "out"
    archives.make_series(archive, 0, 2)
    made, other = [], tmp_path / "other.dcm"
    for name, path in (("Test^One", None), ("Test^Two", archive / "0" / "0.dcm"), ("Test^Three", other)):
        if path is not None:
            instance = pydicom.dcmread(archive / "0" / "0.dcm")
            instance.PatientName = name
            instance.save_as(path)
        archives.make_plan(plan, *(there for there in (archive, other) if there.exists()))
        assert archives.counts(plan)["open_instances"] == (4 if path is None else 1)
        before = {there: there.read_bytes() for there in out.rglob("*.dcm")}
        assert archives.run(plan, out).returncode == 0
        assert {there: there.read_bytes() for there in before} == before
        (uid,) = {there.stem for there in set(out.rglob("*.dcm")) - set(before) if path or is_of(there, "3.1.1")}
        made.append(uid)
    archives.assert_done(plan, 2)
    replaced = {there.stem: replaced_uid(read_instance(there)) for there in out.rglob("*.dcm")}
    assert len(replaced) == 6
    assert [replaced[uid] for uid in made] == [None, *made[:2]]
    names = {there.stem: str(read_instance(there).PatientName) for there in out.rglob("*.dcm")}
    assert [names[uid] for uid in made[1:]] == ["Test^Two", "Test^Three"]


def is_of(path, source):
    return read_instance(path).SourceImageSequence[0].ReferencedSOPInstanceUID.endswith(source)


def test_a_worker_is_killed_at_random(tmp_path, undisturbed):
    archive, expected = undisturbed
    plan, out = copies(tmp_path, archive)
    rng = random.Random(SEED)
    process = archives.start(plan, out, "--workers", "2", "--ahead", "8")
    for kill in range(KILLS):
        floor = kill * SERIES * 3 // (2 * KILLS)
        wait_until(lambda floor=floor: done_so_far(plan) >= floor or process.poll() is not None)
        if process.poll() is not None:
            break
        time.sleep(rng.random() * 0.5)
        if victims := workers_of(process):
            os.kill(rng.choice(victims), signal.SIGKILL)
    assert process.wait(180) == 0
    assert_as_undisturbed(plan, out, expected)


def test_the_coordinator_is_killed_at_random(tmp_path, undisturbed):
    archive, expected = undisturbed
    plan, out = copies(tmp_path, archive)
    rng = random.Random(SEED + 1)
    for kill in range(KILLS):
        process = archives.start(plan, out, "--ahead", "8")
        floor = kill * SERIES * 3 // (2 * KILLS)
        while done_so_far(plan) < floor and process.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.random() * 1.0)
        process.kill()
        process.wait()
    done = archives.run(plan, out)
    assert done.returncode == 0, done.stderr
    assert_as_undisturbed(plan, out, expected)


def test_two_runs_at_once_do_not_collide(tmp_path, undisturbed):
    archive, expected = undisturbed
    plan, out = copies(tmp_path, archive)
    control(plan, "pause")  # or the first might be over before the second is there
    first = archives.start(plan, out)
    wait_until(lambda: has_begun(plan))
    second = archives.run(plan, out)
    assert second.returncode == 0
    assert "being run already" in second.stderr
    control(plan, "resume")
    assert first.wait(180) == 0
    assert_as_undisturbed(plan, out, expected)


def test_interrupted_paused_and_cancelled(tmp_path):
    archive, plan, out = tmp_path / "archive", tmp_path / "plan", tmp_path / "out"
    archives.make_series(archive, 0, 12)
    archives.make_plan(plan, archive)
    process = archives.start(plan, out, "--max-per-hour", "1800")  # one each two seconds: some are left in any case
    wait_until(lambda: done_so_far(plan) >= 4)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    control(plan, "pause")
    process = archives.start(plan, out)
    time.sleep(4)
    before = done_so_far(plan)
    time.sleep(2)
    assert done_so_far(plan) == before < 24
    control(plan, "cancel")
    process.wait(60)
    assert archives.counts(plan)["jobs"] == {}
    control(plan, "resume")
    assert archives.run(plan, out).returncode == 0
    archives.assert_done(plan, 12)
    assert len(archives.digests(out)) == 24


def test_nothing_is_begun_that_the_disk_might_not_take(tmp_path):
    archive, plan = tmp_path / "archive", tmp_path / "plan"
    archives.make_series(archive, 0, 3)
    archives.make_plan(plan, archive)
    config = running.own_config(plan)
    settings = load_settings(config)
    free = shutil.disk_usage(tmp_path).free
    request = running.Request(output=tmp_path / "out", workers=0)

    def begun_with(reserve):
        listener = settings.listener.model_copy(update={"reserve_bytes": reserve})
        with Plan(plan) as opened:
            coordinator = running.Coordinator(
                opened, settings.model_copy(update={"listener": listener}), request, config=config
            )
            coordinator.step()
            coordinator.close()
            return coordinator.progress.open_jobs, coordinator.progress.waits

    begun, why = begun_with(2 * free)
    assert (begun, why.partition(":")[0]) == (0, "disk")
    with Plan(plan) as opened:
        opened._db.execute("UPDATE series SET bytes = ?", (free // 8,))
    assert begun_with(free // 8)[0] == 2  # 3 x 1/8 of what is free for each, and 1/8 kept back
    assert archives.run(plan, tmp_path / "out").returncode == 0


def test_what_could_not_be_fetched_is_told_and_tried_again(tmp_path):
    archive, plan, out = tmp_path / "archive", tmp_path / "plan", tmp_path / "out"
    archives.make_series(archive, 0, 2)
    archives.make_plan(plan, archive)
    (archive / "0" / "1.dcm").rename(tmp_path / "away.dcm")
    assert archives.run(plan, out).returncode == 4
    assert archives.counts(plan)["results"] == {"enhanced": 3, "failed": 1}
    with Plan(plan) as opened:
        [(reason,)] = opened.query("SELECT reason FROM done WHERE result = 'failed'")
    assert reason.startswith("MISSING")
    (tmp_path / "away.dcm").rename(archive / "0" / "1.dcm")
    assert archives.run(plan, out).returncode == 0
    assert archives.counts(plan)["results"] == {"enhanced": 4}


def test_a_dead_letter_is_told_retried_and_done(tmp_path):
    archive, plan, out = tmp_path / "archive", tmp_path / "plan", tmp_path / "out"
    archives.make_series(archive, 0, 2)
    archives.make_plan(tmp_path / "first", archive)
    assert archives.run(tmp_path / "first", out).returncode == 0
    expected = archives.digests(out)
    in_the_way = out / next(iter(expected))
    in_the_way.write_bytes(b"something else")
    archives.make_plan(plan, archive)  # another plan with the same output: what is there already will do
    done = archives.run(plan, out)
    assert done.returncode == 4, done.stderr
    assert "1 series could not be done" in done.stdout
    with Plan(plan) as opened:
        [job] = opened.jobs()
    assert job.state == "failed"
    assert "another file of that name" in job.why
    assert archives.counts(plan)["open_series"] == 1
    jobs = [*archives.COMMAND[:-1], "jobs"]
    listed = subprocess.run([*jobs, "list", "-c", str(plan / "node.toml")], capture_output=True, text=True, check=True)
    assert job.id[:8] in listed.stdout
    in_the_way.unlink()
    subprocess.run([*jobs, "retry", "--failed", "-c", str(plan / "node.toml")], check=True, capture_output=True)
    done = archives.run(plan, out)
    assert done.returncode == 0, done.stderr
    archives.assert_done(plan, 2)
    assert archives.digests(out) == expected
