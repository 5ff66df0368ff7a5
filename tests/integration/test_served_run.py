"""Runs of the commands with a served teacher: it goes, comes back, and the run goes on as if nothing had been."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.engine_server import TOKEN, EngineServer
from tests.helpers.killable import Training, losses, same_weights
from tests.helpers.store_command import built_store
from uld_ds.runs.status import run_status


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], server: EngineServer) -> dict[str, Any]:
    own = {key: value for key, value in tiny_recipe["teacher"].items() if key in ("model", "max_length")}
    place = {"url": server.url, "api": "vllm", "top": 16, "patience": 1.0}
    tiny_recipe["teacher"] = own | {"source": "served", "server": place}
    tiny_recipe["objective"] = {"ce": 1.0, "uld": 0.5, "hybrid": 0.5, "top_ids": 16}
    tiny_recipe["training"] |= {"steps": 9, "checkpoint_every": 2}
    tiny_recipe["evaluation"] = {}
    return tiny_recipe


def named(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    return recipe | {"run": recipe["run"] | {"name": name}}


@pytest.mark.slow
def test_a_server_that_is_gone_ends_the_run_at_its_last_checkpoint(
    recipe: dict[str, Any], server: EngineServer, tmp_path: Path
) -> None:
    calm = Training(named(recipe, "calm"), tmp_path)
    assert calm.finish() == 0, calm.errors()[-3000:]
    asked = len(server.scored)
    # Of the 2 probes, 12 held-out and 48 training examples those of the sixth step are under way, and the server goes.
    server.fault = lambda number: "delay" if number > asked + 54 else None

    def take_down() -> None:
        while len(server.scored) < asked + 58:
            time.sleep(0.005)
        server.stop()

    thread = threading.Thread(target=take_down, daemon=True)
    thread.start()
    first = Training(named(recipe, "rough"), tmp_path)
    status = first.finish()
    assert status == 1, first.errors()[-3000:]
    said = first.errors().splitlines()[-1]
    assert said.startswith(f"error: 'rough' stopped: the teacher's server at {server.url} has given no answer for 1 s")
    assert "the last checkpoint is good; bring it back, and run the same command again" in said
    run_dir = first.run_dir
    done = len(losses(run_dir))
    assert 1 <= done < 6
    server.fault = lambda _number: None
    server.start()
    second = Training(named(recipe, "rough"), tmp_path)
    assert second.finish() == 0, second.errors()[-3000:]
    assert losses(run_dir) == losses(calm.run_dir)
    assert same_weights(run_dir / "export", calm.run_dir / "export")
    # How long steps wait is told; and that there is a token, nowhere.
    wait = run_status(run_dir).server_wait
    assert wait is not None and 0 <= wait < 1
    metrics = (run_dir / "metrics").rglob("*.jsonl")
    assert any("teacher_wait_seconds" in file.read_text() for file in metrics)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 50
    assert [str(file) for file in files if TOKEN.encode() in file.read_bytes()] == []
    facts = json.loads((run_dir / "teacher" / "server.json").read_text())
    assert facts["engine"] == "vLLM" and facts["top"] == 16


@pytest.mark.slow
def test_a_store_is_built_and_learned_from(recipe: dict[str, Any], server: EngineServer, tmp_path: Path) -> None:
    facts = built_store(recipe | {"store": {"top_ids": 16}}, tmp_path / "store")
    assert (facts["examples"], facts["top_ids"], facts["mean_relative_error"]) == (48, 16, None)
    assert facts["served"]["engine"] == "vLLM" and facts["served"]["vocab_size"] == 600
    online = Training(named(recipe, "asking"), tmp_path)
    assert online.finish() == 0, online.errors()[-3000:]
    server.stop()
    recipe["teacher"] |= {"source": "stored", "path": str(tmp_path / "store")}
    stored = Training(named(recipe, "reading"), tmp_path)
    assert stored.finish() == 0, stored.errors()[-3000:]
    # What a run caches is what the store holds; lengths, by which examples are dealt to forwards, are not the same.
    found, asked = ([*losses(run.run_dir).items()] for run in (stored, online))
    assert len(found) == 9
    for (step, (mine,)), (number, (theirs,)) in zip(found, asked, strict=True):
        assert step == number and mine == pytest.approx(theirs, rel=1e-5)
