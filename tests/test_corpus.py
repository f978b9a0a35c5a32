"""Every DICOM file at hand, most of them written to break readers: an outcome for each, and sound derived objects."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pydicom.data
import pytest
import SimpleITK
from pydicom.misc import is_dicom

DCIODVFY = Path(sys.executable).parent / "dciodvfy"
DCMJ2PNM = Path("/usr/bin/dcmj2pnm")
LIMIT = 2 << 30


def corpora():
    yield "shared"
    yield "pydicom"
    yield "pydicom-data"


MEASURED = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss, file=sys.stderr)
sys.exit(done.returncode)
"""
"""Runs a command, and says in the last line of stderr how much memory it took in KiB: nobody else's children count."""


@pytest.fixture(scope="module", params=corpora())
def outcomes(request, tmp_path_factory):
    if request.param == "shared":
        folder = request.getfixturevalue("data_folder") / "dicom"
    elif request.param == "pydicom":
        folder = Path(pydicom.data.__file__).parent / "test_files"
    else:
        data_store = pytest.importorskip("data_store")
        folder = Path(data_store.__file__).parent / "data"
    output = tmp_path_factory.mktemp("corpus")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            MEASURED,
            sys.executable,
            "-m",
            "medenhance_dicom",
            "enhance",
            folder,
            "-o",
            output,
            "--allow",
            "CT",
            "--json",
        ],
        capture_output=True,
        text=True,
        timeout=850,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode in (0, 4, 10), done.stderr
    assert int(done.stderr.splitlines()[-1]) * 1024 < LIMIT
    value = json.loads(done.stdout)
    files = [
        p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".") and p.name.upper() != "DICOMDIR"
    ]
    assert {o["source"] for o in value["outcomes"]} == {str(p) for p in files}
    return value["outcomes"]


def errors(path):
    done = subprocess.run([DCIODVFY, "-new", path], capture_output=True, text=True, errors="replace", check=False)
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
    # Values and item numbers differ between a source and what is derived of it; a source's illegal UID is referred to.
    lines = [line for line in lines if not re.search(r"/ReferencedSOPInstanceUID\b.*Illegal root for UID", line)]
    return {re.sub(r"= <.*|\[\d+\]", "", line) for line in lines}


@pytest.mark.slow
def test_what_is_not_enhanced_has_a_reason(outcomes):
    assert sum(o["result"] in ("enhanced", "warned") for o in outcomes) > 10
    for o in outcomes:
        assert o["result"] == "enhanced" or re.match(r"[A-Z0-9_]+: \S", o["reason"]), o
        if o["result"] == "failed" and is_dicom(o["source"]):
            assert o["reason"].split(":")[0] in ("NOT_DERIVED", "UNREADABLE", "CONFLICT"), o


@pytest.mark.slow
@pytest.mark.skipif(not DCIODVFY.is_file(), reason="no dciodvfy")
def test_no_derived_object_has_an_error_that_its_source_has_not(outcomes):
    worse = {o["source"]: errors(o["derived"]) - errors(o["source"]) for o in outcomes if o["derived"]}
    assert not {Path(source).name: lines for source, lines in worse.items() if lines}


@pytest.mark.slow
def test_others_can_read_what_we_write(outcomes, tmp_path):
    for o in outcomes:
        if o["derived"]:
            assert SimpleITK.ReadImage(o["derived"]).GetNumberOfPixels() > 0
            if DCMJ2PNM.is_file():
                done = subprocess.run(
                    [DCMJ2PNM, o["derived"], tmp_path / "x"], capture_output=True, text=True, check=False
                )
                assert done.returncode == 0, (o["source"], done.stderr)
