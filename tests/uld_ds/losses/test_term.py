"""The whole loss with terms on other rows than where segments begin, or on some segments alone, in float64."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.completion import Spellings, completion_value
from tests.helpers.objective_case import ANSWERS, SECOND, SEGMENTS, STOPS, TEACHER_VOCAB, VOCAB, Case, segments_of
from tests.helpers.segments import teacher_of
from tests.helpers.waits import NoWaits
from uld_ds.alignment.vocabulary_mapping import VocabularyRelations, relate
from uld_ds.losses.objective import Objective
from uld_ds.losses.term import Compared
from uld_ds.losses.terms import identity_terms
from uld_ds.models import row_model
from uld_ds.recipe import ObjectiveSettings
from uld_ds.recipe.rollouts import RolloutSettings
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.tokenization.vocabulary import Vocabulary

K = 60


def words(number: int, seed: int, longest: int) -> Spellings:
    """So many different strings of few letters and spaces."""
    every = ["".join(letters) for n in range(1, longest + 1) for letters in product("ab c", repeat=n)]
    draw = np.random.default_rng(seed)
    return [every[n].encode() for n in draw.permutation(len(every))[:number]]


STUDENT, TEACHER = words(VOCAB, 0, 4), words(TEACHER_VOCAB, 1, 5)


def relations() -> VocabularyRelations:
    mine, theirs = (
        Vocabulary([f"{side}{n}" for n in range(len(entries))], entries, np.zeros(len(entries), bool), None)
        for side, entries in (("s", STUDENT), ("t", TEACHER))
    )
    return relate(mine, theirs)


def chunked(
    case: Case, settings: ObjectiveSettings, rollouts: RolloutSettings | None = None, own: list[bool] | None = None
) -> tuple[float, list[Tensor], dict[str, Tensor]]:
    leaves = case.leaves(torch.float32)
    top = TopTokens.from_logits(case.teacher, K)
    teacher = teacher_of(Spectrum.from_logits(case.teacher), case.teacher_log_probs, top)
    micro_batch = case.two_answers(segments_of(SEGMENTS, STOPS, ANSWERS), own)
    objective = Objective.from_settings(settings, relations(), rollouts=rollouts)
    loss, parts = objective(leaves[0], case.head(leaves), micro_batch, teacher, case.weights)
    loss.backward()
    return loss.item(), [leaf.grad for leaf in leaves if leaf.grad is not None], parts


def begun_case(**options: Any) -> Case:
    """A case whose segments begin with tokens that begin others, so that there is something to complete."""
    case = Case(**options)
    starts = [n for n, spelled in enumerate(STUDENT) if spelled and len(spelled) == 1]
    case.batch.answer_ids[SEGMENTS] = torch.tensor(starts)[torch.arange(len(SEGMENTS)) % len(starts)]
    return case


def completion(case: Case, logits: Tensor) -> Tensor:
    """[S] float64. The last token of an answer has no row after it: rows of the second one begin at SECOND."""
    p = case.teacher.double().softmax(1)
    values = []
    for number, row in enumerate(SEGMENTS.tolist()):
        after = row + 1
        if after in (SECOND, ANSWERS):
            values.append(torch.zeros((), dtype=torch.float64))
            continue
        token = int(case.batch.answer_ids[row])
        values.append(completion_value(STUDENT, TEACHER, p[number], K, token, logits[after]))
    return torch.stack(values)


@pytest.mark.parametrize("rows", [1000, 4], ids=["one chunk", "six chunks"])
@pytest.mark.parametrize("case", [{}, {"bias": True}, {"reach_head": False}], ids=["linear", "bias", "logits only"])
@pytest.mark.parametrize(
    "settings", [{"ce": 0.3, "uld": 0.0}, {"ce": 0.0, "uld": 0.5}, {"uld": 0.0, "method": "exact"}]
)
def test_completion_is_part_of_the_loss(
    case: dict[str, Any], settings: dict[str, Any], rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_model, "_CHUNK_ELEMENTS_CPU", rows * VOCAB)
    example = begun_case(**case)
    objective = ObjectiveSettings(**settings, completion=0.8, top_ids=K)
    leaves = example.leaves(torch.float64)
    values = completion(example, example.head(leaves).logits(leaves[0]))
    assert (values > 0).sum() >= 5, "most segments have something to complete"
    shares = example.weights.segments.double()
    (0.8 * values @ shares).backward()
    values = values.detach()
    without, plain = example.reference(ObjectiveSettings(**settings))
    loss, gradients, parts = chunked(example, objective)
    assert parts["completion"].item() == pytest.approx(float(values @ shares), rel=1e-5)
    assert loss == pytest.approx(without + 0.8 * float(values @ shares), rel=2e-5)
    for gradient, base, leaf in zip(gradients, plain, leaves, strict=True):
        assert leaf.grad is not None
        wanted = base + leaf.grad
        assert (gradient.double() - wanted).norm() / wanted.norm() < 1e-4


@pytest.mark.parametrize("own", [[False, True], [True, False]])
def test_own_answers_have_weights_of_their_own_for_what_is_completed(own: list[bool]) -> None:
    given = ObjectiveSettings(ce=0.0, uld=0.5, projection_divergence="reverse_kl", top_ids=K)
    rollouts = RolloutSettings(objective={"completion": 0.6, "projection": 0.4})
    case = begun_case()
    loss, gradients, parts = chunked(case, given, rollouts, own)
    of_given, first, _ = chunked(case.only([not answer for answer in own]), given)
    alone = given.model_copy(update={"uld": 0.0, "completion": 0.6, "projection": 0.4})
    of_own, second, own_parts = chunked(case.only(own), alone)
    assert loss == pytest.approx(of_given + of_own, rel=1e-5)
    assert 0 < own_parts["completion"] < parts["completion"], "the value is of all answers"
    for gradient, *summands in zip(gradients, first, second, strict=True):
        torch.testing.assert_close(gradient, sum(summands), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("term", ["projection", "hybrid", "completion"])
def test_segments_whose_student_token_is_white_space_can_be_left_out(term: str) -> None:
    case = Case()
    spaces = [n for n, spelled in enumerate(STUDENT) if spelled and spelled.isspace()]
    assert len(spaces) > 1
    case.batch.answer_ids[SEGMENTS[[1, 4]]] = torch.tensor(spaces[:2])
    weights: dict[str, Any] = {"ce": 0.0, "uld": 0.0, term: 1.0, "top_ids": K}
    _, _, all_parts = chunked(case, ObjectiveSettings(**weights))
    loss, gradients, parts = chunked(case, ObjectiveSettings(**weights, skip_whitespace_rows=True))
    left = torch.ones(len(SEGMENTS))
    left[[1, 4]] = 0
    case.weights = type(case.weights)(case.weights.answers, case.weights.segments * left)
    expected, wanted, _ = chunked(case, ObjectiveSettings(**weights))
    assert loss == pytest.approx(expected, rel=1e-6)
    assert parts[term].item() <= all_parts[term].item()
    for gradient, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "settings",
    [
        {"projection": 1.0},
        {"projection": 1.0, "projection_outcomes": "sets"},
        {"projection": 1.0, "projection_pick": "student"},
        {"hybrid": 1.0},
        {"completion": 1.0},
    ],
    ids=str,
)
def test_no_term_waits_for_the_device_chunk_by_chunk(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_model, "_CHUNK_ELEMENTS_CPU", 4 * VOCAB)
    objective, case, watched = ObjectiveSettings(uld=0.5, top_ids=K, **settings), begun_case(), []
    (term,) = identity_terms(objective, relations())
    inside = type(term).add

    def watch(*arguments: Any) -> Tensor:
        with NoWaits():
            watched.append(inside(*arguments))
        return watched[-1]

    monkeypatch.setattr(type(term), "add", watch)
    chunked(case, objective)
    assert len(watched) > 1 and torch.cat(watched).any()


def test_what_is_compared_knows_both_sides_tokens_and_the_rows_after() -> None:
    case = Case()
    segments = segments_of(SEGMENTS, STOPS, ANSWERS)
    micro_batch = case.two_answers(segments, None)
    # The teacher writes the third segment, 3 to 7 on the student's side, as one token, and the fifth, 8 to 12, too.
    theirs = segments_of(torch.arange(9), torch.arange(1, 10), 9)
    theirs = replace(theirs, member_segment=torch.tensor([0, 1, 2, 3, 4, 5, 5, 6, 7, 8]))
    teacher = teacher_of(Spectrum.from_logits(case.teacher), None, TopTokens.from_logits(case.teacher, K))
    order = torch.cat([segments.compared, segments.others])
    compared = Compared.of(replace(micro_batch, teacher_segments=theirs), teacher, order, 7)
    # Segments begin at 0, 2, 3, 7, 8, 12, 13, 14, 20 of 21 rows; the second answer at 8.
    assert order.tolist() == [0, 2, 3, 7, 8, 12, 13, 14, 20, 1, 4, 5, 6, 9, 10, 11, 15, 16, 17, 18, 19]
    assert compared.next_rows.tolist() == [9, 2, 10, -1, 13, 6, 7, 16, -1]
    assert compared.one_to_one.tolist() == [False, True, False, True, False, False, True, False, True]
    assert compared.top.k == 7 and compared.num_rows == ANSWERS
