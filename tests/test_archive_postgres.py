"""A plan is run over PostgreSQL by three workers, while they and the database are killed."""

import os
import random
import signal
import time

import pytest

from tests import archives
from tests.test_archive_running import done_so_far, workers_of
from tests.test_jobs_postgres import server  # noqa: F401 - a fixture

pytestmark = pytest.mark.slow
SERIES = int(os.environ.get("MEDENHANCE_KILL_SERIES", "40"))


def test_three_workers_and_a_database_are_killed(tmp_path, server):  # noqa: F811
    archive, plan, out = tmp_path / "archive", tmp_path / "plan", tmp_path / "out"
    archives.make_series(archive, 0, SERIES)
    archives.make_plan(tmp_path / "first", archive)
    assert archives.run(tmp_path / "first", tmp_path / "expected").returncode == 0
    archives.make_plan(plan, archive)
    (plan / "node.toml").write_text(
        f'store = "store"\n[work]\ndatabase = "{server.new_database()}"\nattempts = 9\nfirst_pause = 0.5\n'
        "heartbeat_seconds = 0.5\nsilent_seconds = 5.0\n"
    )
    rng = random.Random(0)
    process = archives.start(plan, out, "--workers", "3", "--ahead", "12")
    for kill in range(5):
        while done_so_far(plan) < kill * SERIES // 4 and process.poll() is None:
            time.sleep(0.05)
        time.sleep(rng.random())
        if kill == 2:
            server.stop()
            time.sleep(2)
            server.start()
        elif victims := workers_of(process):
            os.kill(rng.choice(victims), signal.SIGKILL)
    assert process.wait(240) == 0
    archives.assert_done(plan, SERIES)
    assert archives.digests(out) == archives.digests(tmp_path / "expected")
    assert set(archives.times_enhanced(plan / "store").values()) == {1}
