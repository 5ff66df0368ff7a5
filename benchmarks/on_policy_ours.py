"""Our side of on_policy_cost.py: a recipe's trainer makes so many steps for every line that it reads."""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from uld_ds import Trainer
from uld_ds.training.callbacks import TrainerCallback


class Turns(TrainerCallback):
    """Holds the steps of each turn until they are asked for, and reports them."""

    def __init__(self, per_turn: int) -> None:
        self.per_turn = per_turn
        self.seconds: dict[str, float] = {}
        self.tokens = 0.0
        self.begin = 0.0

    def on_start(self, *_arguments: Any, **_options: Any) -> None:
        print("READY", flush=True)
        self._wait()

    def on_round(self, _state: Any, summary: Any) -> None:
        """Adds what the round took up, by phase."""
        for phase, seconds in summary.seconds.items():
            self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def on_step(self, state: Any, metrics: Any) -> None:
        self.tokens += metrics["student_tokens"]
        if state.step % self.per_turn:
            return
        record = {
            "seconds": (time.perf_counter() - self.begin) / self.per_turn,
            "sampling_seconds": self.seconds.get("sampling", 0.0) / self.per_turn,
            "round_seconds": {phase: seconds / self.per_turn for phase, seconds in self.seconds.items()},
            "student_tokens": self.tokens / self.per_turn,
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print("STEP" + json.dumps(record), flush=True)
        self._wait()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)
        self.seconds, self.tokens = {}, 0.0
        self.begin = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--per-turn", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    logging.disable(logging.WARNING)
    # A process group of one, in this process alone.
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)
    from uld_ds.recipe import load_recipe

    Trainer.from_recipe(load_recipe(options.recipe, []), callbacks=[Turns(options.per_turn)]).run()


if __name__ == "__main__":
    main()
