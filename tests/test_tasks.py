"""Cooperative training: what learns from what, and a segmenter that is trained as a run of its own."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from PIL import Image
from safetensors.torch import save_file

from medenhance_dicom.errors import ModelError, RecipeError
from medenhance_dicom.training.data import TrainingPictures
from medenhance_dicom.training.recipe import TrainingRecipe
from medenhance_dicom.training.segmenter import SegmenterMethod
from medenhance_dicom.training.tasks import Cooperation, SegmentationTask

SIDE = 32


def recipe_of(method="stillgan", data=None, schedule=None, **task):
    return TrainingRecipe.model_validate({
        "name": "tiny",
        "summary": "",
        "method": method,
        "data": {"channels": 3, "size": SIDE, "low": [], "high": [], "validation_high": [], **(data or {})},
        "task": {
            "width": 4, "poolings": 2, "batch": 4, "degraded_fraction": 0.0,
            "pictures": [{"folder": "pictures", "last": 0.75}], "masks": [{"folder": "masks", "last": 0.75}],
            "validation_pictures": [{"folder": "pictures", "first": 0.75}],
            "validation_masks": [{"folder": "masks", "first": 0.75}], **task,
        },
        "schedule": {"steps": 40, "constant": 0, "rate": 4e-2, **(schedule or {})},
    })  # fmt: skip


@pytest.fixture
def fabric():
    made = Fabric(accelerator="cpu", devices=1, precision="32-true")
    made.launch()
    return made


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def drawn(tmp_path):
    """Eight dim pictures with a brighter disc, and the discs' masks."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE, :SIDE]
    for folder in ("pictures", "masks"):
        (tmp_path / folder).mkdir()
    for i in range(8):
        (cy, cx), radius = rng.uniform(10, 22, 2), rng.uniform(4, 8)
        disc = (y - cy) ** 2 + (x - cx) ** 2 < radius**2
        grey = 80 + 50 * disc[..., None] + rng.normal(0, 8, (SIDE, SIDE, 3))
        Image.fromarray(grey.clip(0, 255).astype(np.uint8)).save(tmp_path / f"pictures/{i}.png")
        Image.fromarray((255 * disc).astype(np.uint8)).save(tmp_path / f"masks/{i}.png")
    return tmp_path


@pytest.fixture
def batch():
    return {
        "task_low": torch.rand(2, 3, SIDE, SIDE) * 1.6 - 0.8,
        "task_target": (torch.rand(2, 1, SIDE, SIDE) > 0.7).float(),
    }


def kept(task, path):
    save_file({name: tensor.contiguous() for name, tensor in task.state_dict().items()}, path)
    return path


@pytest.fixture
def trained(tmp_path):
    """Weights whose batch normalisation has seen pictures."""
    task = SegmentationTask.of(recipe_of())
    with torch.no_grad():
        for _ in range(5):
            task(torch.rand(4, 3, SIDE, SIDE) * 2 - 1)
    return kept(task, tmp_path / "theta.safetensors")


class Gain(torch.nn.Module):
    """An enhancer of one parameter."""

    def __init__(self):
        super().__init__()
        self.bend = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x):
        return x + self.bend * x**3


class Parts(torch.nn.Module):
    """Stands where the network stands; keeps what it was given."""

    def forward(self, x):
        self.seen = x
        return x[:, :1]


@pytest.mark.parametrize("kind", ["mse_dice", "bce_dice"])
def test_the_loss_by_hand(kind):
    task = SegmentationTask(torch.nn.Identity(), channels=1, loss=kind)
    target = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    # p = 1/2 everywhere. Dice: 2 * 1/2 / (2 + 1) = 1/3 and 2 * 2 / (2 + 4) = 2/3.
    pixels = 0.25 if kind == "mse_dice" else math.log(2)
    assert float(task.loss(torch.zeros(2, 1, 2, 2), target)) == pytest.approx(pixels + 0.5, abs=1e-4)
    assert float(task.loss(40 * target - 20, target)) == pytest.approx(0, abs=1e-5)


def test_the_dice_that_is_reported_is_of_masks():
    task = SegmentationTask(torch.nn.Identity(), channels=1)
    truth = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]]], [[[0.0, 0.0, 0.0, 0.0]]]])
    found = torch.tensor([[[[0.1, -0.1, -9.0, 0.1]]], [[[-1.0, -1.0, -1.0, -1.0]]]])
    assert task.metrics(found, truth) == {"dice": pytest.approx((2 / 4 + 1) / 2, abs=1e-4)}


def test_a_colour_picture_is_its_green_plane_to_one_channel():
    task, x = SegmentationTask(Parts(), channels=1), torch.rand(2, 3, 8, 8)
    first = task(x)
    assert task.network.seen.shape == (2, 1, 8, 8)
    red, green = x.clone(), x.clone()
    red[:, 0] = green[:, 1, :4] = -0.5
    assert torch.equal(task(red), first)
    assert not torch.allclose(task(green), first)


def test_a_grey_picture_is_repeated_for_three_channels():
    task = SegmentationTask(Parts(), channels=3)
    task(torch.rand(2, 1, 8, 8))
    assert task.network.seen.shape == (2, 3, 8, 8)
    assert torch.equal(task.network.seen[:, 0], task.network.seen[:, 2])


def test_exposure_is_taken_out_and_the_surround_does_not_count():
    task = SegmentationTask(Parts(), channels=3)
    x = torch.rand(2, 3, 16, 16) * 0.8 - 0.3
    task(x)
    seen = task.network.seen
    assert seen.mean(dim=(1, 2, 3)) == pytest.approx([0, 0], abs=1e-5)
    assert seen.std(dim=(1, 2, 3)) == pytest.approx([1, 1], abs=2e-2)
    task(0.7 * x + torch.tensor([0.1, -0.05]).view(2, 1, 1, 1))
    assert torch.allclose(task.network.seen, seen, atol=2e-2)
    framed = torch.nn.functional.pad(x, (8, 8, 8, 8), value=-1.0)
    task(framed)
    assert torch.allclose(task.network.seen[..., 8:-8, 8:-8], seen, atol=1e-5)
    task(torch.full((1, 3, 16, 16), -1.0))
    assert torch.isfinite(task.network.seen).all()


@pytest.mark.parametrize(("channels", "given"), [(1, 3), (3, 1), (3, 3), (1, 1)])
@pytest.mark.parametrize("network", ["csnet", "unet"])
def test_the_task_is_differentiable_in_the_picture(network, channels, given, batch):
    task = SegmentationTask.of(recipe_of(network=network, channels=channels)).eval()
    x = batch["task_low"][:, :given].clone().requires_grad_(True)
    task.loss(task(x), batch["task_target"]).backward()
    slope = x.grad.abs().amax(dim=(0, 2, 3))
    assert slope.tolist() == pytest.approx(
        [0, float(slope.max()), 0] if (channels, given) == (1, 3) else slope.tolist()
    )
    assert float(slope.max()) > 0


def test_pictures_that_do_not_fit_the_poolings_are_an_error():
    with pytest.raises(RecipeError, match="30 is no multiple of 4"):
        SegmentationTask.of(recipe_of(data={"size": 30}))


def test_nothing_trains_along_unless_asked(fabric):
    assert Cooperation.of(recipe_of(mode="none"), fabric) is None


def test_a_frozen_task_needs_weights_that_fit(fabric, tmp_path, trained):
    with pytest.raises(RecipeError, match=r"task\.weights"):
        Cooperation.of(recipe_of(mode="frozen"), fabric)
    missing = tmp_path / "none.safetensors"
    with pytest.raises(ModelError, match=r"none\.safetensors"):
        Cooperation.of(recipe_of(mode="frozen", weights=missing), fabric)
    with pytest.raises(ModelError, match="another network"):
        Cooperation.of(recipe_of(mode="joint", weights=trained, width=2), fabric)
    missing.write_bytes(b"x" * 100)
    with pytest.raises(ModelError, match=r"none\.safetensors"):
        Cooperation.of(recipe_of(mode="joint", weights=missing), fabric)


@pytest.mark.parametrize("mode", ["frozen", "joint"])
def test_who_learns_from_what(fabric, trained, batch, mode):
    """Eq. (17)-(18): the enhancer's gradient is dL_d + lambda_3 dL_e, Theta's dL_d or, frozen, none."""
    recipe = recipe_of(mode=mode, weights=trained, enhancer_weight=7.0, rate=1e-2)
    cooperation, enhancer = Cooperation.of(recipe, fabric), Gain()
    before = copy.deepcopy(cooperation.network.state_dict())

    theta = SegmentationTask.of(recipe).load(trained).eval()
    x_hat = enhancer(batch["task_low"])
    L_e, L_d = (x_hat - 0.1).abs().mean(), theta.loss(theta(x_hat), batch["task_target"])
    (own,) = torch.autograd.grad(L_e, enhancer.bend, retain_graph=True)
    through, *theirs = torch.autograd.grad(L_d, [enhancer.bend, *theta.parameters()])
    assert float(through) != 0

    total = (enhancer(batch["task_low"]) - 0.1).abs().mean()
    joined, term = cooperation.joined(total, enhancer, batch)
    assert term.item() == pytest.approx(L_d.item(), abs=1e-6)
    assert joined.item() == pytest.approx(7 * L_e.item() + L_d.item(), abs=1e-5)
    fabric.backward(joined)
    assert float(enhancer.bend.grad) == pytest.approx(7 * float(own) + float(through), rel=1e-4)
    grads = [p.grad for p in cooperation.network.parameters()]
    if mode == "joint":
        assert cooperation.stepped == ("task",) == tuple(cooperation.optimizers)
        assert all(torch.allclose(g, t, atol=1e-6) for g, t in zip(grads, theirs, strict=True))
        cooperation.optimizers["task"].step()
    else:
        assert cooperation.stepped == () == tuple(cooperation.optimizers)
        assert grads == [None] * len(theirs)
    after = cooperation.network.state_dict()
    learned = {name for name in after if not torch.equal(after[name], before[name])}
    assert bool(learned) == (mode == "joint")
    assert not any("running" in name or "tracked" in name for name in learned)


@pytest.mark.slow
def test_an_enhancer_led_by_a_frozen_task_helps_it(fabric, drawn):
    """A shading hides the discs; L_d alone takes it away."""
    method = trained_segmenter(recipe_of("segmenter"), fabric, drawn)
    theta = kept(method.task, drawn / "theta.safetensors")
    along = recipe_of(mode="frozen", weights=theta, enhancer_weight=0.0)
    cooperation = Cooperation.of(along, fabric)
    clean = method.pictures.segmented(np.random.default_rng(0))
    veil = 0.5 * torch.linspace(-1, 1, SIDE)
    batch = clean | {"task_low": (clean["task_low"] + veil).clamp(-1, 1)}
    unveil = torch.nn.Parameter(torch.zeros(SIDE))
    adam, losses = torch.optim.Adam([unveil], lr=3e-2), []
    for _ in range(30):
        total, L_d = cooperation.joined(torch.zeros(()), lambda low: low + unveil, batch)
        adam.zero_grad()
        total.backward()
        adam.step()
        losses.append(L_d.item())
    assert losses[-1] < 0.6 * losses[0]


def trained_segmenter(recipe, fabric, root):
    torch.manual_seed(0)
    method = SegmenterMethod(recipe, fabric, TrainingPictures(root, recipe))
    (stage,) = method.stages()
    for step in range(stage.steps):
        rng = np.random.default_rng((1, step))
        method.terms = stage.learn(step, stage.draw(rng), rng)
    return method


def test_a_segmenter_learns_and_its_scores_say_so(fabric, drawn):
    recipe = recipe_of("segmenter", data={"degradation": "fundus"})
    method = trained_segmenter(recipe_of("segmenter", schedule={"steps": 0}), fabric, drawn)
    before = method.validate(copy.deepcopy(method.task))
    method = trained_segmenter(recipe, fabric, drawn)
    scores = method.validate(copy.deepcopy(method.task))
    assert before["score"] < 0.6
    assert scores["score"] == scores["dice_good"] > 0.85
    assert scores["dice_degraded"] < scores["dice_good"]
    assert method.terms["task"] < 0.6
    assert method.terms["dice"] > 0.8
    assert method.cooperation is None
    assert method.task.training  # batch normalisation learns here


def test_a_segmenter_for_poor_pictures_is_chosen_by_poor_pictures(fabric, drawn):
    recipe = recipe_of("segmenter", data={"degradation": "fundus"}, schedule={"steps": 40}, degraded_fraction=0.5)
    method = trained_segmenter(recipe, fabric, drawn)
    scores = method.validate(copy.deepcopy(method.task))
    assert scores["score"] == scores["dice_degraded"] != scores["dice_good"]


def test_a_segmenters_samples_show_picture_probability_and_truth(fabric, drawn):
    method = trained_segmenter(recipe_of("segmenter", schedule={"steps": 1}), fabric, drawn)
    rows = method.samples(copy.deepcopy(method.task))
    assert rows.shape == (3, 2 * SIDE, 3 * SIDE)
    with Image.open(drawn / "masks/7.png") as opened:
        truth = torch.from_numpy(np.array(opened) > 127).float()
    assert torch.equal(rows[1, SIDE:, 2 * SIDE :], truth)
    with Image.open(drawn / "pictures/7.png") as opened:
        picture = torch.from_numpy(np.array(opened)).float() / 255
    assert torch.allclose(rows[:, SIDE:, :SIDE].permute(1, 2, 0), picture, atol=1e-6)


def test_thin_truth_is_scored_with_a_tolerance(fabric, drawn):
    method = trained_segmenter(recipe_of("segmenter", schedule={"steps": 0}, dilate=1), fabric, drawn)
    sharp = trained_segmenter(recipe_of("segmenter", schedule={"steps": 0}), fabric, drawn)

    class Shifted(torch.nn.Module):
        """Finds what the truth is, three pixels beside it."""

        def forward(self, x):
            i = next(i for i, (good, *_) in enumerate(fixed) if torch.equal(good, x))
            return torch.from_numpy(np.roll(fixed[i][2], 3, axis=1))[None, None].float() * 20 - 10

    fixed = method.pictures.validation_task()
    assert method.validate(Shifted())["score"] == 1
    fixed = sharp.pictures.validation_task()
    assert sharp.validate(Shifted())["score"] < 0.9


def test_a_segmenter_needs_validation_pictures(fabric, drawn):
    recipe = recipe_of("segmenter", validation_pictures=[], validation_masks=[])
    with pytest.raises(RecipeError, match="validation_pictures is empty"):
        SegmenterMethod(recipe, fabric, TrainingPictures(drawn, recipe))


def test_what_fit_keeps_is_what_a_cooperation_starts_from(drawn, fabric):
    from medenhance_dicom.training.fit import fit

    recipe = recipe_of("segmenter", schedule={"steps": 3})
    kept = fit(recipe, data_root=drawn, run=drawn / "run", device="cpu", precision="32-true")
    cooperation = Cooperation.of(recipe_of(mode="joint", weights=kept), fabric)
    assert cooperation.network.state_dict()["network.last.weight"].dtype == torch.float32
    assert not any(module.training for module in cooperation.network.module.modules())


def test_the_vessels_of_real_pictures_are_where_their_masks_say(data_folder):
    """Darker in green than what surrounds them, in each of the last four persons' eyes."""
    where = {"folder": "fundus/chasedb1/images", "first": 0.7}
    truth = {"folder": "fundus/chasedb1/vessels", "pattern": "*_1stHO.png", "first": 0.7}
    recipe = recipe_of(
        "segmenter", data={"size": 256}, pictures=[where], masks=[truth], validation_pictures=[], validation_masks=[]
    )
    pairs = TrainingPictures(data_folder, recipe).task
    assert len(pairs) == 8
    for picture, mask in pairs:
        green, vessels = picture[..., 1].astype(float), mask[..., 0]
        beside = np.roll(vessels, 6, axis=0) & ~vessels
        assert green[vessels].mean() < green[beside].mean() - 3
