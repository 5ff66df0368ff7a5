"""What each row of a micro-batch is about."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.micro_batches import ROWS, rows, teacher_batcher
from uld_ds.batches import MicroBatch, SegmentRows, SideBatch
from uld_ds.data.batching import Batcher, whole_column
from uld_ds.data.pairing import FEATURES
from uld_ds.data.sampling import IGNORED
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.teacher_outputs import TeacherTokens

STAND_IN = 3


def batch_of(indices: list[int], merge: Any = "first") -> MicroBatch:
    return Batcher(rows(), padding=7, merge=merge).window([np.array(indices)])[0]


def tokens_at(batch: SideBatch, index: torch.Tensor) -> list[int]:
    return batch.answer_ids[index].tolist()


def test_logits_at_the_position_before_a_token_are_about_it() -> None:
    batch = batch_of([0, 1])
    side = batch.student
    assert side.input_ids.tolist() == [[100, 101, 102, 103, 104, 105], [200, 201, 202, 203, 7, 7]]
    assert side.attention_mask.tolist() == [[1] * 6, [1, 1, 1, 1, 0, 0]]
    assert (int(side.num_tokens()), side.num_positions()) == (10, 12)
    assert side.answer_ids.tolist() == [102, 103, 104, 105, 201, 202, 203]
    assert side.input_ids.flatten()[side.answer_rows].tolist() == [101, 102, 103, 104, 200, 201, 202]
    assert side.answer_in_text.tolist() == [True, True, True, False, True, True, False]
    assert side.answer_example.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert batch.pairs[0].example.tolist() == [0, 0, 0, 1, 1]
    assert batch.answer_bytes.tolist() == [10, 20]
    assert batch.example_weight.tolist() == [1, 1]
    assert batch.examples == [0, 1]


def test_first_compares_the_distributions_before_a_segments_first_token() -> None:
    batch = batch_of([0, 1])
    teacher = teacher_batcher().batch(batch.examples)
    assert tokens_at(batch.student, batch.pairs[0].student.compared) == [102, 103, 105, 201, 203]
    assert tokens_at(teacher, batch.pairs[0].teacher.compared) == [1102, 1103, 1104, 1203, 1208]
    assert tokens_at(batch.student, batch.pairs[0].student.others) == [104, 202]
    assert len(batch.pairs[0].student.earlier) == len(batch.pairs[0].teacher.earlier) == 0


def test_chain_compares_those_before_its_last_token_scaled_by_the_tokens_before_that() -> None:
    batch = batch_of([0, 1], "chain")
    teacher = teacher_batcher().batch(batch.examples)
    student, other = batch.pairs[0].student, batch.pairs[0].teacher
    assert tokens_at(batch.student, student.compared) == [102, 104, 105, 202, 203]
    assert tokens_at(batch.student, student.earlier) == [103, 201]
    assert student.earlier_segment.tolist() == [1, 3]
    assert tokens_at(batch.student, student.others) == [103, 201]
    assert tokens_at(teacher, other.compared) == [1102, 1103, 1104, 1207, 1208]
    assert tokens_at(teacher, other.earlier) == [1203, 1204, 1205, 1206]
    assert other.earlier_segment.tolist() == [3, 3, 3, 3]


def test_log_scale_adds_up_the_tokens_before() -> None:
    rows = batch_of([0, 1], "chain").pairs[0].teacher
    scale = rows.log_scale(torch.tensor([-1.0, -0.5, -0.25, -2.0]))
    assert scale is not None
    assert scale.tolist() == [0, 0, 0, -3.75, 0]
    assert batch_of([0, 1]).pairs[0].teacher.log_scale(torch.zeros(0)) is None


@pytest.mark.parametrize("merge", ["first", "chain"])
def test_a_segments_probability_is_the_product_of_all_its_tokens(merge: str) -> None:
    batch = batch_of([0, 1], merge)
    teacher = teacher_batcher().batch(batch.examples)
    student, other = batch.pairs[0].student, batch.pairs[0].teacher
    assert tokens_at(batch.student, student.members) == [102, 103, 104, 105, 201, 202, 203]
    assert student.member_segment.tolist() == [0, 1, 1, 2, 3, 3, 4]
    assert tokens_at(teacher, other.members) == [1102, 1103, 1104, 1203, 1204, 1205, 1206, 1207, 1208]
    tokens = TeacherTokens(Spectrum.from_logits(torch.zeros(9, 4)), -torch.arange(1.0, 10.0))
    assert tokens.segments(other).log_probs.tolist() == [-1, -2, -3, -4 - 5 - 6 - 7 - 8, -9]


def test_teacher_tokens_become_one_scaled_spectrum_per_segment() -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 40)
    log_probs = -torch.rand(9)
    tokens = TeacherTokens(Spectrum.from_logits(logits), log_probs)
    for merge, place, scale in (
        ("first", [0, 1, 2, 3, 8], 0.0),
        ("chain", [0, 1, 2, 7, 8], float(log_probs[3:7].sum())),
    ):
        spectrum = tokens.segments(batch_of([0, 1], merge).pairs[0].teacher).spectrum
        largest = logits.softmax(-1).max(-1).values[place]
        largest[3] *= np.exp(scale)
        assert spectrum.to_probabilities(1)[:, 0].tolist() == pytest.approx(largest.tolist(), rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    indices=st.lists(st.sampled_from([IGNORED, 0, 1, 2, 3]), min_size=1, max_size=4),
    merge=st.sampled_from(["first", "chain"]),
)
def test_rows_predict_what_stands_next_and_every_row_has_one_part(indices: list[int], merge: str) -> None:
    batch = batch_of(indices, merge)
    teacher = teacher_batcher().batch(batch.examples)
    for side, segments in ((batch.student, batch.pairs[0].student), (teacher, batch.pairs[0].teacher)):
        assert torch.equal(side.input_ids.flatten()[side.answer_rows + 1], side.answer_ids)
        assert torch.equal(side.attention_mask.flatten()[side.answer_rows + 1], torch.ones_like(side.answer_ids))
        every = torch.cat([segments.compared, segments.others])
        assert sorted(every.tolist()) == list(range(len(side.answer_ids)))
        assert torch.equal(side.answer_example[segments.compared], batch.pairs[0].example)
        assert torch.equal(side.answer_example[segments.earlier], batch.pairs[0].example[segments.earlier_segment])
        assert set(segments.earlier.tolist()) <= set(segments.others.tolist())


@pytest.mark.parametrize(
    ("budget", "groups"),
    [(1, [[1], [0], [2], [3]]), (12, [[1], [0, 2], [3]]), (27, [[1, 0, 2], [3]]), (36, [[1, 0, 2, 3]])],
)
def test_teacher_batches_keep_to_their_budget(budget: int, groups: list[list[int]]) -> None:
    batcher = teacher_batcher(budget)
    assert batcher.groups([3, 0, 1, 2]) == groups
    assert batcher.groups([]) == []
    assert all(batcher.batch(group).input_ids.numel() <= max(budget, 9) for group in groups)
    assert batcher.shortest == STAND_IN


def test_stand_ins_have_no_weight_and_are_the_shortest() -> None:
    batch = batch_of([IGNORED, 1])
    assert batch.example_weight.tolist() == [0, 1]
    assert batch.examples == [STAND_IN, 1]
    assert batch.student.input_ids[0].tolist() == [400, 401, 402, 7]


def test_a_window_is_its_micro_batches_in_order() -> None:
    window = Batcher(rows(), padding=7).window([np.array([3, 0]), np.array([IGNORED, 2])])
    assert [batch.examples for batch in window] == [[3, 0], [3, 2]]
    assert window[1].student.input_ids[1].tolist() == list(range(300, 308))


def test_a_model_with_an_encoder_has_its_prompts_beside() -> None:
    prompts = [[51, 52, 53], [54]]
    data = Dataset.from_list(
        [ROWS[i] | {"student_encoder_ids": prompt} for i, prompt in enumerate(prompts)], features=FEATURES
    )
    (micro_batch,) = Batcher(data, padding=7).window([np.array([0, 1])])
    side = micro_batch.student
    assert side.encoder_ids is not None and side.encoder_mask is not None
    assert side.encoder_ids.tolist() == [[51, 52, 53], [54, 7, 7]]
    assert side.encoder_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert side.input_ids.tolist() == batch_of([0, 1]).student.input_ids.tolist()
    assert (int(side.num_tokens()), side.num_positions()) == (10 + 4, 12 + 6)
    assert batch_of([0, 1]).student.encoder_ids is None


@pytest.mark.parametrize("prompts", [[], [5, 6]], ids=["decoder-only", "with an encoder"])
def test_moving_a_micro_batch_moves_every_tensor(prompts: list[int]) -> None:
    data = Dataset.from_list([row | {"student_encoder_ids": prompts} for row in ROWS], features=FEATURES)
    (micro_batch,) = Batcher(data, padding=7, merge="chain").window([np.array([0, 1])])
    moved = micro_batch.to(torch.device("meta"))
    (pairs,) = moved.pairs
    held = [*vars(moved).values(), *vars(pairs).values()]
    parts = [part for part in held if isinstance(part, SideBatch | SegmentRows)]
    assert len(parts) == 3
    tensors = [tensor for part in parts for tensor in vars(part).values() if isinstance(tensor, torch.Tensor)]
    tensors += [moved.pairs[0].example, moved.example_weight, moved.answer_bytes]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_examples_from_a_number_on_are_the_students_own_but_for_stand_ins() -> None:
    batcher = Batcher(rows(), padding=7, own_from=1)
    (batch,) = batcher.window([np.array([0, 1, IGNORED, 2])])
    assert batch.own is not None
    # The stand-in has a number of its own and weight 0.
    assert batch.own.tolist() == [False, True, STAND_IN >= 1, True]
    assert batch.weights_of(own=True).tolist() == [0, 1, 0, 1]
    assert batch.weights_of(own=False).tolist() == [1, 0, 0, 0]
    assert batch_of([0, 1]).own is None


def test_a_column_is_read_in_the_order_of_the_rows() -> None:
    given = rows()
    shuffled = given.select([2, 0, 1])
    for data in (given, shuffled, concatenate_datasets([given, shuffled])):
        column = whole_column(data, "student_length")
        assert column.dtype == np.int64
        assert column.tolist() == [row["student_length"] for row in data]
        expected = [row["student_length"] + row["teacher_length"] for row in data]
        assert Batcher(data, padding=0).lengths.tolist() == expected
