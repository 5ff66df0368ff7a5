"""Teacher tokens as bytes: what is read is what was trained on, bit for bit."""

from __future__ import annotations

import math
import struct
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from tests.helpers.spectra_zoo import gaussian, one_hot, zipf
from tests.helpers.teacher_outputs import same_bits, tokens_of
from uld_ds.spectrum.codec import encode_many as encode_many_plain
from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers import top_tokens_codec
from uld_ds.teachers.outputs_codec import decode_many, decode_tokens, encode_many, encode_tokens, roundtrip


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    top_ids=st.lists(st.sampled_from([0, 1, 64]), min_size=6, max_size=6),
)
def test_an_example_is_the_same_alone_and_among_others(sizes: list[int], seed: int, top_ids: list[int]) -> None:
    examples = [tokens_of(size, seed + place, top_ids=top_ids[place]) for place, size in enumerate(sizes)]
    encoded = encode_many(examples)
    assert encoded == [encode_tokens(tokens) for tokens in examples]
    decoded = decode_many(encoded)
    for tokens, blob, back in zip(examples, encoded, decoded, strict=True):
        assert torch.equal(back.log_probs, tokens.log_probs)
        assert same_bits(back, decode_tokens(blob))
        assert same_bits(back, roundtrip(tokens))


def test_distributions_of_every_shape_do_not_touch_each_other() -> None:
    # Their rows end at different blocks, and some have no tail at all.
    shapes = [zipf(5, 16_000, seed=1), one_hot(3, 50), gaussian(4, 9000, scale=1.0), zipf(2, 7, seed=2)]
    encoded = [
        encode_tokens(TeacherTokens(Spectrum.from_logits(logits.float()), torch.zeros(len(logits))))
        for logits in shapes
    ]
    together = decode_many(encoded)
    for blob, back, logits in zip(encoded, together, shapes, strict=True):
        assert same_bits(back, decode_tokens(blob))
        apart = (back.spectrum.head[:, 0].double() - torch.softmax(logits, -1).amax(-1)).abs()
        assert apart.max() < 1 / 64 / 900 + 2e-5


def test_different_precisions_may_be_decoded_together() -> None:
    tokens = tokens_of(6, 1)
    blobs = [encode_tokens(tokens, Precision(num_exact=n)) for n in (16, 64, 16)]
    first, fine, again = decode_many(blobs)
    assert [part.spectrum.num_head for part in (first, fine, again)] == [16, 64, 16]
    assert same_bits(first, again)
    assert same_bits(fine, decode_tokens(blobs[1]))


def test_precision_of_memory() -> None:
    tokens = tokens_of(4, 1)
    fine, coarse = (roundtrip(tokens, Precision(mantissa_bits=bits)).spectrum for bits in (5, 3))
    assert fine.num_bytes > 3 * coarse.num_bytes
    assert torch.equal(fine.head, coarse.head)
    torch.testing.assert_close(fine.counts.sum(-1), coarse.counts.sum(-1))
    torch.testing.assert_close(fine.masses.sum(-1), coarse.masses.sum(-1))


def test_what_was_written_before_there_were_top_k_tokens_reads_alike() -> None:
    plain = tokens_of(5, 1)
    with_top = tokens_of(5, 1, top_ids=16)
    blob, longer = encode_tokens(plain), encode_tokens(with_top)
    assert decode_tokens(blob).top is None
    assert same_bits(decode_tokens(blob), replace(decode_tokens(longer), top=None))
    # u32, float32 each, the block, the spectra.
    begin = 4 + 4 * 5
    assert blob[:begin] == longer[:begin]
    assert len(longer) - len(blob) == top_tokens_codec.size_at(longer, begin, 5)
    assert longer[-len(blob) + begin :] == blob[begin:]


def test_a_blob_of_an_earlier_release_reads_as_before() -> None:
    # What release 1's codec wrote of logits 0 to 5 and their two likeliest tokens.
    blob = bytes.fromhex(
        "010000000000c0bf554c44490102020001000000d9096821050400004dd3b7bd554c445302020ca6c39f010000004000052406060006"
        "00ec51b81e85ebf13f000000000000903fdfbc9a785634523f000000000000f03f78da6363606070b9eae89ffaddf7d21627090e6600"
        "2afb0544"
    )
    tokens = decode_tokens(blob)
    logits = torch.arange(6.0)[None]
    assert tokens.top is not None
    assert tokens.top.ids.tolist() == [[5, 4]]
    assert torch.equal(tokens.top.log_probs, logits.log_softmax(1)[:, [5, 4]].half().float())
    assert tokens.log_probs.tolist() == [-1.5]
    assert tokens.spectrum.unknown_mass is None
    again = encode_tokens(replace(tokens, top=None))
    assert decode_tokens(again).spectrum.head.shape == (1, 64)


def test_damage_is_noticed() -> None:
    blob = encode_tokens(tokens_of(3, 1))
    with pytest.raises(ValueError, match="damaged or cut short"):
        decode_tokens(blob[:-1])
    with pytest.raises(ValueError, match="cut short: 2 bytes"):
        decode_tokens(blob[:2])


def test_the_bytes_are_laid_out_as_documented() -> None:
    # docs/spectrum-store.md, read by hand: no code of the codec.
    spectrum = Spectrum.from_logits(zipf(3, 900, seed=5).float())
    [data] = encode_many_plain(spectrum, [3], Precision(), deflate=False)
    magic, version, flags, _ = struct.unpack_from("<4sBBI", data)
    assert (magic, version, flags) == (b"ULDS", 2, 0)
    rows, num_exact, _, _, _, blocks, wide, ratio, step, even_mass, temperature = struct.unpack_from(
        "<IHBBBHHdddd", data, 10
    )
    assert (rows, num_exact, ratio, temperature) == (3, 64, 1.12, 1.0)
    rest = np.frombuffer(data, np.uint8, offset=10 + struct.calcsize("<IHBBBHHdddd")).astype(np.int64)
    support = (rest[: 4 * rows].reshape(4, rows) << np.array([[0], [8], [16], [24]])).sum(0)
    error, rest = rest[4 * rows : 5 * rows], rest[5 * rows :]
    folded = rest[: blocks * rows].reshape(blocks, rows).copy()
    folded[:wide] += rest[blocks * rows :].reshape(wide, rows) << 8
    differences = np.where(folded % 2, -(folded + 1) // 2, folded // 2)
    ends = list(range(1, num_exact + 1))
    while len(ends) < blocks:
        ends.append(max(ends[-1] + 1, round(ends[-1] * ratio)))
    offset = round(32 / step)
    back = Spectrum.from_bytes(data)
    for row in range(rows):
        code, change, masses = 0, 0, []
        for block in range(blocks):
            if block and ends[block - 1] >= support[row]:
                break
            change = differences[block, row] + (change if block >= num_exact + 2 else 0)
            code = (code + change) % 2**16
            x = (code - offset) * step
            masses.append(0.0 if code == 0 else even_mass * (x if x >= 1 else math.exp(x - 1)))
        masses = np.array(masses) / sum(masses)
        np.testing.assert_allclose(back.head[row], masses[:num_exact], rtol=1e-6)
        np.testing.assert_allclose(back.masses[row].sum(), masses[num_exact:].sum(), rtol=1e-5)
        assert float(back.counts[row].sum()) == pytest.approx(support[row] - num_exact, rel=1e-5)
    assert back.error is not None
    np.testing.assert_allclose(back.error, 2.0 ** (error / 8 - 24), rtol=1e-6)
