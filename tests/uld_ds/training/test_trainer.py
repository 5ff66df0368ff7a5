"""The training loop on a real engine: what it tells, when it saves, how it ends, and that it needs no Ray."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.ranks import run_on_ranks
from uld_ds.checkpointing.state import TrainState
from uld_ds.errors import UserError
from uld_ds.evaluation.held_out import Evaluation
from uld_ds.recipe import parse_recipe
from uld_ds.training.callbacks import TrainerCallback, Who
from uld_ds.training.local import _student_digest
from uld_ds.training.step_result import StepResult
from uld_ds.training.trainer import Trainer, step_seed


class Diary(TrainerCallback):
    """Writes down every event."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_start(self, state: TrainState, total_steps: int, *, resumed: bool) -> None:
        self.lines.append(f"start {state.step}/{total_steps}{' resumed' if resumed else ''}")

    def on_evaluation(self, state: TrainState, who: Who, evaluation: Evaluation | None) -> None:
        self.lines.append(f"{who} {state.step}")

    def on_step(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        self.lines.append(f"step {state.step}")

    def on_skipped(self, state: TrainState, result: StepResult) -> None:
        self.lines.append(f"skipped {state.step}")

    def before_checkpoint(self, state: TrainState) -> None:
        self.lines.append(f"before checkpoint {state.step}")


class Shelf:
    """Checkpoints of the loop's own state; the engine keeps its weights."""

    def __init__(self) -> None:
        self.states: list[tuple[TrainState, bool]] = []

    def restore(self, student: Any, warn: Callable[[str], None]) -> TrainState | None:
        return copy.deepcopy(self.states[-1][0]) if self.states else None

    def save(self, student: Any, state: TrainState, metrics: dict[str, Any], *, best: bool = False) -> None:
        self.states.append((copy.deepcopy(state), best))

    def wait(self) -> None:
        pass


def runs(recipe: dict[str, Any], folder: str) -> dict[str, Any]:
    """One engine: told to stop after two steps, then to the end; another one whose steps are not finite."""
    whole = Trainer.from_recipe(recipe, callbacks=[])
    shelf, found = Shelf(), {}

    def trainer(diary: Diary, **options: Any) -> Trainer:
        evaluators = whole._evaluators
        return Trainer(
            whole.engine,
            whole.batches,
            whole.recipe,
            evaluators=evaluators,
            checkpoints=shelf,
            callbacks=[diary],
            **options,
        )

    first, second = Diary(), Diary()
    stopping = trainer(first, should_stop=lambda: "step 2" in first.lines)
    stopped = stopping.run()
    finished = trainer(second).run()
    found["stopped"] = (stopped.outcome.value, stopped.bits_after, stopping.history)
    found["finished"] = (finished.outcome.value, finished.bits_after)
    found["diaries"] = first.lines, second.lines
    found["saved"] = [(state.step, best, state.best_step) for state, best in shelf.states]
    found["bits"] = finished.state.bits_before
    found["export"] = sorted(file.name for file in whole.save(f"{folder}/student").iterdir())
    whole.engine.close()

    training = recipe["training"] | {"optimizer": {"learning_rate": 1e30}, "max_skipped_steps": 2}
    third = Diary()
    lost = Trainer.from_recipe(
        recipe | {"training": training, "run": {**recipe["run"], "name": "lost"}}, callbacks=[third]
    )
    result = lost.run()
    found["kept"] = [entry["step"] for entry in lost.history]
    found["lost"] = (result.outcome.value, result.state.skipped_in_a_row, third.lines[-3:])
    return found


def test_what_happens_in_which_order(tiny_recipe: dict[str, Any], tmp_path: Any) -> None:
    recipe = tiny_recipe | {"cluster": tiny_recipe["cluster"] | {"workers": 1}}
    (found,) = run_on_ranks(runs, 1, recipe, str(tmp_path))
    first, second = found["diaries"]
    assert first == ["start 0/6", "teacher 0", "before 0", "step 1", "step 2", "before checkpoint 2"]
    assert found["stopped"] == ("stopped", None, [])
    assert second == [
        "start 2/6 resumed",
        "step 3",
        "student 3",
        "before checkpoint 3",
        "step 4",
        "step 5",
        "step 6",
        "before checkpoint 6",
        "after 6",
    ]
    assert found["finished"][0] == "finished"
    assert found["finished"][1] < found["bits"], "the student learned nothing"
    # Of what is evaluated at a checkpoint, the first is the best so far; the last step has no evaluation of its own.
    assert found["saved"] == [(2, False, None), (3, True, 3), (6, False, 3)]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(found["export"])
    outcome, in_a_row, end = found["lost"]
    # Of the trainers made of parts none keeps its steps in memory; of the other, those that were applied.
    assert found["kept"] == [1]
    assert (outcome, in_a_row) == ("gave up", 2)
    assert [line.split()[0] for line in end[-2:]] == ["skipped", "skipped"]


def test_another_number_of_workers_than_processes_is_refused(tiny_recipe: dict[str, Any]) -> None:
    code = (
        "import sys, json; from uld_ds import Trainer; from uld_ds.errors import UserError\n"
        "try:\n    Trainer.from_recipe(json.loads(sys.argv[1]))\n"
        "except UserError as error:\n    print(error)\n"
        "print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(tiny_recipe)], capture_output=True, text=True)
    # DeepSpeed says on standard output which accelerator it has found.
    assert done.stdout.splitlines()[-2:] == [
        "cluster.workers: 2, but this is one of 1 process(es); set it to 1, start as many with torchrun, or run "
        "`uld-ds train`",
        "False",
    ], done.stderr


def test_a_bad_recipe_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(UserError, match=r"training\.stepz"):
        Trainer.from_recipe({"run": {"name": "x"}, "training": {"stepz": 1}})


def test_a_new_student_is_made_anew_for_other_settings(tiny_recipe: dict[str, Any]) -> None:
    def digest(**changes: Any) -> str:
        return _student_digest(parse_recipe({key: tiny_recipe[key] | changes.get(key, {}) for key in tiny_recipe}))

    assert digest() == digest(training={"steps": 9}) == digest(run={"name": "another"})
    others = [digest(run={"seed": 1}), digest(student={"max_length": 99}), digest(data={"turns": "last"})]
    assert len({digest(), *others}) == 4
    # The file that a tokenizer is trained on may have changed under its name.
    tokenizer = {
        "model": None,
        "from_config": {"model_type": "llama"},
        "tokenizer": {"train": "bpe", "vocab_size": 300},
    }
    before, named = digest(student=tokenizer), digest()
    with Path(tiny_recipe["data"]["train"]["path"]).open("a") as file:
        file.write('{"prompt": "more", "answer": "text"}\n')
    assert digest(student=tokenizer) != before
    assert digest() == named


def test_seeds_differ_by_step_and_rank() -> None:
    seeds = {step_seed(seed, step, rank) for seed in (0, 1) for step in (0, 1, 2) for rank in (0, 1)}
    assert len(seeds) == 12
    assert step_seed(0, 0, 0) == step_seed(0, 0, 0)
