"""What lab.py compares arms on: settings; the recipe of each run, and where its files are."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lab_arms import ARMS, BASELINE, START, Gold, Ours
from lab_measure import Row
from lab_models import BETAS, FINAL, LEARNING_RATE, SHAPE, WEIGHT_DECAY

from uld_ds.recipe import Recipe, parse_recipe

TEACHER_BATCH = 128
NUMBERS, MOST_NUMBERS, DIGITS = 600, 340, 261
"""Sizes of vocabularies: every number up to 99 is a token; four of five of those that follow a space are; none is, as
there is nothing but bytes."""


@dataclass(frozen=True)
class Setting:
    """Problems, a pair of tokenizers, what each side is told, and how long it learns."""

    problems: str
    """Of lab_tasks.py."""
    noise: float
    """Share of the answers told to the student that are wrong: two neighbors are swapped. Held-out ones are right."""
    teacher_noise: float
    """The same of those told to the teacher: it is unsure, and right to be so."""
    teacher_vocab: int
    student_vocab: int
    teacher_examples: int
    teacher_steps: int
    gold: int
    """Examples that the student is told, others for every seed."""
    prompts: int
    """Prompts that nobody tells the answers to, the same for all seeds; the teacher answers them."""
    start_steps: int
    steps: int
    batch_size: int = 64
    drawn: int = 100_000
    """Problems that are drawn; of few numbers two thirds differ, else almost all."""
    held_out: int = 1_000
    points: int = 8
    """How often the student is measured while an arm trains."""
    max_new_tokens: int = 16
    """Longest answer, in the student's tokens, and the teacher's."""

    def quick(self) -> Setting:
        """A few steps: whether it runs."""
        few = {"gold": 100, "prompts": 200, "held_out": 50, "start_steps": 4, "steps": 4, "batch_size": 8, "points": 2}
        return replace(self, teacher_steps=60, teacher_examples=5_000, drawn=10_000, **few)


MIXED = {"gold": 2_000, "prompts": 4_000, "start_steps": 250, "steps": 300}
COARSE = {"gold": 2_000, "prompts": 4_000, "start_steps": 200, "steps": 300}
FINE = {"gold": 2_000, "prompts": 2_000, "start_steps": 400, "steps": 200}
SETTINGS = {
    "mixed": Setting("sorting", 0.0, 0.0, NUMBERS, MOST_NUMBERS, 60_000, 1_400, **MIXED),
    "mixed, noisy": Setting("sorting", 0.3, 0.1, NUMBERS, MOST_NUMBERS, 60_000, 1_400, **MIXED),
    "coarse": Setting("sorting", 0.0, 0.0, DIGITS, NUMBERS, 60_000, 600, **COARSE),
    "coarse, noisy": Setting("sorting", 0.3, 0.3, DIGITS, NUMBERS, 60_000, 600, **COARSE),
    "fine": Setting("sorting few", 0.0, 0.0, NUMBERS, DIGITS, 40_000, 900, **FINE),
    "fine, noisy": Setting("sorting few", 0.3, 0.1, NUMBERS, DIGITS, 40_000, 900, **FINE),
    "several": Setting("even first", 0.0, 0.0, NUMBERS, MOST_NUMBERS, 60_000, 600, **MIXED),
    "steps": Setting("chain_sum digits", 0.0, 0.0, NUMBERS, MOST_NUMBERS, 60_000, 900, **MIXED),
}
MAIN_SETTINGS = ["mixed, noisy", "coarse, noisy", "fine, noisy"]


def setting_of(name: str, *, quick: bool) -> Setting:
    """By its name."""
    return SETTINGS[name].quick() if quick else SETTINGS[name]


@dataclass(frozen=True)
class Cell:
    """One training run."""

    setting: str
    arm: str
    seed: int
    budget: int = 100
    """Percent of the setting's steps, within which its learning rate falls."""

    @property
    def name(self) -> str:
        """Of its files."""
        share = "" if self.budget == 100 else f"_{self.budget}"
        words = "_".join((self.setting, self.arm, str(self.seed))) + share
        return words.replace(" ", "-").replace(",", "").replace("'", "")

    def steps(self, setting: Setting) -> int:
        """Of this run."""
        return setting.start_steps if self.arm == START else round(setting.steps * self.budget / 100)


class Layout:
    """Where the files of a setting are, in ``folder``: those of other settings have names of their own."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.setting = setting
        problems = [setting.problems, setting.drawn]
        teacher = [
            *problems,
            setting.teacher_noise,
            setting.teacher_vocab,
            setting.teacher_examples,
            setting.teacher_steps,
        ]
        name = setting.problems.replace(" ", "-")
        self.rows = folder / f"{name}-{_digest(problems)}.jsonl"
        """All problems, with right answers."""
        self.of_teacher = folder / f"{name}-teacher-{_digest([*teacher, SHAPE])}"
        self.folder = folder / f"{name}-{_digest([asdict(setting), SHAPE])}"

    @property
    def teacher(self) -> Path:
        """In Hugging Face layout."""
        return self.of_teacher / "model"

    @property
    def answered(self) -> Path:
        """The prompts without answers, with the teacher's."""
        return self.folder / "answered.jsonl"

    @property
    def evaluated(self) -> Path:
        """Held-out problems that the product measures bits per byte on."""
        return self.folder / "evaluated.jsonl"

    def student(self, seed: int) -> Path:
        """Before any training."""
        return self.folder / f"student-{seed}"

    def trained(self, cell: Cell) -> Path:
        """A run's student."""
        return self.folder / "trained" / cell.name

    def start(self, seed: int) -> Path:
        """What all arms of a seed begin from."""
        return self.folder / "start" / str(seed)

    def data(self, name: str, seed: int) -> Path:
        """Of ``gold`` or ``labeled``, the training rows of a seed."""
        return self.folder / f"{name}-{seed}.jsonl"

    def held_out(self) -> list[Row]:
        """Problems that nobody has seen, with right answers."""
        return read_rows(self.rows)[: self.setting.held_out]

    def unanswered(self) -> list[Row]:
        """Problems that nobody is told the answers to."""
        return read_rows(self.rows)[self.setting.held_out :][: self.setting.prompts]

    def gold(self, seed: int) -> list[Row]:
        """What a seed's student is told."""
        start = self.setting.held_out + self.setting.prompts + seed * self.setting.gold
        return swapped(read_rows(self.rows)[start : start + self.setting.gold], self.setting.noise)

    def taught(self) -> list[Row]:
        """What the teacher is told, from the end: students see none of it."""
        rows, setting = read_rows(self.rows), self.setting
        if len(rows) < setting.held_out + setting.prompts + 8 * setting.gold + setting.teacher_examples:
            raise ValueError(f"{len(rows)} problems are too few")
        return swapped(rows[-setting.teacher_examples :], setting.teacher_noise)


def swapped(rows: list[Row], share: float) -> list[Row]:
    """Prompts and answers alone, of which such a share has two neighbors swapped, by the problem alone."""
    found = []
    for row in rows:
        draw = random.Random(row["prompt"])  # noqa: S311 (no secret)
        words = row["answer"].split(" ")
        if draw.random() < share:
            place = draw.randrange(len(words) - 1)
            words[place], words[place + 1] = words[place + 1], words[place]
        found.append({"prompt": row["prompt"], "answer": " ".join(words)})
    return found


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
    setting, begins = layout.setting, cell.arm == START
    student = layout.student(cell.seed) if begins else layout.start(cell.seed)
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
            "steps": cell.steps(setting),
            "batch_size": setting.batch_size,
            "micro_batch_size": setting.batch_size,
            "optimizer": {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "betas": list(BETAS)},
            "schedule": {"kind": "cosine", "warmup": 0.1, "final": FINAL},
        },
        "cluster": {"workers": 1, "accelerator": "cpu"},
    }
    if arm.rollouts is not None:
        tree["rollouts"] = {
            **{"prompts": {"source": "files", "path": str(layout.answered)}, "batch_size": setting.batch_size},
            **{"max_new_tokens": setting.max_new_tokens, **arm.rollouts},
        }
    return parse_recipe(tree)


def gold_settings(layout: Layout, cell: Cell) -> dict[str, Any]:
    """What a run of GOLDTrainer needs to be told: the same student, teacher, data, steps, batch and optimizer."""
    arm, setting, steps = ARMS[cell.arm], layout.setting, cell.steps(layout.setting)
    assert isinstance(arm, Gold)
    return {
        "student": str(layout.start(cell.seed)),
        "teacher": str(layout.teacher),
        "data": str(layout.data("labeled", cell.seed)),
        "problems": str(layout.rows),
        "held_out": setting.held_out,
        "points": setting.points,
        "output": str(layout.trained(cell)),
        "arguments": {
            **{"max_steps": steps, "per_device_train_batch_size": setting.batch_size, "seed": cell.seed},
            **{"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY},
            **{"adam_beta1": BETAS[0], "adam_beta2": BETAS[1], "warmup_steps": steps // 10},
            "lr_scheduler_type": "cosine_with_min_lr",
            "lr_scheduler_kwargs": {"min_lr_rate": FINAL},
            **{"max_length": 128, "max_completion_length": setting.max_new_tokens, "use_uld_loss": True},
            **arm.settings,
        },
    }


def setup_facts(setting: Setting, cell: Cell) -> dict[str, Any]:
    """What must be the same for two results to be compared."""
    arm = {} if cell.arm == START else asdict(ARMS[cell.arm])
    optimizer = {"learning_rate": LEARNING_RATE, "weight_decay": WEIGHT_DECAY, "betas": BETAS, "final": FINAL}
    facts = {"setting": asdict(setting), "arm": arm, "budget": cell.budget, "shape": SHAPE} | optimizer
    return json.loads(json.dumps(facts))
