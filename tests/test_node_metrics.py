"""Metrics add up the audit trail and the store, whoever wrote them and however often they are read."""

from __future__ import annotations

import json

import pytest
from prometheus_client.parser import text_string_to_metric_families

from medenhance_dicom.audit import Audit
from medenhance_dicom.node.metrics import Metrics
from medenhance_dicom.node.spool import Spool


@pytest.fixture
def store(tmp_path):
    class Store:
        now = 1000.0
        spool = Spool(tmp_path)
        audit = Audit(tmp_path / "audit" / "audit.jsonl", clock=lambda: store.now)

        def job(self, name, *marks):
            folder = tmp_path / "jobs" / name
            folder.mkdir()
            for mark in ("job.json", *marks):
                (folder / mark).write_text("{}")

    store = Store()
    return store


def values(metrics: Metrics) -> dict[str, float]:
    page, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    return {
        sample.name.removeprefix("medenhance_") + "".join(f" {v}" for v in sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if not sample.name.endswith(("_bucket", "_created"))
    }


def test_an_empty_store_has_zeros(store):
    found = values(Metrics(store.spool))
    assert found["results_total withheld"] == 0
    assert found["dead_letters"] == found["unfinished_jobs"] == found["oldest_unfinished_seconds"] == 0
    assert found["free_bytes"] > 0


def test_a_job_is_followed_through(store):
    metrics = Metrics(store.spool)
    store.audit.append("sealed", job="a", instances=5, partial=False, waited=31.0)
    store.now += 12
    store.audit.append("enhanced", job="a", counts={"enhanced": 3, "withheld": 2})
    store.now += 4
    store.audit.append("sent", job="a", destination="archive", instances=8)
    assert values(metrics)["sent_instances_total archive"] == 8
    store.audit.append("committed", job="a", destination="archive", instances=8)
    store.audit.append("delivered", job="a", destination="archive", instances=8, committed=8)
    store.audit.append("done", job="a")
    for _ in range(2):  # reading changes nothing
        found = values(metrics)
        assert found["received_instances_total"] == 5
        assert found["series_total false"] == 1
        assert found["results_total enhanced"] == 3
        assert found["results_total withheld"] == 2
        assert found["committed_instances_total archive"] == 8
        assert found["done_jobs_total"] == 1
        assert [found[f"stage_seconds_sum {s}"] for s in ("receive", "enhance", "deliver")] == [31, 12, 4]
    assert values(Metrics(store.spool)) == pytest.approx(found, rel=0.01)  # a restart loses nothing


def test_dead_letters_come_and_go(store):
    metrics = Metrics(store.spool)
    store.audit.append("dead letter", job="a", destination="archive", why="refused")
    store.audit.append("dead letter", job="a", destination="research", why="refused")
    store.audit.append("not enhanced", job="b", why="no weights")
    assert values(metrics)["dead_letters"] == 2
    store.audit.append("retried", job="a")
    assert values(metrics)["dead_letters"] == 1
    store.audit.append("cancelled", job="b")
    assert values(metrics)["dead_letters"] == 0


def test_a_line_that_is_being_written_is_read_when_it_is_whole(store):
    metrics = Metrics(store.spool)
    store.audit.append("conflict", calling_ae="A", instance="k")
    line = store.audit.path.read_bytes()
    store.audit.path.write_bytes(line[:-20])
    assert values(metrics)["refused_instances_total conflict"] == 0
    store.audit.path.write_bytes(line)
    assert values(metrics)["refused_instances_total conflict"] == 1


def test_the_queue_is_read_off_the_store(store):
    store.job("a")
    store.job("b", "done.json")
    store.job("c", "cancelled")
    for series, count in (("s1", 2), ("s2", 1)):
        folder = store.spool.store / "pending" / series
        folder.mkdir()
        (folder / "origin.json").write_text(json.dumps({"calling_ae": "A", "called_ae": "B"}))
        for n in range(count):
            (folder / f"{n}.dcm").touch()
    sealed = (store.spool.store / "jobs" / "a" / "job.json").stat().st_mtime
    found = values(Metrics(store.spool, clock=lambda: sealed + 90))
    assert found["unfinished_jobs"] == 1
    assert found["oldest_unfinished_seconds"] == pytest.approx(90)
    assert (found["pending_series"], found["pending_instances"]) == (2, 3)


def test_what_was_set_aside_is_counted(store):
    (store.spool.store / "quarantine" / "a.dcm").touch()
    found = values(Metrics(store.spool))
    assert (found["set_aside_files quarantine"], found["set_aside_files conflicts"]) == (1, 0)
