"""Hybrid and projection: against their definitions in float64, on vocabularies of a few dozen tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.segments import compared_of
from uld_ds.losses.hybrid import HybridTerm
from uld_ds.losses.projection import ProjectionTerm
from uld_ds.losses.term import Compared
from uld_ds.losses.terms import identity_terms
from uld_ds.losses.token_mapping import NOWHERE, carried, mapping_of
from uld_ds.recipe import ObjectiveSettings
from uld_ds.spectrum.top_tokens import TopTokens

ROWS, VOCAB, TEACHER_VOCAB, BETA = 6, 40, 55, 0.3
STUDENT_IDS = torch.tensor([3, 0, 17, 39, 8, 21])


def logits_of(seed: int, vocab: int, scale: float = 2.0) -> Tensor:
    return torch.randn(ROWS, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def exact_top(logits: Tensor, k: int) -> TopTokens:
    found = logits.log_softmax(1).topk(min(k, logits.shape[1]))
    return TopTokens(found.indices, found.values)


def relation(seed: int = 0, share: float = 0.6) -> np.ndarray:
    """A student token for some of the teacher's tokens, none for two of them."""
    rng = np.random.default_rng(seed)
    found = np.full(TEACHER_VOCAB, -1)
    found[rng.permutation(TEACHER_VOCAB)[: VOCAB - 8]] = np.arange(VOCAB - 8)  # the last eight are nobody's
    return np.where(rng.random(TEACHER_VOCAB) < share, found, -1)


def many_to_one(seed: int, share: float) -> np.ndarray:
    """The same, and some of the teacher's tokens have one in common."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(TEACHER_VOCAB) < share, rng.integers(0, VOCAB - 8, TEACHER_VOCAB), -1)


SAME = np.arange(VOCAB)


class Case:
    """A teacher's row after row: what it says, which token it writes first, and how likely the whole segment is."""

    def __init__(self, seed: int, vocab: int) -> None:
        self.logits = logits_of(seed, vocab)
        self.log_p = self.logits.log_softmax(1)
        self.first = torch.randint(0, vocab, (ROWS,), generator=torch.Generator().manual_seed(seed + 1))
        self.first[0] = self.log_p[0].argmax()
        self.first_log_probs = self.log_p.gather(1, self.first[:, None]).squeeze(1)
        self.log_probs = self.first_log_probs - torch.linspace(0, 3, ROWS)

    def compared(self, k: int) -> Compared:
        return compared_of(exact_top(self.logits, k), self.log_probs, self.first_log_probs, STUDENT_IDS)


Term = HybridTerm | ProjectionTerm


def run(term: Term, said: Compared, logits: Tensor, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Values [N], and the gradient [N, V] of their weighed sum."""
    grad = torch.zeros_like(logits)
    prepared: Any = term.prepare(said)
    halves = []
    for rows in (slice(0, 2), slice(2, len(logits))):
        chunk, part = logits[rows], grad[rows]
        of_rows = torch.ones(len(chunk)) if weight is None else weight[rows]
        halves.append(term.add(chunk, chunk.logsumexp(1), prepared[rows], of_rows, part))
    return torch.cat(halves), grad


def kl(p: Tensor, q: Tensor) -> Tensor:
    return torch.where(p > 0, p * (p.clamp_min(1e-300) / q.clamp_min(1e-300)).log(), 0.0).sum(-1)


def jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    m = BETA * p + (1 - BETA) * q
    return BETA * kl(p, m) + (1 - BETA) * kl(q, m)


def hybrid_by_hand(case: Case, found: np.ndarray, student: Tensor, k: int) -> Tensor:
    """[N], one row after another and one token after another."""
    values = []
    for log_p, q in zip(case.log_p, student.softmax(1), strict=True):
        order = log_p.argsort(descending=True).tolist()
        p = log_p.exp()
        masses: dict[int, Tensor] = {}
        unmatched = []
        for token in order[:k]:
            if found[token] >= 0:
                masses[int(found[token])] = masses.get(int(found[token]), torch.tensor(0.0).double()) + p[token]
            else:
                unmatched.append(p[token])
        of_teacher, of_student = list(masses.values()), [q[token] for token in masses]
        of_teacher.append(1 - sum(of_teacher, torch.tensor(0.0).double()))
        of_student.append(1 - sum(of_student, torch.tensor(0.0).double()))
        value = jensen_shannon(torch.stack(of_teacher).clamp_min(0), torch.stack(of_student))
        free = sorted(
            (q[n] for n in range(VOCAB) if n not in set(found.tolist())), key=lambda x: x.item(), reverse=True
        )
        pairs = zip(unmatched, free + [torch.tensor(0.0).double()] * len(unmatched), strict=False)
        value = value + sum(((a - b).abs() for a, b in pairs), torch.tensor(0.0).double())
        beyond = sum(free[len(unmatched) :], torch.tensor(0.0).double()) - p[order[k:]].sum()
        values.append(value + beyond.clamp_min(0))
    return torch.stack(values)


def projected_by_hand(
    case: Case,
    found: np.ndarray,
    student: Tensor,
    k: int,
    *,
    between: Callable[[Tensor, Tensor], Tensor] = kl,
    picked: int | None = None,
) -> Tensor:
    values = []
    for row, (log_p, q) in enumerate(zip(case.log_p, student.softmax(1), strict=True)):
        p, masses = log_p.exp(), torch.zeros(VOCAB).double()
        top = log_p.argsort(descending=True).tolist()[:k]
        for token in top:
            if found[token] >= 0:
                masses[found[token]] += p[token]
        whole, first = case.log_probs[row].exp(), int(case.first[row])
        if first in top:
            if found[first] >= 0:
                masses[found[first]] -= whole
        else:
            whole = min(whole, 1 - p[top].sum())
        masses[STUDENT_IDS[row]] += whole
        told = masses > 1e-12
        if picked is not None:
            told &= q >= q[told].sort(descending=True).values[:picked][-1]
        of_teacher = torch.cat([masses[told], 1 - masses[told].sum()[None]]).clamp_min(0)
        values.append(between(of_teacher, torch.cat([q[told], 1 - q[told].sum()[None]])))
    return torch.stack(values)


ByHand = Callable[[Case, np.ndarray, Tensor, int], Tensor]
KINDS: dict[str, tuple[Callable[[np.ndarray], Term], ByHand]] = {
    "hybrid": (lambda found: HybridTerm(1.0, BETA, mapping_of(found)), hybrid_by_hand),
    "projection": (lambda found: ProjectionTerm(1.0, mapping_of(found)), projected_by_hand),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 6, 30, TEACHER_VOCAB])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_value_and_gradient_are_those_of_the_definition(kind: str, k: int, share: float) -> None:
    make, by_hand = KINDS[kind]
    found = relation(2, share) if kind == "hybrid" else many_to_one(2, share)
    case, student = Case(1, TEACHER_VOCAB), logits_of(3, VOCAB).requires_grad_()
    weight = torch.linspace(0.5, 2.0, ROWS).double()
    want = by_hand(case, found, student, k)
    (of_student,) = torch.autograd.grad(want @ weight, student)
    value, grad = run(make(found), case.compared(k), student.detach(), weight)
    torch.testing.assert_close(value, want.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(grad, of_student, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "between"), [("reverse_kl", lambda p, q: kl(q, p)), ("jensen_shannon", jensen_shannon)]
)
@pytest.mark.parametrize("picked", [None, 1, 5])
def test_projection_with_other_divergences_and_the_students_pick(
    kind: Any, between: Callable[[Tensor, Tensor], Tensor], picked: int | None
) -> None:
    found, case, student = many_to_one(2, 0.8), Case(1, TEACHER_VOCAB), logits_of(3, VOCAB).requires_grad_()
    weight = torch.linspace(0.5, 2.0, ROWS).double()
    want = projected_by_hand(case, found, student, 20, between=between, picked=picked)
    (of_student,) = torch.autograd.grad(want @ weight, student)
    term = ProjectionTerm(1.0, mapping_of(found), kind=kind, beta=BETA, num_picked=picked)
    value, grad = run(term, case.compared(20), student.detach(), weight)
    torch.testing.assert_close(value, want.detach(), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(grad, of_student, rtol=1e-5, atol=1e-8)


def test_fewer_picked_tokens_give_a_lower_bound() -> None:
    found, said, student = many_to_one(2, 0.8), Case(1, TEACHER_VOCAB).compared(20), logits_of(3, VOCAB)
    terms = [ProjectionTerm(1.0, mapping_of(found), kind="reverse_kl", num_picked=n) for n in (1, 2, 4, 8, 16, None)]
    values = torch.stack([run(term, said, student)[0] for term in terms])
    assert (values.diff(dim=0) > -1e-12).all()
    assert (values[0] < values[-1]).all()


def test_of_tokens_that_the_student_holds_equally_likely_the_teachers_likelier_is_picked() -> None:
    log_p = torch.tensor([[0.6, 0.3, 0.05]]).double().log()
    unlikely = torch.tensor([-30.0]).double()  # what follows moves nothing
    said = compared_of(TopTokens(torch.tensor([[3, 0, 2]]), log_p), unlikely, unlikely, torch.tensor([1]))
    term = ProjectionTerm(1.0, mapping_of(np.arange(5)), num_picked=1)
    student = torch.zeros(1, 5).double()
    value = term.add(student, student.logsumexp(1), term.prepare(said), torch.ones(1), torch.zeros(1, 5).double())
    p, q = torch.tensor([0.6, 0.4]), torch.tensor([0.2, 0.8])
    assert value.item() == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-6)


def test_strict_rows_are_of_one_token_on_both_sides() -> None:
    found, case, student = many_to_one(2, 0.8), Case(1, TEACHER_VOCAB), logits_of(3, VOCAB)
    said = replace(case.compared(20), one_to_one=torch.tensor([True, False, True, True, False, False]))
    everywhere, of_all = run(ProjectionTerm(1.0, mapping_of(found)), said, student)
    value, grad = run(ProjectionTerm(1.0, mapping_of(found), only_one_to_one=True), said, student)
    assert value.tolist() == torch.where(said.one_to_one, everywhere, 0.0).tolist()
    assert torch.equal(grad, torch.where(said.one_to_one[:, None], of_all, 0.0))
    assert everywhere.all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_finite_differences(kind: str) -> None:
    term, said = KINDS[kind][0](relation(4)), Case(5, TEACHER_VOCAB).compared(7)
    student, step = logits_of(6, VOCAB), 1e-6
    _, grad = run(term, said, student)
    for token in range(0, VOCAB, 3):
        moved = torch.zeros_like(student)
        moved[:, token] = step
        slope = (run(term, said, student + moved)[0] - run(term, said, student - moved)[0]) / (2 * step)
        torch.testing.assert_close(grad[:, token], slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_one_vocabulary_gives_the_classical_value(kind: str) -> None:
    case, student = Case(7, VOCAB), logits_of(8, VOCAB).requires_grad_()
    # With one vocabulary a segment is one token, the same on both sides.
    said = compared_of(
        exact_top(case.logits, VOCAB), *[case.log_p.gather(1, STUDENT_IDS[:, None])[:, 0]] * 2, STUDENT_IDS
    )
    p, q = case.logits.softmax(1), student.softmax(1)
    want = jensen_shannon(p, q) if kind == "hybrid" else F.kl_div(q.log(), p, reduction="none").sum(1)
    (of_student,) = torch.autograd.grad(want.sum(), student)
    value, grad = run(KINDS[kind][0](SAME), said, student.detach())
    torch.testing.assert_close(value, want.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grad, of_student, rtol=1e-8, atol=1e-12)


def test_fewer_tokens_give_a_lower_bound() -> None:
    student, case = logits_of(9, VOCAB), Case(10, TEACHER_VOCAB)
    for seed in range(5):
        term = HybridTerm(1.0, BETA, mapping_of(relation(seed)))
        values = torch.stack([run(term, case.compared(k), student)[0] for k in (1, 2, 5, 20, 40, TEACHER_VOCAB)])
        assert (values.diff(dim=0) > -1e-12).all()
        assert (values[0] >= 0).all()


def test_all_tokens_without_twins_give_the_uld_distance() -> None:
    case, student = Case(11, TEACHER_VOCAB), logits_of(12, VOCAB)
    value, _ = run(HybridTerm(1.0, BETA, mapping_of(np.full(TEACHER_VOCAB, -1))), case.compared(TEACHER_VOCAB), student)
    p = case.logits.softmax(1).sort(1, descending=True).values
    q = F.pad(student.softmax(1).sort(1, descending=True).values, (0, TEACHER_VOCAB - VOCAB))
    torch.testing.assert_close(value, (p - q).abs().sum(1))


def test_what_follows_in_the_text_is_given_to_the_token_that_begins_it() -> None:
    # Tokens of the teacher: a, ab, abc; of the student: a, abc, x. The text: abc, which the teacher writes as ab, c.
    log_p = torch.tensor([[0.2, 0.5, 0.3]]).double().log()
    top = TopTokens(log_p.argsort(1, descending=True), log_p.sort(1, descending=True).values)
    said = compared_of(top, torch.tensor([0.4]).double().log(), torch.tensor([0.5]).double().log(), torch.tensor([1]))
    term = ProjectionTerm(1.0, mapping_of(np.array([0, 0, 1])))
    tokens = term.prepare(said).tokens
    # ab, of which 0.4 goes on to abc, stays as a with 0.1.
    assert tokens.ids[0, :2].tolist() == [0, 1]
    torch.testing.assert_close(tokens.log_probs[0, :2].exp(), torch.tensor([0.3, 0.7]).double())
    # Beyond the k likeliest it is taken from what is there: 0.2 + 0.3 is told, the rest holds "ab".
    said = compared_of(
        top.first(1), torch.tensor([0.1]).double().log(), torch.tensor([0.3]).double().log(), torch.tensor([1])
    )
    tokens = term.prepare(said).tokens
    torch.testing.assert_close(tokens.log_probs[0, :2].exp(), torch.tensor([0.5, 0.1]).double())


def test_equally_likely_tokens_do_not_confuse_what_moves() -> None:
    log_p = torch.full((1, 4), 0.25).double().log()
    said = compared_of(TopTokens(torch.arange(4)[None], log_p), log_p[:, 2], log_p[:, 2], torch.tensor([2]))
    tokens = ProjectionTerm(1.0, mapping_of(np.arange(4))).prepare(said).tokens
    torch.testing.assert_close(tokens.log_probs[0, :4].exp(), torch.full((4,), 0.25).double())


def test_carried_masses_add_up() -> None:
    ids = torch.tensor([[5, NOWHERE, 2, 5], [NOWHERE, 1, NOWHERE, 0]])
    found = carried(ids, torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.25, 0.125, 0.0]]).double())
    assert found.ids.tolist() == [[2, 5, NOWHERE, NOWHERE], [NOWHERE, 1, NOWHERE, NOWHERE]]
    torch.testing.assert_close(
        found.log_probs.exp(), torch.tensor([[0.3, 0.5, 0.0, 0.0], [0.0, 0.25, 0.0, 0.0]]).double()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_padding_costs_nothing_and_nan_shows(kind: str) -> None:
    case, student = Case(13, TEACHER_VOCAB), logits_of(14, VOCAB)
    said = case.compared(9)
    said.top.log_probs[1] = -torch.inf
    student[4, 3] = torch.nan
    value, grad = run(KINDS[kind][0](relation(15)), said, student)
    assert value[1] == 0
    assert not grad[1].any()
    assert value[4].isnan()
    assert value[[0, 2, 3, 5]].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("vocab", [VOCAB - 10, VOCAB + 10])
def test_models_may_have_fewer_or_more_logits_than_their_tokenizers(kind: str, vocab: int) -> None:
    # The teacher pads its vocabulary, too: ids beyond its tokenizer's stand for nothing.
    case, student = Case(16, TEACHER_VOCAB), logits_of(17, vocab)
    found = relation(18)[: TEACHER_VOCAB - 5]
    said = case.compared(TEACHER_VOCAB)
    ids = STUDENT_IDS.clamp(max=vocab - 1)
    value, grad = run(KINDS[kind][0](found), compared_of(said.top, said.log_probs, said.first_log_probs, ids), student)
    assert value.isfinite().all()
    torch.testing.assert_close(grad.sum(1), torch.zeros(ROWS).double(), atol=1e-9, rtol=0)


def test_terms_need_relations() -> None:
    with pytest.raises(ValueError, match=r"\['hybrid'\] need to know"):
        identity_terms(ObjectiveSettings(hybrid=1.0))
