"""Truncated spectra as next to nothing, where the top-k tokens they were made of are stored beside them.

The head of such a spectrum are the probabilities of the top-k tokens, the unknown mass is what these lack to 1, and
its tail is one number, the fitted exponent (``uld_ds.spectrum.tail_shapes``). What is stored is that number and the
error. The spectrum is that of the top-k tokens as they are stored, rounding included.

Layout, little-endian: the prefix of the codec of spectra (magic "ULDS", version u8 (4), flags u8 (2: deflated), crc32
u32 of all that follows), then::

    rows u32, vocabulary u32, num_head u16, mantissa_bits u8, floor_octave u8, top_octave u8, shape of the tail u8
    then, through zlib if flagged: exponents u16[rows], the low bytes of all first, errors u8[rows]
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from uld_ds.spectrum import tail_shapes
from uld_ds.spectrum.codec_bytes import (
    DEFLATED,
    MAGIC,
    PREFIX,
    REBUILT_VERSION,
    error_to_bytes,
    errors_of_bytes,
    to_planes,
)
from uld_ds.spectrum.histogram import LevelGrid
from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.rank_blocks import Array
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.spectrum.truncated import DEFAULT_TAIL, KnownMass, add_tail, excess, known_of, parts_of_known

_HEADER = struct.Struct("<IIHBBBB")
# Probabilities are whole multiples of this: their sums are exact in any order, and no last bit of exp() matters.
_UNIT = 2.0**-40
# What rounding to codes may add up to over a whole vocabulary.
_TOLERANCE = 0.1


def is_rebuilt(data: bytes) -> bool:
    """Tell whether ``data`` are spectra that ``decode`` rebuilds from top-k tokens."""
    return data[:4] == MAGIC and len(data) > PREFIX.size and data[4] == REBUILT_VERSION


def encode(
    spectrum: Spectrum,
    top: TopTokens,
    stored: TopTokens,
    *,
    vocab_size: int,
    precision: Precision,
    deflate: bool = True,
) -> bytes:
    """Encode truncated spectra that know nothing but their top-k tokens.

    Args:
        spectrum: N rows; of these, only the error counts.
        top: N rows of all that is known of the distributions.
        stored: The same tokens as they will be read beside these bytes.
        vocab_size: Tokens of the vocabulary.
        precision: Of which ``num_exact`` and ``mantissa_bits`` say what is rebuilt.
        deflate: Compress; without it whoever stores the bytes should.

    Raises:
        ValueError: the spectra have no unknown mass, or are at another temperature than the top-k tokens.
    """
    if spectrum.unknown_mass is None or spectrum.temperature != 1.0:
        raise ValueError("only truncated spectra at temperature 1 can be rebuilt from their top-k tokens")
    ours, truth = _known(stored, vocab_size), _known(top, vocab_size)
    unknown, least = ours.unknown_mass.numpy(), ours.least.numpy()
    true_unknown, true_least = truth.unknown_mass.numpy(), truth.least.numpy()
    codes = np.zeros(len(spectrum), np.uint16)
    # Rounding moved what is known; what is not known is bounded by the truth's own mass and least probability, or
    # where that is more, by those stored, which would be the truth if this were stored again.
    error = (ours.probabilities - truth.probabilities).abs().sum(1).numpy() + truth.moved.numpy() + true_unknown
    again = ours.moved.numpy() + unknown
    for num_known, rows in _alike(ours):
        tail = tail_shapes.estimate(DEFAULT_TAIL, unknown[rows], least[rows], num_known, vocab_size)
        codes[rows] = tail.codes
        error[rows] += excess(tail, true_unknown[rows], true_least[rows])
        again[rows] += excess(tail, unknown[rows], least[rows])
    error = np.maximum(error, again)
    if spectrum.error is not None:
        # What was read from a store has lost more than its top-k tokens know; its byte is to stay the same.
        error = np.maximum(error, spectrum.error.double().cpu().numpy() * (1 - 1e-6))
    grid = LevelGrid.below_head(precision.num_exact, mantissa_bits=precision.mantissa_bits)
    shape = tail_shapes.SHAPES.index(DEFAULT_TAIL)
    octaves = (grid.mantissa_bits, grid.floor_octave, grid.top_octave)
    header = _HEADER.pack(len(spectrum), vocab_size, precision.num_exact, *octaves, shape)
    body = to_planes(codes.astype("<u2")) + error_to_bytes(error).tobytes()
    rest = header + (zlib.compress(body, level=9) if deflate else body)
    return PREFIX.pack(MAGIC, REBUILT_VERSION, DEFLATED if deflate else 0, zlib.crc32(rest)) + rest


class _Header(NamedTuple):
    """What spectra must share to be rebuilt together, but for the first."""

    rows: int
    vocab_size: int
    num_head: int
    mantissa_bits: int
    floor_octave: int
    top_octave: int
    shape: int


def decode(data: bytes, stored: TopTokens) -> Spectrum:
    """Rebuild the spectra of ``stored`` top-k tokens, on the CPU: the same bits on any machine.

    Raises:
        ValueError: the bytes are damaged or cut short, or are of other top-k tokens.
    """
    return decode_many([data], [stored])[0]


def decode_many(blobs: Sequence[bytes], stored: Sequence[TopTokens]) -> list[Spectrum]:
    """Rebuild the spectra of several examples, to the same bits as each alone and much faster; as ``decode``."""
    unpacked = [_unpack(data, len(top)) for data, top in zip(blobs, stored, strict=True)]
    alike: dict[tuple[int, ...], list[int]] = {}
    for place, ((header, _, _), top) in enumerate(zip(unpacked, stored, strict=True)):
        alike.setdefault((*header[1:], top.k), []).append(place)
    found: dict[int, Spectrum] = {}
    for places in alike.values():
        header = unpacked[places[0]][0]
        codes, errors = (np.concatenate([unpacked[place][which] for place in places]) for which in (1, 2))
        together = _rebuild(header, codes, errors, TopTokens.cat([stored[place] for place in places]))
        begin = 0
        for place in places:
            end = begin + len(stored[place])
            found[place] = together[begin:end]
            begin = end
    return [found[place] for place in range(len(blobs))]


def _unpack(data: bytes, num_rows: int) -> tuple[_Header, Array, Array]:
    """Read the header, the exponents [rows] and the error bytes [rows]."""
    _, _, flags, checksum = PREFIX.unpack_from(data)
    rest = data[PREFIX.size :]
    if zlib.crc32(rest) != checksum or len(rest) < _HEADER.size:
        raise ValueError(f"spectrum bytes are damaged or cut short ({len(data)} bytes, checksum differs)")
    header = _Header(*_HEADER.unpack_from(rest))
    raw = zlib.decompress(rest[_HEADER.size :]) if flags & DEFLATED else rest[_HEADER.size :]
    rows = header.rows
    if rows != num_rows or len(raw) != 3 * rows or header.shape >= len(tail_shapes.SHAPES):
        raise ValueError(f"spectrum bytes are damaged: {rows} rows for {num_rows} rows of top-k tokens")
    codes = np.frombuffer(raw, np.uint8, 2 * rows).reshape(2, rows).T.copy().view("<u2")[:, 0]
    return header, codes, np.frombuffer(raw, np.uint8, rows, 2 * rows)


def _rebuild(header: _Header, codes: Array, errors: Array, stored: TopTokens) -> Spectrum:
    shape = tail_shapes.SHAPES[header.shape]
    known = _known(stored, header.vocab_size)
    grid = LevelGrid(header.mantissa_bits, header.floor_octave, header.top_octave)
    parts = parts_of_known(known, header.num_head, grid, torch.float32)
    unknown, least = known.unknown_mass.numpy(), known.least.numpy()
    for num_known, where in _alike(known):
        blocks = tail_shapes.blocks_beyond(num_known, header.vocab_size)
        levels = tail_shapes.levels_of(shape, codes[where], unknown[where], least[where], blocks)
        add_tail(parts, where, levels, blocks, num_known)
    parts.error = torch.from_numpy(errors_of_bytes()[errors] * (known.num_known.numpy() > 0))
    return Spectrum.from_parts(parts)


def _known(top: TopTokens, vocab_size: int) -> KnownMass:
    p = (top.log_probs.detach().cpu().double().exp() / _UNIT).round() * _UNIT
    return known_of(p, vocab_size=vocab_size, tolerance=_TOLERANCE, name="top-k tokens")


def _alike(known: KnownMass) -> list[tuple[int, Array]]:
    """Group the rows that are not padding by how many probabilities they know."""
    counts = known.num_known.numpy()
    return [(number, np.flatnonzero(counts == number)) for number in sorted({*counts.tolist()} - {0})]
