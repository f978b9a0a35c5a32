"""Training on a handful of drawn pictures: it learns, it resumes to the step, it writes no pickle."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from medenhance_dicom.errors import ModelError, RecipeError
from medenhance_dicom.recipe import pipelines_folder
from medenhance_dicom.training.checkpoint import load_checkpoint, save_checkpoint
from medenhance_dicom.training.data import list_pictures, load_picture
from medenhance_dicom.training.degradation import DEGRADATIONS
from medenhance_dicom.training.fit import fit
from medenhance_dicom.training.recipe import Pictures, load_training_recipe
from medenhance_dicom.training.stillgan import PicturePool

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


def test_every_shipped_training_recipe_loads():
    recipes = [load_training_recipe(p) for p in sorted((pipelines_folder() / "train").glob("*.toml"))]
    assert {"stillgan-paper", "cfm-cornea-stillgan-compact", "op-fundus-stillgan-compact"} <= {r.name for r in recipes}


def test_a_misspelt_key_names_file_and_key(drawn):
    (drawn / "tiny.toml").write_text(TINY + "validate_evry = 3\n")
    with pytest.raises(RecipeError, match=r"tiny\.toml: schedule\.validate_evry"):
        load_training_recipe(drawn / "tiny.toml")


def test_a_stopped_and_resumed_run_ends_where_an_unbroken_one_does(drawn):
    recipe = load_training_recipe(drawn / "tiny.toml")
    whole = fit(recipe, data_root=drawn, run=drawn / "whole", device="cpu", precision="32-true")
    steps = []

    class StoppedError(Exception):
        pass

    def stop(step, total, terms):
        steps.append(step)
        if step == 5:
            raise StoppedError

    options = {"data_root": drawn, "run": drawn / "broken", "device": "cpu", "precision": "32-true"}
    with pytest.raises(StoppedError):
        fit(recipe, report=stop, **options)
    broken = fit(recipe, resume=True, report=lambda step, total, terms: steps.append(step), **options)
    assert steps == [1, 2, 3, 4, 5, 5, 6, 7]  # the checkpoint of step 4 was the last whole one
    a, b = (load_checkpoint(p.with_name("last.safetensors"))["average"] for p in (whole, broken))
    assert all(torch.equal(a[k], b[k]) for k in a)
    log = [json.loads(line) for line in (drawn / "whole/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [2, 4, 6, 7]
    assert all(np.isfinite(entry["psnr"]) for entry in log)
    assert {"cycle", "identity", "illumination", "structure", "adversarial", "paired", "D"} <= set(log[-1])
    exported = load_file(whole)
    assert all(t.dtype == torch.float16 for t in exported.values())


def test_the_warm_up_learns(drawn):
    recipe = load_training_recipe(drawn / "tiny.toml", {"schedule.warm_up": 30, "schedule.steps": 0})
    losses = []
    fit(
        recipe, data_root=drawn, run=drawn / "run", device="cpu", precision="32-true",
        report=lambda step, total, terms: losses.append(terms["paired"]),
    )  # fmt: skip
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])


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
