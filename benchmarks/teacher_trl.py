"""TRL's side of teacher.py and step.py, in its own environment: GOLDTrainer makes a step for every line it reads."""

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
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.gold import GOLDConfig, GOLDTrainer


class Turns(TrainerCallback):
    """Holds each step until it is asked for, and reports it."""

    def __init__(self) -> None:
        self.begin = 0.0

    def on_step_begin(self, *_args: Any, **_options: Any) -> None:
        if self.begin == 0.0:
            print("READY", flush=True)
        if not sys.stdin.readline():
            sys.exit(0)
        self.begin = time.perf_counter()

    def on_step_end(self, *_args: Any, **_options: Any) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print("STEP" + json.dumps({"seconds": time.perf_counter() - self.begin, "peak_bytes": peak}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pair", type=Path)
    parser.add_argument("--mode", choices=["positional", "extended"], required=True)
    parser.add_argument("--teacher-dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    pair = json.loads(options.pair.read_text())
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    rows = [json.loads(line) for line in Path(pair["text"]).read_text().splitlines()]
    messages = [
        {
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["answer"]},
            ]
        }
        for row in rows
    ]
    arguments = GOLDConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=pair["examples"],
        max_steps=100,
        learning_rate=1e-6,
        max_length=pair["max_length"],
        max_completion_length=pair["max_length"] // 2,
        lmbda=0.0,
        use_uld_loss=True,
        use_extended_uld=options.mode == "extended",
        uld_crossentropy_weight=1.0,
        uld_distillation_weight=1.5,
        teacher_tokenizer_name_or_path=pair["teacher"],
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        dataloader_num_workers=0,
    )
    trainer = GOLDTrainer(
        model=AutoModelForCausalLM.from_pretrained(pair["student"], dtype=torch.float32),
        teacher_model=AutoModelForCausalLM.from_pretrained(
            pair["teacher"], dtype=getattr(torch, options.teacher_dtype)
        ),
        args=arguments,
        train_dataset=Dataset.from_list(messages),
        processing_class=AutoTokenizer.from_pretrained(pair["student"]),
        callbacks=[Turns()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
