"""The commands of the node, jobs and peers: what they print, and their exit codes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import pytest
import typer
from pydicom import Dataset, dcmread
from pynetdicom import AllStoragePresentationContexts, build_context, evt
from typer.testing import CliRunner

from medenhance_dicom.errors import ConfigurationError, PeerError
from medenhance_dicom.node.commands import add_to
from medenhance_dicom.node.commands_peers import destination_of
from medenhance_dicom.node.spool import Spool
from medenhance_dicom.node.state import NodeState
from tests.dicom_peers import listen
from tests.node_process import Archive
from tests.ports import free_port

FIND, GET = "1.2.840.10008.5.1.4.1.2.2.1", "1.2.840.10008.5.1.4.1.2.2.3"


@pytest.fixture
def run():
    app = typer.Typer()
    add_to(app)

    def invoke(*words, code=0):
        result = CliRunner().invoke(app, [str(word) for word in words])
        error = result.exception
        if error is not None and not isinstance(error, SystemExit):
            raise error
        assert result.exit_code == code, result.output
        return result

    return invoke


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "node.toml"
    path.write_text(
        f'store = "store"\n[listener]\nport = {free_port()}\nreserve_bytes = 0\n[http]\nport = 0\n'
        '[[peers]]\nae_title = "A"\nhosts = ["10.0.0.0/8"]\n'
    )
    return path


@pytest.fixture
def archive():
    found = Archive().start()
    yield found
    found.stop()


# ---------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("text", "title", "host", "port"),
    [
        ("ARCHIVE@10.1.2.3:104", "ARCHIVE", "10.1.2.3", 104),
        ("MY ARCHIVE@pacs.example:11112", "MY ARCHIVE", "pacs.example", 11112),
        ("A@[::1]:104", "A", "::1", 104),
    ],
)
def test_addresses(text, title, host, port):
    found = destination_of(text, None, None, None, 5.0)
    assert (found.ae_title, found.host, found.port) == (title, host, port)


@pytest.mark.parametrize(
    "text",
    ["ARCHIVE", "ARCHIVE@host", "@host:104", "A@host:99999", "SEVENTEEN LETTERS@host:104", "A@::1:104", "A@h:1x"],
)
def test_what_is_no_address(text):
    with pytest.raises(typer.BadParameter):
        destination_of(text, None, None, None, 5.0)


def test_urls_and_tls(tmp_path):
    assert destination_of("https://h/studies", None, None, None, 5.0).stow == "https://h/studies"
    with pytest.raises(typer.BadParameter, match="TLS needs"):
        destination_of("A@h:104", tmp_path / "c.pem", None, None, 5.0)
    assert destination_of("A@h:104", *[tmp_path / n for n in "abc"], 5.0).tls.authority == tmp_path / "c"


# ---------------------------------------------------------------- peers


def test_echo(run, archive):
    assert "answers" in run("echo", f"ARCHIVE@127.0.0.1:{archive.port}").stdout
    assert json.loads(run("echo", f"ARCHIVE@127.0.0.1:{archive.port}", "--json").stdout)["seconds"] >= 0
    with pytest.raises(PeerError):
        run("echo", f"ARCHIVE@127.0.0.1:{free_port()}")
    run("echo", "nonsense", code=2)


def test_send_counts_what_is_stored(run, archive, samples):
    to = f"ARCHIVE@127.0.0.1:{archive.port}"
    answer = json.loads(run("send", samples / "study", "--to", to, "--json").stdout)
    assert answer == {"sent": len(archive.stored), "failed": [], "committed": None}
    assert len(archive.stored) == 7
    run("send", samples, "--to", to)  # folders hold more than DICOM: that is passed over
    run("send", samples / "make.py", "--to", to, code=3)


def test_send_says_what_was_refused(run, archive, samples):
    archive.status = 0x0122
    picture = samples / "study" / "op-fundus.dcm"
    result = run("send", picture, "--to", f"ARCHIVE@127.0.0.1:{archive.port}", code=5)
    assert f"failed  {picture}: C-STORE status 0x0122" in result.stdout
    assert "0 of 1 stored" in result.stdout


def test_send_waits_for_a_commitment_that_comes_elsewhere_in_vain(run, archive, samples):
    words = ("send", samples / "study" / "op-fundus.dcm", "--to", f"ARCHIVE@127.0.0.1:{archive.port}", "--commit")
    result = run(*words, "--commit-seconds", 0.2, code=11)
    assert "1 of 1 stored, 0 committed" in result.stdout
    assert "over this association; --listen" in result.stderr
    assert archive.actions == 1
    run("send", samples, "--to", "http://127.0.0.1:1/studies", "--commit", code=2)


@pytest.mark.slow
def test_send_listens_for_a_commitment(run, archive, samples):
    archive.node_port = free_port()
    words = ("send", samples / "study" / "op-fundus.dcm", "--to", f"ARCHIVE@127.0.0.1:{archive.port}", "--commit")
    words = (*words, "--calling", "NODE", "--commit-seconds", 10)
    assert "1 of 1 stored, 1 committed" in run(*words, "--listen", f"127.0.0.1:{archive.node_port}").stdout
    run(*words, "--listen", "nowhere", code=2)
    stored = len(archive.stored)
    with socket.create_server(("127.0.0.1", archive.node_port)), pytest.raises(ConfigurationError, match="in use"):
        run(*words, "--listen", f"127.0.0.1:{archive.node_port}", code=2)
    assert len(archive.stored) == stored


@pytest.mark.slow
def test_query_lists_and_retrieves(run, samples, tmp_path):
    instance = dcmread(samples / "study" / "op-cornea.dcm")
    asked = []

    def on_find(event):
        asked.append(event.identifier)
        match = Dataset()
        match.QueryRetrieveLevel, match.StudyInstanceUID = "STUDY", instance.StudyInstanceUID
        match.PatientID, match.StudyDate = "P1", "20260101"
        if event.identifier.PatientID != "NOBODY":
            yield 0xFF00, match

    def on_get(event):
        asked.append(event.identifier)
        yield 1
        yield 0xFF00, instance

    roles = {"scu_role": True, "scp_role": True}
    contexts = [build_context(uid) for uid in (FIND, GET)]
    storage = [build_context(c.abstract_syntax, "1.2.840.10008.1.2.1") for c in AllStoragePresentationContexts[:200]]
    for context in storage:
        context.scu_role, context.scp_role = roles.values()
    server = listen([*contexts, *storage], [(evt.EVT_C_FIND, on_find), (evt.EVT_C_GET, on_get)])
    peer = f"SERVER@127.0.0.1:{server.server_address[1]}"
    try:
        result = run("query", peer, "PatientID=P*", "--retrieve", tmp_path / "got", "--json")
        answer = json.loads(result.stdout)
        assert answer["matches"][0]["StudyInstanceUID"] == instance.StudyInstanceUID
        assert answer["retrieved"] == {"completed": 1, "failed": 0}
        assert (asked[0].PatientID, asked[0].QueryRetrieveLevel) == ("P*", "STUDY")
        assert asked[1].StudyInstanceUID == instance.StudyInstanceUID
        (got,) = (tmp_path / "got").iterdir()
        assert dcmread(got).PixelData == instance.PixelData
        assert "P1" in run("query", peer).stdout
        run("query", peer, "PatientID=NOBODY", code=3)
        run("query", peer, "NoSuchKeyword=1", code=2)
        run("query", peer, "PatientID", code=2)
    finally:
        server.shutdown()


# ---------------------------------------------------------------- node


def test_check_of_a_sound_and_of_a_wrong_configuration(run, config, monkeypatch):
    monkeypatch.setattr("medenhance_dicom.node.check._models", lambda settings: iter(()))
    answer = json.loads(run("node", "check", config, "--json").stdout)
    assert answer["exit_code"] == 0
    assert {"configuration", "store", "disk", "ports"} <= {finding["what"] for finding in answer["findings"]}
    config.write_text(config.read_text() + f'[[destinations]]\nname = "x"\nstow = "http://127.0.0.1:{free_port()}/"\n')
    result = run("node", "check", config, code=11)
    assert "wrong   destination x" in result.stdout
    run("node", "check", config, "--no-peers")
    config.write_text("[listener]\nport = 70000\n")
    result = run("node", "check", config, code=2)
    assert "listener.port" in result.stdout


def test_status_without_a_node(run, config):
    answer = json.loads(run("node", "status", config, "--json", code=3).stdout)
    assert answer["running"] is False
    assert not (config.parent / "store").exists()
    Spool(config.parent / "store")
    answer = json.loads(run("node", "status", config, "--json", code=3).stdout)
    assert (answer["pending_series"], answer["unfinished_jobs"]) == (0, 0)
    run("node", "drain", config, code=3)
    run("node", "reload", config, code=3)


def test_status_of_a_running_node(run, config):
    store = config.parent / "store"
    Spool(store)
    with NodeState(store) as state:
        state.say(state="running", http=None)
        answer = json.loads(run("node", "status", config, "--json").stdout)
    assert (answer["running"], answer["state"], answer["pid"]) == (True, "running", os.getpid())


@pytest.mark.slow
def test_a_node_that_does_not_drain_in_time_is_told(run, config):
    program = (
        "import signal, sys, time\nfrom pathlib import Path\nfrom medenhance_dicom.node.state import NodeState\n"
        "signal.signal(signal.SIGTERM, lambda *_: time.sleep(1) or sys.exit())\n"
        f"state = NodeState(Path({str(config.parent / 'store')!r}))\nprint('up', flush=True)\ntime.sleep(60)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout.readline() == "up\n"
        assert "still drains" in run("node", "drain", config, "--seconds", 0.2, code=4).stderr
        assert "drained" in run("node", "drain", config, "--seconds", 10).stderr
    finally:
        child.kill()
        child.wait()


# ---------------------------------------------------------------- jobs


def test_jobs_of_a_store_without_any(run, config):
    assert json.loads(run("jobs", "list", "-c", config, "--json").stdout) == []
    for words in (("show", "abc"), ("why", "abc"), ("retry", "abc"), ("cancel", "abc")):
        assert "begins with abc" in run("jobs", *words, "-c", config, code=3).stderr
    run("jobs", "retry", "--failed", "-c", config, code=3)
    run("jobs", "retry", "-c", config, code=2)
    run("jobs", "recover", "nobody", "-c", config, code=3)
    assert json.loads(run("jobs", "recover", "-c", config, "--json").stdout) == {}


@pytest.mark.slow
def test_a_sealed_job_is_listed_cancelled_and_retried(run, config, samples):
    from medenhance_dicom.jobs import Jobs
    from medenhance_dicom.node.control import database_of
    from medenhance_dicom.node.identity import read_identity
    from medenhance_dicom.node.settings import load_settings

    spool = Spool(config.parent / "store")
    part = spool.new_part()
    part.write_bytes((samples / "study" / "op-fundus.dcm").read_bytes())
    accepted = spool.accept(part, read_identity(part), calling_ae="A", called_ae="B")
    sealed = spool.seal(accepted.series_key, partial=False)
    jobs = Jobs(database_of(load_settings(config)))
    jobs.enqueue(sealed.job_id)
    jobs.close()
    (listed,) = json.loads(run("jobs", "list", "-c", config, "--json").stdout)
    assert (listed["job"], listed["state"], listed["calling_ae"]) == (sealed.job_id, "queued", "A")
    assert sealed.job_id[:8] in run("jobs", "list", "-c", config, "--state", "queued").stdout
    assert json.loads(run("jobs", "list", "-c", config, "--state", "failed", "--json").stdout) == []
    assert "OP" in run("jobs", "show", sealed.job_id[:6], "-c", config).stdout
    assert run("jobs", "why", sealed.job_id[:6], "-c", config).stdout.startswith("A sent 1 instances of OP.")
    run("jobs", "cancel", sealed.job_id[:6], "-c", config)
    assert json.loads(run("jobs", "show", sealed.job_id, "-c", config, "--json").stdout)["state"] == "cancelled"
    run("jobs", "retry", sealed.job_id[:6], "-c", config)
    assert json.loads(run("jobs", "show", sealed.job_id, "-c", config, "--json").stdout)["state"] == "queued"


def test_a_configuration_that_is_not_there(run, tmp_path):
    for words in (("node", "run"), ("node", "status"), ("jobs", "list", "-c")):
        with pytest.raises(ConfigurationError, match=r"absent\.toml"):
            run(*words, tmp_path / "absent.toml")
