"""Networks' weights that are brought along: safetensors, named by their SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from medenhance_dicom.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["read_weights"]


def read_weights(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The file's SHA-256 in hexadecimal digits, and its tensors in float32.

    Raises:
        ModelError: Missing, no safetensors file, or a value is not finite; names the file.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        tensors = {name: t.float() if t.is_floating_point() else t for name, t in load(content).items()}
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: not a safetensors file") from error
    if broken := sorted(name for name, t in tensors.items() if not torch.isfinite(t).all()):
        raise ModelError(f"{path}: holds non-finite values in {broken[0]}")
    return hashlib.sha256(content).hexdigest(), tensors
