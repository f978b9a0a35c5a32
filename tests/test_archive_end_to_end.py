"""The commands, one after the other, on a small archive; and the manifests name commands that there are."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib

import pytest
import typer.main

from medenhance_dicom.cli import app
from medenhance_dicom.node.settings import NodeSettings
from tests.conftest import ROOT
from tests.test_archive_planning import make_archive, on_disk

SCALING = ROOT / "docs" / "scaling"


def command(*words, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "medenhance_dicom", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.mark.slow
def test_planned_run_in_the_shadow_of_another_recipe_and_reported(tmp_path):
    archive, plan, out, aside = (make_archive(tmp_path / "archive"), *(tmp_path / n for n in ("plan", "out", "aside")))
    planned = json.loads(command("archive", "plan", archive, "--plan", plan, "--recipe", "identity", "--json"))
    assert planned["judged"] == {"chosen": 3, "left_out": 1, "later": 0}
    shadow = ("--shadow", "us-clahe", "--share", "100%", "--shadow-output", aside)
    ran = json.loads(command("archive", "run", plan, "-o", out, *shadow, "--json"))
    assert (ran["series"], ran["results"]) == (3, {"enhanced": 5})
    assert len(list(out.rglob("*.dcm"))) == 5
    assert len(list(aside.rglob("*.dcm"))) == 3  # the recipe is for ultrasound alone
    told = json.loads(command("archive", "report", plan, "--json", "--files", tmp_path / "files.jsonl"))
    files = [json.loads(line) for line in (tmp_path / "files.jsonl").read_text().splitlines()]
    assert sorted(one["file"] for one in files) == on_disk(archive)
    assert told["results"] == {"enhanced": 5, "warned": 0, "withheld": 0, "skipped": 4, "failed": 1, "open": 0}
    whole = told["shadow"][0]
    assert (whole["first"]["recipe"], whole["shadow"]["recipe"], whole["instances"]) == ("identity", "us-clahe", 3)
    assert whole["differences"]["mean_change"]["value"] > 1
    again = json.loads(command("archive", "run", plan, "-o", out, *shadow, "--json"))
    assert again["series"] == 0
    status = json.loads(command("archive", "status", plan, "--json"))
    assert (status["state"], status["running"], status["seconds_left"]) == ("done", False, 0)


def options_of(words):
    """Options of a command, by its words."""
    found = typer.main.get_command(app)
    while getattr(found, "commands", None):
        found = found.commands[words.pop(0)]
    return {option for parameter in found.params for option in parameter.opts}


def assert_known(arguments):
    words = list(arguments)
    options = options_of(words)
    assert {word for word in words if word.startswith("--")} <= options, arguments


def test_the_units_name_commands_that_there_are():
    for unit in SCALING.glob("*.service"):
        start = re.search(r"^ExecStart=\S+medenhance-dicom (.*)$", unit.read_text(), re.MULTILINE)
        assert_known(start[1].split())
    script = (SCALING / "workers.sbatch").read_text()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert_known(re.search(r'"\$MEDENHANCE" (.*)$', script, re.MULTILINE)[1].split())


def test_the_kubernetes_manifests_are_whole():
    yaml = pytest.importorskip("yaml")
    found = {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(
        (SCALING / "kubernetes.yaml").read_text()
    )}  # fmt: skip
    settings = NodeSettings.model_validate(tomllib.loads(found["Secret", "node"]["stringData"]["node.toml"]))
    claims = {name for kind, name in found if kind == "PersistentVolumeClaim"}
    for one in found.values():
        if one["kind"] not in ("Deployment", "Job"):
            continue
        pod = one["spec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        used = {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v}
        assert used <= claims
        (container,) = pod["containers"]
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
        assert any(str(settings.store).startswith(path) for path in mounts)
        assert_known(container["args"])
        if "--to" in container["args"]:
            settings.destination(container["args"][container["args"].index("--to") + 1])
