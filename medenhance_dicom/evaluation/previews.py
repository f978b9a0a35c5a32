"""Small pictures for the page: result, what changed, and where the structure changed."""

from __future__ import annotations

import base64
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medenhance_dicom.comparison.maps import local_lassim
from medenhance_dicom.comparison.panels import difference_picture, picture
from medenhance_dicom.errors import OutputError
from medenhance_dicom.evaluation.enhancers import Candidate
from medenhance_dicom.evaluation.pictures import Case, Entry, Unit
from medenhance_dicom.evaluation.recipe import ORIGINAL

SIDE = 300
"""Pixels of the longer side."""
QUALITY = 86
"""Of JPEG."""
_LASSIM_COLOURS = np.array(
    [[122, 20, 24], [205, 70, 40], [244, 165, 98], [253, 231, 200], [255, 255, 255]], np.float32
)  # 0, 0.25 .. 1
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Preview:
    """Files of one picture under one enhancer; those of `original` have only `result`."""

    result: Path
    difference: Path
    structure: Path


class Previews:
    """A folder of previews of some pictures, kept between runs.

    Args:
        folder: Where they lie; made when the first one is written, for its owner alone.
        names: Of the pictures that get previews.
    """

    def __init__(self, folder: Path, names: frozenset[str]) -> None:
        self.folder, self.names = folder, names

    def of(self, key: str, digest: str) -> Preview:
        """Where the previews of a picture (`Entry.key`) under an enhancer (its digest) lie."""
        stem = f"{key[:16]}-{digest[:16]}"
        return Preview(*(self.folder / f"{stem}-{part}.jpg" for part in ("result", "difference", "structure")))

    def target(self, key: str) -> Path:
        """Where the preview of a picture's target lies, if it has one."""
        return self.folder / f"{key[:16]}-target.jpg"

    def are_there(self, entry: Entry, candidate: Candidate, digest: str) -> bool:
        """Whether nothing is to be written."""
        return entry.name not in self.names or self.of(entry.key, digest).result.is_file()

    def write(self, entry: Entry, case: Case, candidate: Candidate, result: Unit) -> None:
        """Write the previews of one picture under one enhancer.

        Raises:
            OutputError: The folder cannot be written.
        """
        if entry.name not in self.names:
            return
        key = entry.key
        files = self.of(key, candidate.digest(entry.name))
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if candidate.id == ORIGINAL:
                if case.target is not None:
                    _save(picture(case.target), self.target(key))
            else:
                _save(difference_picture(case.source, result), files.difference)
                _save(structure_map(case.source, result), files.structure)
            _save(picture(result), files.result)
        except OSError as error:
            raise OutputError(f"{self.folder}: {error.strerror}") from error


def structure_map(before: Unit, after: Unit) -> Pixels:
    """The local LaSSIM of two (H, W, C): white where it is 1, dark red where it is 0 or less; uint8 (H, W, 3)."""
    local = local_lassim(before, after).clip(0, 1)
    steps = np.linspace(0, 1, len(_LASSIM_COLOURS))
    planes = [np.interp(local, steps, _LASSIM_COLOURS[:, c]) for c in range(3)]
    return np.rint(np.stack(planes, axis=2)).astype(np.uint8)


def data_uri(path: Path) -> str | None:
    """A JPEG file as a `data:` address; None where there is no file."""
    if not path.is_file():
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _save(pixels: Pixels, path: Path) -> None:
    small = Image.fromarray(pixels)
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    part = path.with_name(f".{path.name}.part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        small.save(file, format="jpeg", quality=QUALITY)
    part.replace(path)
