"""What is stored of a teacher that judges rows of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

from launcher.drivers.store import parts_of
from tests.helpers.several_teachers import several
from uld_ds.data.sides import TextSide
from uld_ds.errors import UserError
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import parse_recipe


def test_a_teacher_without_a_held_out_row_has_a_store_of_training_rows(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    tree = several(tiny_recipe, tmp_path, rows, routed=True)
    for teacher in tree["teachers"]:
        teacher["path"] = str(tmp_path / "stores" / teacher["name"])
    held_out = Path(tree["data"]["eval"]["path"])
    held_out.write_text(held_out.read_text().replace('"code"', '"general"'))
    whole, said = parse_recipe(tree), list[str]()

    def parts(name: str) -> dict[str, int]:
        settings = whole.teacher_named(name)
        side = TextSide.of_model(Pretrained.from_settings(settings, settings.key), settings, "teacher")
        found = parts_of(whole, settings, side, tmp_path / "x", said.append)
        return {part.name: len(load_from_disk(str(Path(part.rows) / "rows"))) for part in found}

    assert parts("code") == {"data.train": 16}
    assert said == ["teacher 'code' judges no held-out row: none are stored"]
    assert list(parts("general")) == ["data.eval", "data.train"]
    # Of training rows there must be some.
    train = Path(tree["data"]["train"]["path"])
    train.write_text(train.read_text().replace('"code"', '"general"'))
    with pytest.raises(UserError, match=r"data\.train: no row is judged by teacher 'code'"):
        parts("code")
