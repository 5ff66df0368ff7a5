"""What top-k tokens cost in a store and change in training: bytes, losses, gradients and speed of their codec.

    python benchmarks/top_tokens.py              # SmolLM2-135M, top 20, 64 and 256, five minutes on two cores
    python benchmarks/top_tokens.py --quick      # top 64, a third of the tokens

Text, teacher and stand-in student are those of ``store.py``. First the steps of probabilities, each against float32,
by the divergence in which the terms classical, hybrid and projection end (``uld_ds.losses.divergences.lumped``; the
likelihood term takes nothing of the top-k tokens). Printed are

    top tokens  bytes per token of the top-k tokens of one example after the other
    error       mean relative error of the divergence, forward or reverse KL
    1 - cosine  of its gradient with respect to the student's logits

then whole stores, written and read: ``float16`` is how earlier releases wrote them, ``rebuilt`` a teacher of whom the
top is all that is known.

    store       bytes per token of all shards, every column included
    of them     those of the top-k tokens
    write, read tokens per CPU second, logits to spectra not included; medians of ``--rounds``, in turns
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice

import torch
from measuring import add_output_options, write_results
from store import load, pairs, said
from torch import Tensor

from uld_ds.losses.divergences import Divergence, lumped
from uld_ds.spectrum.rank_blocks import BlockMasses
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.teachers import top_tokens_codec
from uld_ds.teachers.store.codec_quality import stand_in_student
from uld_ds.teachers.store.manifest import CodecFacts, ServedFacts, StoreIdentity
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.teachers.store.shard import StoredExample
from uld_ds.teachers.store.writer import StoreWriter

TOPS, QUICK_TOPS = (20, 64, 256), (64,)
STEPS = ((64, 900), (32, 512), (32, 256), (16, 256), (16, 64), (8, 64))
KINDS: tuple[Divergence, ...] = ("forward_kl", "reverse_kl")
# Bytes per token of a store of 64 tokens of a truncated teacher, and how much slower the new format may be.
MAX_BYTES, MAX_SLOWER = 200, 1.5


@dataclass
class Step:
    """One line of the table of steps."""

    top: int
    steps: str
    bytes_per_token: float
    errors: list[float]
    angles: list[float]


@dataclass
class Store:
    """One line of the table of stores."""

    top: int
    kind: str
    bytes_per_token: float
    top_bytes_per_token: float
    write: float
    read: float


def of_divergence(student: Tensor, top: TopTokens, kind: Divergence) -> tuple[Tensor, Tensor]:
    """Its values and its gradient."""
    grad = torch.zeros_like(student)
    ones = torch.ones(len(student))
    return lumped(student, student.logsumexp(1), top, ones, grad, kind=kind, alive=ones > 0), grad


def steps(top: int, examples: list[Tensor]) -> list[Step]:
    """Every resolution, and float16."""
    logits = torch.cat(examples)
    student = stand_in_student(logits)
    tokens = [TopTokens.from_logits(some.float(), top) for some in examples]
    true = [of_divergence(student, TopTokens.cat(tokens), kind) for kind in KINDS]
    ways: dict[str, Callable[[TopTokens], bytes]] = {
        "float16": lambda some: top_tokens_codec.encode(some, version=top_tokens_codec.FIRST_VERSION)
    }
    for step, even in STEPS:
        resolution = BlockMasses(1 / step, 1 / even)
        ways[f"1/{step}, 1/{even}"] = lambda some, chosen=resolution: top_tokens_codec.encode(some, resolution=chosen)
    found = []
    for name, encode in ways.items():
        blobs = [encode(some) for some in tokens]
        back = TopTokens.cat([top_tokens_codec.decode(blob) for blob in blobs])
        errors, angles = [], []
        for kind, (value, grad) in zip(KINDS, true, strict=True):
            other, of_other = of_divergence(student, back, kind)
            errors.append(float(((other - value).abs() / value).mean()))
            a, b = grad.double().flatten(), of_other.double().flatten()
            angles.append(1 - float(a @ b / (a.norm() * b.norm())))
        found.append(Step(top, name, sum(map(len, blobs)) / len(logits), errors, angles))
    return found


def identity_of(kind: str, top: int, vocab_size: int) -> StoreIdentity:
    """A store's: ``float16``, ``compact`` or ``rebuilt``."""
    rebuilt = kind == "rebuilt"
    return StoreIdentity(
        teacher="benchmark",
        tokenizer_digest="",
        prompt_template="chat",
        max_length=2048,
        temperature=1.0,
        codec=CodecFacts.of(truncated=rebuilt, rebuilt=rebuilt),
        data_digest="",
        top_ids=top,
        top_codec=top_tokens_codec.FIRST_VERSION if kind == "float16" else top_tokens_codec.VERSION,
        served=ServedFacts(engine="none", version="0", top=top, vocab_size=vocab_size) if rebuilt else None,
    )


def seconds(action: Callable[[], object]) -> float:
    """CPU seconds: other processes on the machine do not count."""
    begin = time.process_time()
    action()
    return time.process_time() - begin


def stores(top: int, examples: list[StoredExample], vocab_size: int, rounds: int) -> list[Store]:
    """Whole stores of both formats, and of a truncated teacher, written and read in turns."""
    kept = [replace(one, tokens=replace(one.tokens, top=one.tokens.top.first(top))) for one in examples]
    truncated = [replace(one, tokens=replace(one.tokens, spectrum=told(one, vocab_size))) for one in kept]
    given = {"float16": kept, "compact": kept, "rebuilt": truncated}
    tokens = sum(len(one.tokens) for one in kept)
    spent: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in given}
    manifests = {}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            for kind in random.Random(turn).sample(list(given), len(given)):  # noqa: S311
                place = f"{folder}/{kind}-{turn}"
                identity = identity_of(kind, top, vocab_size)
                writer = StoreWriter(place, identity, examples=len(kept), examples_per_shard=len(kept))
                spent[kind][0].append(seconds(lambda to=writer, what=given[kind]: to.write_shard(0, what)))
                manifests[kind] = writer.finish()
                store = SpectrumStore.open(place, with_top=True)
                spent[kind][1].append(seconds(lambda of=store: [None for _ in of.stream()]))
    return [
        Store(
            top,
            kind,
            manifests[kind].bytes_per_token,
            manifests[kind].top_bytes_per_token,
            *(tokens / statistics.median(each) for each in spent[kind]),
        )
        for kind in given
    ]


def told(example: StoredExample, vocab_size: int) -> Spectrum:
    """The spectrum of what is known of a truncated teacher."""
    assert example.tokens.top is not None
    return Spectrum.from_top_log_probs(example.tokens.top.log_probs, vocab_size=vocab_size)


def table(of_steps: list[Step], of_stores: list[Store]) -> str:
    """Markdown."""
    lines = [
        "| top | steps | top tokens | error, forward | error, reverse | 1 - cosine, forward | 1 - cosine, reverse |",
        "|---|---|---|---|---|---|---|",
    ]
    usual = f"1/{1 / top_tokens_codec.RESOLUTION.step:.0f}, 1/{1 / top_tokens_codec.RESOLUTION.even_mass:.0f}"
    for step in of_steps:
        name = f"**{step.steps}**" if step.steps == usual else step.steps
        figures = " | ".join(f"{figure:.1e}" for figure in (*step.errors, *step.angles))
        lines.append(f"| {step.top} | {name} | {step.bytes_per_token:.1f} | {figures} |")
    lines += ["", "| top | tokens and spectra | store | of them | write | read |", "|---|---|---|---|---|---|"]
    for store in of_stores:
        sizes = f"{store.bytes_per_token:.1f} | {store.top_bytes_per_token:.1f}"
        lines.append(f"| {store.top} | {store.kind} | {sizes} | {store.write:,.0f} | {store.read:,.0f} |")
    return "\n".join(lines)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, help="teacher tokens (default: 3000, for the steps 600 of them)")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of what is timed (default: 3)")
    add_output_options(parser, quick="top 64, 1,000 tokens")
    options = parser.parse_args()
    wanted = options.tokens or (1000 if options.quick else 3000)
    tops = QUICK_TOPS if options.quick else TOPS
    torch.set_num_threads(1)
    teacher = load("smollm2", None)
    examples: list[StoredExample] = []
    logits: list[Tensor] = []
    count = 0
    for number, row in enumerate(islice(pairs("train", max_answer_bytes=600), 10_000)):
        stored, found, _ = said(number, row["prompt"], row["answer"], teacher)
        top = TopTokens.from_logits(found, max(tops))
        examples.append(replace(stored, tokens=replace(stored.tokens, top=top)))
        if sum(map(len, logits)) < min(600, wanted // 2):
            logits.append(found)
        count += len(found)
        print(f"\r{count} tokens", end="", file=sys.stderr, flush=True)
        if count >= wanted:
            break
    vocab_size = logits[0].shape[1]
    of_steps = [line for top in tops for line in steps(top, logits)]
    of_stores = [line for top in tops for line in stores(top, examples, vocab_size, options.rounds)]
    print("\r", end="", file=sys.stderr)
    at_64 = {store.kind: store for store in of_stores if store.top == 64}
    old = at_64["float16"]
    slower = max(getattr(old, way) / getattr(at_64[kind], way) for way in ("write", "read") for kind in at_64)
    met = at_64["rebuilt"].bytes_per_token <= MAX_BYTES and slower <= MAX_SLOWER
    goals = (
        f"Goals at top 64: at most {MAX_BYTES} bytes per token of a rebuilt store, nothing more than {MAX_SLOWER} "
        f"times slower than float16: {'met' if met else 'NOT met'} (at most {slower:.2f} times)."
    )
    notes = [f"{count:,} tokens of smollm2 in {len(examples)} examples, {sum(map(len, logits))} of them for the steps"]
    rows = [asdict(line) for line in (*of_steps, *of_stores)]
    write_results("top_tokens", f"{table(of_steps, of_stores)}\n\n{goals}", rows, options, notes=notes)
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
