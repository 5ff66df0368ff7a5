"""A run of the command whose answers are sampled by vLLM in an environment of its own, killed and resumed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from tests.helpers.killable import Training, losses
from tests.helpers.tiny import save_tiny_model
from tests.helpers.vllm_python import vllm_python
from uld_ds.runs.progress import read_events

# A round for each step: what it says of its answers and what the step finds are of the same weights then.
STEPS, OWN, BATCHES = 6, 8, 2
# Short answers out of many tokens: most of what a random student says is text then.
MAX_NEW_TOKENS, VOCAB_SIZE = 6, 1000
# Sizes that the attention kernels of vLLM's build for CPUs know.
SIZES = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64}


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    student = save_tiny_model(tmp_path / "s", rows, kind="bpe", vocab_size=VOCAB_SIZE, seed=2, tied=True, **SIZES)
    tiny_recipe["student"]["model"] = str(student)
    tiny_recipe["objective"] = {"uld": 0.0, "ce": 1.0, "likelihood": 0.5}
    tiny_recipe["training"] |= {"steps": STEPS, "checkpoint_every": 2, "batch_size": 2 * OWN}
    tiny_recipe["evaluation"] = {}
    tiny_recipe["cluster"] |= {"workers": 1}
    tiny_recipe["rollouts"] = {
        "engine": "vllm",
        "every": 1,
        "max_new_tokens": MAX_NEW_TOKENS,
        "batch_size": OWN // BATCHES,
        "actors": {"python": vllm_python(), "cpus": 1},
    }
    return tiny_recipe


def batches_in(run_dir: Path) -> dict[str, tuple[int, bytes]]:
    """Every batch of every round by its place, with the time when it was written."""
    files = sorted((run_dir / "rollouts").glob("round-*/batch-*.parquet"))
    return {f"{file.parent.name}/{file.name}": (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def versions_taken(run_dir: Path) -> int:
    """How often an actor has taken new weights: once for each round that it was asked about."""
    return (run_dir / "logs" / "rollouts-0.log").read_text().count("samples with weights")


def events_of(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run_dir / "progress.jsonl") if event["event"] == kind]


def answers_of(run_dir: Path, number: int) -> list[dict[str, Any]]:
    """The answers of a round in the order of their slots."""
    files = sorted((run_dir / "rollouts" / f"round-{number:06d}").glob("batch-*.parquet"))
    assert len(files) == BATCHES
    return sorted((row for file in files for row in pq.read_table(file).to_pylist()), key=lambda row: row["slot"])


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_run_by_vllm_samples_no_answer_twice(recipe: dict[str, Any], tmp_path: Path) -> None:
    first = Training(recipe, tmp_path)
    run_dir = first.run_dir
    assert first.wait_until(lambda: first.last_committed() and first.steps() >= 3, 900), first.errors()[-3000:]
    first.kill()
    before = batches_in(run_dir)
    whole = {name for name, count in Counter(name.split("/")[0] for name in before).items() if count == BATCHES}
    assert 3 <= len(whole) < STEPS
    taken = versions_taken(run_dir)

    second = Training(recipe, tmp_path)
    assert second.finish(900) == 0, second.errors()[-3000:]
    after = batches_in(run_dir)
    assert {name: after[name] for name in before} == before, "what was sampled is read, and not written again"
    assert versions_taken(run_dir) - taken == STEPS - len(whole), "vLLM was asked for what was missing alone"
    assert len(after) == STEPS * BATCHES
    assert sorted(losses(run_dir)) == list(range(1, STEPS + 1))
    assert all(len(values) == 1 for values in losses(run_dir).values()), "a step that was done twice learned the same"

    check_answers(recipe, run_dir)
    check_that_training_agrees(run_dir)

    third = Training(recipe, tmp_path)
    assert third.finish(300) == 0, third.errors()[-3000:]
    assert third.facts() == json.loads((run_dir / "result.json").read_text())
    assert batches_in(run_dir) == after
    assert versions_taken(run_dir) - taken == STEPS - len(whole)


def check_answers(recipe: dict[str, Any], run_dir: Path) -> None:
    """Every slot of every round has an answer, and its tokens are what a model of this vocabulary can say."""
    end = AutoTokenizer.from_pretrained(recipe["student"]["model"]).eos_token_id
    texts, ended = set(), 0
    for number in range(STEPS):
        answers = answers_of(run_dir, number)
        assert [answer["slot"] for answer in answers] == list(range(OWN))
        for answer in answers:
            ids, log_probs = answer["sampled_ids"], np.array(answer["sampled_log_probs"])
            assert 1 <= len(ids) == len(log_probs) <= MAX_NEW_TOKENS
            assert min(ids) >= 0 and max(ids) < VOCAB_SIZE
            assert np.isfinite(log_probs).all() and (log_probs <= 0).all()
            assert answer["ended"] == (ids[-1] == end) and end not in ids[:-1]
            assert answer["ended"] or len(ids) == MAX_NEW_TOKENS
            texts.add(tuple(ids))
            ended += answer["ended"]
    assert len(texts) > STEPS, "draws differ from prompt to prompt and from round to round"
    print(f"{ended} of {STEPS * OWN} answers ended, {len(texts)} different ones")


def check_that_training_agrees(run_dir: Path) -> None:
    """What vLLM says of a round's tokens is what the student that learns from them says, with the weights of then."""
    rounds = {event["round"]: event for event in events_of(run_dir, "round")}
    steps = {event["step"]: event for event in events_of(run_dir, "step")}
    assert sorted(rounds) == list(range(STEPS))
    usable = {number: facts for number, facts in rounds.items() if facts["usable"]}
    assert len(usable) > STEPS // 2, "or there is little to compare"
    for number, facts in usable.items():
        found = steps[number + 1]["rollouts/step_student_nats_per_byte"]
        assert facts["student_nats_per_byte"] == pytest.approx(found, rel=1e-4)
    for facts in rounds.values():
        assert facts["answers"] == OWN
        assert facts["usable"] + sum(facts["left_out"].values()) == OWN
    assert {event["round"] for event in events_of(run_dir, "round_judged")} == set(usable)
