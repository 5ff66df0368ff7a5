"""The cost of the codec, measured against the teacher's full distributions, sorted, in float64.

Two figures, those that a student would notice: the mean relative error of its ULD distance to the teacher, and the
cosine between its gradient and the true one (all rows of the sample as one vector).

A store is built before there is a student. The stand-in is the teacher itself with its logits blended half and half
with those of another position: as good a guess as a student in the middle of its training, right about the shape of a
distribution and wrong about the context. Both halves are on the true scale, so distances are neither so small that
rounding decides the signs, nor so large that nothing can be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.uld.distance import uld_distance, uld_value_and_grad

# Float64 values in one piece of the reference; sorting and its graph take about ten times that.
_REFERENCE_ELEMENTS = 1 << 22


class Quality(TypedDict):
    """Figures of a codec's quality: the fields of ``uld_ds.teachers.store.manifest.Measured``."""

    mean_relative_error: float
    """Mean relative error of the ULD distance, over the rows of the sample."""
    gradient_cosine: float
    """Cosine of the ULD distance's gradient with respect to the student's logits and the true one."""
    tokens: int
    """Rows of the sample."""


def measure_codec(
    teacher_logits: Tensor,
    precision: Precision | None = None,
    *,
    student_logits: Tensor | None = None,
    temperature: float = 1.0,
) -> Quality:
    """Measure how far training on stored spectra is from training on the teacher's own distributions.

    Args:
        teacher_logits: ``[N, V_t]``, any floating dtype; a few hundred rows of real text say enough.
        precision: Precision of the codec.
        student_logits: ``[N, V_s]`` of a student at the same places; without them ``stand_in_student`` is used.
        temperature: Temperature of the teacher.

    Raises:
        ValueError: no rows, or not as many of both.
    """
    precisions = [precision]
    return measure_codecs(teacher_logits, precisions, student_logits=student_logits, temperature=temperature)[0]


def measure_codecs(
    teacher_logits: Tensor,
    precisions: Sequence[Precision | None],
    *,
    student_logits: Tensor | None = None,
    temperature: float = 1.0,
) -> list[Quality]:
    """Measure the quality of several codec precisions, as ``measure_codec``, with one shared reference.

    The reference is what takes time.
    """

    def stored(theirs: Tensor) -> list[Spectrum]:
        spectrum = Spectrum.from_logits(theirs, temperature=temperature)
        return [Spectrum.from_bytes(spectrum.to_bytes(precision)) for precision in precisions]

    return measure_spectra(teacher_logits, stored, student_logits=student_logits, temperature=temperature)


def measure_spectra(
    teacher_logits: Tensor,
    spectra_of: Callable[[Tensor], Sequence[Spectrum]],
    *,
    student_logits: Tensor | None = None,
    temperature: float = 1.0,
) -> list[Quality]:
    """Measure several ways to make spectra of the teacher's logits, as ``measure_codec``, with one shared reference.

    Args:
        teacher_logits: ``[N, V_t]``, any floating dtype.
        spectra_of: Makes a spectrum of some of those rows in each of the ways.
        student_logits: ``[N, V_s]`` of a student at the same places; without them ``stand_in_student`` is used.
        temperature: Temperature of the teacher.

    Raises:
        ValueError: no rows, or not as many of both.
    """
    if len(teacher_logits) == 0:
        raise ValueError("the codec's quality is measured on at least one row")
    student = stand_in_student(teacher_logits) if student_logits is None else student_logits
    sums: list[_Sums] = []
    step = max(1, _REFERENCE_ELEMENTS // max(student.shape[1], teacher_logits.shape[1]))
    for begin in range(0, len(student), step):
        ours, theirs = student[begin : begin + step], teacher_logits[begin : begin + step]
        true_distance, true_grad = _reference(ours, theirs, temperature)
        spectra = spectra_of(theirs)
        sums = sums or [_Sums() for _ in spectra]
        for spectrum, of_spectrum in zip(spectra, sums, strict=True):
            got = uld_value_and_grad(ours.float(), spectrum, want_bound=False)
            assert got.grad is not None
            of_spectrum.add(got.distance.double(), true_distance, got.grad.double(), true_grad)
    return [of_spectrum.quality() for of_spectrum in sums]


@dataclass
class _Sums:
    relative_error: float = 0.0
    dot: float = 0.0
    squares: float = 0.0
    true_squares: float = 0.0
    rows: int = 0

    def add(self, distance: Tensor, true_distance: Tensor, grad: Tensor, true_grad: Tensor) -> None:
        self.relative_error += float(((distance - true_distance).abs() / true_distance).sum())
        self.dot += float((grad * true_grad).sum())
        self.squares += float(grad.square().sum())
        self.true_squares += float(true_grad.square().sum())
        self.rows += len(distance)

    def quality(self) -> Quality:
        return Quality(
            mean_relative_error=self.relative_error / self.rows,
            gradient_cosine=self.dot / (self.squares * self.true_squares) ** 0.5,
            tokens=self.rows,
        )


def stand_in_student(teacher_logits: Tensor) -> Tensor:
    """Blend the teacher's ``[N, V]`` logits to ``[N, V]`` that could be a student's."""
    logits = teacher_logits.float()
    # A single row has no other one; half of its own logits are those of a flatter guess.
    return 0.5 * (logits + logits.roll(len(logits) // 2, 0)) if len(logits) > 1 else 0.5 * logits


def _reference(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Compute the exact ULD distance ``[N]`` and its gradient ``[N, V_s]``, float64."""
    leaf = student.double().detach().requires_grad_()
    with torch.enable_grad():
        distance = uld_distance(leaf, teacher.double(), teacher_temperature=temperature, method="exact")
        (grad,) = torch.autograd.grad(distance.sum(), leaf)
    return distance.detach(), grad
