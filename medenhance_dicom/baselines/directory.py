"""The results of any other program, picture by picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medenhance_dicom.baselines.frame import Unit
from medenhance_dicom.conventional import luminance
from medenhance_dicom.errors import InputError
from medenhance_dicom.guides import PICTURE_SUFFIXES, read_picture


@dataclass(frozen=True)
class Directory:
    """A folder with a picture for each one that was enhanced, matched by stem; not its subfolders."""

    path: Path

    def picture(self, name: str, like: Unit) -> Unit:
        """What the other program made of a picture.

        Args:
            name: Of the picture that was enhanced, with or without suffix and folders.
            like: That picture, (H, W, 1 or 3) in [0, 1].

        Returns:
            float32, the shape of `like`, in [0, 1]; colour for grey is given as luminance, grey for colour thrice.

        Raises:
            InputError: No folder, no picture of that stem or several, none that reads, or one of another size.
        """
        if not self.path.is_dir():
            raise InputError(f"{self.path}: no such folder")
        names = {name, Path(name).stem}
        files = sorted(p for p in self.path.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES and p.stem in names)
        if len(files) != 1:
            raise InputError(f"{self.path}: {len(files) or 'no'} pictures for {Path(name).stem}")
        found = read_picture(files[0])
        height, width, channels = like.shape
        if found.shape[:2] != (height, width):
            raise InputError(f"{files[0]}: {found.shape[0]} x {found.shape[1]} pixels, not {height} x {width}")
        if channels == 1:
            return luminance(found)[..., None]
        return found if found.shape[2] == channels else np.repeat(found, channels, axis=2)
