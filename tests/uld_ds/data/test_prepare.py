"""Rows of text become paired examples on disk, once; an unusable row is named or left out."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from tests.helpers.toy_tokenizers import CHAT_TEMPLATE, TRIMMING_TEMPLATE, texts, toy
from uld_ds.data import prepare as prepare_module
from uld_ds.data.prepare import Preparer
from uld_ds.data.prepared import Split
from uld_ds.data.statistics import content_digest
from uld_ds.errors import UserError
from uld_ds.recipe import Recipe, parse_recipe

STUDENT = toy("ab", chat_template=CHAT_TEMPLATE)
TEACHER = toy("bc", chat_template=TRIMMING_TEMPLATE)
GOOD = {"prompt": "q", "answer": "abc"}


def recipe(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> Recipe:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tree: dict[str, Any] = {
        "run": {"name": "x"},
        "teacher": {"model": "t"},
        "student": {"model": "s"},
        "data": {"train": {"source": "files", "path": str(tmp_path / "rows.jsonl")}},
        "training": {"steps": 1},
    }
    for dotted, value in changes.items():
        section, _, key = dotted.partition("__")
        tree.setdefault(section, {})[key] = value
    return parse_recipe(tree)


def prepare(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> Split:
    chosen = recipe(tmp_path, rows, **changes)
    return Preparer(chosen, STUDENT, TEACHER).prepare(chosen.data.train, "data.train", tmp_path / "prepared")


def refusal(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        prepare(tmp_path, rows, **changes)
    # No half of a split, and nothing aside.
    assert not list((tmp_path / "prepared").glob("*"))
    return str(caught.value)


PREPARED = ["bad_examples.json", "facts.json", "notes.json", "rows"]


def test_a_row_by_hand(tmp_path: Path) -> None:
    split = prepare(tmp_path, [GOOD])
    row = split.rows[0]
    assert texts(STUDENT, row["student_ids"]) == ["<user>", "q", "</s>", "\n", "<assistant>", "ab", "c", "</s>"]
    assert texts(TEACHER, row["teacher_ids"]) == ["<user>", "q", "</s>", "\n", "<assistant>", "a", "bc", "</s>"]
    assert (row["student_answers"], row["student_length"]) == ([5, 6, 7], 8)
    assert row["student_in_text"] == row["teacher_in_text"] == [True, True, False]
    assert row["student_segments"] == row["teacher_segments"] == [0, 2]
    assert row["student_segment_stops"] == row["teacher_segment_stops"] == [2, 3]
    assert row["answer_bytes"] == 3
    assert row["prompt"] == "<user>q</s>\n<assistant>"


def test_facts_add_up(tmp_path: Path) -> None:
    split = prepare(
        tmp_path, [GOOD, {"prompt": "q", "answer": "dü"}, {"prompt": "q", "answer": ""}], data__on_bad_example="skip"
    )
    facts = split.facts
    assert (facts.examples, facts.skipped, facts.answer_bytes) == (2, 1, 3 + 3)
    assert (facts.student_tokens, facts.teacher_tokens) == (2 + 3, 2 + 3)
    # Segments that begin inside the answer: one of 2 tokens, then 3 of 3.
    assert (facts.segments, facts.alignment_rate) == (4, 4 / 5)
    assert (facts.student_tokens_per_segment, facts.teacher_tokens_per_segment) == (5 / 4, 5 / 4)
    assert "problem" not in split.rows.column_names


def test_a_template_that_trims_on_one_side_narrows_both(tmp_path: Path) -> None:
    row = prepare(tmp_path, [{"prompt": "q", "answer": " abc \n"}]).rows[0]
    assert row["answer_bytes"] == 3
    tokens = texts(STUDENT, [row["student_ids"][i] for i in row["student_answers"]])
    assert tokens == ["ab", "c", " ", "\n", "</s>"]
    assert row["student_in_text"] == [True, True, False, False, False]


def test_what_is_prepared_is_not_prepared_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(tmp_path, [GOOD])
    assert sorted(item.name for item in first.folder.iterdir()) == PREPARED
    other = prepare(tmp_path, [GOOD, GOOD])
    assert (other.facts.examples, first.folder == other.folder) == (2, False)
    # The same content is found again, from wherever it comes and whatever else the recipe says.
    monkeypatch.setattr(prepare_module, "_usable", None)
    (tmp_path / "elsewhere").mkdir()
    chosen = recipe(tmp_path / "elsewhere", [GOOD], training__batch_size=4)
    again = Preparer(chosen, STUDENT, TEACHER).prepare(chosen.data.train, "data.train", tmp_path / "prepared")
    assert again.folder == first.folder
    assert again.rows.to_list() == first.rows.to_list()


@pytest.mark.parametrize(
    "change",
    [
        {"student__max_length": 512},
        {"teacher__system_prompt": "s"},
        {"student__prompt_template": "{prompt}"},
        {"objective__alignment": "positional"},
        {"data__on_bad_example": "skip"},
    ],
    ids=str,
)
def test_whatever_shapes_prepared_data_is_part_of_its_name(tmp_path: Path, change: dict[str, Any]) -> None:
    assert prepare(tmp_path, [GOOD]).folder != prepare(tmp_path, [GOOD], **change).folder


def test_another_tokenizer_is_other_data(tmp_path: Path) -> None:
    chosen = recipe(tmp_path, [GOOD])
    folders = {
        Preparer(chosen, student, TEACHER).prepare(chosen.data.train, "data.train", tmp_path / "prepared").folder
        for student in (STUDENT, toy("bc", chat_template=CHAT_TEMPLATE), toy("ab", chat_template=TRIMMING_TEMPLATE))
    }
    assert len(folders) == 3


def test_several_processes_prepare_the_same(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "answer": "abc" * (i % 7 + 1)} for i in range(40)]
    alone = prepare(tmp_path, rows)
    shutil.rmtree(tmp_path / "prepared")
    environment = os.environ
    together = prepare(tmp_path, rows, data__workers=3)
    assert os.environ is environment  # datasets leaves a copy, which whoever holds the first one does not see
    assert together.folder == alone.folder
    assert together.rows.to_list() == alone.rows.to_list()
    assert together.facts == alone.facts
    assert sorted(item.name for item in together.folder.iterdir()) == PREPARED


def test_content_digest_sees_values_and_nothing_else() -> None:
    rows = Dataset.from_list([{"a": "x", "b": [1, 2]}, {"a": "yz", "b": []}, {"a": "x", "b": [3]}])
    digest = content_digest(rows)
    assert content_digest(rows.select([0, 1, 2])) == digest
    assert content_digest(Dataset.from_list(rows.to_list())) == digest
    assert content_digest(rows.select([0, 2, 1])) != digest
    assert content_digest(rows.select([0, 1])) != digest
    assert content_digest(rows.rename_column("a", "c")) != digest


def test_digest_tells_conversations_apart(tmp_path: Path) -> None:
    rows = [GOOD, GOOD, {"prompt": "q!", "answer": "abc"}, {"prompt": "q", "answer": "abx"}]
    digests = prepare(tmp_path, rows).rows["digest"]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_an_unusable_row_stops_the_run(tmp_path: Path) -> None:
    rows = [GOOD, {"prompt": "q", "answer": " "}, {"prompt": "q", "answer": None}]
    assert refusal(tmp_path, rows) == (
        "data.train: row 1: the answer is empty (2 unusable of 3); "
        "repair the row, or leave such rows out with data.on_bad_example=skip"
    )


def test_an_unusable_row_is_left_out_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = prepare(tmp_path, [{"prompt": "q", "answer": " "}, GOOD], data__on_bad_example="skip")
    assert (len(split.rows), split.facts.examples, split.facts.skipped) == (1, 1, 1)
    assert caplog.messages == ["data.train: 1 of 2 rows left out, e.g. row 0: the answer is empty"]


@pytest.mark.parametrize("on_bad_example", ["error", "skip"])
def test_no_usable_row_at_all(tmp_path: Path, on_bad_example: str) -> None:
    text = refusal(tmp_path, [{"prompt": "q", "answer": ""}] * 2, data__on_bad_example=on_bad_example)
    assert text.startswith(
        "data.train: row 0: the answer is empty (2 unusable of 2); "
        if on_bad_example == "error"
        else "data.train: none of 2 rows is usable: the answer is empty; repair the data"
    )


def test_a_missing_column(tmp_path: Path) -> None:
    assert refusal(tmp_path, [{"question": "q", "answer": "a"}]) == (
        "data.columns.prompt: data.train has no column 'prompt'; set it to one of the columns there: question, answer"
    )


def test_max_length_of_either_side(tmp_path: Path) -> None:
    long = {"prompt": "q", "answer": "abc" * 4}
    row = prepare(tmp_path, [long], student__max_length=10).rows[0]
    assert (row["student_length"], row["teacher_length"], row["answer_bytes"]) == (9, 9, 6)
    text = refusal_elsewhere(tmp_path, [{"prompt": "q" * 20, "answer": "abc"}], teacher__max_length=20)
    assert text.startswith(
        "data.train: row 0: nothing of the answer fits: the prompt takes 24 of 1024 student tokens, "
        "24 of 20 teacher tokens (max_length) (1 unusable of 1); "
    )


def refusal_elsewhere(tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> str:
    (tmp_path / "other").mkdir()
    return refusal(tmp_path / "other", rows, **changes)


def answered(row: dict[str, Any]) -> list[str]:
    return texts(STUDENT, [row["student_ids"][i] for i in row["student_answers"]])


def test_messages_with_several_turns(tmp_path: Path) -> None:
    chat = [("user", "q"), ("assistant", "abc"), ("user", "r"), ("assistant", "ab"), ("user", "s")]
    rows = [{"chat": [{"role": role, "content": content} for role, content in chat]}]
    columns = {"messages": "chat"}
    split = prepare(tmp_path, rows, data__columns=columns)
    row = split.rows[0]
    assert row["prompt"] == "<user>q</s>\n<assistant>abc</s>\n<user>r</s>\n<assistant>"
    assert answered(row) == ["ab", "c", "</s>", "ab", "</s>"]
    # bytes abc: ab|c against a|bc; ab: ab against a|b; and both ends.
    assert row["student_segments"] == [0, 2, 3, 4]
    assert row["teacher_segments"] == [0, 2, 3, 5]
    assert row["teacher_segment_stops"] == [2, 3, 5, 6]
    assert (split.facts.answer_bytes, split.facts.student_tokens, split.facts.segments) == (5, 3, 2)
    last = prepare(tmp_path, rows, data__columns=columns, data__turns="last").rows[0]
    assert (answered(last), last["answer_bytes"]) == (["ab", "</s>"], 2)
    # A text template has no place for earlier answers, so there the last one is the only one, on both sides.
    plain = prepare(tmp_path, rows, data__columns=columns, teacher__prompt_template="{prompt}:").rows[0]
    assert (answered(plain), plain["answer_bytes"]) == (["ab", "</s>"], 2)
    assert texts(TEACHER, plain["teacher_ids"])[-4:] == [":", "a", "b", "</s>"]


def test_what_was_noticed_is_said_by_every_run_of_the_same_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        caplog.clear()
        split = prepare(tmp_path, [GOOD, {"prompt": "say </s>", "answer": "ab"}])
        assert [record.message for record in caplog.records if "special tokens" in record.message] == [
            f"data.train: 1 of 2 examples hold special tokens of the {side}'s tokenizer in the text of messages, which "
            "become control tokens (data.special_tokens: text makes text of them)"
            for side in ("student", "teacher")
        ]
        assert split.facts.notes == {"student_typed": 1, "teacher_typed": 1}
