"""Evaluation recipes: `pipelines/evaluate/*.toml` as frozen values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medenhance_dicom.errors import RecipeError
from medenhance_dicom.tables import checked, read_table
from medenhance_dicom.training.recipe import Degradation, Pictures

ORIGINAL = "original"
"""The enhancer that changes nothing; every table has it, and every other is compared with it."""
WITHIN = "Definitions differ from the paper's, and so do the pictures: compare within this table only."


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Grades(_Table):
    """The true level of each picture."""

    table: str
    """CSV below the data root with a `file` column."""
    column: str = "grade"
    """Whole numbers."""


class Points(_Table):
    """A true place in each picture, such as the fovea. Pixels, counted from the top left."""

    table: str
    """CSV below the data root with a `file` column; a picture that it lacks has no point."""
    row: list[str] = ["row"]
    """Columns whose mean is the row: one, or the upper and the lower edge of a box."""
    column: list[str] = ["column"]
    """Columns whose mean is the column."""


class Boxes(_Table):
    """Lesions of which only boxes are known; in each the quarter that stands out most is taken for the lesion."""

    table: str
    """CSV below the data root: columns file, x1, y1, x2, y2 (pixels, counted from the top left), and one that says of
    what. A picture that it lacks has none."""
    column: str = "class"
    classes: Annotated[list[str], Field(min_length=1)]
    """Of that column."""


class Data(_Table):
    """What is looked at. Paths are relative to the data root (`--data`, else `MEDENHANCE_DATA`)."""

    pictures: list[Pictures] = []
    """Picture files; or, in their place, `dicom`."""
    dicom: str | None = None
    """Folder, file, zip or DICOMDIR of DICOM instances; the first frame of each counts."""
    targets: list[Pictures] = []
    """The truth, pixel for pixel. A file belongs to the picture whose name it has, or begins with."""
    masks: list[Pictures] = []
    """True vessels, nerves, polyps or lesions, found as `targets` are; what is above `mask_above` is foreground."""
    mask_above: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Of a mask's range; 0 for masks whose values are numbers of classes."""
    boxes: Boxes | None = None
    """In the place of masks."""
    mask_source: Literal["files", "ridge"] = "files"
    """"ridge": centre lines of bright ridges in the target, else in the picture: a stand-in where nobody traced any."""
    good: list[Pictures] = []
    """Good pictures of the same camera: what `colour-distance` is from, where no file `good-colours` is named."""
    grades: Grades | None = None
    points: Points | None = None
    degradation: Degradation = "none"
    """Seeded degradation: the degraded picture is enhanced, the picture itself is the target."""
    seed: int = 7
    """Of the degradation; each picture's own follows from this and its name."""
    size: Annotated[int, Field(ge=32, le=8192)] | None = None
    """Everything is padded with black to a square and brought to this side; None: left at its own size."""
    field_of_view: Literal["none", "ellipse", "border"] = "none"
    """Where metrics look, found in the source."""

    @model_validator(mode="after")
    def _one_kind(self) -> Data:
        if bool(self.pictures) == (self.dicom is not None):
            raise ValueError("name either pictures or dicom")
        beside = {
            "targets": self.targets, "masks": self.masks, "grades": self.grades, "points": self.points,
            "boxes": self.boxes, "size": self.size, "good": self.good,
        }  # fmt: skip
        named = [name for name, value in beside.items() if value]
        if any(one.minimum_brightness for one in (*self.pictures, *self.targets, *self.masks, *self.good)):
            raise ValueError("minimum_brightness: only training leaves dark pictures out")
        if self.dicom is not None and named:
            raise ValueError(f"{', '.join(named)}: only pictures can have them, not dicom")
        if self.degradation != "none" and self.targets:
            raise ValueError("targets: with a degradation the pictures themselves are the targets")
        if self.mask_source == "ridge" and self.masks:
            raise ValueError('masks: leave them out with mask_source = "ridge"')
        if self.good and self.field_of_view == "none":
            raise ValueError("good: their colours are those of a field_of_view")
        if self.boxes and (self.masks or self.mask_source == "ridge"):
            raise ValueError("boxes: they stand in the place of masks")
        return self


class Layout(_Table):
    """One table of the report."""

    title: str
    columns: Annotated[list[str], Field(min_length=1)]
    """Metric ids."""
    rows: list[str] = []
    """Enhancers; empty: all of them. `original` always comes first."""
    note: str = WITHIN


class EvaluationRecipe(_Table):
    """One data set, the enhancers and metrics that meet on it, and how the tables are laid out."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=48)]
    """Also the file's name without .toml."""
    summary: str
    data: Data
    enhancers: Annotated[list[str], Field(min_length=1)]
    """`original`, a recipe's name, `baseline:ID`, or `directory:PATH` with the outputs of another program."""
    metrics: Annotated[list[str], Field(min_length=1)]
    """Metric ids, see docs/metrics.md."""
    predictors: list[str] = []
    """Files of trained downstream tasks, which give what segmentation, grading and location metrics need."""
    models: dict[str, str] = {}
    """Parameter files of metrics, by the names that docs/metrics.md gives them."""
    tables: list[Layout] = []
    """Empty: one table with everything."""

    @model_validator(mode="after")
    def _tables_name_what_is_there(self) -> EvaluationRecipe:
        for number, table in enumerate(self.tables):
            for what, named, known in (
                ("rows", table.rows, {ORIGINAL, *self.enhancers}),
                ("columns", table.columns, set(self.metrics)),
            ):
                if strange := [one for one in named if one not in known]:
                    raise ValueError(f"tables.{number}.{what}: {', '.join(strange)} is not evaluated here")
        return self

    @property
    def rows(self) -> list[str]:
        """The enhancers, `original` first, each once."""
        return list(dict.fromkeys([ORIGINAL, *self.enhancers]))


def load_evaluation_recipe(path: Path) -> EvaluationRecipe:
    """Read an evaluation recipe.

    Raises:
        RecipeError: The file is missing, no TOML, or has a wrong key or value; names file and key.
    """
    recipe = make_evaluation_recipe(read_table(path, RecipeError), str(path))
    if recipe.name != path.stem:
        raise RecipeError(f"{path}: name: {recipe.name!r} is not the file's name")
    return recipe


def make_evaluation_recipe(found: dict[str, Any], source: str) -> EvaluationRecipe:
    """Check what a file or the command line asks for.

    Args:
        found: Keys and values as TOML has them.
        source: What a mistake is blamed on.

    Raises:
        RecipeError: A key or value is wrong; names the source and the key.
    """
    return checked(EvaluationRecipe, found, source, RecipeError)
