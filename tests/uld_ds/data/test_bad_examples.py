"""Input that is wrong in every way we could think of, and in those that hypothesis finds."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import disable_progress_bars, load_from_disk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from uld_ds.data.bad_examples import bad_examples, reason_of
from uld_ds.data.prepare import NoRowsOfJudgeError, Preparer, prepare_rows
from uld_ds.data.prepared import Split
from uld_ds.data.sides import TextSide
from uld_ds.data.teacher_rows import TeacherEncoding
from uld_ds.errors import UserError
from uld_ds.recipe import parse_recipe

GOOD = b'{"prompt": "What does it do?", "answer": "Return the sum of both."}'
# Each of these lines is one bad example, and what is said about it.
BAD: dict[str, bytes] = {
    "line N of a file is not JSON": b'{"prompt": "q", "answer": "cut o',
    "line N of a file holds list, not an object": b'["prompt", "answer"]',
    "line N of a file holds int, not an object": b"7",
    "line N of a file is not UTF-N": b'{"prompt": "q", "answer": "caf\xe9"}',
    "column holds int, not text": b'{"prompt": "q", "answer": 7}',
    "column holds list, not text": b'{"prompt": ["q"], "answer": "a"}',
    "column holds NoneType, not text": b'{"prompt": "q", "answer": null}',
    "column holds a lone surrogate, which is no text": b'{"prompt": "q", "answer": "\\ud83d"}',
    "there is no column": b'{"prompt": "q"}',
    "the answer is empty": b'{"prompt": "q", "answer": " \\n\\t "}',
    "nothing of the answer fits: the prompt takes N of N student tokens, N of N teacher tokens": (
        b'{"prompt": "' + b"a long question " * 400 + b'", "answer": "a"}'
    ),
}


@pytest.fixture(scope="module")
def tokenizers(tiny_student: Path, tiny_teacher: Path) -> tuple[Any, Any]:
    disable_progress_bars()
    return tuple(AutoTokenizer.from_pretrained(folder) for folder in (tiny_student, tiny_teacher))  # type: ignore[return-value]


def prepare(tokenizers: tuple[Any, Any], folder: Path, data: bytes, policy: str, **changes: Any) -> Split:
    (file := folder / "train.jsonl").write_bytes(data)
    recipe = parse_recipe(
        {
            "run": {"name": "a"},
            "teacher": {"model": "t", "max_length": 256},
            "student": {"model": "s", "max_length": 256},
            "data": {
                "train": {"source": "files", "path": str(file)},
                "on_bad_example": policy,
                "workers": 1,
                **changes,
            },
            "training": {"steps": 1},
        }
    )
    return Preparer(recipe, *tokenizers).prepare(recipe.data.train, "data.train", folder / "prepared")


def test_every_kind_is_counted_and_listed(tokenizers: tuple[Any, Any], tmp_path: Path) -> None:
    lines = [line for bad in BAD.values() for line in (GOOD, bad, b"   ")]
    split = prepare(tokenizers, tmp_path, b"\n".join(lines) + b"\n", "skip")
    found = bad_examples(split.folder)
    assert found["by_reason"] == dict.fromkeys(BAD, 1)
    assert found["rows"] == 2 * len(BAD)
    assert found["left_out"] == split.facts.skipped == len(BAD)
    assert [item["row"] for item in found["examples"]] == list(range(1, 2 * len(BAD), 2))
    # Every third line is blank.
    assert [item["place"] for item in found["examples"]] == [f"train.jsonl line {3 * n + 2}" for n in range(len(BAD))]
    assert split.rows["place"][:] == [f"train.jsonl line {3 * n + 1}" for n in range(len(BAD))]
    assert found["examples"][0]["problem"].startswith("line 2 of train.jsonl is not JSON (")
    assert split.facts.examples == len(BAD)
    assert len(set(split.rows["digest"])) == 1, "the same example any number of times is no mistake"


@pytest.mark.parametrize("reason", BAD)
def test_under_error_the_first_one_is_named(tokenizers: tuple[Any, Any], tmp_path: Path, reason: str) -> None:
    with pytest.raises(UserError) as caught:
        prepare(tokenizers, tmp_path, GOOD + b"\n" + BAD[reason] + b"\n" + GOOD, "error")
    text = str(caught.value)
    assert text.startswith("data.train: row 1: ")
    found = reason_of(text.removeprefix("data.train: row 1: ").split(" (1 unusable")[0])
    # In a table, what is not there is null.
    assert found == ("column holds NoneType, not text" if reason == "there is no column" else reason)
    assert text.endswith("repair the row, or leave such rows out with data.on_bad_example=skip")


def test_an_array_of_rows_of_several_types(tokenizers: tuple[Any, Any], tmp_path: Path) -> None:
    rows = [json.loads(GOOD), {"prompt": 1, "answer": {"a": 2}}, "text", json.loads(GOOD)]
    split = prepare(tokenizers, tmp_path, json.dumps(rows).encode(), "skip")
    assert (split.facts.examples, split.facts.skipped) == (2, 2)
    with pytest.raises(UserError, match=r"data.train.path: '.*train.jsonl': is not JSON \(.*; repair the file$"):
        prepare(tokenizers, tmp_path, json.dumps(rows, indent=1).encode()[:-5], "skip")


def test_a_conversation_that_begins_with_its_answer(tokenizers: tuple[Any, Any], tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Return the sum."}]
    data = b"\n".join(json.dumps({"messages": messages}).encode() for messages in (turns, turns[1:]))
    split = prepare(tokenizers, tmp_path, data, "skip", columns={"messages": "messages"})
    assert (split.facts.examples, split.facts.skipped) == (1, 1)
    (reason,) = bad_examples(split.folder)["by_reason"]
    assert reason.startswith("the chat template refuses the conversation: Cannot apply chat template to an empty ")


def test_what_is_large_takes_seconds_and_is_cut(tokenizers: tuple[Any, Any], tmp_path: Path) -> None:
    """A megabyte of answer, ten thousand turns, nesting without end."""
    turn = [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "Return the sum."}]
    huge = {"messages": [turn[0], {"role": "assistant", "content": "Return the sum of both. " * 50_000}]}
    long = {"messages": turn * 5_000}
    nested = b'{"messages": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    lines = [json.dumps(huge).encode(), json.dumps(long).encode(), nested]
    begin = time.monotonic()
    split = prepare(tokenizers, tmp_path, b"\n".join(lines), "skip", columns={"messages": "messages"})
    assert time.monotonic() - begin < 60
    assert split.facts.examples == 2
    assert max(split.rows["student_length"]) <= 256
    assert list(bad_examples(split.folder)["by_reason"]) == ["line N of a file is not JSON"]


text = st.text(st.characters(codec="utf-8"), max_size=40)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
wild = st.text(st.characters(), max_size=30)  # surrogates, too
conversation = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system", "tool", ""]), "content": wild})
    | anything,
    max_size=5,
)
row = st.fixed_dictionaries(
    {},
    optional={
        "prompt": wild | anything,
        "answer": wild | anything,
        "messages": conversation | anything,
        "id": anything,
    },
).map(lambda value: json.dumps(value).encode())
line = st.one_of(
    row,
    row.flatmap(lambda whole: st.integers(0, len(whole)).map(lambda stop: whole[:stop])),
    st.binary(max_size=40),
    st.sampled_from([GOOD, *BAD.values(), b"\x00", b"\xff\xfe", b"{}", b"null"]),
).map(lambda data: data.replace(b"\n", b" ").replace(b"\r", b" "))


def check_any_input(tokenizers: tuple[Any, Any], lines: list[bytes], messages: bool) -> None:
    """Nothing but a UserError, all rows accounted for, and the good ones kept whatever stands beside them."""
    columns = {"columns": {"messages": "messages"}} if messages else {}
    asked = json.dumps([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]).encode()
    data = b"\n".join([GOOD.replace(b"}", b', "messages": ' + asked + b"}"), *lines])
    with tempfile.TemporaryDirectory() as folder:
        split = prepare(tokenizers, Path(folder), data, "skip", **columns)
        found = bad_examples(split.folder)
        assert split.facts.examples + found["left_out"] == found["rows"]
        assert sum(found["by_reason"].values()) == found["left_out"] == len(found["examples"])
        assert found["rows"] >= 1 + sum(line == GOOD for line in lines)
        if not messages:
            assert split.facts.examples >= 1 + sum(line == GOOD for line in lines)
        if found["left_out"]:
            with pytest.raises(UserError, match=r"data\.on_bad_example=skip"):
                prepare(tokenizers, Path(folder), data, "error", **columns)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(line, max_size=6), messages=st.booleans())
def test_any_input(tokenizers: tuple[Any, Any], lines: list[bytes], messages: bool) -> None:
    check_any_input(tokenizers, lines, messages)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("messages", [False, True], ids=["prompts and answers", "conversations"])
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(line, max_size=8))
def test_any_input_at_length(tokenizers: tuple[Any, Any], lines: list[bytes], messages: bool) -> None:
    check_any_input(tokenizers, lines, messages)


def test_a_batch_of_plain_answers_may_begin_with_a_bad_one(tokenizers: tuple[Any, Any], tmp_path: Path) -> None:
    """Lists that are empty in all good rows are typed like those of the row that stands for a bad one."""
    (file := tmp_path / "rows.jsonl").write_text('{"prompt": "a?"}\n' + '{"prompt": "a?", "answer": "b"}\n' * 2)
    recipe = parse_recipe(
        {
            "run": {"name": "a"},
            "teacher": {"model": "t"},
            "student": {"model": "s"},
            "data": {"train": {"source": "files", "path": str(file)}, "on_bad_example": "skip", "workers": 1},
            "training": {"steps": 1},
        }
    )
    work = TeacherEncoding(TextSide(tokenizers[1], recipe.teacher_named(), "teacher"), turns="last")
    folder = prepare_rows(recipe.data.train, "data.train", tmp_path / "prepared", work, recipe.data)
    assert [row["piece_parts"] for row in load_from_disk(str(folder / "rows"))] == [[], []]


def test_the_rows_of_one_judge_and_what_names_none(tokenizers: tuple[Any, Any], tmp_path: Path) -> None:
    row = '{"prompt": "q", "answer": "Return the sum.", "judge": "%s"}'
    lines = [row % "b", row % "a", row % "b", row % "nobody", "{", row % "a"]
    (file := tmp_path / "train.jsonl").write_text("\n".join(lines))
    (only_b := tmp_path / "b.jsonl").write_text(row % "b")

    def recipe(policy: str, path: Path = file) -> Any:
        teachers = [{"name": name, "model": "t"} for name in ("a", "b")]
        data = {"train": {"source": "files", "path": str(path)}, "columns": {"teacher": "judge"}, "workers": 1}
        return parse_recipe(
            {
                "run": {"name": "x"},
                "teachers": teachers,
                "student": {"model": "s"},
                "data": data | {"on_bad_example": policy},
                "objective": {"combine": "route"},
                "training": {"steps": 1},
            }
        )

    def prepared(of: Any, **judge: Any) -> Path:
        side = TextSide(tokenizers[1], of.teachers[0], "teacher")
        return prepare_rows(
            of.data.train, "data.train", tmp_path / "p", TeacherEncoding(side, turns="all"), of.data, **judge
        )

    of_a = {"teachers": ["a", "b"], "judge": "a"}
    folder = prepared(recipe("skip"), **of_a)
    assert len(load_from_disk(str(folder / "rows"))) == 2
    assert bad_examples(folder)["left_out"] == 2
    with pytest.raises(UserError, match=r"row 3: column 'judge' has 'nobody'.* \(2 unusable of 4\)"):
        prepared(recipe("error"), **of_a)
    with pytest.raises(NoRowsOfJudgeError, match=r"data\.train: no row is judged by teacher 'a'"):
        prepared(recipe("error", only_b), **of_a)
    # The same rows, whoever judges them, are others: none of them is bad.
    every = prepared(recipe("skip", only_b), teachers=["a", "b"], judge="b")
    assert prepared(recipe("skip", only_b)) != every
    assert prepared(recipe("skip", only_b), teachers=["a", "b", "nobody"], judge="b") != every
