"""Top-k tokens as bytes: few of them, the same order, and what earlier releases wrote."""

from __future__ import annotations

import math
import struct
import zlib

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.helpers.spectra_zoo import zipf
from uld_ds.spectrum.rank_blocks import BlockMasses
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.teachers.top_tokens_codec import RESOLUTION, decode, encode, size_at


def same(ours: TopTokens, theirs: TopTokens) -> bool:
    return torch.equal(ours.ids, theirs.ids) and torch.equal(ours.log_probs, theirs.log_probs)


@st.composite
def tops(draw: st.DrawFn) -> TopTokens:
    """Rows with ties, impossible tokens, and next to nothing."""
    rows, k = draw(st.integers(0, 5)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Steps between ids that need one byte to four, in random order.
    steps = rng.integers(1, draw(st.sampled_from([2, 200, 60_000, 1 << 25])), (rows, k))
    mixed = rng.permuted(steps.cumsum(axis=1), axis=1)
    logits = rng.choice([0.0, -0.5, -1.0, -3.0, -9.0, -25.0, -60.0, -math.inf], (rows, k))
    if rows:
        logits[:, 0] = 0.0
    log_probs = torch.from_numpy(logits.reshape(rows, k)).float().log_softmax(1)
    ids = torch.from_numpy(mixed).sort(1).values
    order = log_probs.sort(dim=1, descending=True, stable=True)
    return TopTokens(ids.gather(1, order.indices), order.values)


@settings(max_examples=100, deadline=None)
@given(top=tops(), deflate=st.booleans())
def test_tokens_come_back_in_the_promised_order(top: TopTokens, deflate: bool) -> None:
    blob = encode(top, deflate=deflate)
    back = decode(blob)
    # Within half a step of the log-probability, or of an even share where that is coarser; what cannot be stays so.
    p, q = top.log_probs.double().exp(), torch.empty(0)
    by_id = back.ids.argsort(1), top.ids.argsort(1)
    assert torch.equal(back.ids.gather(1, by_id[0]), top.ids.gather(1, by_id[1]))
    q = back.log_probs.double().exp().gather(1, by_id[0])
    p = p.gather(1, by_id[1])
    quantum = RESOLUTION.step * torch.where(p > RESOLUTION.even_mass, torch.full_like(p, RESOLUTION.even_mass), p)
    assert ((p - q).abs() <= 0.51 * quantum + 1e-15).all()
    assert torch.equal(p > 0, q > 0)
    assert (back.log_probs[:, 1:] <= back.log_probs[:, :-1]).all()
    tied = back.log_probs[:, 1:] == back.log_probs[:, :-1]
    assert (back.ids[:, 1:] > back.ids[:, :-1])[tied].all()
    # What is stored is what is trained on.
    assert encode(back, deflate=deflate) == blob
    assert same(decode(encode(back)), back)
    assert size_at(b"xy" + blob + b"z", 2, len(top)) == len(blob)


def test_rows_are_the_same_alone_and_among_others() -> None:
    top = TopTokens.from_logits(zipf(30, 5000, seed=3).float(), 64)
    whole = decode(encode(top))
    for row in (0, 13, 29):
        assert same(decode(encode(top[row : row + 1])), whole[row : row + 1])


def test_a_resolution_travels_with_the_bytes() -> None:
    top = TopTokens.from_logits(zipf(8, 3000, seed=4).float(), 32)
    coarse = BlockMasses(1 / 8, 1 / 64)
    data = encode(top, resolution=coarse)
    assert len(data) < len(encode(top))
    back = decode(data)
    assert encode(back, resolution=coarse) == data
    apart = (back.log_probs.double().exp().sum(1) - top.log_probs.double().exp().sum(1)).abs()
    assert 1e-4 < apart.max() < 0.05


def test_bytes_of_a_hand_made_row() -> None:
    top = TopTokens(torch.tensor([[700, 3]]), torch.tensor([[0.5, 0.25]]).log())
    data = encode(top, deflate=False)
    magic, version, width, k, rows, crc = struct.unpack_from("<4sBBHII", data)
    assert (magic, version, width, k, rows, crc) == (b"ULDI", 2, 2, 2, 1, zlib.crc32(data[16:]))
    length, flags, code_width, step, even_mass = struct.unpack_from("<IBBdd", data, 16)
    assert (length, flags, code_width, step, even_mass) == (2 + 2 * 2 + 2 * 2, 0, 2, 1 / 64, 1 / 900)
    # 1 / (1/64 * 1/900) = 57,600 codes from 0 to 1, on top of the 32 * 64 for what is small.
    body = data[38:]
    assert struct.unpack_from("<H", body)[0] == 14_400 + 2048
    # Ids 3, 700: low bytes, high bytes. Codes above the least: those of 3, then of 700.
    assert list(body[2:]) == [3, 697 & 0xFF, 0, 697 >> 8, 0, 14_400 & 0xFF, 0, 14_400 >> 8]


def test_bytes_of_earlier_releases_read_as_before() -> None:
    two = bytes.fromhex(
        "554c44490104030002000000c344f1e605702c010702001101000000000100000000000000000000660000004000aeb8c1bcc7fc"
    )
    ids = torch.tensor([[5, 300, 7], [70_000, 1, 2]])
    log_probs = torch.tensor([[-0.1, -2.5, -7.25], [-0.5, -1.0, -math.inf]])
    assert same(decode(two), TopTokens(ids, log_probs.half().float()))
    assert encode(TopTokens(ids, log_probs), version=1) == two
    one = bytes.fromhex("554c4449010203000100000084c23800052c07000100660040aec1c7")
    assert same(decode(one), TopTokens(ids[:1], log_probs[:1].half().float()))
    assert encode(TopTokens(ids[:1], log_probs[:1]), version=1) == one
    assert size_at(one, 0, 1) == len(one)


@pytest.mark.parametrize("version", [1, 2])
def test_damage_is_noticed(version: int) -> None:
    blob = encode(TopTokens.from_logits(zipf(3, 400, seed=5).float(), 9), version=version)
    for position in range(len(blob)):
        broken = bytearray(blob)
        broken[position] ^= 0x41
        with pytest.raises(ValueError, match="top-k tokens"):
            decode(bytes(broken))
    for length in range(len(blob)):
        with pytest.raises(ValueError, match="damaged or cut short"):
            decode(blob[:length])
    with pytest.raises(ValueError, match="of version 9, but this release reads 1 and 2"):
        decode(blob[:4] + b"\x09" + blob[5:])


def test_what_cannot_be_stored_is_refused() -> None:
    with pytest.raises(ValueError, match="different ids"):
        encode(TopTokens(torch.tensor([[4, 4]]), torch.tensor([[-1.0, -2.0]])))
    with pytest.raises(ValueError, match="at most 65535 tokens per row are kept, got 65536"):
        encode(TopTokens(torch.zeros(0, 1 << 16, dtype=torch.int64), torch.zeros(0, 1 << 16)))


def test_a_compact_row_is_smaller_and_as_good_as_float16() -> None:
    logits = zipf(200, 49_152, seed=6).float()
    top = TopTokens.from_logits(logits, 64)
    first, second = encode(top, version=1), encode(top)
    assert len(second) < 0.75 * len(first)
    true = top.log_probs.double().exp()
    off = [(decode(blob).log_probs.double().exp().sum(1) - true.sum(1)).abs().mean() for blob in (first, second)]
    assert off[1] < off[0]
