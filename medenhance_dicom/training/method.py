"""What a training method is: networks and optimizers of one run, and the stages it goes through."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from medenhance_dicom.lassim import lassim
from medenhance_dicom.metrics.fidelity import psnr
from medenhance_dicom.training.data import Batch, TrainingPictures, Window
from medenhance_dicom.training.recipe import TrainingRecipe
from medenhance_dicom.training.tasks import Cooperation

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Terms = dict[str, float]


@dataclass(frozen=True)
class Stage:
    """A stretch of steps of one kind."""

    name: str
    steps: int
    draw: Callable[[np.random.Generator], Batch]
    """A batch on the CPU. Called from another thread, one step ahead; must depend on the generator alone."""
    learn: Callable[[int, Batch, np.random.Generator], Terms]
    """One optimization: (step within the stage, the batch on the device, the rest of the generator) -> loss terms."""
    validates: bool = True
    """False: the network that is kept does not change in this stage."""


class Method:
    """Base of all methods.

    Subclasses fill `modules`, `optimizers` and `pools`, name the module that is `kept`, and list their stages.
    """

    kept: ClassVar[str]

    def __init__(self, recipe: TrainingRecipe, fabric: Fabric, pictures: TrainingPictures) -> None:
        self.recipe, self.fabric, self.pictures = recipe, fabric, pictures
        self.modules: dict[str, nn.Module] = {}
        self.optimizers: dict[str, torch.optim.Optimizer] = {}
        self.pools: dict[str, PicturePool] = {}
        self.cooperation = Cooperation.of(recipe, fabric)
        if self.cooperation is not None:
            self.modules["task"] = self.cooperation.network
            self.optimizers |= self.cooperation.optimizers

    @property
    def network(self) -> nn.Module:
        """The module that is kept."""
        return self.modules[self.kept]

    def stages(self) -> list[Stage]:
        """The run's stages in their order."""
        raise NotImplementedError

    def runnable(self, network: nn.Module) -> nn.Module:
        """A copy of the kept network as inference runs it: (B, C, H, W) in [-1, 1] to the same."""
        return network

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Scores of a copy of the kept network on the validation pictures; "score" is what the best is chosen by."""
        pictures, schedule = self.pictures, self.recipe.schedule
        run = self.runnable(network)
        scores = enhancement_scores(run, pictures.validation, pictures.validation_windows, self.fabric)
        if pictures.poor is not None:
            scores |= self._poor_scores(run)
        by_poor = schedule.best_by == "poor" or (schedule.best_by == "auto" and not pictures.knows_truth)
        by_poor = by_poor and pictures.poor is not None
        below = max(0.0, schedule.minimum_lassim - scores["poor_lassim_to_input" if by_poor else "lassim_to_input"])
        return {"score": scores["poor_score" if by_poor else "psnr"] - 1000 * below, **scores}

    def _poor_scores(self, run: nn.Module) -> dict[str, float]:
        assert self.pictures.poor is not None
        enhanced, structure = [], []
        for low, window in self.pictures.validation_poor:
            out = _enhanced(run, low, self.fabric)
            structure.append(float(lassim((low + 1) / 2, (out + 1) / 2)))
            enhanced.append(_picture(out, window))
        return self.pictures.poor.scores(enhanced) | {"poor_lassim_to_input": float(np.mean(structure))}

    def samples(self, network: nn.Module) -> Tensor | None:
        """Rows of low, enhanced and true validation pictures, (3, H, W) in [0, 1]; None: nothing to see.

        Real poor ones follow, with black for the truth.
        """
        run, rows = self.runnable(network), []
        poor = [(low, torch.full_like(low, -1)) for low, _ in self.pictures.validation_poor[:4]]
        for low, high in self.pictures.validation[:4] + poor:
            rows.append(torch.cat([low[0], _enhanced(run, low, self.fabric)[0], high[0]], dim=2))
        picture = (torch.cat(rows, dim=1).clamp(-1, 1) + 1) / 2
        return picture.expand(3, -1, -1)

    def companions(self) -> dict[str, nn.Module]:
        """Modules that are kept beside the network, by file stem; a task that trained along is one."""
        joint = self.cooperation is not None and self.cooperation.stepped
        return {"task": self.modules["task"]} if joint else {}

    def set_up(self, modules: dict[str, nn.Module]) -> None:
        """Hand modules to Fabric: device, precision, data-parallel."""
        for name, module in modules.items():
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.modules[name] = self.fabric.setup_module(module)

    def adam(
        self, parameters: Iterable[nn.Parameter], rate: float, betas: tuple[float, float]
    ) -> torch.optim.Optimizer:
        """An Adam that Fabric knows."""
        return self.fabric.setup_optimizers(torch.optim.Adam(parameters, lr=rate, betas=betas))

    def descend(self, total: Tensor, *optimizers: str, largest: float | None = None) -> None:
        """Gradients of `total`, their norm `largest` at most, one step of each named optimizer."""
        for name in optimizers:
            self.optimizers[name].zero_grad(set_to_none=True)
        self.fabric.backward(total)
        if largest is not None:
            for name in optimizers:
                groups = self.optimizers[name].param_groups
                nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], largest)
        for name in optimizers:
            self.optimizers[name].step()

    def set_decayed_rates(self, step: int, *optimizers: str) -> None:
        """The unpaired stage's rate at one of its steps."""
        schedule = self.recipe.schedule
        for name in optimizers:
            rate = schedule.rate * linear_decay(step, schedule.steps, schedule.constant)
            set_rate(self.optimizers[name], rate)

    def learn_weighted(
        self, optimizer: str, terms: dict[str, Tensor], enhance: Callable[[Tensor], Tensor], batch: Batch
    ) -> Terms:
        """A step of the enhancer: the sum of the terms by the recipe's weights, with the task's where one trains along.

        Returns the terms, the task's among them.
        """
        total = sum(
            (getattr(self.recipe.weights, name) * term for name, term in terms.items()),
            torch.zeros((), device=self.fabric.device),
        )
        stepped: tuple[str, ...] = ()
        if self.cooperation is not None:
            total, task = self.cooperation.joined(total, enhance, batch)
            terms, stepped = terms | {"task": task}, self.cooperation.stepped
        self.descend(total, optimizer, *stepped)
        return {name: float(term.detach()) for name, term in terms.items()}

    def learn_pairs(self, stage: str, step: int, better: Tensor, batch: Batch, more: Tensor | None = None) -> Terms:
        """A step of a supervised stage, "warm_up" or "finish", at a rate along half a cosine.

        Loss: mean |better - pair_high|, 1 - LaSSIM to pair_low where that has a weight, and `more`.
        """
        schedule, weight = self.recipe.schedule, self.recipe.weights.lassim
        rate = cosine_rate(getattr(schedule, f"{stage}_rate"), step, getattr(schedule, stage))
        set_rate(self.optimizers["warm_up"], rate)
        terms = {"paired": (better - batch["pair_high"]).abs().mean()}
        total = terms["paired"] if more is None else terms["paired"] + more
        if weight:
            terms["lassim"] = lassim_loss(batch["pair_low"], better)
            ramp = schedule.lassim_ramp if stage == "warm_up" else 0
            total = total + weight * (min(1.0, step / ramp) if ramp else 1.0) * terms["lassim"]
        self.descend(total, "warm_up")
        return {name: float(term.detach()) for name, term in terms.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on as if never stopped."""
        return {
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "pools": {name: pool.pictures for name, pool in self.pools.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        for name, module in self.modules.items():
            module.load_state_dict(state["modules"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        for name, pool in self.pools.items():
            pool.pictures = [picture.to(self.fabric.device) for picture in state["pools"][name]]


class PicturePool:
    """The last generated pictures (Shrivastava et al., CVPR 2017): half of the time an older one is handed out."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.pictures: list[Tensor] = []

    def exchange(self, batch: Tensor, rng: np.random.Generator) -> Tensor:
        """(B, C, H, W) in, as many out, some of them from earlier calls."""
        if self.size == 0:
            return batch
        out = []
        for picture in batch.detach().float():
            if len(self.pictures) < self.size:
                self.pictures.append(picture)
                out.append(picture)
            elif rng.random() < 0.5:
                i = int(rng.integers(0, self.size))
                out.append(self.pictures[i])
                self.pictures[i] = picture
            else:
                out.append(picture)
        return torch.stack(out)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = float(rate)


def cosine_rate(rate: float, step: int, steps: int) -> float:
    """From `rate` down to a fiftieth of it along half a cosine."""
    return rate * (0.5 * (1 + np.cos(np.pi * step / max(steps, 1))) * 0.98 + 0.02)


def linear_decay(step: int, steps: int, constant: int) -> float:
    """Factor on the rate: 1 for `constant` steps, then linearly to zero."""
    return 1 - max(0, step + 1 - constant) / max(steps - constant + 1, 1)


def lassim_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - mean LaSSIM of (B, C, H, W) in [-1, 1], outside half precision."""
    with torch.autocast(x.device.type, enabled=False):
        return 1 - lassim((x.float() + 1) / 2, (y.float() + 1) / 2).mean()


def enhancement_scores(
    network: nn.Module, pairs: Sequence[tuple[Tensor, Tensor]], windows: Sequence[Window], fabric: Fabric
) -> dict[str, float]:
    """Over fixed pairs, the mean PSNR in dB to the truth and the mean LaSSIM to the input.

    `psnr` is of all outputs, `psnr_input` of the degraded inputs, `psnr_unchanged` of good pictures to themselves; as
    `psnr@8bit` of `evaluate`, in float32 and of the pictures without the black about them, but 60 dB at most.
    """
    before, after, unchanged, structure = [], [], [], []
    for (low, high), window in zip(pairs, windows, strict=True):
        out = _enhanced(network, low, fabric)
        after.append(psnr_of(out, high, window))
        structure.append(float(lassim((low + 1) / 2, (out + 1) / 2)))
        if torch.equal(low, high):
            unchanged.append(after[-1])
        else:
            before.append(psnr_of(low, high, window))
    scores = {"psnr": float(np.mean(after)), "psnr_input": float(np.mean(before)) if before else float("nan")}
    scores["lassim_to_input"] = float(np.mean(structure))
    return scores | ({"psnr_unchanged": float(np.mean(unchanged))} if unchanged else {})


def _enhanced(network: nn.Module, low: Tensor, fabric: Fabric) -> Tensor:
    """(1, C, H, W) in [-1, 1] on the CPU, in float32 as inference computes."""
    with torch.inference_mode(), torch.autocast(fabric.device.type, enabled=False):
        out: Tensor = network.eval()(fabric.to_device(low)).float().cpu()
    return out


def _picture(x: Tensor, window: Window) -> NDArray[np.float32]:
    """(1, C, H, W) in [-1, 1] to the window's (h, w, C) in [0, 1]."""
    picture: NDArray[np.float32] = ((x[0].permute(1, 2, 0) + 1) / 2).clamp(0, 1).numpy()
    return picture[window]


def psnr_of(x: Tensor, y: Tensor, window: Window = (slice(None), slice(None))) -> float:
    """`psnr@8bit` of (1, C, H, W) in [-1, 1] within a window, in dB, at most 60."""
    return min(psnr(_picture(x, window), _picture(y, window)), 60.0)
