"""s_HQ of HQG-Net: what MCF-Net (Fu et al., MICCAI 2019) gives for "good", with EyeQ's weights brought along.

The weights want their own preparation of the picture, oddities included: values of 0 to 255 are normalised with
ImageNet's mean and deviation of 0 to 1, and HSV and Lab are those of 8-bit pictures. The field of view, laid in a black
square, stands here for EyeQ's own search for the disc.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.errors import ModelError
from medenhance_dicom.metrics.picture import Mask, Unit, bounding_box, byte_picture, field_of
from medenhance_dicom.metrics.weights import read_weights

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["load_mcf"]

SIDE = 224
MEAN = np.array((0.485, 0.456, 0.406), np.float32)
DEVIATION = np.array((0.229, 0.224, 0.225), np.float32)
BLOCKS = (6, 12, 24, 16)  # layers of DenseNet-121
GOOD = 0  # of good, usable, reject


def load_mcf(path: Path) -> tuple[str, Callable[[Unit, Mask | None], float]]:
    """MCF-Net as a measure of fundus photographs.

    Args:
        path: EyeQ's state dict as safetensors, with its own names: `featureA.densenet121.features.*`, `.classifier.0.*`
            (the same for B and C), `combine1.0.*`, `combine2.0.*`; further tensors are ignored.

    Returns:
        `s_hq@mcf:` with the first 12 digits of the file's SHA-256; and a picture (H, W, C) in [0, 1] with its field of
        view -> s_HQ in [0, 1].

    Raises:
        ModelError: Missing, or the tensors do not fit; names the file.
    """
    digest, tensors = read_weights(path)
    import torch

    from medenhance_dicom.networks import MCFNet

    network = MCFNet(classes=3, branch="densenet121")
    try:
        network.load_state_dict(_renamed(tensors, list(network.state_dict())))
    except (KeyError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path}: not MCF-Net's weights with three classes ({type(error).__name__})") from error
    network.eval().requires_grad_(False)

    def score(picture: Unit, inside: Mask | None) -> float:
        spaces = [torch.from_numpy(space) for space in _spaces(picture, inside)]
        found = [branch(space) for branch, space in zip(network.branches, spaces, strict=True)]
        four = [head(h).sigmoid() for head, h in zip(network.heads, found, strict=True)]
        four.append(network.fused(torch.cat(found, 1)).sigmoid())
        return float(network.final(torch.cat(four, 1)).sigmoid()[0, GOOD])

    return f"s_hq@mcf:{digest[:12]}", score


def _spaces(picture: Unit, inside: Mask | None) -> Iterator[NDArray[np.float32]]:
    """(1, 3, 224, 224) each: RGB, HSV and Lab."""
    from PIL import Image, ImageCms

    here = field_of(picture.shape, inside)
    disc = bounding_box(np.where(here[..., None], picture, np.float32(0)), inside)
    pixels = np.broadcast_to(byte_picture(disc).astype(np.uint8), (*disc.shape[:2], 3))
    side = max(disc.shape[:2])
    square = Image.new("RGB", (side, side))
    square.paste(Image.fromarray(pixels), ((side - disc.shape[1]) // 2, (side - disc.shape[0]) // 2))
    rgb = square.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    lab = ImageCms.applyTransform(rgb, ImageCms.buildTransformFromOpenProfiles(*profiles, "RGB", "LAB"))
    for space in (rgb, rgb.convert("HSV"), lab):
        values = (np.asarray(space, np.float32) - MEAN) / DEVIATION
        yield np.ascontiguousarray(np.moveaxis(values, 2, 0)[None])


def _renamed(tensors: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """EyeQ's tensors under the names of `networks.MCFNet`, whose layers lie in the same order."""
    layers = [f"feature{letter}.densenet121.features.{name}" for letter in "ABC" for name in _densenet_layers()]
    layers += [f"feature{letter}.densenet121.classifier.0" for letter in "ABC"]
    layers += ["combine2.0", "combine1.0"]
    own = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    theirs = dict(zip(own, layers, strict=True))
    return {name: tensors[f"{theirs[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}"] for name in names}


def _densenet_layers() -> Iterator[str]:
    """Convolutions and normalisations of torchvision's DenseNet-121, in the order in which a picture passes them."""
    yield from ("conv0", "norm0")
    for block, count in enumerate(BLOCKS, start=1):
        for layer in range(1, count + 1):
            yield from (f"denseblock{block}.denselayer{layer}.{part}" for part in ("norm1", "conv1", "norm2", "conv2"))
        if block < len(BLOCKS):
            yield from (f"transition{block}.norm", f"transition{block}.conv")
    yield "norm5"
