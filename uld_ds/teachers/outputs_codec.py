"""A codec of ``TeacherTokens`` as bytes: the outputs that are stored are those trained on, bit for bit.

One example is one blob, whatever it was encoded or decoded together with: ``decode_tokens`` of a blob gives the same
bits alone as ``decode_many`` gives among others. Layout: u32 token count, float32 log-probabilities, the top-k tokens
if there are any (``uld_ds.teachers.top_tokens_codec``: begins with a mark of its own), then the spectra
(``uld_ds.spectrum.codec``), all little-endian.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import torch

from uld_ds.spectrum import codec
from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers import top_tokens_codec

_COUNT = struct.Struct("<I")


def encode_tokens(tokens: TeacherTokens, precision: Precision | None = None) -> bytes:
    """Encode one example's teacher outputs as bytes."""
    return encode_many([tokens], precision)[0]


def decode_tokens(encoded: bytes) -> TeacherTokens:
    """Decode the teacher outputs that ``encode_tokens`` wrote, on the CPU.

    Raises:
        ValueError: the bytes are damaged, cut short or of another version (says which).
    """
    return decode_many([encoded])[0]


def roundtrip(tokens: TeacherTokens, precision: Precision | None = None) -> TeacherTokens:
    """Return what will be read once ``tokens`` are stored: trained on this, caching changes nothing."""
    return decode_tokens(encode_tokens(tokens, precision))


def encode_many(examples: Sequence[TeacherTokens], precision: Precision | None = None) -> list[bytes]:
    """Encode the teacher outputs of several examples, each as bytes of its own."""
    encoded = encode_spectra([tokens.spectrum for tokens in examples], precision)
    return [
        _COUNT.pack(len(tokens))
        + log_probs_to_bytes(tokens)
        + (b"" if tokens.top is None else top_tokens_codec.encode(tokens.top))
        + spectra
        for tokens, spectra in zip(examples, encoded, strict=True)
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
    return [TeacherTokens(*parts) for parts in zip(decode_spectra(spectra), log_probs, tops, strict=True)]


def log_probs_to_bytes(tokens: TeacherTokens) -> bytes:
    """Encode the [T] log-probabilities of an example as little-endian float32."""
    return tokens.log_probs.detach().to("cpu", torch.float32).numpy().astype("<f4").tobytes()


def log_probs_from_bytes(data: bytes) -> torch.Tensor:
    """Decode the bytes of ``log_probs_to_bytes`` to [T] float32 on the CPU."""
    return torch.from_numpy(np.frombuffer(data, dtype="<f4").astype(np.float32))


def encode_spectra(
    spectra: Sequence[Spectrum], precision: Precision | None = None, *, deflate: bool = True
) -> list[bytes]:
    """Encode the spectra of several examples; ``deflate`` the bytes unless what stores them compresses."""
    if not spectra:
        return []
    together = Spectrum.cat(spectra)
    precision = precision or codec.default_precision(together.num_head)
    return codec.encode_many(together, [len(spectrum) for spectrum in spectra], precision, deflate=deflate)


def decode_spectra(encoded: Sequence[bytes]) -> list[Spectrum]:
    """Decode the spectra of several examples, on the CPU."""
    return [Spectrum.from_parts(parts) for parts in codec.decode_many(encoded)]
