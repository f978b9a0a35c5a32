"""TOML files that a pydantic model checks: one way to read them, and one to say what is wrong with them."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from medenhance_dicom.errors import MedenhanceError

Model = TypeVar("Model", bound=BaseModel)


def read_table(path: Path, error: type[MedenhanceError]) -> dict[str, Any]:
    """The keys and values of a TOML file.

    Raises:
        error: It cannot be read, or is not TOML; names the file.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as found:
        raise error(f"{path}: {found.strerror}") from found
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as found:
        raise error(f"{path}: not TOML: {found}") from found


def checked(model: type[Model], table: dict[str, Any], source: Path | str, error: type[MedenhanceError]) -> Model:
    """The table as a model.

    Args:
        model: What it has to be.
        table: Keys and values.
        source: What a mistake is blamed on.
        error: What a mistake is raised as.

    Raises:
        error: A key is missing, unknown or wrong; names the source and every such key.
    """
    try:
        return model.model_validate(table)
    except ValidationError as found:
        said = [": ".join(filter(None, [".".join(map(str, e["loc"])), e["msg"]])) for e in found.errors()]
        raise error(f"{source}: {'; '.join(said)}") from None
