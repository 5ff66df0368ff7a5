"""What on_policy.py compares: tasks, arms, sizes; the recipe of each run, and where its files are."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from on_policy_models import BETAS, FINAL, LEARNING_RATE, SHAPE, WEIGHT_DECAY, Row

from uld_ds.recipe import Recipe, parse_recipe

START = "start"
"""What all arms of a seed begin from: the student after so many steps on the gold examples."""
BASELINE = "ce on gold"
LABELED = "ce on the teacher's answers too"
OFF_POLICY = "projection, off-policy"
ROLLOUTS = "rollouts"
GIVEN = {"ce": 0.7, "projection": 0.3}


@dataclass(frozen=True)
class Ours:
    """An arm that the product trains."""

    data: str
    """``gold``, or ``labeled``: those and the teacher's answers to the prompts without any."""
    objective: dict[str, float]
    rollouts: dict[str, Any] | None = None


@dataclass(frozen=True)
class Gold:
    """An arm that TRL's GOLDTrainer trains; what is not named is its own default."""

    settings: dict[str, Any]


ARMS: dict[str, Ours | Gold] = {
    BASELINE: Ours("gold", {"ce": 1.0}),
    LABELED: Ours("labeled", {"ce": 1.0}),
    OFF_POLICY: Ours("labeled", GIVEN),
    ROLLOUTS: Ours("labeled", GIVEN, {"share": 0.5, "every": 5, "objective": {"projection": 1.0}}),
    "rollouts, with likelihood": Ours(
        "labeled", GIVEN, {"share": 0.5, "every": 5, "objective": {"projection": 1.0, "likelihood": 1.0}}
    ),
    "rollouts alone": Ours("labeled", GIVEN, {"share": 1.0, "every": 5, "objective": {"projection": 1.0}}),
    "TRL GOLD": Gold({}),
    "TRL GOLD, on-policy": Gold({"lmbda": 1.0}),
    "TRL GOLD, hybrid": Gold({"uld_use_hybrid_loss": True}),
    # Beyond its defaults: rows that predict the tokens they are compared at, and cross-entropy as in our given half.
    "TRL GOLD, hybrid, bayesian": Gold({"uld_use_hybrid_loss": True, "uld_token_merge_strategy": "bayesian"}),
    "TRL GOLD, hybrid, bayesian, ce": Gold(
        {"uld_use_hybrid_loss": True, "uld_token_merge_strategy": "bayesian", "uld_crossentropy_weight": 1.0}
    ),
}
MAIN_ARMS = [BASELINE, LABELED, OFF_POLICY, ROLLOUTS, "TRL GOLD", "TRL GOLD, hybrid"]


@dataclass(frozen=True)
class Task:
    """Problems, and what both sides learn of them."""

    drawn: int
    """Problems that are drawn; about as many differ."""
    teacher_examples: int
    teacher_steps: int
    teacher_vocab: int
    student_vocab: int
    max_new_tokens: int
    """Longest answer, in the student's tokens, and the teacher's."""


TASKS = {
    "number_sorting": Task(80_000, 60_000, 400, 600, 270, 20),
    "spell_backward": Task(80_000, 30_000, 700, 300, 261, 12),
    "chain_sum": Task(80_000, 45_000, 800, 600, 270, 16),
}


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    gold: int
    """Examples with right answers, others for every seed."""
    prompts: int
    """Prompts without, the same for all seeds."""
    held_out: int
    start_steps: int
    steps: int
    batch_size: int
    teacher_share: float = 1.0
    """Of the teacher's steps."""


FULL = Size(gold=1_000, prompts=4_000, held_out=1_000, start_steps=300, steps=500, batch_size=64)
QUICK = Size(gold=100, prompts=200, held_out=50, start_steps=4, steps=4, batch_size=8, teacher_share=0.05)


@dataclass(frozen=True)
class Cell:
    """One training run."""

    task: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return "_".join((self.task, self.arm, str(self.seed))).replace(" ", "-").replace(",", "").replace("'", "")


class Layout:
    """Where the files of a task are, in ``folder``: those of another size or other settings have names of their own."""

    def __init__(self, folder: Path, size: Size, task: str) -> None:
        self.size = size
        self.task = TASKS[task]
        facts = [asdict(self.task), size.teacher_share, SHAPE]
        self.shared = folder / f"{task}-{_digest(facts)}"
        self.folder = folder / f"{task}-{_digest([*facts, asdict(size)])}"

    @property
    def rows(self) -> Path:
        """All problems."""
        return self.shared / "rows.jsonl"

    @property
    def teacher(self) -> Path:
        return self.shared / "teacher"

    @property
    def answered(self) -> Path:
        """The prompts without answers, with the teacher's."""
        return self.folder / "answered.jsonl"

    @property
    def evaluated(self) -> Path:
        """Held-out problems that bits per byte are measured on."""
        return self.folder / "evaluated.jsonl"

    def student(self, seed: int) -> Path:
        """Before any training."""
        return self.folder / f"student-{seed}"

    def trained(self, arm: str, seed: int) -> Path:
        """Of an arm, in Hugging Face layout."""
        return self.folder / "trained" / f"{arm}-{seed}".replace(" ", "-").replace("'", "")

    def data(self, name: str, seed: int) -> Path:
        """Of ``gold`` or ``labeled``, the training rows of a seed."""
        return self.folder / f"{name}-{seed}.jsonl"

    def read(self) -> list[Row]:
        return read_rows(self.rows)

    def held_out(self) -> list[Row]:
        """Problems that nobody has seen."""
        return self.read()[: self.size.held_out]

    def unanswered(self) -> list[Row]:
        """Problems whose right answers nobody is told."""
        return self.read()[self.size.held_out :][: self.size.prompts]

    def gold(self, seed: int) -> list[Row]:
        """Those of a seed."""
        start = self.size.held_out + self.size.prompts + seed * self.size.gold
        return self.read()[start : start + self.size.gold]

    def of_teacher(self) -> list[Row]:
        """From the end: what students see is not among them."""
        rows = self.read()
        if len(rows) < self.size.held_out + self.size.prompts + 10 * self.size.gold + self.task.teacher_examples:
            raise ValueError(f"{len(rows)} problems are too few")
        return rows[-self.task.teacher_examples :]


def _digest(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]


def read_rows(file: Path) -> list[Row]:
    """Of a file of JSON lines."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def write_rows(file: Path, rows: list[Row]) -> None:
    """Whole or not at all."""
    aside = file.with_suffix(".partial")
    aside.write_text("".join(json.dumps(row) + "\n" for row in rows))
    aside.replace(file)


def recipe_of(layout: Layout, cell: Cell) -> Recipe:
    """What a run of ours trains by: the recipe that a user would write."""
    arm = ARMS[BASELINE if cell.arm == START else cell.arm]
    assert isinstance(arm, Ours)
    size, begins = layout.size, cell.arm == START
    student = layout.student(cell.seed) if begins else layout.trained(START, cell.seed)
    tree: dict[str, Any] = {
        "run": {"name": cell.name, "storage": str(layout.folder / "runs"), "seed": cell.seed},
        "teacher": {"model": str(layout.teacher), "precision": "fp32", "max_length": 128, "sharding": "none"},
        "student": {"model": str(student), "precision": "fp32", "max_length": 128}
        | {"deepspeed": "student_zero2_cpu.json"},
        "data": {
            "train": {"source": "files", "path": str(layout.data(arm.data, cell.seed))},
            "eval": {"source": "files", "path": str(layout.evaluated)},
            "workers": 1,
        },
        "objective": {"ce": 0.0, "uld": 0.0} | arm.objective,
        "training": {
            "steps": size.start_steps if begins else size.steps,
            "batch_size": size.batch_size,
            "micro_batch_size": size.batch_size,
            "optimizer": {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "betas": list(BETAS)},
            "schedule": {"kind": "cosine", "warmup": 0.1, "final": FINAL},
        },
        "cluster": {"workers": 1, "accelerator": "cpu"},
    }
    if arm.rollouts is not None:
        tree["rollouts"] = {
            **{"prompts": {"source": "files", "path": str(layout.answered)}, "batch_size": size.batch_size},
            **{"max_new_tokens": layout.task.max_new_tokens, **arm.rollouts},
        }
    return parse_recipe(tree)


def gold_settings(layout: Layout, cell: Cell) -> dict[str, Any]:
    """What a run of GOLDTrainer needs to be told: the same student, teacher, data, steps, batch and optimizer."""
    arm, size = ARMS[cell.arm], layout.size
    assert isinstance(arm, Gold)
    return {
        "student": str(layout.trained(START, cell.seed)),
        "teacher": str(layout.teacher),
        "data": str(layout.data("labeled", cell.seed)),
        "output": str(layout.trained(cell.arm, cell.seed)),
        "arguments": {
            **{"max_steps": size.steps, "per_device_train_batch_size": size.batch_size, "seed": cell.seed},
            **{"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY},
            **{"adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "warmup_steps": size.steps // 10},
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": FINAL},
            **{"max_length": 128, "max_completion_length": layout.task.max_new_tokens, "use_uld_loss": True},
            **arm.settings,
        },
    }


def setup_facts(size: Size, cell: Cell) -> dict[str, Any]:
    """What must be the same for two results to be compared."""
    arm = {} if cell.arm == START else asdict(ARMS[cell.arm])
    optimizer = {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "betas": BETAS, "final": FINAL}
    facts = {"size": asdict(size), "task": asdict(TASKS[cell.task]), "arm": arm, "shape": SHAPE} | optimizer
    return json.loads(json.dumps(facts))
