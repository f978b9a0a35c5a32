"""What the choice of the stored guide changes in the output of each HQG-Net that is shipped.

    python benchmarks/guide_influence.py DATA [--weights KEY ...] [--pictures 6] [--json FILE]

Ten guides are encoded of ten high-quality pictures of the training recipe, one each, and one of all ten. Low-quality
pictures that were not trained on then go through the weights' own recipe under every guide. In grey levels of 255, inside
the field of view, mean and worst over the pictures:

ten       largest rms difference between the outputs under two of the ten guides.
one       largest rms difference between one of the ten and the guide of all ten.
change    rms of what the enhancement itself changes, for scale.
"""

from __future__ import annotations

import argparse
import json
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from medenhance_dicom.guiding import make_guide
from medenhance_dicom.manifest import load_manifest
from medenhance_dicom.prepare import prepare_recipe
from medenhance_dicom.recipe import Recipe, load_recipes, pipelines_folder
from medenhance_dicom.training.choosing import list_pictures
from medenhance_dicom.training.data import load_picture, unit
from medenhance_dicom.training.degradation import DEGRADATIONS
from medenhance_dicom.training.recipe import TrainingRecipe, load_training_recipe


def low_pictures(root: Path, recipe: TrainingRecipe, count: int) -> list[np.ndarray]:
    """Spread over the recipe's validation pictures; degraded by its model where it has no low ones."""
    data = recipe.data
    tables, real = (data.validation_low, True) if data.validation_low else (data.validation_high, False)
    paths = [path for table in tables for path in list_pictures(root, table)]
    units = []
    for i in np.linspace(0, len(paths) - 1, count).round().astype(int):
        shown = unit(load_picture(paths[i], data.channels, data.size))
        units.append(shown if real else DEGRADATIONS[data.degradation](shown, np.random.default_rng((17, int(i)))))
    return units


def guide_paths(root: Path, recipe: TrainingRecipe, count: int = 10) -> list[Path]:
    paths = [path for table in recipe.data.high for path in list_pictures(root, table)]
    return [paths[i] for i in np.linspace(0, len(paths) - 1, count).round().astype(int)]


def measure(key: str, recipe: Recipe, training: TrainingRecipe, root: Path, count: int) -> dict[str, float]:
    paths = guide_paths(root, training)
    sets = {f"g{i}": [path] for i, path in enumerate(paths)} | {"all": paths}
    made = {name: make_guide(of, name, weights=key, field="OT", created=datetime.now(UTC)) for name, of in sets.items()}
    prepared = {
        name: prepare_recipe(recipe, device="cpu", engine="torch", precision="fp32", guide=guide)
        for name, guide in made.items()
    }
    rows = []
    for shown in low_pictures(root, training, count):
        inside = prepared["all"].region(shown, None)
        out = {name: 255 * p.enhance_picture(shown)[inside].astype(np.float64) for name, p in prepared.items()}
        single = [out[name] for name in out if name != "all"]
        rows.append((
            max(rms(a - b) for a, b in combinations(single, 2)),
            max(rms(a - out["all"]) for a in single),
            rms(out["all"] - 255 * shown[inside]),
        ))  # fmt: skip
    table = np.array(rows)
    names = ("ten", "one", "change")
    return {
        **{name: round(float(value), 3) for name, value in zip(names, table.mean(axis=0), strict=True)},
        **{f"{name}_worst": round(float(value), 3) for name, value in zip(names, table.max(axis=0), strict=True)},
    }


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", action="append")
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    recipes = {recipe.enhancer.weights: recipe for recipe in load_recipes()}
    figures = {}
    for key, entry in load_manifest().weights.items():
        if entry.takes_guide and (not arguments.weights or key in arguments.weights):
            training = load_training_recipe(pipelines_folder() / f"{entry.trained['recipe']}.toml")
            figures[key] = measure(key, recipes[key], training, arguments.data, arguments.pictures)
            print(key, json.dumps(figures[key]), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
