"""Logits at position i-1 predict token i, fixed by a model whose distribution is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.helpers.micro_batches import rows, teacher_batcher
from uld_ds.data.batching import Batcher
from uld_ds.losses.normalization import step_weights
from uld_ds.losses.objective import Objective
from uld_ds.models.row_model import RowModel, choose_head_path, log_probs_of
from uld_ds.recipe import ObjectiveSettings
from uld_ds.teachers.online import OnlineTeacher
from uld_ds.utils.distributed import Ranks

VOCAB = 1500
CPU = torch.device("cpu")


class Successor(nn.Module):
    """Is as good as certain that after token n comes token n + 1; the rows of test_windows.py are such sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(get_text_config=SimpleNamespace)
        self.head = nn.Linear(VOCAB, VOCAB, bias=False)
        self.head.weight.data = 30.0 * torch.eye(VOCAB).roll(1, 0)

    def base_model(self, input_ids: Tensor, **_rest: Any) -> Any:
        return SimpleNamespace(last_hidden_state=nn.functional.one_hot(input_ids, VOCAB).float())

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Tensor, **_rest: Any) -> Any:
        hidden = self.base_model(input_ids).last_hidden_state
        return SimpleNamespace(logits=hidden @ self.head.weight.T)


@pytest.fixture(scope="module", params=[True, False], ids=["head alone", "whole logits"])
def model(request: pytest.FixtureRequest) -> RowModel:
    model = RowModel(Successor())  # type: ignore[arg-type]
    choose_head_path(model, model, CPU, "student")
    assert model.direct_head
    model.direct_head = request.param
    return model


@pytest.mark.parametrize("merge", ["first", "chain"])
def test_a_model_that_knows_what_comes_next_has_no_loss(model: RowModel, merge: Any) -> None:
    batcher = Batcher(rows(), padding=7, merge=merge)
    (batch,) = batcher.window([np.arange(4)])
    side = batch.student
    with torch.no_grad():
        log_probs = model(side, side.answer_rows, log_probs_of(side.answer_ids))
    assert log_probs.abs().max() < 1e-9 * VOCAB

    teacher = OnlineTeacher(model, teacher_batcher(12), ranks=Ranks(0, 1), device=CPU)
    answers = teacher.answers(batch.examples, step=0)
    assert [len(tokens) for tokens in answers] == [3, 6, 3, 2]
    assert all(tokens.log_probs.abs().max() < 1e-9 * VOCAB for tokens in answers)

    # Both sides are certain wherever a segment is compared: no distance; and each token's cross-entropy is nothing.
    outputs = type(answers[0]).cat(answers).segments(batch.pairs[0].teacher)
    ((weights,),) = step_weights([batch], "token", lambda values: values)
    settings = ObjectiveSettings(merge=merge)

    def loss(hidden: Tensor, head: Any) -> Tensor:
        return Objective(settings)(hidden, head, batch.judged_by(0), outputs, weights)[0]

    assert model(side, side.answer_rows, loss).item() < 1e-5
    # One position off, and it would be certain of the wrong token.
    wrong = model(side, side.answer_rows + 1, log_probs_of(side.answer_ids))
    assert wrong.max() < -29
