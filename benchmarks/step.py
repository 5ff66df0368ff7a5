"""How a whole optimizer step scales with the answer's length and the vocabulary: ours against TRL GOLD.

    python benchmarks/step.py --quick                 # two lengths, one vocabulary, without TRL's slow ends
    python benchmarks/step.py --output step.json --markdown step.md

Both models are small Llamas with random weights, so that what is measured is the objective and the teacher's signal;
both tokenizers are byte-level BPE, of 2,000 and 4,000 entries, and the models' vocabularies are padded beyond them.
Two answers a step, fp32, cross-entropy + 1.5 ULD on both sides, the same text. Two series:

    length       128 ... 2,048 teacher tokens an answer, vocabulary 32,768
    vocabulary   4,096 ... 262,144 for teacher and student, 256 teacher tokens an answer

Arms, each a process that waits for its turn: ``online`` (the teacher runs once per step), ``stored`` (its words out of
a spectrum store), ``trl positional`` and ``trl extended`` (GOLDTrainer; extended up to 512 tokens: its backward is
quadratic). Tokens per second are the teacher's answer tokens, the same text for all; peak memory is the process's.
A ratio is refused where the turns disagree by more than half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from arms import ROOT, budget, build_store, compared, in_turns, ours, trl
from measuring import add_output_options, add_trl_options, num_cores, spread, write_results
from random_llama import save_random_llama

sys.path.insert(0, str(ROOT))

EXAMPLES = 2
BASE_VOCAB, BASE_TOKENS = 32_768, 256
LENGTHS, VOCABULARIES = (128, 256, 512, 1024, 2048), (4_096, 16_384, 65_536, 262_144)
QUICK_LENGTHS, QUICK_VOCABULARIES = (128, 512), (65_536,)
LONGEST_EXTENDED, QUICK_LONGEST_EXTENDED = 512, 128
SIZES = {"teacher": 128, "student": 64}


@dataclass(frozen=True)
class Point:
    """One place in one of the series."""

    series: str
    tokens: int
    vocab: int


def points(lengths: list[int], vocabularies: list[int]) -> list[Point]:
    """All of both series."""
    by_length = [Point("length", tokens, BASE_VOCAB) for tokens in lengths]
    return by_length + [Point("vocabulary", BASE_TOKENS, vocab) for vocab in vocabularies]


def measure(point: Point, folder: Path, options: argparse.Namespace, python: Path | None) -> dict[str, Any]:
    """All arms at one point, in turns."""
    make_pair(point, folder)
    build_store(folder)
    changes = budget(EXAMPLES * (2 * point.tokens + 256))
    arms = [ours("online", folder, changes=changes), ours("stored", folder, changes=changes, stored=True)]
    if options.before is not None:
        arms.append(ours("before, online", folder, tree=options.before))
        arms.append(ours("before, stored", folder, tree=options.before, stored=True))
    if python is not None:
        arms.append(trl("positional", folder, python))
        if point.tokens <= options.longest_extended and point.vocab <= BASE_VOCAB:
            arms.append(trl("extended", folder, python))
    in_turns(f"{point.tokens} tokens, vocabulary {point.vocab:,}", arms, options.steps, folder / "arms.log")
    return {**vars(point), "arms": [arm.to_json() for arm in arms]}


def make_pair(point: Point, folder: Path) -> None:
    """Models, text and recipe in ``folder``."""
    import yaml

    positions = 2 * point.tokens + 256
    for side, size in SIZES.items():
        save_model(folder / side, side, vocab=point.vocab, size=size, positions=positions)
    texts = pieces(point.tokens, 4 * EXAMPLES)
    rows = [{"prompt": f"Explain part {number}.", "answer": text} for number, text in enumerate(texts)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sides = {
        side: {"model": str(folder / side), "precision": "fp32", "max_length": positions}
        for side in ("teacher", "student")
    }
    sides["teacher"]["max_tokens_per_forward"] = EXAMPLES * positions
    recipe = {
        "run": {"name": "b", "storage": str(folder / "runs")},
        **sides,
        "data": {"train": {"source": "files", "path": str(folder / "train.jsonl")}},
        "training": {"steps": 100, "batch_size": EXAMPLES},
        "cluster": {"workers": 1, "accelerator": "cpu", "threads_per_worker": num_cores()},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    pair = {side: str(folder / side) for side in SIZES} | {"text": str(folder / "train.jsonl")}
    (folder / "pair.json").write_text(json.dumps(pair | {"examples": EXAMPLES, "max_length": positions}))


@cache
def tokenizer_of(side: str) -> Any:
    """Byte-level BPE of the demo's text."""
    from launcher.recipes.stdlib_docstrings import pairs
    from uld_ds.tokenization.training import train_tokenizer

    texts = [text for row, _ in zip(pairs("train"), range(2000), strict=False) for text in row.values()]
    return train_tokenizer("bpe", {"teacher": 4000, "student": 2000}[side], texts)


def save_model(folder: Path, side: str, *, vocab: int, size: int, positions: int) -> None:
    """A Llama with random weights, large enough ones that its predictions are not all alike."""
    save_random_llama(
        folder,
        tokenizer_of(side),
        vocab_size=vocab,
        hidden_size=size,
        intermediate_size=2 * size,
        num_hidden_layers=2,
        max_position_embeddings=positions,
        initializer_range=0.3,
    )


def pieces(tokens: int, number: int) -> list[str]:
    """The demo's text in pieces of so many teacher tokens."""
    from launcher.recipes.stdlib_docstrings import pairs

    tokenizer = tokenizer_of("teacher")
    text = "\n\n".join(row["answer"] for row in pairs("train"))[: number * tokens * 12]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][: number * tokens]
    if len(ids) < number * tokens:
        raise ValueError(f"the text has {len(ids)} of {number * tokens} tokens")
    found = [tokenizer.decode(ids[start : start + tokens]) for start in range(0, len(ids), tokens)]
    return [piece.strip().replace("\ufffd", "?") for piece in found]


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: one table per series."""
    parts = []
    for series in dict.fromkeys(result["series"] for result in results):
        rows = [
            "| answer tokens | vocabulary | arm | s/step | tokens/s | peak memory, GB "
            "| trl positional: times as long |",
            "|---|---|---|---|---|---|---|",
        ]
        for result in results:
            if result["series"] == series:
                rows += _rows(result)
        parts.append(f"By {series}:\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def _rows(result: dict[str, Any]) -> list[str]:
    place = f"| {result['tokens']:,} | {result['vocab']:,} "
    theirs = next((arm for arm in result["arms"] if arm["name"] == "trl positional"), None)
    rows = []
    for arm in result["arms"]:
        if arm["failed"] or not arm["seconds"]:
            rows.append(f"{place}| {arm['name']} | {arm['failed'] or 'no step'} | | | |")
            continue
        rate = EXAMPLES * result["tokens"] / statistics.median(arm["seconds"])
        said = ""
        if theirs is not None and not theirs["failed"] and not arm["name"].startswith("trl"):
            said = compared(theirs, arm)[1]
        cells = [arm["name"], spread(arm["seconds"], ".2f"), f"{rate:,.0f}", f"{arm['peak_bytes'] / 1e9:.2f}", said]
        rows.append(f"{place}| " + " | ".join(cells) + " |")
    return rows


def main() -> int:
    options = parse()
    from uld import trl_python

    python = trl_python(options.cache) if options.with_trl else None
    results = []
    for point in points(options.lengths, options.vocabularies):
        with tempfile.TemporaryDirectory(prefix="uld-ds-step-") as folder:
            results.append(measure(point, Path(folder), options, python))
    note = f"{EXAMPLES} answers a step, fp32, random weights"
    write_results("step", table(results), results, options, notes=[note])
    return 1 if any(arm["failed"] for result in results for arm in result["arms"]) else 0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--lengths", type=int, nargs="*", help="teacher tokens of an answer; none: leave the series out"
    )
    parser.add_argument("--vocabularies", type=int, nargs="*", help="entries; none: leave the series out")
    parser.add_argument("--steps", type=int, help="measured steps of each arm (default: 5)")
    parser.add_argument("--longest-extended", type=int, help="tokens of the longest answer for trl extended")
    parser.add_argument("--before", type=Path, metavar="TREE", help="a checkout of another build, measured beside")
    add_trl_options(parser)
    add_output_options(parser, quick="two lengths, one vocabulary, three steps")
    options = parser.parse_args(arguments)
    if options.lengths is None:
        options.lengths = list(QUICK_LENGTHS if options.quick else LENGTHS)
    if options.vocabularies is None:
        options.vocabularies = list(QUICK_VOCABULARIES if options.quick else VOCABULARIES)
    if min(options.vocabularies, default=4096) < 4096:
        parser.error("--vocabularies: the tokenizers have up to 4,000 entries, so 4096 is the least")
    options.steps = options.steps or (3 if options.quick else 5)
    if options.longest_extended is None:
        options.longest_extended = QUICK_LONGEST_EXTENDED if options.quick else LONGEST_EXTENDED
    return options


if __name__ == "__main__":
    raise SystemExit(main())
