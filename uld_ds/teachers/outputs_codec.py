"""A codec of ``TeacherTokens`` as bytes: the outputs that are stored are those trained on, bit for bit.

One example is one blob, whatever it was encoded or decoded together with: ``decode_tokens`` of a blob gives the same
bits alone as ``decode_many`` gives among others. Layout: u32 token count, float32 log-probabilities, the top-k tokens
if there are any (``uld_ds.teachers.top_tokens_codec``: begins with a mark of its own), then the spectra
(``uld_ds.spectrum.codec``), all little-endian. Of a truncated distribution whose top-k tokens are all that is known,
spectra are rebuilt from those (``uld_ds.teachers.rebuilt_spectra``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from uld_ds.spectrum import codec
from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers import rebuilt_spectra, top_tokens_codec

_COUNT = struct.Struct("<I")


def encode_tokens(tokens: TeacherTokens, precision: Precision | None = None, *, vocab_size: int | None = None) -> bytes:
    """Encode one example's teacher outputs as bytes; arguments as for ``encode_many``."""
    return encode_many([tokens], precision, vocab_size=vocab_size)[0]


def decode_tokens(encoded: bytes) -> TeacherTokens:
    """Decode the teacher outputs that ``encode_tokens`` wrote, on the CPU.

    Raises:
        ValueError: the bytes are damaged, cut short or of another version (says which).
    """
    return decode_many([encoded])[0]


def roundtrip(
    tokens: TeacherTokens, precision: Precision | None = None, *, vocab_size: int | None = None
) -> TeacherTokens:
    """Return what will be read once ``tokens`` are stored: trained on this, caching changes nothing."""
    return decode_tokens(encode_tokens(tokens, precision, vocab_size=vocab_size))


def encode_many(
    examples: Sequence[TeacherTokens], precision: Precision | None = None, *, vocab_size: int | None = None
) -> list[bytes]:
    """Encode the teacher outputs of several examples, each as bytes of its own.

    Args:
        examples: The examples.
        precision: Precision of the codec of spectra.
        vocab_size: Tokens of the teacher's vocabulary, where all that is known of truncated distributions are their
            top-k tokens: spectra are then not stored beside them, but rebuilt.
    """
    tops = [None if tokens.top is None else top_tokens_codec.encode(tokens.top) for tokens in examples]
    encoded = encode_spectra(examples, tops, precision, vocab_size=vocab_size)
    return [
        _COUNT.pack(len(tokens)) + log_probs_to_bytes(tokens) + (top or b"") + spectra
        for tokens, top, spectra in zip(examples, tops, encoded, strict=True)
    ]


def decode_many(encoded: Sequence[bytes]) -> list[TeacherTokens]:
    """Decode the teacher outputs of several examples, on the CPU; much faster than one by one.

    Raises:
        ValueError: bytes are damaged, cut short or of another version (says which).
    """
    log_probs, tops, spectra = [], [], []
    for blob in encoded:
        if len(blob) < _COUNT.size:
            raise ValueError(f"teacher tokens are cut short: {len(blob)} bytes")
        count = _COUNT.unpack_from(blob)[0]
        begin = _COUNT.size + 4 * count
        log_probs.append(log_probs_from_bytes(blob[_COUNT.size : begin]))
        end = begin + top_tokens_codec.size_at(blob, begin, count)
        tops.append(top_tokens_codec.decode(blob[begin:end]) if end > begin else None)
        spectra.append(blob[end:])
    return [TeacherTokens(*parts) for parts in zip(decode_spectra(spectra, tops), log_probs, tops, strict=True)]


def log_probs_to_bytes(tokens: TeacherTokens) -> bytes:
    """Encode the [T] log-probabilities of an example as little-endian float32."""
    return tokens.log_probs.detach().to("cpu", torch.float32).numpy().astype("<f4").tobytes()


def log_probs_from_bytes(data: bytes) -> torch.Tensor:
    """Decode the bytes of ``log_probs_to_bytes`` to [T] float32 on the CPU."""
    return torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32))


def encode_spectra(
    examples: Sequence[TeacherTokens],
    tops: Sequence[bytes | None],
    precision: Precision | None = None,
    *,
    vocab_size: int | None = None,
    deflate: bool = True,
) -> list[bytes]:
    """Encode the spectra of several examples.

    Args:
        examples: The examples.
        tops: Their top-k tokens as bytes; None where there are none.
        precision: Precision of the codec of spectra.
        vocab_size: As for ``encode_many``.
        deflate: Compress, unless what stores the bytes does.
    """
    if not examples:
        return []
    precision = precision or codec.default_precision(examples[0].spectrum.num_head)
    rebuilt: dict[int, bytes] = {}
    for place, (tokens, top) in enumerate(zip(examples, tops, strict=True)):
        if vocab_size is None or tokens.top is None or top is None or tokens.spectrum.unknown_mass is None:
            continue
        stored = top_tokens_codec.decode(top)
        rebuilt[place] = rebuilt_spectra.encode(
            tokens.spectrum, tokens.top, stored, vocab_size=vocab_size, precision=precision, deflate=deflate
        )
    others = [tokens.spectrum for place, tokens in enumerate(examples) if place not in rebuilt]
    plain: Iterator[bytes] = iter(())
    if others:
        plain = iter(codec.encode_many(Spectrum.cat(others), [len(one) for one in others], precision, deflate=deflate))
    return [rebuilt.get(place) or next(plain) for place in range(len(examples))]


def decode_spectra(encoded: Sequence[bytes], tops: Sequence[TopTokens | None]) -> list[Spectrum]:
    """Decode the spectra of several examples with their top-k tokens, on the CPU.

    Raises:
        ValueError: bytes are damaged, cut short or of another version, or are rebuilt from top-k tokens that are not
            there (says which).
    """
    plain: list[bytes] = []
    rebuilt: list[bytes] = []
    known: list[TopTokens] = []
    for blob, top in zip(encoded, tops, strict=True):
        if not rebuilt_spectra.is_rebuilt(blob):
            plain.append(blob)
        elif top is None:
            raise ValueError("these spectra are rebuilt from top-k tokens, and there are none beside them")
        else:
            rebuilt.append(blob)
            known.append(top)
    of_plain = iter([Spectrum.from_parts(parts) for parts in codec.decode_many(plain)])
    of_rebuilt = iter(rebuilt_spectra.decode_many(rebuilt, known))
    return [next(of_rebuilt if rebuilt_spectra.is_rebuilt(blob) else of_plain) for blob in encoded]
