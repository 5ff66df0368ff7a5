"""Spectra as bytes: what they cost, what they lose, and no damage unnoticed."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.helpers.spectra_zoo import cosine, gaussian, masked, one_hot, reference_with_gradient, zipf
from uld_ds.spectrum.codec_bytes import CODEC_VERSION, TRUNCATED_VERSION
from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.uld.distance import uld_distance, uld_value_and_grad

CASES: dict[str, Callable[[], Tensor]] = {
    "zipf": lambda: zipf(24, 16_000, seed=2),
    "peaked": lambda: zipf(24, 16_000, slope=2.5, seed=3),
    "flat": lambda: gaussian(24, 16_000, scale=1.0, seed=4),
    "uniform": lambda: torch.zeros(24, 16_000),
    "one-hot": lambda: one_hot(24, 16_000),
    "masked": lambda: masked(zipf(24, 16_000, seed=5), every=2),
    "tiny vocabulary": lambda: zipf(24, 5, seed=6),
}


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_few_and_close(case: str) -> None:
    student, teacher = zipf(24, 6_000, seed=1), CASES[case]()
    data = Spectrum.from_logits(teacher.float()).to_bytes()
    assert len(data) / 24 <= 100
    back = Spectrum.from_bytes(data)
    want, want_grad = reference_with_gradient(student, teacher)
    got = uld_value_and_grad(student.float(), back)
    assert ((got.distance.double() - want).abs() / want).mean() <= 1e-3
    assert got.grad is not None
    # One large probability that the codec moves across its counterpart weighs much among 24 rows.
    assert cosine(got.grad, want_grad) >= 0.999
    torch.testing.assert_close(back.total_mass(), torch.ones(24), rtol=1e-5, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_error_that_travels_with_the_bytes_is_a_bound(case: str) -> None:
    student, teacher = zipf(24, 6_000, seed=1), CASES[case]()
    spectrum = Spectrum.from_logits(teacher.float())
    want, _ = reference_with_gradient(student, teacher)
    for precision in (Precision(), Precision(num_exact=4, rank_ratio=2.0, step=0.5, even_mass=0.25)):
        back = Spectrum.from_bytes(spectrum.to_bytes(precision))
        terms = uld_value_and_grad(student.float(), back)
        assert terms.bound is not None and back.error is not None
        assert ((terms.distance.double() - want).abs() <= terms.bound).all()
        assert (terms.bound >= back.error).all()
        # Direct: the distance from the teacher itself to what was restored.
        apart = uld_value_and_grad(teacher.float(), back)
        assert apart.bound is not None
        assert (apart.distance <= apart.bound).all()


def test_precision_buys_accuracy() -> None:
    student, teacher = zipf(32, 12_000, seed=1), zipf(32, 30_000, seed=2)
    want, _ = reference_with_gradient(student, teacher)
    spectrum = Spectrum.from_logits(teacher.float())
    sizes, errors = [], []
    coarse = Precision(num_exact=16, rank_ratio=1.4, step=1 / 8, even_mass=1 / 32)
    fine = Precision(num_exact=128, rank_ratio=1.05, step=1 / 64, even_mass=1 / 900)
    for precision in (coarse, Precision(), fine):
        data = spectrum.to_bytes(precision)
        sizes.append(len(data))
        errors.append(float((uld_distance(student.float(), Spectrum.from_bytes(data)).double() - want).abs().mean()))
    assert sizes[0] < sizes[1] < sizes[2]
    assert errors[0] > 2 * errors[1]
    assert errors[1] > errors[2]


def test_bytes_are_deterministic_and_stable_under_repetition() -> None:
    spectrum = Spectrum.from_logits(zipf(9, 5000, seed=1).float())
    data = spectrum.to_bytes()
    assert spectrum.to_bytes() == data
    again = Spectrum.from_bytes(data).to_bytes()
    twice = Spectrum.from_bytes(again)
    torch.testing.assert_close(twice.head, Spectrum.from_bytes(data).head, rtol=0.05, atol=1e-4)
    first, second = Spectrum.from_bytes(data).error, twice.error
    assert first is not None and second is not None
    assert (second >= first).all()  # errors add up, they are not forgotten


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_scales_padding_and_temperature_survive(rows: int) -> None:
    logits = zipf(3, 700, seed=1).float()[:rows]
    if rows > 1:
        logits[1] = -math.inf
    log_scale = -torch.arange(rows).float()
    spectrum = Spectrum.from_logits(logits, temperature=1.5).shift(log_scale)
    back = Spectrum.from_bytes(spectrum.to_bytes())
    assert len(back) == rows
    assert back.temperature == 1.5
    assert back.log_scale is not None
    assert torch.equal(back.log_scale, log_scale)
    assert Spectrum.from_bytes(Spectrum.from_logits(logits).to_bytes()).log_scale is None
    if rows > 1:
        assert back.head[1].sum() == 0 and back.unscaled_mass()[1] == 0
        assert back.error is not None and back.error[1] == 0


def test_every_damaged_byte_is_noticed() -> None:
    data = Spectrum.from_logits(zipf(4, 700, seed=1).float()).to_bytes()
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x40
        with pytest.raises(ValueError, match="spectrum"):
            Spectrum.from_bytes(bytes(broken))


def test_every_truncation_is_noticed() -> None:
    data = Spectrum.from_logits(zipf(4, 700, seed=1).float()).to_bytes()
    for length in range(len(data)):
        with pytest.raises(ValueError, match="spectrum"):
            Spectrum.from_bytes(data[:length])
    with pytest.raises(ValueError, match="damaged"):
        Spectrum.from_bytes(data + b"x")


def test_another_version_is_named() -> None:
    data = bytearray(Spectrum.from_logits(zipf(4, 700, seed=1).float()).to_bytes())
    data[4] = 9
    with pytest.raises(ValueError, match=f"version 9.*reads versions {CODEC_VERSION} and {TRUNCATED_VERSION}"):
        Spectrum.from_bytes(bytes(data))
    with pytest.raises(ValueError, match="not spectrum bytes"):
        Spectrum.from_bytes(b"PAR1" + bytes(data[4:]))


def test_a_header_that_lies_is_noticed() -> None:
    data = Spectrum.from_logits(zipf(4, 700, seed=1).float()).to_bytes()
    body = bytearray(data[10:])
    struct.pack_into("<I", body, 0, 5)  # one row more than there are
    forged = data[:6] + struct.pack("<I", zlib.crc32(body)) + bytes(body)
    with pytest.raises(ValueError, match="bytes of rows for 5 rows"):
        Spectrum.from_bytes(forged)


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_exact", 0), ("rank_ratio", 1.0), ("step", 0.0), ("even_mass", 2.0), ("dropped_mass", -1.0)],
)
def test_impossible_precision_is_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        Precision(**{field: value})  # type: ignore[arg-type]


def test_precision_must_fit() -> None:
    with pytest.raises(ValueError, match="too fine for 16 bits"):
        Precision(step=1e-3, even_mass=1e-3)
    with pytest.raises(ValueError, match="num_exact 64 exceeds the spectrum's num_head 32"):
        Spectrum.from_logits(torch.zeros(2, 9), num_head=32).to_bytes(Precision(num_exact=64))
