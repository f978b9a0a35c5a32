"""HQG-Net's training (arXiv 2307.07829): the guide encoder as an auto-encoder, then the guided generator.

y is the low-quality picture, z a high-quality one that guides, both in [0, 1] as in the paper; batches come in [-1, 1].
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from medenhance_dicom.networks.fields import GUIDE
from medenhance_dicom.networks.guide_encoder import GuideDecoder, GuideEncoder
from medenhance_dicom.networks.hqgnet import GuidedNetwork, HQGNetGenerator
from medenhance_dicom.training.data import Batch, TrainingPictures, to_batch, unit
from medenhance_dicom.training.discriminators import PatchDiscriminator
from medenhance_dicom.training.losses import (
    adversarial_loss,
    discriminator_loss,
    gram_loss,
    haar_loss,
    reconstruction_loss,
)
from medenhance_dicom.training.method import (
    Method,
    PicturePool,
    Stage,
    Terms,
    cosine_rate,
    lassim_loss,
    set_rate,
)
from medenhance_dicom.training.recipe import TrainingRecipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class HQGNetMethod(Method):
    """Guide encoder G (with its decoder, in pre-training only), generator E, discriminator D."""

    kept = "E"

    def __init__(self, recipe: TrainingRecipe, fabric: Fabric, pictures: TrainingPictures) -> None:
        super().__init__(recipe, fabric, pictures)
        network, schedule, channels = recipe.network, recipe.schedule, recipe.data.channels
        generator = HQGNetGenerator(
            channels=channels, width=network.width, stem=network.stem, norm=network.norm, adaptive=network.adaptive,
            guidance=network.guidance, head="sigmoid" if network.head == "tanh" else network.head,
        )  # fmt: skip
        self.set_up({
            "G": GuideEncoder(channels=channels, width=network.guide_width),
            "G_decoder": GuideDecoder(channels=channels, width=network.guide_width, size=network.guide_size),
            "E": generator,
            "D": PatchDiscriminator(channels=channels, width=network.discriminator_width),
        })  # fmt: skip
        self.modules["E"].mark_forward_method("enhance")  # type: ignore[operator]
        self.modules["E"].mark_forward_method("content_vector")  # type: ignore[operator]
        E, D = list(self.modules["E"].parameters()), self.modules["D"].parameters()
        coder = [*self.modules["G"].parameters(), *self.modules["G_decoder"].parameters()]
        self.optimizers |= {
            "pretrain": self.adam(coder, schedule.pretrain_rate, (0.9, 0.999)),
            "warm_up": self.adam(E, schedule.warm_up_rate, (0.9, 0.999)),
            "E": self.adam(E, schedule.rate, schedule.betas),
            "D": self.adam(D, schedule.rate, schedule.betas),
        }
        self.pools = {"A": PicturePool(schedule.pool)}
        self._fixed: Tensor | None = None

    def stages(self) -> list[Stage]:
        """The auto-encoder, supervised on pairs, unpaired with all losses, and where wanted on pairs again."""
        schedule, pictures = self.recipe.schedule, self.pictures
        guided = self.recipe.network.guidance == "guided"
        return [
            Stage("pretrain", schedule.pretrain * guided, pictures.both_kinds, self.pretrain_step, validates=False),
            Stage("warm_up", schedule.warm_up, pictures.supervised, self.warm_up_step),
            Stage("unpaired", schedule.steps, pictures.unpaired, self.unpaired_step),
            Stage("finish", schedule.finish, pictures.supervised, self.finish_step),
        ]

    def runnable(self, network: nn.Module) -> nn.Module:
        """The generator led by one fixed guide: the first high-quality picture."""
        if self._fixed is None:
            guide = self.fabric.to_device(to_batch([unit(self.pictures.high[0])]))
            self._fixed = self.guide_vectors(guide)[0]
        assert isinstance(network, HQGNetGenerator)
        return GuidedNetwork(network, self._fixed)

    def companions(self) -> dict[str, nn.Module]:
        """The guide encoder, which `guides add` needs and inference does not."""
        guided = self.recipe.network.guidance == "guided"
        return super().companions() | ({"guide_encoder": self.modules["G"]} if guided else {})

    @torch.no_grad()
    def guide_vectors(self, high: Tensor) -> Tensor:
        """v_z of pictures (B, C, H, W) in [-1, 1]: (B, 64) float32 from the frozen G; zeros for an unguided network."""
        if self.recipe.network.guidance != "guided":
            return high.new_zeros(len(high), GUIDE)
        self.modules["G"].eval()
        return self.modules["G"](self._guide_sized((high + 1) / 2)).float()

    def _guide_sized(self, z: Tensor) -> Tensor:
        size = self.recipe.network.guide_size
        return nn.functional.interpolate(z, size=(size, size), mode="area")

    def pretrain_step(self, step: int, batch: Batch, rng: np.random.Generator) -> Terms:
        """The auto-encoder's step: MSE + (1 - SSIM) on high and low quality alike."""
        schedule = self.recipe.schedule
        set_rate(self.optimizers["pretrain"], cosine_rate(schedule.pretrain_rate, step, schedule.pretrain))
        x = self._guide_sized((batch["pictures"] + 1) / 2)
        self.modules["G"].train()
        loss = reconstruction_loss(self.modules["G_decoder"](self.modules["G"](x)).float(), x)
        self.descend(loss, "pretrain")
        self._fixed = None
        return {"reconstruction": float(loss.detach())}

    def warm_up_step(self, step: int, batch: Batch, rng: np.random.Generator) -> Terms:
        """Supervised, with a random guide for each picture."""
        return self._paired_step("warm_up", step, batch)

    def finish_step(self, step: int, batch: Batch, rng: np.random.Generator) -> Terms:
        """Supervised, once more."""
        return self._paired_step("finish", step, batch)

    def _paired_step(self, stage: str, step: int, batch: Batch) -> Terms:
        y = (batch["pair_low"] + 1) / 2
        terms = self.learn_pairs(
            stage, step, 2 * self.modules["E"](y, self.guide_vectors(batch["guide"])).float() - 1, batch
        )
        self._clamp()
        return terms

    def unpaired_step(self, step: int, batch: Batch, rng: np.random.Generator) -> Terms:
        """L_e = L_Haar + lambda_1 L_FC + lambda_2 L_GAN (eq. 7-11) on y and z, then the discriminator's step."""
        weights = self.recipe.weights
        E, D = self.modules["E"], self.modules["D"]
        self.set_decayed_rates(step, "E", "D")
        y, z = (batch["low"] + 1) / 2, (batch["high"] + 1) / 2
        v_z = self.guide_vectors(batch["high"])
        x, v_y = E.enhance(y, v_z)  # type: ignore[operator]
        x = x.float()

        D.requires_grad_(False)
        terms = {
            "adversarial": adversarial_loss(D(2 * x - 1), real=True, mode=weights.gan_mode),
            "haar": haar_loss(x, y, bands=weights.haar_bands, levels=weights.haar_levels),
        }
        if weights.content:
            terms["content"] = self._content_loss(x, v_z, v_y)
        if weights.balance:
            terms |= _balanced(terms, x)
        if weights.lassim:
            terms["lassim"] = lassim_loss(batch["low"], 2 * x - 1)
        if weights.paired:
            better = 2 * E((batch["pair_low"] + 1) / 2, v_z).float() - 1
            terms["paired"] = (better - batch["pair_high"]).abs().mean()
        said = self.learn_weighted("E", terms, lambda low: 2 * E((low + 1) / 2, v_z[:1]).float() - 1, batch)
        self._clamp()

        D.requires_grad_(True)
        fake = self.pools["A"].exchange(2 * x.detach() - 1, rng)
        loss_D = discriminator_loss(D(2 * z - 1), D(fake), mode=weights.gan_mode)
        self.descend(loss_D, "D")
        return said | {"D": float(loss_D.detach())}

    def _content_loss(self, x: Tensor, v_z: Tensor, v_y: Tensor) -> Tensor:
        """L_FC, eq. (8). The target is fixed and neither G nor FC_e learn from it: else v -> 0 would be its minimum."""
        E, G = self.modules["E"], self.modules["G"]
        E.requires_grad_(False)
        again, target = E.content_vector(x).float(), v_y.detach().float()  # type: ignore[operator]
        E.requires_grad_(True)
        if self.recipe.network.guidance == "guided":
            G.requires_grad_(False)
            again, target = torch.cat([G(self._guide_sized(x)).float(), again], dim=1), torch.cat([v_z, target], dim=1)
            G.requires_grad_(True)
        return gram_loss(again, target)

    def _clamp(self) -> None:
        E = getattr(self.modules["E"], "module", self.modules["E"])
        assert isinstance(E, HQGNetGenerator)
        E.clamp_rho()


def _balanced(terms: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
    """The terms of L_e, scaled to gradients at x of the adversarial term's norm (after GradNorm, Chen et al., 2018)."""
    norms = {name: torch.autograd.grad(term, x, retain_graph=True)[0].norm() for name, term in terms.items()}
    return {name: term * (norms["adversarial"] / norms[name].clamp_min(1e-12)) for name, term in terms.items()}
