"""One shard of a spectrum store: examples as Parquet bytes and back (columns: ``docs/spectrum-store.md``)."""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from uld_ds.spectrum.precision import Precision
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers import top_tokens_codec
from uld_ds.teachers.outputs_codec import decode_spectra, encode_spectra, log_probs_from_bytes, log_probs_to_bytes

Ints = npt.NDArray[np.integer[Any]]

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("digest", pa.binary(32), nullable=False),
        pa.field("turns", pa.list_(pa.int32()), nullable=False),
        pa.field("token_bytes", pa.list_(pa.int32()), nullable=False),
        pa.field("log_probs", pa.list_(pa.float32()), nullable=False),
        pa.field("spectra", pa.binary(), nullable=False),
        pa.field("crc32", pa.uint32(), nullable=False),
    ]
)
TOP_COLUMN = "top_tokens"
"""Column after the others where a store has top-k tokens. Read only where wanted, so with a checksum of its own."""
_SCHEMA_WITH_TOP = SCHEMA.append(pa.field(TOP_COLUMN, pa.binary(), nullable=False))
PIECES_COLUMN = "pieces"
"""Last column where answers are made of more than their text: ``PieceLayout`` as JSON, after the crc32 of it."""
# A random read decompresses one row group: few enough tokens to be quick, enough to share the overhead of columns.
_GROUP_TOKENS = 1024
_GROUP_EXAMPLES = 16


@dataclass(frozen=True)
class PieceLayout:
    """The pieces of answers that have reasoning, tool calls, or markers before their text: a row of ``turns`` each."""

    parts: tuple[int, ...]
    """[k] number of each piece's part among all parts of the example's answers; -1 for a marker before any part."""
    texts: tuple[str, ...]
    """[k] text of each piece; empty where it is that of its part."""
    leaves: tuple[tuple[int, int, int, int], ...]
    """For each part of a tool call: piece, number of the part, and its first and last character within the piece."""

    def to_bytes(self) -> bytes:
        """Write the layout as JSON, after its checksum."""
        data = json.dumps([self.parts, self.texts, self.leaves], ensure_ascii=False).encode()
        return zlib.crc32(data).to_bytes(4, "little") + data

    @classmethod
    def from_bytes(cls, data: bytes) -> PieceLayout | None:
        """Read the layout; None where there is none, in a row whose answers are text alone.

        Raises:
            ValueError: the bytes are not what was written.
        """
        if not data:
            return None
        if zlib.crc32(data[4:]).to_bytes(4, "little") != data[:4]:
            raise ValueError("the pieces of an example are damaged (crc32 differs)")
        parts, texts, leaves = json.loads(data[4:])
        return cls(tuple(parts), tuple(texts), tuple((a, b, c, d) for a, b, c, d in leaves))


@dataclass(frozen=True)
class StoredExample:
    """The stored teacher outputs of one example, with its turns and token boundaries."""

    id: str
    """The example's name in its source, or its number."""
    digest: str
    """sha256 of the example's content, 64 hexadecimal digits."""
    turns: Ints
    """[k, 3] int32, a row for each piece of an answer: tokens that spell it, tokens after it that spell no text (those
    that end a turn, or a marker of the chat template), bytes of its text. A plain answer is one piece."""
    spans: Ints
    """[T_text, 2] int64: the bytes of its own turn's answer that each spelling token covers.

    They tile the answer from byte 0; an answer that was cut at ``max_length`` only up to the cut, and then no token
    ends its turn.
    """
    tokens: TeacherTokens
    """Teacher outputs of all answer tokens in order, T_text that spell and those that end a turn."""
    pieces: PieceLayout | None = None
    """What the pieces are; None where each is the text of one answer. Read with the layouts alone."""

    def __post_init__(self) -> None:
        if self.turns.ndim != 2 or self.turns.shape[1] != 3:
            raise ValueError(f"turns must have shape [k, 3], got {list(self.turns.shape)}")
        spelling, ending = int(self.turns[:, 0].sum()), int(self.turns[:, 1].sum())
        if self.spans.shape != (spelling, 2):
            raise ValueError(f"turns have {spelling} spelling tokens, spans have shape {list(self.spans.shape)}")
        if len(self.tokens) != spelling + ending:
            raise ValueError(f"turns have {spelling + ending} tokens, the teacher spoke of {len(self.tokens)}")
        if not np.array_equal(self.spans, spans_of(self.turns, self.spans[:, 1] - self.spans[:, 0])):
            raise ValueError("spans must tile the answer of each turn, from byte 0")


def spans_of(turns: Ints, token_bytes: Ints) -> Ints:
    """Compute [T_text, 2] int64 byte ranges within each turn's answer, from the lengths of its tokens.

    Args:
        turns: [k, 3] rows as in ``StoredExample``.
        token_bytes: [T_text] bytes that each spelling token covers.
    """
    ends = np.cumsum(token_bytes, dtype=np.int64)  # [T_text]
    firsts = np.cumsum(turns[:, 0]) - turns[:, 0]  # [k]
    before = np.concatenate([[0], ends])[firsts]  # [k]
    stops = ends - np.repeat(before, turns[:, 0])  # [T_text]
    return np.stack([stops - token_bytes, stops], axis=1)


def schema(top_ids: int, *, with_pieces: bool = False) -> pa.Schema:
    """Return the Parquet schema of a shard.

    Args:
        top_ids: Number of top-k tokens that its store keeps; 0 for none.
        with_pieces: Whether any of its answers is more than text.
    """
    chosen = _SCHEMA_WITH_TOP if top_ids else SCHEMA
    return chosen.append(pa.field(PIECES_COLUMN, pa.binary(), nullable=False)) if with_pieces else chosen


@dataclass(frozen=True)
class ShardFormat:
    """How the examples of a store become bytes."""

    precision: Precision
    top_ids: int = 0
    """Top-k tokens that are kept of each distribution."""
    top_codec: int = top_tokens_codec.FIRST_VERSION
    """Version of the bytes of top-k tokens."""
    vocab_size: int | None = None
    """Tokens of the teacher's vocabulary, where spectra are rebuilt from the top-k tokens."""


def shard_to_bytes(examples: Iterable[StoredExample], how: ShardFormat) -> bytes:
    """Write examples as the bytes of a Parquet file: the same bytes for the same examples.

    Raises:
        ValueError: an example does not have the top-k tokens that are to be kept.
    """
    examples = list(examples)
    with_pieces = any(example.pieces is not None for example in examples)
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        schema(how.top_ids, with_pieces=with_pieces),
        compression="zstd",
        compression_level=9,
        use_dictionary=False,
        write_statistics=False,
        store_schema=False,
        column_encoding={"log_probs.list.element": "BYTE_STREAM_SPLIT"},
    ) as writer:
        for group in _groups(examples):
            writer.write_table(_table(group, how, with_pieces=with_pieces), row_group_size=len(group))
    return sink.getvalue()


def _groups(examples: Iterable[StoredExample]) -> Iterator[list[StoredExample]]:
    group: list[StoredExample] = []
    tokens = 0
    for example in examples:
        group.append(example)
        tokens += len(example.tokens)
        if len(group) == _GROUP_EXAMPLES or tokens >= _GROUP_TOKENS:
            yield group
            group, tokens = [], 0
    if group:
        yield group


def _table(examples: Sequence[StoredExample], how: ShardFormat, *, with_pieces: bool) -> pa.Table:
    tops = [_top_bytes(example, how) if how.top_ids else None for example in examples]
    said = [example.tokens for example in examples]
    spectra = encode_spectra(said, tops, how.precision, vocab_size=how.vocab_size, deflate=False)
    rows = []
    for example, encoded, top_bytes in zip(examples, spectra, tops, strict=True):
        row = {
            "id": example.id,
            "digest": bytes.fromhex(example.digest),
            "turns": example.turns.astype("<i4").ravel(),
            "token_bytes": (example.spans[:, 1] - example.spans[:, 0]).astype("<i4"),
            "log_probs": np.frombuffer(log_probs_to_bytes(example.tokens), "<f4"),
            "spectra": encoded,
        }
        top = {} if top_bytes is None else {TOP_COLUMN: top_bytes}
        pieces = {PIECES_COLUMN: b"" if example.pieces is None else example.pieces.to_bytes()}
        rows.append({**row, "crc32": _checksum(row), **top, **(pieces if with_pieces else {})})
    return pa.Table.from_pylist(rows, schema=schema(how.top_ids, with_pieces=with_pieces))


def _top_bytes(example: StoredExample, how: ShardFormat) -> bytes:
    if example.tokens.top is None:
        raise ValueError(f"example {example.id!r} has no top-k tokens, {how.top_ids} are to be kept")
    return top_tokens_codec.encode(example.tokens.top.first(how.top_ids), version=how.top_codec, deflate=False)


def _checksum(row: Record) -> int:
    """Compute the crc32 over a row's columns in the schema's order, numbers as little-endian bytes."""
    parts = [
        row["id"].encode(),
        row["digest"],
        row["turns"].tobytes(),
        row["token_bytes"].tobytes(),
        row["log_probs"].tobytes(),
        row["spectra"],
    ]
    return zlib.crc32(b"".join(parts))


LAYOUT_COLUMNS = ("digest", "turns", "token_bytes")


@dataclass(frozen=True)
class Layout:
    """The turns and token boundaries of one stored example, without its outputs: fields as in ``StoredExample``."""

    digest: str
    turns: Ints
    spans: Ints
    pieces: PieceLayout | None


def layouts_of(table: pa.Table) -> list[Layout]:
    """Return the layouts of every row of a table of ``LAYOUT_COLUMNS``, and of ``PIECES_COLUMN`` where it is there."""
    columns = [_values(table.column(name)) for name in LAYOUT_COLUMNS]
    has_pieces = PIECES_COLUMN in table.column_names
    pieces = _values(table.column(PIECES_COLUMN)) if has_pieces else [b""] * len(table)
    layouts = []
    for digest, turns, token_bytes, own in zip(*columns, pieces, strict=True):
        shaped = turns.reshape(-1, 3).astype(np.int32)
        layouts.append(Layout(digest.hex(), shaped, spans_of(shaped, token_bytes), PieceLayout.from_bytes(own)))
    return layouts


Record = dict[str, Any]


def records_of(table: pa.Table, rows: Sequence[int]) -> list[Record]:
    """Extract some rows of a row group as records, verified by their checksums; spectra are not decoded.

    Args:
        table: Row group, with or without ``TOP_COLUMN``.
        rows: Numbers of the rows within it.

    Raises:
        ValueError: a row is not what was written (says which).
    """
    chosen = table.take(pa.array(rows, pa.int64()))
    columns = [_values(chosen.column(name)) for name in table.column_names]
    records = [dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True)]
    for record in records:
        if _checksum(record) != record["crc32"]:
            raise ValueError(f"example {record['id']!r} is damaged (crc32 differs)")
        if TOP_COLUMN in record:
            record[TOP_COLUMN] = top_tokens_codec.decode(record[TOP_COLUMN])
    return records


def examples_of(records: Sequence[Record]) -> list[StoredExample]:
    """Decode records to examples, together: a call costs more than a few examples do."""
    spectra = decode_spectra([record["spectra"] for record in records], [record.get(TOP_COLUMN) for record in records])
    return [_example(record, spectrum) for record, spectrum in zip(records, spectra, strict=True)]


def _values(column: pa.ChunkedArray) -> list[Any]:
    whole = column.combine_chunks()
    if not pa.types.is_list(whole.type):
        return list(whole.to_pylist())
    ends = whole.offsets.to_numpy()
    values = whole.values.to_numpy()
    return [values[begin:end] for begin, end in pairwise(ends)]


def _example(record: Record, spectrum: Any) -> StoredExample:
    turns = record["turns"].reshape(-1, 3).astype(np.int32)
    return StoredExample(
        id=record["id"],
        digest=record["digest"].hex(),
        turns=turns,
        spans=spans_of(turns, record["token_bytes"]),
        tokens=TeacherTokens(spectrum, log_probs_from_bytes(record["log_probs"].tobytes()), record.get(TOP_COLUMN)),
    )
