"""KL and Jensen-Shannon over the teacher's top-k tokens: against their definitions in float64."""

from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.losses.divergences import ClassicalTerm, Divergence
from uld_ds.spectrum.top_tokens import TopTokens

ROWS, VOCAB = 6, 40
KINDS = get_args(Divergence)
EVERYTHING = VOCAB


def logits_of(seed: int, vocab: int = VOCAB, scale: float = 2.0) -> Tensor:
    return torch.randn(ROWS, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def exact_top(logits: Tensor, k: int) -> TopTokens:
    """As ``TopTokens.from_logits``, in float64."""
    found = logits.log_softmax(1).topk(min(k, logits.shape[1]))
    return TopTokens(found.indices, found.values)


def by_definition(p: Tensor, q: Tensor, kind: str, beta: float) -> Tensor:
    """[N] in plain sums, from probabilities [N, n]."""
    if kind == "forward_kl":
        return (p * (p / q).log()).sum(1)
    if kind == "reverse_kl":
        return (q * (q / p).log()).sum(1)
    m = beta * p + (1 - beta) * q
    return beta * (p * (p / m).log()).sum(1) + (1 - beta) * (q * (q / m).log()).sum(1)


def by_torch(p: Tensor, q: Tensor, kind: str, beta: float) -> Tensor:
    """[N] with torch's own KL: ``kl_div(log b, log a)`` is KL(a, b)."""

    def kl(a: Tensor, b: Tensor) -> Tensor:
        return F.kl_div(b.log(), a.log(), reduction="none", log_target=True).sum(1)

    if kind != "jensen_shannon":
        return kl(p, q) if kind == "forward_kl" else kl(q, p)
    m = beta * p + (1 - beta) * q
    return beta * kl(p, m) + (1 - beta) * kl(q, m)


def lumped(p: Tensor, ids: Tensor) -> Tensor:
    chosen = p.gather(1, ids)
    return torch.cat([chosen, 1 - chosen.sum(1, keepdim=True)], 1)


def term(logits: Tensor, top: TopTokens, kind: Divergence, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    """Values [N] and their gradient [N, V]."""
    grad = torch.zeros_like(logits)
    value = ClassicalTerm(1.0, kind, beta).add(logits, logits.logsumexp(1), top, torch.ones(len(logits)), grad)
    return value, grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_all_tokens_give_the_classical_value(kind: Divergence, beta: float) -> None:
    teacher, student = logits_of(1), logits_of(2).requires_grad_()
    want = by_torch(teacher.softmax(1), student.softmax(1), kind, beta)
    (of_student,) = torch.autograd.grad(want.sum(), student)
    for k in (EVERYTHING, EVERYTHING + 9):
        value, grad = term(student.detach(), exact_top(teacher, k), kind, beta)
        torch.testing.assert_close(value, want.detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(grad, of_student, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 7, VOCAB - 5])
def test_fewer_tokens_lump_the_others_together(kind: Divergence, k: int) -> None:
    teacher, student = logits_of(3), logits_of(4).requires_grad_()
    top = exact_top(teacher, k)
    p, q = teacher.softmax(1), student.softmax(1)
    want = by_definition(lumped(p, top.ids), lumped(q, top.ids), kind, 0.3)
    (of_student,) = torch.autograd.grad(want.sum(), student)
    value, grad = term(student.detach(), top, kind, 0.3)
    torch.testing.assert_close(value, want.detach(), rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(grad, of_student, rtol=1e-6, atol=1e-10)
    # The data-processing inequality.
    assert (value < by_definition(p, q, kind, 0.3)).all()
    torch.testing.assert_close(grad.sum(1), torch.zeros(ROWS, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_more_tokens_tell_more_apart(kind: Divergence) -> None:
    teacher, student = logits_of(5), logits_of(6)
    values = torch.stack([term(student, exact_top(teacher, k), kind)[0] for k in (1, 2, 5, 20, EVERYTHING)])
    assert (values.diff(dim=0) > -1e-12).all()
    assert (values[0] >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_is_that_of_finite_differences(kind: Divergence) -> None:
    top, student = exact_top(logits_of(7), 5), logits_of(8)
    _, grad = term(student, top, kind, 0.2)
    step = 1e-5
    for token in [0, 13, int(top.ids[0, 0]), int(top.ids[0, 4])]:
        moved = torch.zeros_like(student)
        moved[:, token] = step
        slope = (term(student + moved, top, kind, 0.2)[0] - term(student - moved, top, kind, 0.2)[0]) / (2 * step)
        torch.testing.assert_close(grad[:, token], slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_to_learn_from_oneself(kind: Divergence) -> None:
    logits = logits_of(9)
    for k in (3, EVERYTHING):
        value, grad = term(logits, exact_top(logits, k), kind)
        assert value.abs().max() < 1e-9
        assert grad.abs().max() < 1e-7


def test_weights_multiply_and_gradients_add_up() -> None:
    student, top = logits_of(10), exact_top(logits_of(11), 6)
    _, alone = term(student, top, "forward_kl")
    weight = torch.rand(ROWS, generator=torch.Generator().manual_seed(0))
    grad = torch.ones_like(student)
    ClassicalTerm(3.0).add(student, student.logsumexp(1), top, weight, grad)
    torch.testing.assert_close(grad, 1 + weight[:, None] * alone)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_logits(kind: Divergence) -> None:
    student = logits_of(12).bfloat16()
    top = TopTokens.from_logits(logits_of(13).float(), 8)
    grad = torch.zeros(ROWS, VOCAB)
    value = ClassicalTerm(1.0, kind).add(student, student.float().logsumexp(1), top, torch.ones(ROWS), grad)
    want, of_student = term(student.double(), TopTokens(top.ids, top.log_probs.double()), kind)
    torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, of_student.float(), rtol=1e-4, atol=1e-6)
    assert student.dtype == torch.bfloat16


def test_a_rest_too_small_for_a_difference_keeps_its_gradient() -> None:
    # All other tokens together have e-21 of the student's probability: 1 - sum would be rounding.
    student, teacher = torch.zeros(1, VOCAB, dtype=torch.float64), torch.zeros(1, VOCAB, dtype=torch.float64)
    student[0, 0], teacher[0, 0] = 25.0, 5.0
    _, grad = term(student.float(), exact_top(teacher, 1), "forward_kl")
    rest = 1 - teacher.softmax(1)[0, 0]
    torch.testing.assert_close(-grad[0, 1:].sum().double(), rest, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_that_pad_the_teachers_vocabulary_are_anything_else(kind: Divergence) -> None:
    teacher, student = logits_of(14, VOCAB + 24), logits_of(15)
    top = exact_top(teacher, 12)
    assert (top.ids >= VOCAB).any()
    value, grad = term(student, top, kind)
    p, q = teacher.softmax(1), student.softmax(1)
    for row in range(ROWS):
        own = top.ids[row][top.ids[row] < VOCAB][None]
        want = by_definition(lumped(p[row : row + 1], own), lumped(q[row : row + 1], own), kind, 0.5)
        torch.testing.assert_close(value[row : row + 1], want, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(grad.sum(1), torch.zeros(ROWS, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_without_a_teacher_count_nothing(kind: Divergence) -> None:
    teacher = logits_of(16).float()
    teacher[1] = -math.inf
    value, grad = term(logits_of(17), TopTokens.from_logits(teacher, 4), kind)
    assert value[1] == 0
    assert (grad[1] == 0).all()
    assert (value[[0, 2]] > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [4, EVERYTHING])
def test_what_one_side_thinks_impossible_is_finite_where_it_can_be(kind: Divergence, k: int) -> None:
    teacher = logits_of(18).float()
    teacher[:, 3:] = -math.inf
    value, grad = term(logits_of(19), TopTokens.from_logits(teacher, k), kind)
    assert value.isfinite().all()
    assert grad.isfinite().all()
    assert not ((kind == "jensen_shannon") and (value > math.log(2)).any())


def test_probabilities_that_rounding_made_too_large() -> None:
    teacher, student = logits_of(20, scale=4.0), logits_of(21)
    exact = exact_top(teacher, EVERYTHING)
    rounded = TopTokens(exact.ids, exact.log_probs.half().float())
    for kind in KINDS:
        value, grad = term(student, rounded, kind)
        want, of_exact = term(student, exact, kind)
        torch.testing.assert_close(value, want, rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(grad, of_exact, rtol=0, atol=2e-3)


def test_a_broken_row_is_nan() -> None:
    student = logits_of(22)
    student[2, 5] = math.nan
    for kind in KINDS:
        value, _ = term(student, exact_top(logits_of(23), 4), kind)
        assert value[2].isnan()
        assert value[[0, 1, 3, 4, 5]].isfinite().all()
