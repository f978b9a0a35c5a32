"""How hard each term of HQG-Net's loss pulls at the enhanced picture, and what weights make them pull alike.

    python benchmarks/gradient_norms.py DATA [--steps 60] [--size 256] [--json FILE]

The loss of `hqgnet-paper` on fundus photographs (`op-fundus-hqgnet-compact` says which), with a generator of width 16 and
encoders of width 16: what pulls is the terms, not the width. Twice the same steps from the same seed: with lambda_1 = 10,
lambda_2 = 1 and a Haar term of weight 1, as the paper has them, and with the weights of the recipe. Printed: the median over
the steps of the norm of each weighted term's gradient at the enhanced picture; and before and after, the mean LaSSIM of poor
pictures to what was made of them.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric

from medenhance_dicom.recipe import pipelines_folder
from medenhance_dicom.training.data import TrainingPictures
from medenhance_dicom.training.hqgnet import HQGNetMethod
from medenhance_dicom.training.method import lassim_loss
from medenhance_dicom.training.recipe import TrainingRecipe, load_training_recipe

PAPER = {"haar": 1.0, "content": 10.0, "adversarial": 1.0, "balance": False}
TERMS = ("haar", "content", "adversarial")


class Watched(HQGNetMethod):
    """Notes the gradient of each term at the enhanced picture."""

    def watch(self) -> None:
        self.norms: dict[str, list[float]] = defaultdict(list)

    def _content_loss(self, x, v_z, v_y):
        self.enhanced = x
        return super()._content_loss(x, v_z, v_y)

    def learn_weighted(self, optimizer, terms, enhance, batch):
        for name in TERMS:
            term = getattr(self.recipe.weights, name) * terms[name]
            (gradient,) = torch.autograd.grad(term, self.enhanced, retain_graph=True)
            self.norms[name].append(float(gradient.norm()))
        return super().learn_weighted(optimizer, terms, enhance, batch)


def recipe_of(weights: dict[str, float], size: int) -> TrainingRecipe:
    folder = pipelines_folder() / "train"
    few = {"network.width": 16, "network.guide_width": 16, "network.guide_size": 128, "network.norm": "instance",
           "network.discriminator_width": 32, "schedule.batch": 1, "schedule.rate": 5e-4}  # fmt: skip
    recipe = load_training_recipe(
        folder / "hqgnet-paper.toml", few | {f"weights.{name}": value for name, value in weights.items()}
    )
    eyes = load_training_recipe(folder / "op-fundus-hqgnet-compact.toml").data
    data = recipe.data.model_copy(update={"size": size, "low": eyes.low[1:2], "high": eyes.high[1:2],
                                          "validation_high": eyes.validation_high[:1], "validation_poor": eyes.validation_poor[:1]})  # fmt: skip
    return recipe.model_copy(update={"data": data})


def run(recipe: TrainingRecipe, root: Path, steps: int) -> dict:
    fabric = Fabric(accelerator="cpu", devices=1, precision="32-true")
    torch.set_flush_denormal(True)
    torch.manual_seed(recipe.schedule.seed)
    pictures = TrainingPictures(root, recipe)
    method = Watched(recipe, fabric, pictures)
    method.watch()
    poor = [low for low, _ in pictures.validation_poor[:8]]

    def structure() -> float:
        network = method.runnable(getattr(method.network, "module", method.network)).eval()
        with torch.inference_mode():
            found = float(np.mean([1 - float(lassim_loss(low, network(low))) for low in poor]))
        method.network.train()
        return found

    for step in range(steps // 2):
        rng = np.random.default_rng((1, step))
        method.pretrain_step(step, pictures.both_kinds(rng), rng)
    before = structure()
    for step in range(steps):
        rng = np.random.default_rng((2, step))
        method.unpaired_step(step, pictures.unpaired(rng), rng)
    return {
        "weights": {name: getattr(recipe.weights, name) for name in PAPER},
        "pull": {name: float(np.median(values)) for name, values in method.norms.items()},
        "lassim": [before, structure()],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    shipped = load_training_recipe(pipelines_folder() / "train" / "hqgnet-paper.toml").weights
    figures = {"size": arguments.size, "steps": arguments.steps}
    for which, weights in (("paper", PAPER), ("recipe", {name: getattr(shipped, name) for name in PAPER})):
        found = figures[which] = run(recipe_of(weights, arguments.size), arguments.data, arguments.steps)
        for name in TERMS:
            print(f"{which:7s} {name:12s} weight {found['weights'][name]:6.3g}  pull {found['pull'][name]:9.3g}  "
                  f"of the adversarial term's {found['pull'][name] / found['pull']['adversarial']:9.3g}")  # fmt: skip
        print(f"{which:7s} LaSSIM to the poor picture {found['lassim'][0]:.3f} -> {found['lassim'][1]:.3f}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
