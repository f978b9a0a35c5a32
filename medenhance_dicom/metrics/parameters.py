"""Parameter files of others, and of `fit_niqe`: read from a path, known by their SHA-256, never unpickled."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.errors import ModelError
from medenhance_dicom.metrics.brisque import SupportVectors
from medenhance_dicom.metrics.niqe import FEATURES, NaturalScenes

__all__ = ["load_brisque", "load_niqe", "save_niqe"]


def load_niqe(path: Path) -> NaturalScenes:
    """Read what good pictures are like.

    Args:
        path: A .npz with `mu_pris_param` and `cov_pris_param`, as BasicSR has it, or what `save_niqe` wrote.

    Raises:
        ModelError: Missing, or not such a file; names it.
    """
    content = _content(path)
    tensors = _npz(path, content) if content[:2] == b"PK" else _safetensors(path, content)
    fitted = content[:2] != b"PK"
    try:
        mu, sigma = (tensors["mu"], tensors["sigma"]) if fitted else (tensors[f"{k}_pris_param"] for k in ("mu", "cov"))
        mu, sigma = np.asarray(mu, np.float64).reshape(FEATURES), np.asarray(sigma, np.float64)
    except (KeyError, ValueError) as error:
        raise ModelError(f"{path}: no NIQE parameters ({error})") from error
    if sigma.shape != (FEATURES, FEATURES) or not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        raise ModelError(f"{path}: no NIQE parameters (covariance {sigma.shape}, or not finite)")
    digest = hashlib.sha256(mu.tobytes() + sigma.tobytes() if fitted else content).hexdigest()
    return NaturalScenes(mu, sigma, digest, fitted)


def save_niqe(path: Path, scenes: NaturalScenes) -> None:
    """Write fitted parameters as safetensors, so that `load_niqe` gives them back under the same id.

    Raises:
        ValueError: They were not fitted, but are another's.
    """
    if not scenes.fitted:
        raise ValueError(f"{scenes.id} are another's parameters")
    from safetensors.numpy import save

    path.write_bytes(save({"mu": scenes.mu, "sigma": scenes.sigma}))


def load_brisque(model: Path, ranges: Path) -> SupportVectors:
    """Read a regression and its ranges, as text files of libsvm.

    Args:
        model: An `epsilon_svr` of 36 features with an `rbf` kernel, as svm-train writes it.
        ranges: Its ranges as svm-scale writes them, scaling to [-1, 1].

    Raises:
        ModelError: Missing, or not such a file; names it.
    """
    model_bytes, range_bytes = _content(model), _content(ranges)
    head, _, body = _text(model, model_bytes).partition("\nSV\n")
    entries = dict(line.split(maxsplit=1) for line in head.splitlines() if " " in line)
    if entries.get("svm_type") != "epsilon_svr" or entries.get("kernel_type") != "rbf":
        raise ModelError(f"{model}: no epsilon regression with a radial basis function")
    try:
        rows = [line.split() for line in body.splitlines() if line.strip()]
        weights = np.array([float(row[0]) for row in rows])
        vectors = np.array([_indexed(row[1:]) for row in rows]).reshape(-1, FEATURES)
        gamma, rho, count = float(entries["gamma"]), float(entries["rho"]), int(entries["total_sv"])
    except (KeyError, ValueError, IndexError) as error:
        raise ModelError(f"{model}: not a model of libsvm with {FEATURES} features ({error})") from error
    if len(weights) != count:
        raise ModelError(f"{model}: {len(weights)} support vectors, {count} are announced")
    smallest, largest = _ranges(ranges, range_bytes)
    digest = hashlib.sha256(model_bytes + range_bytes).hexdigest()
    return SupportVectors(gamma, rho, weights, vectors, smallest, largest, digest)


def _ranges(path: Path, content: bytes) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    table = np.empty((0, 3))
    lines = [line.split() for line in _text(path, content).splitlines() if line.strip()]
    try:
        table = np.array([[float(v) for v in line] for line in lines[2:]])
        right = lines[0] == ["x"] and [float(v) for v in lines[1]] == [-1, 1]
        right = right and table.shape == (FEATURES, 3) and bool((table[:, 0] == np.arange(1, FEATURES + 1)).all())
    except (ValueError, IndexError):
        right = False
    if not right or not (table[:, 2] > table[:, 1]).all():
        raise ModelError(f"{path}: no ranges of {FEATURES} features for [-1, 1], as svm-scale writes them")
    return table[:, 1], table[:, 2]


def _indexed(pairs: list[str]) -> NDArray[np.float64]:
    """Pairs `index:value`, from 1; what is left out is 0."""
    values = np.zeros(FEATURES)
    for pair in pairs:
        index, _, value = pair.partition(":")
        if not 1 <= int(index) <= FEATURES:
            raise ValueError(f"feature {index}")
        values[int(index) - 1] = float(value)
    return values


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error


def _text(path: Path, content: bytes) -> str:
    try:
        return content.decode("ascii").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: not a text file") from error


def _npz(path: Path, content: bytes) -> dict[str, NDArray[np.float64]]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path}: not an archive of arrays") from error


def _safetensors(path: Path, content: bytes) -> dict[str, NDArray[np.float64]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(content)
    except (SafetensorError, ValueError) as error:
        raise ModelError(f"{path}: neither an archive of arrays nor a safetensors file") from error
