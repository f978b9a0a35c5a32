"""A whole node between DCMTK and an archive: everything arrives once, whatever is stopped or killed on the way."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from pydicom import dcmread

from tests.node_process import Archive, NodeUnderTest, dcmsend
from tests.waiting import wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/usr/bin/dcmsend").exists(), reason="no DCMTK"),
]


@pytest.fixture
def archive():
    found = Archive()
    yield found
    found.stop()


@pytest.fixture
def nodes(tmp_path, archive):
    made = []

    def make(settings="", **more):
        node = NodeUnderTest(tmp_path, settings or archive.toml(), **more)
        archive.node_port = node.port
        made.append(node)
        return node

    yield make
    for node in made:
        node.close()


def uids(folder) -> set[str]:
    return {dcmread(path, stop_before_pixels=True).SOPInstanceUID for path in folder.rglob("*") if path.is_file()}


def jobs_done(node, count):
    """Waits until as many jobs are done."""
    wait_until(lambda: len(node.events("done")) >= count, what="jobs are not done")


def test_originals_and_derived_arrive_once_and_everything_is_accounted_for(nodes, archive, samples):
    archive.start()
    node = nodes(listener="receivers = 2").start()
    originals = uids(samples / "study")
    sent = dcmsend(node.port, samples / "study")
    assert sent.returncode == 0, sent.stderr
    jobs_done(node, 6)
    assert len(archive.stored) == len(set(archive.stored))
    assert originals < set(archive.stored)
    derived = set(archive.stored) - originals
    listed = node.json("jobs", "list")
    assert {job["state"] for job in listed} == {"done"}
    made = sum(
        json.loads(report.read_text())["counts"].get(result, 0)
        for report in node.store.glob("jobs/*/run_report.json")
        for result in ("enhanced", "warned")
    )
    assert len(derived) == made > 0
    committed = sum(event["instances"] for event in node.events("committed"))
    assert committed == len(archive.stored)

    page = node.get("/metrics").text
    assert f"medenhance_received_instances_total {len(originals)}.0" in page
    assert f'medenhance_sent_instances_total{{destination="archive"}} {len(archive.stored)}.0' in page
    assert "medenhance_unfinished_jobs 0.0" in page
    assert node.get("/readyz").json() == {"ready": True, "problems": []}
    status = node.json("node", "status")
    assert (status["running"], status["pending_series"], status["dead_letters"]) == (True, 0, 0)
    why = node.json("jobs", "why", listed[0]["job"][:8])["why"]
    assert why[0].startswith("SCANNER sent")

    assert dcmsend(node.port, samples / "study").returncode == 0  # a repeat is acknowledged and makes no job
    time.sleep(1.5)
    assert len(node.json("jobs", "list")) == len(listed)
    assert node.terminate() == 0
    assert node.json("node", "status", code=3)["running"] is False
    log = node.log.read_text()
    for uid in set(archive.stored):
        assert uid not in log
        assert uid not in (node.store / "audit" / "audit.jsonl").read_text()


def test_what_was_pending_goes_on_after_a_restart(nodes, archive, samples):
    archive.start()
    node = nodes(idle=4.0).start()
    assert dcmsend(node.port, samples / "study" / "op-fundus.dcm").returncode == 0
    started = time.monotonic()
    assert node.terminate() == 0
    assert time.monotonic() - started < 30
    assert not node.events("sealed")
    node.start()
    jobs_done(node, 1)
    assert uids(samples / "study") & set(archive.stored) == {
        dcmread(samples / "study" / "op-fundus.dcm", stop_before_pixels=True).SOPInstanceUID
    }
    assert len(archive.stored) == len(set(archive.stored)) == 2


def test_kills_at_any_moment_lose_and_double_nothing(nodes, archive, samples):
    archive.start()
    node = nodes(idle=0.3)
    originals = uids(samples / "study")
    for pause in (0.0, 0.8, 1.6, 4.0):
        node.start()
        assert dcmsend(node.port, samples / "study").returncode == 0
        time.sleep(pause)
        node.kill()
    node.start()
    jobs_done(node, 6)
    wait_until(lambda: node.json("node", "status")["unfinished_jobs"] == 0)
    assert originals <= set(archive.stored)
    derived = {path.stem for path in node.store.glob("jobs/*/derived/**/*.dcm")}
    assert set(archive.stored) == originals | derived
    assert not list(node.store.glob("incoming/*"))


def test_a_destination_that_is_away_is_tried_again_then_a_dead_letter_then_a_person_helps(nodes, archive, samples):
    node = nodes().start()
    assert dcmsend(node.port, samples / "study" / "op-fundus.dcm").returncode == 0
    wait_until(lambda: node.events("dead letter"))
    (dead,) = node.json("jobs", "list", "--state", "failed")
    assert node.json("node", "status")["dead_letters"] == 1
    assert "medenhance_dead_letters 1.0" in node.get("/metrics").text
    assert any("archive cannot be reached" in line for line in node.json("jobs", "why", dead["job"])["why"])
    archive.start()
    node.command("jobs", "retry", "--failed")
    jobs_done(node, 1)
    assert len(archive.stored) == len(set(archive.stored)) == 2
    assert node.json("node", "status")["dead_letters"] == 0


def test_strangers_stay_out_until_the_configuration_names_them(nodes, archive, samples):
    archive.start()
    node = nodes().start()
    picture = samples / "study" / "op-fundus.dcm"
    assert dcmsend(node.port, picture, calling="NEWSCANNER").returncode != 0
    assert dcmsend(node.port, picture, called="OTHER").returncode != 0
    good = node.config.read_text()
    node.config.write_text(good + '[[peers]]\nae_title = "BAD\\\\TITLE"\n')
    node.command("node", "reload", code=2)
    node.config.write_text(good + '[[peers]]\nae_title = "NEWSCANNER"\n')
    node.command("node", "reload")
    wait_until(lambda: dcmsend(node.port, picture, calling="NEWSCANNER").returncode == 0)
    jobs_done(node, 1)
    node.config.write_text(good.replace(f"port = {node.port}", "port = 1"))
    assert node.json("node", "reload")["at_the_next_start"] == ["listener.port"]
    assert dcmsend(node.port, picture).returncode == 0


def test_a_broken_configuration_that_is_reloaded_by_signal_changes_nothing(nodes, archive, samples):
    archive.start()
    node = nodes().start()
    good = node.config.read_text()
    node.config.write_text("store = ")
    os.kill(node.process.pid, signal.SIGHUP)
    wait_until(lambda: node.events("reload refused"))
    assert dcmsend(node.port, samples / "study" / "op-fundus.dcm").returncode == 0
    node.config.write_text(good)
    jobs_done(node, 1)


def test_stow_goes_the_same_way(nodes, archive, samples):
    import httpx

    archive.start()
    node = nodes(http="stow = true").start()
    data = (samples / "study" / "op-fundus.dcm").read_bytes()
    answer = httpx.post(
        f"http://127.0.0.1:{node.http_port}/dicom-web/studies", content=data, timeout=60, trust_env=False,
        headers={"Content-Type": "application/dicom"},
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    jobs_done(node, 1)
    assert len(archive.stored) == 2
    assert node.events("sealed")[0]["calling_ae"] == "STOW-RS"


def test_children_that_are_killed_come_back(nodes, archive, samples):
    archive.start()
    node = nodes().start()
    before = json.loads((node.store / "node.json").read_text())["workers"]["worker 1"]
    os.kill(before, signal.SIGKILL)
    wait_until(lambda: json.loads((node.store / "node.json").read_text())["workers"]["worker 1"] not in (before, None))
    assert dcmsend(node.port, samples / "study" / "op-fundus.dcm").returncode == 0
    jobs_done(node, 1)
    assert len(archive.stored) == len(set(archive.stored)) == 2


def test_drain_and_a_second_node(nodes, archive):
    node = nodes().start()
    second = node.command("node", "run", node.config, code=7)
    assert "another node" in second.stderr
    node.command("node", "drain")
    assert node.process.wait(60) == 0
    node.command("node", "drain", code=3)
