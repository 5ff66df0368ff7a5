"""Which examples a step sees, on which rank, and what each row of a batch is about."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from uld_ds.data.prepare import FEATURES
from uld_ds.data.windows import IGNORED, Batcher, SideBatch, deal, num_run_examples, num_steps, step_examples
from uld_ds.spectrum import Spectrum

# ---- order


@pytest.mark.parametrize(
    ("examples", "batch", "epochs", "expected"),
    [
        (8, 4, 1.0, 2),
        (9, 4, 1.0, 3),
        (9, 4, 2.0, 5),
        (100, 8, 0.5, 7),
        (3, 8, 0.1, 1),
        (1000, 4, 1.1, 275),
        (10, 1, 0.29, 3),
    ],
)
def test_steps_of_epochs(examples: int, batch: int, epochs: float, expected: int) -> None:
    assert num_steps(examples, batch, epochs=epochs, steps=None) == expected
    assert num_steps(examples, batch, epochs=None, steps=77) == 77


@settings(deadline=None)
@given(examples=st.integers(1, 50), batch=st.integers(1, 16), epochs=st.floats(0.01, 3), seed=st.integers(0, 9))
def test_every_step_of_epochs_has_an_example_and_all_are_seen(
    examples: int, batch: int, epochs: float, seed: int
) -> None:
    total = num_run_examples(examples, epochs)
    steps = num_steps(examples, batch, epochs=epochs, steps=None)
    seen = [step_examples(step, examples, batch, seed, total=total) for step in range(steps)]
    assert all((indices != IGNORED).any() for indices in seen)
    flat = np.concatenate(seen)
    assert (flat != IGNORED).sum() == total
    # Epoch by epoch, every example exactly once.
    for epoch in range(total // examples):
        assert sorted(flat[epoch * examples : (epoch + 1) * examples]) == list(range(examples))
    rest = flat[total // examples * examples : total]
    assert len(set(rest.tolist())) == len(rest)


def test_order_depends_on_seed_and_epoch() -> None:
    first, second, other = (step_examples(step, 50, 50, seed).tolist() for step, seed in ((0, 1), (1, 1), (0, 2)))
    assert first == step_examples(0, 50, 50, 1).tolist()
    assert len({tuple(order) for order in (first, second, other, range(50))}) == 4


@settings(deadline=None, max_examples=50)
@given(data=st.data(), ranks=st.integers(1, 5), micro=st.integers(1, 4), accumulation=st.integers(1, 3))
def test_deal_hands_every_example_to_one_rank(data: Any, ranks: int, micro: int, accumulation: int) -> None:
    batch = ranks * micro * accumulation
    lengths = np.array(data.draw(st.lists(st.integers(1, 99), min_size=40, max_size=40)))
    indices = step_examples(0, 40, batch, seed=0, total=data.draw(st.integers(1, batch)))
    hands = [deal(indices, lengths, rank=rank, ranks=ranks, micro_batch_size=micro) for rank in range(ranks)]
    assert all([len(part) for part in hand] == [micro] * accumulation for hand in hands)
    assert sorted(np.concatenate([*itertools.chain(*hands)])) == sorted(indices)
    # In every turn all ranks have longer examples than in the next: nobody waits for long.
    turns = [np.concatenate([hand[turn] for hand in hands]) for turn in range(accumulation)]
    length_of = [[0 if i == IGNORED else lengths[i] for i in turn] for turn in turns]
    assert all(min(before) >= max(after) for before, after in itertools.pairwise(length_of))


def test_the_examples_of_a_step_do_not_depend_on_the_ranks() -> None:
    lengths = np.arange(1, 31)
    for step in range(4):
        indices = step_examples(step, 30, 12, seed=3)
        for ranks, micro in ((1, 12), (2, 3), (3, 2), (6, 1), (12, 1)):
            hands = [deal(indices, lengths, rank=r, ranks=ranks, micro_batch_size=micro) for r in range(ranks)]
            assert sorted(np.concatenate([*itertools.chain(*hands)])) == sorted(indices)


# ---- tensors


def row(
    number: int, student: tuple[int, int, int], teacher: tuple[int, int, int], segments: list[list[int]]
) -> dict[str, Any]:
    """An example whose n-th token is 100 * number + n (1000s for the teacher).

    Args:
        student: length, first, stop.
        segments: of the student, of the teacher.
    """
    sides = {}
    for name, (length, first, stop), starts, base in (
        ("student", student, segments[0], 0),
        ("teacher", teacher, segments[1], 1000),
    ):
        ids = np.arange(length) + 100 * number + base
        sides |= {f"{name}_ids": ids, f"{name}_length": length, f"{name}_first": first, f"{name}_stop": stop}
        sides[f"{name}_segments"] = starts
    return {**sides, "answer_bytes": 10 * number, "prompt": "", "digest": ""}


ROWS = [
    row(1, (6, 2, 5), (5, 2, 4), [[2, 3, 5], [2, 3, 4]]),
    row(2, (4, 1, 3), (9, 3, 8), [[1, 3], [3, 8]]),
    row(3, (8, 4, 8), (4, 1, 4), [[4, 6, 7], [1, 2, 3]]),
    row(4, (3, 1, 2), (3, 1, 2), [[1, 2], [1, 2]]),
]


STAND_IN = 3


def batcher(max_teacher_tokens: int = 999) -> Batcher:
    features = FEATURES.copy()
    del features["problem"]
    rows = Dataset.from_list(ROWS, features=features)
    return Batcher(rows, student_padding=7, teacher_padding=8, max_teacher_tokens=max_teacher_tokens)


def tokens_at_segments(batch: SideBatch) -> list[int]:
    """The token that each segment of a batch begins with."""
    return batch.answer_ids[batch.segment_answers].tolist()


def test_logits_at_the_position_before_a_token_are_about_it() -> None:
    batch, teacher = batcher().evaluation_batch(np.array([0, 1]))
    side = batch.student
    assert side.input_ids.tolist() == [[100, 101, 102, 103, 104, 105], [200, 201, 202, 203, 7, 7]]
    assert side.attention_mask.tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    assert side.answer_ids.tolist() == [102, 103, 104, 105, 201, 202, 203]
    assert side.input_ids.flatten()[side.answer_rows].tolist() == [101, 102, 103, 104, 200, 201, 202]
    assert side.answer_in_text.tolist() == [True, True, True, False, True, True, False]
    assert side.answer_example.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert tokens_at_segments(side) == [102, 103, 105, 201, 203]
    assert side.input_ids.flatten()[side.segment_rows].tolist() == [101, 102, 104, 200, 202]
    assert side.segment_example.tolist() == [0, 0, 0, 1, 1]
    assert tokens_at_segments(teacher) == [1102, 1103, 1104, 1203, 1208]
    assert teacher.input_ids.flatten()[teacher.segment_rows].tolist() == [1101, 1102, 1103, 1202, 1207]
    assert teacher.input_ids[0].tolist() == [1100, 1101, 1102, 1103, 1104, 8, 8, 8, 8]
    assert batch.answer_bytes.tolist() == [10, 20]
    assert batch.example_weight.tolist() == [1, 1]


@settings(max_examples=30, deadline=None)
@given(
    indices=st.lists(st.sampled_from([IGNORED, 0, 1, 2, 3]), min_size=4, max_size=4).map(np.array),
    subject=st.sampled_from([batcher(budget) for budget in (1, 12, 999)]),
)
def test_rows_predict_what_stands_next_for_any_examples(indices: np.ndarray, subject: Batcher) -> None:
    window = subject.window([indices[:2], indices[2:]], 4)
    for side in [*(micro.student for micro in window.micro_batches), *window.teacher_batches]:
        assert torch.equal(side.input_ids.flatten()[side.answer_rows + 1], side.answer_ids)
        assert torch.equal(side.attention_mask.flatten()[side.answer_rows + 1], torch.ones_like(side.answer_ids))


@pytest.mark.parametrize(
    ("budget", "sizes"),
    [(1, [(1, 9), (1, 5), (1, 4), (1, 3)]), (12, [(1, 9), (2, 5), (1, 3)]), (27, [(3, 9), (1, 3)]), (36, [(4, 9)])],
)
def test_teacher_batches_keep_to_their_budget(budget: int, sizes: list[tuple[int, int]]) -> None:
    subject = batcher(budget)
    micro_batches = [np.array([3, 0]), np.array([1, 2])]
    assert subject.num_teacher_batches(micro_batches) == len(sizes)
    window = subject.window(micro_batches, len(sizes))
    assert [tuple(batch.input_ids.shape) for batch in window.teacher_batches] == sizes
    assert all(batch.input_ids.numel() <= max(budget, 9) for batch in window.teacher_batches)


@pytest.mark.parametrize("budget", [1, 12, 27, 999])
@pytest.mark.parametrize("dealt", [[[3, 0], [1, 2]], [[2, 2], [1, 0]], [[IGNORED, 1], [0, IGNORED]]])
def test_teacher_rows_come_back_in_the_order_of_the_micro_batches(budget: int, dealt: list[list[int]]) -> None:
    subject = batcher(budget)
    window = subject.window([np.array(part) for part in dealt], 6)
    # Each segment's distribution has a largest probability that tells which teacher token it is about.
    about = torch.tensor([token for batch in window.teacher_batches for token in tokens_at_segments(batch)])
    logits = torch.stack([recognisable(about), 1 - recognisable(about)], dim=1).log()
    parts = window.split(Spectrum.from_logits(logits))
    assert len(parts) == len(dealt)
    for part, indices in zip(parts, dealt, strict=True):
        rows = [ROWS[STAND_IN if i == IGNORED else i] for i in indices]
        expected = torch.tensor([row["teacher_ids"][start] for row in rows for start in row["teacher_segments"]])
        assert part.to_probabilities(1)[:, 0].tolist() == pytest.approx(recognisable(expected).tolist(), rel=1e-5)


def recognisable(teacher_token: torch.Tensor) -> torch.Tensor:
    return 0.5 + (teacher_token - 1000) / 1000


def test_stand_ins_have_no_weight_and_are_the_shortest() -> None:
    window = batcher().window([np.array([IGNORED, 1])], 1)
    micro_batch = window.micro_batches[0]
    assert micro_batch.example_weight.tolist() == [0, 1]
    assert micro_batch.student.input_ids[0].tolist() == [400, 401, 402, 7]


def test_idle_teacher_batches_fill_up_and_add_no_segments() -> None:
    subject = batcher()
    window = subject.window([np.array([0, 1])], 3)
    assert [len(batch.segment_answers) for batch in window.teacher_batches] == [5, 0, 0]
    assert [len(batch.segment_rows) for batch in window.teacher_batches] == [5, 0, 0]
    assert window.teacher_batches[1].input_ids.tolist() == [[1400, 1401, 1402]]
    with pytest.raises(AssertionError, match="fewer teacher forwards"):
        subject.window([np.array([0, 1])], 0)


def test_moving_a_window_moves_every_tensor() -> None:
    window = batcher().window([np.array([0, 1]), np.array([2, 3])], 2).to(torch.device("meta"))
    sides = [*(micro.student for micro in window.micro_batches), *window.teacher_batches]
    tensors = [tensor for side in sides for tensor in vars(side).values()] + [window.segment_order]
    tensors += [tensor for micro in window.micro_batches for tensor in (micro.example_weight, micro.answer_bytes)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
