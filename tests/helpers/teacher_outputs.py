"""What a teacher might have said: stored examples over made-up distributions."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from tests.helpers.spectra_zoo import zipf
from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.store.manifest import CodecFacts, StoreIdentity
from uld_ds.teachers.store.shard import StoredExample

VOCAB = 300


def tokens_of(count: int, seed: int, *, temperature: float = 1.0, top_ids: int = 0) -> TeacherTokens:
    """``count`` tokens over 300 entries."""
    logits = zipf(max(count, 1), VOCAB, seed=seed)[:count].float()
    spectrum = Spectrum.from_logits(logits, temperature=temperature)
    rng = torch.Generator().manual_seed(seed)
    top = TopTokens.from_logits(logits, top_ids) if top_ids else None
    return TeacherTokens(spectrum, -5 * torch.rand(count, generator=rng), top)


def example(number: int, turns: list[tuple[int, int]] | None = None, *, top_ids: int = 0) -> StoredExample:
    """Example ``number``, with (spelling, ending) tokens per turn; by default a few, in one or two turns."""
    rng = np.random.default_rng(number)
    turns = turns or [(int(rng.integers(1, 9)), int(rng.integers(0, 3))) for _ in range(1 + number % 2)]
    spans, rows = [], []
    for spelling, ending in turns:
        ends = np.cumsum(rng.integers(0, 7, spelling))
        spans.append(np.stack([np.concatenate([[0], ends[:-1]]), ends], axis=1))
        rows.append([spelling, ending, int(ends[-1]) + int(rng.integers(0, 2))])
    return StoredExample(
        id=f"row-{number}",
        digest=hashlib.sha256(str(number).encode()).hexdigest(),
        turns=np.array(rows, np.int32),
        spans=np.concatenate(spans),
        tokens=tokens_of(sum(map(sum, turns)), number, top_ids=top_ids),
    )


def identity(precision: Precision | None = None, **changes: object) -> StoreIdentity:
    """Of a store over made-up data."""
    fields: dict[str, object] = {
        "teacher": "org/teacher",
        "revision": "abc123",
        "tokenizer_digest": "a" * 64,
        "prompt_template": "chat",
        "system_prompt": None,
        "max_length": 128,
        "temperature": 1.0,
        "codec": CodecFacts.of(precision),
        "data_digest": "d" * 64,
    }
    return StoreIdentity(**{**fields, **changes})  # type: ignore[arg-type]


def same_bits(ours: TeacherTokens, theirs: TeacherTokens) -> bool:
    """Whether two are equal in every bit."""
    a, b = ours.spectrum, theirs.spectrum
    assert a.error is not None and b.error is not None
    pairs = [(a.head, b.head), (a.counts, b.counts), (a.masses, b.masses), (a.error, b.error)]
    pairs.append((ours.log_probs, theirs.log_probs))
    assert (ours.top is None) == (theirs.top is None)
    if ours.top is not None and theirs.top is not None:
        pairs += [(ours.top.ids, theirs.top.ids), (ours.top.log_probs, theirs.top.log_probs)]
    return (a.grid, a.temperature) == (b.grid, b.temperature) and all(torch.equal(x, y) for x, y in pairs)
