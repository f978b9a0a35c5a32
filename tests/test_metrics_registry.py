"""Every id: what it needs, that it gives what the function gives, and what happens without its file."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from skimage import data

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.metrics import (
    Metric,
    Sample,
    SetMetric,
    average_gradient,
    build_metrics,
    entropy,
    fit_niqe,
    metric_ids,
    niqe,
    piqe,
    psnr,
    save_niqe,
    segmentation_scores,
    signal_to_noise,
    ssim,
)  # fmt: skip
from tests.conftest import ROOT
from tests.test_metrics_natural import natural, written

ENCODER = ROOT / "models" / "weights" / "hqgnet-cornea-1-guide-encoder.safetensors"


@pytest.fixture(scope="module")
def sample():
    rng = np.random.default_rng(0)
    target = (data.camera()[:200, :220, None] / 255).astype(np.float32)
    source = np.clip(0.6 * target + rng.normal(0, 0.02, target.shape), 0, 1).astype(np.float32)
    truth = np.zeros(target.shape[:2], bool)
    truth[40:160, 100] = True
    inside = np.zeros(truth.shape, bool)
    inside[10:190, 10:210] = True
    return Sample(
        source=source, result=np.clip(1.5 * source, 0, 1), target=target, truth_mask=truth,
        segmented=np.roll(truth, 2, 1) * 0.9, inside=inside, grade=1, graded=1, point=(50.0, 60.0), found=(53.0, 64.0),
    )  # fmt: skip


def score(id_, sample, **models):
    (metric,) = build_metrics([id_], models)
    return metric.score(sample if isinstance(metric, Metric) else [sample])


def test_scores_are_those_of_the_functions(sample):
    s = sample
    assert score("snr@ring-r5", s) == signal_to_noise(s.result, s.truth_mask, 5, inside=s.inside)
    assert score("ag@fusion", s) == average_gradient(s.result, s.inside)
    assert score("en@256", s) == entropy(s.result, s.inside)
    assert score("piqe@matlab", s) == piqe(s.result, s.inside)
    assert score("psnr@8bit", s) == psnr(s.result, s.target, s.inside)
    assert score("psnr-source@8bit", s) == psnr(s.result, s.source, s.inside)
    assert score("ssim@wang11", s) == ssim(s.result, s.target, s.inside)
    assert score("ssim-source@wang11", s) == ssim(s.result, s.source, s.inside)
    for tolerance in (0, 3):
        scores = segmentation_scores(s.segmented, s.truth_mask, tolerance=tolerance, inside=s.inside)
        found = {
            name: score(f"seg-{name}@tol{tolerance}", s) for name in ("dice", "auc", "acc", "sen", "gmean", "kappa")
        }
        assert found == {
            "dice": scores.dice, "auc": scores.auc, "acc": scores.accuracy, "sen": scores.sensitivity,
            "gmean": scores.g_mean, "kappa": scores.kappa,
        }  # fmt: skip
    assert score("seg-dice@tol0", s) == 0 < score("seg-dice@tol3", s) == 1
    assert score("fovea-d@px", s) == 5


def test_lassim_is_to_the_source_or_to_the_target(sample):
    assert score("lassim@l3", replace(sample, result=sample.source)) == pytest.approx(1, abs=1e-6)
    assert score("lassim-target@l3", replace(sample, result=sample.target)) == pytest.approx(1, abs=1e-6)
    assert score("lassim@l3", sample) < 1


def test_a_segmentation_is_compared_anew_for_each_sample(sample):
    better = replace(sample, segmented=sample.truth_mask * 1.0)
    assert [score("seg-dice@tol0", s) for s in (sample, better, sample)] == [0, 1, 0]


def test_scores_of_all_samples(sample):
    samples = [replace(sample, grade=g, graded=p) for g, p in ((0, 0), (0, 1), (1, 1), (2, 2))]
    samples += [replace(sample, graded=None)]
    accuracy, f1 = build_metrics(["grade-acc@weighted", "grade-f1@weighted"])
    assert isinstance(accuracy, SetMetric)
    assert accuracy.score(samples) == pytest.approx((2 * 3 / 4 + 3 / 4 + 1) / 4)
    assert f1.score(samples) == pytest.approx((2 * 2 / 3 + 2 / 3 + 1) / 4)
    missed = [sample, replace(sample, found=None)]
    assert build_metrics(["fovea-rate@found"])[0].score(missed) == 0.5
    assert build_metrics(["fovea-d-missed@radius"])[0].score(missed) == (5 + 100) / 2


def test_needs_name_fields_of_a_sample(sample):
    for metric in build_metrics([id_ for id_ in metric_ids() if "<" not in id_]):
        assert metric.needs <= {f for f in Sample.__dataclass_fields__ if f not in ("source", "result")}
        lacking = replace(sample, **dict.fromkeys(metric.needs))
        if metric.needs and not metric.unavailable:
            with pytest.raises(ValueError, match=r"."):
                metric.score(lacking if isinstance(metric, Metric) else [lacking])


def test_every_id_has_a_definition_and_is_documented():
    page = (ROOT / "docs" / "metrics.md").read_text()
    for id_, definition in metric_ids().items():
        assert definition
        assert f"`{id_}`" in page, id_


def test_without_its_file_a_metric_is_there_but_unavailable(tmp_path):
    ids = ["niqe@live-96", "brisque@live774", "kid", "fid@encoder:0123456789ab", "lpips", "s_hq@mcf:0123456789ab"]
    metrics = build_metrics(ids)
    assert [m.id for m in metrics] == ids
    assert all("was given" in m.unavailable for m in metrics)
    assert "brisque-ranges" in build_metrics(["brisque"], {"brisque": tmp_path / "m"})[0].unavailable
    (gone,) = build_metrics(["niqe"], {"niqe": tmp_path / "gone.npz"})
    assert "gone.npz: No such file" in gone.unavailable
    with pytest.raises(ValueError, match="unavailable"):
        gone.score(None)


def test_a_files_metric_is_named_by_the_file(tmp_path, sample):
    scenes = fit_niqe([natural(np.random.default_rng(k)) for k in range(6)])
    save_niqe(tmp_path / "own.safetensors", scenes)
    files = {"niqe": tmp_path / "own.safetensors"}
    for id_ in ("niqe", scenes.id):
        (metric,) = build_metrics([id_], files)
        assert (metric.id, metric.unavailable) == (scenes.id, "")
        picture = natural(np.random.default_rng(9))
        assert metric.score(Sample(source=picture, result=picture)) == niqe(picture, scenes)
    (other,) = build_metrics(["niqe@live-96"], files)
    assert other.id == "niqe@live-96"
    assert other.unavailable.endswith(f"own.safetensors is {scenes.id}")
    model, ranges = written(tmp_path)
    (metric,) = build_metrics(["brisque"], {"brisque": model, "brisque-ranges": ranges})
    assert np.isfinite(metric.score(sample))


def test_sets_are_compared_by_an_encoders_features(sample):
    kid, fid = build_metrics(["kid", "fid"], {"features": ENCODER})
    assert kid.id.startswith("kid@encoder:")
    crops = [slice(k, k + 100) for k in range(0, 100, 20)]
    same = [Sample(source=sample.source[c], result=sample.target[c], target=sample.target[c]) for c in crops]
    dark = [replace(s, result=0.2 * s.target) for s in same]
    assert fid.score(same) == pytest.approx(0, abs=1e-6)
    assert fid.score(dark) > 0.01
    assert kid.score(dark) > kid.score(same)
    with pytest.raises(ValueError, match="at least two"):
        kid.score([])


@pytest.mark.parametrize("id_", ["nothing", "snr", "snr@ring-r4", "niqe@live", "niqe@domain:xyz", "kid@0123456789ab"])
def test_an_unknown_id_is_an_error(id_):
    with pytest.raises(RecipeError, match=f"no metric '{id_}'"):
        build_metrics([id_])


def test_an_unknown_file_is_an_error(tmp_path):
    with pytest.raises(RecipeError, match="no metric takes a file 'nique'"):
        build_metrics(["piqe@matlab"], {"nique": tmp_path})


@pytest.mark.slow
def test_importing_the_metrics_is_light():
    script = "import medenhance_dicom.metrics, sys; assert not {'torch', 'pydicom', 'safetensors'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
