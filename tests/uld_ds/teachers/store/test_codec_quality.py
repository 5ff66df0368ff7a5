"""The codec's two figures, against a sort in Python and against what they must be by construction."""

from __future__ import annotations

import pytest
import torch

from tests.helpers.spectra_zoo import cosine, reference_with_gradient, zipf
from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.teachers.store import codec_quality
from uld_ds.teachers.store.codec_quality import measure_codec, stand_in_student
from uld_ds.uld.distance import uld_value_and_grad

COARSE = Precision(num_exact=4, rank_ratio=2.0, step=0.5, even_mass=0.25)


@pytest.mark.parametrize("rows_at_a_time", [1, 3, 64])
def test_figures_are_those_of_a_plain_sort(rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec_quality, "_REFERENCE_ELEMENTS", 3000 * rows_at_a_time)
    student, teacher = zipf(10, 700, seed=1).float(), zipf(10, 3000, seed=2).float()
    want, want_grad = reference_with_gradient(student, teacher)
    got = uld_value_and_grad(student, Spectrum.from_bytes(Spectrum.from_logits(teacher).to_bytes(COARSE)))
    assert got.grad is not None
    figures = measure_codec(teacher, COARSE, student_logits=student)
    assert figures["tokens"] == 10
    assert figures["mean_relative_error"] == pytest.approx(float(((got.distance - want).abs() / want).mean()), rel=1e-6)
    assert figures["gradient_cosine"] == pytest.approx(cosine(got.grad, want_grad), abs=1e-9)


def test_precision_shows() -> None:
    teacher = zipf(24, 5000, seed=3).float()
    coarse, fine = measure_codec(teacher, COARSE), measure_codec(teacher)
    assert coarse["mean_relative_error"] > 10 * fine["mean_relative_error"]
    assert coarse["gradient_cosine"] < 0.99 < 0.999 < fine["gradient_cosine"] < 1


def test_temperature_is_the_teachers() -> None:
    teacher = zipf(6, 900, seed=4)
    student = zipf(6, 900, seed=5).float()
    softened = measure_codec((teacher / 2).float(), student_logits=student)
    assert measure_codec(teacher.float(), student_logits=student, temperature=2.0) == pytest.approx(softened, rel=1e-3)


def test_the_stand_in_is_neither_the_teacher_nor_a_stranger() -> None:
    teacher = zipf(8, 500, seed=6).float()
    student = stand_in_student(teacher)
    torch.testing.assert_close(student[1], (teacher[1] + teacher[5]) / 2)
    assert measure_codec(teacher[:1])["tokens"] == 1
    with pytest.raises(ValueError, match="at least one row"):
        measure_codec(teacher[:0])
