"""Durable work: a job goes through its stages once, whatever is killed; a person sees and steers it."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from medenhance_dicom import worker
from medenhance_dicom.errors import ConfigurationError
from medenhance_dicom.heartbeat import GIVEN_UP, Heartbeats, Watch
from medenhance_dicom.jobs import Jobs, Result, Task, sqlite_url
from medenhance_dicom.node.control import Control
from medenhance_dicom.node.settings import load_settings
from tests import job_stores as stores
from tests.waiting import wait_until

pytestmark = pytest.mark.slow  # workers poll


class Script:
    """Work whose gos are written down: `(job, stage) -> results`, the last one for ever."""

    def __init__(self, **results):
        self.results, self.gone = results, []
        self.held = threading.Event()

    def go(self, job, stage, stopping):
        self.gone.append((job, stage))
        results = self.results.get(stage.replace(".", "_"), [Result("done")])
        result = results.pop(0) if len(results) > 1 else results[0]
        if isinstance(result, Exception):
            raise result
        if result is HOLD:
            stopping.wait(5)
            return Result("waiting", "stopped", (Task(stage),))
        return result


HOLD = Result("waiting")


@pytest.fixture
def run(tmp_path):
    """Start work in this process; returns the queue."""
    running = []

    def started(work, **options):
        database = sqlite_url(tmp_path / "node.sqlite")
        jobs = Jobs(database)
        running.append(worker.launch(work, database=database, locks=tmp_path / "workers", beat=0.1, **options))
        running.append(jobs)
        return jobs

    yield started
    for item in reversed(running):
        item.close() if isinstance(item, Jobs) else item.stop(5)


def ended(jobs, job):
    wait_until(lambda: jobs.job(job).state in ("done", "failed", "cancelled"))
    return jobs.job(job)


def test_a_job_goes_through_its_stages_and_a_second_enqueue_does_nothing(run):
    script = Script(enhance=[Result("done", "2 enhanced", (Task("to.a"), Task("to.b")))])
    jobs = run(script)
    jobs.enqueue("j1")
    jobs.enqueue("j1")
    wait_until(lambda: len(script.gone) >= 3)
    state = ended(jobs, "j1")
    jobs.enqueue("j1")
    time.sleep(0.3)
    assert script.gone[0] == ("j1", "enhance")
    assert sorted(script.gone[1:]) == [("j1", "to.a"), ("j1", "to.b")]
    assert state.state == "done"
    assert [(stage.stage, stage.state, stage.say) for stage in state.stages] == [
        ("enhance", "done", "2 enhanced"), ("to.a", "done", ""), ("to.b", "done", ""),
    ]  # fmt: skip


def test_a_waiting_stage_holds_no_place(run):
    away = Result("waiting", "it is away", (Task("to.a", 600.0),))
    jobs = run(Script(enhance=[Result("done", "", (Task("to.a"),))], to_a=[away]))
    for n in range(6):  # more than one worker delivers at once
        jobs.enqueue(f"j{n}")
    wait_until(lambda: [job.state for job in jobs.all()] == ["waiting"] * 6)
    waiting = jobs.job("j0").stages[1]
    assert waiting.say == "it is away"
    assert 300 < waiting.until - time.time() < 600.1


def test_a_waiting_stage_goes_on_by_itself(run):
    away = Result("waiting", "it is away", (Task("to.a", 0.5),))
    jobs = run(Script(enhance=[Result("done", "", (Task("to.a"),))], to_a=[away, Result("done", "sent")]))
    jobs.enqueue("j0")
    assert [(stage.number, stage.say) for stage in ended(jobs, "j0").stages] == [(0, ""), (2, "sent")]


def test_a_failed_stage_is_a_dead_letter_until_it_is_retried(run):
    script = Script(
        enhance=[Result("done", "", (Task("to.a"), Task("to.b")))],
        to_a=[Result("failed", "the AE title is unknown"), Result("done")],
    )
    jobs = run(script)
    jobs.enqueue("j1")
    wait_until(lambda: len(script.gone) == 3)
    state = ended(jobs, "j1")
    assert state.state == "failed"
    assert [stage.say for stage in state.stages if stage.state == "failed"] == ["the AE title is unknown"]
    assert jobs.retry("j1") == ["to.a"]
    wait_until(lambda: jobs.job("j1").state == "done")
    assert [stage for _, stage in script.gone].count("to.b") == 1
    assert jobs.retry("j1") == []
    with pytest.raises(KeyError):
        jobs.retry("unknown")


def test_an_unexpected_error_names_its_place_and_not_its_text(run):
    script = Script(enhance=[ValueError("SMITH^JOHN")])
    jobs = run(script)
    jobs.enqueue("j1")
    state = ended(jobs, "j1")
    assert state.state == "failed"
    assert state.stages[0].say.startswith("ValueError at test_jobs.py:")


def test_cancelled_work_is_not_gone_at_and_may_be_taken_up_again(run):
    away = Result("waiting", "it is away", (Task("to.a", 60.0),))
    script = Script(enhance=[Result("done", "", (Task("to.a"),))], to_a=[away, Result("done")])
    jobs = run(script)
    jobs.enqueue("j1")
    wait_until(lambda: jobs.job("j1").state == "waiting")
    assert jobs.cancel("j1")
    assert jobs.job("j1").state == "cancelled"
    assert not jobs.cancel("j1")
    assert jobs.retry("j1") == ["to.a"]
    wait_until(lambda: jobs.job("j1").state == "done")


def test_a_waiting_stage_can_be_tried_at_once(run):
    away = Result("waiting", "it is away", (Task("to.a", 600.0),))
    script = Script(enhance=[Result("done", "", (Task("to.a"),))], to_a=[away, Result("done")])
    jobs = run(script)
    jobs.enqueue("j1")
    wait_until(lambda: jobs.job("j1").state == "waiting")
    assert jobs.retry("j1") == ["to.a"]
    wait_until(lambda: jobs.job("j1").state == "done")


def test_a_pause_longer_than_any_ends_as_a_clock_must_have_been_set_back(run):
    script = Script(enhance=[Result("waiting", "", (Task("enhance", 1800.0),)), Result("done")])
    jobs = run(script, longest=1700.0)
    jobs.enqueue("j1")
    assert ended(jobs, "j1").state == "done"


def test_a_pause_that_may_be_is_left_alone(run):
    script = Script(enhance=[Result("waiting", "", (Task("enhance", 1800.0),)), Result("done")])
    jobs = run(script, longest=1800.0)
    jobs.enqueue("j1")
    wait_until(lambda: jobs.job("j1").state == "waiting")
    time.sleep(0.5)
    assert jobs.job("j1").state == "waiting"


def test_forgotten_jobs_may_come_again(run):
    script = Script()
    jobs = run(script)
    jobs.enqueue("j1")
    ended(jobs, "j1")
    jobs.forget(["j1", "never"])
    assert jobs.all() == []
    jobs.enqueue("j1")
    wait_until(lambda: len(script.gone) == 2)


def test_values_in_the_database_are_json(run, tmp_path):
    import sqlite3

    jobs = run(Script())
    jobs.enqueue("j1")
    ended(jobs, "j1")
    rows = sqlite3.connect(tmp_path / "node.sqlite").execute("SELECT DISTINCT serialization FROM workflow_status")
    assert list(rows) == [("portable_json",)]


def test_stopping_leaves_the_running_stage_to_the_next_worker(tmp_path):
    database = sqlite_url(tmp_path / "node.sqlite")
    jobs = Jobs(database)
    first = worker.launch(script := Script(enhance=[HOLD]), database=database, locks=tmp_path / "workers", beat=0.1)
    jobs.enqueue("j1")
    wait_until(lambda: script.gone)
    first.stop(5)
    assert jobs.job("j1").state == "queued"
    assert jobs.workers()[first.executor] == GIVEN_UP
    second = worker.launch(Script(), database=database, locks=tmp_path / "workers", beat=0.1)
    assert second.executor == first.executor
    assert ended(jobs, "j1").state == "done"
    second.stop(5)
    jobs.close()


def test_two_processes_cannot_have_one_name(tmp_path):
    _, lock = worker._claim(tmp_path, None)
    name, other = worker._claim(tmp_path, None)
    assert name.endswith(".1")
    with pytest.raises(ConfigurationError, match="another process"):
        worker._claim(tmp_path, name)
    other.close()
    assert worker._claim(tmp_path, name)[0] == name
    lock.close()


def test_an_unreachable_database_is_said_in_words(tmp_path):
    with pytest.raises(ConfigurationError, match="database"):
        Jobs("postgresql://nobody@127.0.0.1:9/none?connect_timeout=1")
    (tmp_path / "file").write_text("this is no database, whatever it is called" * 100)
    with pytest.raises(ConfigurationError, match="database"):
        Jobs(sqlite_url(tmp_path / "file"))


# ---------------------------------------------------------------- heartbeats


def test_silence_is_a_count_that_stands_still_by_the_watchers_clock():
    now = 0.0
    watch = Watch(60, clock=lambda: now)
    assert watch.silent({"a": 5, "b": 1, "c": None}) == []
    now = 59.0
    assert watch.silent({"a": 6, "b": 1, "c": None}) == []
    now = 60.0
    assert watch.silent({"a": 6, "b": 1, "c": None}) == ["b", "c"]
    now = 118.0
    assert watch.silent({"a": 6}) == []
    now = 119.0
    assert watch.silent({"a": 6}) == ["a"]
    watch.reset()
    assert watch.silent({"a": 6, "dead": GIVEN_UP}) == ["dead"]


def test_beats_count_up_and_giving_up_lasts_until_the_next(tmp_path):
    Jobs(database := sqlite_url(tmp_path / "node.sqlite")).close()
    beats = Heartbeats(database)
    for _ in range(3):
        beats.beat("a")
    beats.give_up("b")
    assert beats.counts() == {"a": 2, "b": GIVEN_UP}
    beats.give_up("a")
    beats.beat("b")
    assert beats.counts() == {"a": GIVEN_UP, "b": 0}
    beats.close()


# ---------------------------------------------------------------- processes that die


def finish(child):
    child.terminate()
    out, err = child.communicate(timeout=120)
    return out, err


@pytest.mark.slow
def test_a_killed_worker_goes_on_where_it_was(tmp_path):
    config = stores.make_store(tmp_path, 2)
    control = Control(load_settings(config))
    for n in range(2):
        control.jobs.enqueue(f"{n:032x}")
    control.close()
    for death in (15, 30):
        assert stores.start(config, death).wait(120) == -signal.SIGKILL
    last = stores.start(config)
    wait_until(lambda: stores.all_done(config))
    finish(last)
    stores.assert_whole(config, 2)


@pytest.mark.slow
def test_nothing_listens_and_nothing_is_called(tmp_path):
    """A worker has no socket but the database's; SQLite has none."""
    config = stores.make_store(tmp_path, 1)
    child = stores.start(config)
    assert child.stdout.readline().startswith("running")
    control = Control(load_settings(config))
    control.jobs.enqueue(f"{0:032x}")
    wait_until(lambda: stores.all_done(config))
    control.close()
    links = [str(path.readlink()) for path in Path(f"/proc/{child.pid}/fd").iterdir()]
    inodes = {link[8:-1] for link in links if link.startswith("socket:")}
    internet = set()
    for table in ("tcp", "tcp6", "udp", "udp6"):
        lines = Path(f"/proc/{child.pid}/net/{table}").read_text().splitlines()[1:]
        internet |= {line.split()[9] for line in lines}
    assert not inodes & internet
    out, err = finish(child)
    assert "conductor" not in (out + err).lower()


@pytest.mark.slow
def test_a_silent_workers_jobs_are_taken_over_without_a_person(tmp_path):
    config = stores.make_store(tmp_path, 6, silent=2.0)
    control = Control(load_settings(config))
    for n in range(6):
        control.jobs.enqueue(f"{n:032x}")
    stuck = stores.start(config, 25)
    assert stuck.wait(120) == -signal.SIGKILL
    assert any(job.state == "working" for job in control.jobs.all())
    script = (
        "import fcntl, pathlib, sys, time\n"
        "lock = next(pathlib.Path(sys.argv[1]).glob('*.lock')).open('w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX)\nprint('held', flush=True)\ntime.sleep(60)"
    )
    folder = str(tmp_path / "store" / "workers")
    # The dead one's name is not free, so the next worker has another one and must wait for its silence.
    holder = subprocess.Popen([sys.executable, "-c", script, folder], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    other = stores.start(config)
    assert other.stdout.readline().strip().endswith(".1")
    wait_until(lambda: stores.all_done(config))
    finish(other)
    holder.kill()
    control.close()
    stores.assert_whole(config, 6)


@pytest.fixture
def twenty(tmp_path):
    """Twenty queued jobs, and a process whose forks work on them."""
    config = stores.make_store(tmp_path, 20)
    control = Control(load_settings(config))
    for n in range(20):
        control.jobs.enqueue(f"{n:032x}")
    control.close()
    mother = subprocess.Popen(
        [sys.executable, str(stores.CHILD), str(config)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield config, mother
    mother.stdin.close()
    mother.wait(120)
    last = stores.start(config)
    try:
        wait_until(lambda: stores.all_done(config))
    finally:
        finish(last)
    stores.assert_whole(config, 20)


def live(mother, death):
    mother.stdin.write(f"{death}\n")
    mother.stdin.flush()
    return int(mother.stdout.readline())


@pytest.mark.slow
def test_killed_at_every_durable_step(twenty):
    config, mother = twenty
    for death in range(1, 200):
        pid = live(mother, death)
        timer = threading.Timer(60, os.kill, (pid, signal.SIGTERM))  # there was too little left to do
        timer.start()
        code = int(mother.stdout.readline())
        timer.cancel()
        if stores.all_done(config):
            break
        assert code == -signal.SIGKILL
    assert death > 30


@pytest.mark.slow
def test_killed_at_random_moments(twenty):
    config, mother = twenty
    chance = random.Random(7)
    killed = 0
    while not stores.all_done(config) and killed < 40:
        pid = live(mother, 0)
        time.sleep(chance.uniform(0.2, 1.5))
        os.kill(pid, signal.SIGKILL)
        assert int(mother.stdout.readline()) == -signal.SIGKILL
        killed += 1
    assert killed > 5
