"""Truncated spectra that are rebuilt from the top-k tokens beside them."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from tests.helpers.spectra_zoo import gaussian, reference_distance, zipf
from tests.helpers.teacher_outputs import same_bits, tokens_of
from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers import rebuilt_spectra, top_tokens_codec
from uld_ds.teachers.outputs_codec import decode_many, decode_tokens, encode_many, encode_tokens, roundtrip
from uld_ds.uld.distance import uld_value_and_grad

VOCAB = 3000


def truncated(logits: Tensor, k: int) -> TeacherTokens:
    top = TopTokens.from_logits(logits.float(), k)
    spectrum = Spectrum.from_top_log_probs(top.log_probs, vocab_size=logits.shape[1])
    return TeacherTokens(spectrum, top.log_probs[:, 0], top)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), k=st.sampled_from([1, 20, 64, 100]), slope=st.floats(0.2, 3))
def test_the_bound_holds_and_nothing_changes_the_second_time(seed: int, k: int, slope: float) -> None:
    student, teacher = zipf(6, 2000, seed=seed), zipf(6, VOCAB, slope=slope, seed=seed + 1)
    tokens = truncated(teacher, k)
    blob = encode_tokens(tokens, vocab_size=VOCAB)
    back = decode_tokens(blob)
    assert encode_tokens(back, vocab_size=VOCAB) == blob
    got = uld_value_and_grad(student.float(), back.spectrum)
    want = reference_distance(torch.softmax(student, -1), torch.softmax(teacher, -1))
    assert got.bound is not None
    assert ((got.distance.double() - want).abs() <= got.bound).all()


@pytest.mark.parametrize("k", [20, 64, 200])
def test_what_is_rebuilt_is_the_spectrum_of_the_stored_tokens(k: int) -> None:
    tokens = truncated(zipf(40, VOCAB, seed=1), k)
    back = roundtrip(tokens, vocab_size=VOCAB)
    assert back.top is not None
    want = Spectrum.from_top_log_probs(back.top.log_probs, vocab_size=VOCAB, num_head=64)
    found = back.spectrum
    torch.testing.assert_close(found.head, want.head, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found.masses.sum(1), want.masses.sum(1), rtol=1e-4, atol=1e-6)
    assert found.unknown_mass is not None and want.unknown_mass is not None
    torch.testing.assert_close(found.unknown_mass, want.unknown_mass, rtol=1e-5, atol=1e-7)
    assert found._kind() == Spectrum.from_bytes(tokens.spectrum.to_bytes())._kind()
    # In place of some eighty bytes.
    assert len(encode_tokens(tokens, vocab_size=VOCAB)) < len(encode_tokens(tokens)) - 40 * 30


def test_full_spectra_beside_them_keep_their_bytes() -> None:
    full = [tokens_of(4, 1), tokens_of(3, 2, top_ids=16)]
    mixed = [full[0], truncated(zipf(5, VOCAB, seed=3), 20), full[1]]
    blobs = encode_many(mixed, vocab_size=VOCAB)
    assert [blobs[0], blobs[2]] == encode_many(full)
    for blob, back in zip(blobs, decode_many(blobs), strict=True):
        assert same_bits(back, decode_tokens(blob))
    assert decode_tokens(blobs[0]).spectrum.unknown_mass is None
    assert decode_tokens(blobs[1]).spectrum.unknown_mass is not None


def test_rows_that_know_fewer_padding_and_no_rows() -> None:
    tokens = truncated(gaussian(4, VOCAB, scale=3.0, seed=2), 20)
    assert tokens.top is not None
    log_probs = tokens.top.log_probs.clone()
    log_probs[1, 7:], log_probs[2] = -math.inf, -math.inf
    top = TopTokens(tokens.top.ids, log_probs)
    fewer = TeacherTokens(Spectrum.from_top_log_probs(log_probs, vocab_size=VOCAB), tokens.log_probs, top)
    back = roundtrip(fewer, vocab_size=VOCAB)
    assert back.spectrum.unscaled_mass().tolist() == pytest.approx([1, 1, 0, 1], abs=1e-5)
    assert back.spectrum.error is not None and back.spectrum.error[2] == 0
    for row in range(4):
        assert same_bits(roundtrip(fewer[row : row + 1], vocab_size=VOCAB), back[row : row + 1])
    assert len(roundtrip(fewer[:0], vocab_size=VOCAB)) == 0


def test_the_precision_says_what_is_rebuilt() -> None:
    tokens = truncated(zipf(4, VOCAB, seed=4), 64)
    small = roundtrip(tokens, Precision(num_exact=16, mantissa_bits=3), vocab_size=VOCAB).spectrum
    assert small.num_head == 16 and small.grid.mantissa_bits == 3
    torch.testing.assert_close(small.unscaled_mass(), torch.ones(4), rtol=1e-5, atol=0)


def test_damage_and_missing_tokens_are_named() -> None:
    tokens = truncated(zipf(4, VOCAB, seed=5), 20)
    assert tokens.top is not None
    stored = top_tokens_codec.decode(top_tokens_codec.encode(tokens.top))
    data = rebuilt_spectra.encode(tokens.spectrum, tokens.top, stored, vocab_size=VOCAB, precision=Precision())
    for position in range(5, len(data)):
        broken = bytearray(data)
        broken[position] ^= 0x40
        if position != 5:  # the flags
            with pytest.raises(ValueError, match="damaged or cut short"):
                rebuilt_spectra.decode(bytes(broken), stored)
    with pytest.raises(ValueError, match="4 rows for 3 rows"):
        rebuilt_spectra.decode(data, stored[:3])
    with pytest.raises(ValueError, match="version 4 needs the top-k tokens"):
        Spectrum.from_bytes(data)
    with pytest.raises(ValueError, match="only truncated spectra"):
        full = tokens_of(4, 1).spectrum
        rebuilt_spectra.encode(full, tokens.top, stored, vocab_size=VOCAB, precision=Precision())
