"""DCMTK shows of an identity-derived object what it shows of the source, and dciodvfy finds nothing new in it."""

from __future__ import annotations

import json
import os
import random
import re
from collections import Counter
from pathlib import Path

import pytest

from tests import rendering, synthetic

pytestmark = pytest.mark.skipif(rendering.RENDERER is None, reason="no dcmj2pnm")

_SAMPLE, _SEED = 60, 20261201
_UID = re.compile(r".*/ReferencedSOPInstanceUID.*(Value invalid for this VR|Illegal root for UID).*")
_ENUMERATED = "</FrameIncrementPointer(0028,0009)> - Unrecognized enumerated "


def real_files(cases: Path, data: Path) -> list[Path]:
    """All that there are, but DICOMDIRs, which are no instances."""
    files = rendering.dicom_files([cases, data / "dicom"]) + rendering.pydicom_files()
    return [file for file in files if not file.name.startswith("DICOMDIR")]


@pytest.fixture(scope="session")
def some_files(cases_folder, data_folder) -> list[Path]:
    files = [file for file in real_files(cases_folder, data_folder) if "fuzz" not in str(file)]
    return sorted(random.Random(_SEED).sample(files, _SAMPLE))


@pytest.mark.slow
def test_some_files_look_as_before(some_files, tmp_path):
    found = list(rendering.compare(some_files, tmp_path / "scratch"))
    assert not [str(one) for one in found if one.found == "differs"]
    assert Counter(one.found for one in found)["alike"] >= _SAMPLE // 2


@pytest.mark.long
def test_every_file_looks_as_before(cases_folder, data_folder, tmp_path):
    """MEDENHANCE_RESULTS: a file for what was found, as JSON."""
    found = list(rendering.compare(real_files(cases_folder, data_folder), tmp_path / "scratch"))
    counts = Counter(one.found for one in found)
    refused = Counter(one.why for one in found if one.found == "refused")
    told = {one.file.name: one.why for one in found if one.found == "told"}
    if result := os.environ.get("MEDENHANCE_RESULTS"):
        said = {"counts": counts, "told": told, "refused": dict(refused.most_common())}
        Path(result).write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
    assert not [str(one) for one in found if one.found == "differs"]
    assert sum(one.found == "alike" and one.file.is_relative_to(cases_folder) for one in found) >= 100
    assert counts["alike"] >= 250


def new_errors(file: Path, derived: Path) -> Counter[str]:
    """Error lines of dciodvfy that a source does not have.

    A source's illegal UID is one where it is referred to, and a Frame Increment Pointer that is wrong stays so.
    """
    before, after = synthetic.dciodvfy_errors(file), synthetic.dciodvfy_errors(derived)
    pointer = any(_ENUMERATED in line for line in before)
    return Counter(
        {
            line: number
            for line, number in (after - before).items()
            if not _UID.fullmatch(line) and not (pointer and _ENUMERATED in line)
        }
    )


@pytest.mark.slow
def test_some_files_get_no_new_error(some_files, tmp_path):
    found = {}
    for file, outcome in rendering.derived(some_files, tmp_path / "scratch"):
        if outcome.derived:
            found[file] = new_errors(file, Path(outcome.derived))
    assert len(found) >= _SAMPLE // 2
    assert not {file: errors for file, errors in found.items() if errors}


@pytest.mark.long
def test_no_file_gets_a_new_error(cases_folder, data_folder, tmp_path):
    found = {}
    for file, outcome in rendering.derived(real_files(cases_folder, data_folder), tmp_path / "scratch"):
        if outcome.derived:
            found[file] = new_errors(file, Path(outcome.derived))
    assert len(found) >= 250
    assert not {file: errors for file, errors in found.items() if errors}
