"""The plan of rounds: which steps they serve, and which prompts they ask."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from uld_ds.rollouts.rounds import RoundPlan

PLANS = st.builds(
    RoundPlan,
    every=st.integers(1, 7),
    per_step=st.integers(1, 9),
    samples=st.integers(1, 4),
    num_prompts=st.integers(1, 30),
    total_steps=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)


@given(plan=PLANS)
def test_every_step_learns_from_answers_of_its_own_each_used_once(plan: RoundPlan) -> None:
    used = [(plan.round_of(step), slot) for step in range(plan.total_steps) for slot in plan.slots_of_step(step)]
    made = [(number, slot) for number in range(plan.num_rounds) for slot in range(plan.num_slots(number))]
    assert used == made
    assert plan.num_slots(plan.num_rounds) == 0


@given(plan=PLANS)
def test_answers_to_one_prompt_stand_together(plan: RoundPlan) -> None:
    for number in range(plan.num_rounds):
        chosen = plan.prompts(number)
        assert len(chosen) == plan.num_slots(number)
        firsts = chosen[np.arange(len(chosen)) // plan.samples * plan.samples]
        assert (chosen == firsts).all()


def test_each_pass_over_the_prompts_asks_each_once() -> None:
    plan = RoundPlan(every=2, per_step=6, samples=2, num_prompts=9, total_steps=9, seed=3)
    # Six prompts a round, two answers to each: three rounds are two passes over nine prompts.
    asked = [int(prompt) for number in range(3) for prompt in plan.prompts(number)[::2]]
    assert sorted(asked[:9]) == sorted(asked[9:]) == list(range(9))
    assert asked[:9] != asked[9:]
    # The last round serves one step, and begins like a whole one would.
    assert plan.num_slots(4) == 6
    longer = RoundPlan(every=2, per_step=6, samples=2, num_prompts=9, total_steps=10, seed=3)
    assert plan.prompts(4).tolist() == longer.prompts(4)[:6].tolist()


def test_names_tell_rounds_and_answers_apart() -> None:
    plan = RoundPlan(every=2, per_step=6, samples=2, num_prompts=9, total_steps=9, seed=3)
    names = {plan.name(number, slot) for number in range(12) for slot in range(12)}
    assert len(names) == 144
