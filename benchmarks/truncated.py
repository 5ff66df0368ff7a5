"""What a teacher costs of whom only the likeliest tokens are known: the ULD distance and its gradient, and the bytes.

    python benchmarks/truncated.py                               # SmolLM2-135M, five minutes on two cores
    python benchmarks/truncated.py --quick                       # top 20 and 64, a third of the tokens
    python benchmarks/truncated.py --teacher FOLDER --gguf FILE --student smollm2     # another teacher: Gemma 3 270M

Text and students are those of ``store.py``. Of every distribution the log-probabilities of the ``top`` likeliest tokens
are taken in float32, as inference engines give them, and made a spectrum with each estimate of the tail
(``uld_ds.spectrum.tail_shapes``); *full* is the spectrum of all of them. Printed are

    unknown   mean mass beyond the top
    error     mean relative error of the ULD distance, student to teacher, against a float64 sort of the full ones
    cosine    between the student's gradient and the true one
    bound     what the distance says of its own error, over the distance: sums over all rows
    bytes     of the spectra per token, deflated, at the default precision of stores; without top-k tokens

then the same against a student that is the teacher with noise on its logits: close to it, where errors weigh most.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from itertools import islice

import torch
from measuring import add_output_options, write_results
from store import Side, compared, load, pairs, said, shown
from torch import Tensor

from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.spectrum.tail_shapes import SHAPES
from uld_ds.spectrum.truncated import DEFAULT_TAIL
from uld_ds.teachers.store.codec_quality import measure_spectra, stand_in_student
from uld_ds.uld.distance import uld_value_and_grad

TOPS = (20, 64, 256, 1024)
QUICK_TOPS = (20, 64)
NOISE = 1.0
# Of the default estimate at top 64.
MAX_ERROR, MIN_COSINE = 0.01, 0.999
# Rows at a time: the float64 reference sorts as many.
PART = 64


@dataclass
class Row:
    """One line of a table."""

    student: str
    top: int | None
    tail: str
    unknown_mass: float
    mean_relative_error: float
    gradient_cosine: float
    bound: float
    bytes_per_token: float


def ways_of(logits: Tensor, tops: tuple[int, ...]) -> list[Spectrum]:
    """The full spectra of ``[N, V]`` logits, then the truncated ones: for every top, for every tail."""
    largest = logits.float().log_softmax(-1).topk(min(max(tops), logits.shape[1]), dim=-1).values
    known = [(largest[:, :top], tail) for top in tops for tail in SHAPES]
    vocab = logits.shape[1]
    return [
        Spectrum.from_logits(logits),
        *(Spectrum.from_top_log_probs(some, vocab_size=vocab, tail=tail) for some, tail in known),
    ]


def measure(name: str, teacher: Tensor, student: Tensor, tops: tuple[int, ...]) -> list[Row]:
    """All ways against one student."""
    labels = [(None, "full"), *((top, tail) for top in tops for tail in SHAPES)]
    qualities = measure_spectra(teacher, lambda logits: ways_of(logits, tops), student_logits=student)
    whole = [Spectrum.cat(parts) for parts in zip(*(ways_of(part, tops) for part in teacher.split(PART)), strict=True)]
    rows = []
    for (top, tail), quality, spectrum in zip(labels, qualities, whole, strict=True):
        got = uld_value_and_grad(student.float(), spectrum, want_grad=False)
        assert got.bound is not None
        unknown = spectrum.unknown_mass
        rows.append(
            Row(
                student=name,
                top=top,
                tail=tail,
                unknown_mass=0.0 if unknown is None else float(unknown.mean()),
                mean_relative_error=quality["mean_relative_error"],
                gradient_cosine=quality["gradient_cosine"],
                bound=float(got.bound.sum() / got.distance.sum()),
                bytes_per_token=len(spectrum.to_bytes()) / len(spectrum),
            )
        )
    return rows


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = ["| student | top | tail | unknown | error | cosine | bound | bytes |", "|---|---|---|---|---|---|---|---|"]
    for row in rows:
        tail = f"**{row.tail}**" if row.tail == DEFAULT_TAIL else row.tail
        error = f"{row.mean_relative_error:.1e}" if row.top is None else f"{row.mean_relative_error:.4f}"
        figures = f"{row.unknown_mass:.4f} | {error} | {row.gradient_cosine:.5f}"
        costs = f"{row.bound:.3f} | {row.bytes_per_token:.1f}"
        lines.append(f"| {row.student} | {row.top or 'all'} | {tail} | {figures} | {costs} |")
    return "\n".join(lines)


def samples(teacher: Side, student: Side | None, wanted: int) -> tuple[Tensor, Tensor | None, int]:
    """Logits of the teacher and, if there is one, of the student at the same places; how many examples it took."""
    ours: list[Tensor] = []
    others: list[Tensor] = []
    number = 0
    for number, row in enumerate(islice(pairs("train", max_answer_bytes=600), 10_000), 1):
        _, logits, spans = said(number, row["prompt"], row["answer"], teacher)
        if student is not None:
            logits, theirs = compared(row["prompt"], row["answer"], logits, spans, student)
            others.append(theirs)
        ours.append(logits)
        found = sum(map(len, ours))
        print(f"\r{found} tokens", end="", file=sys.stderr, flush=True)
        if found >= wanted:
            break
    return torch.cat(ours)[:wanted], torch.cat(others)[:wanted] if others else None, number


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="smollm2", help="folder or hub id (default: smollm2, the demo's)")
    parser.add_argument("--gguf", help="the teacher's file in that folder, if it is GGUF")
    parser.add_argument("--student", help="folder, hub id or smollm2 (default: a stand-in)")
    parser.add_argument("--tokens", type=int, help="tokens measured (default: 600)")
    add_output_options(parser, quick="top 20 and 64, 192 tokens")
    options = parser.parse_args()
    tokens = options.tokens or (192 if options.quick else 600)
    tops = QUICK_TOPS if options.quick else TOPS
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = load(options.student, None) if options.student else None
    logits, others, num_examples = samples(load(options.teacher, options.gguf), student, tokens)
    students = {
        shown(options.student): stand_in_student(logits) if others is None else others,
        "noise": logits.float() + NOISE * torch.randn(logits.shape),
    }
    rows = [row for name, against in students.items() for row in measure(name, logits, against, tops)]
    print("\r", end="", file=sys.stderr)
    chosen = next(row for row in rows if row.top == 64 and row.tail == DEFAULT_TAIL)
    met = chosen.mean_relative_error <= MAX_ERROR and chosen.gradient_cosine >= MIN_COSINE
    goals = (
        f"Goals at top 64 with {DEFAULT_TAIL!r} against {chosen.student}: at most {MAX_ERROR} error, cosine "
        f"{MIN_COSINE}: {'met' if met else 'NOT met'}."
    )
    notes = [f"{len(logits)} tokens of {shown(options.teacher)} in {num_examples} examples"]
    write_results("truncated", f"{table(rows)}\n\n{goals}", [asdict(row) for row in rows], options, notes=notes)
    return 0 if met else 1


if __name__ == "__main__":
    raise SystemExit(main())
