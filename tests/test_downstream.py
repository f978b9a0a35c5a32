"""Fovea, grading and quality: what they learn from drawn pictures, what is kept of them, who learns along with whom."""

from __future__ import annotations

import copy
import csv
import json

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.ndimage import binary_dilation, gaussian_filter

from medenhance_dicom.errors import ModelError, RecipeError
from medenhance_dicom.recipe import pipelines_folder
from medenhance_dicom.training.checkpoint import load_checkpoint
from medenhance_dicom.training.data import Placement, TrainingPictures, to_batch
from medenhance_dicom.training.fit import export, fit
from medenhance_dicom.training.predictors import Predictor, load_predictor, predict
from medenhance_dicom.training.quality import OUTPUTS, QualityTask
from medenhance_dicom.training.recipe import TrainingRecipe, load_training_recipe
from medenhance_dicom.training.tasks import Cooperation, load_task, task_of

SIDE = 96
TASKS = {
    "fovea": {"kind": "fovea", "network": "heatmap", "width": 16, "columns": ["row", "column"]},
    "resnet8": {"kind": "grading", "network": "resnet8", "width": 8, "channels": 1, "columns": ["level"]},
    "tortuosity": {"kind": "grading", "network": "tortuosity", "columns": ["level"]},
    "quality": {"kind": "quality", "network": "mcfnet", "width": 8},
}
COOPERATIVE = ("fovea", "resnet8", "quality")
METHODS = {"fovea": "fovea", "resnet8": "grading", "tortuosity": "grading", "quality": "quality"}
OPTIONS = {"device": "cpu", "precision": "32-true"}


def fundus(rng):
    """A dim round field with a bright disc, a dark fovea beside it, vessels of noise; and the fovea's place."""
    y, x = np.mgrid[:SIDE, :SIDE].astype(float)
    centre, side = rng.uniform(40, 55, 2), rng.choice([-1, 1])
    row, column = centre[0] + rng.uniform(-4, 4), centre[1] + side * rng.uniform(2, 12)
    light = 0.45 + 0.3 * gaussian_filter(rng.normal(size=(SIDE, SIDE)), 3)
    light += 0.4 * np.exp(-((y - row + 3) ** 2 + (x - column + side * 26) ** 2) / 30)
    light -= 0.2 * np.exp(-((y - row) ** 2 + (x - column) ** 2) / 40)
    light *= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < 40**2
    picture = np.stack([light, 0.7 * light, 0.4 * light], axis=2) + rng.normal(0, 0.02, (SIDE, SIDE, 3))
    return picture, (row, column)


def curves(rng, level):
    """Three fibres of one of four levels of tortuosity as a mask."""
    mask, t = np.zeros((SIDE, SIDE), bool), np.linspace(0, 1, 600)
    for middle in (20, 48, 76):
        half_waves, height = rng.uniform(3, 5), [0.5, 3.0, 6.0, 9.5][level] * rng.uniform(0.85, 1.15)
        rows = middle + rng.uniform(-2, 2) + height * np.sin(np.pi * (half_waves * t + rng.uniform(0, 2)))
        mask[np.rint(rows).astype(int).clip(0, SIDE - 1), np.rint(4 + 88 * t).astype(int)] = True
    return binary_dilation(mask, np.ones((3, 3)))


def save(path, unit):
    Image.fromarray((255 * unit).clip(0, 255).astype(np.uint8)).save(path)


def write_table(path, columns, rows):
    with path.open("w", newline="") as handle:
        csv.writer(handle).writerows([columns, *rows])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Folders `fovea`, `level`, `high` and `low`, with tables."""
    root, rng = tmp_path_factory.mktemp("drawn"), np.random.default_rng(0)
    for folder in ("fovea", "level", "high", "low"):
        (root / folder).mkdir()
    places, levels = [], []
    for i in range(120):
        picture, (row, column) = fundus(rng)
        save(root / f"fovea/{i}.png", picture)
        places.append([f"{i}.png", f"{row:.2f}", f"{column:.2f}"])
        levels.append([f"{i}.png", i % 4])
        mask = curves(rng, i % 4)
        save(root / f"level/{i}.png", 0.2 + 0.6 * mask + rng.normal(0, 0.02, mask.shape))
    for i in range(24):
        good, poor = fundus(rng)[0], fundus(rng)[0]
        save(root / f"high/{i}.png", good)
        save(root / f"low/{i}.png", 0.3 + 0.5 * gaussian_filter(poor, (2, 2, 0)) + rng.normal(0, 0.02, poor.shape))
    write_table(root / "fovea.csv", ["file", "row", "column"], places)
    write_table(root / "level.csv", ["file", "level"], levels)
    return root


def tables(which):
    if which == "quality":
        return {}
    folder = "fovea" if which == "fovea" else "level"
    one = {"folder": folder, "table": f"{folder}.csv"}
    return {"pictures": [{**one, "last": 0.8}], "validation_pictures": [{**one, "first": 0.8}]}


def recipe_of(which, method=None, schedule=None, data=None, **task):
    sides = {"low": [{"folder": "low", "last": 0.7}], "high": [{"folder": "high", "last": 0.7}]}
    sides |= {
        "validation_low": [{"folder": "low", "first": 0.7}],
        "validation_high": [{"folder": "high", "first": 0.7}],
    }
    if which != "quality":
        sides = {key: [] for key in sides}
    return TrainingRecipe.model_validate({
        "name": "tiny", "summary": "", "method": method or METHODS[which],
        "data": {"channels": 3, "size": SIDE, **sides, **(data or {})},
        "task": {"batch": 8, **TASKS[which], **tables(which), **task},
        "schedule": {"steps": 3, "constant": 0, "rate": 3e-3, "ema": 0.9, "validate_every": 50, **(schedule or {})},
    })  # fmt: skip


@pytest.fixture
def fabric():
    made = Fabric(accelerator="cpu", devices=1, precision="32-true")
    made.launch()
    return made


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def kept(which, path, **task):
    made = task_of(recipe_of(which, **task))
    export(made, path)
    return path


def unit_of(path):
    with Image.open(path) as opened:
        unit = np.asarray(opened, np.float32) / 255
    return unit if unit.ndim == 3 else unit[..., None]


def last_scores(run):
    return json.loads((run / "log.jsonl").read_text().splitlines()[-1])


# What they learn.


@pytest.mark.slow
def test_the_fovea_is_found(drawn, tmp_path):
    recipe = recipe_of("fovea", schedule={"steps": 150, "rate": 1e-2})
    predictor = load_predictor(fit(recipe, data_root=drawn, run=tmp_path, **OPTIONS))
    with (drawn / "fovea.csv").open() as handle:
        truth = {row["file"]: (float(row["row"]), float(row["column"])) for row in csv.DictReader(handle)}
    unseen = [f"{i}.png" for i in range(96, 120)]
    found = np.array([predictor(unit_of(drawn / "fovea" / name)).point for name in unseen])
    distance = np.hypot(*(found - [truth[name] for name in unseen]).T)
    assert distance.mean() <= 2
    assert distance.mean() == pytest.approx(last_scores(tmp_path)["distance_validation"], abs=0.1)
    middle = np.mean([truth[f"{i}.png"] for i in range(96)], axis=0)
    assert distance.mean() < 0.4 * np.hypot(*([truth[name] for name in unseen] - middle).T).mean()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "schedule"),
    [("tortuosity", {"steps": 300, "rate": 0.1}), ("resnet8", {"steps": 150, "rate": 1e-2})],
)
def test_levels_of_tortuosity_are_told_apart(drawn, tmp_path, which, schedule):
    predictor = load_predictor(
        fit(recipe_of(which, schedule=schedule), data_root=drawn, run=tmp_path, **OPTIONS)
    )  # fmt: skip
    unseen = range(96, 120)
    found = [predictor(unit_of(drawn / f"level/{i}.png")).grade for i in unseen]
    accuracy = np.mean([grade == i % 4 for grade, i in zip(found, unseen, strict=True)])
    assert accuracy > 0.9
    assert accuracy == pytest.approx(last_scores(tmp_path)["accuracy_validation"], abs=0.05)


@pytest.mark.slow
def test_two_folders_of_quality_are_told_apart(drawn, tmp_path):
    recipe = recipe_of("quality", schedule={"steps": 40, "rate": 3e-2})
    predictor = load_predictor(fit(recipe, data_root=drawn, run=tmp_path, **OPTIONS))
    high, low = (
        np.array([predictor(unit_of(drawn / f"{kind}/{i}.png")).quality for i in range(17, 24)])
        for kind in ("high", "low")
    )
    assert (high[:, None] > low).mean() > 0.95
    assert high.mean() - low.mean() > 0.4
    assert last_scores(tmp_path)["auc_validation"] > 0.95


# What a run is.


@pytest.mark.parametrize(
    "which", [pytest.param(which, marks=[] if which == "tortuosity" else pytest.mark.slow) for which in TASKS]
)
def test_each_goes_on_exactly_where_it_stopped(drawn, tmp_path, which):
    recipe = recipe_of(which, schedule={"validate_every": 2, "checkpoint_seconds": 0.0})
    seen = {"whole": {}, "broken": {}}

    class StoppedError(Exception):
        pass

    def record(name, stop_at=None):
        def report(step, total, terms):
            seen[name][step] = terms
            if step == stop_at:
                raise StoppedError

        return report

    fit(recipe, data_root=drawn, run=tmp_path / "whole", report=record("whole"), **OPTIONS)
    with pytest.raises(StoppedError):
        fit(recipe, data_root=drawn, run=tmp_path / "broken", report=record("broken", 3), **OPTIONS)
    fit(recipe, data_root=drawn, run=tmp_path / "broken", resume=True, report=record("broken"), **OPTIONS)
    assert seen["broken"] == seen["whole"]
    assert set(seen["whole"]) == {1, 2, 3}
    a, b = (load_checkpoint(tmp_path / run / "last.safetensors")["average"] for run in ("whole", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert (tmp_path / "whole/best.safetensors").read_bytes() == (tmp_path / "broken/best.safetensors").read_bytes()
    start = task_of(recipe).state_dict()
    assert any(not torch.equal(a[k], start[k]) for k in a)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"network": "csnet"}, "network 'heatmap'"),
        ({"columns": ["row"]}, "needs 2 or 4 columns"),
        ({"kind": "grading", "network": "resnet8", "columns": ["level"]}, "needs task.kind 'fovea'"),
        ({"mode": "frozen"}, "trains alone"),
        ({"pictures": []}, "task.pictures is empty"),
    ],
)
def test_a_recipe_that_contradicts_its_task_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        recipe_of("fovea", **change)


def test_what_cannot_train_along_is_refused():
    with pytest.raises(ValueError, match="nothing can be trained through"):
        recipe_of("tortuosity", method="stillgan", mode="frozen")
    with pytest.raises(ValueError, match="call everything good"):
        recipe_of("quality", method="stillgan", mode="joint")
    with pytest.raises(ValueError, match=r"data\.low"):
        recipe_of("quality", data={"low": []})


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (None, "needs a table"),
        ("gone.csv", r"gone\.csv: no such table"),
        ("level.csv", r"level\.csv: no column 'row'"),
        ("bad.csv", r"bad\.csv: line 2: a value is no number"),
    ],
)
def test_a_table_that_does_not_fit_is_named(drawn, table, words):
    write_table(drawn / "bad.csv", ["file", "row", "column"], [["0.png", "3", ""]])
    where = [{"folder": "fovea", "table": table}]
    with pytest.raises(RecipeError, match=words):
        TrainingPictures(drawn, recipe_of("fovea", pictures=where))


def test_a_level_that_is_none_names_its_file(drawn):
    with pytest.raises(RecipeError, match=r"3\.png: level 3 is none of 0 to 2"):
        TrainingPictures(drawn, recipe_of("resnet8", levels=3))


def test_a_judge_needs_validation_pictures(drawn, tmp_path):
    for which, change in (("fovea", {"validation_pictures": []}), ("quality", {"data": {"validation_low": []}})):
        with pytest.raises(RecipeError, match="is empty"):
            fit(recipe_of(which, **change), data_root=drawn, run=tmp_path, **OPTIONS)


@pytest.mark.parametrize(
    ("named", "values"), [(["row", "column"], [9.5, 71.5]), (["top", "bottom", "left", "right"], [8, 11, 70, 73])]
)
def test_a_place_is_moved_as_its_picture_is(tmp_path, named, values):
    """A white pixel stays where its place says, through squaring, turning and back."""
    wide = np.zeros((48, 96, 3))
    wide[8:12, 70:74] = 1
    (tmp_path / "one").mkdir()
    save(tmp_path / "one/a.png", wide)
    write_table(tmp_path / "t.csv", ["file", *named], [["a.png", *values]])
    one = {
        "pictures": [{"folder": "one", "table": "t.csv"}],
        "validation_pictures": [{"folder": "one", "table": "t.csv"}],
    }
    pictures = TrainingPictures(tmp_path, recipe_of("fovea", data={"size": 48}, columns=named, **one))
    seen = set()
    for seed in range(30):
        batch = pictures.of_task(np.random.default_rng(seed))
        for x, place in zip(batch["task_low"], batch["task_target"], strict=True):
            rows, columns = (x[0] > 0).nonzero().float().add(0.5).mean(dim=0) / 48
            assert (float(rows), float(columns)) == pytest.approx(tuple(place.tolist()), abs=1e-6)
            seen.add(tuple(np.round(place.tolist(), 4)))
    assert len(seen) == 8
    place = Placement(48, 96, 48)
    assert place.point_back(*place.point(9.5, 71.5)) == pytest.approx((9.5, 71.5))
    assert Placement(10, 10, 40).point(0, 9) == pytest.approx((0.05, 0.95))


def test_a_batch_of_quality_is_half_and_half_alone_and_low_beside_an_enhancer(drawn):
    pictures = TrainingPictures(drawn, recipe_of("quality"))
    batch = pictures.of_task(np.random.default_rng(0))
    assert batch["task_target"].tolist() == [1, 0] * 4
    dark = batch["task_low"].flatten(1).amin(dim=1) < -0.9  # the good ones have a black surround
    assert dark.tolist() == [True, False] * 4
    along = TrainingPictures(drawn, recipe_of("quality", method="stillgan", mode="frozen"))
    batch = along.of_task(np.random.default_rng(0))
    assert batch["task_target"].tolist() == [1] * 8
    assert float(batch["task_low"].min()) > -0.9


# Their losses.


def test_the_foveas_loss_by_hand():
    task = task_of(recipe_of("fovea"))  # 12 cells of 8 pixels
    out, target = torch.tensor([[0.5, 0.5], [0.5, 0.5]]), torch.tensor([[0.5, 0.5 + 0.5 / 12], [0.5 + 3 / 12, 0.5]])
    assert float(task.loss(out, target)) == pytest.approx((0.5 * 0.5**2 + 3 - 0.5) / 4, rel=1e-5)
    assert task.metrics(out, target)["distance"] == pytest.approx((4 + 24) / 2, rel=1e-5)


def test_the_levels_loss_is_the_sum_over_the_heads_and_the_first_counts():
    task = task_of(recipe_of("resnet8"))
    out = torch.zeros(2, 3, 4)
    out[0, 0, 1] = out[1, 0, 2] = 50
    target = torch.tensor([1, 3])
    assert float(task.loss(out, target)) == pytest.approx((0 + 50) / 2 + 2 * np.log(4), rel=1e-4)
    assert task.metrics(out, target) == {"accuracy": 0.5}


def test_the_qualitys_loss_weighs_its_outputs():
    task = task_of(recipe_of("quality"))
    out = torch.zeros(1, 5, 2)
    assert sum(OUTPUTS) == pytest.approx(1)
    assert float(task.loss(out, torch.ones(1))) == pytest.approx(np.log(2), rel=1e-5)
    out[0, 4] = torch.tensor([30.0, -30.0])
    assert float(task.loss(out, torch.ones(1))) == pytest.approx(0.4 * np.log(2), rel=1e-5)
    assert float(task.loss(out, torch.zeros(1))) == pytest.approx(0.4 * np.log(2) + 0.6 * 30, rel=1e-5)
    assert float(QualityTask.score(out)) == pytest.approx(1)
    three = torch.zeros(3, 5, 2)
    three[:, 4, 0] = torch.tensor([2.0, -1.0, 1.0])
    assert task.metrics(three, torch.tensor([1.0, 0.0, 0.0])) == pytest.approx({"accuracy": 2 / 3, "auc": 1})


# Beside an enhancer.


class Bend(torch.nn.Module):
    """An enhancer of one parameter."""

    def __init__(self):
        super().__init__()
        self.bend = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        return x + self.bend * x**3


@pytest.mark.parametrize("which", COOPERATIVE)
@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_reach_the_picture(which, channels):
    task = task_of(recipe_of(which)).eval()
    x = (torch.rand(2, channels, SIDE, SIDE) * 1.6 - 0.8).requires_grad_(True)
    target = {"fovea": torch.rand(2, 2), "resnet8": torch.tensor([0, 3]), "quality": torch.ones(2)}[which]
    task.loss(task(x), target).backward()
    assert torch.isfinite(x.grad).all()
    assert float(x.grad.abs().amax(dim=(1, 2, 3)).min()) > 0


@pytest.mark.parametrize(
    ("which", "mode"), [("fovea", "frozen"), ("fovea", "joint"), ("resnet8", "frozen"), ("resnet8", "joint"),
                        ("quality", "frozen")]
)  # fmt: skip
def test_the_enhancer_learns_and_a_frozen_task_does_not(drawn, tmp_path, fabric, which, mode):
    weights = kept(which, tmp_path / "theta.safetensors")
    recipe = recipe_of(which, method="stillgan", mode=mode, weights=weights, enhancer_weight=0.0, rate=1e-2)
    batch = TrainingPictures(drawn, recipe).of_task(np.random.default_rng(0))
    cooperation, enhancer = Cooperation.of(recipe, fabric), Bend()
    before = copy.deepcopy(cooperation.network.state_dict())
    total, L_d = cooperation.joined(torch.zeros(()), enhancer, batch)
    assert total.item() == pytest.approx(L_d.item()) != 0
    fabric.backward(total)
    assert float(enhancer.bend.grad) != 0
    for optimizer in cooperation.optimizers.values():
        optimizer.step()
    after = cooperation.network.state_dict()
    learned = {name for name in after if not torch.equal(after[name], before[name])}
    assert bool(learned) == (mode == "joint")
    assert not any("running" in name for name in learned)


@pytest.mark.slow
def test_a_whole_run_trains_an_enhancer_along_with_a_fovea(drawn, tmp_path):
    weights = kept("fovea", tmp_path / "theta.safetensors")
    side = [{"folder": "fovea", "last": 0.05}]
    terms = {}
    fit(
        TrainingRecipe.model_validate({
            "name": "tiny", "summary": "",
            "data": {"channels": 3, "size": 256, "low": side, "high": side, "validation_high": side},
            "network": {"width": 2, "head": "gain", "discriminator_width": 2},
            "weights": {"adversarial": 0, "cycle": 0, "identity": 0, "illumination": 0, "structure": 0, "lassim": 1.0},
            "task": {**TASKS["fovea"], **tables("fovea"), "mode": "joint", "weights": weights, "batch": 2},
            "schedule": {"steps": 1, "constant": 0},
        }),
        data_root=drawn, run=tmp_path / "run", report=lambda step, total, found: terms.update(found), **OPTIONS,
    )  # fmt: skip
    assert set(terms) == {"lassim", "task", "D"}
    along = load_predictor(tmp_path / "run/task.safetensors")
    assert along.kind == "fovea"
    assert along.task.about.size == 256


# What is kept.


def test_a_predictor_of_each_kind_takes_any_picture(tmp_path):
    rng = np.random.default_rng(0)
    expected = {"fovea": "point", "resnet8": "grade", "tortuosity": "grade", "quality": "quality"}
    for which, field in expected.items():
        predictor = load_predictor(kept(which, tmp_path / f"{which}.safetensors"))
        assert predictor.kind == TASKS[which]["kind"]
        for shape in ((70, 50, 3), (33, 120, 1)):
            said = predictor(rng.random(shape))
            assert [name for name, value in vars(said).items() if value is not None] == [field]
        digits = predictor.id.rsplit(":", 1)[1]
        assert len(digits) == 12
        name = "s_hq@lite" if which == "quality" else TASKS[which]["network"]
        assert predictor.id == f"{name}:{digits}"
    point = load_predictor(tmp_path / "fovea.safetensors")(np.full((40, 200, 1), 0.5)).point
    assert -0.5 <= point[0] <= 39.5
    assert 60 < point[1] < 140  # untrained: near the middle


def segmenter(path, **task):
    recipe = TrainingRecipe.model_validate({
        "name": "s", "summary": "", "method": "segmenter",
        "data": {"channels": 1, "size": SIDE, "low": [], "high": [], "validation_high": []},
        "task": {"width": 4, "poolings": 2, "channels": 1, "pictures": [{"folder": "x"}], **task},
        "schedule": {"steps": 1, "constant": 0},
    })  # fmt: skip
    export(task_of(recipe), path)
    return path


class Bright(torch.nn.Module):
    """Stands where a segmentation network stands: 1 where the picture is bright."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, x):
        return self.weight * x


@pytest.mark.parametrize("shape", [(96, 96), (60, 180), (300, 200)])
def test_a_probability_lies_where_the_picture_does(tmp_path, shape):
    task = load_task(segmenter(tmp_path / "s.safetensors"))
    task.network = Bright()
    unit = np.full((*shape, 1), 0.3, np.float32)
    height, width = shape
    unit[height // 4 : height // 2, width // 2 : 3 * width // 4] = 0.9
    probability = predict(task, unit).probability
    assert probability.shape == shape
    assert ((probability > 0.5) == (unit[..., 0] > 0.5)).mean() > 0.96
    with pytest.raises(ValueError, match="H, W, 1 or 3"):
        predict(task, unit[..., 0])


@pytest.mark.slow
def test_a_grader_with_a_segmenter_carries_it_and_never_trains_it(drawn, tmp_path):
    found = segmenter(tmp_path / "s.safetensors")
    alone = load_file(found)
    for which in ("resnet8", "tortuosity"):
        recipe = recipe_of(which, segmenter=found)
        best = fit(recipe, data_root=drawn, run=tmp_path / which, **OPTIONS)
        whole = load_file(best)
        assert all(torch.equal(whole[f"segmenter.{name}"], tensor) for name, tensor in alone.items())
        assert load_predictor(best)(np.full((50, 60, 1), 0.4)).grade in range(4)
    x = torch.rand(2, 1, SIDE, SIDE, requires_grad=True)
    assert load_task(tmp_path / "resnet8/best.safetensors").network.stem[0].weight.shape[1] == 3
    load_task(tmp_path / "resnet8/best.safetensors")(x).sum().backward()
    assert float(x.grad.abs().sum()) > 0


def test_a_segmenter_that_does_not_fit_its_grader_is_refused(tmp_path):
    found = segmenter(tmp_path / "s.safetensors")
    with pytest.raises(RecipeError, match="of a fovea task"):
        task_of(recipe_of("resnet8", segmenter=kept("fovea", tmp_path / "f.safetensors")))
    with pytest.raises(RecipeError, match="98 is no multiple of 4"):
        task_of(recipe_of("tortuosity", segmenter=found, data={"size": 98}))
    with pytest.raises(RecipeError, match="only grading"):
        task_of(recipe_of("fovea", segmenter=found))


def rewrite(path, tensors=None, metadata=None):
    with safe_open(path, framework="pt") as handle:
        said = handle.metadata()
    save_file(tensors or load_file(path), path, metadata=said if metadata is None else metadata)


def test_what_is_missing_altered_or_unknown_is_refused(tmp_path):
    path = tmp_path / "f.safetensors"
    with pytest.raises(ModelError, match=r"f\.safetensors: no weights"):
        load_predictor(path)
    path.write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match=r"f\.safetensors: no weights"):
        load_predictor(path)
    kept("fovea", path)
    tensors = load_file(path)
    tensors["network.last.bias"] += 1
    rewrite(path, tensors)
    with pytest.raises(ModelError, match=r"f\.safetensors: altered"):
        load_predictor(path)
    kept("fovea", path)
    with safe_open(path, framework="pt") as handle:
        said = json.loads(handle.metadata()["task"])
    for change, words in (({"size": 104}, "altered"), ({"network": "oracle"}, "unknown"), ({"x": 1}, "unknown")):
        rewrite(path, metadata={"task": json.dumps({**said, "about": said["about"] | change})})
        with pytest.raises(ModelError, match=words):
            load_predictor(path)
    rewrite(path, metadata={"task": "[]"})
    with pytest.raises(ModelError, match="unknown"):
        load_predictor(path)
    rewrite(path, metadata={"other": "x"})
    with pytest.raises(ModelError, match="not a task's weights"):
        load_predictor(path)


def test_weights_without_a_description_still_load_through_their_recipe(drawn, tmp_path):
    recipe = recipe_of("fovea")
    task = task_of(recipe)
    old = tmp_path / "old.safetensors"
    save_file({name: tensor.half() if tensor.is_floating_point() else tensor
               for name, tensor in task.state_dict().items()}, old)  # fmt: skip
    again = task_of(recipe).load(old)
    assert torch.allclose(again.network.last.weight, task.network.last.weight, atol=1e-3)


def test_an_enhancers_weights_say_nothing_of_a_task(tmp_path):
    export(torch.nn.Conv2d(1, 1, 1), tmp_path / "e.safetensors")
    with safe_open(tmp_path / "e.safetensors", framework="pt") as handle:
        assert handle.metadata() is None


def test_the_same_weights_have_the_same_identifier(tmp_path):
    torch.manual_seed(3)
    first = load_predictor(kept("quality", tmp_path / "a.safetensors"))
    torch.manual_seed(3)
    again = load_predictor(kept("quality", tmp_path / "b.safetensors"))
    torch.manual_seed(4)
    other = load_predictor(kept("quality", tmp_path / "c.safetensors"))
    assert first.id == again.id != other.id
    unit = np.random.default_rng(0).random((SIDE, SIDE, 3))
    assert isinstance(first, Predictor)
    assert first(unit) == again(unit)
    x = to_batch([np.rint(unit * 255) / np.float32(255)])
    with torch.inference_mode():
        assert first(unit).quality == pytest.approx(float(QualityTask.score(first.task(x))), abs=1e-6)


@pytest.mark.parametrize("name", [
    "es-polyps-unet", "op-fovea-heatmap", "op-disc-heatmap", "cfm-tortuosity-resnet8", "cfm-tortuosity-features",
    "op-quality-mcfnet", "mcfnet-paper",
])  # fmt: skip
def test_the_shipped_recipes_build_their_tasks(name):
    recipe = load_training_recipe(pipelines_folder() / f"train/{name}.toml")
    with torch.device("meta"):
        task = task_of(recipe)
    assert task.name == recipe.task.kind
    assert task.about.size == recipe.data.size
