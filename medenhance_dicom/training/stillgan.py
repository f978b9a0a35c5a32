"""StillGAN's training step: a cycle of two generators, the loss terms in the paper's order.

G_A makes high quality out of low, G_B the reverse; D_A judges high quality, D_B low (Ma et al., TMI 2021, eq. 1-8).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from medenhance_dicom.lassim import lassim
from medenhance_dicom.networks.stillgan import StillGANGenerator
from medenhance_dicom.training.discriminators import PatchDiscriminator
from medenhance_dicom.training.losses import (
    adversarial_loss,
    cycle_loss,
    discriminator_loss,
    identity_loss,
    illumination_loss,
    structure_loss,
)
from medenhance_dicom.training.recipe import TrainingRecipe


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


class StillGAN:
    """Networks, optimizers and pools of one run, and its two kinds of step."""

    def __init__(self, recipe: TrainingRecipe, fabric: Fabric) -> None:
        self.recipe, self.fabric = recipe, fabric
        network, schedule, channels = recipe.network, recipe.schedule, recipe.data.channels

        def generator() -> StillGANGenerator:
            return StillGANGenerator(channels=channels, width=network.width, layout=network.layout, head=network.head)

        def discriminator() -> PatchDiscriminator:
            return PatchDiscriminator(channels=channels, width=network.discriminator_width)

        self.modules: dict[str, nn.Module] = {
            "G_A": generator(), "G_B": generator(), "D_A": discriminator(), "D_B": discriminator()
        }  # fmt: skip
        for name, module in self.modules.items():
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            self.modules[name] = fabric.setup_module(module)
        G = [*self.modules["G_A"].parameters(), *self.modules["G_B"].parameters()]
        D = [*self.modules["D_A"].parameters(), *self.modules["D_B"].parameters()]
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "warm_up": fabric.setup_optimizers(torch.optim.Adam(G, lr=schedule.warm_up_rate)),
            "G": fabric.setup_optimizers(torch.optim.Adam(G, lr=schedule.rate, betas=schedule.betas)),
            "D": fabric.setup_optimizers(torch.optim.Adam(D, lr=schedule.rate, betas=schedule.betas)),
        }
        self.pools = {"A": PicturePool(schedule.pool), "B": PicturePool(schedule.pool)}

    @property
    def enhancer(self) -> nn.Module:
        """G_A, the network that is kept."""
        return self.modules["G_A"]

    def warm_up_step(self, step: int, low: Tensor, high: Tensor) -> dict[str, float]:
        """Supervised: mean |G_A(low) - high|; every fourth step G_B learns the way back. Returns the loss terms."""
        schedule = self.recipe.schedule
        optimizer = self.optimizers["warm_up"]
        progress = step / max(schedule.warm_up, 1)
        _set_rate(optimizer, schedule.warm_up_rate * (0.5 * (1 + np.cos(np.pi * progress)) * 0.98 + 0.02))
        better = self.modules["G_A"](low)
        terms = {"paired": (better - high).abs().mean()}
        total = terms["paired"]
        if self.recipe.weights.lassim:
            terms["lassim"] = _lassim_loss(low, better)
            total = total + self.recipe.weights.lassim * terms["lassim"]
        if step % 4 == 0:
            total = total + (self.modules["G_B"](high) - low).abs().mean()
        optimizer.zero_grad(set_to_none=True)
        self.fabric.backward(total)
        optimizer.step()
        return {name: float(term.detach()) for name, term in terms.items()}

    def unpaired_step(
        self, step: int, a: Tensor, b: Tensor, pair: tuple[Tensor, Tensor] | None, rng: np.random.Generator
    ) -> dict[str, float]:
        """One step of eq. (8) on low-quality a and high-quality b: both G, then both D. Returns the loss terms."""
        weights, schedule = self.recipe.weights, self.recipe.schedule
        G_A, G_B, D_A, D_B = (self.modules[k] for k in ("G_A", "G_B", "D_A", "D_B"))
        falling = max(0, step + 1 - schedule.constant) / (schedule.steps - schedule.constant + 1)
        for key in ("G", "D"):
            _set_rate(self.optimizers[key], schedule.rate * (1 - falling))
        noise = torch.Generator().manual_seed(int(rng.integers(0, 2**31)))

        for D in (D_A, D_B):
            D.requires_grad_(False)
        fake_b, fake_a = G_A(a), G_B(b)
        terms = {
            "adversarial": adversarial_loss(D_A(fake_b), real=True, mode=weights.gan_mode)
            + adversarial_loss(D_B(fake_a), real=True, mode=weights.gan_mode),
            "cycle": cycle_loss(a, G_B(fake_b)) + cycle_loss(b, G_A(fake_a)),
            "identity": identity_loss(b, G_A(b)) + identity_loss(a, G_B(a)),
            "illumination": illumination_loss(fake_b, patches=weights.patches, crop=weights.crop),
            "structure": structure_loss(a, fake_b, crop=weights.crop, generator=noise)
            + structure_loss(b, fake_a, crop=weights.crop, generator=noise),
        }
        if weights.lassim:
            terms["lassim"] = _lassim_loss(a, fake_b)
        if pair is not None:
            terms["paired"] = (G_A(pair[0]) - pair[1]).abs().mean()
        factors = {name: getattr(weights, name, 1.0) for name in terms}
        self.optimizers["G"].zero_grad(set_to_none=True)
        self.fabric.backward(sum(factors[name] * term for name, term in terms.items()))
        self.optimizers["G"].step()

        for D in (D_A, D_B):
            D.requires_grad_(True)
        loss_D = discriminator_loss(D_A(b), D_A(self.pools["A"].exchange(fake_b, rng)), mode=weights.gan_mode)
        loss_D = loss_D + discriminator_loss(D_B(a), D_B(self.pools["B"].exchange(fake_a, rng)), mode=weights.gan_mode)
        self.optimizers["D"].zero_grad(set_to_none=True)
        self.fabric.backward(loss_D)
        self.optimizers["D"].step()
        return {name: float(term.detach()) for name, term in terms.items()} | {"D": float(loss_D.detach())}

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


def _lassim_loss(x: Tensor, y: Tensor) -> Tensor:
    """1 - mean LaSSIM of (B, C, H, W) in [-1, 1], outside half precision."""
    with torch.autocast(x.device.type, enabled=False):
        return 1 - lassim((x.float() + 1) / 2, (y.float() + 1) / 2).mean()


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = float(rate)
