"""A codec of ``TopTokens`` as bytes: ids as they are, log-probabilities as float16.

Layout, little-endian::

    magic "ULDI", version u8, bytes of an id u8 (2 or 4), k u16 tokens per row, T u32 rows, crc32 u32 of what follows
    ids, then float16 log-probabilities: [k, T] each, first the low bytes of all, then the next

Like bytes lie beside each other, for whatever compresses them. Float16 keeps a probability to 0.1 % where it is
likelier than 1 in 50, to 0.4 % down to e-16.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
import torch

from uld_ds.spectrum.top_tokens import TopTokens

_VERSION = 1
_MAGIC = b"ULDI"
_HEAD = struct.Struct("<4sBBHII")
MAX_K = 0xFFFF


def encode(top: TopTokens) -> bytes:
    """Encode the top-k tokens of T rows as bytes.

    Raises:
        ValueError: more than ``MAX_K`` tokens per row.
    """
    if top.k > MAX_K:
        raise ValueError(f"at most {MAX_K} tokens per row are kept, got {top.k}")
    ids = top.ids.to("cpu").numpy()
    narrow = ids.size == 0 or int(ids.max()) <= 0xFFFF
    log_probs = top.log_probs.detach().to("cpu", torch.float32).numpy()
    with np.errstate(over="ignore"):
        body = _planes(ids.astype("<u2" if narrow else "<u4")) + _planes(log_probs.astype("<f2"))
    return _HEAD.pack(_MAGIC, _VERSION, 2 if narrow else 4, top.k, len(top), zlib.crc32(body)) + body


def decode(data: bytes) -> TopTokens:
    """Decode the top-k tokens that ``encode`` wrote, on the CPU.

    Raises:
        ValueError: the bytes are damaged, cut short or of another version (says which).
    """
    if len(data) < _HEAD.size or data[:4] != _MAGIC:
        raise ValueError("top-k tokens are damaged or cut short")
    _, version, width, k, rows, crc = _HEAD.unpack_from(data)
    if version != _VERSION:
        raise ValueError(f"top-k tokens of version {version}, but this release reads {_VERSION}")
    body = data[_HEAD.size :]
    if width not in (2, 4) or len(body) != (width + 2) * k * rows or zlib.crc32(body) != crc:
        raise ValueError("top-k tokens are damaged or cut short")
    ids = _from_planes(body[: width * k * rows], f"<u{width}", k, rows)
    log_probs = _from_planes(body[width * k * rows :], "<f2", k, rows)
    return TopTokens(torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(log_probs.astype(np.float32)))


def size_at(data: bytes, begin: int, rows: int) -> int:
    """Return the bytes that ``encode`` wrote at ``begin`` for ``rows`` rows; 0 where something else begins."""
    if data[begin : begin + 4] != _MAGIC or len(data) < begin + _HEAD.size:
        return 0
    _, _, width, k, _, _ = _HEAD.unpack_from(data, begin)
    return _HEAD.size + (width + 2) * k * rows


def _planes(rows: np.ndarray) -> bytes:
    width = rows.dtype.itemsize
    return np.ascontiguousarray(rows.T).view(np.uint8).reshape(-1, width).T.tobytes()


def _from_planes(data: bytes, dtype: str, k: int, rows: int) -> np.ndarray:
    width = np.dtype(dtype).itemsize
    bytes_of = np.frombuffer(data, np.uint8).reshape(width, -1).T
    return np.ascontiguousarray(np.ascontiguousarray(bytes_of).view(dtype).reshape(k, rows).T)
