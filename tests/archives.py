"""Small archives for the tests of plans and runs, and what must hold of them in the end. Holds no tests."""

import contextlib
import hashlib
import sqlite3
import subprocess
import sys
from collections import Counter

import pydicom

from medenhance_dicom.archive import planning
from medenhance_dicom.archive.plan import Plan
from medenhance_dicom.audit import Audit, verify
from tests.synthetic import make_file

COMMAND = [sys.executable, "-m", "medenhance_dicom", "archive"]


def make_series(folder, first, last, *, instances=2, name="CR"):
    """Series `first` to `last` - 1, a folder for each."""
    for series in range(first, last):
        (folder / str(series)).mkdir(parents=True, exist_ok=True)
        for n in range(instances):
            make_file(
                folder / str(series) / f"{n}.dcm",
                name,
                rows=16 + series % 7,
                StudyInstanceUID=f"1.2.826.0.1.9999.1.{series // 4 + 1}",
                SeriesInstanceUID=f"1.2.826.0.1.9999.2.{series + 1}",
                SOPInstanceUID=f"1.2.826.0.1.9999.3.{series + 1}.{n + 1}",
                InstanceNumber=n + 1,
            )
    return folder


def make_plan(folder, *sources, **options):
    with Plan(folder, create=True) as plan:
        plan.set_options(plan.options | options)
        for source in sources:
            plan.add_source(planning.source_name(str(source)))
        planning.make_plan(plan)
        return plan.counts()


def run(plan, output, *more, **options):
    """`archive run` to its end, in a process of its own."""
    return subprocess.run(
        [*COMMAND, "run", str(plan), "--output", str(output), *more],
        capture_output=True, text=True, timeout=180, check=False, **options,
    )  # fmt: skip


def start(plan, output, *more):
    return subprocess.Popen(
        [*COMMAND, "run", str(plan), "--output", str(output), *more],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def digests(output):
    """Path -> digest of the pixels: another run gives the same, though objects say when they were made."""
    return {
        str(path.relative_to(output)): hashlib.sha256(pydicom.dcmread(path).PixelData).hexdigest()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


def counts(plan):
    with Plan(plan, readonly=True) as opened:
        return opened.counts()


def times_enhanced(store):
    """Job -> how often it was enhanced to the end."""
    trail = store / "audit" / "audit.jsonl"
    assert verify(trail) is None
    return Counter(event["job"] for event in Audit(trail).events() if event["event"] == "enhanced")


def assert_done(plan, series, instances=2, store=None):
    """Everything has a result, and nothing is left of any job."""
    found = counts(plan)
    assert found["open_series"] == found["open_instances"] == 0
    assert found["jobs"] == {}
    assert sum(found["results"].values()) == series * instances
    store = store or plan / "store"
    assert list((store / "archive").iterdir()) == []
    if (database := store / "node.sqlite").exists():
        with contextlib.closing(sqlite3.connect(database)) as opened:
            for table in ("workflow_status", "operation_outputs", "workflow_input", "workflow_output"):
                assert opened.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,), table
