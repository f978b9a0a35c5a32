"""The detector is learned from some patients only, the same way each time, and goes on where it was stopped."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy.ndimage import gaussian_filter
from typer.testing import CliRunner

from medenhance_dicom.calibration.examples import OFTEN, Examples, example, store_pairs
from medenhance_dicom.calibration.learning import DetectorRecipe, learn, losses
from medenhance_dicom.calibration.pictures import Sample, find_pictures, unseen
from medenhance_dicom.cli import app
from medenhance_dicom.errors import InputError, RecipeError
from medenhance_dicom.gate.alterations import KINDS
from medenhance_dicom.manifest import learned_pictures, load_manifest

RECIPE = {"name": "tiny", "domains": [{"folders": ["pictures"]}], "steps": 4, "batch": 2, "side": 64}
SMALL = {"widths": (4, 6, 8, 8)}


def texture(seed, shape=(80, 96, 3)):
    rng = np.random.default_rng(seed)
    plane = sum(gaussian_filter(rng.standard_normal(shape), (s, s, 0)) * s for s in (1, 3, 9))
    return (0.5 + 0.15 * (plane - plane.mean()) / plane.std()).clip(0, 1).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(8):
        Image.fromarray((texture(number) * 255).astype(np.uint8)).save(tmp_path / "pictures" / f"case{number}.png")
    return tmp_path


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("pairs") / "one.npz"
    store_pairs(path, texture(1), [], np.random.default_rng(0))
    return path


def test_an_example_is_honest_or_altered_where_it_says(stored):
    with np.load(stored) as opened:
        pairs = dict(opened)
    kinds = set()
    for seed in range(60):
        found = example(pairs, np.random.default_rng(seed))
        kinds.add(found.kind)
        assert found.before.shape == found.after.shape
        assert found.truth.shape == found.inside.shape == found.after.shape[:2]
        assert found.truth.any() == (found.kind is not None)
        assert not (found.truth & ~found.inside).any()
        assert 0 <= found.after.min() <= found.after.max() <= 1
    assert None in kinds
    assert len(kinds) > 5
    assert set(OFTEN) == set(KINDS)


def test_an_example_follows_from_its_number(stored):
    one, other = Examples([stored], 64, 5), Examples([stored], 64, 5)
    for a, b, c in zip(one[7], other[7], one[8], strict=True):
        assert torch.equal(a, b)
        assert a.shape == c.shape
    assert not torch.equal(one[7][0], one[8][0])
    assert one[7][0].shape == (7, 64, 64)
    assert one[7][1].shape == (64, 64)


def test_a_frame_smaller_than_the_window_is_filled_up_with_what_is_outside(stored):
    for number in range(20):
        pair, truth, _ = Examples([stored], 128, 0)[number]
        assert pair.shape == (7, 128, 128)
        assert (pair[6] == 0).sum() >= 128 * 128 - 80 * 96
        assert not truth[pair[6] == 0].any()


def odds_of(value=-4.0):
    return torch.full((1, 2, 16, 16), value)


def test_the_loss_asks_for_odds_where_something_was_altered_and_for_none_elsewhere():
    truth = torch.zeros(1, 64, 64)
    truth[:, 20:28, 20:28] = 1
    still, moved = torch.tensor([False]), torch.tensor([True])
    found = odds_of()
    found[0, 0, 5:7, 5:7] = 4
    quiet, caught, whole = losses(found, truth, still)
    assert quiet < 0.1
    assert caught < 0.1
    assert whole < losses(odds_of(), truth, still)[2]
    assert losses(found, truth, moved)[1] > 3  # the other map has to say that
    wrong = found.clone()
    wrong[0, 1, 14, 14] = 4
    assert losses(wrong, truth, still)[0] > quiet + 0.3
    near = found.clone()
    near[0, 1, 8, 8] = 4
    assert torch.equal(losses(near, truth, still)[0], quiet)
    assert losses(found, torch.zeros_like(truth), still)[0] > 1
    assert losses(odds_of(), torch.zeros_like(truth), still)[1] == 0
    point = torch.zeros(1, 64, 64)
    point[0, 21, 21] = 1
    assert losses(found, point, still)[1] < 0.1  # fewer places than are looked at


def test_a_run_that_was_stopped_ends_as_one_that_was_not(folder, tmp_path):
    whole = DetectorRecipe(**RECIPE, **SMALL)
    straight = learn(whole, folder, tmp_path / "a", workers=0)

    class StoppedError(Exception):
        pass

    def stop(step, _):
        if step == 2:
            raise StoppedError

    import medenhance_dicom.calibration.learning as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHECKPOINT_SECONDS", -1)
        with pytest.raises(StoppedError):
            learn(whole, folder, tmp_path / "b", workers=0, progress=stop)
        resumed = learn(whole, folder, tmp_path / "b", workers=0, resume=True)
    a, b = load_file(straight), load_file(resumed)
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name])
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 2, 3, 4] or steps == [1, 2, 3, 4]


def test_patients_who_were_learned_from_are_left_out_of_calibrations(folder, tmp_path):
    recipe = DetectorRecipe(**RECIPE, **SMALL)
    samples = find_pictures([folder / "pictures"])
    taken = [s for s in samples if recipe.learns_from(s.group)]
    assert 0 < len(taken) < len(samples)
    file = learn(recipe, folder, tmp_path / "run", workers=0)
    (tmp_path / "manifest.toml").write_text(
        f'[detector]\nfile = "run/detector.safetensors"\nsha256 = "{digest(file)}"\nlicence = "none"\n'
        "config = { widths = [4, 6, 8, 8] }\n"
    )
    learned = learned_pictures(load_manifest(tmp_path))
    assert len(learned) == len(taken)
    assert unseen(samples, learned) == [s for s in samples if s not in taken]
    pair = [Sample(taken[0].path, "same"), Sample(next(s.path for s in samples if s not in taken), "same")]
    assert unseen(pair, learned) == []


def digest(path):
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_command_says_what_is_wrong_with_a_recipe(folder, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('name = "x"\nsteps = 1\n[[domains]]\nfolders = ["nowhere"]\n')
    done = CliRunner().invoke(app, ["train-gate", str(path), "--data", str(folder), "--run", str(tmp_path / "run")])
    assert isinstance(done.exception, InputError)
    assert "nowhere" in str(done.exception)
    path.write_text('name = "x"\nsteps = 0\n[[domains]]\nfolders = ["pictures"]\n')
    with pytest.raises(RecipeError, match="steps"):
        DetectorRecipe.read(path)
    path.write_text("name = ")
    with pytest.raises(RecipeError, match="not TOML"):
        DetectorRecipe.read(path)


def test_the_shipped_recipe_reads_and_leaves_patients_of_every_folder():
    from medenhance_dicom.recipe import pipelines_folder

    recipe = DetectorRecipe.read(pipelines_folder() / "gate" / "detector.toml")
    assert [recipe.learns_from(f"x:{name}") for name in ("sh", "seq5", "seq1", "seq3")] == [True, True, False, False]
