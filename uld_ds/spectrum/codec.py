"""The codec of spectra: versioned, checksummed bytes, some eighty per distribution.

A sorted spectrum is smooth, so it is cut into ranks: the first ``num_exact`` one by one, the rest in blocks whose
ends grow by ``rank_ratio``. Per block the mass is coded, in steps that are even in mass where a block holds much and
even in log-mass where it holds little: an error of the L1 distance is a sum over blocks of mass errors, so the
coarsest steps belong where there is least to lose. What is written are differences from one rank to the next, and
from one block's difference to the next one's.

Decoding adds integers, looks masses up in a table, and otherwise adds, multiplies, divides and takes square roots of
float64, in an order that does not depend on what else is decoded: the same bytes give the same bits, alone or among
others, on any machine.

The layout of the bytes is in ``uld_ds.spectrum.codec_bytes``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch

from uld_ds.spectrum.codec_bytes import MASS_UNIT, Kind, Rows, error_to_bytes, errors_of_bytes, pack, part_of, unpack
from uld_ds.spectrum.histogram import LevelCounts, LevelGrid
from uld_ds.spectrum.histogram_distance import compare
from uld_ds.spectrum.parts import SpectrumParts
from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.rank_blocks import Array, BlockMasses, block_sizes, blocks_covering, first_blocks, spread


def default_precision(num_head: int) -> Precision:
    """Return the default precision, with ``num_exact`` at most the ``num_head`` ranks that spectra hold exactly."""
    return Precision(num_exact=min(Precision.num_exact, num_head))


def encode(spectrum: SpectrumParts, precision: Precision) -> bytes:
    """Encode ``spectrum`` as bytes, which ``decode`` restores up to the error that they carry.

    Raises:
        ValueError: ``precision.num_exact`` exceeds the ranks that the spectrum itself holds exactly.
    """
    return encode_many(spectrum, [len(spectrum)], precision)[0]


def encode_many(
    spectrum: SpectrumParts, sizes: Sequence[int], precision: Precision, *, deflate: bool = True
) -> list[bytes]:
    """Encode consecutive runs of a spectrum's rows, each as bytes that can be decoded alone.

    Args:
        spectrum: ``N`` rows.
        sizes: rows of each run; they sum to ``N``.
        precision: how exactly rows are coded.
        deflate: compress each; without it whoever stores the bytes should.

    Raises:
        ValueError: ``precision.num_exact`` exceeds the ranks that the spectrum itself holds exactly, or ``sizes`` do
            not sum to ``N``.
    """
    if sum(sizes) != len(spectrum):
        raise ValueError(f"sizes sum to {sum(sizes)}, spectrum has {len(spectrum)} rows")
    rows = _to_rows(spectrum, precision)
    bounds = [0, *np.cumsum(sizes).tolist()]
    return [pack(part_of(rows, slice(*bound)), deflate) for bound in pairwise(bounds)]


def decode(data: bytes) -> SpectrumParts:
    """Decode the spectra in ``data``, the bytes of one ``encode``.

    Raises:
        ValueError: not these bytes, another version of them, or bytes cut short or changed; says which.
    """
    return decode_many([data])[0]


def decode_many(blobs: Sequence[bytes]) -> list[SpectrumParts]:
    """Decode the spectra in each of ``blobs``, to the same bits as ``decode`` of each alone.

    The results are views of a few large tensors.

    Raises:
        ValueError: not these bytes, another version of them, or bytes cut short or changed; says which.
    """
    parts = [unpack(blob) for blob in blobs]
    alike: dict[Kind, list[int]] = {}
    for place, part in enumerate(parts):
        alike.setdefault(part.kind, []).append(place)
    found: dict[int, SpectrumParts] = {}
    for kind, places in alike.items():
        together = [parts[place] for place in places]
        support = np.concatenate([part.support for part in together])
        left_out = _joined([part.left_out for part in together], [len(part.support) for part in together])
        spectrum = _rebuild(kind, support, _side_by_side([part.codes for part in together]), left_out)
        error = np.concatenate([part.error for part in together])
        spectrum.error = torch.from_numpy(errors_of_bytes()[error] * (support > 0))
        begin = 0
        for place, part in zip(places, together, strict=True):
            end = begin + len(part.support)
            found[place] = spectrum[begin:end]
            if part.log_scale is not None:
                found[place].log_scale = torch.from_numpy(part.log_scale)
            if part.unknown is not None:
                found[place].unknown_mass = torch.from_numpy(part.unknown * MASS_UNIT).float()
            begin = end
    return [found[place] for place in range(len(parts))]


def _to_rows(spectrum: SpectrumParts, precision: Precision) -> Rows:
    if precision.num_exact > spectrum.num_head:
        raise ValueError(f"num_exact {precision.num_exact} exceeds the spectrum's num_head {spectrum.num_head}")
    spectrum = spectrum.to("cpu").with_head(precision.num_exact)
    ends = blocks_covering(precision.num_exact, precision.rank_ratio, spectrum.num_probabilities())
    cumulative = spectrum.cumulative_mass(torch.from_numpy(ends)).numpy().T  # [J, N]
    support = _support(cumulative, ends, spectrum, precision.dropped_mass)
    masses = BlockMasses(precision.step, precision.even_mass)
    codes = masses.code(np.diff(cumulative, axis=0, prepend=0.0)).astype(np.uint16)
    kind = Kind(
        precision.num_exact,
        _coarser(spectrum.grid, precision.mantissa_bits),
        precision.rank_ratio,
        masses,
        spectrum.temperature,
    )
    unknown = None if spectrum.unknown_mass is None else _in_units(np.ceil, spectrum.unknown_mass)
    # A tail that was left out is not to be scaled up to.
    left_out = (
        None if unknown is None else _in_units(np.rint, (1 - spectrum.unscaled_mass()) * (spectrum.head[:, 0] > 0))
    )
    error = _error_bytes(spectrum, _rebuild(kind, support, codes, left_out))
    log_scale = None if spectrum.log_scale is None else spectrum.log_scale.numpy().astype(np.float32)
    return Rows(kind, support, codes, error, log_scale, unknown, left_out)


def _in_units(rounded: Callable[[Array], Array], mass: torch.Tensor) -> Array:
    return np.clip(rounded(mass.double().numpy() / MASS_UNIT), 0, 0xFFFF).astype(np.uint16)


def _side_by_side(parts: Sequence[Array]) -> Array:
    """Join codes of several runs as columns, [J, N] uint16; zeros fill up blocks beyond a row's support."""
    codes = np.zeros((max(len(part) for part in parts), sum(part.shape[1] for part in parts)), np.uint16)
    begin = 0
    for part in parts:
        codes[: len(part), begin : begin + part.shape[1]] = part
        begin += part.shape[1]
    return codes


def _support(cumulative: Array, ends: Array, spectrum: SpectrumParts, dropped_mass: float) -> Array:
    """Count the ranks kept per row, ``[N]``: up to the first block end that leaves at most ``dropped_mass`` behind."""
    left = spectrum.unscaled_mass().double().numpy() - cumulative
    enough = left <= dropped_mass
    enough[-1] = True
    members = torch.count_nonzero(spectrum.head, dim=-1).double() + spectrum.counts.double().sum(-1).ceil()
    return np.minimum(ends[enough.argmax(axis=0)], members.long().numpy())


def _joined(parts: Sequence[Array | None], sizes: Sequence[int]) -> Array | None:
    """Join vectors of several runs, of which absent ones stand for zeros; None when all are absent."""
    if all(part is None for part in parts):
        return None
    whole = [np.zeros(size, np.uint16) if part is None else part for part, size in zip(parts, sizes, strict=True)]
    return np.concatenate(whole)


def _rebuild(kind: Kind, support: Array, codes: Array, left_out: Array | None) -> SpectrumParts:
    """Build the spectra that ``codes [J, N]`` stand for, ``left_out [N]`` units short of a sum of 1."""
    rows, num_exact, grid = len(support), kind.num_exact, kind.grid
    ends = first_blocks(num_exact, kind.rank_ratio, len(codes))
    sizes = block_sizes(ends, support)
    units = kind.masses.table()[codes] * (sizes > 0)  # [J, N] int64
    # What was encoded summed to 1 but for dropped and rounded mass, and for a tail that is left out.
    masses = units / np.maximum(units.sum(axis=0), 1)
    if left_out is not None:
        masses *= 1 - left_out * MASS_UNIT
    head = np.zeros((rows, num_exact), np.float32)
    head[:, : len(codes)] = masses[:num_exact].T
    counts, tail = np.zeros((rows, grid.num_bins)), np.zeros((rows, grid.num_bins))
    if len(codes) > num_exact:
        counts, tail = spread(masses[num_exact - 1 :], sizes[num_exact - 1 :], ends[num_exact - 1 :], support, grid)
    return SpectrumParts(
        torch.from_numpy(head),
        torch.from_numpy(counts).float(),
        torch.from_numpy(tail).float(),
        grid=grid,
        temperature=kind.temperature,
    )


def _coarser(grid: LevelGrid, mantissa_bits: int) -> LevelGrid:
    return LevelGrid(min(grid.mantissa_bits, mantissa_bits), grid.floor_octave, grid.top_octave)


def _on_grid(tail: LevelCounts, grid: LevelGrid, coarse: LevelGrid) -> LevelCounts:
    """Merge bins of ``tail`` so that its counts and masses stand on a grid of fewer levels per octave."""
    merged = 1 << (grid.mantissa_bits - coarse.mantissa_bits)

    def merge(part: torch.Tensor) -> torch.Tensor:
        inside = part[:, 1:-1].unflatten(1, (-1, merged)).sum(-1)
        return torch.cat([part[:, :1], inside, part[:, -1:]], dim=1)

    return LevelCounts(merge(tail.counts), merge(tail.masses))


def _error_bytes(true: SpectrumParts, decoded: SpectrumParts) -> Array:
    """Bound the W1 distance between true and decoded rows, rounded up to a byte: ``[N]`` uint8."""
    areas = compare(_on_grid(true.tail, true.grid, decoded.grid), decoded.tail, decoded.grid)
    assert areas.bound is not None
    error = (true.head - decoded.head).abs().sum(-1) + areas.distance + areas.bound
    if true.error is not None:
        error = error + true.error
    return error_to_bytes(error.double().numpy())
