"""Training of `networks.fields`: guide encoder and generator together, on pairs and on really poor pictures at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from medenhance_dicom.enhancer import EnhancerSpec
from medenhance_dicom.errors import RecipeError
from medenhance_dicom.inference import NetworkEnhancer
from medenhance_dicom.masks import field_of_view
from medenhance_dicom.networks.fields import FieldsGenerator, LookEncoder, apply_fields, pyramid
from medenhance_dicom.networks.hqgnet import GuidedNetwork
from medenhance_dicom.pyramid import enhance_whole
from medenhance_dicom.training.data import Batch, TrainingPictures
from medenhance_dicom.training.field_losses import field_terms, weighted
from medenhance_dicom.training.field_pictures import FieldPictures
from medenhance_dicom.training.method import Method, Stage, Terms, cosine_rate, set_rate
from medenhance_dicom.training.recipe import TrainingRecipe

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LARGEST_GRADIENT = 1.0
RAMP = 50  # steps over which the rate grows


class InField(nn.Module):
    """A network as `enhance` runs it: the surround filled from the field's edge before, and put back afterwards.

    (B, 3, H, W) in [-1, 1] to the same, photographs on black.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        frames = ((x + 1) / 2).permute(0, 2, 3, 1).cpu().numpy()
        inside = np.stack([field_of_view(frame, "ellipse") for frame in frames])
        run = NetworkEnhancer(self.network, EnhancerSpec(3, whole=True), x.device)
        enhanced = enhance_whole(frames, run, inside=inside, padding="field")
        return torch.from_numpy(enhanced).permute(0, 3, 1, 2).to(x.device) * 2 - 1


class FieldsMethod(Method):
    """Guide encoder G and generator E, from untrained to done in one supervised stage, `schedule.warm_up` steps."""

    kept = "E"

    def __init__(self, recipe: TrainingRecipe, fabric: Fabric, pictures: TrainingPictures) -> None:
        super().__init__(recipe, fabric, pictures)
        if recipe.data.channels != 3:
            raise RecipeError("data.channels: the measures of fields are those of colour pictures")
        self.fields = FieldPictures(pictures.loaded_high, pictures.loaded_low, recipe)
        self.set_up({
            "G": LookEncoder(channels=3, width=recipe.network.guide_width),
            "E": FieldsGenerator(channels=3, width=recipe.network.width),
        })  # fmt: skip
        self.modules["E"].mark_forward_method("predict")  # type: ignore[operator]
        learning = [*self.modules["G"].parameters(), *self.modules["E"].parameters()]
        self.optimizers["warm_up"] = self.adam(learning, recipe.schedule.warm_up_rate, (0.9, 0.99))

    def stages(self) -> list[Stage]:
        """One."""
        return [Stage("warm_up", self.recipe.schedule.warm_up, self.fields.batch, self.step)]

    def step(self, step: int, batch: Batch, rng: np.random.Generator) -> Terms:
        """One descent of all terms of `field_losses`, at a rate that grows and then falls along half a cosine."""
        schedule = self.recipe.schedule
        rate = cosine_rate(schedule.warm_up_rate, step, schedule.warm_up) * min(1.0, (step + 1) / RAMP)
        set_rate(self.optimizers["warm_up"], rate)
        guides = batch["guide"]
        v_z = self.modules["G"](guides.flatten(0, 1)).float().unflatten(0, guides.shape[:2]).mean(dim=1)
        levels, rest = pyramid(batch["y"])
        fields = self.modules["E"].predict(batch["y"], levels, v_z, batch["look"])  # type: ignore[operator]
        terms = field_terms(batch, apply_fields(levels, rest, fields), fields, self.recipe.fields)
        self.descend(weighted(terms, self.recipe.fields.terms), "warm_up", largest=LARGEST_GRADIENT)
        return {name: float(term.detach()) for name, term in terms.items()}

    def runnable(self, network: nn.Module) -> nn.Module:
        """The natural look as `enhance` runs it, led by the good pictures of the camera that is validated on."""
        assert isinstance(network, FieldsGenerator)
        data = self.recipe.data
        wanted = [choice.folder for choice in (*data.validation_poor, *data.validation_high)]
        camera = next((folder for folder in wanted if folder in self.fields.cameras), self.fields.cameras[0])
        return InField(GuidedNetwork(network, self.guide_vector(camera).to(next(network.parameters()).device)))

    @torch.no_grad()
    def guide_vector(self, camera: str) -> Tensor:
        """(64,), the mean code of a camera's good pictures."""
        guides = self.fabric.to_device(self.fields.guides_of(camera))
        v_z: Tensor = self.modules["G"](guides).float().mean(dim=0)
        return v_z

    def companions(self) -> dict[str, nn.Module]:
        """The guide encoder, which `guides add` needs and inference does not."""
        return super().companions() | {"guide_encoder": self.modules["G"]}
