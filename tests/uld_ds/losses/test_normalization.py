"""Weights of a step add up to one over all ranks, and `sample` is the paper's mean of per-sample means."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers.micro_batches import micro_batch
from uld_ds.batches import MicroBatch
from uld_ds.losses.normalization import RowWeights, step_weights, sum_of


def over_ranks(windows: list[list[MicroBatch]], normalize: str) -> list[list[RowWeights]]:
    """The weights that each of several ranks computes for its window."""
    local: list[Tensor] = []
    for window in windows:
        step_weights(window, normalize, lambda values: local.append(values) or values)  # type: ignore[arg-type,func-returns-value]
    total = torch.stack(local).sum(0)
    return [[row for (row,) in step_weights(window, normalize, lambda _values: total)] for window in windows]  # type: ignore[arg-type]


counts = st.tuples(st.sampled_from([0.0, 1.0, 1.0]), st.integers(1, 6), st.integers(1, 6))
windows_of_ranks = st.lists(
    st.lists(st.lists(counts, min_size=1, max_size=3), min_size=1, max_size=3), min_size=1, max_size=3
).filter(lambda ranks: any(weight for window in ranks for batch in window for weight, _, _ in batch))


@pytest.mark.parametrize("normalize", ["token", "sample"])
@settings(max_examples=50, deadline=None)
@given(ranks=windows_of_ranks)
def test_weights_of_each_kind_add_up_to_one_over_ranks(
    normalize: str, ranks: list[list[list[tuple[float, int, int]]]]
) -> None:
    weights = over_ranks([[micro_batch(batch) for batch in window] for window in ranks], normalize)
    for kind in ("answers", "segments"):
        assert sum(float(sum_of(rank, kind)) for rank in weights) == pytest.approx(1, abs=1e-6)  # type: ignore[arg-type]


def test_token_divides_by_global_counts() -> None:
    first, second = over_ranks([[micro_batch([(1, 3, 1)])], [micro_batch([(1, 1, 2), (0, 5, 5)])]], "token")
    assert first[0].answers.tolist() == pytest.approx([1 / 4] * 3)
    assert first[0].segments.tolist() == pytest.approx([1 / 3])
    assert second[0].answers.tolist() == pytest.approx([1 / 4] + [0] * 5)
    assert second[0].segments.tolist() == pytest.approx([1 / 3] * 2 + [0] * 5)


def test_sample_is_the_mean_of_per_sample_means() -> None:
    window = [micro_batch([(1, 2, 1), (0, 9, 9)]), micro_batch([(1, 4, 3), (1, 1, 2)])]
    losses = [torch.tensor([1.0, 3.0, *[99.0] * 9]), torch.tensor([2.0, 2.0, 4.0, 8.0, 10.0])]
    distances = [torch.tensor([0.5, *[99.0] * 9]), torch.tensor([1.0, 0.0, 0.5, 0.25, 0.75])]
    weights = [row for (row,) in step_weights(window, "sample", lambda values: values)]
    ce = sum(float(row.answers @ loss) for row, loss in zip(weights, losses, strict=True))
    uld = sum(float(row.segments @ distance) for row, distance in zip(weights, distances, strict=True))
    # Samples: mean(1, 3) = 2, mean(2, 2, 4, 8) = 4, mean(10) = 10; and 0.5, mean(1, 0, 0.5) = 0.5, 0.5.
    assert ce == pytest.approx((2 + 4 + 10) / 3)
    assert uld == pytest.approx((0.5 + 0.5 + 0.5) / 3)


def test_a_step_of_stand_ins_alone_has_no_weight() -> None:
    ((weights,),) = step_weights([micro_batch([(0, 2, 2)])], "token", lambda values: values)
    assert weights.answers.tolist() == weights.segments.tolist() == [0, 0]


@pytest.mark.parametrize("normalize", ["token", "sample"])
def test_rows_of_their_own_are_counted_over_all_teachers_and_ranks(normalize: str) -> None:
    """One rank has rows of the first teacher alone, the other one of each: together they weigh as of one teacher."""

    def routed(examples: list[tuple[float, int, int]], judges: list[int]) -> MicroBatch:
        whole = micro_batch(examples)
        (pairs,) = whole.pairs
        of_judge = torch.tensor(judges)
        return replace(
            whole,
            pairs=tuple(replace(pairs, example=pairs.example[of_judge[pairs.example] == n]) for n in (0, 1)),
        )

    examples = [[(1.0, 3, 2), (1.0, 2, 1)], [(1.0, 4, 3), (1.0, 1, 1), (0.0, 2, 2)]]
    windows = [[routed(examples[0], [0, 0])], [routed(examples[1], [1, 0, 1])]]
    local: list[Tensor] = []
    for window in windows:
        step_weights(window, normalize, lambda values: local.append(values) or values)  # type: ignore[arg-type,func-returns-value]
    total = torch.stack(local).sum(0)
    found = [step_weights(w, normalize, lambda _: total, together=True)[0] for w in windows]  # type: ignore[arg-type]
    of_one = [rank[0] for rank in over_ranks([[micro_batch(own)] for own in examples], normalize)]
    assert [len(by_teacher.segments) for by_teacher in found[0]] == [3, 0]
    assert found[0][0].segments.tolist() == pytest.approx(of_one[0].segments.tolist())
    # The second rank's segments: three of its first example, one of the next, two of a stand-in.
    of_second = of_one[1].segments.tolist()
    assert found[1][1].segments.tolist() == pytest.approx(of_second[:3] + of_second[4:])
    assert found[1][0].segments.tolist() == pytest.approx(of_second[3:4])
    assert sum(float(own.segments.sum()) for rank in found for own in rank) == pytest.approx(1)
