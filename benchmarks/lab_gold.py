"""TRL's side of lab.py, in its own environment: one run of GOLDTrainer, as its settings file says.

With ``--per-turn N`` it is TRL's side of on_policy_cost.py: it makes so many steps for every line that it reads.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from lab_measure import Curve, Held
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.gold import GOLDConfig, GOLDTrainer


class Steps(TrainerCallback):
    """Seconds of each step, and the student at the points of a curve."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.begin = 0.0
        self.seconds: list[float] = []
        self.trainer: Any = None
        tokenizer = AutoTokenizer.from_pretrained(settings["student"])
        rows = rows_of(settings["problems"])[: settings["held_out"]]
        steps, points = settings["arguments"]["max_steps"], settings["points"]
        self.curve = Curve(Held(tokenizer, rows), lambda: self.trainer.model, steps, points)

    def on_train_begin(self, *_args: Any, **_options: Any) -> None:
        self.curve.take(0, 0.0)

    def on_step_begin(self, *_args: Any, **_options: Any) -> None:
        self.begin = time.perf_counter()

    def on_step_end(self, _arguments: Any, state: Any, _control: Any, **_options: Any) -> None:
        self.seconds.append(time.perf_counter() - self.begin)
        self.curve.take(state.global_step, self.trainer.student_tokens)


class Turns(TrainerCallback):
    """Holds the steps of each turn until they are asked for, and reports them."""

    def __init__(self, per_turn: int) -> None:
        self.per_turn = per_turn
        self.trainer: Any = None
        self.begin = 0.0

    def on_step_begin(self, _arguments: Any, state: Any, _control: Any, **_options: Any) -> None:
        if state.global_step % self.per_turn:
            return
        if state.global_step == 0:
            print("READY", flush=True)
        if not sys.stdin.readline():
            sys.exit(0)
        self.trainer.sampling_seconds, self.trainer.student_tokens = 0.0, 0
        self.begin = time.perf_counter()

    def on_step_end(self, _arguments: Any, state: Any, _control: Any, **_options: Any) -> None:
        if state.global_step % self.per_turn:
            return
        record = {
            "seconds": (time.perf_counter() - self.begin) / self.per_turn,
            "sampling_seconds": self.trainer.sampling_seconds / self.per_turn,
            "student_tokens": self.trainer.student_tokens / self.per_turn,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print("STEP" + json.dumps(record), flush=True)


class Counting(GOLDTrainer):
    """Counts the tokens that the student reads, padding apart, and the seconds of sampling."""

    student_tokens = 0
    sampling_seconds = 0.0

    def generate_on_policy_outputs(self, *args: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        found = super().generate_on_policy_outputs(*args, **options)
        self.sampling_seconds += time.perf_counter() - begin
        return found

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
        self.student_tokens += int(inputs["attention_mask"].sum())
        return super().compute_loss(model, inputs, *args, **options)


def rows_of(file: str) -> list[dict[str, str]]:
    """Prompts and answers, in a file of JSON lines."""
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def trainer_of(settings: dict[str, Any], callback: TrainerCallback) -> Counting:
    """GOLD's trainer of a student, a teacher and rows of prompts and answers."""
    messages = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in rows_of(settings["data"])
    ]
    config = GOLDConfig(
        output_dir=tempfile.mkdtemp(),
        teacher_tokenizer_name_or_path=settings["teacher"],
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        logging_steps=25,
        disable_tqdm=True,
        **settings["arguments"],
    )
    return Counting(
        model=AutoModelForCausalLM.from_pretrained(settings["student"], dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_pretrained(settings["teacher"], dtype=torch.float32),
        args=config,
        train_dataset=Dataset.from_list(messages),
        processing_class=AutoTokenizer.from_pretrained(settings["student"]),
        callbacks=[callback],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=Path)
    parser.add_argument("--per-turn", type=int)
    options = parser.parse_args()
    settings = json.loads(options.settings.read_text())
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    if options.per_turn:
        turns = Turns(options.per_turn)
        turns.trainer = trainer_of(settings, turns)
        turns.trainer.train()
        return
    cpu = time.process_time()
    steps = Steps(settings)
    steps.trainer = trainer = trainer_of(settings, steps)
    trainer.train()
    trainer.save_model(settings["output"])
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    record = {
        "child_cpu_seconds": time.process_time() - cpu,
        "losses": [entry["loss"] for entry in logged],
        "step_seconds": sorted(steps.seconds)[len(steps.seconds) // 2],
        "student_tokens": trainer.student_tokens,
        "curve": steps.curve.found,
    }
    print("\n" + json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
