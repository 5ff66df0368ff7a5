"""The reader of a spectrum store: teacher outputs of a corpus, computed once, for students of any tokenizer.

A folder (or any fsspec URL) of Parquet shards and a manifest; ``docs/spectrum-store.md`` describes the format.
``StoreWriter`` makes one, ``SpectrumStore`` reads it.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import BinaryIO, Self

import pyarrow as pa
import pyarrow.parquet as pq

from uld_ds.errors import FinalError, RunError, UserError, one_line
from uld_ds.spectrum.codec_bytes import CODEC_VERSION, REBUILT_VERSION, TRUNCATED_VERSION
from uld_ds.teachers.store.files import StoreFiles
from uld_ds.teachers.store.manifest import (
    MANIFEST,
    PARTIAL_MANIFEST,
    CodecFacts,
    Measured,
    ShardFacts,
    StoreIdentity,
    StoreManifest,
    manifest_from_json,
)
from uld_ds.teachers.store.shard import (
    LAYOUT_COLUMNS,
    PIECES_COLUMN,
    Layout,
    PieceLayout,
    Record,
    StoredExample,
    examples_of,
    layouts_of,
    records_of,
    schema,
)
from uld_ds.teachers.store.writer import StoreWriter

__all__ = [
    "CodecFacts",
    "Layout",
    "Measured",
    "PieceLayout",
    "ShardFacts",
    "SpectrumStore",
    "StoreIdentity",
    "StoreManifest",
    "StoreWriter",
    "StoredExample",
]

# Most shards open at once: their footers are in memory, about 100 KB each.
_NUM_OPEN = 32
_READ_BYTES = 1 << 20


class SpectrumStore:
    """A whole spectrum store, open for reading; ``open`` makes one. Not to be shared between threads."""

    def __init__(self, files: StoreFiles, manifest: StoreManifest, *, with_top: bool = False) -> None:
        self._files = files
        self.manifest = manifest
        self._schema = schema(manifest.top_ids)
        # Spectra that are rebuilt from top-k tokens need those, whether anybody else does or not.
        self._with_top = with_top
        needed = with_top or manifest.rebuilt_vocab_size is not None
        self._columns = schema(manifest.top_ids if needed else 0).names
        self._begins = [0, *accumulate(shard.examples for shard in manifest.shards)]
        self._open: OrderedDict[int, _Shard] = OrderedDict()

    @classmethod
    def open(cls, url: str | os.PathLike[str], *, key: str = "store", with_top: bool = False) -> Self:
        """Open the store at a folder or fsspec URL.

        Args:
            url: Folder or fsspec URL.
            key: Recipe key where the user named it.
            with_top: Whether examples come with their top-k tokens, if the store has them; else those are not read.

        Raises:
            UserError: there is none, only a half-written one, or one of another version.
            RunError: it cannot be reached.
        """
        files = StoreFiles(url, key=key)
        try:
            data = files.read(MANIFEST)
        except Exception as error:  # every file system has errors of its own
            raise RunError(
                f"{key}: {str(url)!r} cannot be read ({one_line(error)}); see that this machine reaches it"
            ) from error
        if data is None:
            if files.read(PARTIAL_MANIFEST) is not None:
                problem = f"{files.url} is half-written: its build was cut short"
                raise UserError(key, problem, "run the same `uld-ds store build` again, it goes on where it stopped")
            raise UserError(key, f"no spectrum store at {files.url}", "correct it, or build one: `uld-ds store build`")
        manifest = manifest_from_json(data, files.path(MANIFEST), key)
        known = (CODEC_VERSION, TRUNCATED_VERSION, REBUILT_VERSION)
        if manifest.codec.version not in known:
            versions = f"{min(known)} to {max(known)}"
            problem = f"{files.url} has codec.version {manifest.codec.version}, but this release reads {versions}"
            raise UserError(key, problem, "build the store again with this release")
        return cls(files, manifest, with_top=with_top)

    def check_matches(self, expected: StoreIdentity, *, key: str = "store") -> None:
        """Check that the store has the identity that is expected.

        Raises:
            UserError: it has not; names the first field that differs, both values and the fix.
        """
        expected.check_same(self.manifest, key=key, place=self._files.url)

    def __len__(self) -> int:
        return self._begins[-1]

    def digests(self) -> list[str]:
        """Read the content digest of every example, in order; only that column is read."""
        found: list[str] = []
        for index in range(len(self.manifest.shards)):
            with _naming(self._name(index)):
                found += [digest.hex() for digest in self._shard(index).column("digest")]
        return found

    def layouts(self) -> Iterator[Layout]:
        """Yield the layout of every example, in order, without its spectra."""
        for index in range(len(self.manifest.shards)):
            with _naming(self._name(index)):
                layouts = layouts_of(self._shard(index).columns((*LAYOUT_COLUMNS, PIECES_COLUMN)))
            yield from layouts

    def read(self, indices: Sequence[int]) -> list[StoredExample]:
        """Read the examples of these numbers, in this order.

        Raises:
            IndexError: there is no such example.
            RunError: a shard is damaged or missing (names it).
        """
        by_shard: dict[int, list[int]] = {}
        for index in indices:
            if not 0 <= index < len(self):
                raise IndexError(f"example {index} of {len(self)}")
            by_shard.setdefault(bisect_right(self._begins, index) - 1, []).append(index)
        records: dict[int, Record] = {}
        for shard, wanted in sorted(by_shard.items()):
            with _naming(self._name(shard)):
                records.update(self._shard(shard).records(wanted, self._begins[shard]))
        return self._examples([records[index] for index in indices])

    def stream(self, start: int = 0, stop: int | None = None) -> Iterator[StoredExample]:
        """Yield examples ``start`` up to ``stop`` (default: all) in order, a row group in memory at a time."""
        stop = len(self) if stop is None else min(stop, len(self))
        for index in range(len(self.manifest.shards)):
            first = self._begins[index]
            if first >= stop or self._begins[index + 1] <= start:
                continue
            with _naming(self._name(index)):
                begins = self._shard(index).begins
            for group, (begin, end) in enumerate(pairwise(begins)):
                rows = range(max(start - first - begin, 0), min(stop - first, end) - begin)
                if len(rows):
                    with _naming(self._name(index)):
                        records = records_of(self._shard(index).group(group), rows)
                    yield from self._examples(records)

    def _examples(self, records: Sequence[Record]) -> list[StoredExample]:
        found = examples_of(records)
        if self._with_top or self.manifest.rebuilt_vocab_size is None:
            return found
        return [replace(example, tokens=replace(example.tokens, top=None)) for example in found]

    def verify(self) -> None:
        """Verify the size and sha256 of every shard, reading each once.

        Raises:
            RunError: a shard is missing or damaged (names the first).
        """
        for shard in self.manifest.shards:
            digest, size = hashlib.sha256(), 0
            try:
                with self._files.open(shard.name) as file:
                    while block := file.read(_READ_BYTES):
                        digest.update(block)
                        size += len(block)
            except FileNotFoundError as error:
                raise _damaged(self._files.path(shard.name), "is missing") from error
            if size != shard.bytes:
                raise _damaged(self._files.path(shard.name), f"has {size} bytes instead of {shard.bytes}")
            if digest.hexdigest() != shard.sha256:
                raise _damaged(self._files.path(shard.name), "is damaged (its sha256 is not the manifest's)")

    def close(self) -> None:
        """Close the files; reading opens them again."""
        while self._open:
            self._open.popitem()[1].close()

    def _name(self, shard: int) -> str:
        return self._files.path(self.manifest.shards[shard].name)

    def _shard(self, index: int) -> _Shard:
        shard = self._open.pop(index, None)
        if shard is None:
            facts = self.manifest.shards[index]
            shard = _Shard(self._files.open(facts.name), self._schema.names, self._columns)
            if shard.begins[-1] != facts.examples:
                raise ValueError(f"holds {shard.begins[-1]} examples instead of {facts.examples}")
        self._open[index] = shard
        while len(self._open) > _NUM_OPEN:
            self._open.popitem(last=False)[1].close()
        return shard


class _Shard:
    """One shard: an open Parquet file."""

    def __init__(self, file: BinaryIO, names: list[str], wanted: list[str]) -> None:
        self._file = file
        self._wanted = wanted
        # Columns of a row group lie side by side: one request to an object store instead of seven.
        self._parquet = pq.ParquetFile(file, pre_buffer=True)
        if (there := self._parquet.schema_arrow.names) not in (names, [*names, PIECES_COLUMN]):
            raise ValueError(f"has the columns {', '.join(there)}")
        metadata = self._parquet.metadata
        sizes = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self.begins = [0, *accumulate(sizes)]

    def records(self, indices: Sequence[int], first: int) -> Iterator[tuple[int, Record]]:
        """Yield examples by their numbers in the store, of which ``first`` is this shard's first."""
        by_group: dict[int, list[int]] = {}
        for index in indices:
            by_group.setdefault(bisect_right(self.begins, index - first) - 1, []).append(index)
        for group, wanted in by_group.items():
            rows = [index - first - self.begins[group] for index in wanted]
            yield from zip(wanted, records_of(self.group(group), rows), strict=True)

    def group(self, index: int) -> pa.Table:
        return self._parquet.read_row_group(index, columns=self._wanted, use_threads=False)

    def column(self, name: str) -> list[bytes]:
        return list(self._parquet.read([name], use_threads=False).column(name).to_pylist())

    def columns(self, names: Sequence[str]) -> pa.Table:
        there = self._parquet.schema_arrow.names
        return self._parquet.read([name for name in names if name in there], use_threads=False)

    def close(self) -> None:
        self._parquet.close()
        self._file.close()


class _naming:  # noqa: N801  used like a function, in a with
    """A context that turns what damaged bytes cause into one error that names the shard."""

    def __init__(self, shard: str) -> None:
        self._shard = shard

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise _damaged(self._shard, "is missing") from error
        if isinstance(error, OSError):  # which a connection raises, too
            raise _damaged(self._shard, f"is damaged ({one_line(error)})", RunError) from error
        if isinstance(error, ValueError | pa.ArrowException):
            raise _damaged(self._shard, f"is damaged ({one_line(error)})") from error


def _damaged(shard: str, problem: str, kind: type[RunError] = FinalError) -> RunError:
    return kind(f"shard {shard} {problem}; run the same `uld-ds store build` again, it makes only this one anew")
