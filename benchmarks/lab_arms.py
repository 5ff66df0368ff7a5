"""Arms of lab.py: an objective, the data that it is used on, and own answers or none; or a configuration of GOLD."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

START = "start"
"""What all arms of a seed begin from: the student after some steps on the gold examples."""
BASELINE = "ce on gold"
LABELED = "ce on the teacher's answers too"
"""What every other objective is compared with: the same data, and nothing of the teacher but its answers."""


@dataclass(frozen=True)
class Ours:
    """An arm that the product trains."""

    data: str
    """``gold``, or ``labeled``: those and the teacher's answers to the prompts without any."""
    objective: dict[str, Any]
    rollouts: dict[str, Any] | None = None


@dataclass(frozen=True)
class Gold:
    """An arm that TRL's GOLDTrainer trains; what is not named is its own default."""

    settings: dict[str, Any]


SOME, MOST = {"ce": 0.7, "projection": 0.3}, {"ce": 0.3, "projection": 0.7}
REVERSE = {"projection_divergence": "reverse_kl"}
SETS = {"projection_outcomes": "sets"}
COMPLETED = {"ce": 0.3, "projection": 0.35, "completion": 0.35}
ALL_THREE = {"ce": 0.4, "projection": 0.2, "completion": 0.2, "likelihood": 0.2} | SETS
HALF_OWN = {"share": 0.5, "every": 5}
ARMS: dict[str, Ours | Gold] = {
    BASELINE: Ours("gold", {"ce": 1.0}),
    LABELED: Ours("labeled", {"ce": 1.0}),
    "0.3 projection": Ours("labeled", SOME),
    "0.7 projection": Ours("labeled", MOST),
    "0.7 projection, reverse": Ours("labeled", MOST | REVERSE),
    "0.7 projection, Jensen-Shannon": Ours("labeled", MOST | {"projection_divergence": "jensen_shannon"}),
    "0.7 projection, one-to-one rows": Ours("labeled", MOST | {"projection_rows": "one_to_one"}),
    "0.7 projection, picked by the student": Ours("labeled", MOST | {"projection_pick": "student"}),
    "0.7 projection, sets": Ours("labeled", MOST | SETS),
    "0.35 projection, 0.35 completion": Ours("labeled", COMPLETED),
    "sets, completion and likelihood": Ours("labeled", ALL_THREE),
    "0.3 likelihood": Ours("labeled", {"ce": 0.7, "likelihood": 0.3}),
    "0.3 hybrid": Ours("labeled", {"ce": 0.7, "hybrid": 0.3}),
    "0.3 ULD": Ours("labeled", {"ce": 0.7, "uld": 0.3}),
    "rollouts, projection": Ours("labeled", SOME, HALF_OWN | {"objective": {"projection": 1.0}}),
    "rollouts, reverse": Ours("labeled", SOME | REVERSE, HALF_OWN | {"objective": {"projection": 1.0}}),
    "rollouts, projection and completion": Ours(
        "labeled", COMPLETED, HALF_OWN | {"objective": {"projection": 0.5, "completion": 0.5}}
    ),
    "rollouts, sets": Ours("labeled", SOME | SETS, HALF_OWN | {"objective": {"projection": 1.0}}),
    "rollouts, sets, completion and likelihood": Ours(
        "labeled",
        ALL_THREE,
        HALF_OWN | {"objective": {"projection": 0.5, "completion": 0.5, "likelihood": 0.5}},
    ),
    "rollouts, likelihood": Ours(
        "labeled", {"ce": 0.7, "likelihood": 0.3}, HALF_OWN | {"objective": {"likelihood": 1.0}}
    ),
    "TRL GOLD": Gold({}),
    # Beyond its defaults: rows that predict the tokens they are compared at, and cross-entropy as in our given answers.
    "TRL GOLD, hybrid, bayesian, ce": Gold(
        {"uld_use_hybrid_loss": True, "uld_token_merge_strategy": "bayesian", "uld_crossentropy_weight": 1.0}
    ),
}
QUICK_ARMS = [BASELINE, LABELED, "0.3 projection"]
