"""Shared by all tests: where data lies, and that a misspelt DICOM keyword is an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pydicom.config
import pytest

from medenhance_dicom.decoding import Decoder

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    """A thread for each of the workers, not all cores: they start with this environment, before NumPy reads it."""
    if config.getoption("numprocesses", None):
        os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def _misspelt_keywords_raise(monkeypatch):
    monkeypatch.setattr(pydicom.config, "INVALID_KEYWORD_BEHAVIOR", "RAISE")


@pytest.fixture(autouse=True)
def _denormals_are_numbers():
    """Running a network flushes denormals in its thread; hypothesis needs them."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real pictures and DICOM files, outside the project."""
    return _outside("MEDENHANCE_DATA", "data")


@pytest.fixture(scope="session")
def cases_folder() -> Path:
    """Small DICOM files with their right values, outside the project."""
    return _outside("MEDENHANCE_CASES", "cases")


def _outside(variable, name):
    folder = Path(os.environ.get(variable, ROOT.parent / "shared" / name))
    if not folder.is_dir():
        pytest.skip(f"no {variable} and no ../shared/{name}")
    return folder


@pytest.fixture(scope="module")
def decoder():
    with Decoder() as decoder:
        yield decoder


@pytest.fixture(scope="session")
def samples() -> Path:
    return ROOT / "sample_data"
