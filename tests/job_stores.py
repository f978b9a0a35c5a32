"""Stores with jobs for the tests of jobs, and what must hold of them in the end. Holds no tests."""

import json
import subprocess
import sys
import time
from pathlib import Path

from medenhance_dicom.audit import verify
from medenhance_dicom.node.control import Control
from medenhance_dicom.node.retention import drop_parts
from medenhance_dicom.node.settings import load_settings

CHILD = Path(__file__).with_name("jobs_child.py")
CONFIG = """
store = "store"
[[destinations]]
name = "archive"
ae_title = "ARCHIVE"
host = "127.0.0.1"
port = 104
{more}
[[destinations]]
name = "research"
ae_title = "RESEARCH"
host = "127.0.0.1"
port = 105
send = "derived"
commit = false
[work]
database = "{database}"
attempts = 50
first_pause = 0.1
longest_pause = 0.5
heartbeat_seconds = 0.2
silent_seconds = {silent}
"""


def make_store(folder, jobs, *, instances=3, database="", more="", silent=3.0):
    """A configuration and sealed series; returns the configuration's path."""
    config = folder / "node.toml"
    config.write_text(CONFIG.format(database=database, more=more, silent=silent))
    for n in range(jobs):
        make_job(folder / "store", f"{n:032x}", instances=instances)
    return config


def make_job(store, job, *, instances=1, **facts):
    source = store / "jobs" / job / "source"
    source.mkdir(parents=True)
    for i in range(instances):
        (source / f"{job[-4:]}-{i}.dcm").write_bytes(b"picture")
    told = {"calling_ae": "CT1", "called_ae": "US", "instances": instances, "partial": False, "Modality": "OP"} | facts
    (source.parent / "job.json").write_text(json.dumps(told))
    return source.parent


def start(config, death=0):
    return subprocess.Popen(
        [sys.executable, str(CHILD), str(config), str(death)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def all_done(config):
    folders = list((config.parent / "store" / "jobs").iterdir())
    return all((folder / "done.json").exists() for folder in folders)


def assert_whole(config, jobs, instances=3):
    """Every job done; every file at its destinations; each derived file once; committed; the trail unbroken."""
    settings = load_settings(config)
    control = Control(settings)
    assert [job.state for job in control.jobs.all()] == ["done"] * jobs
    originals = {f"{n:032x}"[-4:] + f"-{i}" for n in range(jobs) for i in range(instances)}
    derived = {f"derived-{name}" for name in originals}
    archive = config.parent / "archive"
    assert set((archive / "archive.log").read_text().split()) == originals | derived
    assert set((archive / "research.log").read_text().split()) == derived
    drop_parts(settings.store, time.time() + 86400)  # as the sweep does, once they are old
    made = [path.stem for path in settings.store.glob("jobs/*/derived/study/series/*")]
    assert sorted(made) == sorted(derived)
    for n in range(jobs):
        shown = control.show(f"{n:032x}")
        assert shown["destinations"]["archive"]["sent"] == 2 * instances
        assert shown["destinations"]["archive"]["committed"] == 2 * instances
        assert shown["destinations"]["research"]["sent"] == instances
    assert verify(settings.store / "audit" / "audit.jsonl") is None
    assert not list(settings.store.glob("jobs/*/.*.part"))
    control.close()
