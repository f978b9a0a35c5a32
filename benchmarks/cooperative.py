"""Does an enhancer help a segmenter, and does one that was trained along with a segmenter help another one too?

    python benchmarks/cooperative.py DATA --judge NAME=WEIGHTS RECIPE ... --enhancer NAME=WEIGHTS RECIPE ... [--json FILE]

Each picture of the first judge's `task.validation_pictures` is degraded `--draws` times by that recipe's model, given to
every enhancer, and each judge segments what comes out, the degraded picture and the good one. Pictures that any of the
recipes learns from are left out. Judges are runs with `method = "segmenter"`, best one that no enhancer was trained
with; or, to see the pair as it was trained, `last.safetensors` of a cooperative run, whose own segmenter is taken.
An enhancer is `best.safetensors` of its run; companions such as `guide_encoder.safetensors` are looked for beside it.

dice      of the mask above probability 0.5, whole picture; mean and standard deviation over pictures and draws.
auc       area under the ROC curve, mean.
better    in how many of them the Dice is above the degraded picture's.
psnr      in dB, to the good picture.
lassim    to the degraded picture, the enhancer's input: a painted-in vessel lowers it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors import safe_open
from safetensors.torch import load_file

from medenhance_dicom.lassim import lassim
from medenhance_dicom.metrics import segmentation_scores
from medenhance_dicom.training.checkpoint import load_checkpoint
from medenhance_dicom.training.choosing import list_pictures
from medenhance_dicom.training.data import TrainingPictures, to_batch
from medenhance_dicom.training.fit import METHODS
from medenhance_dicom.training.method import psnr_of
from medenhance_dicom.training.recipe import Pictures, Task, TrainingRecipe, load_training_recipe
from medenhance_dicom.training.tasks import SegmentationTask


def judge_of(weights: Path, recipe: TrainingRecipe) -> SegmentationTask:
    with safe_open(weights, framework="pt") as handle:
        whole_run = "state" in (handle.metadata() or {})
    task = SegmentationTask.of(recipe)
    if whole_run:
        task.load_state_dict(load_checkpoint(weights)["method"]["modules"]["task"])
    else:
        task.load(weights)
    return task.eval()


def enhancer_of(weights: Path, recipe: TrainingRecipe, root: Path) -> torch.nn.Module:
    """The recipe's method, without its pictures but those that guide, as validation runs it."""
    none = {"low": [], "pairs_low": [], "pairs_high": [], "validation_low": [], "validation_high": []}
    high = recipe.data.high if recipe.method == "hqgnet" else []
    alone = recipe.model_copy(
        update={"data": recipe.data.model_copy(update={**none, "high": high}), "task": Task()},
    )
    fabric = Fabric(accelerator="cpu", devices=1)
    method = METHODS[recipe.method](alone, fabric, TrainingPictures(root, alone))
    method.network.load_state_dict(load_file(weights))
    for name, module in method.companions().items():
        module.load_state_dict(load_file(weights.with_name(f"{name}.safetensors")))
    return method.runnable(method.network).eval()


def learned_from(root: Path, recipe: TrainingRecipe) -> set[Path]:
    data = recipe.data
    tables = [*data.low, *data.high, *data.pairs_low, *data.pairs_high, *recipe.task.pictures]
    return {path for table in tables for path in list_pictures(root, table)}


def unseen_pictures(root: Path, recipe: TrainingRecipe, seen: set[Path]) -> tuple[TrainingPictures, list[str]]:
    """The recipe's validation pictures of the task that nothing learned from, and their names."""
    task = recipe.task
    found, masks = (
        [(table.folder, path) for table in tables for path in list_pictures(root, table)]
        for tables in (task.validation_pictures, task.validation_masks)
    )
    kept = [pair for pair in zip(found, masks, strict=True) if pair[0][1] not in seen]
    pictures, truth = (
        [Pictures(folder=folder, pattern=path.name) for folder, path in half] for half in zip(*kept, strict=True)
    )
    only = task.model_copy(
        update={"pictures": [], "masks": [], "validation_pictures": pictures, "validation_masks": truth}
    )
    none = {key: [] for key in ("low", "high", "pairs_low", "pairs_high", "validation_low", "validation_high")}
    update = {"task": only, "data": recipe.data.model_copy(update=none)}
    return TrainingPictures(root, recipe.model_copy(update=update)), [path.name for (_, path), _ in kept]


@torch.inference_mode()
def measure(
    pictures: TrainingPictures, judges: dict[str, SegmentationTask], enhancers: dict[str, torch.nn.Module], draws: int
) -> dict:
    assert pictures.degrade is not None
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in ("good", "degraded", *enhancers)}
    for i, (good, _, truth) in enumerate(pictures.validation_task()):
        unit = (good[0].permute(1, 2, 0).numpy() + 1) / 2
        for draw in range(draws):
            low = to_batch([pictures.degrade(unit, np.random.default_rng((13, i, draw)))])
            shown = {"good": good, "degraded": low} | {name: e(low).float() for name, e in enhancers.items()}
            for name, x in shown.items():
                row = {"psnr": psnr_of(x, good), "lassim": float(lassim((low + 1) / 2, (x + 1) / 2))}
                for judge, task in judges.items():
                    scores = segmentation_scores(task(x).sigmoid()[0, 0].numpy(), truth)
                    row |= {f"dice {judge}": scores.dice, f"auc {judge}": scores.auc}
                rows[name].append(row)
    return {name: summary(judges, mine, rows["degraded"]) for name, mine in rows.items()}


def summary(judges, rows: list[dict[str, float]], degraded: list[dict[str, float]]) -> dict:
    def column(key: str, of=rows) -> np.ndarray:
        return np.array([row[key] for row in of])

    return {
        "psnr": column("psnr").mean(),
        "lassim": column("lassim").mean(),
        "lassim_worst": column("lassim").min(),
        "judges": {
            judge: {
                "dice": (dice := column(f"dice {judge}")).mean(),
                "dice_sd": dice.std(),
                "dice_worst": dice.min(),
                "auc": np.nanmean(column(f"auc {judge}")),
                "better": int((dice > column(f"dice {judge}", degraded)).sum()),
            }
            for judge in judges
        },
    }


def table(figures: dict, cases: int) -> str:
    judges = list(next(iter(figures.values()))["judges"])
    lines = [f"{'':<16}{'psnr':>7}{'lassim':>8}" + "".join(f"  {judge:>26}" for judge in judges)]
    lines.append(" " * 31 + "".join(f"  {'dice    +-    auc better':>26}" for _ in judges))
    for name, row in figures.items():
        line = f"{name:<16}{row['psnr']:7.2f}{row['lassim']:8.3f}"
        for judge in judges:
            j = row["judges"][judge]
            line += f"  {j['dice']:7.3f}{j['dice_sd']:6.3f}{j['auc']:7.3f}{j['better']:3d}/{cases:<2d}"
        lines.append(line)
    return "\n".join(lines)


def named(pairs: list[list[str]]) -> list[tuple[str, Path, TrainingRecipe]]:
    out = []
    for pair, recipe in pairs:
        name, _, weights = pair.partition("=")
        out.append((name, Path(weights), load_training_recipe(Path(recipe))))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    form = {"nargs": 2, "action": "append", "metavar": ("NAME=WEIGHTS", "RECIPE")}
    parser.add_argument("--judge", **form, required=True)
    parser.add_argument("--enhancer", **form, default=[])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_flush_denormal(True)
    judges, enhancers = named(arguments.judge), named(arguments.enhancer)
    recipes = [recipe for *_, recipe in judges + enhancers]
    first = recipes[0]
    if first.data.degradation == "none" or not first.task.validation_pictures:
        parser.error(f"{first.name}: the first judge's recipe needs data.degradation and task.validation_pictures")
    if len({(recipe.data.size, recipe.data.channels) for recipe in recipes}) > 1:
        parser.error("the recipes differ in data.size or data.channels")
    seen = set().union(*(learned_from(arguments.data, recipe) for recipe in recipes))
    pictures, names = unseen_pictures(arguments.data, first, seen)
    figures = measure(
        pictures,
        {name: judge_of(weights, recipe) for name, weights, recipe in judges},
        {name: enhancer_of(weights, recipe, arguments.data) for name, weights, recipe in enhancers},
        arguments.draws,
    )
    print(f"{len(names)} pictures x {arguments.draws} degradations ({first.data.degradation})")
    print(table(figures, len(names) * arguments.draws))
    if arguments.json:
        record = {"pictures": names, "draws": arguments.draws, "degradation": first.data.degradation, "rows": figures}
        arguments.json.write_text(json.dumps(record, indent=1, default=float) + "\n")


if __name__ == "__main__":
    main()
