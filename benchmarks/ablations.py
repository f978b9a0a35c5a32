"""What each part of StillGAN and HQG-Net is worth on one small fixed budget: corneal frames, same seed, same steps.

    python benchmarks/ablations.py DATA [--steps 200] [--only stillgan|hqgnet] [--json FILE]

Unpaired training alone, as in the papers: no supervised stage, no pairs, no LaSSIM in the loss. 8-wide networks at 256
pixels with the head that starts near the identity. Measured on 26 frames of the sequence's unseen end: PSNR and SSIM
(11 x 11 Gaussian) to the evenly lit frame, LaSSIM to the source. A difference no larger than what another seed makes
means nothing. A run that stops is resumed by the same command.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from skimage.metrics import structural_similarity

from medenhance_dicom.lassim import lassim
from medenhance_dicom.recipe import pipelines_folder
from medenhance_dicom.training.checkpoint import load_checkpoint
from medenhance_dicom.training.data import TrainingPictures
from medenhance_dicom.training.fit import METHODS, fit
from medenhance_dicom.training.method import psnr_of
from medenhance_dicom.training.recipe import TrainingRecipe, load_training_recipe

COMMON = {
    "data.size": 256, "network.width": 8, "network.discriminator_width": 16, "weights.paired": 0.0, "weights.lassim": 0.0,
    "weights.crop": 256, "weights.patches": [32, 64], "schedule.warm_up": 0, "schedule.minimum_lassim": -1.0,
    "schedule.ema": 0.9, "schedule.rate": 2e-4, "schedule.batch": 1,
}  # fmt: skip
HQGNET = {
    "weights.adversarial": 0.05, "weights.haar": 10.0, "weights.content": 0.1, "schedule.pretrain": 100,
    "network.guide_width": 8, "network.guide_size": 128,
}  # fmt: skip
VARIANTS: dict[str, dict[str, tuple[str, dict]]] = {
    "stillgan": {
        "CycleGAN (neither)": ("cfm-cornea-stillgan-compact", {"weights.illumination": 0.0, "weights.structure": 0.0}),
        "+ illumination": ("cfm-cornea-stillgan-compact", {"weights.structure": 0.0}),
        "+ structure": ("cfm-cornea-stillgan-compact", {"weights.illumination": 0.0}),
        "+ both (StillGAN)": ("cfm-cornea-stillgan-compact", {}),
        "+ both, another seed": ("cfm-cornea-stillgan-compact", {"schedule.seed": 1}),
    },
    "hqgnet": {
        "no guidance": ("cfm-cornea-hqgnet-compact", {"network.guidance": "none"}),
        "learnable tensor": ("cfm-cornea-hqgnet-compact", {"network.guidance": "learned"}),
        "AdaIN": ("cfm-cornea-hqgnet-compact", {"network.adaptive": "adain"}),
        "AdaLN": ("cfm-cornea-hqgnet-compact", {"network.adaptive": "adaln"}),
        "bands vertical": ("cfm-cornea-hqgnet-compact", {"weights.haar_bands": [1.0, 0.0, 0.0]}),
        "bands horizontal": ("cfm-cornea-hqgnet-compact", {"weights.haar_bands": [0.0, 1.0, 0.0]}),
        "bands diagonal": ("cfm-cornea-hqgnet-compact", {"weights.haar_bands": [0.0, 0.0, 1.0]}),
        "guided, AdaLIN, all bands": ("cfm-cornea-hqgnet-compact", {}),
        "the same, another seed": ("cfm-cornea-hqgnet-compact", {"schedule.seed": 1}),
    },
}


def measure(recipe: TrainingRecipe, run: Path, data: Path) -> dict[str, float]:
    """Of the last moving average, not the best: choosing would favour runs that swing."""
    fabric = Fabric(accelerator="cpu", precision="bf16-mixed")
    method = METHODS[recipe.method](recipe, fabric, TrainingPictures(data, recipe))
    state = load_checkpoint(run / "last.safetensors")
    method.load_state_dict(state["method"])
    network = getattr(method.network, "module", method.network)
    network.load_state_dict(state["average"])
    enhance = method.runnable(network).eval()
    rows = []
    for low, high in method.pictures.validation:
        with torch.inference_mode():
            out = enhance(low).float()
        x, y = out[0, 0].numpy(), high[0, 0].numpy()
        similar = structural_similarity(
            x, y, data_range=2.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        rows.append((psnr_of(low, high), psnr_of(out, high), similar, float(lassim((low + 1) / 2, (out + 1) / 2))))
    names = ("psnr_before", "psnr", "ssim", "lassim_to_source")
    return dict(zip(names, np.mean(rows, axis=0).round(4).tolist(), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--only", choices=sorted(VARIANTS))
    parser.add_argument("--runs", type=Path, default=Path(tempfile.gettempdir()) / "ablations")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures: dict[str, dict] = {}
    for family, variants in VARIANTS.items():
        if arguments.only not in (None, family):
            continue
        for name, (base, changes) in variants.items():
            overrides = COMMON | (HQGNET if family == "hqgnet" else {}) | changes
            overrides |= {"schedule.steps": arguments.steps, "schedule.constant": arguments.steps // 2,
                          "schedule.validate_every": arguments.steps}  # fmt: skip
            recipe = load_training_recipe(pipelines_folder() / "train" / f"{base}.toml", overrides)
            run = arguments.runs / f"{family} {name}"
            fit(recipe, data_root=arguments.data, run=run, device="cpu", resume=True)
            figures.setdefault(family, {})[name] = measure(recipe, run, arguments.data)
            print(family, name, figures[family][name], flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps({"steps": arguments.steps, **figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
