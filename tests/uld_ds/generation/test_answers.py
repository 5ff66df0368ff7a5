"""Prompts are asked once, held out by what they ask, and answered once; what is kept is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset

from tests.helpers.toy_tokenizers import CHAT_TEMPLATE, toy
from uld_ds.data.examples import ExampleReader
from uld_ds.data.sides import TextSide
from uld_ds.errors import RunError, UserError
from uld_ds.generation.answers import AnswerFolder, write_part
from uld_ds.generation.decoding import Answer
from uld_ds.generation.prompts import Prompts, batches_by_length, collect_prompts
from uld_ds.recipe import DataSettings, FilesSource, ModelSettings

SQUAD = Path(__file__).parents[2] / "fixtures" / "tasks" / "squad.jsonl"
IDENTITY = {"teacher": "t", "max_new_tokens": 4}


def reader(task: str | None = None, **options: Any) -> ExampleReader:
    return ExampleReader(DataSettings(train=FilesSource(source="files", path="x"), task=task, **options))


def collect(
    rows: Dataset, task: str | None = None, *, max_tokens: int = 5000, on_bad_example: str = "error"
) -> Prompts:
    side = TextSide(toy(chat_template=CHAT_TEMPLATE), ModelSettings(model="x"), "teacher")
    return collect_prompts(
        rows, reader(task), side, max_tokens=max_tokens, on_bad_example=on_bad_example, key="data.train"
    )


def asking(*prompts: Any) -> Dataset:
    return Dataset.from_list([{"prompt": prompt} for prompt in prompts])


def test_prompts_do_not_depend_on_the_order_of_rows() -> None:
    rows = load_dataset("json", data_files=str(SQUAD), split="train")
    forward = collect(rows, "squad")
    backward = collect(rows.select(range(len(rows) - 1, -1, -1)), "squad")
    assert len(forward.kept) == 12
    assert [(p.id, p.question, p.ids.tolist()) for p in forward.kept] == [
        (p.id, p.question, p.ids.tolist()) for p in backward.kept
    ]
    assert [p.row for p in forward.kept] == [11 - p.row for p in backward.kept]
    batches = [[p.id for p in batch] for batch in batches_by_length(forward.kept, 5)]
    assert batches == [[p.id for p in batch] for batch in batches_by_length(backward.kept, 5)]
    assert list(map(len, batches)) == [5, 5, 2]


def test_the_teachers_prompt_decides_the_answer_the_question_what_is_held_out() -> None:
    rows = load_dataset("json", data_files=str(SQUAD), split="train")
    side = TextSide(toy(chat_template=CHAT_TEMPLATE), ModelSettings(model="x"), "teacher")
    few, none = (
        collect_prompts(
            rows, reader("squad", shots=shots), side, max_tokens=9999, on_bad_example="error", key="data.train"
        ).kept
        for shots in (3, 0)
    )
    assert [p.question for p in few] == [p.question for p in none]
    assert not {p.id for p in few} & {p.id for p in none}
    assert all(len(more.ids) > len(less.ids) for more, less in zip(few, none, strict=True))


def test_held_out_is_a_share_of_all_questions() -> None:
    prompts = collect(asking(*map(str, range(4000)))).kept
    held_out = {p.question for p in prompts if p.is_held_out(0.1)}
    assert 340 < len(held_out) < 460  # 400 expected, standard deviation 19
    assert held_out <= {p.question for p in prompts if p.is_held_out(0.2)}
    assert not any(p.is_held_out(0.0) for p in prompts)
    # The same questions again among others: on the same side.
    again = collect(asking(*map(str, range(3000, 5000)))).kept
    shared = {p.question for p in prompts} & {p.question for p in again}
    assert len(shared) == 1000
    assert {p.question for p in again if p.is_held_out(0.1)} & shared == held_out & shared


def test_rows_that_are_not_asked_are_counted() -> None:
    found = collect(asking("a", "b" * 50, "a", None, "c"), max_tokens=40, on_bad_example="skip")
    assert (found.rows, found.duplicates, found.too_long, found.unusable, len(found.kept)) == (5, 1, 1, 1, 2)
    with pytest.raises(UserError, match=r"^data.train: row 1: column 'prompt' holds NoneType, not text; repair"):
        collect(asking("a", None))
    with pytest.raises(
        UserError, match=r"^data.train: no usable row among 1: every prompt is longer than the 3 tokens that"
    ):
        collect(asking("abcdef"), max_tokens=3)


def answered(folder: Path, prompts: Prompts, answers: list[Answer]) -> AnswerFolder:
    files = AnswerFolder(folder, IDENTITY)
    write_part(files.parts, [p.id for p in prompts.kept], answers)
    return files


def test_what_is_kept(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"prompt": str(n), "answer": "human", "n": n} for n in range(6)])
    prompts = collect(rows)
    answers = [Answer(f"said {p.row}", 2, "stop") for p in prompts.kept]
    empty, cut = prompts.kept[1].row, prompts.kept[4].row
    answers[1], answers[4] = Answer("", 1, "stop"), Answer("said too m", 4, "length")
    files = answered(tmp_path, prompts, answers)
    facts = files.finish(rows, prompts, ["empty", "truncated"], 0.0, {"teacher": "t"})
    assert {name: facts[name] for name in ("prompts", "empty", "truncated", "dropped", "train", "held_out")} == {
        "prompts": 6, "empty": 1, "truncated": 1, "dropped": 2, "train": 4, "held_out": 0
    }  # fmt: skip
    assert facts["tokens"] == 4 * 2 + 1 + 4
    assert not (tmp_path / "held_out.parquet").exists()
    table = pq.read_table(tmp_path / "train.parquet")
    assert table.column_names == [
        "prompt", "answer", "n", "teacher_answer", "teacher_model", "teacher_finish", "teacher_tokens", "prompt_digest"
    ]  # fmt: skip
    assert {row["n"]: row["teacher_answer"] for row in table.to_pylist()} == {
        n: f"said {n}" for n in range(6) if n not in (empty, cut)
    }
    assert json.loads(table.schema.metadata[b"uld_ds"]) == {"teacher": "t"}
    assert json.loads((tmp_path / "provenance.json").read_text()) == facts
    # Rules may change without asking again.
    facts = files.finish(rows, prompts, [], 0.5, {"teacher": "t"})
    assert facts["train"] + facts["held_out"] == 6 and facts["held_out"] > 0
    split = {
        name: {row["prompt_digest"] for row in pq.read_table(tmp_path / f"{name}.parquet").to_pylist()}
        for name in ("train", "held_out")
    }
    assert not split["train"] & split["held_out"]
    with pytest.raises(RunError, match=r"^none of 1 answers is left \(1 empty, 0 truncated\)"):
        lonely = collect(asking("alone"))
        answered(tmp_path / "b", lonely, [Answer("", 1, "stop")]).finish(
            asking("alone"), lonely, ["empty"], 0.0, {"teacher": "t"}
        )


def test_the_same_bytes_whatever_the_order(tmp_path: Path) -> None:
    rows = Dataset.from_list([{"prompt": str(n)} for n in range(9)])
    for name, order in {"a": range(9), "b": range(8, -1, -1)}.items():
        ordered = rows.select(order)
        prompts = collect(ordered)
        files = AnswerFolder(tmp_path / name, IDENTITY)
        for batch in batches_by_length(prompts.kept, 4):
            said = [Answer(f"to {ordered[p.row]['prompt']}", 1, "stop") for p in batch]
            write_part(files.parts, [p.id for p in batch], said)
        files.finish(ordered, prompts, ["empty"], 0.3, {"teacher": "t"})
    for split in ("train", "held_out"):
        one, other = ((tmp_path / name / f"{split}.parquet").read_bytes() for name in "ab")
        assert one == other


def test_answers_of_another_teacher_are_refused(tmp_path: Path) -> None:
    AnswerFolder(tmp_path, IDENTITY)
    AnswerFolder(tmp_path, IDENTITY)
    with pytest.raises(UserError) as caught:
        AnswerFolder(tmp_path, IDENTITY | {"max_new_tokens": 8})
    assert str(caught.value) == (
        f"generation.output: {str(tmp_path)!r} holds answers with max_new_tokens 4, not 8; "
        "name another folder, or remove that one"
    )


def test_a_part_that_was_cut_short_is_not_there(tmp_path: Path) -> None:
    prompts = collect(asking("a"))
    files = answered(tmp_path, prompts, [Answer("x", 1, "stop")])
    (files.parts / ".0123.parquet.77").write_bytes(b"half")
    assert files.known() == {prompts.kept[0].id: Answer("x", 1, "stop")}
