"""A codec of ``TopTokens`` as bytes: ids sorted and as differences, log-probabilities as codes of probabilities.

Version 2, which is written unless asked otherwise. Little-endian::

    magic "ULDI", version u8 (2), bytes of a difference u8 (1 to 4), k u16 tokens per row, T u32 rows,
    crc32 u32 of all that follows
    length u32 of what follows the header, flags u8 (1: deflated), bytes of a code u8 (1 or 2), step f64, even_mass f64
    then, through zlib if flagged:
    least u16[T]: the smallest code of every row
    differences [k, T]: of the ids of a row in ascending order, the first as it is, each next one less the one before
    codes [k, T]: of the same tokens, less the row's smallest
    (of each of the three first the low bytes of all, then the next)

A code stands for a probability, in steps that are even above ``even_mass`` and even in its logarithm, ``step`` nats
each, below (``uld_ds.spectrum.rank_blocks.BlockMasses``); code 0 is an impossible token. The order by probability comes
back from the codes: of equal ones the lower id comes first, which is the order that ``TopTokens`` promises.

Version 1 is ids as they are, then float16 log-probabilities, the most likely of every row first::

    magic "ULDI", version u8 (1), bytes of an id u8 (2 or 4), k u16, T u32, crc32 u32 of all that follows
    ids, then float16 log-probabilities: [k, T] each, first the low bytes of all, then the next

What is decoded encodes to the same bytes again.
"""

from __future__ import annotations

import struct
import zlib
from functools import lru_cache

import numpy as np
import torch

from uld_ds.spectrum.rank_blocks import Array, BlockMasses
from uld_ds.spectrum.top_tokens import TopTokens

VERSION = 2
"""The version that new stores and caches are written in."""
FIRST_VERSION = 1
RESOLUTION = BlockMasses(step=1 / 64, even_mass=1 / 900)
"""The steps of codes: measured, see ``docs/spectrum-store.md``."""
_MAGIC = b"ULDI"
_HEAD = struct.Struct("<4sBBHII")
_MORE = struct.Struct("<IBBdd")
_DEFLATED = 1
MAX_K = 0xFFFF


def encode(
    top: TopTokens, *, version: int = VERSION, deflate: bool = True, resolution: BlockMasses = RESOLUTION
) -> bytes:
    """Encode the top-k tokens of T rows as bytes.

    Args:
        top: The tokens.
        version: 1 or 2.
        deflate: Compress; without it whoever stores the bytes should. Version 1 never is.
        resolution: The steps of version 2's codes.

    Raises:
        ValueError: more than ``MAX_K`` tokens per row, or two of a row the same.
    """
    if top.k > MAX_K:
        raise ValueError(f"at most {MAX_K} tokens per row are kept, got {top.k}")
    ids = top.ids.to("cpu").numpy()
    log_probs = top.log_probs.detach().to("cpu", torch.float32).numpy()
    if version == FIRST_VERSION:
        return _encode_first(ids, log_probs)
    codes = codes_of(log_probs, resolution)
    order = ids.argsort(axis=1, kind="stable")
    ids, codes = np.take_along_axis(ids, order, axis=1), np.take_along_axis(codes, order, axis=1)
    differences = np.diff(ids, axis=1, prepend=0)
    if (differences[:, 1:] <= 0).any() or (ids < 0).any():
        raise ValueError("top-k tokens of a row must be different ids, none of them negative")
    least = codes.min(axis=1, initial=0xFFFF)
    above = codes - least[:, None]
    widths = _bytes_for(differences), _bytes_for(above)
    parts = (least.astype("<u2"), _narrow(differences, widths[0]), _narrow(above, widths[1]))
    body = b"".join(_planes(part) for part in parts)
    if deflate:
        body = _deflated(body)
    more = _MORE.pack(len(body), _DEFLATED if deflate else 0, widths[1], resolution.step, resolution.even_mass)
    return _HEAD.pack(_MAGIC, VERSION, widths[0], top.k, len(top), zlib.crc32(more + body)) + more + body


def decode(data: bytes) -> TopTokens:
    """Decode the top-k tokens that ``encode`` wrote, on the CPU.

    Raises:
        ValueError: the bytes are damaged, cut short or of another version (says which).
    """
    if len(data) < _HEAD.size or data[:4] != _MAGIC:
        raise ValueError("top-k tokens are damaged or cut short")
    _, version, width, k, rows, crc = _HEAD.unpack_from(data)
    if version not in (FIRST_VERSION, VERSION):
        raise ValueError(f"top-k tokens of version {version}, but this release reads {FIRST_VERSION} and {VERSION}")
    rest = data[_HEAD.size :]
    if zlib.crc32(rest) != crc:
        raise ValueError("top-k tokens are damaged or cut short")
    return (_decode_first if version == FIRST_VERSION else _decode_second)(rest, width, k, rows)


def size_at(data: bytes, begin: int, rows: int) -> int:
    """Return the bytes that ``encode`` wrote at ``begin`` for ``rows`` rows; 0 where something else begins."""
    if data[begin : begin + 4] != _MAGIC or len(data) < begin + _HEAD.size:
        return 0
    _, version, width, k, _, _ = _HEAD.unpack_from(data, begin)
    if version == FIRST_VERSION:
        return _HEAD.size + (width + 2) * k * rows
    if len(data) < begin + _HEAD.size + _MORE.size:
        return 0
    return int(_HEAD.size + _MORE.size + _MORE.unpack_from(data, begin + _HEAD.size)[0])


def codes_of(log_probs: Array, resolution: BlockMasses = RESOLUTION) -> Array:
    """Round log-probabilities, nats of any shape, to their codes: uint16; 0 for -inf alone."""
    codes = resolution.code(np.exp(log_probs.astype(np.float64)))
    return np.where(np.isneginf(log_probs), 0, codes.clip(1)).astype(np.uint16)


@lru_cache(maxsize=8)
def _log_table(resolution: BlockMasses) -> Array:
    """Tabulate the log-probability of every code, [2**16] float32."""
    x = (np.arange(1 << 16) - resolution.offset) * resolution.step
    table = np.log(resolution.even_mass) + np.where(x >= 1, np.log(np.maximum(x, 1)), x - 1)
    table[0] = -np.inf
    # Codes beyond that of 1 do not occur.
    return np.minimum(table, 0).astype(np.float32)


def _decode_second(rest: bytes, width: int, k: int, rows: int) -> TopTokens:
    length, flags, code_width, step, even_mass = _MORE.unpack_from(rest)
    body = rest[_MORE.size :]
    if len(body) != length or not 1 <= width <= 4 or code_width not in (1, 2) or flags & ~_DEFLATED:
        raise ValueError("top-k tokens are damaged or cut short")
    raw = zlib.decompress(body) if flags & _DEFLATED else body
    if len(raw) != (2 + (width + code_width) * k) * rows:
        raise ValueError("top-k tokens are damaged or cut short")
    begin = 2 * rows + width * k * rows
    ids = _from_planes(raw[2 * rows : begin], width, k, rows).cumsum(axis=0, dtype=np.int64)  # [k, T]
    codes = _from_planes(raw[: 2 * rows], 2, 1, rows) + _from_planes(raw[begin:], code_width, k, rows)
    codes = codes.astype(np.uint16)
    order = np.argsort(~codes, axis=0, kind="stable")
    log_probs = _log_table(BlockMasses(step, even_mass))[np.take_along_axis(codes, order, axis=0)]
    ids = np.take_along_axis(ids, order, axis=0)
    return TopTokens(*(torch.from_numpy(np.ascontiguousarray(part.T)) for part in (ids, log_probs)))


def _encode_first(ids: Array, log_probs: Array) -> bytes:
    narrow = ids.size == 0 or int(ids.max()) <= 0xFFFF
    with np.errstate(over="ignore"):
        body = _planes(ids.astype("<u2" if narrow else "<u4")) + _planes(log_probs.astype("<f2"))
    rows, k = ids.shape
    return _HEAD.pack(_MAGIC, FIRST_VERSION, 2 if narrow else 4, k, rows, zlib.crc32(body)) + body


def _decode_first(body: bytes, width: int, k: int, rows: int) -> TopTokens:
    if width not in (2, 4) or len(body) != (width + 2) * k * rows:
        raise ValueError("top-k tokens are damaged or cut short")
    ids = _from_planes(body[: width * k * rows], width, k, rows).astype(np.int64)
    halves = _from_planes(body[width * k * rows :], 2, k, rows).astype("<u2").view("<f2")
    log_probs = halves.astype(np.float32)
    return TopTokens(*(torch.from_numpy(np.ascontiguousarray(part.T)) for part in (ids, log_probs)))


def _deflated(body: bytes) -> bytes:
    # Differences of ids repeat nothing; only that some bytes are commoner than others is worth coding.
    packer = zlib.compressobj(level=6, strategy=zlib.Z_HUFFMAN_ONLY)
    return packer.compress(body) + packer.flush()


def _bytes_for(values: Array) -> int:
    return max(1, (int(values.max(initial=0)).bit_length() + 7) // 8)


def _narrow(values: Array, width: int) -> Array:
    """View [T, k] numbers as their lowest ``width`` bytes: [T, k, width] uint8."""
    return np.ascontiguousarray(values.astype("<u4")).view(np.uint8).reshape(*values.shape, 4)[..., :width]


def _planes(rows: Array) -> bytes:
    """Write [T, k] numbers, or [T, k, width] bytes of such, as [width, k, T] bytes."""
    split = rows if rows.dtype == np.uint8 else rows.view(np.uint8).reshape(*rows.shape, rows.itemsize)
    return split.transpose(*reversed(range(split.ndim))).tobytes()


def _from_planes(data: bytes, width: int, k: int, rows: int) -> Array:
    """Read ``[width, k, T]`` bytes as numbers: [k, T] int64."""
    planes = np.frombuffer(data, np.uint8).reshape(width, k, rows)
    found = planes[0].astype(np.int64)
    for place in range(1, width):
        found |= planes[place].astype(np.int64) << (8 * place)
    return found
