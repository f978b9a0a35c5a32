"""Architectures and nothing else: generators that inference runs, the guide encoder, networks of downstream tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medenhance_dicom.networks.colour_detector import ColourDetector
from medenhance_dicom.networks.csnet import CSNet
from medenhance_dicom.networks.detector import AlterationDetector
from medenhance_dicom.networks.enlightengan import EnlightenGANGenerator
from medenhance_dicom.networks.fields import FieldsGenerator, LookEncoder
from medenhance_dicom.networks.guide_encoder import GuideDecoder, GuideEncoder
from medenhance_dicom.networks.heatmap import HeatMapNet
from medenhance_dicom.networks.hqgnet import GuidedNetwork, HQGNetGenerator
from medenhance_dicom.networks.mcfnet import MCFNet
from medenhance_dicom.networks.resnet8 import GatedResNet8
from medenhance_dicom.networks.resnet9 import ResNet9Generator
from medenhance_dicom.networks.stillgan import StillGANGenerator
from medenhance_dicom.networks.unet import UNet

if TYPE_CHECKING:
    from torch import nn

__all__ = [
    "NETWORKS",
    "AlterationDetector",
    "CSNet",
    "ColourDetector",
    "EnlightenGANGenerator",
    "FieldsGenerator",
    "GatedResNet8",
    "GuideDecoder",
    "GuideEncoder",
    "GuidedNetwork",
    "HQGNetGenerator",
    "HeatMapNet",
    "LookEncoder",
    "MCFNet",
    "ResNet9Generator",
    "StillGANGenerator",
    "UNet",
    "build_network",
]

NETWORKS: dict[str, type[nn.Module]] = {
    "colour_detector": ColourDetector,
    "csnet": CSNet,
    "detector": AlterationDetector,
    "enlightengan": EnlightenGANGenerator,
    "fields": FieldsGenerator,
    "guide_encoder": GuideEncoder,
    "heatmap": HeatMapNet,
    "hqgnet": HQGNetGenerator,
    "look_encoder": LookEncoder,
    "mcfnet": MCFNet,
    "resnet8": GatedResNet8,
    "resnet9": ResNet9Generator,
    "stillgan": StillGANGenerator,
    "unet": UNet,
}


def build_network(name: str, **config: Any) -> nn.Module:
    """Build an untrained network.

    Args:
        name: A key of `NETWORKS`.
        config: The network's keyword arguments; an unknown one raises TypeError.

    Returns:
        A module. "stillgan", "resnet9" and "enlightengan" map (B, C, H, W) in [-1, 1] to the same shape and range;
        "hqgnet" and "fields" do so through `GuidedNetwork`; "guide_encoder" and "look_encoder" give vectors,
        "csnet", "unet", "heatmap", "resnet8", "mcfnet", "detector" and "colour_detector"
        logits.

    Raises:
        KeyError: No network of that name.
    """
    return NETWORKS[name](**config)
