"""An actor's weights are those that a call names, whatever it had before."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.rollout_sampler import SlowSampler, noted
from uld_ds.workers.rollout_actor import RolloutActor

PROMPTS = [(11, np.array([5, 9, 31], np.int32)), (2**62, np.array([7], np.int32))]


@pytest.fixture
def actor(tmp_path: Path) -> RolloutActor:
    return RolloutActor(lambda: SlowSampler(str(tmp_path / "journal")))


def log_probs(folder: Path, prompt: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """In float64, in one forward over all tokens."""
    lm = AutoModelForCausalLM.from_pretrained(folder).double()
    whole = torch.from_numpy(np.concatenate([prompt, ids]).astype(np.int64))
    with torch.no_grad():
        of_all = lm(whole[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return of_all.gather(1, whole[len(prompt) :, None])[:, 0].numpy()


def test_answers_are_of_the_weights_that_are_named(
    actor: RolloutActor, tmp_path: Path, tiny_student: Path, tiny_teacher: Path
) -> None:
    found = {}
    for version, folder in [("a-1", tiny_student), ("a-2", tiny_teacher), ("a-3", tiny_student)]:
        assert actor.load(version, str(folder)) == version
        found[version] = actor.sample(version, str(folder), PROMPTS)
        for (_, prompt), (ids, said, ended) in zip(PROMPTS, found[version], strict=True):
            assert ids.dtype == np.int32 and len(ids) == 6 and not ended
            np.testing.assert_allclose(said, log_probs(folder, prompt, ids), atol=1e-5)
    # Loaded once each, and not again by the question.
    assert [line[1:] for line in noted(tmp_path / "journal") if line[1] == "load"] == [
        ["load", tiny_student.name],
        ["load", tiny_teacher.name],
        ["load", tiny_student.name],
    ]
    for name in (0, 1):
        assert found["a-1"][name][0].tolist() == found["a-3"][name][0].tolist()
    assert found["a-1"][0][0].tolist() != found["a-2"][0][0].tolist()


def test_an_actor_made_anew_finds_the_weights_itself(tmp_path: Path, actor: RolloutActor, tiny_student: Path) -> None:
    first = actor.sample("a-1", str(tiny_student), PROMPTS)
    other = RolloutActor(lambda: SlowSampler(str(tmp_path / "other"))).sample("a-1", str(tiny_student), PROMPTS)
    for (ids, said, _), (same_ids, same, _) in zip(first, other, strict=True):
        assert ids.tolist() == same_ids.tolist() and said.tobytes() == same.tobytes()


def test_weights_that_did_not_come_are_not_taken_for_there(
    actor: RolloutActor, tmp_path: Path, tiny_student: Path
) -> None:
    actor.load("a-1", str(tiny_student))
    with pytest.raises(RuntimeError, match="weights cannot be taken"):
        actor.load("a-2", str(tmp_path / "nowhere"))
    # Neither the new ones, nor the old ones under the new name: both are loaded when they are asked for.
    with pytest.raises(RuntimeError, match="weights cannot be taken"):
        actor.sample("a-2", str(tmp_path / "nowhere"), PROMPTS)
    actor.sample("a-1", str(tiny_student), PROMPTS)
    assert [line[2] for line in noted(tmp_path / "journal") if line[1] == "load"] == [
        tiny_student.name, "nowhere", "nowhere", tiny_student.name
    ]  # fmt: skip


def test_it_names_its_process(actor: RolloutActor) -> None:
    assert actor.process() == os.getpid()


def test_errors_are_of_a_class_that_every_python_knows(tmp_path: Path) -> None:
    class OwnError(Exception):
        """Of a library that the workers may not have."""

    def make() -> SlowSampler:
        raise OwnError("no such\n architecture")

    log_file = tmp_path / "logs" / "rollouts-0.log"
    handlers = logging.root.handlers[:]
    try:
        actor = RolloutActor(make, str(log_file))
        with pytest.raises(RuntimeError) as caught:
            actor.load("a-1", "nowhere")
    finally:
        logging.basicConfig(handlers=handlers, force=True)
    assert type(caught.value) is RuntimeError and caught.value.__cause__ is None
    assert str(caught.value) == "weights cannot be taken (OwnError: no such architecture)"
    assert "OwnError: no such" in log_file.read_text()
