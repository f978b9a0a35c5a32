"""A TOML file that is wrong is named with what is wrong in it, as the error that its reader promises."""

import pytest
from pydantic import BaseModel, ConfigDict

from medenhance_dicom.errors import ModelError, RecipeError
from medenhance_dicom.tables import checked, read_table


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    size: int


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    inner: Inner


def test_a_table_that_is_right(tmp_path):
    path = tmp_path / "one.toml"
    path.write_text('name = "ø"\n[inner]\nsize = 3\n', encoding="utf-8")
    assert checked(Outer, read_table(path, RecipeError), path, RecipeError) == Outer(name="ø", inner=Inner(size=3))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"name = ", "not TOML"),
        (b"name = '\xff'", "not TOML"),
        (b"name = 'a'", "inner: Field required"),
        (b"name = 1\n[inner]\nsize = 'x'\nsise = 2", "name: .*; inner.size: .*; inner.sise: Extra inputs"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, content, said):
    path = tmp_path / "one.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=rf"one\.toml: .*{said}"):
        checked(Outer, read_table(path, ModelError), path, ModelError)
