"""The completion term: a case computed by hand, and any two vocabularies against the definition in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.helpers.completion import Spellings, completion_value
from tests.helpers.segments import compared_of
from uld_ds.alignment.completions import CompletionIndex
from uld_ds.losses.completion import CompletionTables, CompletionTerm
from uld_ds.losses.term import Compared
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.tokenization.vocabulary import Vocabulary


def term_of(student: Spellings, teacher: Spellings) -> CompletionTerm:
    mine, theirs = (
        Vocabulary([f"{n}" for n in range(len(entries))], entries, np.zeros(len(entries), bool), None)
        for entries in (student, teacher)
    )
    return CompletionTerm(1.0, CompletionTables.of(CompletionIndex.of(mine, theirs)))


def compared(p: Tensor, k: int, student_ids: list[int]) -> Compared:
    """Segments one after another, each of one row, the last with none after it."""
    found = p.topk(k)
    size = len(student_ids)
    unseen = torch.zeros(size)
    top = TopTokens(found.indices, found.values.log())
    next_rows = torch.tensor([*range(1, size), -1])
    return compared_of(top, unseen, unseen, torch.tensor(student_ids), next_rows=next_rows)


def run(term: CompletionTerm, said: Compared, logits: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values [A], and the gradient [A, V] of their weighed sum, in two chunks."""
    grad = torch.zeros_like(logits)
    prepared: Any = term.prepare(said)
    values = []
    for rows in (slice(0, 1), slice(1, len(logits))):
        chunk, part = logits[rows], grad[rows]
        values.append(term.add(chunk, chunk.logsumexp(1), prepared[rows], weight[rows], part))
    return torch.cat(values), grad


def test_a_case_by_hand() -> None:
    student: Spellings = [b"5", b"6", b"7", b"63", b"8", None]
    # At the first segment the teacher writes 56, 563 (one group of 0.5), 57 (0.2), 58 (nothing), 5 (a twin), 99.
    teacher: Spellings = [b"56", b"563", b"57", b"588", b"5", b"99"]
    p = torch.tensor([[0.3, 0.2, 0.2, 0.1, 0.1, 0.1], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]], dtype=torch.float64)
    said = compared(p, 6, [0, 1])
    logits = torch.tensor([[0.0] * 6, [0.0, 1.0, 2.0, 3.0, 0.5, -1.0]]).double().requires_grad_()
    q = logits[1].softmax(0)
    want = -0.5 * (q[1] + q[3]).log() - 0.2 * q[2].log()
    (of_logits,) = torch.autograd.grad(2.5 * want, logits)
    value, grad = run(term_of(student, teacher), said, logits.detach(), torch.tensor([7.0, 2.5]).double())
    torch.testing.assert_close(value, torch.stack([torch.tensor(0.0).double(), want.detach()]), rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, of_logits, rtol=1e-12, atol=1e-15)


def test_a_group_whose_shortest_token_the_student_has_passed_says_nothing() -> None:
    # The group's shortest is 12; what the student wrote, 123, is no beginning of it. (12 has no twin, 1234 neither.)
    said = compared(torch.tensor([[0.6, 0.4], [0.6, 0.4]]).double(), 2, [0, 1])
    logits = torch.randn(2, 2, dtype=torch.float64)
    value, grad = run(term_of([b"123", b"4"], [b"12", b"1234"]), said, logits, torch.ones(2).double())
    assert not value.any() and not grad.any()
    # Without it, the longer one does.
    value, grad = run(term_of([b"123", b"4"], [b"xx", b"1234"]), said, logits, torch.ones(2).double())
    torch.testing.assert_close(value[1], -0.4 * logits[1].log_softmax(0)[1])


SPELLINGS = st.one_of(st.none(), st.text("ab", min_size=1, max_size=5).map(str.encode))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(SPELLINGS, min_size=2, max_size=14),
    st.lists(SPELLINGS, min_size=2, max_size=14),
    st.integers(1, 14),
    st.integers(0, 1000),
)
def test_any_two_vocabularies(student: Spellings, teacher: Spellings, k: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    rows = 5
    p = (torch.randn(rows, len(teacher), generator=draw, dtype=torch.float64) * 2).softmax(1)
    ids = torch.randint(0, len(student), (rows,), generator=draw).tolist()
    logits = (torch.randn(rows, len(student), generator=draw, dtype=torch.float64) * 3).requires_grad_()
    weight = torch.rand(rows, generator=draw).double()
    k = min(k, len(teacher))
    nothing = torch.tensor(0.0).double()
    want = torch.stack(
        [nothing] + [completion_value(student, teacher, p[n], k, ids[n], logits[n + 1]) for n in range(rows - 1)]
    )
    (of_logits,) = torch.autograd.grad(want @ weight + 0 * logits.sum(), logits)
    value, grad = run(term_of(student, teacher), compared(p, k, ids), logits.detach(), weight)
    torch.testing.assert_close(value, want.detach(), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(grad, of_logits, rtol=1e-8, atol=1e-12)


STUDENT: Spellings = [b"a", b"b", b"ab", b"ba", b"bb"]
TEACHER: Spellings = [b"abb", b"aba", b"a", b"bab", b"abab"]


def random_case() -> tuple[Compared, Tensor]:
    draw = torch.Generator().manual_seed(3)
    p = torch.randn(6, 5, generator=draw, dtype=torch.float64).softmax(1)
    return compared(p, 5, [0, 1, 2, 0, 2, 1]), torch.randn(6, 5, generator=draw, dtype=torch.float64)


def test_gradient_is_that_of_finite_differences() -> None:
    term, (said, logits), step = term_of(STUDENT, TEACHER), random_case(), 1e-6
    ones = torch.ones(6).double()
    value, grad = run(term, said, logits, ones)
    assert (value[1:] > 0).sum() >= 3
    for token in range(5):
        moved = torch.zeros_like(logits)
        moved[:, token] = step
        slope = (run(term, said, logits + moved, ones)[0] - run(term, said, logits - moved, ones)[0]) / (2 * step)
        torch.testing.assert_close(grad[:, token], slope, rtol=1e-6, atol=1e-9)


def test_padding_and_ends_cost_nothing_and_nan_shows() -> None:
    said, logits = random_case()
    term, ones = term_of(STUDENT, TEACHER), torch.ones(6).double()
    before, _ = run(term, said, logits, ones)
    assert before[1] > 0 and before[3] > 0
    padded = said.without(torch.tensor([True, False, False, False, False, False]))
    # After the third segment's token comes no row of its answer.
    padded = replace(padded, next_rows=torch.tensor([1, 2, -1, 4, 5, -1]))
    logits[4, 0] = torch.nan
    value, grad = run(term, padded, logits, ones)
    assert value[[1, 3]].tolist() == [0, 0] and not grad[[1, 3]].any()
    assert value[4].isnan() and value[[0, 2, 5]].tolist() == before[[0, 2, 5]].tolist()


@pytest.mark.parametrize("vocab", [3, 9])
def test_models_may_have_fewer_or_more_logits_than_their_tokenizers(vocab: int) -> None:
    (said, _), term = random_case(), term_of(STUDENT, TEACHER)
    logits = torch.randn(6, vocab, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    said = replace(said, student_ids=said.student_ids.clamp(max=vocab - 1))
    value, grad = run(term, said, logits, torch.ones(6).double())
    assert value.isfinite().all() and value.any()
    torch.testing.assert_close(grad.sum(1), torch.zeros(6).double(), atol=1e-12, rtol=0)


def test_logits_of_minus_infinity_leave_no_token() -> None:
    # At the second row 6 cannot be, 7 can: the set of 56 is one without tokens, that of 57 keeps one of its two.
    term = term_of([b"5", b"6", b"7", b"72"], [b"56", b"57"])
    said = compared(torch.tensor([[0.6, 0.4]] * 2).double(), 2, [0, 1])
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.5, -torch.inf, 1.0, -torch.inf]]).double()
    value, grad = run(term, said, logits, torch.ones(2).double())
    q = logits[1].softmax(0)
    torch.testing.assert_close(value[1], -0.4 * q[2].log())
    torch.testing.assert_close(grad[1], 0.4 * q - torch.tensor([0.0, 0.0, 0.4, 0.0]).double())


def test_what_the_teacher_holds_impossible_is_in_no_group() -> None:
    # 12 cannot be: the shortest of its group is then 1234, and 234 is what is left of that.
    term = term_of([b"1", b"34", b"2"], [b"12", b"1234"])
    said = compared(torch.tensor([[0.0, 0.7]] * 2).double(), 2, [0, 1])
    logits = torch.randn(2, 3, dtype=torch.float64)
    assert not run(term, said, logits, torch.ones(2).double())[0].any(), "nothing completes 234"
    term = term_of([b"1", b"234", b"2"], [b"12", b"1234"])
    value, _ = run(term, said, logits, torch.ones(2).double())
    torch.testing.assert_close(value[1], -0.7 * logits[1].log_softmax(0)[1])


def test_ids_that_the_students_tokenizer_does_not_know_begin_nothing() -> None:
    # The last id that it knows, 2, does.
    term, logits = term_of([b"a", b"b", b"x"], [b"xb"]), torch.randn(2, 9, dtype=torch.float64)
    for token, says in ((2, True), (3, False), (8, False)):
        value, _ = run(term, compared(torch.ones(2, 1).double(), 1, [token, 0]), logits, torch.ones(2).double())
        assert bool(value[1]) == says


def test_ids_that_the_teachers_tokenizer_does_not_know_are_no_tokens() -> None:
    term = term_of([b"a", b"b"], [b"ab"])
    p = torch.tensor([[0.6, 0.3, 0.1]] * 2).double()
    logits = torch.randn(2, 2, dtype=torch.float64)
    value, _ = run(term, compared(p, 3, [0, 1]), logits, torch.ones(2).double())
    torch.testing.assert_close(value[1], -0.6 * logits[1].log_softmax(0)[1])


def test_small_probabilities_keep_their_digits() -> None:
    """A set of 1e-30 beside tokens near 1: no difference of sums."""
    term = term_of([b"a", b"b", b"c"], [b"ab"])
    logits = torch.tensor([[0.0, 0.0, 0.0], [0.0, -70.0, 0.0]])
    value, grad = run(term, compared(torch.ones(2, 1), 1, [0, 0]), logits, torch.ones(2))
    assert value[1].item() == pytest.approx(70 + np.log(2), rel=1e-6)
    assert grad[1].tolist() == pytest.approx([0.5, -1.0, 0.5], abs=1e-6)
