"""Small spectrum stores of made-up examples, and what must be read from them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tests.helpers.teacher_outputs import example, identity, same_bits
from uld_ds.teachers.outputs_codec import roundtrip
from uld_ds.teachers.store.manifest import StoreIdentity, StoreManifest
from uld_ds.teachers.store.shard import StoredExample
from uld_ds.teachers.store.writer import StoreWriter

# Row groups hold 16: every shard but the last has two.
NUM, PER_SHARD = 50, 20


def writer(url: str | Path, of: StoreIdentity | None = None, **options: int) -> StoreWriter:
    return StoreWriter(url, of or identity(), **{"examples": NUM, "examples_per_shard": PER_SHARD, **options})


def build(url: str | Path, shards: Sequence[int] | None = None, top_ids: int = 0) -> StoreManifest:
    store = writer(url, identity(top_ids=top_ids, top_codec=2 if top_ids else 1))
    for index in range(store.num_shards) if shards is None else shards:
        numbers = store.examples_of_shard(index)
        store.write_shard(index, (example(number, top_ids=top_ids) for number in numbers))
    return store.finish()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def same_example(ours: StoredExample, theirs: StoredExample) -> bool:
    return (
        (ours.id, ours.digest) == (theirs.id, theirs.digest)
        and np.array_equal(ours.turns, theirs.turns)
        and np.array_equal(ours.spans, theirs.spans)
        and same_bits(ours.tokens, theirs.tokens)
    )


def expected(number: int, top_ids: int = 0) -> StoredExample:
    whole = example(number, top_ids=top_ids)
    return StoredExample(whole.id, whole.digest, whole.turns, whole.spans, roundtrip(whole.tokens))
