"""Spectra as bytes: about a hundred per distribution, versioned and checked.

A sorted spectrum is smooth, so it is cut into ranks: the first ``num_exact`` one by one, the rest in blocks whose
ends grow by ``rank_ratio``. Per block the mass is coded, as a step down from what the block would hold if the
spectrum stayed flat (probabilities fall, so steps are never negative). Steps are even in mass where a block holds
much and even in log-mass where it holds little: an error of the L1 distance is a sum over blocks of mass errors,
so the coarsest steps belong where there is least to lose.

Layout, little-endian::

    magic "ULDS", version u8, flags u8 (1: log-scales follow), crc32 u32 of all that follows
    rows u32, num_exact u16, mantissa_bits u8, floor_octave u8, top_octave u8, num_blocks u16,
    rank_ratio f64, step f64, even_mass f64, temperature f64
    zlib of: support u32[rows], error u8[rows], log_scale f32[rows] if flagged,
             steps as u16[num_blocks, rows], low bytes first, then high bytes
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from uld_ds.areas import compare
from uld_ds.level_counts import LevelGrid

if TYPE_CHECKING:
    from uld_ds.spectrum import Spectrum

Array = npt.NDArray[Any]

CODEC_VERSION = 1
_MAGIC = b"ULDS"
_PREFIX = struct.Struct("<4sBBI")
_HEADER = struct.Struct("<IHBBBHdddd")
_HAS_LOG_SCALE = 1
_MAX_STEP = 0xFFFF
# Blocks are spread over the level grid as this many groups of equal probabilities.
_GROUPS = 16
# The error byte counts eighths of an octave above this.
_LEAST_ERROR = 2.0**-24


@dataclass(frozen=True)
class Precision:
    """What bytes are spent on; every field buys accuracy with size."""

    num_exact: int = 32
    """Ranks coded one by one."""
    rank_ratio: float = 1.15
    """End of a block over its beginning, for the ranks after them."""
    step: float = 1 / 32
    """Resolution in nats of the mass of a block that holds little."""
    even_mass: float = 1 / 1024
    """Blocks with more than this mass are resolved to ``step * even_mass`` of probability."""
    dropped_mass: float = 1e-5
    """So much of the far end of the tail may be left out."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_exact <= 4096:
            raise ValueError(f"num_exact must lie in 1..4096, got {self.num_exact}")
        if not 1.001 <= self.rank_ratio <= 4.0:
            raise ValueError(f"rank_ratio must lie in 1.001..4, got {self.rank_ratio}")
        for name, least, most in (("step", 1e-3, 1.0), ("even_mass", 1e-4, 1.0), ("dropped_mass", 0.0, 0.1)):
            value = getattr(self, name)
            if not least <= value <= most:
                raise ValueError(f"{name} must lie in {least}..{most}, got {value}")
        # The largest step: from a probability of 1 (or a block as flat as blocks get) down to next to nothing.
        if max(1.0, self.rank_ratio - 1) / (self.step * self.even_mass) + 32 / self.step > _MAX_STEP:
            raise ValueError(f"step {self.step} times even_mass {self.even_mass} is too fine for 16 bits")


def _block_ends(num_exact: int, rank_ratio: float) -> Iterator[int]:
    """Ranks at which blocks end: every one up to ``num_exact``, then geometrically."""
    yield from range(1, num_exact + 1)
    end = num_exact
    while True:
        end = max(end + 1, round(end * rank_ratio))
        yield end


def _blocks_covering(num_exact: int, rank_ratio: float, num_ranks: int) -> Array:
    """Block ends, the last of them not below ``num_ranks``."""
    ends: list[int] = []
    for end in _block_ends(num_exact, rank_ratio):
        ends.append(end)
        if end >= max(num_ranks, num_exact):
            break
    return np.array(ends)


@dataclass(frozen=True)
class _Steps:
    """The companding of block masses: linear above ``even_mass``, logarithmic below, smooth between."""

    step: float
    even_mass: float

    def code(self, mass: Array) -> Array:
        x = mass / self.even_mass
        small = 1 + np.log(np.maximum(x, 1e-300))
        return np.where(x >= 1, x, small) / self.step

    def mass(self, code: Array) -> Array:
        x = code * self.step
        return self.even_mass * np.where(x >= 1, x, np.exp(np.minimum(x, 1) - 1))

    def encode(self, masses: Array, sizes: Array) -> Array:
        """Steps ``[J, N]`` of block masses ``[J, N]``; each is taken from what the decoder will have."""
        steps = np.zeros(masses.shape, dtype=np.uint16)
        level = np.ones(masses.shape[1])
        for j, (mass, size) in enumerate(zip(masses, sizes, strict=True)):
            used = size > 0
            flat = self.code(np.where(used, size, 1) * level)
            down = np.clip(np.rint(flat - self.code(mass)), 0, _MAX_STEP)
            steps[j] = np.where(used, down, 0)
            level = np.where(used, self.mass(flat - down) / np.maximum(size, 1), level)
        return steps

    def decode(self, steps: Array, sizes: Array) -> Array:
        """The masses ``[J, N]`` that ``encode`` meant."""
        masses = np.zeros(steps.shape)
        level = np.ones(steps.shape[1])
        for j, (down, size) in enumerate(zip(steps, sizes, strict=True)):
            used = size > 0
            mass = self.mass(self.code(np.where(used, size, 1) * level) - down)
            masses[j] = np.where(used, mass, 0)
            level = np.where(used, mass / np.maximum(size, 1), level)
        return masses


class _Fields(NamedTuple):
    """The header, in the order of its bytes."""

    rows: int
    num_exact: int
    mantissa_bits: int
    floor_octave: int
    top_octave: int
    num_blocks: int
    rank_ratio: float
    step: float
    even_mass: float
    temperature: float


def encode(spectrum: Spectrum, precision: Precision) -> bytes:
    """Bytes of ``spectrum``; ``decode`` restores it up to ``Spectrum.error``, which the bytes carry.

    Raises:
        ValueError: ``precision.num_exact`` exceeds the ranks that the spectrum itself holds exactly.
    """
    if precision.num_exact > spectrum.num_head:
        raise ValueError(f"num_exact {precision.num_exact} exceeds the spectrum's num_head {spectrum.num_head}")
    spectrum = spectrum.to("cpu").with_head(precision.num_exact)
    ends = _blocks_covering(precision.num_exact, precision.rank_ratio, spectrum.num_probabilities())
    cumulative = spectrum.cumulative_mass(torch.from_numpy(ends)).numpy().T
    support = _support(cumulative, ends, spectrum, precision.dropped_mass)
    sizes = _sizes(ends, support)
    masses = np.diff(cumulative, axis=0, prepend=0.0)
    steps = _Steps(precision.step, precision.even_mass).encode(masses, sizes)
    used = int(np.count_nonzero(sizes.any(axis=1)))
    grid = spectrum.grid
    fields = _Fields(
        rows=len(spectrum),
        num_exact=precision.num_exact,
        mantissa_bits=grid.mantissa_bits,
        floor_octave=grid.floor_octave,
        top_octave=grid.top_octave,
        num_blocks=used,
        rank_ratio=precision.rank_ratio,
        step=precision.step,
        even_mass=precision.even_mass,
        temperature=spectrum.temperature,
    )
    steps = steps[:used]
    error = _error_bytes(spectrum, _rebuild(fields, support, steps))
    parts = [support.astype("<u4").tobytes(), error.tobytes()]
    if spectrum.log_scale is not None:
        parts.append(spectrum.log_scale.numpy().astype("<f4").tobytes())
    parts += [(steps & 0xFF).astype(np.uint8).tobytes(), (steps >> 8).astype(np.uint8).tobytes()]
    body = _HEADER.pack(*fields) + zlib.compress(b"".join(parts), level=9)
    flags = 0 if spectrum.log_scale is None else _HAS_LOG_SCALE
    return _PREFIX.pack(_MAGIC, CODEC_VERSION, flags, zlib.crc32(body)) + body


def decode(data: bytes) -> Spectrum:
    """The spectra in ``data``.

    Raises:
        ValueError: not these bytes, another version of them, or bytes cut short or changed; says which.
    """
    if len(data) < _PREFIX.size or data[:4] != _MAGIC:
        raise ValueError(f"not spectrum bytes: {len(data)} bytes beginning with {bytes(data[:4])!r}")
    _, version, flags, checksum = _PREFIX.unpack_from(data)
    if version != CODEC_VERSION:
        raise ValueError(f"spectrum codec version {version}, but this release reads version {CODEC_VERSION}")
    body = data[_PREFIX.size :]
    if zlib.crc32(body) != checksum or len(body) < _HEADER.size or flags & ~_HAS_LOG_SCALE:
        raise ValueError(f"spectrum bytes are damaged or cut short ({len(data)} bytes, checksum differs)")
    fields = _Fields(*_HEADER.unpack_from(body))
    raw = zlib.decompress(body[_HEADER.size :])
    rows, blocks = fields.rows, fields.num_blocks
    scale_bytes = 4 * rows if flags & _HAS_LOG_SCALE else 0
    if len(raw) != 5 * rows + scale_bytes + 2 * rows * blocks:
        raise ValueError(f"spectrum bytes are damaged: {len(raw)} bytes of rows for {rows} rows of {blocks} blocks")
    support = np.frombuffer(raw, dtype="<u4", count=rows).astype(np.int64)
    error = np.frombuffer(raw, dtype=np.uint8, count=rows, offset=4 * rows)
    spectrum = _rebuild(fields, support, _read_steps(raw[5 * rows + scale_bytes :], blocks, rows))
    spectrum.error = torch.from_numpy(_LEAST_ERROR * np.exp2(error / 8.0) * (support > 0)).float()
    if flags & _HAS_LOG_SCALE:
        spectrum.log_scale = torch.from_numpy(
            np.frombuffer(raw, dtype="<f4", count=rows, offset=5 * rows).astype(np.float32)
        )
    return spectrum


def _read_steps(raw: bytes, blocks: int, rows: int) -> Array:
    low, high = np.frombuffer(raw, dtype=np.uint8).reshape(2, blocks, rows).astype(np.uint16)
    return low | high << 8


def _support(cumulative: Array, ends: Array, spectrum: Spectrum, dropped_mass: float) -> Array:
    """Ranks kept per row ``[N]``: up to the first block end that leaves at most ``dropped_mass`` behind."""
    left = spectrum.unscaled_mass().double().numpy() - cumulative
    enough = left <= dropped_mass
    enough[-1] = True
    members = torch.count_nonzero(spectrum.head, dim=-1).double() + spectrum.counts.double().sum(-1).ceil()
    return np.minimum(ends[enough.argmax(axis=0)], members.long().numpy())


def _sizes(ends: Array, support: Array) -> Array:
    """Ranks in every block ``[J, N]``, given where rows end."""
    bounded = np.minimum(ends[:, None], support[None, :])
    return np.diff(bounded, axis=0, prepend=0)


def _rebuild(fields: _Fields, support: Array, steps: Array) -> Spectrum:
    """The spectra that ``steps [J, N]`` stand for."""
    from uld_ds.spectrum import Spectrum

    rows, num_exact = fields.rows, fields.num_exact
    grid = LevelGrid(fields.mantissa_bits, fields.floor_octave, fields.top_octave)
    ends = np.array(list(islice(_block_ends(num_exact, fields.rank_ratio), fields.num_blocks)), dtype=np.int64)
    sizes = _sizes(ends, support)
    masses = _Steps(fields.step, fields.even_mass).decode(steps, sizes)
    # What was encoded summed to 1 but for dropped and rounded mass.
    masses /= np.maximum(masses.sum(axis=0), 1e-300)
    head = np.zeros((rows, num_exact))
    known = masses[:num_exact].T
    head[:, : known.shape[1]] = known
    counts, tail = _spread(masses, sizes, np.minimum(ends[:, None], support), num_exact, grid)
    return Spectrum(
        torch.from_numpy(head).float(),
        torch.from_numpy(counts).float(),
        torch.from_numpy(tail).float(),
        grid=grid,
        temperature=fields.temperature,
    )


def _spread(masses: Array, sizes: Array, ends: Array, num_exact: int, grid: LevelGrid) -> tuple[Array, Array]:
    """Counts and masses ``[N, B]`` on ``grid`` of the blocks after the head, levels falling evenly in log-rank."""
    blocks, rows = masses.shape
    shape = (rows, grid.num_bins)
    if blocks <= num_exact or rows == 0:
        return np.zeros(shape), np.zeros(shape)
    level = np.log(np.maximum(masses / np.maximum(sizes, 1), 1e-300))
    used = sizes[num_exact:] > 0
    here = level[num_exact:]
    before = level[num_exact - 1 : -1]
    after = np.concatenate([here[1:], here[-1:]])
    goes_on = np.concatenate([used[1:], np.zeros_like(used[:1])])
    top = 0.5 * (before + here)
    bottom = np.where(goes_on, 0.5 * (here + after), 2 * here - top)
    last, first = ends[num_exact:], ends[num_exact - 1 : -1]
    # Groups of ranks between edges that are even in log-rank; their levels, then scaled to the block's mass.
    where = (np.arange(_GROUPS + 1) / _GROUPS)[:, None, None]
    growth = np.log(np.where(used, last, 1) / np.where(used, first, 1))
    edges = np.exp(where * growth) * first
    group_sizes = np.diff(edges, axis=0) * used
    middle = (where[:-1] + where[1:]) / 2
    levels = np.exp(top + middle * (bottom - top))
    total = (group_sizes * levels).sum(axis=0)
    levels *= np.where(used, masses[num_exact:] / np.maximum(total, 1e-300), 0)
    bins = (levels.astype(np.float32).view(np.int32) >> grid.shift) - grid.offset
    flat = np.clip(bins, 0, grid.num_bins - 1) + grid.num_bins * np.arange(rows)
    counts = np.bincount(flat.ravel(), group_sizes.ravel(), rows * grid.num_bins).reshape(shape)
    tail = np.bincount(flat.ravel(), (group_sizes * levels).ravel(), rows * grid.num_bins).reshape(shape)
    counts[:, 0] = 0
    return counts, tail


def _error_bytes(true: Spectrum, decoded: Spectrum) -> Array:
    """A bound on the W1 distance between the two, rounded up to a byte: ``[N]``."""
    areas = compare(true.tail, decoded.tail, true.grid)
    assert areas.bound is not None
    error = (true.head - decoded.head).abs().sum(-1) + areas.distance + areas.bound
    if true.error is not None:
        error = error + true.error
    octaves = np.log2(np.maximum(error.double().numpy() / _LEAST_ERROR, 1.0))
    return np.minimum(np.ceil(8 * octaves), 255).astype(np.uint8)
