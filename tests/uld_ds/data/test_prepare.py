"""Rows of text become paired examples on disk, once; an unusable row is named or left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.uld_ds.data.toy import CHAT_TEMPLATE, TRIMMING_TEMPLATE, texts, toy
from uld_ds.data.prepare import Preparer, Split
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
    assert not (tmp_path / "prepared").exists()
    assert [item.name for item in tmp_path.iterdir()] == ["rows.jsonl"]
    return str(caught.value)


def test_a_row_by_hand(tmp_path: Path) -> None:
    split = prepare(tmp_path, [GOOD])
    row = split.rows[0]
    assert texts(STUDENT, row["student_ids"]) == ["<user>", "q", "</s>", "\n", "<assistant>", "ab", "c", "</s>"]
    assert texts(TEACHER, row["teacher_ids"]) == ["<user>", "q", "</s>", "\n", "<assistant>", "a", "bc", "</s>"]
    assert (row["student_first"], row["student_stop"], row["student_length"]) == (5, 7, 8)
    assert row["student_segments"] == row["teacher_segments"] == [5, 7]
    assert row["answer_bytes"] == 3
    assert row["prompt"] == "<user>q</s>\n<assistant>"


def test_facts_add_up(tmp_path: Path) -> None:
    split = prepare(
        tmp_path, [GOOD, {"prompt": "q", "answer": "dü"}, {"prompt": "q", "answer": ""}], data__on_bad_row="skip"
    )
    facts = split.facts
    assert (facts.examples, facts.skipped, facts.answer_bytes) == (2, 1, 3 + 3)
    assert (facts.student_tokens, facts.teacher_tokens) == (2 + 3, 2 + 3)
    # Segments that begin inside the answer: one of 2 tokens, then 3 of 3.
    assert facts.alignment_rate == 4 / 5
    assert "problem" not in split.rows.column_names


def test_a_template_that_trims_on_one_side_narrows_both(tmp_path: Path) -> None:
    row = prepare(tmp_path, [{"prompt": "q", "answer": " abc \n"}]).rows[0]
    assert row["answer_bytes"] == 3
    assert texts(STUDENT, row["student_ids"][row["student_first"] : row["student_stop"]]) == ["ab", "c"]
    assert texts(STUDENT, row["student_ids"][row["student_stop"] :]) == [" ", "\n", "</s>"]


def test_what_is_prepared_is_not_prepared_again(tmp_path: Path) -> None:
    first = prepare(tmp_path, [GOOD])
    again = prepare(tmp_path, [GOOD, GOOD])
    assert again.facts == first.facts
    assert again.rows.to_list() == first.rows.to_list()
    assert sorted(item.name for item in (tmp_path / "prepared").iterdir()) == ["facts.json", "rows"]


def test_digest_tells_conversations_apart(tmp_path: Path) -> None:
    rows = [GOOD, GOOD, {"prompt": "q!", "answer": "abc"}, {"prompt": "q", "answer": "abx"}]
    digests = prepare(tmp_path, rows).rows["digest"]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_an_unusable_row_stops_the_run(tmp_path: Path) -> None:
    rows = [GOOD, {"prompt": "q", "answer": " "}, {"prompt": "q", "answer": None}]
    assert refusal(tmp_path, rows) == (
        "data.train: row 1: the answer is empty (2 unusable of 3); "
        "repair the row, or leave such rows out with data.on_bad_row=skip"
    )


def test_an_unusable_row_is_left_out_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    split = prepare(tmp_path, [{"prompt": "q", "answer": " "}, GOOD], data__on_bad_row="skip")
    assert (len(split.rows), split.facts.examples, split.facts.skipped) == (1, 1, 1)
    assert caplog.messages == ["data.train: 1 of 2 rows left out, e.g. row 0: the answer is empty"]


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_no_usable_row_at_all(tmp_path: Path, on_bad_row: str) -> None:
    text = refusal(tmp_path, [{"prompt": "q", "answer": ""}] * 2, data__on_bad_row=on_bad_row)
    assert text.startswith(
        "data.train: row 0: the answer is empty (2 unusable of 2); "
        if on_bad_row == "error"
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


def test_messages_with_several_turns(tmp_path: Path) -> None:
    chat = [("user", "q"), ("assistant", "abc"), ("user", "r"), ("assistant", "ab"), ("user", "s")]
    rows = [{"chat": [{"role": role, "content": content} for role, content in chat]}]
    row = prepare(tmp_path, rows, data__columns={"messages": "chat"}).rows[0]
    assert row["prompt"] == "<user>q</s>\n<assistant>abc</s>\n<user>r</s>\n<assistant>"
    assert texts(STUDENT, row["student_ids"][row["student_first"] :]) == ["ab", "</s>"]
