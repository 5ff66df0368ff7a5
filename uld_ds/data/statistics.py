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
from uld_ds.data.teacher_views import judges, view_of


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
    teachers: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of each of several teachers: the ``examples`` that it judges, and their tokens and segments. Empty with one; the
    figures above are sums over all of them, but for the student's tokens, which are counted once."""

    @property
    def judged_tokens(self) -> int:
        """The student's answer tokens, once for each teacher that judges them."""
        return sum(own["student_tokens"] for own in self.teachers.values()) or self.student_tokens

    @property
    def alignment_rate(self) -> float:
        """Share of the student's answer tokens that begin a segment; NaN of prompts alone."""
        return self.segments / self.judged_tokens if self.judged_tokens else math.nan

    @property
    def student_tokens_per_segment(self) -> float:
        """Mean number of the student's answer tokens per segment; NaN of prompts alone."""
        return self.judged_tokens / self.segments if self.segments else math.nan

    @property
    def teacher_tokens_per_segment(self) -> float:
        """Mean number of the teacher's answer tokens per segment; NaN of prompts alone."""
        return self.teacher_tokens / self.segments if self.segments else math.nan


def facts_of(rows: Dataset, skipped: int) -> DataFacts:
    """Count the facts of paired rows, beside which ``skipped`` others were left out."""
    names = judges(rows)
    counts = {name: _counts(view_of(rows, name)) for name in names}
    return DataFacts(
        examples=len(rows),
        skipped=skipped,
        answer_bytes=sum(rows["answer_bytes"]),
        student_tokens=_spelling(rows, "student_in_text"),
        teacher_tokens=sum(own["teacher_tokens"] for own in counts.values()),
        segments=sum(own["segments"] for own in counts.values()),
        digest=digest_of(rows["digest"]),
        notes=counted(rows["notes"]),
        teachers={} if len(names) == 1 else counts,
    )


def _counts(rows: Dataset) -> dict[str, int]:
    """Count the examples of one teacher's view that it judges, and their tokens and segments in text."""
    columns = ["student_in_text", "student_segments", "teacher_length"]
    examples = student_tokens = segments = 0
    for batch in rows.select_columns(columns).with_format("arrow").iter(batch_size=1024):
        in_text, starts = (batch[name].combine_chunks() for name in columns[:2])
        lengths, tokens = starts.value_lengths().to_numpy(), in_text.value_lengths().to_numpy()
        judged = batch["teacher_length"].to_numpy() > 0
        spells = in_text.flatten().to_numpy(zero_copy_only=False)
        examples += int(judged.sum())
        student_tokens += int(spells[np.repeat(judged, tokens)].sum())
        first_tokens = np.cumsum(tokens) - tokens
        segments += int(spells[starts.flatten().to_numpy() + np.repeat(first_tokens, lengths)].sum())
    return {
        "examples": examples,
        "student_tokens": student_tokens,
        "teacher_tokens": _spelling(rows, "teacher_in_text"),
        "segments": segments,
    }


def _spelling(rows: Dataset, name: str) -> int:
    """Count the tokens of a side that spell answers."""
    batches = rows.select_columns([name]).with_format("arrow").iter(batch_size=1024)
    return sum(int(batch[name].combine_chunks().flatten().to_numpy(zero_copy_only=False).sum()) for batch in batches)


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
