"""Children are started anew with growing pauses, end on SIGTERM and with their parent; logs quote nobody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medenhance_dicom.node.children import Children
from tests.waiting import wait_until


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.fixture
def children():
    now = [100.0]
    found = Children(clock=lambda: now[0])
    found.now = now
    yield found
    found._clock = time.monotonic
    found.stop(5)


def test_a_dead_child_comes_back_at_once_then_later_and_later(children):
    children.add("sleeper 1", time.sleep, 60)
    pids = set()
    for deaths, pause in enumerate((0.0, 1.0, 2.0, 4.0), 1):
        pid = children.pids()["sleeper 1"]
        assert pid not in pids
        pids.add(pid)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: children._children[0].process.exitcode is not None)
        assert children.problems()
        children.tend()
        if pause:
            assert children.pids()["sleeper 1"] is None
            children.now[0] += pause - 0.1
            children.tend()
            assert children.problems() == ["sleeper 1 is down"]
            children.now[0] += 0.2
            children.tend()
        assert children.problems() == ([] if deaths == 1 else ["sleeper 1 keeps dying"])
    children.now[0] += 61
    assert children.problems() == []


def test_sigterm_ends_them_and_who_does_not_end_is_killed(children):
    children._clock = time.monotonic
    children.add("one", time.sleep, 60)
    children.add("deaf", _deaf)
    pids = children.pids()
    wait_until(lambda: _ignores_sigterm(pids["deaf"]))
    started = time.monotonic()
    assert children.stop(0.5) is False
    assert 0.4 < time.monotonic() - started < 30  # they sleep for 60
    assert not any(alive(pid) for pid in pids.values())


def _deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(60)


def _ignores_sigterm(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    ignored = next(line for line in lines if line.startswith("SigIgn"))
    return int(ignored.split()[1], 16) >> (signal.SIGTERM - 1) & 1


def test_children_end_with_a_parent_that_is_killed(tmp_path):
    program = tmp_path / "parent.py"
    program.write_text(
        "import time\nfrom medenhance_dicom.node.children import Children\n"
        "if __name__ == '__main__':\n"
        "    children = Children()\n    children.add('sleeper', time.sleep, 60)\n"
        "    print(children.pids()['sleeper'], flush=True)\n    time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, program], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    wait_until(lambda: not alive(pid))


def logged(tmp_path, log_format: str) -> str:
    program = tmp_path / "log.py"
    program.write_text(
        "import logging, threading, warnings\nfrom medenhance_dicom.node.logs import set_up_logs\n"
        f"set_up_logs({log_format!r})\nlog = logging.getLogger('medenhance_dicom.node.serve')\n"
        "log.info('job %s is\\n sealed', 'abc', extra={'facts': {'stored': 3, 'address': 'SMITH^JOHN'}})\n"
        "logging.getLogger('pydicom').error('bad value SMITH^JOHN')\n"
        "logging.getLogger('uvicorn').warning('SMITH^JOHN')\n"
        "warnings.warn('SMITH^JOHN')\n"
        "try:\n    raise ValueError('SMITH^JOHN')\nexcept ValueError:\n    log.exception('it failed')\n"
        "def fall():\n    raise KeyError('SMITH^JOHN')\n"
        "t = threading.Thread(target=fall)\nt.start()\nt.join()\nraise RuntimeError('SMITH^JOHN')\n"
    )
    return subprocess.run([sys.executable, program], capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_logs_are_single_lines_that_quote_nobody(tmp_path, log_format):
    lines = logged(tmp_path, log_format).splitlines()
    assert not any("SMITH" in line for line in lines)
    assert len(lines) == 5
    if log_format == "json":
        records = [json.loads(line) for line in lines]
        assert records[0]["message"] == "job abc is\n sealed"
        assert records[0]["stored"] == 3
        assert [r["level"] for r in records] == ["info", "error", "error", "error", "error"]
        assert records[2]["message"] == "it failed (ValueError at log.py:10)"
    else:
        assert lines[0].endswith("job abc is sealed stored=3")
        assert "KeyError at log.py:14" in lines[3]
        assert "RuntimeError at log.py:18" in lines[4]
