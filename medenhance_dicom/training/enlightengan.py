"""EnlightenGAN, the one-way baseline (Jiang et al., IEEE TIP 2021): no cycle, a global and a local discriminator."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from medenhance_dicom.networks.enlightengan import EnlightenGANGenerator
from medenhance_dicom.training.data import Batch, TrainingPictures
from medenhance_dicom.training.discriminators import PatchDiscriminator
from medenhance_dicom.training.losses import adversarial_loss, discriminator_loss, relativistic_loss
from medenhance_dicom.training.method import (
    Method,
    Stage,
    Terms,
    lassim_loss,
)
from medenhance_dicom.training.perceptual import perceptual_loss_of
from medenhance_dicom.training.recipe import TrainingRecipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

PATCHES, PATCH = 6, 32


class EnlightenGANMethod(Method):
    """One generator, D_global on whole pictures, D_local on patches; the input's own features are preserved."""

    kept = "G"

    def __init__(self, recipe: TrainingRecipe, fabric: Fabric, pictures: TrainingPictures) -> None:
        super().__init__(recipe, fabric, pictures)
        network, schedule, channels = recipe.network, recipe.schedule, recipe.data.channels
        judge = partial(PatchDiscriminator, channels=channels, width=network.discriminator_width, norm=False)
        self.set_up({
            "G": EnlightenGANGenerator(channels=channels, width=network.width),
            "D_global": judge(layers=5),
            "D_local": judge(layers=4),
        })  # fmt: skip
        self.preserving = fabric.to_device(perceptual_loss_of(recipe.perceptual))
        G, D = list(self.modules["G"].parameters()), [*self.modules["D_global"].parameters()]
        D += self.modules["D_local"].parameters()
        self.optimizers |= {
            "warm_up": self.adam(G, schedule.warm_up_rate, (0.9, 0.999)),
            "G": self.adam(G, schedule.rate, schedule.betas),
            "D": self.adam(D, schedule.rate, schedule.betas),
        }

    def stages(self) -> list[Stage]:
        """Supervised on pairs (none in the paper), then unpaired."""
        schedule, pictures = self.recipe.schedule, self.pictures
        return [
            Stage("warm_up", schedule.warm_up, pictures.supervised, self.warm_up_step),
            Stage("unpaired", schedule.steps, pictures.unpaired, self.unpaired_step),
        ]

    def warm_up_step(self, step: int, batch: Batch, rng: np.random.Generator) -> Terms:
        """Supervised on pairs."""
        return self.learn_pairs("warm_up", step, self.modules["G"](batch["pair_low"]).float(), batch)

    def unpaired_step(self, step: int, batch: Batch, rng: np.random.Generator) -> Terms:
        """Relativistic least squares on whole pictures, least squares on patches, self feature preserving."""
        weights = self.recipe.weights
        G, D_global, D_local = (self.modules[k] for k in ("G", "D_global", "D_local"))
        self.set_decayed_rates(step, "G", "D")
        low, high = batch["low"], batch["high"]
        corners = rng.integers(0, np.array(low.shape[-2:]) - PATCH + 1, (PATCHES, 2))
        fake = G(low).float()
        for D in (D_global, D_local):
            D.requires_grad_(False)
        terms = {
            "adversarial": relativistic_loss(D_global(high), D_global(fake), for_generator=True)
            + adversarial_loss(D_local(_patches(fake, corners)), real=True),
            "perceptual": self.preserving(low, fake) + self.preserving(_patches(low, corners), _patches(fake, corners)),
        }
        if weights.lassim:
            terms["lassim"] = lassim_loss(low, fake)
        if weights.paired:
            terms["paired"] = (G(batch["pair_low"]).float() - batch["pair_high"]).abs().mean()
        said = self.learn_weighted("G", terms, G, batch)

        for D in (D_global, D_local):
            D.requires_grad_(True)
        fake = fake.detach()
        loss_D = 0.5 * relativistic_loss(D_global(high), D_global(fake), for_generator=False) + discriminator_loss(
            D_local(_patches(high, corners)), D_local(_patches(fake, corners))
        )
        self.descend(loss_D, "D")
        return said | {"D": float(loss_D.detach())}


def _patches(x: Tensor, corners: np.ndarray) -> Tensor:
    """(B, C, H, W) -> (PATCHES * B, C, PATCH, PATCH), cut at the same corners of every picture."""
    return torch.cat([x[..., top : top + PATCH, left : left + PATCH] for top, left in corners.tolist()])
