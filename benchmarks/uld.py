"""What the ULD loss costs: forward and backward on one answer, ours against TRL GOLD's, cross-entropy as yardstick.

    python benchmarks/uld.py --quick                  # 2-3 minutes on two cores
    python benchmarks/uld.py --output uld.json --markdown uld.md     # everything; most of the time is TRL's
    python benchmarks/uld.py --device cuda --dtype bfloat16

Every part computes cross-entropy + 1.5 ULD and its gradient with respect to the student's logits, on synthetic Zipf
logits, student vocabulary 49,152 and teacher vocabulary 262,144 (``--student-vocab``, ``--teacher-vocab``):

    linear          teacher logits -> spectra -> loss and gradient (uld_ds, no sort)
    spectrum        the same with the teacher's spectra at hand, as in training
    distance        uld_distance() with spectra through autograd, beside F.cross_entropy
    exact           the sorted form through autograd, beside F.cross_entropy
    cross_entropy   F.cross_entropy alone: the yardstick
    trl_extended    trl.experimental.gold ULDLoss, segments by byte offsets
    trl_positional  the same, position by position

TRL comes from its package, in a virtual environment of its own that is made once in ``--cache``. Both sides run in
one process there, in turns, so that a busy machine disturbs all alike. Printed are medians, the spread (largest over
smallest), the peak memory beyond what was held before, and how many times longer a part takes than reading its
inputs once at the measured bandwidth. A ratio is only printed where the spread leaves it its meaning.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import venv
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measuring import (
    Cell,
    PeakMemory,
    add_output_options,
    add_trl_options,
    now,
    num_cores,
    ratio,
    read_bandwidth,
    write_results,
)
from uld_parts import READ_ONE_SIDE, our_parts, trl_parts, zipf_logits

ROOT = Path(__file__).resolve().parents[1]
TRL, TORCH = "1.16.0", "2.13.0"
# A part longer than this is run twice, not more; one that would be longer than the second figure not at all.
SLOW_SECONDS, TOO_SLOW_SECONDS = 20.0, 400.0
# What is asked of the parts: (part, against, tokens, at least this many times faster).
TARGETS = [
    ("linear", "trl_extended", 512, 50.0),
    ("linear", "trl_positional", 256, 4.0),
    ("spectrum", "cross_entropy", None, 1 / 4),
]
MEMORY_TARGET = ("linear", "trl_extended", 512, 8.0)


# --- the other environment --------------------------------------------------------------------------------------


def trl_python(cache: Path) -> Path:
    """Python of an environment with trl in it, made if it is not there. Raises CalledProcessError if it cannot be."""
    home = cache / f"trl-{TRL}"
    python = home / "bin" / "python"
    check = [str(python), "-c", f"import trl; assert trl.__version__ == '{TRL}'"]
    if not python.exists() or subprocess.run(check, capture_output=True).returncode != 0:
        print(f"making an environment with trl {TRL} in {home}", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        # torch first and pinned: with none installed an open range brings a CUDA build of several gigabytes.
        for package in (f"torch=={TORCH}", f"trl=={TRL}"):
            subprocess.run([str(python), "-m", "pip", "install", "--quiet", package], check=True)
    return python


# --- measuring --------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, tokens: int, expected: dict[str, float]) -> list[Cell]:
    """All parts at one length, in turns. ``expected`` holds seconds per part, filled in for the next length."""
    import torch

    dtype = getattr(torch, options.dtype)
    student = zipf_logits(tokens, options.student_vocab, 1, options.device, dtype)
    teacher = zipf_logits(tokens, options.teacher_vocab, 2, options.device, dtype)
    target = torch.arange(tokens, device=options.device) * 31 % options.student_vocab
    parts = our_parts(student, teacher, target)
    if options.with_trl:
        parts |= trl_parts(student, teacher, target)
    one = student.element_size() * tokens
    both = one * (options.student_vocab + options.teacher_vocab)
    alone = one * options.student_vocab
    cells = [Cell(name, tokens, alone if name in READ_ONE_SIDE else both) for name in parts]
    for cell in cells:
        limit = SLOW_SECONDS if options.quick else TOO_SLOW_SECONDS
        # From the last length on: linear in the tokens, but for TRL's extended mode, whose backward is quadratic.
        guess = expected.get(cell.part, 0.0)
        if guess > limit:
            cell.skipped = f"about {guess:.0f} s a run"
    for turn in range(options.repeats + 1):
        for cell in cells:
            if cell.skipped or (len(cell.seconds) >= 2 and cell.median > SLOW_SECONDS):
                continue
            with PeakMemory(options.device) as memory:
                start = now(options.device)
                result = parts[cell.part]()
                seconds = now(options.device) - start
                del result
            if memory.peak is not None:
                cell.peak_bytes = max(cell.peak_bytes or 0, memory.peak)
            # The first turn warms up, unless a turn takes so long that warmth cannot matter.
            if turn > 0 or seconds > SLOW_SECONDS:
                cell.seconds.append(seconds)
    for cell in cells:
        if cell.seconds:
            expected[cell.part] = cell.median
            print(f"  {tokens} tokens, {cell.part}: {cell.median:.3f} s", file=sys.stderr)
    return cells


def worker(options: argparse.Namespace) -> dict[str, Any]:
    """Measure everything in this process."""
    import torch

    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    bandwidth = read_bandwidth(options.device)
    cells: list[Cell] = []
    expected: dict[str, float] = {}
    last = None
    for tokens in options.tokens:
        if last is not None:
            growth = tokens / last
            expected = {part: s * growth ** (2 if part == "trl_extended" else 1) for part, s in expected.items()}
        cells += measure(options, tokens, expected)
        last = tokens
    device = torch.cuda.get_device_name() if options.device == "cuda" else f"{platform.machine()} CPU"
    return {
        "device": device,
        "threads": options.threads,
        "torch": torch.__version__,
        "trl": TRL if options.with_trl else None,
        "dtype": options.dtype,
        "student_vocab": options.student_vocab,
        "teacher_vocab": options.teacher_vocab,
        "read_bandwidth": bandwidth,
        "load_average": os.getloadavg()[0],
        "cells": [asdict(cell) for cell in cells],
    }


# --- reporting --------------------------------------------------------------------------------------------------


def markdown(result: dict[str, Any]) -> str:
    """The table, then what was aimed at."""
    cells = [Cell(**cell) for cell in result["cells"]]
    lines = [
        f"{result['device']}, {result['threads']} threads, torch {result['torch']}, "
        f"trl {result['trl'] or 'not used'}, {result['dtype']}, vocabulary {result['student_vocab']:,} / "
        f"{result['teacher_vocab']:,}; reading memory {result['read_bandwidth'] / 1e9:.1f} GB/s; "
        f"load average {result['load_average']:.1f}",
        "",
        "| answer tokens | part | median s | spread | runs | extra peak MB | x reading its input once |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        if cell.skipped:
            lines.append(f"| {cell.tokens} | {cell.part} | skipped: {cell.skipped} | | | | |")
            continue
        peak = "?" if cell.peak_bytes is None else f"{cell.peak_bytes / 1e6:.0f}"
        reads = cell.median / (cell.input_bytes / result["read_bandwidth"])
        lines.append(
            f"| {cell.tokens} | {cell.part} | {cell.median:.4g} | {cell.spread:.2f} | {len(cell.seconds)} "
            f"| {peak} | {reads:.1f} |"
        )
    return "\n".join([*lines, "", *_against_targets(cells), *_linearity(cells)])


def _against_targets(cells: list[Cell]) -> list[str]:
    by = {(cell.part, cell.tokens): cell for cell in cells}
    lines = []
    for part, against, tokens, least in TARGETS:
        for length in sorted({cell.tokens for cell in cells} if tokens is None else {tokens}):
            ours, theirs = by.get((part, length)), by.get((against, length))
            if ours is None or theirs is None:
                continue
            if least < 1:
                lines.append(f"- {part} over {against} at {length}: {ratio(ours, theirs)}, aim at most {1 / least:g}")
            else:
                lines.append(f"- {against} over {part} at {length}: {ratio(theirs, ours)}, aim at least {least:g}")
    part, against, tokens, least = MEMORY_TARGET
    ours, theirs = by.get((part, tokens)), by.get((against, tokens))
    if ours and theirs and ours.peak_bytes and theirs.peak_bytes:
        lines.append(
            f"- extra memory, {against} over {part} at {tokens}: {theirs.peak_bytes / ours.peak_bytes:.1f}, "
            f"aim at least {least:g}"
        )
    return lines


def _linearity(cells: list[Cell]) -> list[str]:
    lines = []
    for part in ("linear", "spectrum", "trl_extended"):
        done = [cell for cell in cells if cell.part == part and cell.seconds]
        if len(done) > 1:
            each = ", ".join(f"{1e3 * cell.median / cell.tokens:.3g} at {cell.tokens}" for cell in done)
            lines.append(f"- {part}, ms per token: {each}")
    return lines


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", help="answer lengths (default: 64 256 512 2048)")
    parser.add_argument("--repeats", type=int, help="runs per part after one to warm up (default: 5)")
    parser.add_argument("--student-vocab", type=int, default=49_152)
    parser.add_argument("--teacher-vocab", type=int, default=262_144)
    parser.add_argument("--threads", type=int, default=num_cores())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    add_trl_options(parser)
    add_output_options(parser, quick="lengths 64 and 256, three runs, no run over 20 s")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.tokens = sorted(options.tokens or ([64, 256] if options.quick else [64, 256, 512, 2048]))
    options.repeats = options.repeats or (3 if options.quick else 5)
    return options


def main() -> int:
    options = parse()
    if options.worker:
        json.dump(worker(options), sys.stdout)
        return 0
    python, extra = Path(sys.executable), []
    if options.with_trl:
        try:
            python = trl_python(options.cache)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"trl {TRL} cannot be installed here, so it is left out: {error}", file=sys.stderr)
            extra = ["--no-trl"]
    command = [str(python), __file__, *sys.argv[1:], *extra, "--worker"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        print("the measurement failed", file=sys.stderr)
        return 1
    result = json.loads(done.stdout.strip().splitlines()[-1])
    write_results("uld", markdown(result), result, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
