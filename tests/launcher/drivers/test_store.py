"""What is stored of a teacher that judges rows of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import load_from_disk

from launcher.drivers import store
from launcher.drivers.store import _engine_of, _with_gpus_for_actors, parts_of
from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.several_teachers import several
from tests.helpers.tiny import save_tiny_t5
from uld_ds.data.sides import TextSide
from uld_ds.errors import UserError
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import Recipe, parse_recipe


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


def by_vllm(tree: dict[str, Any], **options: Any) -> Recipe:
    return parse_recipe(tree | {"store": {"engine": "vllm", "top": 32} | options})


def engine_of(recipe: Recipe) -> dict[str, Any] | None:
    settings = recipe.teacher_named()
    return _engine_of(recipe, settings, Pretrained.from_settings(settings, settings.key, runs=False))


def test_an_engine_in_actors_is_looked_at_before_anything_starts(
    tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "vllm_version", lambda _actors: "0.32.0")
    assert engine_of(parse_recipe(tiny_recipe)) is None
    facts = engine_of(by_vllm(tiny_recipe, top_ids=16))
    assert facts is not None
    known = {"engine": "vLLM", "version": "0.32.0", "top": 32, "precision": "fp32", "vocab_size": 600}
    assert known.items() <= facts.items() and facts["model"] == tiny_recipe["teacher"]["model"]
    with pytest.raises(UserError, match=r"store\.top_ids: 33 is more than the store\.top 32 that are asked; raise"):
        engine_of(by_vllm(tiny_recipe, top_ids=33))
    with pytest.raises(UserError, match=r"store\.top: 601 is more than the 600 ids of the model; lower it"):
        engine_of(by_vllm(tiny_recipe, top=601))
    with pytest.raises(UserError, match=r"objective\.teacher_temperature: 2 needs all logits"):
        engine_of(by_vllm(tiny_recipe | {"objective": {"uld": 1.0, "teacher_temperature": 2.0}}))
    place = {"url": "http://x", "api": "vllm"}
    served = {"model": tiny_recipe["teacher"]["model"], "source": "served", "server": place, "max_length": 256}
    with pytest.raises(UserError, match=r"store\.engine: 'vllm' has no effect: .* asked at teacher\.server"):
        engine_of(by_vllm(tiny_recipe | {"teacher": served}))
    save_tiny_t5(tmp_path / "t5", zoo.unigram_t5(), seed=1)
    t5 = tiny_recipe["teacher"] | {"model": str(tmp_path / "t5")}
    with pytest.raises(UserError, match=r"teacher\.model: .* has an encoder"):
        engine_of(by_vllm(tiny_recipe | {"teacher": t5}))


@pytest.mark.parametrize(
    ("accelerator", "there", "expected"),
    [("gpu", 0.0, 1.0), ("auto", 0.0, 0.0), ("auto", 2.0, 1.0), ("cpu", 2.0, 0.0)],
)
def test_gpus_are_the_actors_and_the_workers_need_none(
    tiny_recipe: dict[str, Any], monkeypatch: pytest.MonkeyPatch, accelerator: str, there: float, expected: float
) -> None:
    monkeypatch.setattr(store.ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": there})
    tiny_recipe["cluster"] |= {"accelerator": accelerator, "accelerator_type": "H100"}
    recipe, actors = _with_gpus_for_actors(by_vllm(tiny_recipe))
    assert recipe.cluster.accelerator == "cpu" and recipe.cluster.accelerator_type == "H100"
    assert actors == recipe.store.actors and actors.gpus == expected
    own, _ = _with_gpus_for_actors(by_vllm(tiny_recipe, actors={"gpus": 4.0}))
    assert own.store.actors.gpus == 4.0
