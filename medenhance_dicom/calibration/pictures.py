"""Pictures to calibrate on and to test on, split by the patient or sequence that a table or their names tell."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from medenhance_dicom.errors import InputError
from medenhance_dicom.guides import PICTURE_SUFFIXES
from medenhance_dicom.training.choosing import group_of, known_groups

__all__ = ["Folder", "Sample", "digest_of", "find_pictures", "split", "unseen"]

NOT_PICTURES = {"masks", "vessels", "vessels_machine", "lesions", "av"}


@dataclass(frozen=True)
class Sample:
    """One picture and whom it belongs to."""

    path: Path
    group: str
    """Never in two splits."""


@dataclass(frozen=True)
class Folder:
    """Where pictures came from, as a calibration records it."""

    name: str
    pictures: int
    sha256: str
    """Over the names and contents of the pictures that were used."""


def find_pictures(folders: Sequence[Path]) -> list[Sample]:
    """All pictures below the folders, sorted; folders of masks and doubles are passed over.

    Raises:
        InputError: A folder is missing or holds no picture.
        RecipeError: A table of groups cannot be read.
    """
    samples = []
    for folder in folders:
        found = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in PICTURE_SUFFIXES]
        found = [p for p in found if not NOT_PICTURES & set(p.relative_to(folder).parts[:-1])]
        if not found:
            raise InputError(f"{folder}: no pictures")
        known = known_groups(folder)
        for path in found:
            group = known.get(path.name, group_of(path))
            if group is not None:
                samples.append(Sample(path, f"{folder.resolve()}:{group}"))
    return samples


def unseen(samples: Sequence[Sample], learned: Collection[str]) -> list[Sample]:
    """Those of patients and sequences of whom no picture was learned from; see `manifest.learned_pictures`."""
    known = {s.group for s in samples if hashlib.sha256(s.path.read_bytes()).hexdigest()[:16] in learned}
    return [sample for sample in samples if sample.group not in known]


def split(
    samples: Sequence[Sample], limits: tuple[int, int], rng: np.random.Generator
) -> tuple[list[Sample], list[Sample]]:
    """To calibrate on and to test on, so many pictures at most of each; no group is in both.

    Of each folder the groups are dealt out at random, always to the side with fewer of its pictures: a folder of
    two sequences has one on either side. Then as many as wanted are drawn of all pictures of a side: both sides have
    the folders in the same proportion.

    Raises:
        InputError: Fewer than two groups: nothing could be tested on others.
    """
    groups: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[sample.group].append(sample)
    if len(groups) < 2:
        raise InputError("all pictures belong to one patient or sequence: nothing is left to test on")
    sides: tuple[list[Sample], list[Sample]] = ([], [])
    of_folder: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name in rng.permutation(sorted(groups)):
        taken = of_folder[name.rsplit(":", 1)[0]]
        side = min((0, 1), key=lambda k: (taken[k], len(sides[k])))
        taken[side] += len(groups[name])
        sides[side].extend(groups[name])
    first, second = (
        [side[i] for i in rng.permutation(len(side))[:limit]] for side, limit in zip(sides, limits, strict=True)
    )
    return first, second


def digest_of(samples: Sequence[Sample], folders: Sequence[Path]) -> list[Folder]:
    """What was used of each folder."""
    result = []
    for folder in folders:
        used = sorted(s.path for s in samples if s.path.is_relative_to(folder))
        digest = hashlib.sha256()
        for path in used:
            digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        result.append(Folder("/".join(folder.resolve().parts[-2:]), len(used), digest.hexdigest()))
    return result
