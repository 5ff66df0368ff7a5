"""``alignment: positional`` with ``normalize: sample`` is the ULD paper's loss (Boizard et al., arXiv 2402.12030).

The reference is written as the paper's authors wrote it: softmax, sort, pad the vocabularies, cut both answers to the
shorter one, sum over the vocabulary, mean over positions, mean over samples - in float64, through autograd.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.segments import teacher_of
from tests.helpers.turns import text_turn
from uld_ds.batches import MicroBatch, SegmentPairs
from uld_ds.data.batching import segment_rows, side_batch
from uld_ds.data.encoding import EncodedSide
from uld_ds.data.pairing import pair
from uld_ds.losses.normalization import step_weights
from uld_ds.losses.objective import Objective
from uld_ds.models.row_model import Head, LogitMap
from uld_ds.recipe import ObjectiveSettings
from uld_ds.spectrum.spectrum import Spectrum

HIDDEN, STUDENT_VOCAB, TEACHER_VOCAB = 12, 150, 240
# Answer tokens of student and teacher, in two micro-batches.
LENGTHS = [[(7, 4), (3, 9)], [(1, 6), (12, 12), (5, 2)]]


def encoded(num_tokens: int, num_bytes: int, vocab_size: int, rng: np.random.Generator) -> EncodedSide:
    """An answer of so many tokens after a prompt of two; nothing ends its turn."""
    ends = np.sort(rng.choice(np.arange(1, num_bytes), num_tokens - 1, replace=False))
    bounds = np.concatenate([[0], ends, [num_bytes]])
    turn = text_turn(2, 2 + num_tokens, 2 + num_tokens, np.stack([bounds[:-1], bounds[1:]], axis=1))
    return EncodedSide(rng.integers(0, vocab_size, 2 + num_tokens).astype(np.int32), (turn,))


def micro_batch(lengths: list[tuple[int, int]], rng: np.random.Generator) -> MicroBatch:
    rows: list[Any] = [
        pair(
            encoded(of_student, 40, STUDENT_VOCAB, rng),
            encoded(of_teacher, 40, TEACHER_VOCAB, rng),
            alignment="positional",
            student_max=99,
            teacher_max=99,
        )
        for of_student, of_teacher in lengths
    ]
    counts = [len(row["student_segments"]) for row in rows]
    assert counts == [min(pair_of) for pair_of in lengths]
    return MicroBatch(
        examples=list(range(len(rows))),
        student=side_batch(rows, "student", 0),
        pairs=(
            SegmentPairs(
                segment_rows(rows, "student", "first"),
                segment_rows(rows, "teacher", "first"),
                torch.from_numpy(np.repeat(np.arange(len(rows)), counts)),
            ),
        ),
        example_weight=torch.ones(len(rows)),
        answer_bytes=torch.full((len(rows),), 40),
    )


def paper_distances(student: list[Tensor], teacher: list[Tensor], settings: ObjectiveSettings) -> list[Tensor]:
    """Of samples, each with its answer's logits [T, V]: a distance per position that both answers have."""
    distances = []
    for z, y in zip(student, teacher, strict=True):
        p = (z / settings.student_temperature).softmax(-1).sort(-1, descending=True).values
        q = (y / settings.teacher_temperature).softmax(-1).sort(-1, descending=True).values
        size = min(len(p), len(q))
        p = F.pad(p, (0, TEACHER_VOCAB - STUDENT_VOCAB))
        distances.append((p[:size] - q[:size]).abs().sum(-1))
    return distances


@pytest.mark.parametrize("method", ["linear", "exact"])
@pytest.mark.parametrize(("of_student", "of_teacher"), [(1.0, 1.0), (2.0, 0.7)], ids=["temperatures 1", "2 and 0.7"])
def test_loss_and_gradient_are_the_papers(
    method: Literal["linear", "exact"], of_student: float, of_teacher: float
) -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(1)
    settings = ObjectiveSettings(
        ce=1.0,
        uld=1.5,
        alignment="positional",
        normalize="sample",
        method=method,
        student_temperature=of_student,
        teacher_temperature=of_teacher,
    )
    window = [micro_batch(lengths, rng) for lengths in LENGTHS]
    weight = torch.randn(STUDENT_VOCAB, HIDDEN)
    hidden = [torch.randn(len(batch.student.answer_ids), HIDDEN) for batch in window]
    sizes = [[of_side for _, of_side in lengths] for lengths in LENGTHS]
    teacher = [3 * torch.randn(sum(of_batch), TEACHER_VOCAB) for of_batch in sizes]

    ours = weight.clone().requires_grad_()
    parts = {"loss": 0.0, "ce": 0.0, "uld": 0.0}
    for batch, states, logits, (row_weights,) in zip(
        window, hidden, teacher, step_weights(window, settings.normalize, lambda total: total), strict=True
    ):
        compared = logits[batch.pairs[0].teacher.compared]
        spectrum = Spectrum.from_logits(compared, temperature=settings.teacher_temperature)
        loss, found = Objective(settings)(
            states, Head(ours, None, LogitMap()), batch.judged_by(0), teacher_of(spectrum), row_weights
        )
        loss.backward()
        for name in parts:
            parts[name] += (loss if name == "loss" else found[name]).item()

    theirs = weight.double().requires_grad_()
    samples: list[list[Tensor]] = [[], [], []]
    for batch, states, logits, lengths in zip(window, hidden, teacher, LENGTHS, strict=True):
        of_student_rows, of_teacher_rows = ([pair_of[side] for pair_of in lengths] for side in (0, 1))
        samples[0] += (states.double() @ theirs.T).split(of_student_rows)
        samples[1] += logits.double().split(of_teacher_rows)
        samples[2] += batch.student.answer_ids.split(of_student_rows)
    logits_of_student, logits_of_teacher, ids = samples
    distances = paper_distances(logits_of_student, logits_of_teacher, settings)
    uld = torch.stack([of_sample.mean() for of_sample in distances]).mean()
    ce = torch.stack([F.cross_entropy(z, wanted) for z, wanted in zip(logits_of_student, ids, strict=True)]).mean()
    (ce + 1.5 * uld).backward()

    assert parts["ce"] == pytest.approx(ce.item(), rel=1e-5)
    assert parts["uld"] == pytest.approx(uld.item(), rel=2e-5)
    assert parts["loss"] == pytest.approx((ce + 1.5 * uld).item(), rel=1e-5)
    assert ours.grad is not None and theirs.grad is not None
    assert (ours.grad.double() - theirs.grad).norm() / theirs.grad.norm() < 1e-4
    # Uneven answers tell the mean of means apart from the mean over all positions.
    assert abs(torch.cat(distances).mean() / uld - 1) > 0.01
