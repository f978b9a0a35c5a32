"""Which pictures something is for, as data: DICOM keywords and their values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, Field

__all__ = ["Fact", "Match", "misfits"]

Fact: TypeAlias = str | int | float | Sequence[str | int | float] | None
Values: TypeAlias = dict[str, tuple[str | int, ...]]

_KEYWORD = re.compile(r"[A-Z][A-Za-z0-9]*")


def _checked(match: Values) -> Values:
    for keyword, values in match.items():
        if not _KEYWORD.fullmatch(keyword):
            raise ValueError(f"{keyword!r} is no DICOM keyword")
        if not values:
            raise ValueError(f"{keyword} has no value, so nothing could match")
    return match


Match: TypeAlias = Annotated[Values, Field(min_length=1), AfterValidator(_checked)]
"""DICOM keyword -> values; every keyword has to fit, by any of its values."""


def misfits(match: Mapping[str, Sequence[str | int]], facts: Mapping[str, Fact]) -> list[str]:
    """The keywords that do not fit; none where something is for such a picture.

    Args:
        match: As `Match`.
        facts: DICOM keyword -> value, or values, of which any may fit (Image Type).
    """
    return [keyword for keyword, allowed in match.items() if not _texts(facts.get(keyword)) & _texts(allowed)]


def _texts(fact: Fact) -> frozenset[str]:
    """The values of a fact as text, so that 1, "1" and " 1" are the same."""
    if fact is None:
        return frozenset()
    if isinstance(fact, str | int | float):
        return frozenset({str(fact).strip()})
    return frozenset(str(value).strip() for value in fact)
