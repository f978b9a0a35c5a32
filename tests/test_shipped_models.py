"""Every shipped network runs in `enhance` on the sample study; the derived object names weights and guide by digest."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from medenhance_dicom.enhance import Enhancement
from medenhance_dicom.guides import find_guides, load_guide, verify_guide
from medenhance_dicom.identity import recorded_digests
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.recipe import load_recipes
from medenhance_dicom.selection import Settings
from medenhance_dicom.verification.files import verify_files
from tests.conftest import ROOT

MANIFEST = load_manifest()
RECIPES = {recipe.enhancer.weights: recipe.name for recipe in load_recipes() if recipe.enhancer.weights}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def _no_guides_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("MEDENHANCE_GUIDES", str(tmp_path / "guides"))


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(MANIFEST.weights))
def test_a_shipped_network_enhances_a_sample(key, samples, tmp_path):
    sources = {"cornea": "op-cornea.dcm", "fundus": "op-fundus.dcm", "endoscopy": "es-colon.dcm"}
    source = samples / "study" / next(name for domain, name in sources.items() if domain in key)
    settings = Settings(output=tmp_path / "out", recipe=RECIPES[key], device="cpu", gate="warn")
    (outcome,) = Enhancement(settings, now=datetime(2025, 1, 2, tzinfo=UTC)).outcomes([source])
    assert outcome.result in {"enhanced", "warned"}
    assert outcome.weights == key
    before, after = dcmread(source), dcmread(outcome.derived)
    recorded = recorded_digests(after)
    assert (
        recorded["weights"] == hashlib.sha256((ROOT / "models" / MANIFEST.weights[key].file).read_bytes()).hexdigest()
    )
    if MANIFEST.weights[key].takes_guide:
        assert recorded["guide"] == digest(ROOT / "models" / "guides" / f"{outcome.guide}.safetensors")
    else:
        assert outcome.guide is None
        assert "guide" not in recorded
    assert after.pixel_array.shape == before.pixel_array.shape
    changed = np.abs(after.pixel_array.astype(float) - before.pixel_array)
    assert 0.5 < changed.mean() < 0.25 * 2**before.BitsStored
    assert [found.problems for found in verify_files(tmp_path / "out", Path(source))] == [[]]


def test_every_guided_network_has_guides_that_fit():
    found = find_guides()
    assert not any(verify_guide(path, MANIFEST) for path in found.values())
    led = {load_guide(path).weights for path in found.values()}
    assert led == {key for key, entry in MANIFEST.weights.items() if entry.takes_guide}
