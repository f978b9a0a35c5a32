"""The networks that inference needs: architecture and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medenhance_dicom.networks.stillgan import StillGANGenerator

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NETWORKS", "StillGANGenerator", "build_network"]

NETWORKS: dict[str, type[nn.Module]] = {"stillgan": StillGANGenerator}


def build_network(name: str, **config: Any) -> nn.Module:
    """Build an untrained network.

    Args:
        name: A key of `NETWORKS`.
        config: The network's keyword arguments; an unknown one raises TypeError.

    Returns:
        A module from (B, C, H, W) in [-1, 1] to the same shape and range.

    Raises:
        KeyError: No network of that name.
    """
    return NETWORKS[name](**config)
