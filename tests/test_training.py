"""Training on a handful of drawn pictures: it learns, it resumes to the step, it writes no pickle."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medenhance_dicom.errors import ModelError, OutputError, RecipeError
from medenhance_dicom.recipe import pipelines_folder
from medenhance_dicom.training.checkpoint import load_checkpoint, save_checkpoint
from medenhance_dicom.training.choosing import list_pictures
from medenhance_dicom.training.data import load_picture
from medenhance_dicom.training.degradation import DEGRADATIONS
from medenhance_dicom.training.fit import METHODS, fit
from medenhance_dicom.training.method import PicturePool, cosine_rate, linear_decay
from medenhance_dicom.training.recipe import TASK_METHODS, TERMS, Pictures, load_training_recipe

TINY = """
name = "tiny"
summary = "A few drawn pictures."
[data]
channels = 1
size = 256
low = [{ folder = "low" }]
high = [{ folder = "high" }]
degradation = "cornea"
validation_high = [{ folder = "high" }]
[network]
width = 2
head = "normalised_gain"
discriminator_width = 2
[weights]
paired = 1.0
patches = [32, 64]
crop = 256
[schedule]
warm_up = 4
steps = 3
constant = 2
warm_up_batch = 2
pool = 2
validate_every = 2
checkpoint_seconds = 0.0
"""


@pytest.fixture
def drawn(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("low", "high"):
        (tmp_path / kind).mkdir()
        for i in range(3):
            picture = 95 + 25 * rng.standard_normal((256, 256)).clip(-2, 2)
            Image.fromarray(picture.astype(np.uint8)).save(tmp_path / kind / f"{i}.png")
    (tmp_path / "tiny.toml").write_text(TINY)
    return tmp_path


SHIPPED = sorted((pipelines_folder() / "train").glob("*.toml"))
METHOD = {
    "cyclegan": {"weights.illumination": 0.0, "weights.structure": 0.0},
    "lamegan": {
        "weights.illumination": 0.0, "weights.structure": 0.0, "weights.identity": 0.0, "weights.perceptual": 0.25,
        "network.generator": "resnet9",
    },
    "miinet": {
        "weights.illumination": 0.0, "weights.structure": 0.0, "weights.perceptual": 0.5, "perceptual.space": "pixel",
    },
    "hqgnet": {"schedule.pretrain": 2, "network.guide_width": 2, "network.guide_size": 64, "network.norm": "instance"},
    "enlightengan": {"weights.perceptual": 1.0, "perceptual.space": "pixel", "schedule.batch": 2},
}  # fmt: skip

LAST_TERMS = {
    "stillgan": {"adversarial", "cycle", "identity", "illumination", "structure", "paired"},
    "cyclegan": {"adversarial", "cycle", "identity", "paired"},
    "lamegan": {"adversarial", "cycle", "perceptual", "paired"},
    "miinet": {"adversarial", "cycle", "identity", "perceptual", "paired"},
    "hqgnet": {"adversarial", "haar", "content", "paired"},
    "enlightengan": {"adversarial", "perceptual", "paired"},
}
FEW = {"schedule.warm_up": 1, "schedule.steps": 2, "schedule.constant": 1, "schedule.pretrain": 1}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_training_recipe_loads(path):
    assert load_training_recipe(path).name == path.stem


def test_the_papers_have_their_recipes():
    names = {path.stem for path in SHIPPED}
    wanted = {"stillgan", "hqgnet", "lamegan", "miinet", "cyclegan", "enlightengan"}
    assert {f"{name}-paper" for name in wanted} | {"hqgnet-light"} <= names


def _recipe_of(drawn, method, **more):
    return load_training_recipe(drawn / "tiny.toml", {"method": method, **METHOD.get(method, {}), **more})


@pytest.mark.slow
@pytest.mark.parametrize("method", ["stillgan", *METHOD])
def test_each_method_computes_its_own_terms_and_goes_on_exactly_where_it_stopped(drawn, method):
    recipe = _recipe_of(drawn, method)
    seen = {"whole": [], "broken": []}

    class StoppedError(Exception):
        pass

    def record(name, stop_at=None):
        def report(step, total, terms):
            seen[name].append((step, terms))
            if step == stop_at:
                raise StoppedError

        return report

    options = {"data_root": drawn, "device": "cpu", "precision": "32-true"}
    fit(recipe, run=drawn / "whole", report=record("whole"), **options)
    total = len(seen["whole"])
    with pytest.raises(StoppedError):
        fit(recipe, run=drawn / "broken", report=record("broken", total - 1), **options)
    fit(recipe, run=drawn / "broken", resume=True, report=record("broken"), **options)
    assert dict(seen["broken"]) == dict(seen["whole"])
    assert set(seen["whole"][-1][1]) == LAST_TERMS[method] | {"D"}
    a, b = (load_checkpoint(drawn / run / "last.safetensors") for run in ("whole", "broken"))
    assert all(torch.equal(a["average"][k], b["average"][k]) for k in a["average"])
    assert all(np.isfinite(list(terms.values())).all() for _, terms in seen["whole"])
    kept = load_file(drawn / "whole/best.safetensors")
    assert all(t.dtype in (torch.float16, torch.int64) for t in kept.values())
    first = total - recipe.schedule.warm_up - recipe.schedule.steps
    log = [json.loads(line) for line in (drawn / "broken/log.jsonl").read_text().splitlines()]
    looked = [n for n in range(first + 1, total + 1) if n % 2 == 0 or n in (first + 4, total)]  # and where a stage ends
    assert [entry["step"] for entry in log] == looked
    assert all(np.isfinite(entry["psnr"]) for entry in log)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", ["learned", "none"])
def test_hqgnet_without_a_guide_trains_no_encoder(drawn, guidance):
    recipe = _recipe_of(drawn, "hqgnet", **FEW, **{"network.guidance": guidance})
    seen = []
    fit(
        recipe, data_root=drawn, run=drawn / "run", device="cpu", precision="32-true",
        report=lambda step, total, terms: seen.append(set(terms)),
    )  # fmt: skip
    assert len(seen) == recipe.schedule.warm_up + recipe.schedule.steps
    assert not (drawn / "run/guide_encoder.safetensors").exists()


@pytest.mark.slow
def test_hqgnet_keeps_its_guide_encoder_and_stops_training_it(drawn):
    recipe = _recipe_of(drawn, "hqgnet")
    encoders = []

    def look(step, total, terms):
        if step > recipe.schedule.pretrain:
            encoders.append((drawn / "run/guide_encoder.safetensors").read_bytes())

    fit(recipe, data_root=drawn, run=drawn / "run", device="cpu", precision="32-true", report=look)
    assert len(encoders) == recipe.schedule.warm_up + recipe.schedule.steps
    assert len(set(encoders)) == 1
    assert {"G", "E"} <= set(load_checkpoint(drawn / "run/last.safetensors")["method"]["modules"])


@pytest.mark.slow
def test_a_run_keeps_a_diary(drawn):
    recipe = load_training_recipe(drawn / "tiny.toml")
    run = drawn / "run"
    fit(recipe, data_root=drawn, run=run, device="cpu", precision="32-true")
    assert {p.name for p in (run / "samples").iterdir()} == {f"step_{n:06d}.png" for n in (2, 4, 6, 7)}
    with Image.open(run / "samples/step_000007.png") as strip:
        assert strip.size == (3 * 256, 3 * 256)
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(run / "tensorboard"))
    found.Reload()
    assert {"warm_up/paired", "validation/psnr"} <= set(found.Tags()["scalars"])
    assert found.Tags()["images"] == ["low, enhanced, true"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"method": "cyclegan"}, "neither illumination nor structure"),
        ({"method": "lamegan", "weights.illumination": 0.0, "weights.structure": 0.0}, "needs weights.perceptual"),
        ({"method": "enlightengan", "weights.perceptual": 1.0}, "perceptual.space"),
        ({"task.mode": "joint"}, "task.pictures is empty"),
        ({"method": "hqgnet", "weights.structure": 50.0}, r"weights\.structure: hqgnet has no such term"),
        ({"weights.haar": 1.0}, r"weights\.haar: stillgan has no such term"),
        ({"method": "segmenter", "task.pictures": [{"folder": "high"}]}, r"weights\.paired: segmenter has no such"),
        ({"schedule.best_by": "poor"}, "validation_poor is empty"),
    ],
)
def test_a_recipe_that_contradicts_its_method_is_refused(drawn, change, words):
    with pytest.raises(RecipeError, match=words):
        load_training_recipe(drawn / "tiny.toml", change)


def test_every_method_says_which_terms_it_has():
    assert set(METHODS) == set(TERMS) | set(TASK_METHODS)


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        ({}, {"device": "cuda:7"}, ModelError, "device 'cuda:7' is not available here"),
        ({}, {"device": "gpu"}, ModelError, "no device 'gpu'"),
        ({}, {"device": "cpu", "precision": "8-bit"}, ModelError, "precision '8-bit'"),
        ({"data.size": 200}, {"device": "cpu"}, RecipeError, r"data\.size: 200 is no multiple of 128"),
        ({"data.size": 200, "method": "hqgnet"}, {"device": "cpu"}, RecipeError, "200 is no multiple of 16"),
    ],
)
def test_what_cannot_run_is_refused_before_it_does(drawn, change, options, error, words):
    recipe = _recipe_of(drawn, **{"method": "stillgan", **change})
    with pytest.raises(error, match=words):
        fit(recipe, data_root=drawn, run=drawn / "run", **options)
    assert not (drawn / "run").exists()


def test_a_run_is_not_overwritten(drawn):
    (drawn / "run").mkdir()
    for name in ("last.safetensors", "best.safetensors", "log.jsonl"):
        (drawn / "run" / name).write_bytes(b"kept")
        with pytest.raises(OutputError, match="there is a run here"):
            fit(load_training_recipe(drawn / "tiny.toml"), data_root=drawn, run=drawn / "run", device="cpu")
        assert (drawn / "run" / name).read_bytes() == b"kept"
        (drawn / "run" / name).unlink()


def test_rates_follow_their_schedules():
    assert [round(linear_decay(e, 200, 100), 4) for e in (0, 99, 100, 199)] == [1, 1, round(1 - 1 / 101, 4), 0.0099]
    assert cosine_rate(1.0, 0, 10) == 1
    assert cosine_rate(1.0, 10, 10) == pytest.approx(0.02)


def test_a_misspelt_key_names_file_and_key(drawn):
    (drawn / "tiny.toml").write_text(TINY + "validate_evry = 3\n")
    with pytest.raises(RecipeError, match=r"tiny\.toml: schedule\.validate_evry"):
        load_training_recipe(drawn / "tiny.toml")


@pytest.mark.slow
def test_the_warm_up_learns(drawn):
    recipe = load_training_recipe(drawn / "tiny.toml", {"schedule.warm_up": 24, "schedule.steps": 0})
    losses = []
    fit(
        recipe, data_root=drawn, run=drawn / "run", device="cpu", precision="32-true",
        report=lambda step, total, terms: losses.append(terms["paired"]),
    )  # fmt: skip
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])


@pytest.mark.slow
def test_a_run_can_start_from_the_weights_of_another(drawn):
    first = fit(load_training_recipe(drawn / "tiny.toml"), data_root=drawn, run=drawn / "a", device="cpu")
    still = {"schedule.warm_up": 1, "schedule.steps": 0, "schedule.warm_up_rate": 0.0, "network.start": str(first)}
    second = fit(load_training_recipe(drawn / "tiny.toml", still), data_root=drawn, run=drawn / "b", device="cpu")
    a, b = load_file(first), load_file(second)
    assert all(torch.equal(a[k], b[k]) for k in a)
    with pytest.raises(ModelError, match="no weights to start from"):
        fit(
            load_training_recipe(drawn / "tiny.toml", still | {"network.start": str(drawn / "gone")}),
            data_root=drawn, run=drawn / "c", device="cpu",
        )  # fmt: skip
    with pytest.raises(ModelError, match="another network"):
        fit(
            load_training_recipe(drawn / "tiny.toml", still | {"network.width": 3}),
            data_root=drawn, run=drawn / "d", device="cpu",
        )  # fmt: skip


@pytest.mark.slow
def test_the_lassim_weight_grows_over_its_ramp(drawn):
    def weights(name, **more):
        few = {"schedule.warm_up": 4, "schedule.steps": 0, "schedule.ema": 0.0, **more}
        run = drawn / name
        fit(load_training_recipe(drawn / "tiny.toml", few), data_root=drawn, run=run, device="cpu", precision="32-true")
        return torch.cat([t.flatten() for t in load_checkpoint(run / "last.safetensors")["average"].values()])

    without, at_once = weights("a"), weights("b", **{"weights.lassim": 10.0})
    late = weights("c", **{"weights.lassim": 10.0, "schedule.lassim_ramp": 10**9})
    # Not zero: Adam makes steps of nothing out of the rounding of biases that a normalisation cancels.
    assert (late - without).abs().mean() < 0.02 * (at_once - without).abs().mean()


@pytest.mark.slow
def test_the_last_average_is_kept_where_that_is_asked_for(drawn):
    finish = {"schedule.finish": 3, "schedule.keep": "last", "schedule.ema": 0.0}
    run = drawn / "run"
    fit(load_training_recipe(drawn / "tiny.toml", finish), data_root=drawn, run=run, device="cpu")
    end, kept = load_checkpoint(run / "last.safetensors"), load_file(run / "best.safetensors")
    assert end["step"] == 10
    assert all(torch.equal(end["average"][k].half(), kept[k]) for k in kept)


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = {
        "step": 3,
        "none": None,
        "list": [1.5, "x", torch.arange(3)],
        "nested": {0: {"t": torch.ones(2, 2).half()}},
    }
    save_checkpoint(tmp_path / "c.safetensors", state)
    back = load_checkpoint(tmp_path / "c.safetensors")
    assert back["step"] == 3
    assert back["none"] is None
    assert back["list"][:2] == [1.5, "x"]
    assert torch.equal(back["list"][2], torch.arange(3))
    assert torch.equal(back["nested"][0]["t"], torch.ones(2, 2).half())
    (tmp_path / "bad").write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "bad")


def test_the_pool_hands_out_older_pictures_half_of_the_time():
    pool, rng = PicturePool(10), np.random.default_rng(0)
    older = sum(float(pool.exchange(torch.full((1, 1, 2, 2), float(i)), rng).mean()) != i for i in range(1, 1011))
    assert 400 < older < 600
    assert len(pool.pictures) == 10


@pytest.mark.parametrize(("name", "channels"), [("fundus", 3), ("cornea", 1)])
def test_degradations_are_seeded_and_stay_in_range(name, channels):
    picture = np.random.default_rng(3).random((64, 64, channels)).astype(np.float32)
    first, again, other = (DEGRADATIONS[name](picture, np.random.default_rng(s)) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.dtype == np.float32
    assert first.min() >= 0
    assert first.max() <= 1


def test_pictures_are_chosen_by_table_and_place(tmp_path):
    for i in range(4):
        Image.new("L", (40, 20), 10 * i).save(tmp_path / f"{i}.png")
    (tmp_path / "labels.csv").write_text("file,score\n0.png,1\n1.png,5\n2.png,6\n3.png,9\n")
    choice = Pictures(folder=".", table="labels.csv", column="score", at_least=5, first=0.0, last=0.67)
    assert [p.name for p in list_pictures(tmp_path, choice)] == ["1.png", "2.png"]
    picture = load_picture(tmp_path / "2.png", 1, 32)
    assert picture.shape == (32, 32, 1)
    assert picture[16, 16, 0] == 20
    assert picture[0, 0, 0] == 0
    with pytest.raises(RecipeError, match="no pictures match"):
        list_pictures(tmp_path, Pictures(folder=".", pattern="*.nothing"))


TWO_PROCESSES = """
import hashlib, os, sys
from pathlib import Path
from medenhance_dicom.training import fit as loop
from medenhance_dicom.training.recipe import load_training_recipe
here = Path(sys.argv[1])
overrides = eval(sys.argv[2])
seen = {}
follow = loop._follow
def spy(average, module, decay):
    seen["network"] = module
    follow(average, module, decay)
loop._follow = spy
recipe = load_training_recipe(here / "tiny.toml", overrides)
loop.fit(recipe, data_root=here, run=here / "run", device="cpu", devices=2, precision="32-true")
numbers = b"".join(p.detach().numpy().tobytes() for p in seen["network"].parameters())
rank = os.environ.get("LOCAL_RANK", "0")
(here / f"rank{rank}").write_text(hashlib.sha256(numbers).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [("stillgan", {}), ("hqgnet", {}), ("hqgnet", {"network.guidance": "none"}), ("lamegan", {}), ("enlightengan", {})],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
def test_two_processes_learn_one_network(drawn, method, more):
    script = drawn / "two.py"
    script.write_text(TWO_PROCESSES)
    overrides = {"method": method, **METHOD.get(method, {}), **FEW, **more}
    done = subprocess.run(
        [sys.executable, str(script), str(drawn), repr(overrides)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (drawn / "rank0").read_text() == (drawn / "rank1").read_text()
    assert (drawn / "run/best.safetensors").is_file()
