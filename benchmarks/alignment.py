"""What byte spans and alignment cost on top of tokenising both sides.

    python benchmarks/alignment.py
    python benchmarks/alignment.py --text corpus.txt --megabytes 5 --output alignment.json

Three things are timed, in turn, round after round, so that a busy machine disturbs all alike: tokenising with both
tokenizers; finding the spans of all tokens on both sides *and* tokenising; cutting both into segments. ``added`` is
what the last two cost beyond the first, as a share of it. The text is the Python standard library's own, docstrings
(prose) and source (code), in pieces of the length of a conversation, or any UTF-8 file given with ``--text``.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests import tokenizers_zoo as zoo  # noqa: E402
from uld_ds.alignment import batch_token_spans, segment_boundaries  # noqa: E402

PAIRS = [
    ("smollm2", "gpt2"),
    ("smollm2", "deepseek"),
    ("smollm2", "mistral"),
    ("smollm2", "wordpiece"),
    ("unigram", "deepseek"),
    ("unigram_t5", "mistral"),
]
"""Student and teacher, names from ``tests/tokenizers_zoo.py``."""
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


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def measure(pair: tuple[str, str], batches: list[list[str]], rounds: int) -> dict[str, Any]:
    """Seconds of each step for one pair, all rounds, and what they come to."""
    sides = [zoo.ALL[name]() for name in pair]

    def tokenize() -> None:
        for batch in batches:
            for tokenizer in sides:
                tokenizer(batch, add_special_tokens=False)

    def with_spans() -> list[list[Any]]:
        return [[batch_token_spans(tokenizer, batch)[1] for tokenizer in sides] for batch in batches]

    def cut(spans: list[list[Any]]) -> int:
        pairs = [item for student, teacher in spans for item in zip(student, teacher, strict=True)]
        return sum(len(segment_boundaries(*item)[0]) for item in pairs)

    with_spans()  # the vocabularies' bytes are learnt once
    seconds: dict[str, list[float]] = {"tokenize": [], "tokenize_and_spans": [], "segments": []}
    for _ in range(rounds):
        seconds["tokenize"].append(timed(tokenize)[0])
        elapsed, spans = timed(with_spans)
        seconds["tokenize_and_spans"].append(elapsed)
        elapsed, num_segments = timed(lambda spans=spans: cut(spans))
        seconds["segments"].append(elapsed)
    added = [(both + segments) / alone - 1.0 for alone, both, segments in zip(*seconds.values(), strict=True)]
    num_tokens = sum(len(item) for student, _ in spans for item in student)
    return {
        "student": pair[0],
        "teacher": pair[1],
        "seconds": seconds,
        "added": added,
        "median_added": statistics.median(added),
        "student_tokens": num_tokens,
        "alignment_rate": num_segments / num_tokens,
    }


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table: medians, and the smallest and largest of the rounds."""
    lines = [
        "| student | teacher | tokenize both, s | + spans, s | segments, s | added | aligned |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        alone, both, segments = (_spread(values) for values in result["seconds"].values())
        added = sorted(result["added"])
        lines.append(
            f"| {result['student']} | {result['teacher']} | {alone} | {both} | {segments} "
            f"| **{result['median_added']:.0%}** ({added[0]:.0%} to {added[-1]:.0%}) "
            f"| {result['alignment_rate']:.0%} |"
        )
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="UTF-8 file to read instead of the standard library")
    parser.add_argument("--megabytes", type=float, default=5.0, help="how much text (default: 5)")
    parser.add_argument("--length", type=int, default=2000, help="characters per piece (default: 2000)")
    parser.add_argument("--batch", type=int, default=1000, help="pieces per call, as datasets.map has it")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions (default: 5)")
    parser.add_argument("--pair", action="append", help="STUDENT,TEACHER from the test suite's tokenizers")
    parser.add_argument("--output", type=Path, help="write everything measured to this JSON file")
    options = parser.parse_args()
    pairs = [tuple(pair.split(",")) for pair in options.pair] if options.pair else PAIRS
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
    print(table(results))
    worst = max(result["median_added"] for result in results)
    print(f"\nGoal: at most {GOAL:.0%} added. Worst pair: {worst:.0%}.")
    if options.output:
        settings = {"bytes": num_bytes, "length": options.length, "batch": options.batch, "rounds": options.rounds}
        record = {**settings, "cpus": os.cpu_count(), "python": sys.version.split()[0], "results": results}
        options.output.write_text(json.dumps(record, indent=1), encoding="utf-8")
    return 0 if worst <= GOAL else 1


if __name__ == "__main__":
    raise SystemExit(main())
