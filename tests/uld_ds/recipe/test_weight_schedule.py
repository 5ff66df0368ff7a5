"""Weights that change while the student learns: their values, what they do to the loss, and to a run that resumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.engines import build, prepared_job, variant, window_of
from tests.helpers.objective_case import Case
from tests.helpers.ranks import run_on_ranks
from uld_ds.checkpointing.deepspeed_state import _TAG, host_state
from uld_ds.checkpointing.files import write_shard
from uld_ds.checkpointing.state import TrainState
from uld_ds.data.sampling import step_examples
from uld_ds.errors import UserError
from uld_ds.losses.objective import Objective
from uld_ds.recipe import ObjectiveSettings
from uld_ds.recipe.weight_schedule import check_schedule, scheduled_weights
from uld_ds.runs.job import Job
from uld_ds.training.engine import DistillationEngine

SCHEDULE: dict[str, Any] = {"ce": {"kind": "linear", "to": 0.2}, "uld": {"kind": "warmup", "steps": 0.5}}


def settings_of(**schedule: dict[str, Any]) -> ObjectiveSettings:
    return ObjectiveSettings.model_validate({"ce": 1.0, "uld": 0.8, "likelihood": 0.4, "schedule": schedule})


def weights(settings: ObjectiveSettings, name: str, total: int) -> list[float]:
    return [scheduled_weights(settings, step, total)[name] for step in range(total)]


def test_values_by_hand() -> None:
    share = settings_of(uld={"kind": "warmup", "steps": 0.5})
    assert weights(share, "uld", 8) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8])
    number = settings_of(uld={"kind": "warmup", "steps": 2})
    assert weights(number, "uld", 4) == pytest.approx([0.0, 0.4, 0.8, 0.8])
    falling = settings_of(uld={"kind": "linear", "to": 0.0}, likelihood={"kind": "linear", "to": 1.0})
    assert weights(falling, "uld", 5) == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    assert weights(falling, "likelihood", 4) == pytest.approx([0.4, 0.6, 0.8, 1.0])
    assert scheduled_weights(settings_of(), 3, 8) == {}


@given(
    total=st.integers(1, 3000),
    kind=st.sampled_from(["warmup", "linear"]),
    part=st.floats(0.001, 0.999),
    to=st.floats(0.0, 5.0),
)
def test_both_ends_are_met_and_nothing_turns_back(total: int, kind: str, part: float, to: float) -> None:
    rule = {"kind": "warmup", "steps": part} if kind == "warmup" else {"kind": "linear", "to": to}
    found = weights(settings_of(uld=rule), "uld", total)
    first, last = (0.0, 0.8) if kind == "warmup" else (0.8, to)
    assert found[0] == first
    if total > 1 + (kind == "warmup"):
        assert found[-1] == pytest.approx(last, rel=1.1 / total)
    moves = np.diff(found)
    assert (moves >= -1e-12).all() or (moves <= 1e-12).all()


def test_a_warmup_must_end_before_the_run_does() -> None:
    check_schedule(settings_of(uld={"kind": "warmup", "steps": 100}), 100)
    with pytest.raises(UserError, match=r"^objective\.schedule\.uld\.steps: 100 is more than the 99 optimizer steps"):
        check_schedule(settings_of(uld={"kind": "warmup", "steps": 100}), 99)


@pytest.mark.parametrize("step", [0, 3, 9])
@pytest.mark.parametrize("merge", ["first", "chain"])
def test_a_step_is_that_of_its_weights_bit_for_bit(step: int, merge: str) -> None:
    rules = {
        "uld": {"kind": "warmup", "steps": 6},
        "likelihood": {"kind": "linear", "to": 2.0},
        "ce": {"kind": "linear", "to": 0.1},
    }
    terms = {"ce": 1.0, "uld": 0.8, "likelihood": 0.4, "merge": merge}
    if merge == "first":
        terms |= {"classical": 0.6}
        rules |= {"classical": {"kind": "linear", "to": 0.0}}
    scheduled = ObjectiveSettings.model_validate(terms | {"schedule": rules})
    now = scheduled_weights(scheduled, step, 10)
    loss, gradients, parts = Case().chunked(scheduled, total_steps=10, step=step)
    # (A recipe's weight of 0 would leave the term out.)
    plain = ObjectiveSettings.model_validate(terms | {name: value or 1e-30 for name, value in now.items()})
    expected_loss, expected, expected_parts = Case().chunked(plain)
    assert loss == expected_loss
    assert all(torch.equal(found, wanted) for found, wanted in zip(gradients, expected, strict=True))
    # What is logged of each term has no weight, whatever the step.
    assert all(torch.equal(parts[name], expected_parts[name]) for name in expected_parts)


def test_a_schedule_needs_to_know_how_long_the_run_is() -> None:
    with pytest.raises(ValueError, match="needs the number of all steps"):
        Objective.from_settings(settings_of(uld={"kind": "linear", "to": 0.0}))


def logged(engine: DistillationEngine, job: Job, batcher: Any, numbers: range) -> list[dict[str, float]]:
    every = (np.asarray(step_examples(step, len(batcher), 8, 0)) for step in numbers)
    return [engine.train_step(window_of(job, batcher, indices, engine.ranks)).metrics() for indices in every]


def stopped_and_not(config: dict[str, Any], folder: str) -> dict[str, Any]:
    """Metrics and weights of a run that went through six steps, and of one that began anew after three."""
    job, found = Job.from_config(config), {}
    engine, batcher = build(job)
    found["before"] = logged(engine, job, batcher, range(3))
    write_shard(Path(folder), engine.ranks.rank, engine.ranks.size, host_state(engine.student, TrainState(step=3)))
    found["through"] = logged(engine, job, batcher, range(3, 6))
    found["through_weights"] = {name: value.clone() for name, value in engine.student.module.state_dict().items()}
    engine, batcher = build(job)
    engine.student.load_checkpoint(folder, tag=_TAG)
    found["again"] = logged(engine, job, batcher, range(3, 6))
    found["again_weights"] = engine.student.module.state_dict()
    return found


@pytest.mark.slow
def test_a_run_that_resumes_weighs_as_if_it_had_never_stopped(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = variant(tiny_recipe, workers=1, micro=4, normalize="token", stage="zero2")
    recipe["objective"] = {"ce": 1.0, "uld": 0.8, "schedule": SCHEDULE}
    config = prepared_job(recipe, tmp_path / "data").to_config()
    (found,) = run_on_ranks(stopped_and_not, 1, config, str(tmp_path / "checkpoint_000000003"))
    assert found["again"] == found["through"]
    assert all(torch.equal(value, found["again_weights"][name]) for name, value in found["through_weights"].items())
    # Of ten steps: two micro-batches each, and one weight for both.
    steps = found["before"] + found["through"]
    assert [step["train/weight_uld"] for step in steps] == pytest.approx([0.0, 0.16, 0.32, 0.48, 0.64, 0.8])
    assert [step["train/weight_ce"] for step in steps] == pytest.approx([1 - 0.8 * step / 9 for step in range(6)])
    for step in steps:
        weighed = step["train/weight_ce"] * step["train/ce"] + step["train/weight_uld"] * step["train/uld"]
        assert weighed == pytest.approx(step["train/loss"], rel=1e-6)
