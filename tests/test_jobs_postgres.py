"""The same work on PostgreSQL: several workers, one killed for good, and a server that goes and comes back."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest

from medenhance_dicom.node.control import Control
from medenhance_dicom.node.settings import load_settings
from tests import job_stores as stores
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
BINARIES = Path("/usr/lib/postgresql/15/bin")


class Server:
    """PostgreSQL in a temporary folder, on loopback."""

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.run("initdb", "-D", str(folder / "data"), "-U", "node", "-A", "trust", "--no-sync")
        self.start()

    def run(self, tool, *arguments):
        user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
        subprocess.run([*user, str(BINARIES / tool), *arguments], check=True, capture_output=True, cwd=self.folder)

    def start(self):
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self.folder} -c fsync=off"
        log = str(self.folder / "log")
        self.run("pg_ctl", "start", "-w", "-D", str(self.folder / "data"), "-l", log, "-o", options)

    def stop(self):
        self.run("pg_ctl", "stop", "-m", "immediate", "-D", str(self.folder / "data"))

    def new_database(self):
        """URL of a database that does not exist yet."""
        return f"postgresql://node@127.0.0.1:{self.port}/n{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def server():
    if not (BINARIES / "initdb").exists():
        pytest.skip("no PostgreSQL 15")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    if os.geteuid() == 0:
        shutil.chown(folder, "nobody", "nogroup")
    running = Server(folder)
    yield running
    running.stop()
    shutil.rmtree(folder)


def start_work(tmp_path, server, jobs):
    config = stores.make_store(tmp_path, jobs, database=server.new_database())
    control = Control(load_settings(config))
    for n in range(jobs):
        control.jobs.enqueue(f"{n:032x}")
    return config, control


def end(children):
    for child in children:
        child.terminate()
    for child in children:
        child.communicate(timeout=120)


def test_three_workers_one_killed_for_good(tmp_path, server):
    config, control = start_work(tmp_path, server, 30)
    children = [stores.start(config) for _ in range(3)]
    names = {child.stdout.readline().split()[1] for child in children}
    assert len(names) == 3
    wait_until(lambda: sum(job.state == "done" for job in control.jobs.all()) >= 3)
    children[1].kill()
    children[1].wait()
    wait_until(lambda: stores.all_done(config))
    assert control.jobs.workers().keys() == names
    control.close()
    end([children[0], children[2]])
    stores.assert_whole(config, 30)


def test_workers_that_are_killed_in_the_middle(tmp_path, server):
    config, control = start_work(tmp_path, server, 12)
    control.close()
    for death in (10, 23, 41):
        children = [stores.start(config, death), stores.start(config, death + 4)]
        assert [child.wait(60) for child in children] == [-signal.SIGKILL] * 2
    last = stores.start(config)
    wait_until(lambda: stores.all_done(config))
    end([last])
    stores.assert_whole(config, 12)


def test_workers_started_at_once_make_the_tables_together(tmp_path, server):
    config = stores.make_store(tmp_path, 0, database=server.new_database())
    database = load_settings(config).work.database
    errors = []

    def connect():
        from medenhance_dicom.jobs import Jobs

        try:
            Jobs(database).close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=connect) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_server_that_goes_and_comes_back(tmp_path, server):
    config, control = start_work(tmp_path, server, 12)
    child = stores.start(config)
    wait_until(lambda: sum(job.state == "done" for job in control.jobs.all()) >= 2)
    control.close()
    server.stop()
    time.sleep(3)
    server.start()
    wait_until(lambda: stores.all_done(config))
    assert child.poll() is None
    end([child])
    stores.assert_whole(config, 12)
