"""What the codec costs, measured: against the teacher's full distributions, sorted, in float64.

Two figures, those that a student would notice: the mean relative error of its ULD distance to the teacher, and the
cosine between its gradient and the true one (all rows of the sample as one vector).

A store is built before there is a student. The stand-in is the teacher itself with its logits blended half and half
with those of another position: as good a guess as a student in the middle of its training, right about the shape of a
distribution and wrong about the context. Both halves are on the true scale, so distances are neither so small that
rounding decides the signs, nor so large that nothing can be wrong.
"""

from __future__ import annotations

from typing import TypedDict

import torch
from torch import Tensor

from uld_ds.spectrum import Spectrum
from uld_ds.spectrum_codec import Precision
from uld_ds.uld import uld_distance, uld_value_and_grad

# Float64 values in one piece of the reference; sorting and its graph take about ten times that.
_REFERENCE_ELEMENTS = 1 << 22


class Quality(TypedDict):
    """Fields of ``uld_ds.teachers.store.Measured``."""

    mean_relative_error: float
    """Of the ULD distance, over the rows of the sample."""
    gradient_cosine: float
    """Of its gradient with respect to the student's logits."""
    tokens: int
    """Rows of the sample."""


def measure_codec(
    teacher_logits: Tensor,
    precision: Precision | None = None,
    *,
    student_logits: Tensor | None = None,
    temperature: float = 1.0,
) -> Quality:
    """How far training on stored spectra is from training on the teacher's own distributions.

    Args:
        teacher_logits: ``[N, V_t]``, any floating dtype; a few hundred rows of real text say enough.
        precision: of the codec.
        student_logits: ``[N, V_s]`` of a student at the same places; without them ``stand_in_student`` is used.
        temperature: of the teacher.

    Raises:
        ValueError: no rows, or not as many of both.
    """
    if len(teacher_logits) == 0:
        raise ValueError("the codec's quality is measured on at least one row")
    student = stand_in_student(teacher_logits) if student_logits is None else student_logits
    stored = Spectrum.from_bytes(Spectrum.from_logits(teacher_logits, temperature=temperature).to_bytes(precision))
    got = uld_value_and_grad(student.float(), stored, want_bound=False)
    assert got.grad is not None
    relative_error, dot, squares, true_squares = 0.0, 0.0, 0.0, 0.0
    step = max(1, _REFERENCE_ELEMENTS // max(student.shape[1], teacher_logits.shape[1]))
    for begin in range(0, len(student), step):
        part = slice(begin, begin + step)
        distance, grad = _reference(student[part], teacher_logits[part], temperature)
        relative_error += float(((got.distance[part].double() - distance).abs() / distance).sum())
        ours = got.grad[part].double()
        dot += float((ours * grad).sum())
        squares += float(ours.square().sum())
        true_squares += float(grad.square().sum())
    return Quality(
        mean_relative_error=relative_error / len(student),
        gradient_cosine=dot / (squares * true_squares) ** 0.5,
        tokens=len(student),
    )


def stand_in_student(teacher_logits: Tensor) -> Tensor:
    """``[N, V]`` logits that could be a student's, from the teacher's ``[N, V]``."""
    logits = teacher_logits.float()
    # A single row has no other one; half of its own logits are those of a flatter guess.
    return 0.5 * (logits + logits.roll(len(logits) // 2, 0)) if len(logits) > 1 else 0.5 * logits


def _reference(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Distance ``[N]`` and its gradient ``[N, V_s]``, float64."""
    leaf = student.double().detach().requires_grad_()
    with torch.enable_grad():
        distance = uld_distance(leaf, teacher.double(), teacher_temperature=temperature, method="exact")
        (grad,) = torch.autograd.grad(distance.sum(), leaf)
    return distance.detach(), grad
