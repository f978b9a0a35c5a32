"""How the gate's detector is learned: from honest results of some patients, and from alterations of known place."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional

from medenhance_dicom.calibration.enhancers import honest_of
from medenhance_dicom.calibration.examples import Examples, Sees, store_pairs
from medenhance_dicom.calibration.measuring import Prepared, bounded
from medenhance_dicom.calibration.pictures import Sample, find_pictures
from medenhance_dicom.errors import InputError, RecipeError
from medenhance_dicom.guides import read_picture
from medenhance_dicom.networks import build_network
from medenhance_dicom.tables import checked, read_table
from medenhance_dicom.training.checkpoint import half_precision, load_checkpoint, save_checkpoint, save_weights

__all__ = ["DetectorRecipe", "learn"]

Progress = Callable[[int, int], None]

WORST, HARDEST = 4, 8
"""Places that decide of what was altered, and of what was not."""
NEAR = 7  # quarter pixels around an alteration that may say either
EVERYWHERE, ALL_OF_IT, MOVED = 0.5, 0.15, 0.2
CHECKPOINT_SECONDS = 120
AVERAGED = 0.995


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Domain(_Table):
    """One kind of picture."""

    folders: list[str]
    """Below the data root."""
    weights: list[str] = []
    """Whose results are honest, beside those of the conventional methods."""


class DetectorRecipe(_Table):
    """What a detector is learned from, and how."""

    name: str
    summary: str = ""
    domains: list[Domain] = Field(min_length=1)
    sees: Sees = "structure"
    """Whether it becomes the manifest's [detector] or its [colour_detector]."""
    seed: int = 1
    """Decides on everything that is drawn, and on whose pictures are learned from."""
    share: float = Field(0.5, gt=0, le=1)
    """Of the patients and sequences; the others are left to calibrate and to test on."""
    pictures: int | None = Field(None, ge=1)
    """Of each domain, at most; None: all of those patients."""
    steps: int = Field(3000, ge=1)
    batch: int = Field(16, ge=2)
    side: int = Field(256, ge=64, multiple_of=16)
    """Of the windows that are learned from, in pixels at working size."""
    rate: float = 2e-3
    widths: tuple[int, ...] | None = None
    """Of the network; None: its own."""

    @classmethod
    def read(cls, path: Path) -> DetectorRecipe:
        """A recipe's file.

        Raises:
            RecipeError: Not TOML, or an entry is wrong; names file and key.
        """
        return checked(cls, read_table(path, RecipeError), path, RecipeError)

    def learns_from(self, group: str) -> bool:
        """Whether a patient or sequence is on the side that is learned from, by its name alone."""
        drawn = hashlib.sha256(f"{self.seed}:{group.rsplit(':', 1)[1]}".encode()).digest()
        return int.from_bytes(drawn[:4], "big") < self.share * 2**32


def learn(
    recipe: DetectorRecipe,
    data: Path,
    run: Path,
    *,
    device: str = "cpu",
    workers: int = 1,
    resume: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Learn a detector.

    Args:
        recipe: What from.
        data: The folder that its folders are below.
        run: Takes the stored pairs, `last.safetensors` to resume from, `log.jsonl` and `detector.safetensors`, which is
            what the manifest's [detector] names: the moving average in half precision, and in its metadata the SHA-256
            of every picture that was learned from, so that `calibrate` leaves those patients out.
        device: "cpu" or "cuda".
        workers: Processes that make examples.
        resume: Go on from `last.safetensors` where there is one.
        progress: Called with how many steps are done, and how many there are.

    Returns:
        The path of `detector.safetensors`.

    Raises:
        InputError: A folder is missing or holds no picture, or nobody is on the side that is learned from.
        RecipeError, ModelError: Weights are not there.
    """
    torch.manual_seed(recipe.seed)
    torch.set_flush_denormal(True)
    run.mkdir(parents=True, exist_ok=True)
    domains = [(domain, _samples(recipe, domain, data)) for domain in recipe.domains]
    files = [path for domain, found in domains for path in _pairs(found, domain, run / "pairs", recipe.seed)]
    kind = "detector" if recipe.sees == "structure" else "colour_detector"
    network = build_network(kind, **({"widths": recipe.widths} if recipe.widths else {}))
    network = network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = torch.optim.swa_utils.AveragedModel(network, avg_fn=_averaged, use_buffers=True)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-3)
    parts = {"network": network, "average": average, "optimizer": optimizer}
    last, begun = run / "last.safetensors", 0
    if resume and last.is_file():
        state = load_checkpoint(last)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        begun = state["step"]

    def save(step: int) -> None:
        save_checkpoint(last, {"step": step} | {name: part.state_dict() for name, part in parts.items()})

    examples = Examples(files, recipe.side, recipe.seed, recipe.sees)
    numbers = range(begun * recipe.batch, recipe.steps * recipe.batch)
    loader = torch.utils.data.DataLoader(examples, recipe.batch, sampler=numbers, num_workers=workers)
    saved = time.monotonic()
    with (run / "log.jsonl").open("a", encoding="utf-8") as log:
        for step, (drawn, truth, moved) in enumerate(loader, begun):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * min(1.0, (step + 1) / 50) * _cosine(step / recipe.steps)
            pairs = drawn.to(device).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device, dtype=torch.bfloat16):
                odds = network(pairs)
            quiet, caught, loss = losses(odds.float(), truth.to(device), moved.to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            average.update_parameters(network)
            log.write(json.dumps({"step": step + 1, "honest": quiet.item(), "altered": caught.item()}) + "\n")
            if progress:
                progress(step + 1, recipe.steps)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save(step + 1)
                log.flush()
                saved = time.monotonic()
    save(recipe.steps)
    learned_from = [sample for _, found in domains for sample in found]
    save_weights(run / "detector.safetensors", half_precision(average.module), _metadata(recipe, learned_from))
    return run / "detector.safetensors"


def losses(odds: Tensor, truth: Tensor, moved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the worst honest places say, what the best altered ones say, and the whole loss.

    The gate looks at a frame's largest odds alone. So logistic losses of the `HARDEST` largest odds away from what was
    altered and of the `WORST` largest within it count most; small shares of all honest and of all altered places keep
    the maps in shape.

    Args:
        odds: Log-odds, (B, 2, h, w), or (B, 1, h, w) where nothing was moved.
        truth: (B, H, W) in {0, 1}.
        moved: (B,), whether the second map is to say it.
    """
    altered = functional.max_pool2d(truth[:, None], 4, ceil_mode=True)[:, 0] > 0
    near = functional.max_pool2d(altered[:, None].float(), NEAR, 1, NEAR // 2)[:, 0] > 0
    nothing = torch.finfo(odds.dtype).min / 4
    honest = odds.amax(1).masked_fill(near, nothing).flatten(1).topk(HARDEST, 1).values
    quiet = functional.softplus(honest).mean()
    quiet_everywhere = (functional.softplus(odds).amax(1) * ~near).sum() / (~near).sum().clamp(min=1)
    own = torch.where(moved[:, None, None], odds[:, -1], odds[:, 0])
    some = altered.flatten(1).any(1)
    if not some.any():
        return quiet, quiet.new_zeros(()), quiet + EVERYWHERE * quiet_everywhere
    worst = own[some].masked_fill(~altered[some], nothing).flatten(1).topk(WORST, 1).values
    worst = torch.where(worst > nothing / 2, worst, worst[:, :1])  # fewer places than that were altered
    caught = functional.softplus(-worst).mean()
    weight = altered * torch.where(moved[:, None, None], MOVED, 1.0)  # an even area looks the same when moved
    caught_everywhere = (functional.softplus(-own) * weight).sum() / weight.sum()
    return quiet, caught, quiet + caught + EVERYWHERE * quiet_everywhere + ALL_OF_IT * caught_everywhere


def _samples(recipe: DetectorRecipe, domain: Domain, data: Path) -> list[Sample]:
    found = [s for s in find_pictures([data / folder for folder in domain.folders]) if recipe.learns_from(s.group)]
    if not found:
        raise InputError(f"{', '.join(domain.folders)}: no patient or sequence to learn from with this seed and share")
    if recipe.pictures is None:
        return found
    drawn = np.random.default_rng(recipe.seed).permutation(len(found))[: recipe.pictures]
    return [found[k] for k in sorted(drawn)]


def _pairs(samples: list[Sample], domain: Domain, folder: Path, seed: int) -> list[Path]:
    """Files of stored pairs; those that are there are kept."""
    enhancers: list[Prepared] = []
    folder.mkdir(exist_ok=True)
    files = []
    for number, sample in enumerate(samples):
        name = hashlib.sha256(f"{sample.path.resolve()} {domain.weights}".encode()).hexdigest()[:20]
        files.append(folder / f"{name}.npz")
        if files[-1].is_file():
            continue
        if not enhancers:
            enhancers = [honest for key in domain.weights if isinstance(honest := honest_of(key, None)[1], Prepared)]
        picture = bounded(read_picture(sample.path))
        if enhancers:
            picture = enhancers[0].seen(picture)
        store_pairs(files[-1], picture, enhancers, np.random.default_rng((seed, number)))
    return files


def _averaged(average: Tensor, now: Tensor, number: Tensor | int) -> Tensor:
    """A moving average whose reach grows with the run, so that a short one forgets what it began with."""
    kept = min(AVERAGED, (1 + int(number)) / (10 + int(number)))
    return average + (1 - kept) * (now - average)


def _cosine(share: float) -> float:
    """Full for three tenths of the run, then down to a hundredth along half a cosine."""
    return 1.0 if share < 0.3 else 0.01 + 0.495 * (1 + math.cos(math.pi * (share - 0.3) / 0.7))


def _metadata(recipe: DetectorRecipe, samples: list[Sample]) -> dict[str, str]:
    """What the weights say of themselves."""
    return {
        "recipe": recipe.model_dump_json(),
        "pictures": json.dumps(sorted(hashlib.sha256(s.path.read_bytes()).hexdigest()[:16] for s in samples)),
        "groups": str(len({s.group for s in samples})),
    }
