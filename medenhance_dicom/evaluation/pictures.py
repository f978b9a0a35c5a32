"""The pictures of an evaluation and what is known of them; each is read when its turn comes, so memory is flat."""

from __future__ import annotations

import csv
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.conventional import luminance
from medenhance_dicom.errors import InputError, RecipeError
from medenhance_dicom.evaluation.recipe import Boxes, Data, Grades, Points
from medenhance_dicom.evaluation.ridges import ridge_centre_lines
from medenhance_dicom.evaluation.squares import in_square, squared
from medenhance_dicom.guides import read_picture
from medenhance_dicom.masks import field_of_view
from medenhance_dicom.metrics.lesions import lesions_in_boxes
from medenhance_dicom.training.choosing import list_pictures
from medenhance_dicom.training.recipe import Pictures

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]
Item = TypeVar("Item")
Box = tuple[int, int, int, int]
"""(left, top, right, bottom), right and bottom beyond it."""

_MOST_NAMES = 10


@dataclass(frozen=True)
class Case:
    """One picture, and what is known of it."""

    name: str
    source: Unit
    """(H, W, 1 or 3) in [0, 1]."""
    target: Unit | None = None
    truth_mask: Mask | None = None
    """(H, W)."""
    inside: Mask | None = None
    """(H, W), the field of view."""
    grade: int | None = None
    point: tuple[float, float] | None = None
    """(row, column) in pixels."""


class Entry(Protocol):
    """A picture that is not read yet."""

    @property
    def name(self) -> str:
        """What a person is shown: the file's path below the data root, or a SOP Instance UID."""
        ...

    @property
    def key(self) -> str:
        """SHA-256 (hex) of everything that decides what `load` gives."""
        ...

    def load(self) -> Case:
        """Read it.

        Raises:
            MedenhanceError: It cannot be read, or its target or mask has another size.
        """
        ...


@dataclass(frozen=True)
class PictureSet:
    """What there is to be evaluated."""

    entries: Sequence[Entry]
    has: frozenset[str]
    """Fields of `Case` that at least one picture has, besides the source."""
    left_out: Sequence[Mapping[str, str]] = field(default=())
    """{name, reason} of what was found and cannot be taken."""


@contextmanager
def open_pictures(data: Data, root: Path, limit: int | None = None) -> Iterator[PictureSet]:
    """List the pictures of an evaluation.

    Args:
        data: Which.
        root: Of its relative paths.
        limit: At most so many, spread evenly over the list.

    Raises:
        InputError: Targets or masks are missing (each is named), or a path does not exist.
        RecipeError: A folder or table is missing, nothing is left, or a table has a wrong value.
    """
    if data.dicom is None:
        entries = spread(_picture_files(data, root), limit)
        yield PictureSet(entries, _known(data, entries))
        return
    from medenhance_dicom.decoding import Decoder
    from medenhance_dicom.evaluation.dicom import dicom_entries

    with tempfile.TemporaryDirectory(prefix="medenhance-") as scratch, Decoder() as decoder:
        instances, left_out = dicom_entries(data, root / data.dicom, Path(scratch), decoder)
        if not instances:
            raise InputError(f"{root / data.dicom}: no instance that can be taken, {len(left_out)} left out")
        yield PictureSet(spread(instances, limit), _known(data, []), left_out)


def spread(items: Sequence[Item], count: int | None) -> list[Item]:
    """At most `count` of the items, evenly, the first and the last among them.

    >>> spread("abcdefg", 3)
    ['a', 'd', 'g']
    """
    if count is None or count >= len(items):
        return list(items)
    return [items[round(i)] for i in np.linspace(0, len(items) - 1, count)]


def _known(data: Data, entries: Sequence[_PictureFile]) -> frozenset[str]:
    known = {
        "target": bool(data.targets) or data.degradation != "none",
        "truth_mask": bool(data.masks) or data.mask_source == "ridge" or any(entry.boxes for entry in entries),
        "inside": data.field_of_view != "none",
        "grade": any(entry.grade is not None for entry in entries),
        "point": any(entry.point is not None for entry in entries),
    }
    return frozenset(name for name, there in known.items() if there)


@dataclass(frozen=True)
class _PictureFile:
    name: str
    path: Path
    data: Data
    target: Path | None = None
    mask: Path | None = None
    grade: int | None = None
    point: tuple[float, float] | None = None
    boxes: tuple[Box, ...] = ()

    @property
    def key(self) -> str:
        digest = hashlib.sha256(f"{self.name}\n{settings(self.data)}\n{self.grade} {self.point} {self.boxes}".encode())
        for path in (self.path, self.target, self.mask):
            digest.update(b"-" if path is None else hashlib.sha256(_content(path)).digest())
        return digest.hexdigest()

    def load(self) -> Case:
        source = _grey_where_grey(read_picture(self.path))
        target = None if self.target is None else _like(read_picture(self.target), source, self.target)
        mask = None
        if self.mask is not None:
            mask = _like(read_picture(self.mask), source[..., :1], self.mask)[..., 0] > self.data.mask_above
        elif self.boxes:
            mask = lesions_in_boxes(source, list(self.boxes))
        point, size = self.point, self.data.size
        if size is not None:
            point = None if point is None else in_square(point, source.shape, size)
            mask = None if mask is None else squared(mask[..., None].astype(np.float32), size)[..., 0] > 0.5
            source, target = squared(source, size), None if target is None else squared(target, size)
        return complete(self.data, self.name, source, target, mask, self.grade, point)


def complete(
    data: Data,
    name: str,
    source: Unit,
    target: Unit | None = None,
    mask: Mask | None = None,
    grade: int | None = None,
    point: tuple[float, float] | None = None,
) -> Case:
    """Add what follows from the picture itself: degradation, ridge mask, field of view.

    Raises:
        RecipeError: The degradation is for colour pictures, and this one is grey.
    """
    if data.degradation != "none":
        from medenhance_dicom.training.degradation import DEGRADATIONS

        if source.shape[2] == 1 and data.degradation != "cornea":
            raise RecipeError(f"{name}: data.degradation: {data.degradation!r} is for colour pictures")
        own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
        target, source = source, DEGRADATIONS[data.degradation](source, np.random.default_rng((data.seed, own)))
        source = source.astype(np.float32)
    if data.mask_source == "ridge":
        mask = ridge_centre_lines(source if target is None else target)
    inside = None if data.field_of_view == "none" else field_of_view(source, data.field_of_view)
    return Case(name, source, target, mask, inside, grade, point)


def settings(data: Data) -> str:
    """What `complete` depends on, for a digest."""
    return json.dumps(
        data.model_dump(include={"degradation", "seed", "mask_source", "field_of_view", "mask_above", "size"}),
        sort_keys=True,
    )


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from error


def _grey_where_grey(picture: Unit) -> Unit:
    """One channel for a grey picture that is stored as colour."""
    return picture[..., :1] if picture.shape[2] == 3 and not np.ptp(picture, axis=2).any() else picture


def _like(picture: Unit, source: Unit, path: Path) -> Unit:
    if picture.shape[:2] != source.shape[:2]:
        sizes = (f"{width} x {height}" for height, width in (picture.shape[:2], source.shape[:2]))
        raise InputError(f"{path}: {' pixels, and its picture '.join(sizes)}")
    if picture.shape[2] == source.shape[2]:
        return picture
    return np.repeat(picture, 3, axis=2) if source.shape[2] == 3 else luminance(picture)[..., None]


# ---------------------------------------------------------------- files and tables


def _picture_files(data: Data, root: Path) -> list[_PictureFile]:
    pictures = listed(data.pictures, root)
    targets = _beside(pictures, data.targets, root, "target") if data.targets else {}
    masks = _beside(pictures, data.masks, root, "mask") if data.masks else {}
    grades = {} if data.grades is None else _grades(root / data.grades.table, data.grades)
    points = {} if data.points is None else _points(root / data.points.table, data.points)
    boxes = {} if data.boxes is None else _boxes(root / data.boxes.table, data.boxes)
    return [
        _PictureFile(
            path.relative_to(root if path.is_relative_to(root) else path.parent.parent).as_posix(),
            path, data, targets.get(path), masks.get(path), grades.get(path.name), points.get(path.name),
            boxes.get(path.name, ()),
        )
        for path in pictures
    ]  # fmt: skip


def listed(choices: Sequence[Pictures], root: Path) -> list[Path]:
    """The files that are chosen, each once; raises as `list_pictures`."""
    return list(dict.fromkeys(path for choice in choices for path in list_pictures(root, choice)))


def _beside(pictures: Sequence[Path], choices: Sequence[Pictures], root: Path, what: str) -> dict[Path, Path]:
    """Picture -> the file of the same stem, else the one whose stem goes on with `_`, `-` or `.`."""
    stems: dict[str, Path] = {}
    for path in listed(choices, root):
        stems.setdefault(path.stem, path)
    found, missing = {}, []
    for picture in pictures:
        longer = [stem for stem in stems if stem.startswith(tuple(picture.stem + mark for mark in "_-."))]
        if picture.stem in stems:
            found[picture] = stems[picture.stem]
        elif len(longer) == 1:
            found[picture] = stems[longer[0]]
        else:
            missing.append(f"{picture.name} ({len(longer)} fit)" if longer else picture.name)
    if missing:
        more = f" and {len(missing) - _MOST_NAMES} more" if len(missing) > _MOST_NAMES else ""
        folders = ", ".join(str(root / choice.folder) for choice in choices)
        raise InputError(f"{folders}: no {what} for {', '.join(missing[:_MOST_NAMES])}{more}")
    return found


def _grades(path: Path, grades: Grades) -> dict[str, int]:
    return {file: int(row(grades.column)) for file, row, _ in _rows(path)}


def _points(path: Path, points: Points) -> dict[str, tuple[float, float]]:
    def mean(row: Callable[[str], float], columns: Sequence[str]) -> float:
        return float(np.mean([row(column) for column in columns]))

    return {file: (mean(row, points.row), mean(row, points.column)) for file, row, _ in _rows(path)}


def _boxes(path: Path, boxes: Boxes) -> dict[str, tuple[Box, ...]]:
    found: dict[str, tuple[Box, ...]] = {}
    for file, number, text in _rows(path):
        if text(boxes.column) in boxes.classes:
            left, top, right, bottom = (round(number(name)) for name in ("x1", "y1", "x2", "y2"))
            found[file] = (*found.get(file, ()), (left, top, right + 1, bottom + 1))
    return found


def _rows(path: Path) -> Iterator[tuple[str, Callable[[str], float], Callable[[str], str]]]:
    """The `file` of each row of a CSV, and look-ups of its numbers and texts by column."""
    try:
        lines = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: no such table ({type(error).__name__})") from error
    for number, line in enumerate(lines, start=2):
        if not line.get("file"):
            raise RecipeError(f"{path}: line {number} has no `file`")

        def value(column: str, line: Mapping[str, str] = line, number: int = number) -> float:
            try:
                return float(line[column])
            except (KeyError, TypeError, ValueError):
                raise RecipeError(f"{path}: line {number} has no number in column {column!r}") from None

        def text(column: str, line: Mapping[str, str] = line, number: int = number) -> str:
            if line.get(column) is None:
                raise RecipeError(f"{path}: line {number} has no column {column!r}")
            return line[column]

        yield line["file"], value, text
