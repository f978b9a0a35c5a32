"""The run report and its exit codes."""

from __future__ import annotations

import json
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
    assert [p.name for p in path.parent.iterdir()] == ["run_report.json"]


def test_a_report_that_cannot_be_written_is_an_output_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        RunReport(tmp_path / "file" / "run_report.json", started=NOON, device="cpu", engine="torch", precision="fp32")
