"""Whole runs with a served teacher: the losses of an online one, and the same weights whatever goes wrong."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.engine_server import TOKEN, TRANSIENT, EngineServer
from tests.helpers.ranks import run_on_ranks
from uld_ds.errors import FinalError
from uld_ds.training.trainer import Trainer

TERMS = {"ce": 1.0, "uld": 0.0, "likelihood": 0.5, "hybrid": 0.4, "projection": 0.9, "top_ids": 16}


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    tiny_recipe["objective"] = TERMS
    tiny_recipe["cluster"] |= {"workers": 1}
    tiny_recipe["student"] |= {"deepspeed": "student_zero2_cpu.json"}
    return tiny_recipe


def served(recipe: dict[str, Any], server: EngineServer, name: str, **teacher: Any) -> dict[str, Any]:
    own = {key: value for key, value in recipe["teacher"].items() if key not in ("precision", "max_tokens_per_forward")}
    place = {"url": server.url, "api": server.api, "top": 16, "concurrency": 4, "patience": 60.0}
    own |= {"source": "served", "server": place | teacher.pop("server", {})} | teacher
    return recipe | {"run": recipe["run"] | {"name": name}, "teacher": own}


def run(recipe: dict[str, Any], target: str, log_file: str | None = None) -> dict[str, Any]:
    """Train to the end: losses, waits, held-out bits per byte, and the export's digest; or what it ended with."""
    if log_file is not None:
        logging.basicConfig(filename=log_file, level=logging.DEBUG, force=True)
    try:
        trainer = Trainer.from_recipe(recipe, callbacks=[])
        result = trainer.run()
    except FinalError as error:
        return {"error": str(error), "kind": type(error).__name__}
    trainer.save(target)
    weights = (Path(target) / "model.safetensors").read_bytes()
    return {
        "losses": [step["train/loss"] for step in trainer.history],
        "waits": [step.get("teacher_wait_seconds") for step in trainer.history],
        "tokens": [step["teacher_tokens"] for step in trainer.history],
        "bits": (result.state.bits_teacher, result.bits_after),
        "weights": hashlib.sha256(weights).hexdigest(),
    }


@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_a_run_is_that_of_an_online_teacher(
    recipe: dict[str, Any], server: EngineServer, tmp_path: Path, api: str
) -> None:
    server.api = api
    server.facts["owned_by"] = api
    online = run_on_ranks(run, 1, recipe, str(tmp_path / "online"))[0]
    found = run_on_ranks(run, 1, served(recipe, server, "served"), str(tmp_path / "served"))[0]
    # Both have been through the cache, whose log-probabilities are steps of one grid.
    assert found["losses"] == pytest.approx(online["losses"], rel=2e-4)
    assert found["bits"] == pytest.approx(online["bits"], rel=2e-4)
    # Neither is asked about tokens behind the last answer token; the online teacher reads them all the same.
    assert [ours <= theirs for ours, theirs in zip(found["tokens"], online["tokens"], strict=True)] == [True] * 6
    assert online["waits"] == [None] * 6 and all(wait >= 0 for wait in found["waits"])


def test_faults_change_no_bit(recipe: dict[str, Any], server: EngineServer, tmp_path: Path) -> None:
    calm = run_on_ranks(run, 1, served(recipe, server, "calm"), str(tmp_path / "calm"))[0]
    asked = len(server.scored)
    # The examination before a run asks twice, and is not what is disturbed here.
    faults = {asked + 2 + 3 * number: fault for number, fault in enumerate(TRANSIENT * 2)}
    server.fault = lambda number: faults.get(number)
    log = tmp_path / "log"
    rough = run_on_ranks(run, 1, served(recipe, server, "rough"), str(tmp_path / "rough"), str(log))[0]
    assert sorted(server.faults) == sorted(TRANSIENT * 2)
    assert rough["weights"] == calm["weights"] and rough["losses"] == calm["losses"]
    assert rough["bits"] == calm["bits"]
    # In all that is written of a run, its folder and its log, there is no token.
    files = [log, *(file for file in (tmp_path / "runs").rglob("*") if file.is_file())]
    assert "it is asked again" in log.read_text()
    assert not any(TOKEN.encode() in file.read_bytes() for file in files)
    kept = json.loads((tmp_path / "runs" / "rough" / "teacher" / "server.json").read_text())
    facts = {"engine": "vLLM", "version": "0.0.1", "model": "teacher", "top": 16, "vocab_size": 600}
    assert kept == facts | {"precision": None}


def test_a_server_that_is_started_again_costs_seconds(
    recipe: dict[str, Any], server: EngineServer, tmp_path: Path
) -> None:
    calm = run_on_ranks(run, 1, served(recipe, server, "calm"), str(tmp_path / "calm"))[0]
    asked = len(server.scored)

    def restart() -> None:
        while len(server.scored) < asked + 20:
            time.sleep(0.005)
        server.stop()
        time.sleep(1.5)
        server.start()

    thread = threading.Thread(target=restart, daemon=True)
    thread.start()
    rough = run_on_ranks(run, 1, served(recipe, server, "rough"), str(tmp_path / "rough"))[0]
    thread.join(30)
    assert not thread.is_alive()
    assert rough["weights"] == calm["weights"] and rough["losses"] == calm["losses"]
    assert max(rough["waits"]) > 1 > max(calm["waits"])


@pytest.mark.parametrize(("fault", "said"), [("nan", "answers wrongly about example"), ("400", "refuses a request")])
def test_what_does_not_pass_ends_the_run(
    recipe: dict[str, Any], server: EngineServer, tmp_path: Path, fault: str, said: str
) -> None:
    server.fault = lambda number: fault if number == 30 else None
    training = recipe["training"] | {"steps": 4}
    changed = served(recipe | {"training": training, "cluster": recipe["cluster"] | {"workers": 2}}, server, "bad")
    first, second = run_on_ranks(run, 2, changed, str(tmp_path / "bad"))
    assert first == second and first["kind"] == "FinalError" and said in first["error"]


def test_a_run_whose_outputs_are_cached_needs_no_server(
    recipe: dict[str, Any], server: EngineServer, tmp_path: Path
) -> None:
    """Once it was begun, and every example was asked about."""
    del recipe["data"]["eval"]
    changed = served(recipe, server, "again")
    first = run_on_ranks(run, 1, changed, str(tmp_path / "first"))[0]
    server.stop()
    second = run_on_ranks(run, 1, changed, str(tmp_path / "second"))[0]
    assert second["weights"] == first["weights"] and second["losses"] == first["losses"]
    assert second["tokens"] == [0.0] * 6


def asked_ahead(recipe: dict[str, Any]) -> tuple[list[list[int]], list[list[int]]]:
    """What each step needs, and what a trainer has its teacher asked about before it."""
    trainer = Trainer.from_recipe(recipe, callbacks=[])
    source: Any = trainer.engine.teachings.teachers[0].source
    asked: list[list[int]] = []
    prefetch = source.prefetch

    def noting(examples: Any) -> None:
        asked.append(list(examples))
        prefetch(examples)

    source.prefetch = noting
    trainer.run()
    windows = [trainer.batches.window(step) for step in range(trainer.total_steps)]
    return [[example for micro_batch in window for example in micro_batch.examples] for window in windows], asked


def test_the_next_steps_are_asked_about_while_one_is_computed(recipe: dict[str, Any], server: EngineServer) -> None:
    changed = served(recipe, server, "ahead", cache=False)
    needed, asked = run_on_ranks(asked_ahead, 1, changed)[0]
    assert len(asked) == len(needed) == 6
    for step, examples in enumerate(asked):
        assert examples == [example for own in needed[step : step + 3] for example in own]


def test_own_answers_are_judged_by_a_served_teacher(
    recipe: dict[str, Any], server: EngineServer, tmp_path: Path
) -> None:
    recipe["rollouts"] = {"share": 0.5, "every": 2, "max_new_tokens": 6}
    recipe["training"] |= {"steps": 4}
    online = run_on_ranks(run, 1, recipe, str(tmp_path / "online"))[0]
    found = run_on_ranks(run, 1, served(recipe, server, "served"), str(tmp_path / "served"))[0]
    # The first round samples from the same student; the second from students that differ in their last bits.
    assert found["losses"][:2] == pytest.approx(online["losses"][:2], rel=2e-4)
    assert len(found["losses"]) == 4 and all(loss < 100 for loss in found["losses"])
