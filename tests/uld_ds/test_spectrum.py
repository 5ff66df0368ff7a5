"""Spectra: what they keep, what they can be asked, and what their bytes cost."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.uld_ds.spectra_zoo import cosine, gaussian, masked, one_hot, reference_with_gradient, zipf
from uld_ds.areas import compare
from uld_ds.level_counts import LevelCounts, LevelGrid, top_probabilities
from uld_ds.spectrum import Spectrum
from uld_ds.spectrum_codec import CODEC_VERSION, Precision
from uld_ds.uld import uld_distance, uld_value_and_grad

# --- the grid and the top-k -----------------------------------------------------------------------------------------


def test_grid_edges_are_geometric_and_exact() -> None:
    grid = LevelGrid(mantissa_bits=1, floor_octave=3, top_octave=0)
    edges = grid.lower_edges(torch.device("cpu")).tolist()
    assert edges == [0.0, 1 / 8, 3 / 16, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0]
    assert grid.num_bins == 8
    widths = grid.widths(torch.device("cpu")).tolist()
    assert widths == [1 / 8, 1 / 16, 1 / 16, 1 / 8, 1 / 8, 1 / 4, 1 / 4, 0.0]


@pytest.mark.parametrize(
    ("bits", "floor", "top"), [(-1, 36, 0), (11, 36, 0), (5, 0, 0), (5, 7, 7), (5, 101, 0), (5, 9, -1)]
)
def test_impossible_grids_are_refused(bits: int, floor: int, top: int) -> None:
    with pytest.raises(ValueError, match="must"):
        LevelGrid(bits, floor, top)


@settings(max_examples=60, deadline=None)
@given(
    vocab=st.integers(1, 700),
    share=st.floats(0.001, 1.0),
    distinct=st.integers(1, 1000),
    seed=st.integers(0, 10_000),
)
def test_top_probabilities_equal_a_plain_topk(vocab: int, share: float, distinct: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    p = torch.randint(0, distinct, (3, vocab), generator=rng) / distinct
    k = max(1, int(share * vocab))
    values, where = top_probabilities(p, k)
    assert torch.equal(values, p.topk(k).values)
    assert torch.equal(p.gather(1, where), values)
    assert all(len(set(row)) == k for row in where.tolist())


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
    # Unchecked, such a row is padding and its neighbours are whole.
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


def test_entropy_of_what_lies_below_the_grid_and_of_unnormalised_parts() -> None:
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


def test_comparison_of_tails_by_hand() -> None:
    grid = LevelGrid(mantissa_bits=0, floor_octave=2, top_octave=0)  # edges 0, 1/4, 1/2, 1
    counts = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    p = LevelCounts(counts, torch.tensor([[0.0, 0.3, 0.6, 0.0]]))
    q = LevelCounts(torch.tensor([[0.0, 2.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.8, 0.0, 0.0]]))
    # Sorted: .6 .3 against two of sum .8 within [1/4, 1/2): .4 .4, .35 .45 or .31 .49, we cannot know.
    areas = compare(p, q, grid)
    assert areas.bound is not None
    for first in (0.31, 0.35, 0.4):
        true = abs(0.6 - (0.8 - first)) + abs(0.3 - first)
        assert abs(areas.distance.item() - true) <= areas.bound.item() + 1e-6


def tail(counts: list[float], masses: list[float]) -> LevelCounts:
    return LevelCounts(torch.tensor([counts]), torch.tensor([masses]))


def test_no_error_where_no_sign_can_change() -> None:
    grid = LevelGrid(mantissa_bits=0, floor_octave=2, top_octave=0)
    areas = compare(tail([0, 0, 2, 0], [0, 0, 1.3, 0]), tail([0, 1, 0, 0], [0, 0.3, 0, 0]), grid)
    assert areas.distance.item() == pytest.approx(1.0)
    assert areas.bound is not None
    assert areas.bound.item() <= 1e-6


def test_bound_beyond_both_ends_of_the_grid() -> None:
    grid = LevelGrid(mantissa_bits=0, floor_octave=2, top_octave=0)
    # Above the grid: 5 and 1.5 against 3.4 and 3 are 3.1 apart; the sums differ by 0.1 only.
    above = compare(tail([0, 0, 0, 2], [0, 0, 0, 6.5]), tail([0, 0, 0, 2], [0, 0, 0, 6.4]), grid)
    assert above.bound is not None
    assert above.bound.item() >= 3.1 - above.distance.item()
    # Below it: one of 0.2 against a hundred of 0.002 are 0.396 apart, and look the same.
    below = compare(tail([0, 0, 0, 0], [0.2, 0, 0, 0]), tail([0, 0, 0, 0], [0.2, 0, 0, 0]), grid)
    assert below.bound is not None
    assert below.bound.item() >= 0.396 - below.distance.item()


# --- bytes ----------------------------------------------------------------------------------------------------------

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
    data[4] = CODEC_VERSION + 1
    with pytest.raises(ValueError, match=f"version {CODEC_VERSION + 1}.*reads version {CODEC_VERSION}"):
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
