"""Which files a `Pictures` table means, whom each belongs to, and on which side of a split that person lies."""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.guides import PICTURE_SUFFIXES
from medenhance_dicom.training.recipe import Pictures

Unit = NDArray[np.float32]

FAMILIES = (re.compile(r"(seq\d+)_\d+"), re.compile(r"(sh)_\d+"), re.compile(r"(Image_\d+)[LR](?:_\w+)?"))
"""Frames of one sequence, frames of one eye, both eyes of one child."""
CVC = (1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298, 318, 343, 364, 384, 409, 429, 448, 467,
       479, 504, 529, 547, 572, 592)  # fmt: skip
"""First frame of each of CVC-ClinicDB's 29 sequences, as its README lists them."""


class DicomReader(Protocol):
    """How DICOM files become pictures; the side that knows DICOM hands one in."""

    def patients(self, files: Sequence[Path]) -> Mapping[Path, str]:
        """Whom each file belongs to, as a digest; files that are no image are left out."""
        ...

    def first_frames(self, files: Sequence[Path]) -> Iterator[tuple[Path, Unit]]:
        """The first frame of each file that can be enhanced, (H, W, 1 or 3) in [0, 1], as `enhance` sees it.

        Raises:
            InputError: One cannot be decoded.
        """
        ...


@dataclass(frozen=True)
class Chosen:
    """A file, and what is known of it."""

    path: Path
    group: str
    """Person or sequence, never on two sides of a split."""
    row: Mapping[str, str] = field(default_factory=dict)
    """Of the tables."""
    table: Path = Path()
    """The first of them."""


def list_pictures(root: Path, choice: Pictures) -> list[Path]:
    """The picture files of one `Pictures` table; raises as `choose`."""
    return [chosen.path for chosen in choose(root, choice)]


def choose(root: Path, choice: Pictures, dicom: DicomReader | None = None) -> list[Chosen]:
    """The files of one `Pictures` table, sorted by name, numbers in it by value.

    The pattern is looked for in the folder; where that holds nothing itself, in all folders below it.

    Args:
        root: Of the recipe's relative paths.
        choice: Which.
        dicom: Reads DICOM files; None: they are an error.

    Raises:
        RecipeError: The folder or a table is missing, a cut goes through a group, or nothing is left.
    """
    folder = root / choice.folder
    found = _found(folder, choice.pattern)
    files = [path for path in found if path.suffix.lower() in PICTURE_SUFFIXES]
    instances = [path for path in found if _is_dicom(path)] if not files or dicom else []
    if instances and dicom is None:
        raise RecipeError(f"{folder}: DICOM files, which are not taken here")
    patients = dicom.patients(instances) if instances and dicom else {}
    names = [choice.table] if isinstance(choice.table, str) else choice.table or []
    rows, table = _rows([root / name for name in names]), root / names[0] if names else folder
    chosen = []
    for path in sorted([*files, *patients], key=lambda path: _by_number(path.relative_to(folder))):
        row = rows.get(path.name, rows.get(path.stem)) if names else {"file": path.name}
        if row is not None and _wanted(row, choice, table):
            known = patients.get(path) or _subfolder(path, folder) or group_of(path)
            chosen.append(Chosen(path, _column(row, choice.group, table) if choice.group else known, row, table))
    chosen = [
        one
        for one in chosen
        if choice.part is None or part_of(choice.split + one.group, choice.fractions) == choice.part
    ]
    kept = chosen[round(choice.first * len(chosen)) : round(choice.last * len(chosen))]
    if choice.group and len(kept) < len(chosen):
        whose, within = {one.group for one in kept}, {one.path for one in kept}
        torn = next((one.path.name for one in chosen if one.path not in within and one.group in whose), None)
        if torn:
            raise RecipeError(f"{folder}: first and last cut through the {choice.group} of {torn}: take part instead")
    if not kept:
        raise RecipeError(f"{folder}: no pictures match {choice.pattern!r}" + (" and its table" if names else ""))
    return kept


def part_of(group: str, fractions: tuple[float, float, float]) -> str:
    """Where a person or sequence lies: "train", "validate" or "test", by the SHA-256 of the name alone.

    Args:
        group: Name.
        fractions: Of the three parts; they add up to 1.
    """
    place = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    return "train" if place < fractions[0] else "validate" if place < fractions[0] + fractions[1] else "test"


def group_of(path: Path) -> str:
    """The patient or sequence that a file name tells, else the name itself.

    >>> [group_of(Path(name)) for name in ("seq3_017.png", "Image_02L.jpg", "csdi_003.jpg", "cvc_clinicdb_256/60.jpg")]
    ['seq3', 'Image_02', 'csdi_003', 'cvc 3']
    """
    for family in FAMILIES:
        if match := family.fullmatch(path.stem):
            return match[1]
    if path.stem.isdigit() and any(part.startswith("cvc") for part in path.parts):
        return f"cvc {int(np.searchsorted(CVC, int(path.stem), 'right'))}"
    return path.stem


def known_groups(folder: Path) -> dict[str, str | None]:
    """Whom files belong to, as `groups.csv` or `labels.csv` in a folder or above it tells; None for doubles.

    Raises:
        RecipeError: Such a table has no column `file`.
    """
    for table in (place / name for name in ("groups.csv", "labels.csv") for place in (folder, folder.parent)):
        if not table.is_file():
            continue
        rows = _rows([table])
        column = next((c for c in ("person", "patient") if all(row.get(c) for row in rows.values())), None)
        if column:
            return {file: None if row.get("same_picture_as") else row[column] for file, row in rows.items()}
    return {}


def _found(folder: Path, pattern: str) -> list[Path]:
    """The files that fit a pattern in the folder, else in those below it; hidden ones are passed over."""
    for search in (folder.glob, folder.rglob):
        found = [path for path in search(pattern) if path.is_file() and not path.name.startswith(".")]
        if any(path.suffix.lower() in PICTURE_SUFFIXES or _is_dicom(path) for path in found):
            return found
    return []


def _is_dicom(path: Path) -> bool:
    """By its suffix or the prefix of PS3.10, 7.1; a DICOMDIR is none of its instances."""
    if path.name == "DICOMDIR":
        return False
    if path.suffix.lower() in (".dcm", ".dicom"):
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _subfolder(path: Path, folder: Path) -> str | None:
    parts = path.relative_to(folder).parts
    return parts[0] if len(parts) > 1 else None


def _by_number(path: Path) -> list[str | int]:
    # Text and numbers alternate, so that like meets like: frame 9 comes before frame 10.
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.as_posix())]


# --------------------------------------------------------------------------------------------------------------- tables


def _rows(tables: Iterable[Path]) -> dict[str, dict[str, str]]:
    """The rows of the first table, by `file` and by its stem, with the columns that the others have for the file.

    Raises:
        RecipeError: A table is missing, or has no column `file`.
    """
    rows: dict[str, dict[str, str]] = {}
    for number, table in enumerate(tables):
        if not table.is_file():
            raise RecipeError(f"{table}: no such table")
        with table.open(newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle)
            columns = reader.fieldnames or ()
            if "file" not in columns:
                raise RecipeError(f"{table}: no column 'file'")
            found = {row["file"]: row | {"": f"line {reader.line_num}"} for row in reader}
        if number == 0:
            rows = found
        else:
            empty = dict.fromkeys(columns, "")
            rows = {file: (found.get(file) or empty) | row for file, row in rows.items()}
    return {Path(file).stem: row for file, row in rows.items()} | rows


def _column(row: Mapping[str, str], column: str, table: Path) -> str:
    """A text of a row that has to be there.

    Raises:
        RecipeError: It is not.
    """
    if column not in row:
        raise RecipeError(f"{table}: no column {column!r}")
    if not row[column]:
        raise RecipeError(f"{table}: {row['']}: nothing in column {column!r}")
    return row[column]


def numbers(row: Mapping[str, str], columns: Sequence[str], table: Path) -> tuple[float, ...]:
    """Numbers of a row.

    Raises:
        RecipeError: A column is missing, or a value is no number.
    """
    for column in columns:
        if column not in row:
            raise RecipeError(f"{table}: no column {column!r}")
    try:
        return tuple(float(row[column]) for column in columns)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"{table}: {row['']}: a value is no number") from error


def _wanted(row: Mapping[str, str], choice: Pictures, table: Path) -> bool:
    for column in filter(None, (*choice.where, *choice.unless, choice.drop)):
        if column not in row:
            raise RecipeError(f"{table}: no column {column!r}")
    if choice.drop and row[choice.drop]:
        return False
    if any(row[column] not in _listed(texts) for column, texts in choice.where.items()):
        return False
    if any(row[column] in _listed(texts) for column, texts in choice.unless.items()):
        return False
    if not choice.column:
        return True
    value = numbers(row, (choice.column,), table)[0]
    low = -np.inf if choice.at_least is None else choice.at_least
    high = np.inf if choice.at_most is None else choice.at_most
    return bool(low <= value <= high)


def _listed(texts: str | list[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else texts
