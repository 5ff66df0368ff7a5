"""The recipe reference knows every key there is, as it is."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pydantic import BaseModel

from launcher.recipe_reference import _models, recipe_reference
from uld_ds.recipe import Recipe

PAGE = recipe_reference()


def keys_of(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}.{name}"
        for inner in _models(field.annotation):
            yield from keys_of(inner, f"{prefix}.{name}")


def test_every_key_is_there() -> None:
    wanted = {k for name, f in Recipe.model_fields.items() for m in _models(f.annotation) for k in keys_of(m, name)}
    found = set(re.findall(r"^\| `([\w.]+)` \|", PAGE, flags=re.M))
    assert found == wanted
    assert len(wanted) > 80


def test_a_row_says_type_default_and_meaning() -> None:
    rows = PAGE.splitlines()
    meaning = "Steps between checkpoints; the last step always makes one."
    assert f"| `training.checkpoint_every` | whole number | `100` | {meaning} |" in rows
    assert "| `student.precision` | `fp32` \\| `bf16` | `bf16` | Type the weights are held and multiplied in. |" in rows
    assert any(
        row.startswith("| `data.train.path` | text \\| list of text | required | One or more .json") for row in rows
    )
    assert "### data.train with `source: hub`" in rows


def test_tables_have_four_columns() -> None:
    for row in PAGE.splitlines():
        if row.startswith("|"):
            assert len(re.findall(r"(?<!\\)\|", row)) == 5, row
