"""The precision of teachers that are to be computed in whatever is faster: bf16, or fp32 on CPUs that multiply no bf16.

A CPU with AMX or AVX512-BF16 multiplies matrices of bf16 two to three times as fast as such of fp32; one without takes
many times as long. Which of them a machine is, a product tells: names of instructions do not say what a library does
with them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable

import torch
from torch.nn import functional as F

from uld_ds.recipe import DType, Recipe, TeacherDType

# Rows of a short forward, and a layer of a small model: some 10 milliseconds of a core in fp32, so that a busy machine
# leaves one of the turns undisturbed.
_ROWS, _WIDTH = 256, 1024
_TURNS = 30
# Attention, norms and reading the logits are no faster in bf16, and it rounds: less than this is no reason to.
_WORTHWHILE = 1.3


@torch.no_grad()
def bf16_speedup() -> float:
    """Measure how many times as fast this machine's CPU multiplies matrices of bf16 as such of fp32.

    On one thread, the quickest of some turns each, half a second in all: several threads would wait for the one that
    is disturbed. Where bf16 is slower after the first turn, that is all that is asked.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        operands = {
            dtype: (torch.ones(_ROWS, _WIDTH, dtype=dtype), torch.ones(_WIDTH, _WIDTH, dtype=dtype))
            for dtype in (torch.float32, torch.bfloat16)
        }
        best = dict.fromkeys(operands, float("inf"))
        for turn in range(_TURNS + 1):
            for dtype, (rows, weight) in operands.items():
                begin = time.perf_counter()
                F.linear(rows, weight)
                if turn:  # the first makes the kernel
                    best[dtype] = min(best[dtype], time.perf_counter() - begin)
            if turn == 1 and best[torch.bfloat16] > 2 * best[torch.float32]:
                break
        return best[torch.float32] / best[torch.bfloat16]
    finally:
        torch.set_num_threads(before)


def undecided_precisions(recipe: Recipe) -> list[str]:
    """List the names of the teachers that are to run here in whatever precision is faster."""
    return [own.name for own in recipe.teachers if own.source == "online" and own.precision == "auto"]


def chosen_precision(wanted: TeacherDType, *, on_gpu: bool, speedups: Iterable[float]) -> DType:
    """Choose the precision of a teacher: what its recipe says, or what is faster where that says ``auto``.

    Args:
        wanted: the recipe's ``teacher.precision``.
        on_gpu: whether it runs on GPUs, which all multiply bf16.
        speedups: ``bf16_speedup`` of each machine that it may run on; not looked at where nothing is to be chosen.
    """
    if wanted != "auto":
        return wanted
    return "bf16" if on_gpu or min(speedups) >= _WORTHWHILE else "fp32"


def precision_here(wanted: TeacherDType, *, on_gpu: bool) -> DType:
    """Choose the precision of a teacher that runs in this process alone, by a measurement where it says ``auto``."""
    speedups = [] if on_gpu or wanted != "auto" else [bf16_speedup()]
    return chosen_precision(wanted, on_gpu=on_gpu, speedups=speedups)
