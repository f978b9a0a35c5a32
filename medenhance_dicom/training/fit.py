"""The training loop: warm-up on pairs, then unpaired; validate, keep the best, checkpoint, resume to the step."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file
from torch import Tensor, nn

from medenhance_dicom.lassim import lassim
from medenhance_dicom.training.checkpoint import load_checkpoint, save_checkpoint
from medenhance_dicom.training.data import TrainingPictures
from medenhance_dicom.training.recipe import TrainingRecipe
from medenhance_dicom.training.stillgan import StillGAN

Report = Callable[[int, int, dict[str, float]], None]
Pair = tuple[Tensor, Tensor]


def fit(
    recipe: TrainingRecipe,
    *,
    data_root: Path,
    run: Path,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    precision: str = "bf16-mixed",
    resume: bool = False,
    report: Report | None = None,
) -> Path:
    """Train a recipe.

    Args:
        recipe: What to train.
        data_root: Folder that the recipe's paths are relative to.
        run: Folder for checkpoints and logs: `last.safetensors` (to resume), `best.safetensors` (G_A alone, half
            precision, the moving average that validated best in the last stage reached) and `log.jsonl`.
        device: "auto", "cpu", "cuda" or "mps".
        devices: Devices per node; more than one trains data-parallel.
        nodes: Nodes.
        precision: Lightning Fabric's word for it: "32-true", "bf16-mixed", "16-mixed".
        resume: Go on from `last.safetensors` where there is one.
        report: Called after each step with (steps done, steps in all, loss terms).

    Returns:
        The path of `best.safetensors`.

    Raises:
        RecipeError: The data is not there.
        ModelError: The checkpoint does not load.
    """
    fabric = Fabric(accelerator=device, devices=devices, num_nodes=nodes, precision=precision)
    fabric.launch()
    torch.set_flush_denormal(True)
    schedule, warm_up = recipe.schedule, recipe.schedule.warm_up
    torch.manual_seed(schedule.seed)
    pictures = TrainingPictures(data_root, recipe.data)
    method = StillGAN(recipe, fabric)
    average = _unwrapped_copy(method.enhancer)
    step, best = 0, -np.inf
    last = run / "last.safetensors"
    if resume and last.is_file():
        state = load_checkpoint(last)
        method.load_state_dict(state["method"])
        average.load_state_dict(state["average"])
        step, best = state["step"], state["best"]
    run.mkdir(parents=True, exist_ok=True)
    validation = pictures.validation()
    total, saved = warm_up + schedule.steps, time.monotonic()

    def keep(now: int) -> None:
        state = {"step": now, "best": float(best), "method": method.state_dict(), "average": average.state_dict()}
        if fabric.is_global_zero:
            save_checkpoint(last, state)

    def draw(step: int) -> tuple[np.random.Generator, Pair | None, Pair | None]:
        rng = np.random.default_rng((schedule.seed, step, fabric.global_rank))
        if step < warm_up:
            return rng, None, pictures.pairs(rng, schedule.warm_up_batch)
        unpaired = pictures.unpaired(rng, schedule.batch)
        return rng, unpaired, pictures.pairs(rng, schedule.batch) if recipe.weights.paired else None

    def place(batch: Pair) -> Pair:
        first, second = (fabric.to_device(t.contiguous(memory_format=torch.channels_last)) for t in batch)
        return first, second

    # One thread draws the next batch while this one is learned from.
    with ThreadPoolExecutor(max_workers=1) as ahead:
        coming = ahead.submit(draw, step)
        while step < total:
            if step == warm_up:
                best = -np.inf  # what is kept has seen the whole objective, even where the supervised stage scored higher
            rng, unpaired, pair = coming.result()
            coming = ahead.submit(draw, step + 1)
            if unpaired is None:
                assert pair is not None
                terms = method.warm_up_step(step, *place(pair))
            else:
                terms = method.unpaired_step(step - warm_up, *place(unpaired), place(pair) if pair else None, rng)
            step += 1
            _follow(average, method.enhancer, min(schedule.ema, (1 + step) / (10 + step)))
            if report:
                report(step, total, terms)
            if step % schedule.validate_every == 0 or step == total:
                scores = validate(average, validation, fabric)
                score = scores["psnr"] - 1000 * max(0.0, schedule.minimum_lassim - scores["lassim_to_input"])
                if score > best:
                    best = score
                    if fabric.is_global_zero:
                        export(average, run / "best.safetensors")
                if fabric.is_global_zero:
                    with (run / "log.jsonl").open("a") as log:
                        log.write(json.dumps({"step": step, "best": best, **scores, **terms}) + "\n")
            if time.monotonic() - saved > schedule.checkpoint_seconds or step in (warm_up, total):
                keep(step)
                saved = time.monotonic()
    return run / "best.safetensors"


def validate(network: nn.Module, pairs: list[tuple[Tensor, Tensor]], fabric: Fabric) -> dict[str, float]:
    """Over fixed pairs, the mean PSNR in dB to the truth and the mean LaSSIM to the input.

    `psnr` is of all outputs, `psnr_input` of the degraded inputs, `psnr_unchanged` of good pictures to themselves.
    """
    network.eval()
    before, after, unchanged, structure = [], [], [], []
    with torch.inference_mode(), fabric.autocast():
        for pair in pairs:
            low, high = (fabric.to_device(half) for half in pair)
            out = network(low).float()
            after.append(_psnr(out, high))
            structure.append(float(lassim((low + 1) / 2, (out + 1) / 2)))
            if torch.equal(low, high):
                unchanged.append(after[-1])
            else:
                before.append(_psnr(low, high))
    scores = {"psnr": float(np.mean(after)), "psnr_input": float(np.mean(before)) if before else float("nan")}
    scores["lassim_to_input"] = float(np.mean(structure))
    return scores | ({"psnr_unchanged": float(np.mean(unchanged))} if unchanged else {})


def export(network: nn.Module, path: Path) -> None:
    """Write a network's weights in half precision, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    save_file({k: v.detach().half().cpu().contiguous() for k, v in network.state_dict().items()}, part)
    part.replace(path)


def _psnr(x: Tensor, y: Tensor) -> float:
    error = (x - y).square().mean().item() / 4  # [-1, 1] has a range of 2
    return min(-10 * np.log10(error + 1e-12), 60.0)


def _unwrapped_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(getattr(module, "module", module)).requires_grad_(False)


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    current = dict(getattr(module, "module", module).named_parameters())
    for name, parameter in average.named_parameters():
        parameter.lerp_(current[name], 1 - decay)
