"""A store of what a served teacher says: built, interrupted, and read by a stored teacher."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import load_from_disk

from launcher.commands.store import _asked
from launcher.drivers.store import _engine_of, part_of
from tests.helpers.engine_server import EngineServer
from tests.helpers.engines import CPU, prepared_job
from tests.helpers.teacher_outputs import same_bits
from uld_ds.data.sides import TextSide
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.errors import UserError
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import Recipe, parse_recipe
from uld_ds.teachers.outputs_codec import roundtrip
from uld_ds.teachers.served.engine import token_variable
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.utils.distributed import Ranks
from uld_ds.workers.store import StoreBuild, StoreJob, StorePart, _asked_for


def recipe_of(tiny_recipe: dict[str, Any], url: str, folder: Path, **server: Any) -> Recipe:
    own = {key: value for key, value in tiny_recipe["teacher"].items() if key in ("model", "max_length")}
    own |= {
        "source": "stored",
        "path": str(folder / "store"),
        "server": {"url": url, "api": "vllm", "top": 24} | server,
    }
    # As the command reads a recipe whose runs learn from the store.
    return parse_recipe(_asked(tiny_recipe | {"teacher": own, "store": {"top_ids": 16}}, None))


def build(recipe: Recipe, folder: Path, url: Path, shards: int | None = None) -> tuple[StorePart, Any]:
    settings = recipe.teacher_named()
    teacher = Pretrained.from_settings(settings, settings.key, runs=False)
    side = TextSide.of_model(teacher, settings, "teacher")
    facts = _engine_of(recipe, settings, teacher)
    part = part_of("data.train", recipe.data.train, str(url), recipe, side, folder, engine=facts)
    job = StoreJob(recipe, folder, teacher.place, False, {}, [part], facts)
    job = StoreJob.from_config(job.to_config())
    rows = load_from_disk(str(Path(part.rows) / "rows"))
    source = _asked_for(job, Ranks(0, 1), CPU)(TeacherBatcher(rows, padding=0, max_tokens=4096))
    building = StoreBuild(job.parts[0], rows, source, Ranks(0, 1), CPU, None)
    if shards is not None:
        for number in range(shards):
            examples = list(building._writer.examples_of_shard(number))
            building._writer.write_shard(number, list(building._stored(examples, source.answers(examples, 0))))
    else:
        building.run()
    return part, source


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_a_store_holds_what_the_server_says(tiny_recipe: dict[str, Any], tiny_teacher: Path, tmp_path: Path) -> None:
    with EngineServer(tiny_teacher) as server:
        recipe = recipe_of(tiny_recipe, server.url, tmp_path)
        assert recipe.teacher_named().source == "served"
        _, source = build(recipe, tmp_path / "run", tmp_path / "store")
        probes = 2
        assert len(server.scored) == 48 + probes
        said = source.answers([0, 7, 47], 0)
        store = SpectrumStore.open(str(tmp_path / "store"), with_top=True)
        for mine, stored in zip(said, store.read([0, 7, 47]), strict=True):
            assert same_bits(stored.tokens, roundtrip(mine))
            assert stored.tokens.top is not None and stored.tokens.top.k == 16
            unknown = stored.tokens.spectrum.unknown_mass
            assert unknown is not None and torch.isfinite(unknown).all() and bool((unknown > 0).all())
        manifest = store.manifest
        # Nobody was told a whole distribution, against which a codec is measured.
        assert (manifest.examples, manifest.top_ids, manifest.measured) == (48, 16, None)
        facts = {"engine": "vLLM", "version": "0.0.1", "model": "teacher", "top": 24, "precision": None}
        facts["vocab_size"] = 600
        assert manifest.served is not None and manifest.served.model_dump() == facts
        # Interrupted, and with faults: the same bytes.
        faults = {60: "reset", 70: "503", 80: "cut"}
        server.fault = lambda number: faults.get(number)
        build(recipe, tmp_path / "run", tmp_path / "again", shards=1)
        _, source = build(recipe, tmp_path / "run", tmp_path / "again")
        assert len(server.faults) == 3
        assert contents(tmp_path / "again") == contents(tmp_path / "store")


def test_more_ids_than_are_asked_for(tiny_recipe: dict[str, Any], tiny_teacher: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tiny_recipe, "http://127.0.0.1:9", tmp_path, top=15)
    settings = recipe.teacher_named()
    with pytest.raises(UserError, match=r"store\.top_ids: 16 is more than the teacher\.server\.top 15 that are asked"):
        _engine_of(recipe, settings, Pretrained.from_settings(settings, settings.key, runs=False))


def test_who_is_asked_for_a_store() -> None:
    server = {"url": "http://x", "api": "vllm"}
    assert _asked({"teacher": {"source": "stored", "server": server}}, None)["teacher"]["source"] == "served"
    assert _asked({"teacher": {"source": "stored"}}, None)["teacher"]["source"] == "online"
    several = [{"name": "a", "server": server, "source": "stored"}, {"name": "b", "source": "stored"}]
    assert [own["source"] for own in _asked({"teachers": several}, "a")["teachers"]] == ["served", "stored"]
    assert [own["source"] for own in _asked({"teachers": several}, "b")["teachers"]] == ["stored", "online"]


def test_a_server_of_one_of_several_teachers_is_asked_with_its_own_token(
    tiny_recipe: dict[str, Any], tiny_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers get the recipe of that teacher alone, in which it has no name."""
    monkeypatch.setenv("ULD_DS_TEACHER_TOKEN", "of another server")
    monkeypatch.setenv("ULD_DS_TEACHER_TOKEN_LARGE", "its own")
    with EngineServer(tiny_teacher, token="its own") as server:
        own = {"model": str(tiny_teacher), "max_length": 256, "path": str(tmp_path / "store")}
        own |= {"source": "served", "server": {"url": server.url, "api": "vllm", "top": 24}}
        tree = {key: value for key, value in tiny_recipe.items() if key != "teacher"}
        tree["teachers"] = [{"name": "large", **own}, {"name": "other", **tiny_recipe["teacher"]}]
        whole = parse_recipe(tree)
        settings, recipe = whole.teacher_named("large"), whole.alone_with("large")
        facts = _engine_of(recipe, settings, Pretrained.from_settings(settings, settings.key, runs=False))
        job = StoreJob(recipe, tmp_path, str(tiny_teacher), False, {}, [], facts, token_variable(settings))
        job = StoreJob.from_config(job.to_config())
        rows = prepared_job(tiny_recipe, tmp_path / "data").split("train").rows
        source = _asked_for(job, Ranks(0, 1), CPU)(TeacherBatcher(rows, padding=0, max_tokens=4096))
        assert len(source.answers([0], 0)[0].log_probs) > 0
        source.close()
