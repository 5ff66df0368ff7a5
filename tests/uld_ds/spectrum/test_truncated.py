"""Spectra of which only the largest probabilities are known, and what the unknown mass may cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers.spectra_zoo import gaussian, reference_distance, zipf
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.spectrum.tail_shapes import SHAPES, TailShape, estimate
from uld_ds.spectrum.truncated import known_mass
from uld_ds.uld.distance import uld_distance, uld_value_and_grad


def top_log_probs(logits: Tensor, k: int) -> Tensor:
    return torch.log_softmax(logits.double(), -1).sort(-1, descending=True).values[:, :k]


def truncated(logits: Tensor, k: int, *, num_head: int = 256) -> Spectrum:
    return Spectrum.from_top_log_probs(
        top_log_probs(logits, k), vocab_size=logits.shape[1], num_head=num_head, tail="left_out"
    )


@pytest.mark.parametrize("num_head", [8, 64])
def test_what_is_known_is_kept_and_the_rest_is_a_mass(num_head: int) -> None:
    logits = zipf(5, 3000, seed=1)
    p = torch.softmax(logits, -1).sort(-1, descending=True).values
    spectrum = truncated(logits, 20, num_head=num_head)
    k = min(num_head, 20)
    torch.testing.assert_close(spectrum.head[:, :k], p[:, :k], rtol=1e-12, atol=0)
    assert spectrum.unknown_mass is not None
    torch.testing.assert_close(spectrum.unknown_mass, 1 - p[:, :20].sum(-1), rtol=1e-9, atol=0)
    known = spectrum.head[:, :20].sum(-1) + (spectrum.masses.sum(-1) if num_head < 20 else 0)
    torch.testing.assert_close(known, p[:, :20].sum(-1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("num_head", [8, 64])
def test_knowing_all_is_the_full_spectrum(num_head: int) -> None:
    logits = zipf(4, 500, seed=2)
    whole, known = Spectrum.from_logits(logits, num_head=num_head), truncated(logits, 500, num_head=num_head)
    torch.testing.assert_close(known.head, whole.head, rtol=1e-12, atol=1e-15)
    torch.testing.assert_close(known.counts, whole.counts)
    torch.testing.assert_close(known.masses, whole.masses, rtol=1e-9, atol=1e-12)
    assert known.unknown_mass is not None and known.unknown_mass.max() < 1e-12


@pytest.mark.parametrize("k", [1, 20, 256, 1000])
def test_the_bound_holds_for_the_true_distribution(k: int) -> None:
    student, teacher = zipf(16, 2000, seed=3), zipf(16, 3000, seed=4)
    spectrum = truncated(teacher, k)
    want = reference_distance(torch.softmax(student, -1), torch.softmax(teacher, -1))
    for stored in (spectrum, Spectrum.from_bytes(spectrum.to_bytes())):
        got = uld_value_and_grad(student, stored)
        assert got.bound is not None and stored.error is not None and stored.unknown_mass is not None
        assert ((got.distance - want).abs() <= got.bound).all()
    assert (uld_distance(student, spectrum, method="exact") - want).abs().le(spectrum.error + 1e-9).all()


def test_rows_that_know_fewer_and_padding() -> None:
    log_probs = torch.tensor([[0.5, 0.25, 0.125], [0.5, 0.25, 0.0], [0.0, 0.0, 0.0]]).log()
    spectrum = Spectrum.from_top_log_probs(log_probs, vocab_size=100, num_head=4)
    assert spectrum.unknown_mass is not None
    assert spectrum.unknown_mass.tolist() == pytest.approx([0.125, 0.25, 0.0], abs=1e-7)
    assert spectrum.unscaled_mass()[2] == 0 and spectrum.head[2].sum() == 0
    distance = uld_distance(torch.zeros(3, 50), spectrum)
    assert distance[2] == 0


def test_rounding_beyond_one_is_scaled_back() -> None:
    logits = zipf(50, 3000, slope=2.5, seed=5)
    for dtype in (torch.float16, torch.bfloat16):
        rounded = top_log_probs(logits, 512).to(dtype)
        spectrum = Spectrum.from_top_log_probs(rounded, vocab_size=3000)
        assert spectrum.unknown_mass is not None and spectrum.error is not None
        total = rounded.double().exp().sum(-1)
        assert (total > 1).any()
        assert (spectrum.unscaled_mass() <= 1 + 1e-5).all()
        # Where it was scaled, the error says by how much.
        moved = (total - 1).clamp(min=0)
        assert (spectrum.error >= moved - 1e-6).all()


@pytest.mark.parametrize(
    ("probabilities", "vocab_size", "problem"),
    [
        ([0.7, 0.4], 100, r"row 0 sums to more than 1 \(1.1000\)"),
        ([0.2, 0.3], 100, "row 0 is not in descending order"),
        ([math.nan, 0.3], 100, "row 0 holds NaN"),
        ([0.4, 0.1], 3, r"row 0 leaves more than 3 tokens in all hold \(0.5000\)"),
        ([0.4, 0.1], 2, r"row 0 leaves more than 2 tokens in all hold \(0.5000\)"),
        ([0.5, 0.5], 1, "row 0 knows more tokens than the 1 of the vocabulary"),
    ],
)
def test_what_cannot_be_is_refused(probabilities: list[float], vocab_size: int, problem: str) -> None:
    with pytest.raises(ValueError, match=f"top: {problem}"):
        Spectrum.from_top_log_probs(torch.tensor([probabilities]).log(), vocab_size=vocab_size, name="top")


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"log_probs must have shape \[N, k\]"):
        Spectrum.from_top_log_probs(torch.zeros(3), vocab_size=4)
    with pytest.raises(ValueError, match="floating point"):
        Spectrum.from_top_log_probs(torch.zeros(3, 1, dtype=torch.int64), vocab_size=4)
    with pytest.raises(ValueError, match="num_head must be at least 1"):
        Spectrum.from_top_log_probs(torch.zeros(3, 1), vocab_size=4, num_head=0)
    with pytest.raises(ValueError, match=r"unknown_mass must have shape \[3\]"):
        full = Spectrum.from_logits(torch.zeros(3, 4))
        Spectrum(full.head, full.counts, full.masses, grid=full.grid, unknown_mass=torch.zeros(2))


# --- as a container -------------------------------------------------------------------------------------------------


def test_unknown_mass_goes_wherever_the_rows_go() -> None:
    logits = zipf(6, 900, seed=1).float()
    spectrum = truncated(logits, 20)
    mass = spectrum.unknown_mass
    assert mass is not None
    order = [4, 0, 0]
    for got, want in (
        (spectrum[order], mass[order]),
        (spectrum[1:3], mass[1:3]),
        (spectrum.to("cpu"), mass),
        (spectrum.shift(torch.full((6,), -1.0)), mass),
        (spectrum.with_head(16), mass),
        (Spectrum.cat([spectrum, spectrum[:2]]), torch.cat([mass, mass[:2]])),
    ):
        assert got.unknown_mass is not None and torch.equal(got.unknown_mass, want)
    full = Spectrum.from_logits(logits[:2].double())
    mixed = Spectrum.cat([full, spectrum]).unknown_mass
    assert mixed is not None and torch.equal(mixed, torch.cat([torch.zeros(2).double(), mass]))


# --- as bytes -------------------------------------------------------------------------------------------------------


def test_bytes_carry_the_unknown_mass() -> None:
    spectrum = truncated(zipf(9, 5000, seed=6), 64)
    data = spectrum.to_bytes()
    assert data[4] == 3
    back = Spectrum.from_bytes(data)
    assert back.unknown_mass is not None and spectrum.unknown_mass is not None and back.error is not None
    short = back.unknown_mass.double() - spectrum.unknown_mass
    assert (short >= 0).all() and (short < 2**-16).all()
    torch.testing.assert_close(back.unscaled_mass().double(), spectrum.unscaled_mass(), rtol=0, atol=2e-5)
    assert (back.error.double() >= spectrum.error).all()
    again = Spectrum.from_bytes(back.to_bytes()).unknown_mass
    assert again is not None and torch.equal(again, back.unknown_mass)


def test_full_spectra_keep_their_bytes_also_beside_truncated_ones() -> None:
    logits = zipf(5, 900, seed=1)
    full = Spectrum.from_logits(logits)
    assert full.to_bytes()[4] == 2
    from uld_ds.spectrum import codec

    mixed = Spectrum.cat([full, truncated(logits, 20)])
    first, second = codec.encode_many(mixed, [5, 5], codec.default_precision(256))
    assert first == full.to_bytes()
    assert second == truncated(logits, 20).to_bytes()
    one, two = codec.decode_many([first, second])
    assert one.unknown_mass is None and two.unknown_mass is not None
    assert torch.equal(two.head, Spectrum.from_bytes(second).head)
    assert torch.equal(one.head, Spectrum.from_bytes(first).head)


def test_damage_to_a_truncated_spectrum_is_noticed() -> None:
    data = truncated(zipf(4, 700, seed=1), 20).to_bytes()
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x40
        with pytest.raises(ValueError, match="spectrum"):
            Spectrum.from_bytes(bytes(broken))
    for length in range(len(data)):
        with pytest.raises(ValueError, match="spectrum"):
            Spectrum.from_bytes(data[:length])


# --- the estimate ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", SHAPES)
@pytest.mark.parametrize("k", [8, 100, 700])
def test_a_tail_in_head_and_histogram_is_the_estimate(tail: TailShape, k: int) -> None:
    log_probs = top_log_probs(zipf(6, 3000, seed=7), k)
    spectrum = Spectrum.from_top_log_probs(log_probs, vocab_size=3000, num_head=64, tail=tail)
    assert spectrum.unknown_mass is not None
    known = known_mass(log_probs, vocab_size=3000)
    unknown, least = known.unknown_mass.numpy(), known.least.numpy()
    want = estimate(tail, unknown, least, k, 3000)
    ranks = torch.from_numpy(np.repeat(want.levels, want.blocks.sizes, axis=1))
    whole = torch.cat([known.probabilities, ranks], dim=1)
    torch.testing.assert_close(spectrum.head, whole[:, :64], rtol=1e-12, atol=0)
    torch.testing.assert_close(spectrum.masses.sum(-1), whole[:, 64:].sum(-1), rtol=1e-9, atol=1e-12)
    if tail != "left_out":
        torch.testing.assert_close(spectrum.unscaled_mass(), torch.ones(6).double(), rtol=1e-9, atol=0)
    assert ((spectrum.to_probabilities(3000) - whole).abs().sum(-1) < 0.02).all()


@pytest.mark.parametrize("tail", SHAPES)
@pytest.mark.parametrize("k", [1, 20, 400])
def test_the_bound_of_every_shape_holds(tail: TailShape, k: int) -> None:
    student = zipf(12, 2000, seed=3)
    for teacher in (zipf(12, 3000, seed=4), zipf(12, 3000, slope=0.7, seed=5), gaussian(12, 3000, scale=0.5, seed=6)):
        spectrum = Spectrum.from_top_log_probs(top_log_probs(teacher, k), vocab_size=3000, tail=tail)
        want = reference_distance(torch.softmax(student, -1), torch.softmax(teacher, -1))
        for stored in (spectrum, Spectrum.from_bytes(spectrum.to_bytes())):
            got = uld_value_and_grad(student, stored)
            assert got.bound is not None
            assert ((got.distance - want).abs() <= got.bound).all()


def test_rows_that_know_differently_many_are_those_alone() -> None:
    log_probs = top_log_probs(zipf(4, 900, seed=8), 40)
    log_probs[1, 20:] = -math.inf
    log_probs[2] = -math.inf
    together = Spectrum.from_top_log_probs(log_probs, vocab_size=900)
    for row in range(4):
        alone = Spectrum.from_top_log_probs(log_probs[[row]], vocab_size=900)
        for name in ("head", "counts", "masses", "error", "unknown_mass"):
            assert torch.equal(getattr(alone, name)[0], getattr(together, name)[row])
    shorter = Spectrum.from_top_log_probs(log_probs[[1], :20], vocab_size=900)
    assert torch.equal(shorter.head[0], together.head[1])
