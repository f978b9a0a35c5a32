"""The gate's detector: what it sees, where its weights come from, and that limits belong to one detector."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from skimage import data

from medenhance_dicom.errors import ModelError
from medenhance_dicom.gate import examine, structure_map
from medenhance_dicom.gate.detector import altered_maps, planes
from medenhance_dicom.gate.working import prepare
from medenhance_dicom.manifest import learned_pictures, load_detector, load_limits, load_manifest, verify_all
from medenhance_dicom.networks import AlterationDetector, build_network
from medenhance_dicom.prepare import weights_thresholds
from tests.conftest import ROOT

GREY = (data.camera()[::4, ::4] / 255).astype(np.float32)[..., None]  # (128, 128, 1)


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A models folder with the detector alone."""
    manifest = load_manifest()
    (tmp_path / "weights").mkdir()
    shutil.copy(manifest.root / manifest.detector.file, tmp_path / "weights" / "d.safetensors")
    text = f'[detector]\nfile = "weights/d.safetensors"\nsha256 = "{manifest.detector.sha256}"\nlicence = "none"\n'
    (tmp_path / "manifest.toml").write_text(text)
    monkeypatch.setenv("MEDENHANCE_MODELS", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("size", [(32, 32), (33, 401), (200, 35), (97, 61), (385, 383)])
def test_any_frame_has_log_odds_of_each_quarter_pixel(size):
    network = AlterationDetector(widths=(4, 6, 8, 8)).eval()
    with torch.inference_mode():
        odds = network(torch.rand(2, 7, *size))
    assert odds.shape == (2, 2, -(-size[0] // 4), -(-size[1] // 4))
    assert odds.isfinite().all()


def test_what_lies_outside_the_field_is_not_seen():
    torch.manual_seed(0)
    network = AlterationDetector(widths=(4, 6, 8, 8)).eval()
    pair = torch.rand(1, 7, 64, 64)
    pair[:, 6] = 0
    other = pair.clone()
    other[:, :6] = 0.5
    with torch.inference_mode():
        assert torch.equal(network(pair), network(other))


def test_a_grey_frame_has_no_colour_and_a_coloured_one_has():
    grey = prepare(GREY, GREY**0.5, None)
    found = planes(grey)
    assert found.shape == (7, 128, 128)
    assert torch.equal(found[0], grey.before[0])
    assert torch.equal(found[3], grey.after[0])
    assert not found[[1, 2, 4, 5]].any()
    assert (found[6] == 1).all()
    tinted = planes(prepare(GREY * np.array([1, 0.5, 0.2], np.float32), GREY.repeat(3, 2), None))
    assert tinted[[1, 2]].abs().amax((1, 2)).min() > 0.1
    assert tinted[[4, 5]].abs().max() < 1e-6


def test_maps_are_0_where_the_enhancer_was_not_allowed_to_work():
    inside = np.zeros(GREY.shape[:2], bool)
    inside[:, :64] = True
    with torch.inference_mode():
        maps = altered_maps(prepare(GREY, 1 - GREY, inside))
    for found in maps.values():
        assert found.shape == (32, 32)
        assert not found[:, 16:].any()
        assert found[:, :16].min() >= 0


def test_the_detector_comes_verified_from_the_manifest_and_tells_what_it_was_learned_from(models):
    manifest = load_manifest()
    network = load_detector(manifest)
    assert isinstance(network, AlterationDetector)
    assert not network.training
    learned = learned_pictures(manifest)
    assert len(learned) > 500
    assert all(len(digest) == 16 for digest in learned)
    assert verify_all(manifest) == {"detector": None}
    before = examine(GREY, 1 - GREY).checks
    assert before["local"] > 1
    (models / "weights" / "d.safetensors").write_bytes(b"\0" * 16)
    assert "was altered" in verify_all(manifest)["detector"]
    with pytest.raises(ModelError, match="was altered"):
        learned_pictures(manifest)


def test_without_a_detector_the_other_checks_remain(models):
    (models / "manifest.toml").write_text("")
    assert set(examine(GREY, 1 - GREY).checks) == {"inversion", "blur"}
    assert not structure_map(GREY, 1 - GREY).any()
    assert load_detector() is None
    assert learned_pictures() == frozenset()


def test_weights_of_another_shape_are_refused(models):
    from safetensors.torch import save_file

    path = models / "weights" / "d.safetensors"
    save_file(build_network("detector", widths=(4, 6, 8, 8)).state_dict(), path)
    text = (models / "manifest.toml").read_text()
    now = hashlib.sha256(path.read_bytes()).hexdigest()
    (models / "manifest.toml").write_text(text.replace(load_manifest().detector.sha256, now))
    with pytest.raises(ModelError, match="does not fit"):
        load_detector()
    with pytest.raises(ModelError, match="does not tell"):
        learned_pictures()


def test_weights_whose_limits_are_not_calibrated_with_a_detector_are_in_doubt(models):
    shipped = load_manifest(ROOT / "models")
    calibrated = models / "limits.json"
    entry = f"""
[weights.{{}}]
file = "none"
sha256 = "{"0" * 64}"
network = "stillgan"
match = {{{{ Modality = ["OP"], SOPClassUID = ["1.2"], PhotometricInterpretation = ["RGB"] }}}}
input = {{{{ channels = 3 }}}}
gate = {{{{ {{}} }}}}
device_uid = "2.25.1"
licence = "none"
research_only = true
"""
    calibrated.write_text(json.dumps({"minimum": 0.1, "warn_below": 0.2, "checks": {}, "detector": ""}))
    digest = hashlib.sha256(calibrated.read_bytes()).hexdigest()
    with (models / "manifest.toml").open("a") as file:
        file.write(entry.format("by-hand", "minimum = 0.1, warn_below = 0.2"))
        file.write(entry.format("without-detector", f'calibration = "limits.json", sha256 = "{digest}"'))
    assert "weights by-hand were set by hand" in weights_thresholds("by-hand").doubt
    assert "without a detector" in weights_thresholds("without-detector").doubt
    assert {key: weights_thresholds(key, shipped).doubt for key in shipped.weights} == dict.fromkeys(
        shipped.weights, ""
    )


def test_limits_of_another_detector_are_refused(models):
    manifest = load_manifest()
    for digest, fits in ((manifest.detector.sha256, True), ("0" * 64, False)):
        path = models / "limits.json"
        path.write_text(json.dumps({"minimum": 0.1, "warn_below": 0.2, "detector": digest}))
        entry = {"calibration": "limits.json", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        gate = type(manifest).model_validate({"root": models, "gate": {"x": entry}}).gate["x"]
        if fits:
            assert load_limits("x", gate, manifest).minimum == 0.1
        else:
            with pytest.raises(ModelError, match="another detector"):
                load_limits("x", gate, manifest)
