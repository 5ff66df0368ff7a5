"""Runs whose students learn from their own answers: interrupted at any moment, they learn the same, bit for bit."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tests.helpers.file_checkpoints import FileCheckpoints
from tests.helpers.ranks import run_on_ranks
from tests.helpers.tiny import save_tiny_model, tiny_recipe_in
from uld_ds.checkpointing.state import TrainState
from uld_ds.recipe import parse_recipe
from uld_ds.rollouts.summary import RoundJudgment, RoundSummary, ShownAnswer
from uld_ds.training.assembly import assemble
from uld_ds.training.callbacks import History, TrainerCallback
from uld_ds.training.local import prepare_job
from uld_ds.training.trainer import Trainer

EVERY, STEPS = 2, 6


class InterruptedRunError(Exception):
    """A run that ends in the middle of something."""


class Interrupt(TrainerCallback):
    """Ends the run when a round has so many answers, or a step is done."""

    def __init__(self, moment: Mapping[str, int]) -> None:
        self._moment = moment

    def on_sampling(self, state: TrainState, number: int, done: int, asked: int) -> None:
        if number == self._moment.get("round") and done >= self._moment["answers"]:
            raise InterruptedRunError

    def on_step(self, state: TrainState, metrics: Mapping[str, float]) -> None:
        if state.step == self._moment.get("step"):
            raise InterruptedRunError


class Rounds(TrainerCallback):
    """Keeps what is told of rounds."""

    def __init__(self) -> None:
        self.summaries: list[RoundSummary] = []
        self.judgments: list[RoundJudgment] = []
        self.shown: dict[int, list[ShownAnswer]] = {}

    def on_round(self, state: TrainState, summary: RoundSummary) -> None:
        self.summaries.append(summary)

    def on_round_judged(self, state: TrainState, judgment: RoundJudgment) -> None:
        self.judgments.append(judgment)

    def on_shown_answers(self, state: TrainState, number: int, answers: Sequence[ShownAnswer]) -> None:
        self.shown[number] = list(answers)


def attempt(recipe: dict[str, Any], checkpoints: str, moment: dict[str, int]) -> dict[str, Any]:
    """One attempt at a run, on this rank: what its steps and rounds were, and its weights at the end."""
    parsed = parse_recipe(recipe)
    job, ranks, device = prepare_job(parsed)
    kept = FileCheckpoints(Path(checkpoints))
    parts = assemble(job, ranks=ranks, device=device)
    history, rounds = History(), Rounds()
    trainer = Trainer(
        parts.engine,
        parts.batches,
        parsed,
        rounds=parts.rounds,
        checkpoints=kept,
        callbacks=[history, rounds, Interrupt(moment)],
    )
    ended = True
    try:
        trainer.run()
    except InterruptedRunError:
        ended = False
    weights = parts.engine.student._zero3_consolidated_16bit_state_dict() if ended else None
    digest = None
    if weights is not None:
        named = sorted(weights.items())
        digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for _, tensor in named)).hexdigest()
    steps = {int(step["step"]): step["train/loss"] for step in history.steps}
    return {"ended": ended, "losses": steps, "weights": digest, "rounds": rounds, "steps": history.steps}


def answers_in(folder: Path) -> dict[str, Any]:
    """All answers of a run's rounds, by file: their tokens, log-probabilities and rows as plain values."""
    return {f"{file.parent.name}/{file.name}": pq.read_table(file).to_pydict() for file in folder.rglob("*.parquet")}


@pytest.fixture
def recipe(tmp_path: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    teacher = save_tiny_model(tmp_path / "teacher", rows, kind="bpe", vocab_size=400, seed=1)
    student = save_tiny_model(tmp_path / "student", rows, kind="unigram", vocab_size=500, seed=2, attention_dropout=0.2)
    tree = tiny_recipe_in(tmp_path, teacher, student, rows)
    tree["objective"] = {"uld": 0.0, "projection": 0.9, "top_ids": 16}
    tree["training"] |= {"steps": STEPS, "checkpoint_every": 1}
    tree["cluster"]["workers"] = 1
    tree["evaluation"] = {}
    tree["student"]["deepspeed"] = "student_zero3_cpu.json"
    tree["rollouts"] = {"share": 0.5, "every": EVERY, "max_new_tokens": 5, "batch_size": 3}
    return tree


def without_dropout(folder: Path) -> None:
    config = folder / "student" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"attention_dropout": 0.0}))


def named(recipe: dict[str, Any], name: str, **rollouts: Any) -> dict[str, Any]:
    changed = copy.deepcopy(recipe)
    changed["run"]["name"] = name
    changed["rollouts"] |= rollouts
    return changed


def run(recipe: dict[str, Any], tmp_path: Path, moment: dict[str, int] | None = None, ranks: int = 1) -> dict[str, Any]:
    """An attempt on so many ranks; what the first one saw."""
    recipe["cluster"]["workers"] = ranks
    found = run_on_ranks(attempt, ranks, recipe, str(tmp_path / recipe["run"]["name"]), moment or {})
    return found[0]


MOMENTS = {
    "amid a round": {"round": 1, "answers": 6},
    "amid the steps of a round": {"step": 3},
    "before any answer": {"round": 1, "answers": 0},
    "before a round is trained on": {"round": 1, "answers": 8},
    "at the end of a round": {"step": 4},
}


@pytest.mark.parametrize(
    ("ahead", "moments"),
    [
        (0, ["amid a round", "amid the steps of a round"]),
        pytest.param(0, list(MOMENTS)[2:], marks=pytest.mark.slow),
        # Only the first round is waited for while it is sampled.
        pytest.param(1, ["amid the steps of a round", "at the end of a round"], marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_answers_and_learns_the_same(
    recipe: dict[str, Any], tmp_path: Path, ahead: int, moments: list[str]
) -> None:
    whole = run(named(recipe, "whole", ahead=ahead), tmp_path)
    assert whole["ended"]
    assert sorted(whole["losses"]) == list(range(1, STEPS + 1))
    expected = answers_in(tmp_path / "runs" / "whole")
    assert len(expected) == 3 * 3  # eight answers a round, three of them together
    usable = [problem == "" for part in expected.values() for problem in part["problem"]]
    assert 3 <= sum(usable) < len(usable) == 24  # both kinds are there
    for what in moments:
        name = what.replace(" ", "-")
        first = run(named(recipe, name, ahead=ahead), tmp_path, MOMENTS[what])
        assert not first["ended"], what
        second = run(named(recipe, name, ahead=ahead), tmp_path)
        assert second["ended"], what
        assert first["losses"] | second["losses"] == whole["losses"], what
        assert second["weights"] == whole["weights"], what
        assert answers_in(tmp_path / "runs" / name) == expected, what


def test_another_number_of_ranks_gets_the_same_answers(recipe: dict[str, Any], tmp_path: Path) -> None:
    without_dropout(tmp_path)  # of which each rank has its own
    whole = run(named(recipe, "whole"), tmp_path)
    run(named(recipe, "more"), tmp_path, {"round": 0, "answers": 3})
    there = answers_in(tmp_path / "runs" / "more")
    assert list(there) == ["round-000000/batch-00000.parquet"]
    second = run(named(recipe, "more"), tmp_path, {"step": 1}, ranks=2)
    expected, found = answers_in(tmp_path / "runs" / "whole"), answers_in(tmp_path / "runs" / "more")
    assert sorted(found) == [f"round-000000/batch-0000{batch}.parquet" for batch in range(3)]
    assert found == {name: expected[name] for name in found}
    # Sums over ranks add up in another order.
    assert second["losses"][1] == pytest.approx(whole["losses"][1], rel=1e-5)


def test_rounds_tell_what_student_and_teacher_make_of_their_answers(recipe: dict[str, Any], tmp_path: Path) -> None:
    without_dropout(tmp_path)
    recipe["training"]["steps"] = 3
    found = run(named(recipe, "whole", every=1, max_new_tokens=3), tmp_path)
    rounds: Rounds = found["rounds"]
    assert [summary.round for summary in rounds.summaries] == [0, 1, 2]
    assert [summary.step for summary in rounds.summaries] == [0, 1, 2]
    assert [judgment.step for judgment in rounds.judgments] == [1, 2, 3]
    for summary, judgment, step in zip(rounds.summaries, rounds.judgments, found["steps"], strict=True):
        assert summary.answers == 4
        assert summary.usable + sum(summary.left_out.values()) == 4
        # The student that learns in a round's first step is the one that sampled it: both give the same to its tokens.
        assert step["rollouts/step_student_nats_per_byte"] == pytest.approx(summary.student_nats_per_byte, rel=1e-5)
        assert judgment.student_nats_per_byte == summary.student_nats_per_byte
        assert judgment.teacher_nats_per_byte == step["rollouts/step_teacher_nats_per_byte"]
        shown = rounds.shown[summary.round]
        assert len(shown) == summary.usable
        num_bytes = sum(answer.bytes for answer in shown)
        for whose, whole in (("student", summary), ("teacher", judgment)):
            nats = sum(getattr(answer, f"{whose}_nats") for answer in shown)
            assert nats / num_bytes == pytest.approx(getattr(whole, f"{whose}_nats_per_byte"), rel=1e-6)


def test_a_run_may_learn_from_its_own_answers_alone(recipe: dict[str, Any], tmp_path: Path) -> None:
    # Prompts need no answers then.
    file = tmp_path / "train.jsonl"
    file.write_text("".join(f'{{"prompt": "What is {number}?"}}\n' for number in range(20)))
    found = run(named(recipe, "own", share=1.0, samples_per_prompt=2, objective={"projection": 1.0}), tmp_path)
    assert found["ended"]
    assert all(torch.isfinite(torch.tensor(loss)) for loss in found["losses"].values())
    assert all("train/bits_per_byte" not in step for step in found["steps"])
    parts = answers_in(tmp_path / "runs" / "own")
    prompts = [number for part in parts.values() for number in part["prompt_number"]]
    assert len(prompts) == 8 * STEPS
    assert all(prompts.count(number) % 2 == 0 for number in set(prompts))


def from_recipe(recipes: list[dict[str, Any]]) -> list[dict[int, float]]:
    """Trainers without checkpoints, one after the other: the losses of each."""
    found = []
    for recipe in recipes:
        trainer = Trainer.from_recipe(recipe, callbacks=[])
        trainer.run()
        found.append({int(step["step"]): step["train/loss"] for step in trainer.history})
        trainer.engine.close()
    return found


def test_a_trainer_without_checkpoints_learns_from_no_answers_of_an_earlier_one(
    recipe: dict[str, Any], tmp_path: Path
) -> None:
    del recipe["student"]["deepspeed"]
    recipe["training"]["steps"] = 2 * EVERY
    alone, first, second = named(recipe, "alone"), named(recipe, "cell"), named(recipe, "cell")
    first["training"]["optimizer"]["learning_rate"] = 3e-2
    # The rounds of a command's run of that name, which it will resume from.
    kept = tmp_path / "runs" / "cell" / "rollouts" / "round-000000"
    kept.mkdir(parents=True)
    (kept / "batch-00000.parquet").write_bytes(b"its own")
    (losses,) = run_on_ranks(from_recipe, 1, [alone, first, second])
    assert losses[1] != losses[0]
    assert losses[2] == losses[0]
    assert [file.read_bytes() for file in (tmp_path / "runs" / "cell" / "rollouts").rglob("*.*")] == [b"its own"]
