"""Spectra: what they keep, and what they can be asked."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.helpers.spectra_zoo import gaussian, masked, one_hot, zipf
from uld_ds.spectrum.histogram import LevelGrid
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.uld.distance import uld_distance

# --- from logits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [3, 40, 5000])
def test_head_is_exact_and_the_tail_accounts_for_the_rest(vocab: int) -> None:
    logits = zipf(4, vocab, seed=1)
    spectrum = Spectrum.from_logits(logits, num_head=16)
    p = torch.softmax(logits, -1).sort(-1, descending=True).values
    k = min(16, vocab)
    torch.testing.assert_close(spectrum.head[:, :k], p[:, :k], rtol=1e-9, atol=0)
    assert (spectrum.head[:, k:] == 0).all()
    assert (spectrum.counts.sum(-1) == vocab - k).all()
    torch.testing.assert_close(spectrum.masses.sum(-1), p[:, k:].sum(-1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(spectrum.total_mass(), torch.ones(4).double(), rtol=1e-9, atol=0)


def test_tail_bins_hold_what_lies_between_their_edges() -> None:
    logits = zipf(3, 4000, seed=2)
    spectrum = Spectrum.from_logits(logits, num_head=8)
    p = torch.softmax(logits, -1).sort(-1, descending=True).values[:, 8:]
    lower = spectrum.grid.lower_edges(torch.device("cpu")).double()
    upper = torch.cat([lower[1:], torch.tensor([math.inf]).double()])
    inside = (p[:, None, :] >= lower[:, None]) & (p[:, None, :] < upper[:, None])
    torch.testing.assert_close(spectrum.counts, inside.sum(-1).double())
    torch.testing.assert_close(spectrum.masses, (inside * p[:, None, :]).sum(-1), rtol=1e-9, atol=1e-12)


def test_float32_masses_are_accumulated_without_drift() -> None:
    logits = gaussian(2, 262_144, scale=0.05, seed=1)
    spectrum = Spectrum.from_logits(logits.float())
    p = torch.softmax(logits, -1)
    torch.testing.assert_close(spectrum.total_mass(), torch.ones(2), rtol=1e-6, atol=0)
    torch.testing.assert_close(spectrum.head[:, 0].double(), p.amax(-1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_temperature(temperature: float) -> None:
    logits = zipf(3, 900, seed=1)
    spectrum = Spectrum.from_logits(logits, temperature=temperature)
    want = torch.softmax(logits / temperature, -1).amax(-1)
    torch.testing.assert_close(spectrum.head[:, 0], want, rtol=1e-9, atol=0)
    assert spectrum.temperature == temperature


def test_impossible_tokens_are_not_counted_and_padding_is_empty() -> None:
    logits = masked(zipf(3, 900, seed=1), every=3)
    logits[1] = -math.inf
    spectrum = Spectrum.from_logits(logits.float(), num_head=4)
    assert spectrum.counts.sum(-1).tolist() == [596, 0, 596]
    assert spectrum.total_mass()[1] == 0
    assert spectrum.entropy()[1] == 0
    assert (spectrum.head[1] == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.nan])
def test_bad_rows_are_named(bad: float) -> None:
    logits = zipf(5, 90, seed=1).float()
    logits[0] = -math.inf
    logits[3, 7] = bad
    with pytest.raises(ValueError, match="logits: row 3 holds NaN or"):
        Spectrum.from_logits(logits, chunk_rows=2)
    # Unchecked, such a row is padding and its neighbors are whole.
    spectrum = Spectrum.from_logits(logits, check=False)
    torch.testing.assert_close(spectrum.total_mass(), torch.tensor([0.0, 1, 1, 0, 1]))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match=r"logits must have shape \[N, V\]"):
        Spectrum.from_logits(torch.zeros(3))
    with pytest.raises(ValueError, match="temperature must be"):
        Spectrum.from_logits(torch.zeros(3, 4), temperature=0.0)
    with pytest.raises(ValueError, match="num_head must be at least 1"):
        Spectrum.from_logits(torch.zeros(3, 4), num_head=0)
    spectrum = Spectrum.from_logits(torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"log_scale must have shape \[3\]"):
        spectrum.shift(torch.zeros(2))
    with pytest.raises(ValueError, match="counts must have shape"):
        Spectrum(spectrum.head, spectrum.counts[:, 1:], spectrum.masses, grid=spectrum.grid)
    with pytest.raises(ValueError, match="at least one"):
        Spectrum.cat([])
    with pytest.raises(ValueError, match="cannot concatenate"):
        Spectrum.cat([spectrum, Spectrum.from_logits(torch.zeros(3, 4), num_head=9)])
    with pytest.raises(ValueError, match="cannot concatenate"):
        Spectrum.cat([spectrum, Spectrum.from_logits(torch.zeros(3, 4), temperature=2.0)])
    with pytest.raises(ValueError, match="num_head must lie in 1"):
        spectrum.with_head(spectrum.num_head + 1)
    with pytest.raises(TypeError, match="not by one int"):
        spectrum[0]  # type: ignore[index]


# --- as a container -------------------------------------------------------------------------------------------------


def same(a: Spectrum, b: Spectrum) -> bool:
    def equal(x: Tensor | None, y: Tensor | None) -> bool:
        return (x is None and y is None) or (x is not None and y is not None and torch.equal(x, y))

    names = ("head", "counts", "masses", "log_scale", "error")
    return a.grid == b.grid and all(equal(getattr(a, name), getattr(b, name)) for name in names)


def test_rows_can_be_taken_and_put_together() -> None:
    logits = zipf(7, 900, seed=1).float()
    spectrum = Spectrum.from_logits(logits).shift(torch.linspace(-1, 0, 7))
    assert len(spectrum) == 7
    assert same(Spectrum.cat([spectrum[:3], spectrum[3:]]), spectrum)
    order = torch.tensor([5, 0, 0, 6])
    assert same(spectrum[order], Spectrum.from_logits(logits[order]).shift(torch.linspace(-1, 0, 7)[order]))
    assert same(spectrum[[5, 0, 0, 6]], spectrum[order])
    assert len(spectrum[:0]) == 0
    assert same(spectrum.to("cpu"), spectrum)


def test_concatenation_fills_in_absent_scales() -> None:
    a, b = (Spectrum.from_logits(zipf(2, 90, seed=seed).float()) for seed in (1, 2))
    joined = Spectrum.cat([a, b.shift(torch.tensor([-1.0, -2.0]))])
    assert joined.log_scale is not None
    assert joined.log_scale.tolist() == [0, 0, -1, -2]


def test_shifts_add_up_and_scale_the_mass() -> None:
    spectrum = Spectrum.from_logits(zipf(2, 90, seed=1))
    shifted = spectrum.shift(torch.tensor([-1.0, 0.0])).shift(torch.tensor([-0.5, -2.0]))
    torch.testing.assert_close(shifted.total_mass(), torch.tensor([-1.5, -2.0]).double().exp())
    torch.testing.assert_close(shifted.unscaled_mass(), torch.ones(2).double())
    torch.testing.assert_close(shifted.entropy(), spectrum.entropy())


@pytest.mark.parametrize(
    "logits",
    [
        zipf(4, 5000, seed=1),
        zipf(4, 5000, slope=2.5, seed=2),
        gaussian(4, 5000, scale=1.0),
        one_hot(4, 50),
        torch.zeros(2, 999),
    ],
    ids=["zipf", "peaked", "flat", "one-hot", "uniform"],
)
def test_entropy(logits: Tensor) -> None:
    log_p = torch.log_softmax(logits.double(), -1)
    want = -(log_p.exp() * log_p.clamp_min(-1e4)).sum(-1)
    spectrum = Spectrum.from_logits(logits, num_head=4)
    torch.testing.assert_close(spectrum.entropy().double(), want, rtol=1e-4, atol=1e-6)


def test_entropy_of_what_lies_below_the_grid_and_of_unnormalized_parts() -> None:
    logits = gaussian(3, 5000, scale=1.0)
    want = Spectrum.from_logits(logits).entropy()
    shallow = Spectrum.from_logits(logits, num_head=4, grid=LevelGrid(floor_octave=11))
    assert ((shallow.entropy() - want).abs() < 0.1 * want).all()
    whole = Spectrum.from_logits(logits, num_head=4)
    half = Spectrum(0.5 * whole.head, whole.counts, 0.5 * whole.masses, grid=whole.grid)
    torch.testing.assert_close(half.entropy(), whole.entropy())


def test_concatenation_keeps_errors() -> None:
    fresh = Spectrum.from_logits(zipf(2, 900, seed=1).float(), num_head=32)
    stored = Spectrum.from_bytes(fresh.to_bytes())
    joined = Spectrum.cat([fresh, stored])
    assert joined.error is not None and stored.error is not None
    assert joined.error.tolist() == [0, 0, *stored.error.tolist()]
    assert (stored.error > 0).all()


def test_cumulative_mass_and_probabilities_by_rank() -> None:
    logits = zipf(3, 2000, seed=1)
    spectrum = Spectrum.from_logits(logits, num_head=10)
    p = torch.softmax(logits, -1).sort(-1, descending=True).values
    ranks = torch.tensor([0, 1, 10, 57, 500, 2000, 9000])
    want = torch.nn.functional.pad(p.cumsum(-1), (1, 0))[:, ranks.clamp(max=2000)]
    got = spectrum.cumulative_mass(ranks)
    torch.testing.assert_close(got[:, [0, 1, 2, 5, 6]], want[:, [0, 1, 2, 5, 6]], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=0)
    assert spectrum.num_probabilities() == 2000
    by_rank = spectrum.to_probabilities(2000)
    torch.testing.assert_close(by_rank, p, rtol=0.035, atol=1e-12)
    assert (by_rank.diff(dim=-1) <= 1e-15).all()


def test_a_smaller_head_is_the_same_spectrum() -> None:
    student, teacher = zipf(4, 3000, seed=1), zipf(4, 5000, seed=2)
    spectrum = Spectrum.from_logits(teacher, num_head=256)
    fewer = spectrum.with_head(20)
    direct = Spectrum.from_logits(teacher, num_head=20)
    assert fewer.grid == direct.grid
    torch.testing.assert_close(fewer.counts, direct.counts)
    torch.testing.assert_close(fewer.masses, direct.masses)
    torch.testing.assert_close(uld_distance(student, fewer), uld_distance(student, spectrum), rtol=1e-3, atol=0)
