"""Checkpoints and weights without pickle: tensors as safetensors, the rest in the same file's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from medenhance_dicom.errors import ModelError


def _flatten(state: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """Replace each tensor of a nested state by a mark; keys keep their type."""
    if isinstance(state, Tensor):
        tensors[prefix] = state.detach().cpu().contiguous().clone()
        return {"__tensor__": prefix}
    if isinstance(state, dict):
        return {"__dict__": [[k, _flatten(v, f"{prefix}/{k}", tensors)] for k, v in state.items()]}
    if isinstance(state, list | tuple):
        return [_flatten(v, f"{prefix}/{i}", tensors) for i, v in enumerate(state)]
    return state


def _restore(skeleton: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(skeleton, list):
        return [_restore(v, tensors) for v in skeleton]
    if isinstance(skeleton, dict):
        if "__tensor__" in skeleton:
            return tensors[skeleton["__tensor__"]]
        return {k: _restore(v, tensors) for k, v in skeleton["__dict__"]}
    return skeleton


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a nested state of tensors, numbers, strings, lists and dicts, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    skeleton = _flatten(state, "", tensors)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, tensors, {"state": json.dumps(skeleton)})


def half_precision(network: nn.Module) -> dict[str, Tensor]:
    """A network's weights as they are kept: on the CPU, floating point ones in half precision."""
    kept = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    return {k: v.half() if v.is_floating_point() else v for k, v in kept.items()}


def save_weights(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors, whole or not at all; `metadata` is what the file says of itself."""
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, metadata=metadata)
    part.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote.

    Raises:
        ModelError: The file is missing or not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            skeleton = json.loads(handle.metadata()["state"])
            tensors = {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{path}: not a checkpoint ({type(error).__name__})") from error
    return _restore(skeleton, tensors)
