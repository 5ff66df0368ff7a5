"""What byte spans and alignment cost on top of tokenizing both sides.

    python benchmarks/alignment.py
    python benchmarks/alignment.py --quick                  # 1 MB, two pairs
    python benchmarks/alignment.py --text corpus.txt --megabytes 5 --output alignment.json

Three steps are timed: tokenizing with both tokenizers; the same with the spans of all tokens; cutting both into
segments. They take turns batch by batch, so that a busy machine disturbs all alike. ``added`` is what spans and
segments cost beyond tokenizing, as a share of it. The text is the Python standard library's own, docstrings (prose)
and source (code), in pieces of the length of a conversation, or any UTF-8 file given with ``--text``.
"""

from __future__ import annotations

import argparse
import ast
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import add_output_options, write_results

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.helpers import tokenizers_zoo as zoo  # noqa: E402
from uld_ds.alignment.segments import segment_boundaries  # noqa: E402
from uld_ds.tokenization.spans import batch_token_spans  # noqa: E402

PAIRS = [
    ("smollm2", "gpt2"),
    ("smollm2", "deepseek"),
    ("smollm2", "mistral"),
    ("smollm2", "wordpiece"),
    ("unigram", "deepseek"),
    ("unigram_t5", "mistral"),
]
"""Student and teacher, names from ``tests/helpers/tokenizers_zoo.py``."""
GOAL = 0.5


def standard_library(num_bytes: int) -> str:
    """``num_bytes`` of the Python standard library: half docstrings, half source."""
    prose, code, sizes = [], [], [0, 0]
    for path in sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        source = path.read_text(encoding="utf-8", errors="ignore")
        if sizes[1] < num_bytes // 2:
            code.append(source)
            sizes[1] += len(source.encode())
        elif sizes[0] < num_bytes // 2:
            docs = "\n\n".join(_docstrings(source))
            prose.append(docs)
            sizes[0] += len(docs.encode())
        if min(sizes) >= num_bytes // 2:
            break
    return "".join(prose) + "".join(code)


def _docstrings(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def pieces(text: str, num_bytes: int, length: int) -> list[str]:
    """``text`` in pieces of ``length`` characters, ``num_bytes`` in all; repeated if it is shorter."""
    while len(text.encode()) < num_bytes:
        text += text
    text = text.encode()[:num_bytes].decode(errors="ignore")
    return [text[start : start + length] for start in range(0, len(text), length)]


Clock = Callable[[], float]
# Process time counts the work of all threads and of no other program: on a busy machine it is the steadier one.
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}
STEPS = ("tokenize", "tokenize_and_spans", "segments")


def measure(pair: tuple[str, str], batches: list[list[str]], rounds: int) -> dict[str, Any]:
    """Seconds of each step for one pair, every round, by both clocks, and what spans and segments add."""
    sides = [zoo.ALL[name]() for name in pair]

    def tokenize(batch: list[str]) -> None:
        for tokenizer in sides:
            tokenizer(batch, add_special_tokens=False)

    def with_spans(batch: list[str]) -> list[Any]:
        return [batch_token_spans(tokenizer, batch)[1] for tokenizer in sides]

    def cut(spans: list[Any]) -> tuple[int, int]:
        starts = [segment_boundaries(*item)[0] for item in zip(*spans, strict=True)]
        return sum(map(len, starts)), sum(map(len, spans[0]))

    with_spans(batches[0])  # most of the vocabularies' bytes are learned once
    records = []
    for number in range(rounds):
        seconds = {clock: dict.fromkeys(STEPS, 0.0) for clock in CLOCKS}
        counts = np.zeros(2, int)
        # Steps take turns batch by batch, first one then the other in front, so that a disturbance hits both.
        for batch in batches:
            if number % 2 == 0:
                timed(lambda batch=batch: tokenize(batch), "tokenize", seconds)
            spans = timed(lambda batch=batch: with_spans(batch), "tokenize_and_spans", seconds)
            if number % 2 == 1:
                timed(lambda batch=batch: tokenize(batch), "tokenize", seconds)
            counts += timed(lambda spans=spans: cut(spans), "segments", seconds)
        records.append(seconds)
    added = {clock: [_added(record[clock]) for record in records] for clock in CLOCKS}
    return {
        "student": pair[0],
        "teacher": pair[1],
        "rounds": records,
        "added": added,
        "median_added": {clock: statistics.median(values) for clock, values in added.items()},
        "student_tokens": int(counts[1]),
        "alignment_rate": float(counts[0] / counts[1]),
    }


def timed(work: Callable[[], Any], step: str, seconds: dict[str, dict[str, float]]) -> Any:
    """Do ``work`` and add what it took to ``step``, by every clock."""
    before = {name: clock() for name, clock in CLOCKS.items()}
    result = work()
    for name, clock in CLOCKS.items():
        seconds[name][step] += clock() - before[name]
    return result


def _added(seconds: dict[str, float]) -> float:
    return (seconds["tokenize_and_spans"] + seconds["segments"]) / seconds["tokenize"] - 1.0


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table: medians, and the smallest and largest of the rounds."""
    lines = [
        "| student | teacher | tokenize both, s | with spans, s | segments, s | added, wall | added, CPU | aligned |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        steps = [_spread([record["wall"][step] for record in result["rounds"]], ".2f") for step in STEPS]
        added = [_spread(result["added"][clock], ".0%") for clock in CLOCKS]
        cells = [result["student"], result["teacher"], *steps, *added, f"{result['alignment_rate']:.0%}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: list[float], form: str) -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="UTF-8 file to read instead of the standard library")
    parser.add_argument("--megabytes", type=float, help="how much text (default: 5)")
    parser.add_argument("--length", type=int, default=2000, help="characters per piece (default: 2000)")
    parser.add_argument("--batch", type=int, default=1000, help="pieces per call, as datasets.map has it")
    parser.add_argument("--rounds", type=int, help="repetitions (default: 5)")
    parser.add_argument("--pair", action="append", help="STUDENT,TEACHER from the test suite's tokenizers")
    add_output_options(parser, quick="1 MB of text, three rounds, the first and the last pair")
    options = parser.parse_args()
    options.megabytes = options.megabytes or (1.0 if options.quick else 5.0)
    options.rounds = options.rounds or (3 if options.quick else 5)
    shown = [PAIRS[0], PAIRS[-1]] if options.quick else PAIRS
    pairs = [tuple(pair.split(",")) for pair in options.pair] if options.pair else shown
    for name in {name for pair in pairs for name in pair} - set(zoo.ALL):
        parser.error(f"--pair: no tokenizer {name!r}; there are {', '.join(zoo.ALL)}")

    num_bytes = int(options.megabytes * 1_000_000)
    text = options.text.read_text(encoding="utf-8") if options.text else standard_library(num_bytes)
    texts = pieces(text, num_bytes, options.length)
    batches = [texts[start : start + options.batch] for start in range(0, len(texts), options.batch)]
    results = []
    for number, pair in enumerate(pairs, start=1):
        print(f"{number}/{len(pairs)}: {pair[0]}, {pair[1]}", file=sys.stderr, flush=True)
        results.append(measure(pair, batches, options.rounds))
    worst = {clock: max(result["median_added"][clock] for result in results) for clock in CLOCKS}
    goal = f"Goal: at most {GOAL:.0%} added. Worst pair: {worst['wall']:.0%} wall, {worst['cpu']:.0%} CPU."
    settings = {"bytes": num_bytes, "length": options.length, "batch": options.batch, "rounds": options.rounds}
    notes = [f"{num_bytes:,} bytes in pieces of {options.length:,} characters, {options.rounds} rounds"]
    text = f"{table(results)}\n\n{goal}"
    write_results("alignment", text, {**settings, "pairs": results}, options, notes=notes)
    return 0 if worst["wall"] <= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
