"""The codec of spectra: versioned, checksummed bytes, some eighty per distribution.

A sorted spectrum is smooth, so it is cut into ranks: the first ``num_exact`` one by one, the rest in blocks whose
ends grow by ``rank_ratio``. Per block the mass is coded, in steps that are even in mass where a block holds much and
even in log-mass where it holds little: an error of the L1 distance is a sum over blocks of mass errors, so the
coarsest steps belong where there is least to lose. What is written are differences from one rank to the next, and
from one block's difference to the next one's.

Decoding adds integers, looks masses up in a table, and otherwise adds, multiplies, divides and takes square roots of
float64, in an order that does not depend on what else is decoded: the same bytes give the same bits, alone or among
others, on any machine.

Layout, little-endian::

    magic "ULDS", version u8, flags u8 (1: log-scales follow, 2: deflated), crc32 u32 of all that follows
    rows u32, num_exact u16, mantissa_bits u8, floor_octave u8, top_octave u8, num_blocks u16, num_wide u16,
    rank_ratio f64, step f64, even_mass f64, temperature f64
    then, through zlib if flagged:
    support u32[rows], lowest bytes first, error u8[rows], log_scale f32[rows] if flagged,
    differences: low bytes u8[num_blocks, rows], high bytes u8[num_wide, rows] (0 for the blocks after those)

A difference d is written as ``2 d`` if not negative, else as ``-2 d - 1``, all modulo 2**16.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from uld_ds.spectrum.histogram import LevelCounts, LevelGrid
from uld_ds.spectrum.histogram_distance import compare
from uld_ds.spectrum.parts import SpectrumParts
from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.rank_blocks import Array, BlockMasses, block_sizes, blocks_covering, first_blocks, spread

CODEC_VERSION = 2
_MAGIC = b"ULDS"
_PREFIX = struct.Struct("<4sBBI")
_HEADER = struct.Struct("<IHBBBHHdddd")
_HAS_LOG_SCALE, _DEFLATED = 1, 2
# The error byte counts eighths of an octave above this.
_LEAST_ERROR = 2.0**-24


def default_precision(num_head: int) -> Precision:
    """Return the default precision, with ``num_exact`` at most the ``num_head`` ranks that spectra hold exactly."""
    return Precision(num_exact=min(Precision.num_exact, num_head))


class _Kind(NamedTuple):
    """The header's parameters that spectra must share to be decoded together."""

    num_exact: int
    grid: LevelGrid
    rank_ratio: float
    masses: BlockMasses
    temperature: float


class _Rows(NamedTuple):
    """Quantized rows of one kind, between spectrum and bytes."""

    kind: _Kind
    support: Array
    """[N] int64: ranks kept of each row."""
    codes: Array
    """[J, N] uint16: codes of block masses; meaningless beyond a row's support."""
    error: Array
    """[N] uint8: error bytes, which ``_errors`` turns into bounds on the W1 distance."""
    log_scale: Array | None
    """[N] float32: log-scales in nats; None for all zeros."""


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
    return [_pack(_part(rows, slice(*bound)), deflate) for bound in pairwise(bounds)]


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
    parts = [_unpack(blob) for blob in blobs]
    alike: dict[_Kind, list[int]] = {}
    for place, part in enumerate(parts):
        alike.setdefault(part.kind, []).append(place)
    found: dict[int, SpectrumParts] = {}
    for kind, places in alike.items():
        together = [parts[place] for place in places]
        support = np.concatenate([part.support for part in together])
        spectrum = _rebuild(kind, support, _side_by_side([part.codes for part in together]))
        error = np.concatenate([part.error for part in together])
        spectrum.error = torch.from_numpy(_errors()[error] * (support > 0))
        begin = 0
        for place, part in zip(places, together, strict=True):
            end = begin + len(part.support)
            found[place] = spectrum[begin:end]
            if part.log_scale is not None:
                found[place].log_scale = torch.from_numpy(part.log_scale)
            begin = end
    return [found[place] for place in range(len(parts))]


def _to_rows(spectrum: SpectrumParts, precision: Precision) -> _Rows:
    if precision.num_exact > spectrum.num_head:
        raise ValueError(f"num_exact {precision.num_exact} exceeds the spectrum's num_head {spectrum.num_head}")
    spectrum = spectrum.to("cpu").with_head(precision.num_exact)
    ends = blocks_covering(precision.num_exact, precision.rank_ratio, spectrum.num_probabilities())
    cumulative = spectrum.cumulative_mass(torch.from_numpy(ends)).numpy().T  # [J, N]
    support = _support(cumulative, ends, spectrum, precision.dropped_mass)
    masses = BlockMasses(precision.step, precision.even_mass)
    codes = masses.code(np.diff(cumulative, axis=0, prepend=0.0)).astype(np.uint16)
    kind = _Kind(
        precision.num_exact,
        _coarser(spectrum.grid, precision.mantissa_bits),
        precision.rank_ratio,
        masses,
        spectrum.temperature,
    )
    error = _error_bytes(spectrum, _rebuild(kind, support, codes))
    log_scale = None if spectrum.log_scale is None else spectrum.log_scale.numpy().astype(np.float32)
    return _Rows(kind, support, codes, error, log_scale)


def _part(rows: _Rows, where: slice) -> _Rows:
    log_scale = None if rows.log_scale is None else rows.log_scale[where]
    return _Rows(rows.kind, rows.support[where], rows.codes[:, where], rows.error[where], log_scale)


def _pack(rows: _Rows, deflate: bool) -> bytes:
    kind = rows.kind
    used = block_sizes(first_blocks(kind.num_exact, kind.rank_ratio, len(rows.codes)), rows.support) > 0
    num_blocks = int(np.count_nonzero(used.any(axis=1)))
    differences = (_differences(rows.codes, kind.num_exact) * used)[:num_blocks]
    low, high = (differences & 0xFF).astype(np.uint8), (differences >> 8).astype(np.uint8)
    num_wide = int(np.flatnonzero(high.any(axis=1)).max(initial=-1)) + 1
    parts = [rows.support.astype("<u4").view(np.uint8).reshape(-1, 4).T.tobytes(), rows.error.tobytes()]
    if rows.log_scale is not None:
        parts.append(rows.log_scale.astype("<f4").tobytes())
    body = b"".join([*parts, low.tobytes(), high[:num_wide].tobytes()])
    header = _HEADER.pack(
        len(rows.support),
        kind.num_exact,
        kind.grid.mantissa_bits,
        kind.grid.floor_octave,
        kind.grid.top_octave,
        num_blocks,
        num_wide,
        kind.rank_ratio,
        kind.masses.step,
        kind.masses.even_mass,
        kind.temperature,
    )
    rest = header + (zlib.compress(body, level=9) if deflate else body)
    flags = (0 if rows.log_scale is None else _HAS_LOG_SCALE) | (_DEFLATED if deflate else 0)
    return _PREFIX.pack(_MAGIC, CODEC_VERSION, flags, zlib.crc32(rest)) + rest


def _unpack(data: bytes) -> _Rows:
    if len(data) < _PREFIX.size or data[:4] != _MAGIC:
        raise ValueError(f"not spectrum bytes: {len(data)} bytes beginning with {bytes(data[:4])!r}")
    _, version, flags, checksum = _PREFIX.unpack_from(data)
    if version != CODEC_VERSION:
        raise ValueError(f"spectrum codec version {version}, but this release reads version {CODEC_VERSION}")
    rest = data[_PREFIX.size :]
    if zlib.crc32(rest) != checksum or len(rest) < _HEADER.size or flags & ~(_HAS_LOG_SCALE | _DEFLATED):
        raise ValueError(f"spectrum bytes are damaged or cut short ({len(data)} bytes, checksum differs)")
    rows, num_exact, *octaves, blocks, wide, rank_ratio, step, even_mass, temperature = _HEADER.unpack_from(rest)
    raw = zlib.decompress(rest[_HEADER.size :]) if flags & _DEFLATED else rest[_HEADER.size :]
    scale_bytes = 4 * rows if flags & _HAS_LOG_SCALE else 0
    if len(raw) != 5 * rows + scale_bytes + (blocks + wide) * rows or wide > blocks:
        raise ValueError(f"spectrum bytes are damaged: {len(raw)} bytes of rows for {rows} rows of {blocks} blocks")
    support = np.frombuffer(raw, np.uint8, 4 * rows).reshape(4, rows).T.copy().view("<u4")[:, 0].astype(np.int64)
    error = np.frombuffer(raw, np.uint8, rows, 4 * rows)
    log_scale = np.frombuffer(raw, "<f4", rows, 5 * rows).astype(np.float32) if flags & _HAS_LOG_SCALE else None
    begin = 5 * rows + scale_bytes
    differences = np.frombuffer(raw, np.uint8, blocks * rows, begin).reshape(blocks, rows).astype(np.uint16)
    high = np.frombuffer(raw, np.uint8, wide * rows, begin + blocks * rows).reshape(wide, rows)
    differences[:wide] |= high.astype(np.uint16) << 8
    kind = _Kind(num_exact, LevelGrid(*octaves), rank_ratio, BlockMasses(step, even_mass), temperature)
    return _Rows(kind, support, _codes(differences, num_exact), error, log_scale)


def _differences(codes: Array, num_exact: int) -> Array:
    """Turn codes into the differences that are written, [J, N] uint16.

    First differences of the head, second ones of the tail, which falls evenly.
    """
    first = np.diff(codes, axis=0, prepend=np.uint16(0))
    second = first.copy()
    second[num_exact + 2 :] -= first[num_exact + 1 : -1]
    return second << 1 ^ -(second >> 15)


def _codes(differences: Array, num_exact: int) -> Array:
    """Turn written differences back into codes, [J, N] uint16: the inverse of ``_differences``, modulo 2**16."""
    steps = differences >> 1 ^ -(differences & 1)
    tail = steps[num_exact + 1 :]
    np.cumsum(tail, axis=0, dtype=np.uint16, out=tail)
    return np.cumsum(steps, axis=0, dtype=np.uint16)


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


def _rebuild(kind: _Kind, support: Array, codes: Array) -> SpectrumParts:
    """Build the spectra that ``codes [J, N]`` stand for."""
    rows, num_exact, grid = len(support), kind.num_exact, kind.grid
    ends = first_blocks(num_exact, kind.rank_ratio, len(codes))
    sizes = block_sizes(ends, support)
    units = kind.masses.table()[codes] * (sizes > 0)  # [J, N] int64
    # What was encoded summed to 1 but for dropped and rounded mass.
    masses = units / np.maximum(units.sum(axis=0), 1)
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


@cache
def _errors() -> Array:
    """Tabulate the error bound that each error byte stands for, [256] float32."""
    return (_LEAST_ERROR * np.exp2(np.arange(256) / 8)).astype(np.float32)


def _error_bytes(true: SpectrumParts, decoded: SpectrumParts) -> Array:
    """Bound the W1 distance between true and decoded rows, rounded up to a byte: ``[N]`` uint8."""
    areas = compare(_on_grid(true.tail, true.grid, decoded.grid), decoded.tail, decoded.grid)
    assert areas.bound is not None
    error = (true.head - decoded.head).abs().sum(-1) + areas.distance + areas.bound
    if true.error is not None:
        error = error + true.error
    octaves = np.log2(np.maximum(error.double().numpy() / _LEAST_ERROR, 1.0))
    return np.minimum(np.ceil(8 * octaves), 255).astype(np.uint8)
