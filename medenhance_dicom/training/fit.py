"""The training loop: one stage after the other; validate, keep the best, checkpoint, resume to the step."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.utilities.exceptions import MisconfigurationException
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from medenhance_dicom.errors import ModelError, OutputError, RecipeError
from medenhance_dicom.inference import choose_device
from medenhance_dicom.training.checkpoint import half_precision, load_checkpoint, save_checkpoint, save_weights
from medenhance_dicom.training.choosing import DicomReader
from medenhance_dicom.training.cycle import CycleMethod
from medenhance_dicom.training.data import Batch, TrainingPictures
from medenhance_dicom.training.diary import Diary
from medenhance_dicom.training.downstream import DownstreamTask, kept_metadata
from medenhance_dicom.training.enlightengan import EnlightenGANMethod
from medenhance_dicom.training.fields import FieldsMethod
from medenhance_dicom.training.hqgnet import HQGNetMethod
from medenhance_dicom.training.method import Method
from medenhance_dicom.training.recipe import TrainingRecipe
from medenhance_dicom.training.segmenter import SegmenterMethod
from medenhance_dicom.training.supervised import FoveaMethod, GradingMethod, SupervisedMethod

Report = Callable[[int, int, dict[str, float]], None]

KEPT = ("last.safetensors", "best.safetensors", "log.jsonl")
"""Of a run; where one is, a run is."""
METHODS: dict[str, type[Method]] = {
    "stillgan": CycleMethod,
    "cyclegan": CycleMethod,
    "lamegan": CycleMethod,
    "miinet": CycleMethod,
    "hqgnet": HQGNetMethod,
    "enlightengan": EnlightenGANMethod,
    "fields": FieldsMethod,
    "segmenter": SegmenterMethod,
    "fovea": FoveaMethod,
    "grading": GradingMethod,
    "quality": SupervisedMethod,
}


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
    dicom: DicomReader | None = None,
) -> Path:
    """Train a recipe.

    Args:
        recipe: What to train.
        data_root: Folder that the recipe's paths are relative to.
        run: Folder for checkpoints and logs: `last.safetensors` (to resume), `best.safetensors` (the kept network,
            half precision, the moving average that validated best in the last stage reached), companions such as
            `guide_encoder.safetensors`, and the diary (`log.jsonl`, `samples/`, `tensorboard/`).
        device: "auto", "cpu", "mps", "cuda" or "cuda:N", which is one device.
        devices: Devices per node; more than one trains data-parallel.
        nodes: Nodes.
        precision: Lightning Fabric's word for it: "32-true", "bf16-mixed", "16-mixed".
        resume: Go on from `last.safetensors` where there is one.
        report: Called after each step with (steps done, steps in all, loss terms).
        dicom: Reads folders of DICOM files; None: they are an error.

    Returns:
        The path of `best.safetensors`.

    Raises:
        RecipeError: The data is not there, or does not fit the recipe.
        InputError: A picture cannot be read.
        ModelError: The checkpoint, or the weights to start from, do not load or are another network's; or there is no
            such device or precision.
        OutputError: The folder has a run already, which is not to be resumed.
    """
    last = run / "last.safetensors"
    if not resume and (taken := [name for name in KEPT if (run / name).exists()]):
        raise OutputError(f"{run}: there is a run here ({taken[0]}): resume it, or take another folder")
    fabric = _launched(device, devices, nodes, precision)
    torch.set_flush_denormal(True)
    seed = recipe.schedule.seed
    torch.manual_seed(seed)
    pictures = TrainingPictures(data_root, recipe, dicom)
    method = METHODS[recipe.method](recipe, fabric, pictures)
    multiple = getattr(getattr(method.network, "module", method.network), "multiple", 1)
    if recipe.data.size % multiple:
        raise RecipeError(f"data.size: {recipe.data.size} is no multiple of {multiple}, as the network needs it")
    if recipe.network.start:
        _start_from(recipe.network.start, method.network)
    average = _unwrapped_copy(method.network)
    stages = [stage for stage in method.stages() if stage.steps]
    ends = list(accumulate(stage.steps for stage in stages))
    total, step, best = ends[-1], 0, -np.inf
    run.mkdir(parents=True, exist_ok=True)
    if resume and last.is_file():
        state = load_checkpoint(last)
        try:
            method.load_state_dict(state["method"])
            average.load_state_dict(state["average"])
            step, best = state["step"], state["best"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise ModelError(f"{last}: a checkpoint of another network than the recipe's; see [network]") from error
    diary = Diary(run, first=fabric.is_global_zero, resumed_at=step)

    def stage_of(now: int) -> int:
        return next(i for i, end in enumerate(ends) if now < end)

    def draw(now: int) -> tuple[np.random.Generator, Batch | None]:
        rng = np.random.default_rng((seed, now, fabric.global_rank))
        return rng, stages[stage_of(now)].draw(rng) if now < total else None

    saved = time.monotonic()
    # One thread draws the next batch while this one is learned from.
    with ThreadPoolExecutor(max_workers=1) as ahead, diary:
        coming = ahead.submit(draw, step)
        while step < total:
            stage, begin = stages[stage_of(step)], ends[stage_of(step)] - stages[stage_of(step)].steps
            if step == begin:
                best = -np.inf  # what is kept has seen the last stage, even where an earlier one scored higher
            rng, drawn = coming.result()
            assert drawn is not None
            coming = ahead.submit(draw, step + 1)
            batch = {name: fabric.to_device(_laid_out(t)) for name, t in drawn.items()}
            terms = stage.learn(step - begin, batch, rng)
            step += 1
            _follow(average, method.network, min(recipe.schedule.ema, (1 + step) / (10 + step)))
            if report:
                report(step, total, terms)
            diary.terms(step, stage.name, terms)
            ended = step == begin + stage.steps
            if stage.validates and (step % recipe.schedule.validate_every == 0 or ended):
                scores = method.validate(_as_kept(average))
                if scores["score"] > best or recipe.schedule.keep == "last":
                    best = scores["score"]
                    if fabric.is_global_zero:
                        export(average, run / "best.safetensors")
                diary.scores(step, {"best": best, **scores, **terms}, method.samples(average))
            if fabric.is_global_zero and ended:
                for name, module in method.companions().items():
                    export(_unwrapped_copy(module), run / f"{name}.safetensors")
            if fabric.is_global_zero and (time.monotonic() - saved > recipe.schedule.checkpoint_seconds or ended):
                save_checkpoint(last, _state(step, best, method, average))
                saved = time.monotonic()
    return run / "best.safetensors"


def _launched(device: str, devices: int, nodes: int, precision: str) -> Fabric:
    """Fabric on a device as inference names it: auto, cpu, mps or cuda[:N].

    Raises:
        ModelError: No such device, or not so many, or the precision is none.
    """
    place = None if device == "auto" else choose_device(device)
    chosen: int | list[int] = devices if place is None or place.index is None else [place.index]
    if isinstance(chosen, list) and devices != 1:
        raise ModelError(f"device '{device}' is one device, not {devices}")
    try:
        fabric = Fabric(
            accelerator=place.type if place else "auto", devices=chosen, num_nodes=nodes, precision=precision
        )  # fmt: skip
    except (ValueError, RuntimeError, MisconfigurationException) as error:
        raise ModelError(f"device '{device}', devices {devices}, precision '{precision}': {error}") from error
    fabric.launch()
    return fabric


def _start_from(path: Path, network: nn.Module) -> None:
    try:
        weights = {name: t.float() if t.is_floating_point() else t for name, t in load_file(path).items()}
        getattr(network, "module", network).load_state_dict(weights)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: no weights to start from ({type(error).__name__})") from error
    except RuntimeError as error:
        raise ModelError(f"{path}: weights of another network than the recipe's") from error


def _state(step: int, best: float, method: Method, average: nn.Module) -> dict[str, Any]:
    return {"step": step, "best": float(best), "method": method.state_dict(), "average": average.state_dict()}


def _laid_out(batch: torch.Tensor) -> torch.Tensor:
    return batch.contiguous(memory_format=torch.channels_last) if batch.ndim == 4 else batch


def export(network: nn.Module, path: Path) -> None:
    """Write a network's weights in half precision, whole or not at all; a task's say what they are the weights of."""
    kept = half_precision(network)
    about = network.about if isinstance(network, DownstreamTask) else None
    save_weights(path, kept, kept_metadata(about, kept) if about else None)


def _as_kept(average: nn.Module) -> nn.Module:
    """With the weights that are written: rounded to half precision."""
    rounded = copy.deepcopy(average)
    for t in (*rounded.parameters(), *rounded.buffers()):
        if t.is_floating_point():
            t.data = t.data.half().to(t.dtype)
    return rounded


def _unwrapped_copy(module: nn.Module) -> nn.Module:
    return copy.deepcopy(getattr(module, "module", module)).requires_grad_(False)


@torch.no_grad()
def _follow(average: nn.Module, module: nn.Module, decay: float) -> None:
    current = getattr(module, "module", module)
    parameters, buffers = dict(current.named_parameters()), dict(current.named_buffers())
    for name, parameter in average.named_parameters():
        parameter.lerp_(parameters[name], 1 - decay)
    for name, buffer in average.named_buffers():
        buffer.copy_(buffers[name])
