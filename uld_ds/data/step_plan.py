"""The plan of an optimizer step: which rank computes which examples, in which micro-batches of at most so many tokens.

A pure function of the lengths: every rank makes the plan of all ranks, so that none has to ask. Examples are dealt to
ranks by the work that they are, longest first, each to the rank with least; then each rank fills its micro-batches
first-fit. All ranks get as many micro-batches as any, since each is a collective.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uld_ds.data.sampling import IGNORED


@dataclass(frozen=True)
class Budget:
    """What a micro-batch may hold."""

    tokens: int
    """Most tokens of either side; a longer example is alone in its micro-batch."""
    examples: int | None = None
    """Most examples; None for any number."""
    padded: bool = False
    """Whether each example costs as much as the longest beside it."""


def work(lengths: np.ndarray, knee: float) -> np.ndarray:
    """Estimate the work of examples, in tokens of a short one: matrices cost per token, attention per pair of tokens.

    Args:
        lengths: [N] tokens.
        knee: length at which attention costs as much as all matrices: some 6 times the hidden size, for causal
            attention of a layer with 12 H^2 weights (2 L H multiplications per token against 12 H^2).
    """
    return lengths * (1.0 + lengths / knee)


def first_fit(
    lengths: Sequence[int] | np.ndarray, tokens: int, examples: int | None = None, *, padded: bool = False
) -> list[list[int]]:
    """Fill groups first-fit in the order given: each example goes to the first group with room for it.

    Longest first, that takes at most 11/9 of the fewest groups and 6/9 of one (Dósa 2007,
    doi 10.1007/978-3-540-74450-4).

    Args:
        lengths: [N] tokens of each example, longest first.
        tokens: most tokens of a group; a longer example is alone in one.
        examples: most examples of a group.
        padded: an example takes as many tokens as the first of its group, which is the longest.

    Returns:
        Places of the examples, group by group; every place once.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    first: list[int] = []
    for place, length in enumerate(int(length) for length in lengths):
        for number, left in enumerate(room):
            if (first[number] if padded else length) <= left and (examples is None or len(groups[number]) < examples):
                break
        else:
            number = len(groups)
            groups.append([])
            room.append(tokens)
            first.append(length)
        groups[number].append(place)
        room[number] -= first[number] if padded else length
    return groups


def plan_step(
    examples: np.ndarray, lengths: np.ndarray, seconds: np.ndarray, budget: Budget, ranks: int
) -> list[list[np.ndarray]]:
    """Deal the examples of a step to ranks and micro-batches.

    Args:
        examples: [N] examples of the step, all different; IGNORED ones are left out.
        lengths: tokens of every example in the data, those of the longer side.
        seconds: work of every example in the data, in any unit.
        budget: what a micro-batch may hold.
        ranks: number of ranks.

    Returns:
        For each rank as many micro-batches as for any other, each [n] examples, n at least 1: [IGNORED] where a rank
        has nothing left to do, and computes a stand-in without weight. Every example is in one of them, once.
    """
    real = examples[examples != IGNORED]
    ordered = real[np.lexsort((real, -seconds[real]))]
    loads = np.zeros(ranks)
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for example in ordered.tolist():
        rank = int(np.argmin(loads))
        dealt[rank].append(example)
        loads[rank] += seconds[example]
    planned = [_filled(own, lengths, budget) for own in dealt]
    number = max(1, *map(len, planned))
    return [_spread(groups, lengths, number) for groups in planned]


def _filled(own: list[int], lengths: np.ndarray, budget: Budget) -> list[list[int]]:
    ordered = sorted(own, key=lambda example: (-lengths[example], example))
    groups = first_fit(lengths[ordered], budget.tokens, budget.examples, padded=budget.padded)
    return [[ordered[place] for place in group] for group in groups]


def _spread(groups: list[list[int]], lengths: np.ndarray, number: int) -> list[np.ndarray]:
    """Make ``number`` groups of fewer: the largest that can be halved is, and what is still missing has no example."""
    groups = list(groups)
    while len(groups) < number:
        sizes = [int(lengths[group].sum()) if len(group) > 1 else 0 for group in groups]
        if not any(sizes):
            break
        largest = groups.pop(int(np.argmax(sizes)))
        groups += [largest[::2], largest[1::2]]
    found = [np.array(group, dtype=np.int64) for group in groups]
    return found + [np.array([IGNORED])] * (number - len(found))
