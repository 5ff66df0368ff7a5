"""Figures about prepared examples, and digests of examples and rows."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, load_from_disk

from uld_ds.data.notes import counted


@dataclass(frozen=True)
class DataFacts:
    """Figures about a prepared split."""

    examples: int
    skipped: int
    answer_bytes: int
    student_tokens: int
    """The student's tokens that spell answers; those that end a turn are not counted."""
    teacher_tokens: int
    """The teacher's tokens that spell answers; those that end a turn are not counted."""
    segments: int
    """Segments of answers' text; those that end a turn are not counted."""
    digest: str
    """``digest_of`` the examples in order."""
    notes: dict[str, int] = field(default_factory=dict)
    """Number of examples of each of ``uld_ds.data.notes.NOTES``."""

    @property
    def alignment_rate(self) -> float:
        """Share of the student's answer tokens that begin a segment; NaN of prompts alone."""
        return self.segments / self.student_tokens if self.student_tokens else math.nan

    @property
    def student_tokens_per_segment(self) -> float:
        """Mean number of the student's answer tokens per segment; NaN of prompts alone."""
        return self.student_tokens / self.segments if self.segments else math.nan

    @property
    def teacher_tokens_per_segment(self) -> float:
        """Mean number of the teacher's answer tokens per segment; NaN of prompts alone."""
        return self.teacher_tokens / self.segments if self.segments else math.nan


def facts_of(rows: Dataset, skipped: int) -> DataFacts:
    """Count the facts of paired rows, beside which ``skipped`` others were left out."""
    columns = ["student_in_text", "teacher_in_text", "student_segments", "answer_bytes"]
    student_tokens = teacher_tokens = segments = num_bytes = 0
    for batch in rows.select_columns(columns).with_format("arrow").iter(batch_size=1024):
        in_text, starts = (batch[name].combine_chunks() for name in ("student_in_text", "student_segments"))
        lengths = starts.value_lengths().to_numpy()
        first_tokens = np.cumsum(in_text.value_lengths().to_numpy()) - in_text.value_lengths().to_numpy()
        spells = in_text.flatten().to_numpy(zero_copy_only=False)
        student_tokens += int(spells.sum())
        segments += int(spells[starts.flatten().to_numpy() + np.repeat(first_tokens, lengths)].sum())
        teacher_tokens += int(batch["teacher_in_text"].combine_chunks().flatten().to_numpy(zero_copy_only=False).sum())
        num_bytes += int(batch["answer_bytes"].to_numpy().sum())
    return DataFacts(
        examples=len(rows),
        skipped=skipped,
        answer_bytes=num_bytes,
        student_tokens=student_tokens,
        teacher_tokens=teacher_tokens,
        segments=segments,
        digest=digest_of(rows["digest"]),
        notes=counted(rows["notes"]),
    )


def facts_of_prompts(rows: Dataset, skipped: int) -> DataFacts:
    """Count the facts of prompts, which have no answers yet; beside them ``skipped`` others were left out."""
    return DataFacts(len(rows), skipped, 0, 0, 0, 0, digest_of(rows["digest"]))


def digest_of(digests: Iterable[str]) -> str:
    """Compute the digest of examples in order, from the digests of each."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def rows_digest(folder: Path) -> str:
    """Compute the digest of the examples prepared in a folder."""
    return digest_of(load_from_disk(str(folder / "rows"))["digest"])


def content_digest(rows: Dataset) -> str:
    """Compute the sha256 over the values of all columns, whatever file or process they come from."""
    digest = hashlib.sha256()

    class Sink(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any, /) -> int:
            digest.update(data)
            return len(memoryview(data).cast("B"))

    # Through plain batches: how a table is cut, sliced or indexed must not show.
    writer = None
    for batch in rows.with_format("arrow").iter(batch_size=1024):
        table = batch.combine_chunks().replace_schema_metadata(None)
        if writer is None:
            writer = pa.ipc.new_stream(pa.PythonFile(Sink(), mode="w"), table.schema)
        writer.write_table(table)
    if writer is not None:
        writer.close()
    return digest.hexdigest()
