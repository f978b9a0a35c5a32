"""A plan is run through a node's store and PostgreSQL, while workers, coordinator and database are killed."""

import os
import random
import subprocess
import sys
import time

import pytest

from tests import archives
from tests.test_archive_running import done_so_far
from tests.test_jobs_postgres import server  # noqa: F401 - a fixture
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
SERIES = int(os.environ.get("MEDENHANCE_KILL_SERIES", "160"))
SEED = int(os.environ.get("MEDENHANCE_KILL_SEED", "0"))
CONFIG = """
store = "store"
[[destinations]]
name = "archive"
folder = "out"
[work]
database = "{database}"
workers = 0
attempts = 9
first_pause = 0.5
heartbeat_seconds = 0.5
silent_seconds = 5.0
"""


class Rig:
    """Three workers and a coordinator, each a process that can be killed and started again."""

    def __init__(self, config, plan):
        command = [sys.executable, "-m", "medenhance_dicom"]
        self._commands = {f"worker {n}": [*command, "worker", str(config)] for n in range(3)}
        run = [*command, "archive", "run", str(plan), "--config", str(config), "--to", "archive", "--ahead", "12"]
        run += ["--max-per-hour", "28800"]  # eight a second, so that it is not over before the last is killed
        self._commands["coordinator"] = run
        self.processes = {}

    def start(self, name):
        self.processes[name] = subprocess.Popen(
            self._commands[name], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def __enter__(self):
        for name in self._commands:
            self.start(name)
        return self

    def __exit__(self, *_):
        for process in self.processes.values():
            process.kill()
            process.wait()

    def kill(self, name):
        self.processes[name].kill()
        self.processes[name].wait()

    @property
    def over(self):
        return self.processes["coordinator"].poll() is not None


def test_workers_coordinator_and_database_are_killed(tmp_path, server):  # noqa: F811
    archive, plan, node = tmp_path / "archive", tmp_path / "plan", tmp_path / "node"
    archives.make_series(archive, 0, SERIES)
    archives.make_plan(tmp_path / "first", archive)
    assert archives.run(tmp_path / "first", tmp_path / "expected").returncode == 0
    archives.make_plan(plan, archive)
    node.mkdir()
    (node / "node.toml").write_text(CONFIG.format(database=server.new_database()))
    rng = random.Random(SEED)
    victims = ["worker 0", "coordinator", "database", "worker 1", "worker 2", "coordinator"]
    with Rig(node / "node.toml", plan) as rig:
        for number, victim in enumerate(victims):
            wanted = 2 * SERIES * number // (len(victims) + 1)
            wait_until(lambda wanted=wanted: done_so_far(plan) >= wanted or rig.over)
            time.sleep(rng.random() / 2)
            assert not rig.over, f"it was over before the {victim} was killed"
            if victim == "database":
                server.stop()
                time.sleep(2)
                server.start()
            else:
                rig.kill(victim)
                rig.start(victim)  # starting it again is all that a person does
        assert rig.processes["coordinator"].wait(240) == 0
    archives.assert_done(plan, SERIES, store=node / "store")
    assert archives.digests(node / "out") == archives.digests(tmp_path / "expected")
    assert set(archives.times_enhanced(node / "store").values()) == {1}
    assert len(archives.times_enhanced(node / "store")) == SERIES
