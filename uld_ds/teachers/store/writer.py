"""The writer of a spectrum store: shard by shard, each whole or absent; a manifest, written last, makes it a store."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from uld_ds.errors import UserError
from uld_ds.teachers.store.files import StoreFiles
from uld_ds.teachers.store.manifest import (
    MANIFEST,
    PARTIAL_MANIFEST,
    Measured,
    PartialManifest,
    ShardFacts,
    StoreIdentity,
    StoreManifest,
    manifest_from_json,
    partial_from_json,
    to_json,
)
from uld_ds.teachers.store.shard import TOP_COLUMN, ShardFormat, StoredExample, shard_to_bytes

# The name carries the beginning of the content's sha256: a shard proves itself before any manifest lists it.
_SHARD_NAME = re.compile(r"shard-(\d{5,})-([0-9a-f]{16})\.parquet")


class StoreWriter:
    """A writer that begins a store or resumes building one. Several processes may write different shards at once.

    Args:
        url: Folder or fsspec URL.
        identity: Identity of the store, for its manifest.
        examples: Number of examples of the whole store.
        examples_per_shard: Shard i holds examples ``i * examples_per_shard`` and on.
        key: Recipe key where the user named the place, for messages.

    Raises:
        UserError: a store or an unfinished one of another identity is there already (names the field).
    """

    def __init__(
        self,
        url: str | os.PathLike[str],
        identity: StoreIdentity,
        *,
        examples: int,
        examples_per_shard: int = 1024,
        key: str = "store",
    ) -> None:
        self._files = StoreFiles(url, key="teacher.path")
        fields = {name: getattr(identity, name) for name in StoreIdentity.model_fields}
        self._plan = PartialManifest(**fields, examples=examples, examples_per_shard=examples_per_shard)
        self._format = ShardFormat(
            identity.codec.to_precision(), identity.top_ids, identity.top_codec, identity.rebuilt_vocab_size
        )
        self._begin(key)

    @property
    def num_shards(self) -> int:
        """Number of shards that the whole store has."""
        return -(-self._plan.examples // self._plan.examples_per_shard)

    def examples_of_shard(self, index: int) -> range:
        """Return the numbers of the examples that belong into shard ``index``."""
        begin = index * self._plan.examples_per_shard
        return range(begin, min(begin + self._plan.examples_per_shard, self._plan.examples))

    def finished_shards(self) -> dict[int, ShardFacts]:
        """Map the index of each whole shard that is there to its facts; each is read and its checksum verified."""
        found: dict[int, ShardFacts] = {}
        for name in self._files.names():
            match = _SHARD_NAME.fullmatch(name)
            if match and (data := self._files.read(name)) is not None:
                index = int(match[1])
                facts = _facts(name, data)
                if facts.sha256.startswith(match[2]) and facts.examples == len(self.examples_of_shard(index)):
                    found.setdefault(index, facts)
        return found

    def write_shard(self, index: int, examples: Iterable[StoredExample]) -> ShardFacts:
        """Write one shard: the same bytes for the same examples, whatever was there before.

        Args:
            index: Number of the shard, below ``num_shards``.
            examples: Those of ``examples_of_shard``, in order. A few dozens are held at a time, with their spectra
                uncompressed (8 KB per token): a generator keeps memory flat.

        Raises:
            ValueError: not as many examples as belong into it, or without the top-k tokens that are to be kept.
        """
        data = shard_to_bytes(examples, self._format)
        digest = hashlib.sha256(data).hexdigest()
        name = f"shard-{index:05d}-{digest[:16]}.parquet"
        facts = _facts(name, data)
        wanted = len(self.examples_of_shard(index))
        if facts.examples != wanted:
            raise ValueError(f"shard {index} holds {wanted} examples, got {facts.examples}")
        self._files.put(name, data)
        return facts

    def finish(self, measured: Measured | None = None) -> StoreManifest:
        """Verify all shards, write the manifest, and remove what does not belong to the store.

        Raises:
            ValueError: a shard is missing (names the first).
        """
        shards = self.finished_shards()
        missing = sorted(set(range(self.num_shards)) - shards.keys())
        if missing:
            raise ValueError(
                f"{self._files.url}: {len(missing)} of {self.num_shards} shards missing, first {missing[0]}"
            )
        ordered = [shards[index] for index in range(self.num_shards)]
        manifest = StoreManifest(
            **dict(self._plan),
            teacher_tokens=sum(shard.tokens for shard in ordered),
            shards=ordered,
            measured=measured,
        )
        self._files.put(MANIFEST, to_json(manifest))
        listed = {shard.name for shard in ordered}
        for name in self._files.names():
            if name == PARTIAL_MANIFEST or (_SHARD_NAME.fullmatch(name) and name not in listed):
                self._files.remove(name)
        self._files.remove_leftovers()
        return manifest

    def _begin(self, key: str) -> None:
        place = self._files.url
        if (data := self._files.read(MANIFEST)) is not None:
            self._check(manifest_from_json(data, self._files.path(MANIFEST), key), f"the store at {place}", key)
        elif (data := self._files.read(PARTIAL_MANIFEST)) is not None:
            there = partial_from_json(data, self._files.path(PARTIAL_MANIFEST), key)
            self._check(there, f"the unfinished store at {place}", key)
        else:
            self._files.put(PARTIAL_MANIFEST, to_json(self._plan))

    def _check(self, there: PartialManifest, place: str, key: str) -> None:
        fix = "remove it, or build elsewhere"
        self._plan.check_same(there, key=key, place=place, fix=fix)
        for name in ("examples", "examples_per_shard"):
            ours, theirs = getattr(self._plan, name), getattr(there, name)
            if ours != theirs:
                raise UserError(key, f"{place} has {name} {theirs}, but here it is {ours}", fix)


def _facts(name: str, data: bytes) -> ShardFacts:
    try:
        lengths = pq.read_table(io.BytesIO(data), columns=["log_probs"]).column("log_probs")
        examples, tokens = len(lengths), sum(len(chunk.values) for chunk in lengths.chunks)
        top_bytes = _top_bytes(pq.read_metadata(io.BytesIO(data)))
    except pa.ArrowException:  # damaged: its checksum will tell
        examples, tokens, top_bytes = 0, 0, 0
    return ShardFacts(
        name=name,
        examples=examples,
        tokens=tokens,
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        top_bytes=top_bytes,
    )


def _top_bytes(metadata: pq.FileMetaData) -> int:
    groups = (metadata.row_group(group) for group in range(metadata.num_row_groups))
    columns = (group.column(column) for group in groups for column in range(group.num_columns))
    return sum(column.total_compressed_size for column in columns if column.path_in_schema == TOP_COLUMN)
