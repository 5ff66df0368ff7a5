"""Which examples a step sees, and on which rank."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uld_ds.data.sampling import IGNORED, deal, num_run_examples, num_steps, step_examples


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
