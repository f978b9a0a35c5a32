"""The methods that learn a cycle of two generators: StillGAN, CycleGAN, LaMEGAN and MIINet differ in their weights.

G_A makes high quality out of low, G_B the reverse; D_A judges high quality, D_B low. Ma et al., TMI 2021, eq. 1-8
(StillGAN; with both its own weights zero it is CycleGAN, Zhu et al., ICCV 2017); LaMEGAN, arXiv 2304.01864, and its
predecessor MIINet, arXiv 2011.14132, have a perceptual term instead.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from medenhance_dicom.networks.resnet9 import ResNet9Generator
from medenhance_dicom.networks.stillgan import StillGANGenerator
from medenhance_dicom.training.data import Batch, TrainingPictures
from medenhance_dicom.training.discriminators import PatchDiscriminator
from medenhance_dicom.training.losses import (
    adversarial_loss,
    cycle_loss,
    discriminator_loss,
    identity_loss,
    illumination_loss,
    structure_loss,
)
from medenhance_dicom.training.method import (
    Method,
    PicturePool,
    Stage,
    Terms,
    lassim_loss,
)
from medenhance_dicom.training.perceptual import perceptual_loss_of
from medenhance_dicom.training.recipe import TrainingRecipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def _generator(recipe: TrainingRecipe) -> nn.Module:
    network, channels = recipe.network, recipe.data.channels
    if network.generator == "resnet9":
        return ResNet9Generator(channels=channels, width=network.width, head=network.head)
    return StillGANGenerator(channels=channels, width=network.width, layout=network.layout, head=network.head)


class CycleMethod(Method):
    """Two generators, two discriminators."""

    kept = "G_A"

    def __init__(self, recipe: TrainingRecipe, fabric: Fabric, pictures: TrainingPictures) -> None:
        super().__init__(recipe, fabric, pictures)
        schedule = recipe.schedule
        discriminator = partial(
            PatchDiscriminator, channels=recipe.data.channels, width=recipe.network.discriminator_width
        )
        self.set_up({
            "G_A": _generator(recipe), "G_B": _generator(recipe), "D_A": discriminator(), "D_B": discriminator()
        })  # fmt: skip
        self.perceptual = perceptual_loss_of(recipe.perceptual) if recipe.weights.perceptual else None
        if self.perceptual is not None:
            fabric.to_device(self.perceptual)
        G = [*self.modules["G_A"].parameters(), *self.modules["G_B"].parameters()]
        D = [*self.modules["D_A"].parameters(), *self.modules["D_B"].parameters()]
        self.optimizers |= {
            "warm_up": self.adam(G, schedule.warm_up_rate, (0.9, 0.999)),
            "G": self.adam(G, schedule.rate, schedule.betas),
            "D": self.adam(D, schedule.rate, schedule.betas),
        }
        self.pools = {"A": PicturePool(schedule.pool), "B": PicturePool(schedule.pool)}

    def stages(self) -> list[Stage]:
        """Supervised on pairs, unpaired with all losses, and where wanted on pairs again."""
        recipe, pictures = self.recipe, self.pictures
        return [
            Stage("warm_up", recipe.schedule.warm_up, pictures.supervised, self.warm_up_step),
            Stage("unpaired", recipe.schedule.steps, pictures.unpaired, self.unpaired_step),
            Stage("finish", recipe.schedule.finish, pictures.supervised, self.finish_step),
        ]

    def warm_up_step(self, step: int, batch: Batch, rng: np.random.Generator) -> Terms:
        """Supervised; every fourth step G_B learns the way back. Returns the loss terms."""
        back = None
        if step % 4 == 0:
            back = (self.modules["G_B"](batch["pair_high"]) - batch["pair_low"]).abs().mean()
        better = self.modules["G_A"](batch["pair_low"])
        return self.learn_pairs("warm_up", step, better, batch, back)

    def finish_step(self, step: int, batch: Batch, rng: np.random.Generator) -> Terms:
        """Supervised, G_A alone. Returns the loss terms."""
        return self.learn_pairs("finish", step, self.modules["G_A"](batch["pair_low"]), batch)

    def unpaired_step(self, step: int, batch: Batch, rng: np.random.Generator) -> Terms:
        """One step of eq. (8) on low-quality a and high-quality b: both G, then both D. Returns the loss terms."""
        weights = self.recipe.weights
        G_A, G_B, D_A, D_B = (self.modules[k] for k in ("G_A", "G_B", "D_A", "D_B"))
        a, b = batch["low"], batch["high"]
        self.set_decayed_rates(step, "G", "D")
        noise = torch.Generator().manual_seed(int(rng.integers(0, 2**31)))

        for D in (D_A, D_B):
            D.requires_grad_(False)
        fake_b, fake_a = G_A(a), G_B(b)
        structure = partial(structure_loss, crop=weights.crop, generator=noise)
        # What has no weight is not computed.
        wanted: dict[str, Callable[[], Tensor]] = {
            "adversarial": lambda: (
                adversarial_loss(D_A(fake_b), real=True, mode=weights.gan_mode)
                + adversarial_loss(D_B(fake_a), real=True, mode=weights.gan_mode)
            ),
            "cycle": lambda: cycle_loss(a, G_B(fake_b)) + cycle_loss(b, G_A(fake_a)),
            "identity": lambda: identity_loss(b, G_A(b)) + identity_loss(a, G_B(a)),
            "illumination": lambda: illumination_loss(fake_b, patches=weights.patches, crop=weights.crop),
            "structure": lambda: structure(a, fake_b) + structure(b, fake_a),
            "perceptual": lambda: self._perceptual(a, fake_b) + self._perceptual(b, fake_a),
            "lassim": lambda: lassim_loss(a, fake_b),
            "paired": lambda: (G_A(batch["pair_low"]) - batch["pair_high"]).abs().mean(),
        }
        terms = {name: term() for name, term in wanted.items() if getattr(weights, name)}
        said = self.learn_weighted("G", terms, G_A, batch)

        for D in (D_A, D_B):
            D.requires_grad_(True)
        loss_D = discriminator_loss(D_A(b), D_A(self.pools["A"].exchange(fake_b, rng)), mode=weights.gan_mode)
        loss_D = loss_D + discriminator_loss(D_B(a), D_B(self.pools["B"].exchange(fake_a, rng)), mode=weights.gan_mode)
        self.descend(loss_D, "D")
        return said | {"D": float(loss_D.detach())}

    def _perceptual(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.perceptual is not None
        return self.perceptual(x, y)
