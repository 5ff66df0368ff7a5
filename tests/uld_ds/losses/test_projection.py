"""The projection to sets of tokens: a case computed by hand, and any two vocabularies in float64.

What it is for single tokens is in ``test_token_mapping``, beside the hybrid term.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.helpers.completion import Spellings
from tests.helpers.segments import compared_of
from uld_ds.alignment.vocabulary_mapping import VocabularyRelations, relate
from uld_ds.losses.projection import ProjectionTerm
from uld_ds.losses.term import Compared
from uld_ds.losses.terms import identity_terms
from uld_ds.recipe import ObjectiveSettings
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.tokenization.vocabulary import Vocabulary


def relations_of(student: Spellings, teacher: Spellings) -> VocabularyRelations:
    mine, theirs = (
        Vocabulary([f"{side}{n}" for n in range(len(entries))], entries, np.zeros(len(entries), bool), None)
        for side, entries in (("s", student), ("t", teacher))
    )
    return relate(mine, theirs)


def term_of(relations: VocabularyRelations, **changes: Any) -> ProjectionTerm:
    objective = ObjectiveSettings(projection=1.0, projection_outcomes="sets", **changes)
    (term,) = identity_terms(objective, relations)
    assert isinstance(term, ProjectionTerm)
    return term


def run(term: ProjectionTerm, said: Compared, logits: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    grad = torch.zeros_like(logits)
    prepared = term.prepare(said)
    halves = []
    for rows in (slice(0, 1), slice(1, len(logits))):
        chunk, part = logits[rows], grad[rows]
        halves.append(term.add(chunk, chunk.logsumexp(1), prepared[rows], weight[rows], part))
    return torch.cat(halves), grad


def compared(p: Tensor, k: int, first: Tensor, whole: Tensor, student_ids: Tensor) -> Compared:
    found = p.topk(k)
    return compared_of(TopTokens(found.indices, found.values.log()), whole.log(), first.log(), student_ids)


def kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p.clamp_min(1e-300) / q.clamp_min(1e-300)).log(), 0.0).sum()


def test_a_case_by_hand() -> None:
    # The teacher writes numbers byte by byte, the student whole: sets begin with the teacher's byte.
    student: Spellings = [b" ", b" 5", b" 56", b"5", b"x"]
    teacher: Spellings = [b" ", b"5", b"y"]
    p = torch.tensor([[0.9, 0.06, 0.04]] * 2).double()
    said = compared(p, 3, p[:, 0], torch.tensor([0.3, 0.3]).double(), torch.tensor([2, 2]))
    logits = torch.tensor([[0.0] * 5, [0.1, 1.0, 2.0, -1.0, 0.5]]).double().requires_grad_()
    q = logits[1].softmax(0)
    sets = torch.stack([q[0] + q[1] + q[2], q[3], q[4]])
    want = kl(torch.tensor([0.9, 0.06, 0.04]).double(), sets)
    (of_logits,) = torch.autograd.grad(want, logits)
    value, grad = run(term_of(relations_of(student, teacher)), said, logits.detach(), torch.ones(2).double())
    torch.testing.assert_close(value[1], want.detach(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(grad[1], of_logits[1], rtol=1e-6, atol=1e-9)
    # Token by token, the student is told to write a space alone.
    (plain,) = identity_terms(ObjectiveSettings(projection=1.0), relations_of(student, teacher))
    assert isinstance(plain, ProjectionTerm)
    _, pulled = run(plain, said, logits.detach(), torch.ones(2).double())
    assert pulled[1, 0] < -0.4 < 0.0 < pulled[1, 1]
    assert grad[1, :3].abs().max() < 0.3


SPELLINGS = st.one_of(st.none(), st.text("ab", min_size=1, max_size=4).map(str.encode))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(SPELLINGS, min_size=2, max_size=12),
    st.lists(SPELLINGS, min_size=2, max_size=12),
    st.integers(1, 12),
    st.sampled_from(["forward_kl", "reverse_kl"]),
    st.integers(0, 1000),
)
def test_any_two_vocabularies(student: Spellings, teacher: Spellings, k: int, kind: Any, seed: int) -> None:
    relations, draw, rows = relations_of(student, teacher), torch.Generator().manual_seed(seed), 4
    p = (torch.randn(rows, len(teacher), generator=draw, dtype=torch.float64) * 2).softmax(1)
    first = torch.randint(0, len(teacher), (rows,), generator=draw)
    of_first = p.gather(1, first[:, None]).squeeze(1)
    whole = of_first * torch.rand(rows, generator=draw).double()
    ids = torch.randint(0, len(student), (rows,), generator=draw)
    logits = (torch.randn(rows, len(student), generator=draw, dtype=torch.float64) * 2).requires_grad_()
    weight, k = torch.rand(rows, generator=draw).double(), min(k, len(teacher))
    values = []
    for row, q in enumerate(logits.softmax(1)):
        top = p[row].argsort(descending=True).tolist()[:k]
        masses: dict[int, Tensor] = {}
        for token in top:
            outcome = int(relations.teacher_outcomes[token])
            masses[outcome] = masses.get(outcome, torch.tensor(0.0).double()) + p[row, token]
        # What is known of the text goes to the set of the student's token.
        mass, start = whole[row], int(relations.teacher_outcomes[first[row]])
        if int(first[row]) in top:
            masses[start] = masses[start] - mass
        else:
            mass = mass.minimum(1 - p[row, top].sum())
        goal = int(relations.outcomes[ids[row]])
        masses[goal] = masses.get(goal, torch.tensor(0.0).double()) + mass
        told = [(outcome, mass) for outcome, mass in masses.items() if outcome >= 0 and mass > 1e-12]
        of_teacher = [mass for _, mass in told]
        of_student = [q[torch.from_numpy(relations.outcomes == outcome)].sum() for outcome, _ in told]
        rest = (1 - sum(of_teacher, torch.tensor(0.0).double())).clamp_min(0.0)
        others = 1 - sum(of_student, torch.tensor(0.0).double())
        if kind == "reverse_kl":  # what the teacher leaves is known to so much
            rest = rest.clamp_min(1e-6)
        everything = len(told) == len(set(relations.outcomes.tolist()))
        pair = [torch.stack(side) for side in ([*of_teacher, rest], [*of_student, others])]
        if everything:  # the student has nothing else
            pair = [side[:-1] for side in pair]
        values.append(kl(*pair) if kind == "forward_kl" else kl(pair[1], pair[0]))
    want = torch.stack(values)
    (of_logits,) = torch.autograd.grad(want @ weight + 0 * logits.sum(), logits)
    term = term_of(relations, projection_divergence=kind)
    value, grad = run(term, compared(p, k, of_first, whole, ids), logits.detach(), weight)
    torch.testing.assert_close(value, want.detach(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(grad, of_logits, rtol=1e-4, atol=1e-6)


def test_equal_vocabularies_give_the_same_as_tokens() -> None:
    entries: Spellings = [b"a", b"b", b"ab", b"abc", b"c"]
    relations = relations_of(entries, entries)
    p = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).softmax(1)
    ids = torch.tensor([2, 3, 0])
    of_ids = p.gather(1, ids[:, None]).squeeze(1)
    said, logits = compared(p, 4, of_ids, of_ids, ids), torch.randn(3, 5, dtype=torch.float64)
    (plain,) = identity_terms(ObjectiveSettings(projection=1.0), relations)
    assert isinstance(plain, ProjectionTerm)
    found, expected = (run(term, said, logits, torch.ones(3).double()) for term in (term_of(relations), plain))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("vocab", [3, 9])
def test_models_may_have_fewer_or_more_logits_than_their_tokenizers(vocab: int) -> None:
    relations = relations_of([b" ", b" 5", b" 56", b"5", b"x"], [b" ", b"5", b"x"])
    p = torch.tensor([[0.6, 0.3, 0.1]] * 3).double()
    said = compared(p, 3, p[:, 0], p[:, 0], torch.tensor([2, 0, 1]))
    logits = torch.randn(3, vocab, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    value, grad = run(term_of(relations), said, logits, torch.ones(3).double())
    # Outcomes without a logit are part of "anything else", of which the small model has nothing.
    assert value.isfinite().all()
    assert bool(grad.any()) is (vocab == 9)
    torch.testing.assert_close(grad.sum(1), torch.zeros(3).double(), atol=1e-9, rtol=0)
    if vocab == 9:
        q = logits.softmax(1)
        mine = torch.stack([q[:, :3].sum(1), q[:, 3], q[:, 4], q[:, 5:].sum(1)], 1)
        theirs = torch.tensor([0.6, 0.3, 0.1, 0.0]).double()
        torch.testing.assert_close(value, torch.stack([kl(theirs, row) for row in mine]), rtol=1e-5, atol=1e-7)
