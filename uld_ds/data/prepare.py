"""Rows of text to paired, tokenised examples on disk, once per run."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value, load_from_disk
from transformers import PreTrainedTokenizerBase

from uld_ds.alignment import AlignmentError
from uld_ds.data.encoding import Encoder
from uld_ds.data.pairing import PairRow, pair
from uld_ds.data.rendering import Rendered, Renderer
from uld_ds.data.sources import Example, as_example, check_columns, load_rows
from uld_ds.errors import UserError
from uld_ds.models import build_once
from uld_ds.recipe import DataSource, Recipe

log = logging.getLogger(__name__)

SIDES = ("student", "teacher")
_IDS = List(Value("int32"))
FEATURES = Features(
    {
        **{f"{side}_{name}": _IDS for side in SIDES for name in ("ids", "segments")},
        **{f"{side}_{name}": Value("int32") for side in SIDES for name in ("length", "first", "stop")},
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
    teacher_tokens: int
    alignment_rate: float
    digest: str


@dataclass(frozen=True)
class Split:
    """Prepared examples with their facts."""

    rows: Dataset
    facts: DataFacts


class Preparer:
    """Renders, encodes and pairs rows for one student and one teacher."""

    def __init__(self, recipe: Recipe, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> None:
        self._recipe = recipe
        self._render_student = Renderer(student, recipe.student, "student")
        self._render_teacher = Renderer(teacher, recipe.teacher, "teacher")
        self._encode_student = Encoder(student, uses_chat_template=self._render_student.uses_chat_template)
        self._encode_teacher = Encoder(teacher, uses_chat_template=self._render_teacher.uses_chat_template)

    def prepare(self, source: DataSource, key: str, target: Path) -> Split:
        """The split at ``target``, made now unless it is there.

        Raises:
            UserError: a missing column, an unusable row under ``on_bad_row: error``, or no usable row.
        """

        def build(aside: Path) -> None:
            working_file = aside / "working.arrow"
            rows, skipped = self._usable(load_rows(source, key), key, working_file)
            rows.save_to_disk(aside / "rows")
            working_file.unlink()
            facts = _facts(rows, skipped)
            (aside / "facts.json").write_text(json.dumps(facts.__dict__, indent=1))

        build_once(target, build)
        facts = DataFacts(**json.loads((target / "facts.json").read_text()))
        return Split(load_from_disk(str(target / "rows")), facts)

    def _usable(self, rows: Dataset, key: str, working_file: Path) -> tuple[Dataset, int]:
        check_columns(rows, self._recipe.data.columns, key)
        prepared = rows.map(
            self._batch,
            batched=True,
            batch_size=256,
            with_indices=True,
            remove_columns=rows.column_names,
            features=FEATURES,
            load_from_cache_file=False,
            # Not where datasets would put it: a run with other tokenizers may be there at the same time.
            cache_file_name=str(working_file),
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

    def _batch(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        results: list[dict[str, Any]] = []
        good: list[tuple[int, Example, Rendered, Rendered]] = []
        for offset in range(len(indices)):
            results.append({name: _blank(feature) for name, feature in FEATURES.items()})
            try:
                example = as_example(
                    {name: column[offset] for name, column in batch.items()}, self._recipe.data.columns
                )
                good.append(
                    (
                        offset,
                        example,
                        *_same_answer(self._render_student(example), self._render_teacher(example)),
                    )
                )
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


def _same_answer(student: Rendered, teacher: Rendered) -> tuple[Rendered, Rendered]:
    """Narrows both sides to the answer without surrounding white space when one template trims it."""
    if student.text[student.start : student.stop] == teacher.text[teacher.start : teacher.stop]:
        return student, teacher
    return _stripped(student), _stripped(teacher)


def _stripped(rendered: Rendered) -> Rendered:
    shown = rendered.text[rendered.start : rendered.stop]
    start = rendered.start + len(shown) - len(shown.lstrip())
    stop = start + len(shown.strip())
    return Rendered(rendered.text, start, stop)


def _blank(feature: Any) -> Any:
    if isinstance(feature, List):
        return np.zeros(0, np.int32)  # of the same type as the lists beside it
    return "" if feature.dtype == "string" else 0


def _facts(rows: Dataset, skipped: int) -> DataFacts:
    table = rows.with_format("numpy")
    student_tokens = int((table["student_stop"][:] - table["student_first"][:]).sum())
    teacher_tokens = int((table["teacher_stop"][:] - table["teacher_first"][:]).sum())
    begun = sum(
        int(np.count_nonzero(row["student_segments"] < row["student_stop"]))
        for row in table.select_columns(["student_segments", "student_stop"])
    )
    return DataFacts(
        examples=len(rows),
        skipped=skipped,
        answer_bytes=int(table["answer_bytes"][:].sum()),
        student_tokens=student_tokens,
        teacher_tokens=teacher_tokens,
        alignment_rate=begun / student_tokens,
        digest=hashlib.sha256("\n".join(rows["digest"]).encode()).hexdigest(),
    )
