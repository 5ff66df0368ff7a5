"""Rows of text to paired, tokenised examples on disk, once per run."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value, load_from_disk
from transformers import PreTrainedTokenizerBase

from uld_ds.alignment import AlignmentError
from uld_ds.data.encoding import Encoder
from uld_ds.data.pairing import SIDES, PairRow, pair
from uld_ds.data.rendering import Rendered, RenderedTurn, Renderer
from uld_ds.data.sources import Example, as_example, check_columns, load_rows
from uld_ds.errors import UserError
from uld_ds.models import build_once, tokenizer_digest
from uld_ds.recipe import DataSource, Recipe

log = logging.getLogger(__name__)

# Changes whenever the same rows would be prepared otherwise.
PREPARED_FORMAT = 2
ROWS_PER_PROCESS = 2_000
_IDS = List(Value("int32"))
_OF_SIDE = {
    "ids": _IDS,
    "answers": _IDS,
    "in_text": List(Value("bool")),
    "segments": _IDS,
    "segment_stops": _IDS,
    "length": Value("int32"),
}
FEATURES = Features(
    {
        **{f"{side}_{name}": feature for side in SIDES for name, feature in _OF_SIDE.items()},
        "answer_bytes": Value("int32"),
        "prompt": Value("string"),
        "digest": Value("string"),
        "problem": Value("string"),
    }
)


@dataclass(frozen=True)
class DataFacts:
    """What is in a prepared split."""

    examples: int
    skipped: int
    answer_bytes: int
    student_tokens: int
    """That spell answers; what ends a turn is not counted, here and below."""
    teacher_tokens: int
    segments: int
    digest: str

    @property
    def alignment_rate(self) -> float:
        """Share of the student's answer tokens that begin a segment."""
        return self.segments / self.student_tokens

    @property
    def student_tokens_per_segment(self) -> float:
        return self.student_tokens / self.segments

    @property
    def teacher_tokens_per_segment(self) -> float:
        return self.teacher_tokens / self.segments


@dataclass(frozen=True)
class Split:
    """Prepared examples with their facts."""

    rows: Dataset
    facts: DataFacts
    folder: Path

    @classmethod
    def load(cls, folder: Path) -> Split:
        """What ``Preparer.prepare`` has put there."""
        facts = DataFacts(**json.loads((folder / "facts.json").read_text()))
        return cls(load_from_disk(str(folder / "rows")), facts, folder)


class Preparer:
    """Renders, encodes and pairs rows for one student and one teacher."""

    def __init__(self, recipe: Recipe, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
        self._recipe = recipe
        self._render_student = Renderer(student, recipe.student, "student")
        self._render_teacher = Renderer(teacher, recipe.teacher, "teacher")
        self._encode_student = Encoder(student, uses_chat_template=self._render_student.uses_chat_template)
        self._encode_teacher = Encoder(teacher, uses_chat_template=self._render_teacher.uses_chat_template)
        # A text template has no place for the answers of earlier turns.
        chats = self._render_student.uses_chat_template and self._render_teacher.uses_chat_template
        self._all_turns = chats and recipe.data.turns == "all"
        self._tokenizers = {"student": tokenizer_digest(student), "teacher": tokenizer_digest(teacher)}

    def prepare(self, source: DataSource, key: str, cache: Path) -> Split:
        """The split, made now unless ``cache`` holds what these rows, tokenizers and settings give.

        Raises:
            UserError: a missing column, an unusable row under ``on_bad_row: error``, or no usable row.
        """
        rows = load_rows(source, key)
        check_columns(rows, self._recipe.data.columns, key)

        def build(aside: Path) -> None:
            working = aside / "working"
            working.mkdir()
            usable, skipped = self._usable(rows, key, working)
            usable.save_to_disk(aside / "rows")
            shutil.rmtree(working)
            (aside / "facts.json").write_text(json.dumps(asdict(_facts(usable, skipped)), indent=1))

        return Split.load(build_once(cache / self._content_key(rows), build))

    def _content_key(self, rows: Dataset) -> str:
        """Of everything that shapes the result, and of nothing else."""
        recipe = self._recipe
        settings = {
            "format": PREPARED_FORMAT,
            "tokenizers": self._tokenizers,
            "alignment": recipe.objective.alignment,
            "data": recipe.data.model_dump(mode="json", include={"columns", "turns", "on_bad_row"}),
            **{
                side: getattr(recipe, side).model_dump(include={"prompt_template", "system_prompt", "max_length"})
                for side in SIDES
            },
        }
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        digest.update(content_digest(rows).encode())
        return digest.hexdigest()[:32]

    def _usable(self, rows: Dataset, key: str, working: Path) -> tuple[Dataset, int]:
        prepared = rows.map(
            self._batch,
            batched=True,
            batch_size=256,
            with_indices=True,
            remove_columns=rows.column_names,
            features=FEATURES,
            load_from_cache_file=False,
            # Not where datasets would put it: a run with other tokenizers may be there at the same time.
            cache_file_name=str(working / "rows.arrow"),
            num_proc=self._num_processes(len(rows)),
            new_fingerprint=hashlib.sha256(f"{rows._fingerprint}{key}".encode()).hexdigest()[:16],
        )
        problems = [(i, problem) for i, problem in enumerate(prepared["problem"]) if problem]
        if problems and self._recipe.data.on_bad_row == "error":
            index, problem = problems[0]
            raise UserError(
                key,
                f"row {index}: {problem} ({len(problems)} unusable of {len(prepared)})",
                "repair the row, or leave such rows out with data.on_bad_row=skip",
            )
        bad = {index for index, _ in problems}
        if len(bad) == len(prepared):
            raise UserError(key, f"none of {len(prepared)} rows is usable: {problems[0][1]}", "repair the data")
        if bad:
            log.warning("%s: %d of %d rows left out, e.g. row %d: %s", key, len(bad), len(prepared), *problems[0])
            prepared = prepared.select([i for i in range(len(prepared)) if i not in bad])
        return prepared.remove_columns("problem"), len(bad)

    def _num_processes(self, num_rows: int) -> int | None:
        """For ``datasets``: None is this process alone."""
        chosen = self._recipe.data.workers
        # To start a process and hand it both tokenizers takes as long as preparing a thousand rows or two.
        number = chosen or min(num_cores(), num_rows // ROWS_PER_PROCESS)
        return min(number, num_rows) if number > 1 else None

    def _batch(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        results: list[dict[str, Any]] = []
        good: list[tuple[int, Example, Rendered, Rendered]] = []
        for offset in range(len(indices)):
            results.append({name: _blank(feature) for name, feature in FEATURES.items()})
            try:
                values = {name: column[offset] for name, column in batch.items()}
                example = as_example(values, self._recipe.data.columns)
                if not self._all_turns:
                    example = example.only_last()
                sides = _same_answers(self._render_student(example), self._render_teacher(example))
                good.append((offset, example, *sides))
            except ValueError as error:
                results[-1]["problem"] = str(error)
        for offset, example, row in self._pairs(good, results):
            content = json.dumps(example.messages, ensure_ascii=False, sort_keys=True)
            digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()
            results[offset].update(row, prompt=self._render_student.prompt(example), digest=digest)
        return {name: [result[name] for result in results] for name in FEATURES}

    def _pairs(
        self, good: list[tuple[int, Example, Rendered, Rendered]], results: list[dict[str, Any]]
    ) -> list[tuple[int, Example, PairRow]]:
        try:
            student = self._encode_student([item[2] for item in good])
            teacher = self._encode_teacher([item[3] for item in good])
        except AlignmentError:
            if len(good) == 1:
                raise
            # Find out which of them it was, one at a time.
            return [pair for item in good for pair in self._pair_alone(item, results)]
        paired = []
        for (offset, example, _, _), student_side, teacher_side in zip(good, student, teacher, strict=True):
            try:
                row = pair(
                    student_side,
                    teacher_side,
                    alignment=self._recipe.objective.alignment,
                    student_max=self._recipe.student.max_length,
                    teacher_max=self._recipe.teacher.max_length,
                )
                paired.append((offset, example, row))
            except ValueError as error:
                results[offset]["problem"] = str(error)
        return paired

    def _pair_alone(
        self, item: tuple[int, Example, Rendered, Rendered], results: list[dict[str, Any]]
    ) -> list[tuple[int, Example, PairRow]]:
        try:
            return self._pairs([item], results)
        except AlignmentError as error:
            results[item[0]]["problem"] = str(error)
            return []


def _same_answers(student: Rendered, teacher: Rendered) -> tuple[Rendered, Rendered]:
    """Narrows both sides to the answers without surrounding white space when one template trims it."""
    if student.shown() == teacher.shown():
        return student, teacher
    return _stripped(student), _stripped(teacher)


def _stripped(rendered: Rendered) -> Rendered:
    turns = []
    for turn, shown in zip(rendered.turns, rendered.shown(), strict=True):
        start = turn.start + len(shown) - len(shown.lstrip())
        turns.append(RenderedTurn(start, start + len(shown.strip()), turn.end))
    return Rendered(rendered.text, tuple(turns))


def _blank(feature: Any) -> Any:
    if isinstance(feature, List):
        return np.zeros(0, feature.feature.dtype)  # of the same type as the lists beside it
    return "" if feature.dtype == "string" else 0


def _facts(rows: Dataset, skipped: int) -> DataFacts:
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
        digest=hashlib.sha256("\n".join(rows["digest"]).encode()).hexdigest(),
    )


def content_digest(rows: Dataset) -> str:
    """sha256 over the values of all columns, whatever file or process they come from."""
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


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
