"""The bytes of the codec of spectra: rows of codes packed behind a header, versioned and checksummed.

Layout, little-endian::

    magic "ULDS", version u8, flags u8, crc32 u32 of all that follows
    rows u32, num_exact u16, mantissa_bits u8, floor_octave u8, top_octave u8, num_blocks u16, num_wide u16,
    rank_ratio f64, step f64, even_mass f64, temperature f64
    then, through zlib if flagged:
    support u32[rows], lowest bytes first, error u8[rows], log_scale f32[rows] if flagged,
    unknown u16[rows], low bytes first (version 3), left_out u16[rows], low bytes first, if flagged,
    differences: low bytes u8[num_blocks, rows], high bytes u8[num_wide, rows] (0 for the blocks after those)

Flags: 1: log-scales follow, 2: deflated, 4: masses left out follow. Version 2 has no ``unknown``; version 3, that of
truncated spectra, counts unknown mass in units of 2**-16, rounded up, and in the same units how much of each row is not
among the stored probabilities (without the flag nothing: they sum to 1, the unknown part being an estimate).

A difference d is written as ``2 d`` if not negative, else as ``-2 d - 1``, all modulo 2**16.
"""

from __future__ import annotations

import struct
import zlib
from functools import cache
from typing import NamedTuple

import numpy as np

from uld_ds.spectrum.histogram import LevelGrid
from uld_ds.spectrum.rank_blocks import Array, BlockMasses, block_sizes, first_blocks

CODEC_VERSION = 2
TRUNCATED_VERSION = 3
"""The version of spectra with an unknown mass; all others are written as ``CODEC_VERSION``."""
REBUILT_VERSION = 4
"""The version of truncated spectra that are rebuilt from top-k tokens (``uld_ds.teachers.rebuilt_spectra``)."""
READ_VERSIONS = (CODEC_VERSION, TRUNCATED_VERSION)
MAGIC = b"ULDS"
PREFIX = struct.Struct("<4sBBI")
"""What all versions begin with: magic, version, flags, crc32 of all that follows."""
_HEADER = struct.Struct("<IHBBBHHdddd")
_HAS_LOG_SCALE, DEFLATED, _HAS_LEFT_OUT = 1, 2, 4
MASS_UNIT = 2.0**-16
"""What unknown masses and masses left out are counted in."""
# The error byte counts eighths of an octave above this.
_LEAST_ERROR = 2.0**-24


class Kind(NamedTuple):
    """The header's parameters that spectra must share to be decoded together."""

    num_exact: int
    grid: LevelGrid
    rank_ratio: float
    masses: BlockMasses
    temperature: float


class Rows(NamedTuple):
    """Quantized rows of one kind, between spectrum and bytes."""

    kind: Kind
    support: Array
    """[N] int64: ranks kept of each row."""
    codes: Array
    """[J, N] uint16: codes of block masses; meaningless beyond a row's support."""
    error: Array
    """[N] uint8: error bytes, which ``errors_of_bytes`` turns into bounds on the W1 distance."""
    log_scale: Array | None
    """[N] float32: log-scales in nats; None for all zeros."""
    unknown: Array | None = None
    """[N] uint16: unknown masses in units of ``MASS_UNIT``; None for all zeros."""
    left_out: Array | None = None
    """[N] uint16: what stored probabilities lack to a sum of 1, in units of ``MASS_UNIT``; None for all zeros."""


def part_of(rows: Rows, where: slice) -> Rows:
    """Select the rows of a slice; vectors that are all zeros there are left out, as nobody wrote them."""

    def vector(whole: Array | None) -> Array | None:
        return None if whole is None or not whole[where].any() else whole[where]

    log_scale = None if rows.log_scale is None else rows.log_scale[where]
    unknown, left_out = vector(rows.unknown), vector(rows.left_out)
    return Rows(rows.kind, rows.support[where], rows.codes[:, where], rows.error[where], log_scale, unknown, left_out)


def pack(rows: Rows, deflate: bool) -> bytes:
    """Write rows as the bytes that ``unpack`` reads."""
    kind = rows.kind
    used = block_sizes(first_blocks(kind.num_exact, kind.rank_ratio, len(rows.codes)), rows.support) > 0
    num_blocks = int(np.count_nonzero(used.any(axis=1)))
    differences = (_differences(rows.codes, kind.num_exact) * used)[:num_blocks]
    low, high = (differences & 0xFF).astype(np.uint8), (differences >> 8).astype(np.uint8)
    num_wide = int(np.flatnonzero(high.any(axis=1)).max(initial=-1)) + 1
    parts = [to_planes(rows.support.astype("<u4")), rows.error.tobytes()]
    if rows.log_scale is not None:
        parts.append(rows.log_scale.astype("<f4").tobytes())
    parts += [to_planes(masses.astype("<u2")) for masses in (rows.unknown, rows.left_out) if masses is not None]
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
    flags = (0 if rows.log_scale is None else _HAS_LOG_SCALE) | (DEFLATED if deflate else 0)
    flags |= 0 if rows.left_out is None else _HAS_LEFT_OUT
    version = CODEC_VERSION if rows.unknown is None else TRUNCATED_VERSION
    return PREFIX.pack(MAGIC, version, flags, zlib.crc32(rest)) + rest


def unpack(data: bytes) -> Rows:
    """Read the rows that ``pack`` wrote.

    Raises:
        ValueError: not these bytes, another version of them, or bytes cut short or changed; says which.
    """
    if len(data) < PREFIX.size or data[:4] != MAGIC:
        raise ValueError(f"not spectrum bytes: {len(data)} bytes beginning with {bytes(data[:4])!r}")
    _, version, flags, checksum = PREFIX.unpack_from(data)
    if version == REBUILT_VERSION:
        raise ValueError(f"spectrum codec version {version} needs the top-k tokens that it is rebuilt from")
    if version not in READ_VERSIONS:
        known = " and ".join(map(str, READ_VERSIONS))
        raise ValueError(f"spectrum codec version {version}, but this release reads versions {known}")
    known_flags = _HAS_LOG_SCALE | DEFLATED | (_HAS_LEFT_OUT if version == TRUNCATED_VERSION else 0)
    rest = data[PREFIX.size :]
    if zlib.crc32(rest) != checksum or len(rest) < _HEADER.size or flags & ~known_flags:
        raise ValueError(f"spectrum bytes are damaged or cut short ({len(data)} bytes, checksum differs)")
    rows, num_exact, *octaves, blocks, wide, rank_ratio, step, even_mass, temperature = _HEADER.unpack_from(rest)
    raw = zlib.decompress(rest[_HEADER.size :]) if flags & DEFLATED else rest[_HEADER.size :]
    has_scale, has_unknown, has_left_out = flags & _HAS_LOG_SCALE, version == TRUNCATED_VERSION, flags & _HAS_LEFT_OUT
    row_bytes = 5 + (4 if has_scale else 0) + (2 if has_unknown else 0) + (2 if has_left_out else 0) + blocks + wide
    if len(raw) != row_bytes * rows or wide > blocks:
        raise ValueError(f"spectrum bytes are damaged: {len(raw)} bytes of rows for {rows} rows of {blocks} blocks")
    reader = _Reader(raw, rows)
    support, error = reader.planes(4).astype(np.int64), reader.planes(1)
    log_scale = reader.floats() if has_scale else None
    unknown = reader.planes(2) if has_unknown else None
    left_out = reader.planes(2) if has_left_out else None
    differences, high = reader.matrix(blocks).astype(np.uint16), reader.matrix(wide)
    differences[:wide] |= high.astype(np.uint16) << 8
    kind = Kind(num_exact, LevelGrid(*octaves), rank_ratio, BlockMasses(step, even_mass), temperature)
    return Rows(kind, support, _codes(differences, num_exact), error, log_scale, unknown, left_out)


class _Reader:
    """A reader of one vector after the other out of the bytes of ``rows`` rows."""

    def __init__(self, raw: bytes, rows: int) -> None:
        self._raw, self._rows, self._begin = raw, rows, 0

    def planes(self, width: int) -> Array:
        """Read [rows] integers of ``width`` bytes each, the lowest bytes of all first."""
        planes = self.matrix(width)
        return np.ascontiguousarray(planes.T).view(f"<u{width}")[:, 0]

    def floats(self) -> Array:
        """Read [rows] float32."""
        return self.matrix(4).reshape(-1).view("<f4").astype(np.float32)

    def matrix(self, lines: int) -> Array:
        """Read [lines, rows] bytes."""
        found = np.frombuffer(self._raw, np.uint8, lines * self._rows, self._begin).reshape(lines, self._rows)
        self._begin += lines * self._rows
        return found


def to_planes(values: Array) -> bytes:
    """Write [rows] integers as bytes, the lowest ones of all first."""
    return values.view(np.uint8).reshape(-1, values.itemsize).T.tobytes()


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


@cache
def errors_of_bytes() -> Array:
    """Tabulate the error bound that each error byte stands for, [256] float32."""
    return (_LEAST_ERROR * np.exp2(np.arange(256) / 8)).astype(np.float32)


def error_to_bytes(error: Array) -> Array:
    """Round error bounds [N] up to bytes: [N] uint8."""
    octaves = np.log2(np.maximum(error / _LEAST_ERROR, 1.0))
    return np.minimum(np.ceil(8 * octaves), 255).astype(np.uint8)
