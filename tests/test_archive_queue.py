"""The queue as a run uses it: jobs are found and forgotten by their ids, and stand behind the work of the day."""

import threading
import time

import pytest

from medenhance_dicom import worker
from medenhance_dicom.jobs import ENHANCE, FETCH, Jobs, Result, Task, enqueue_options, sqlite_url

STAGES = [FETCH, ENHANCE, "to.disk"]


class Series:
    """Fetch, enhance, deliver; the job of nines waits nineteen times before it is fetched."""

    def __init__(self):
        self.gos, self.lock = [], threading.Lock()

    def go(self, job, stage, stopping):
        with self.lock:
            self.gos.append((job[0], stage))
            tries = self.gos.count((job[0], stage))
        if job[0] == "9" and stage == FETCH and tries < 20:
            return Result("waiting", "away", (Task(FETCH, 0.0, 10),))
        priority = 0 if job[0] == "0" else 10
        then = {FETCH: (Task(ENHANCE, 0.0, priority),), ENHANCE: (Task("to.disk", 0.0, priority),)}
        return Result("done", "", then.get(stage, ()))


@pytest.fixture
def database(tmp_path):
    return sqlite_url(tmp_path / "node.sqlite")


def test_which_queue_a_go_stands_in():
    options = enqueue_options("a" * 32, ENHANCE, 1, 0.0, 10)
    assert (options["queue_name"], options["priority"]) == ("reenhance", 10)
    options = enqueue_options("a" * 32, ENHANCE, 1, 0.0)
    assert options["queue_name"] == "enhance"
    assert "priority" not in options
    assert enqueue_options("a" * 32, FETCH, 0, 0.0, 10)["queue_name"] == "fetch"
    options = enqueue_options("a" * 32, "to.disk", 2, 3.0, 10)
    assert (options["queue_name"], options["queue_partition_key"], options["priority"]) == ("deliver", "to.disk", 10)


def test_many_are_added_at_once_and_those_that_are_there_stay(database):
    jobs = Jobs(database)
    jobs.enqueue("1" * 32, stage=FETCH, priority=10)
    jobs.cancel("1" * 32)
    jobs.enqueue_all([("1" * 32, FETCH), ("2" * 32, ENHANCE)], priority=10)
    found = {state.job[0]: (state.state, state.stages[0].stage) for state in jobs.all()}
    assert found == {"1": ("cancelled", FETCH), "2": ("queued", ENHANCE)}
    (options,) = (row for row in jobs._rows("2" * 32))
    assert (options.queue_name, options.priority) == ("reenhance", 10)
    with pytest.raises(ValueError, match="not enough values"):
        jobs.enqueue_all([("3" * 32, ENHANCE), ()])
    assert len(jobs.all()) == 2
    jobs.close()


@pytest.mark.slow
def test_jobs_are_found_by_their_ids_whatever_their_numbers(tmp_path, database):
    jobs, work = Jobs(database), Series()
    names = [digit * 32 for digit in "0129"]
    for name in names:
        jobs.enqueue(name, stage=FETCH, priority=0 if name[0] == "0" else 10)
    assert {state.state for state in jobs.some(names, STAGES)} == {"queued"}
    running = worker.launch(work, database=database, locks=tmp_path / "locks")
    try:
        until = time.monotonic() + 60
        while any(state.state != "done" for state in jobs.some(names, STAGES)):
            assert time.monotonic() < until
            time.sleep(0.1)
    finally:
        running.stop(5)
    found = {state.job: state for state in jobs.some([*names, "f" * 32], STAGES)}
    assert sorted(found) == names
    assert {stage.stage: stage.number for stage in found["9" * 32].stages} == {FETCH: 19, ENHANCE: 20, "to.disk": 21}
    assert found == {state.job: state for state in jobs.all()}
    jobs.forget(names[1:], STAGES)
    assert [state.job for state in jobs.all()] == names[:1]
    jobs.forget(names)
    assert jobs.all() == []
    jobs.close()
