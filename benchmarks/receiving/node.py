"""The whole node, with everything that it mounts: `medenhance-dicom node run` on a store in a folder."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.receiving.serving import PORT

NODE_HTTP = 8043
CAMERA = "CAMERA"
"""Sends what is enhanced; nothing that another sends is complete while a cell lasts."""
RECIPE = "op-fundus-stillgan"


class Node:
    """One that runs; made by `running_node`."""

    def __init__(self, folder: Path, process: subprocess.Popen, environment: dict[str, str]) -> None:
        self.store, self.log = folder / "store", folder / "node.log"
        self._process, self._config, self._environment = process, folder / "node.toml", environment

    def is_up(self) -> bool:
        """Whether it says so, and listens."""
        assert self._process.poll() is None, self.log.read_text()
        with contextlib.suppress(OSError, ValueError):
            if json.loads((self.store / "node.json").read_text())["state"] == "running":
                with socket.create_connection(("127.0.0.1", PORT), 1):
                    return True
        return False

    def jobs(self) -> list[dict[str, object]]:
        """`jobs list --json`."""
        done = subprocess.run(
            [sys.executable, "-m", "medenhance_dicom", "jobs", "list", "--json"],
            capture_output=True, text=True, check=True, env=self._environment | {"MEDENHANCE_NODE": str(self._config)},
        )  # fmt: skip
        return json.loads(done.stdout)

    def events(self) -> list[dict[str, object]]:
        """The audit trail so far."""
        with contextlib.suppress(FileNotFoundError):
            lines = (self.store / "audit" / "audit.jsonl").read_text().splitlines(keepends=True)
            return [json.loads(line) for line in lines if line.endswith("}\n")]
        return []

    def derived(self) -> int:
        """How many objects it has made so far."""
        return sum(1 for _ in self.store.glob("jobs/*/derived/**/*.dcm"))

    def worker(self) -> int:
        """Process id of its one worker."""
        return json.loads((self.store / "node.json").read_text())["workers"]["worker 1"]

    def receiver(self) -> int:
        """Process id of its one receiver: the spawned process that is no worker."""
        spawned = [pid for pid in _children(self._process.pid) if b"spawn_main" in _words(pid)]
        (pid,) = set(spawned) - {self.worker()}
        return pid


@contextlib.contextmanager
def running_node(folder: Path, settings: str, *, idle: float):
    """A node in a new folder that has no other peers, destinations and rules than `settings` (TOML) says."""
    environment = {name: value for name, value in os.environ.items() if name != "TCP_NODELAY"}
    (folder / "node.toml").write_text(
        f'store = "store"\n[listener]\nae_title = "NODE"\nport = {PORT}\nreserve_bytes = 0\n'
        f"[completeness]\nidle_seconds = {idle}\n[http]\nport = {NODE_HTTP}\n[work]\nworkers = 1\n"
        f'[enhance]\nrecipe = "{RECIPE}"\n{settings}'
    )
    with (folder / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "medenhance_dicom", "node", "run", str(folder / "node.toml")],
            stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip
    node = Node(folder, process, environment)
    try:
        wait_until(node.is_up, 60)
        yield node
    finally:
        process.terminate()
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(true: Callable[[], object], seconds: float, pause: float = 0.05) -> None:
    """Look every `pause` seconds.

    Raises:
        TimeoutError: It has not become true.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} s")
        time.sleep(pause)


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _children(parent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]


def _words(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""
