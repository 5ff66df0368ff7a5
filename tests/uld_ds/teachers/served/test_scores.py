"""Replies of both protocols: read against a forward of the same weights, and refused where they are not that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.helpers.engine_server import EngineServer
from uld_ds.recipe import ServerSettings
from uld_ds.teachers.served.client import Client
from uld_ds.teachers.served.engine import APIS, ServedEngine
from uld_ds.teachers.served.scores import BadReplyError, NotLogProbsError, checked

IDS = [5, 9, 17, 300, 2, 4, 599]
TOP = 8


@pytest.fixture(params=["vllm", "sglang"])
def server(request: pytest.FixtureRequest, tiny_teacher: Path) -> Iterator[EngineServer]:
    with EngineServer(tiny_teacher, api=request.param) as running:
        yield running


@pytest.fixture
def engine(server: EngineServer) -> Iterator[ServedEngine]:
    settings = ServerSettings.model_validate({"url": server.url, "api": server.api, "top": TOP})
    opened = ServedEngine(Client(settings, None), settings, "teacher", 600)
    yield opened
    opened.close()


@pytest.mark.parametrize("positions", [[1, 2, 3, 4, 5, 6], [6], [2, 5], []])
def test_scores_are_those_of_a_forward(engine: ServedEngine, tiny_teacher: Path, positions: list[int]) -> None:
    found = engine.score(IDS, np.array(positions, dtype=np.int64)).result(30)
    model = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32)
    with torch.no_grad():
        told = model(torch.tensor([IDS])).logits[0].double().log_softmax(1).numpy()
    assert found.log_probs.shape == (len(positions),) and found.top.shape == found.ids.shape == (len(positions), TOP)
    for row, position in enumerate(positions):
        expected = told[position - 1]
        order = np.lexsort((np.arange(600), -expected))[:TOP]
        assert found.ids[row].tolist() == order.tolist()
        np.testing.assert_allclose(found.top[row], expected[order], atol=2e-6)
        assert found.log_probs[row] == pytest.approx(expected[IDS[position]], abs=2e-6)
    assert found.top.dtype == found.log_probs.dtype == np.float32


@pytest.mark.parametrize(
    ("server", "fault", "said"),
    [
        ("vllm", "ids", "its prompt_token_ids are not those that were sent"),
        ("vllm", "short", "it has 6 prompt_logprobs for 7 tokens"),
        ("vllm", "nan", "a log-probability at token 6 is not a number"),
        ("vllm", "keys", "its entry at token 6 is not about id 599, which stands there"),
        ("vllm", "rows", "its entry at token 6 has 3 tokens, and 8 were asked for"),
        ("vllm", "above", "a log-probability at token 6 is above 0"),
        ("vllm", "dropped", "it has no prompt_logprobs: whatever answers there drops that wish without a word"),
        ("sglang", "ids", "its input_token_logprobs are about other ids than those that were sent"),
        ("sglang", "short", "it has 6 input_token_logprobs for 7 tokens"),
        ("sglang", "nan", "a log-probability at token 6 is not a number"),
        ("sglang", "rows", "its flat log-probabilities have shape [6, 8], and 8 were asked for"),
    ],
    indirect=["server"],
)
def test_what_is_not_what_was_asked_for_is_refused(
    engine: ServedEngine, server: EngineServer, fault: str, said: str
) -> None:
    server.fault = lambda _number: fault
    with pytest.raises(BadReplyError) as caught:
        engine.score(IDS, np.arange(1, len(IDS))).result(30)
    assert str(caught.value).startswith(said)
    assert len(server.scored) == 1  # it is no accident of the network


def test_logits_are_no_log_probabilities(engine: ServedEngine, server: EngineServer) -> None:
    server.touched = "logits"
    with pytest.raises(NotLogProbsError):
        engine.score(IDS, np.arange(1, len(IDS))).result(30)


def row(*probabilities: float) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(divide="ignore"):
        return np.array([-1.0], np.float32), np.log(np.array([probabilities], np.float32))


@pytest.mark.parametrize(
    ("probabilities", "said"),
    [
        ((0.7, 0.4), "makes probabilities sum to more than 1"),
        # Two of ten tokens at 0.1 and 0.05: eight others hold at most 0.4, and 0.85 is left.
        ((0.1, 0.05), "leaves more for other tokens than they can hold"),
        ((0.0, 0.0), "leaves more for other tokens than they can hold"),
    ],
)
def test_masses_that_cannot_be(probabilities: tuple[float, ...], said: str) -> None:
    log_probs, top = row(*probabilities)
    with pytest.raises(NotLogProbsError, match=said):
        checked(log_probs, np.array([[3, 4]]), top, np.array([1]), 10)


@pytest.mark.parametrize(("ids", "said"), [([3, 10], "none of 10"), ([3, -1], "none of 10"), ([3, 3], "there twice")])
def test_ids_that_cannot_be(ids: list[int], said: str) -> None:
    log_probs, top = row(0.5, 0.4)
    with pytest.raises(BadReplyError, match=said):
        checked(log_probs, np.array([ids]), top, np.array([1]), 10)


def test_rows_are_put_in_order_and_impossible_tokens_stay() -> None:
    _, top = row(0.25, 0.0, 0.25, 0.5)
    found = checked(np.array([-np.inf], np.float32), np.array([[7, 1, 5, 9]]), top, np.array([1]), 10)
    assert found.ids.tolist() == [[9, 5, 7, 1]]  # of equally likely ones the lower id comes first
    assert np.isneginf(found.top[0, -1]) and np.isneginf(found.log_probs[0])
    # Rounding may leave a certain token a little above certain.
    certain = checked(np.array([1e-4], np.float32), np.array([[1]]), np.array([[1e-4]], np.float32), np.array([1]), 10)
    assert certain.log_probs.tolist() == [0.0] and certain.top.tolist() == [[0.0]]


@pytest.mark.parametrize("reply", [None, [], {}, {"choices": []}, {"choices": [{}, {}]}, {"meta_info": {}}, "x"])
@pytest.mark.parametrize("api", ["vllm", "sglang"])
def test_replies_of_another_form(reply: Any, api: str) -> None:
    with pytest.raises(BadReplyError):
        APIS[api]().read(reply, IDS, np.arange(1, 7), TOP, 600)
