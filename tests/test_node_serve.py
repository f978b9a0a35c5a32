"""The node's main loop: what it seals, queues and reloads, and what it says of itself; without its processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from medenhance_dicom.errors import OutputError
from medenhance_dicom.jobs import Jobs
from medenhance_dicom.node import serve
from medenhance_dicom.node.identity import read_identity
from medenhance_dicom.node.serve import NodeProcess
from medenhance_dicom.node.state import put_in_force, read_state, running_process, settings_in_force
from medenhance_dicom.node.worker import own_scratch
from tests.ports import free_port
from tests.waiting import wait_until


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "node.toml"
    path.write_text(
        f'store = "store"\n[listener]\nport = {free_port()}\nreserve_bytes = 0\n[http]\nport = 0\n'
        '[completeness]\nidle_seconds = 0.01\n[[peers]]\nae_title = "SCANNER"\n'
    )
    return path


@pytest.fixture
def node(config, monkeypatch):
    monkeypatch.setattr(serve, "model_problems", list)
    found = NodeProcess(config)
    yield found
    if found._jobs is not None:
        found._jobs.close()
    found._state.close()


def receive(node, picture):
    part = node.spool.new_part()
    part.write_bytes(picture.read_bytes())
    node.spool.accept(part, read_identity(part), calling_ae="SCANNER", called_ae="MEDENHANCE")


def until_sealed(node):
    def sealed():
        node._seal()
        return node._unqueued

    return wait_until(sealed)[-1]


def events(node, name):
    return [event for event in node.audit.events() if event["event"] == name]


def test_a_complete_series_becomes_a_job_and_is_queued_once(node, samples):
    receive(node, samples / "study" / "op-fundus.dcm")
    job = until_sealed(node)
    (sealed,) = events(node, "sealed")
    assert (sealed["job"], sealed["instances"], sealed["Modality"], sealed["partial"]) == (job, 1, "OP", False)
    assert sealed["waited"] >= 0
    node._enqueue()
    assert node._unqueued == []
    node._reconcile()
    assert node._unqueued == [job]
    node._enqueue()
    assert [state.job for state in node._jobs.all()] == [job]
    assert len(events(node, "sealed")) == 1


def test_jobs_wait_while_the_database_is_away(node, samples, monkeypatch):
    receive(node, samples / "study" / "op-fundus.dcm")
    job = until_sealed(node)

    def away(url):
        raise ConnectionError

    monkeypatch.setattr(serve, "Jobs", away)
    node._enqueue()
    assert node._unqueued == [job]
    monkeypatch.setattr(serve, "Jobs", Jobs)
    node._enqueue()
    assert node._unqueued == []


def test_a_crash_between_sealing_and_writing_it_down_is_made_good(node, samples, monkeypatch):
    receive(node, samples / "study" / "op-fundus.dcm")
    monkeypatch.setattr(node, "_write_sealed", lambda job, waited: None)
    job = until_sealed(node)
    monkeypatch.undo()
    node._unqueued.clear()
    node._reconcile()
    assert [event["job"] for event in events(node, "sealed")] == [job]
    assert node._unqueued == [job]


def test_a_reload_takes_what_may_change_and_names_the_rest(node, config):
    text = config.read_text()
    port = node.settings.listener.port
    config.write_text(
        text.replace(f"port = {port}", "port = 104\nmaximum_associations = 3").replace("0.01", "7.0")
        + '[[peers]]\nae_title = "NEW"\n'
    )
    node.reload()
    assert node.settings.listener.port == port
    assert node.settings.listener.maximum_associations == 3
    assert node.settings.peer("NEW") is not None
    assert node._completeness.settings.completeness.idle_seconds == 7.0
    assert read_state(node.spool.store)["reload"] == {"n": 1, "refused": None, "at_the_next_start": ["listener.port"]}
    assert events(node, "reloaded")[0]["at_the_next_start"] == ["listener.port"]


def test_a_reload_of_a_wrong_file_changes_nothing(node, config):
    before = node.settings
    config.write_text('store = "elsewhere"\n[listener]\nprot = 1\n')
    node.reload()
    assert node.settings is before
    assert "prot" in events(node, "reload refused")[0]["why"]
    assert "prot" in read_state(node.spool.store)["reload"]["refused"]


def test_a_file_that_is_being_edited_is_not_yet_meant(node, config, monkeypatch):
    put_in_force(node.settings)
    assert settings_in_force(node.spool.store) == node.settings
    config.write_text(config.read_text() + '[[peers]]\nae_title = "NEW"\n')
    assert settings_in_force(node.spool.store).peer("NEW") is None
    node.reload()
    assert settings_in_force(node.spool.store).peer("NEW") is not None
    assert (node.spool.store / "settings.json").stat().st_mode & 0o077 == 0

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serve, "put_in_force", full)
    config.write_text(config.read_text() + '[[peers]]\nae_title = "NEWER"\n')
    with pytest.raises(OSError, match="No space"):
        node.reload()
    assert node.settings.peer("NEWER") is None  # not here and not there


def test_a_series_whose_sealing_failed_after_its_rename_is_queued_all_the_same(node, samples, monkeypatch):
    monkeypatch.setattr(node._receivers, "watch", lambda: 0)
    receive(node, samples / "study" / "op-fundus.dcm")
    real = node.spool._rename_sealed

    def rename(folder, source):
        real(folder, source)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(node.spool, "_rename_sealed", rename)
    wait_until(lambda: node._tick() or list(node.spool.jobs()))
    node._tick()
    assert node._jobs is None
    node._queued_all -= 3600
    node._tick()
    assert [job.job for job in node._jobs.all()] == [job.job_id for job in node.spool.jobs()]


def test_an_error_that_nobody_thought_of_stops_none_of_the_loop(node, samples, monkeypatch):
    monkeypatch.setattr(node._receivers, "watch", lambda: 0)
    monkeypatch.setattr(node._workers, "tend", lambda: 1 / 0)
    receive(node, samples / "study" / "op-fundus.dcm")
    wait_until(lambda: node._tick() or node._jobs is not None)
    assert len(node._jobs.all()) == 1


def test_readiness_says_what_is_wrong(node, monkeypatch):
    assert node.problems() == []
    monkeypatch.setattr(node.spool, "free_bytes", lambda: 0)
    node.settings = node.settings.model_copy(
        update={"listener": node.settings.listener.model_copy(update={"reserve_bytes": 2 * 10**9})}
    )
    assert node.problems() == ["disk: 0.0 GB free, 2.0 GB are kept back"]
    node._stop.set()
    assert node.problems() == ["draining"]
    node._stop.clear()
    monkeypatch.undo()
    node._ticked -= 100
    node._models = lambda: ["weights x: altered"]
    node._database = lambda: "does not answer"
    assert node.problems()[-3:] == [
        "database: does not answer", "models: weights x: altered", "the main loop stands still"
    ]  # fmt: skip


def test_a_full_disk_stops_none_of_the_loop(node, samples, monkeypatch):
    receive(node, samples / "study" / "op-fundus.dcm")

    def full(*_, **__):
        raise OutputError("audit trail: No space left on device")

    monkeypatch.setattr(node.audit, "append", full)
    monkeypatch.setattr(node._receivers, "watch", lambda: 0)
    node._reload.set()
    wait_until(lambda: node._tick() or node._jobs is not None)
    assert len(node._jobs.all()) == 1


def test_one_node_has_a_store(node, config):
    assert running_process(node.spool.store) == os.getpid()
    with pytest.raises(OutputError, match="another node runs on it"):
        NodeProcess(config)


def test_a_stale_state_is_gone_when_a_node_starts(node, config):
    node._say("running")
    node._state.close()
    again = NodeProcess(config)
    try:
        assert read_state(node.spool.store) == {}
    finally:
        again._state.close()


def test_temporary_files_lie_in_the_store_and_those_of_the_dead_go(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr("tempfile.tempdir", None)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    own = own_scratch(tmp_path)
    left = own.parent / str(dead.pid)
    left.mkdir()
    assert own_scratch(tmp_path) == own
    assert [path.name for path in own.parent.iterdir()] == [str(os.getpid())]
    assert os.environ["TMPDIR"] == str(own)
    assert own.stat().st_mode & 0o077 == 0


def test_receivers_load_neither_torch_nor_dbos_nor_the_web():
    script = (
        "import sys\nimport medenhance_dicom.node.mount, medenhance_dicom.node.receivers\n"
        "heavy = {'torch', 'dbos', 'sqlalchemy', 'fastapi', 'uvicorn', 'scipy', 'medenhance_dicom.enhance'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
