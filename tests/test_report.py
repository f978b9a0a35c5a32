"""The run report and its exit codes."""

from __future__ import annotations

import io
import json
import resource
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import jsonschema
import pytest

from medenhance_dicom import report as report_module
from medenhance_dicom.errors import OutputError
from medenhance_dicom.report import Outcome, RunReport, exit_code

NOON = datetime(2025, 1, 2, 12, tzinfo=UTC)
SCHEMA = json.loads((Path(report_module.__file__).parent / "schemas/run_report.schema.json").read_text())


@pytest.mark.parametrize(
    ("counts", "unreadable", "code"),
    [
        ({"enhanced": 2}, 0, 0),
        ({"warned": 1, "skipped": 3}, 0, 0),
        ({}, 0, 3),
        ({"skipped": 2}, 0, 3),
        ({"enhanced": 1, "failed": 1}, 1, 4),
        ({"skipped": 1, "failed": 1}, 1, 6),
        ({"failed": 2}, 1, 5),
        ({"failed": 2}, 2, 6),
        ({"withheld": 2}, 0, 9),
        ({"withheld": 1, "skipped": 1}, 0, 9),
        ({"withheld": 1, "enhanced": 1}, 0, 10),
    ],
)
def test_exit_codes(counts, unreadable, code):
    assert exit_code(counts, unreadable=unreadable) == code


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_report_is_json_that_fits_its_schema(tmp_path, number):
    path = tmp_path / "deep" / "run_report.json"
    report = RunReport(path, started=NOON, device="cpu", engine="torch", precision="fp32")
    for i in range(number):
        report.add(Outcome(f"{i}.dcm", "failed", "UNREADABLE: Rows: missing", seconds={"write": 0.1}))
    report.close(finished=NOON)
    value = json.loads(path.read_text())
    jsonschema.validate(value, SCHEMA)
    assert [o["source"] for o in value["outcomes"]] == [f"{i}.dcm" for i in range(number)]
    assert value["counts"] == ({"failed": number} if number else {})
    assert report.exit_code == (6 if number else 3)
    assert value["interrupted"] is False
    assert [p.name for p in path.parent.iterdir()] == ["run_report.json"]


def _run(path, source, result="withheld", *, keep=True):
    report = RunReport(path, started=NOON, device="cpu", engine="torch", precision="fp32", keep=keep)
    report.add(Outcome(source, result))
    report.close(finished=NOON)
    return report


def test_the_report_of_a_run_before_is_kept(tmp_path):
    path = tmp_path / "run_report.json"
    for name in ("a.dcm", "b.dcm"):
        _run(path, name)
    kept = [json.loads(p.read_text()) for p in (tmp_path / "reports").iterdir()]
    assert sorted(report["outcomes"][0]["source"] for report in kept) == ["a.dcm", "b.dcm"]
    assert json.loads(path.read_text())["outcomes"][0]["source"] == "b.dcm"
    assert all(p.name.startswith("20250102T120000Z-") for p in (tmp_path / "reports").iterdir())


def test_a_report_with_a_file_of_its_own_leaves_nothing_else(tmp_path):
    _run(tmp_path / "mine.json", "a.dcm", keep=False)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.json"]


def test_twelve_runs_at_once_into_one_folder_keep_their_reports(tmp_path):
    path, count = tmp_path / "run_report.json", 12
    together = threading.Barrier(count)

    def run(number):
        together.wait(timeout=30)
        report = RunReport(path, started=NOON, device="cpu", engine="torch", precision="fp32", keep=True)
        for i in range(50 * (number + 1)):
            report.add(Outcome(f"{number}/{i}.dcm", "withheld", "LASSIM: structure changed " + "." * 10 * number))
        copy = io.StringIO()
        report.close(finished=NOON, also=copy)
        return copy.getvalue()

    with ThreadPoolExecutor(count) as pool:
        printed = [json.loads(text) for text in pool.map(run, range(count))]
    for number, value in enumerate(printed):  # each run's own, whatever the others do
        assert [o["source"] for o in value["outcomes"]] == [f"{number}/{i}.dcm" for i in range(50 * (number + 1))]
    kept = [json.loads(p.read_text()) for p in (tmp_path / "reports").iterdir()]
    assert sorted(map(json.dumps, kept)) == sorted(map(json.dumps, printed))
    assert json.loads(path.read_text()) in kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reports", "run_report.json"]


def test_a_run_that_is_killed_leaves_what_it_did_as_lines(tmp_path):
    path = tmp_path / "run_report.json"
    report = RunReport(path, started=NOON, device="cpu", engine="torch", precision="fp32", keep=True)
    report.add(Outcome("a.dcm", "withheld"))
    head, outcome = (json.loads(line) for line in next((tmp_path / "reports").iterdir()).read_text().splitlines())
    assert (head["schema"], outcome["source"]) == (report_module.SCHEMA, "a.dcm")
    assert not path.exists()
    report.discard()
    assert not list((tmp_path / "reports").iterdir())


def test_a_run_that_ends_early_says_so(tmp_path):
    report = RunReport(tmp_path / "r.json", started=NOON, device="cpu", engine="torch", precision="fp32")
    report.close(finished=NOON, interrupted=True)
    value = json.loads((tmp_path / "r.json").read_text())
    jsonschema.validate(value, SCHEMA)
    assert value["interrupted"] is True


def test_what_a_full_disk_left_of_a_report_is_removed(tmp_path, monkeypatch):
    report = RunReport(tmp_path / "r.json", started=NOON, device="cpu", engine="torch", precision="fp32", keep=True)
    report.add(Outcome("a.dcm" * 1000, "enhanced"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OutputError):
            report.close(finished=NOON)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".jsonl"]


def test_a_report_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        RunReport(tmp_path / "file" / "run_report.json", started=NOON, device="cpu", engine="torch", precision="fp32")
