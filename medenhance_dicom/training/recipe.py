"""Training recipes: `pipelines/train/*.toml` as frozen values."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medenhance_dicom.errors import RecipeError


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Pictures(_Table):
    """Which picture files make up one side of the data."""

    folder: str
    """Folder below the data root."""
    pattern: str = "*"
    """Glob inside the folder."""
    table: str | None = None
    """CSV beside the pictures with a `file` column."""
    column: str | None = None
    """Column of the table that is compared."""
    at_least: float | None = None
    """Keep the rows whose column is at least this."""
    at_most: float | None = None
    """Keep the rows whose column is at most this."""
    first: float = 0.0
    """Keep the files from this fraction of the sorted list on; sequences lie together in it."""
    last: float = 1.0
    """Keep the files before this fraction of the sorted list."""
    minimum_brightness: float = 0.0
    """Leave out pictures whose field of view is darker than this mean of [0, 1]."""


class Data(_Table):
    """What is learned from. Paths are relative to the data root (`--data`, else `MEDENHANCE_DATA`)."""

    channels: Literal[1, 3]
    size: int
    """Side in pixels of the square pictures that the networks see."""
    low: list[Pictures]
    """Low-quality pictures, unpaired."""
    high: list[Pictures]
    """High-quality pictures, unpaired."""
    pairs_low: list[Pictures] = []
    """Low-quality halves of pixel-aligned pairs; empty: pairs are made by degrading `high`."""
    pairs_high: list[Pictures] = []
    """The other halves, in the same order."""
    degradation: Literal["none", "fundus", "cornea"] = "none"
    """Seeded degradation model that makes pairs from high-quality pictures."""
    degraded_fraction: float = 0.5
    """How many of the pairs are made by degradation where real ones exist too."""
    unchanged_fraction: float = 0.15
    """How many of the pairs are a good picture and itself."""
    flatten: float = 0.0
    """How much of the slow shading (an exponent) is taken out of the target of a degraded colour pair."""
    relit_fraction: float = 0.0
    """How many of the pairs are a real low-quality picture and itself with flatter light, less veil and more detail."""
    validation_low: list[Pictures] = []
    validation_high: list[Pictures]
    """Pictures never trained on; without `validation_low` they are degraded with fixed seeds."""


class Network(_Table):
    """The generator's configuration and the discriminator's width."""

    width: int = 64
    layout: Literal["figure", "released"] = "figure"
    head: Literal["tanh", "gain", "normalised_gain"] = "tanh"
    discriminator_width: int = 64


class Weights(_Table):
    """Weights of the loss terms, in the paper's symbols."""

    cycle: float = 10.0
    """lambda_1."""
    identity: float = 5.0
    """lambda_2."""
    illumination: float = 1.0
    """alpha."""
    structure: float = 5.0
    """beta."""
    paired: float = 0.0
    """Mean |G_A(x) - y| on pairs during the unpaired stage; 0 in the paper."""
    lassim: float = 0.0
    """1 - LaSSIM(x, G_A(x)), in both stages; 0 in the paper."""
    gan_mode: Literal["lsgan", "bce"] = "lsgan"
    patches: tuple[int, ...] = (48, 96)
    """Block sizes of the illumination loss."""
    crop: int | None = 384
    """Side of the window for illumination and structure losses."""


class Schedule(_Table):
    """How long, how fast, how often to look."""

    warm_up: int = 0
    """Supervised steps on pairs before the unpaired stage."""
    steps: int
    """Unpaired steps."""
    constant: int
    """Unpaired steps at the full rate; then it falls linearly to zero."""
    batch: int = 1
    warm_up_batch: int = 4
    rate: float = 2e-4
    warm_up_rate: float = 1e-3
    betas: tuple[float, float] = (0.5, 0.999)
    pool: int = 50
    """Generated pictures kept for the discriminators, per direction."""
    ema: float = 0.999
    """Decay of the weights' moving average, which is what is validated and kept."""
    minimum_lassim: float = -1.0
    """An average whose mean LaSSIM to its inputs is below this loses 1000 dB per unit in the choice of the best."""
    validate_every: int = 200
    checkpoint_seconds: float = 180.0
    seed: int = 1337


class TrainingRecipe(_Table):
    """One training run."""

    name: str
    summary: str
    method: Literal["stillgan"] = "stillgan"
    data: Data
    network: Network = Field(default_factory=Network)
    weights: Weights = Field(default_factory=Weights)
    schedule: Schedule


def load_training_recipe(path: Path, overrides: dict[str, Any] | None = None) -> TrainingRecipe:
    """Read a training recipe.

    Args:
        path: The TOML file.
        overrides: Values that replace the file's, by dotted key (`schedule.steps`).

    Raises:
        RecipeError: The file is missing, no TOML, or has a wrong key or value; names file and key.
    """
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    for dotted, value in (overrides or {}).items():
        *parents, leaf = dotted.split(".")
        node = table
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    try:
        return TrainingRecipe.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        raise RecipeError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
