"""What a run is judged by: PSNR as `evaluate` has it, and real poor pictures by measures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from scipy.ndimage import gaussian_filter

from medenhance_dicom.errors import ModelError, RecipeError
from medenhance_dicom.evaluation.pictures import open_pictures
from medenhance_dicom.evaluation.recipe import Data as EvaluationData
from medenhance_dicom.metrics.registry import Sample, build_metrics
from medenhance_dicom.training.data import TrainingPictures
from medenhance_dicom.training.fit import fit
from medenhance_dicom.training.hqgnet import _balanced
from medenhance_dicom.training.method import Method, enhancement_scores
from medenhance_dicom.training.poor import PoorPictures
from medenhance_dicom.training.recipe import TrainingRecipe

SIZE = 128
"""Side of the drawn pictures."""


@pytest.fixture
def fabric():
    made = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    made.launch()
    return made


def recipe_of(schedule=None, **data):
    sides = {"low": [], "high": [], "validation_high": [{"folder": "high"}]}
    return TrainingRecipe.model_validate({
        "name": "tiny", "summary": "", "data": {"channels": 3, "size": SIZE, **sides, **data},
        "schedule": {"steps": 1, "constant": 0, **(schedule or {})},
    })  # fmt: skip


def eye(seed, depth=0.4, colour=(0.62, 0.36, 0.2), noise=0.004):
    """A drawn fundus photograph (SIZE, SIZE, 3): round, with dark lines."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    lines = np.zeros((SIZE, SIZE))
    for _ in range(6):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-40, 40)
        lines = np.maximum(lines, np.abs(np.sin(angle) * rows + np.cos(angle) * columns - offset) < 1)
    tint = np.array(colour) * rng.uniform(0.92, 1.08, 3)
    picture = tint * (1 - depth * gaussian_filter(lines, 0.7))[..., None] + noise * rng.standard_normal((SIZE, SIZE, 3))
    inside = (rows**2 + columns**2 < (0.47 * SIZE) ** 2)[..., None]
    return np.where(inside, picture, 0).clip(0, 1).astype(np.float32)


def poor_eye(seed):
    """Its vessels and colours under a veil."""
    return np.where(eye(seed) > 0, 0.45 * eye(seed) + np.float32([0.3, 0.32, 0.12]), 0).astype(np.float32)


def save(path, picture):
    path.parent.mkdir(exist_ok=True)
    Image.fromarray((picture * 255 + 0.5).astype(np.uint8)).save(path)


def named(pictures):
    return [(f"{i}.png", picture) for i, picture in enumerate(pictures)]


class Darker(torch.nn.Module):
    """A network whose outputs lie between two of 256 levels."""

    def forward(self, x):
        return x * 0.9713 - 0.0213


def test_the_psnr_of_a_validation_is_that_of_evaluate(tmp_path, fabric):
    rng = np.random.default_rng(0)
    for i in range(3):
        good = gaussian_filter(rng.random((SIZE // 2, SIZE, 3)), (2, 2, 0))
        save(tmp_path / f"high/{i}.png", good)
        save(tmp_path / f"low/{i}.png", (good + 0.02 * rng.standard_normal(good.shape)).clip(0, 1))
    pictures = TrainingPictures(tmp_path, recipe_of(validation_low=[{"folder": "low"}]))
    found = enhancement_scores(Darker(), pictures.validation, pictures.validation_windows, fabric)

    data = EvaluationData(pictures=[{"folder": "low"}], targets=[{"folder": "high"}])
    (metric,) = build_metrics(["psnr@8bit"])
    with open_pictures(data, tmp_path) as opened:
        cases = [entry.load() for entry in opened.entries]
    after, before = (
        [
            metric.score(Sample(case.source, result, target=case.target))
            for case, result in zip(cases, results, strict=True)
        ]
        for results in ([(Darker()(2 * case.source - 1) + 1) / 2 for case in cases], [case.source for case in cases])
    )
    assert found["psnr"] == pytest.approx(np.mean(after), abs=0.002)
    assert found["psnr_input"] == pytest.approx(np.mean(before), abs=1e-6)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a_1.png", "a_2.png"], "has 2 pictures, validation_high 3"),
        (["a_1.png", "a_2.png", "b_7.png"], "has a_3.png in its place"),
    ],
)
def test_validation_pictures_that_are_no_pairs_are_refused(tmp_path, names, words):
    for i in (1, 2, 3):
        save(tmp_path / f"high/a_{i}.png", eye(i))
    for i, name in enumerate(names):
        save(tmp_path / f"low/{name}", eye(i))
    with pytest.raises(RecipeError, match=words):
        TrainingPictures(tmp_path, recipe_of(validation_low=[{"folder": "low"}]))


# Without pairs.


@pytest.fixture(scope="module")
def judged():
    return PoorPictures(named([poor_eye(i) for i in range(4)]), named([eye(i) for i in range(10, 16)]))


def worse(kind, picture):
    low = gaussian_filter(picture, (6, 6, 0))
    if kind == "gain":
        return (low + 6 * (picture - low)).clip(0, 1)
    if kind == "smoothed":
        return gaussian_filter(picture, (1.5, 1.5, 0))
    waves = np.sin(np.arange(SIZE) / 8)
    blotches = 0.12 * (waves[:, None] * waves)[..., None] * np.array([1, 0, -1])
    return np.where(picture > 0, picture + blotches, 0).clip(0, 1)


def test_what_better_pictures_have_scores_best(judged):
    untouched, restored = ([kind(i) for i in range(4)] for kind in (poor_eye, eye))
    before, after = judged.scores(untouched), judged.scores(restored)
    assert after["poor_score"] > before["poor_score"] + 1
    for name in ("unevenness", "vessel_depth", "contrast_to_noise", "chroma_spread", "colour_distance"):
        assert before[f"poor_{name}"] == before[f"poor_{name}_input"] == after[f"poor_{name}_input"]


@pytest.mark.parametrize("kind", ["gain", "smoothed", "blotched"])
def test_what_only_looks_better_scores_worse(judged, kind):
    restored = [eye(i) for i in range(4)]
    spoilt = [worse(kind, x).astype(np.float32) for x in restored]
    assert judged.scores(spoilt)["poor_score"] < judged.scores(restored)["poor_score"] - 0.1


def test_grey_pictures_are_judged_by_light_and_noise():
    ramp = np.linspace(0.4, 1.6, SIZE, dtype=np.float32)[:, None]
    even = [eye(i)[..., 1:2] for i in range(8)]
    uneven = [(x[..., 0] * ramp)[..., None] for x in even[:3]]
    judged = PoorPictures(named(uneven), named(even[3:]))
    assert judged.scores(even[:3])["poor_score"] > judged.scores(uneven)["poor_score"] + 1
    assert "poor_colour_distance" not in judged.scores(uneven)


def test_poor_pictures_need_good_ones_and_something_to_see():
    with pytest.raises(RecipeError, match="2 pictures that differ"):
        PoorPictures(named([poor_eye(0)]), named([eye(1), eye(2)]))
    with pytest.raises(RecipeError, match=r"0\.png: nothing can be measured"):
        PoorPictures(named([np.zeros((SIZE, SIZE, 3), np.float32)]), named([eye(i) for i in range(4)]))


class Unveil(torch.nn.Module):
    """Takes off the veil of `poor_eye`."""

    def forward(self, x):
        veil = torch.tensor([0.3, 0.32, 0.12])[None, :, None, None]
        unit = (x + 1) / 2
        return torch.where(unit > 0, (unit - veil) / 0.45, 0).clamp(0, 1) * 2 - 1


@pytest.mark.slow
def test_without_pairs_the_best_is_chosen_by_the_poor_ones(tmp_path, fabric):
    for i in range(4):
        save(tmp_path / f"high/{i}.png", eye(10 + i))
        save(tmp_path / f"poor/{i}.png", poor_eye(i))
    poor = {"validation_poor": [{"folder": "poor"}]}

    def scores(network, **options):
        recipe = recipe_of(**{**poor, **options})
        return Method(recipe, fabric, TrainingPictures(tmp_path, recipe)).validate(network)

    still, unveiled = scores(torch.nn.Identity()), scores(Unveil())
    assert still["psnr"] > unveiled["psnr"]  # of good pictures to themselves
    assert still["score"] == still["poor_score"] < unveiled["score"] == unveiled["poor_score"]
    strict = scores(Unveil(), schedule={"minimum_lassim": 1.0})
    assert strict["score"] == pytest.approx(unveiled["score"] - 1000 * (1 - unveiled["poor_lassim_to_input"]))
    degraded = scores(Unveil(), degradation="fundus")
    assert degraded["score"] == degraded["psnr"]
    assert degraded["poor_score"] == unveiled["poor_score"]
    chosen = scores(Unveil(), degradation="fundus", schedule={"best_by": "poor"})
    assert chosen["score"] == chosen["poor_score"]


def test_a_run_of_another_width_is_not_resumed(tmp_path):
    for i in range(3):
        save(tmp_path / f"high/{i}.png", eye(i))
    side = [{"folder": "high"}]

    def run(width, resume):
        recipe = TrainingRecipe.model_validate({
            "name": "s", "summary": "", "method": "segmenter",
            "data": {"channels": 3, "size": 32, "low": [], "high": [], "validation_high": []},
            "task": {"network": "unet", "width": width, "poolings": 2, "pictures": side, "masks": side, "batch": 1,
                     "validation_pictures": side, "validation_masks": side},
            "schedule": {"steps": 1, "constant": 0, "checkpoint_seconds": 0.0},
        })  # fmt: skip
        return fit(recipe, data_root=tmp_path, run=tmp_path / "run", device="cpu", resume=resume)

    run(2, resume=False)
    with pytest.raises(ModelError, match=r"last\.safetensors: a checkpoint of another network"):
        run(4, resume=True)


def test_balanced_terms_pull_alike_whatever_their_scale():
    x = torch.rand(1, 3, 8, 8, requires_grad=True)
    terms = {"adversarial": 0.5 * x.mean(), "haar": 1e-4 * x.square().mean(), "content": 300 * x.sin().sum()}
    scaled = _balanced(terms, x)
    pulls = [float(torch.autograd.grad(term, x, retain_graph=True)[0].norm()) for term in scaled.values()]
    assert pulls == pytest.approx([pulls[0]] * 3, rel=1e-4)
    assert scaled["adversarial"].item() == pytest.approx(terms["adversarial"].item())
