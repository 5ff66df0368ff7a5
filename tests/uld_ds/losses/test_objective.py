"""The chunked objective against plain autograd over sorted probabilities in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Gemma2Config, PreTrainedConfig

from tests.helpers.objective_case import (
    ANSWERS,
    NOTHING,
    SEGMENTS,
    STOPS,
    VOCAB,
    Case,
    segments_of,
    side_batch,
)
from tests.helpers.segments import micro_batch_of, teacher_of
from uld_ds.batches import SideBatch
from uld_ds.losses.normalization import RowWeights
from uld_ds.losses.objective import Objective, entropy
from uld_ds.models import row_model
from uld_ds.models.row_model import Head, LogitMap, RowModel, choose_head_path
from uld_ds.recipe import ObjectiveSettings
from uld_ds.recipe.rollouts import RolloutSettings, taught
from uld_ds.spectrum.spectrum import Spectrum


@pytest.fixture(params=[1000, 4], ids=["one chunk", "six chunks"])
def _chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_model, "_CHUNK_ELEMENTS_CPU", request.param * VOCAB)


@pytest.mark.usefixtures("_chunk_rows")
@pytest.mark.parametrize(
    "case",
    [
        {},
        {"bias": True},
        {"logit_map": LogitMap(scale=0.25)},
        {"logit_map": LogitMap(cap=5.0), "bias": True},
        {"logit_map": LogitMap(scale=1.5, cap=4.0)},
        {"reach_head": False},
    ],
    ids=["linear", "bias", "scaled", "capped", "scaled and capped", "logits only"],
)
@pytest.mark.parametrize(
    "settings",
    [
        {"uld": 1.5},
        {"ce": 0.0, "uld": 1.0},
        {"uld": 0.0},
        {"method": "exact"},
        {"student_temperature": 2.0, "teacher_temperature": 3.0},
        {"merge": "chain"},
        {"merge": "chain", "ce": 0.0},
        {"merge": "chain", "method": "exact", "student_temperature": 2.0},
        {"ce": 0.0, "uld": 0.0, "likelihood": 1.0},
        {"uld": 0.3, "likelihood": 0.7, "likelihood_temperature": 100.0},
        {"merge": "chain", "likelihood": 2.0},
        {"method": "exact", "likelihood": 2.0},
        {"ce": 0.0, "uld": 0.0, "classical": 1.0, "top_ids": 20},
        {"classical": 0.5, "likelihood": 0.3, "top_ids": 50},
        {"classical": 0.5, "method": "exact", "student_temperature": 2.0, "top_ids": 20},
    ],
    ids=[
        *("closed form", "uld only", "ce only", "exact", "temperatures", "chain", "chain alone", "chain exact"),
        *("likelihood alone", "all three", "chain and likelihood", "exact and likelihood"),
        *("classical alone", "all four", "classical by autograd"),
    ],
)
def test_loss_and_gradients_equal_autograd_in_float64(case: dict[str, Any], settings: dict[str, Any]) -> None:
    objective = ObjectiveSettings(**settings)
    example = Case(**case)
    expected_loss, expected = example.reference(objective)
    loss, gradients, _ = example.chunked(objective)
    assert loss == pytest.approx(expected_loss, rel=2e-5)
    assert len(gradients) == len(expected) == 1 + (example.weight is not None) + (example.bias is not None)
    for gradient, wanted in zip(gradients, expected, strict=True):
        error = (gradient.double() - wanted).norm() / wanted.norm()
        assert error < 1e-4, float(error)


def test_parts_add_up_to_the_loss() -> None:
    settings = ObjectiveSettings(ce=0.7, uld=1.3, likelihood=0.4, classical=0.6)
    loss, _, parts = Case().chunked(settings)
    weighed = 0.7 * parts["ce"].item() + 1.3 * parts["uld"].item() + 0.4 * parts["likelihood"].item()
    weighed += 0.6 * parts["classical"].item()
    assert weighed == pytest.approx(loss, rel=1e-6)
    assert not {"likelihood", "classical"} & set(Case().chunked(ObjectiveSettings())[2])
    assert 0 < parts["uld_head"].item() <= parts["uld"].item()
    assert 0 <= parts["uld_bound"].item() < 1e-3
    wanted = entropy(Case().teacher) @ Case().weights.segments
    assert parts["teacher_entropy"].item() == pytest.approx(wanted.item(), rel=1e-3)
    assert parts["student_entropy_rows"].item() == ANSWERS


@pytest.mark.usefixtures("_chunk_rows")
@pytest.mark.parametrize(
    ("settings", "of_own"),
    [
        ({"ce": 0.7, "uld": 1.5}, {"uld": 1.5}),
        ({"ce": 0.7, "uld": 1.5}, {"ce": 0.2, "uld": 0.4}),
        ({"uld": 0.0}, {"uld": 1.0}),
        ({"uld": 1.5, "merge": "chain"}, {"uld": 0.3}),
        ({"uld": 1.5}, {"ce": 0.3}),
        ({"uld": 1.5, "method": "exact", "student_temperature": 2.0}, {"uld": 0.3}),
        ({"uld": 0.3, "likelihood": 0.7, "likelihood_temperature": 4.0}, {"likelihood": 2.0}),
        ({"uld": 0.3, "likelihood": 0.7}, {"uld": 0.3}),
        ({"uld": 0.3}, {"likelihood": 0.7}),
        ({"uld": 0.0, "top_ids": 20}, {"classical": 0.9}),
        ({"uld": 0.3, "classical": 0.5, "likelihood": 0.3, "top_ids": 20}, {"classical": 0.9, "ce": 0.1}),
    ],
    ids=[
        *("without ce", "all less", "another term", "chain", "ce alone", "by autograd"),
        *("more likelihood", "no likelihood", "likelihood", "classical", "all"),
    ],
)
@pytest.mark.parametrize("own", [[False, True], [True, False], [True, True]])
def test_given_and_own_answers_in_one_batch_are_the_sum_of_two_losses(
    settings: dict[str, Any], of_own: dict[str, float], own: list[bool]
) -> None:
    objective, rollouts = ObjectiveSettings(**settings), RolloutSettings(objective=of_own)
    example = Case()
    of_given = example.only([not sampled for sampled in own]).reference(objective)
    of_sampled = example.only(own).reference(objective.model_copy(update=rollouts.weights(objective)))
    loss, gradients, parts = example.chunked(objective, rollouts=rollouts, own=own)
    assert loss == pytest.approx(of_given[0] + of_sampled[0], rel=2e-5)
    for gradient, *wanted in zip(gradients, of_given[1], of_sampled[1], strict=True):
        expected = wanted[0] + wanted[1]
        assert (gradient.double() - expected).norm() / expected.norm() < 1e-4
    # What is told of the terms is of all answers, whatever they weigh.
    plain = example.chunked(taught(objective, rollouts))[2]
    for name, value in parts.items():
        torch.testing.assert_close(value, plain[name], rtol=0, atol=0, equal_nan=True)


def test_given_answers_alone_are_trained_as_without_rollouts() -> None:
    objective = ObjectiveSettings(uld=0.3, likelihood=0.7, classical=0.5)
    loss, gradients, _ = Case().chunked(objective)
    rollouts = RolloutSettings(objective={"classical": 2.0})
    same, others, _ = Case().chunked(objective, rollouts=rollouts, own=[False, False])
    assert same == loss
    for gradient, other in zip(gradients, others, strict=True):
        assert torch.equal(gradient, other)


def test_no_segment_leaves_cross_entropy() -> None:
    example = Case()
    segments = segments_of(NOTHING, NOTHING, ANSWERS)
    hidden, weight = example.leaves(torch.float32)
    spectrum = Spectrum.from_logits(example.teacher)[:0]
    weights = RowWeights(example.weights.answers, torch.empty(0))
    loss, parts = Objective(ObjectiveSettings())(
        hidden,
        Head(weight, None, LogitMap()),
        micro_batch_of(example.batch, segments),
        teacher_of(spectrum),
        weights,
    )
    assert loss.item() == pytest.approx(parts["ce"].item())
    assert parts["uld"].item() == 0


def test_unaligned_spectra_are_refused() -> None:
    example = Case()
    hidden, weight = example.leaves(torch.float32)
    spectrum = Spectrum.from_logits(example.teacher)[:3]
    with pytest.raises(ValueError, match="3 teacher rows for 9 segments"):
        Objective(ObjectiveSettings())(
            hidden,
            Head(weight, None, LogitMap()),
            micro_batch_of(example.batch, segments_of(SEGMENTS, STOPS, ANSWERS)),
            teacher_of(spectrum),
            example.weights,
        )


def test_terms_without_what_they_need_are_refused() -> None:
    with pytest.raises(ValueError, match=r"needs \['classical'\]"):
        Objective(ObjectiveSettings(classical=1.0))
    example = Case()
    hidden, weight = example.leaves(torch.float32)
    with pytest.raises(ValueError, match=r"\['projection'\] need to know how the two vocabularies relate"):
        Objective.from_settings(ObjectiveSettings(projection=1.0))
    with pytest.raises(ValueError, match="classical needs the teacher's top-k tokens"):
        Objective.from_settings(ObjectiveSettings(classical=1.0))(
            hidden,
            Head(weight, None, LogitMap()),
            micro_batch_of(example.batch, segments_of(SEGMENTS, STOPS, ANSWERS)),
            teacher_of(Spectrum.from_logits(example.teacher)),
            example.weights,
        )


def test_gradients_of_many_bf16_chunks_add_up_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    # A thousand chunks of the same row: a bf16 sum stops growing at 256 of them.
    monkeypatch.setattr(row_model, "_CHUNK_ELEMENTS_CPU", VOCAB)
    example = Case()
    gradients = []
    for repeats in (1, 1000):
        weight = example.leaves(torch.bfloat16)[1]
        hidden = example.hidden[:1].bfloat16().repeat(repeats, 1).requires_grad_()
        batch = side_batch(example.batch.answer_ids[:1].repeat(repeats))
        segments = segments_of(torch.tensor([0]), torch.tensor([1]), repeats)
        weights = RowWeights(torch.ones(repeats), torch.ones(1))
        spectrum = Spectrum.from_logits(example.teacher[:1])
        loss, _ = Objective(ObjectiveSettings(uld=0.0))(
            hidden, Head(weight, None, LogitMap()), micro_batch_of(batch, segments), teacher_of(spectrum), weights
        )
        loss.backward()
        assert weight.grad is not None
        assert weight.grad.dtype == torch.bfloat16
        gradients.append(weight.grad.float())
    assert (gradients[1] / 1000 - gradients[0]).norm() / gradients[0].norm() < 5e-3


def rows_and_whole(model: RowModel) -> tuple[Tensor, Tensor]:
    """Logits at four positions the model's own way, and as RowModel gives them."""
    ids = torch.arange(3, 9)[None]
    batch = SideBatch(ids, torch.ones_like(ids), NOTHING, NOTHING, NOTHING, NOTHING)
    rows = torch.tensor([0, 2, 5, 1])
    with torch.no_grad():
        return model.lm(ids).logits[0, rows], model(batch, rows, lambda hidden, head: head.logits(hidden))


def test_capped_logits_are_those_of_the_model() -> None:
    config = Gemma2Config(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        final_logit_softcapping=2.0,
        initializer_range=0.5,
    )
    model = RowModel(AutoModelForCausalLM.from_config(config).eval())
    choose_head_path(model, model, torch.device("cpu"), "student")
    assert model.direct_head
    whole, rows = rows_and_whole(model)
    torch.testing.assert_close(rows, whole)


class _Shifted(nn.Module):
    """A body and a head, and something after them that no configuration tells of."""

    def __init__(self, lm: nn.Module) -> None:
        super().__init__()
        self.inner = lm
        self.config: PreTrainedConfig = lm.config  # type: ignore[assignment]
        self.base_model = lm.base_model

    def get_output_embeddings(self) -> nn.Module:
        return self.inner.get_output_embeddings()  # type: ignore[operator]

    def forward(self, input_ids: Tensor, **rest: Any) -> Any:
        output = self.inner(input_ids=input_ids, **rest)
        output.logits = output.logits + torch.arange(output.logits.shape[-1])
        return output


def test_a_head_that_is_not_all_falls_back_to_whole_logits(tiny_teacher: Any, caplog: pytest.LogCaptureFixture) -> None:
    model = RowModel(_Shifted(AutoModelForCausalLM.from_pretrained(tiny_teacher)))  # type: ignore[arg-type]
    choose_head_path(model, model, torch.device("cpu"), "student")
    assert not model.direct_head
    assert "student: logits are not head(body)" in caplog.text
    whole, rows = rows_and_whole(model)
    torch.testing.assert_close(rows, whole)
