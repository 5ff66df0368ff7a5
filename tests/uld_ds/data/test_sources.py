"""Rows of every kind of source come out alike; what is wrong with a source is named."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from uld_ds.data.examples import as_example, check_columns
from uld_ds.data.sources import load_rows, training_texts
from uld_ds.errors import UserError
from uld_ds.recipe import ColumnSettings, DataSettings, FilesSource, GeneratorSource, HubSource

ROWS = [{"prompt": "one?", "answer": "1"}, {"prompt": "two?", "answer": "2"}, {"prompt": "ü?", "answer": "ü\n"}]


@pytest.fixture(autouse=True)
def _own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "hf-cache")


def files(path: Path | str | list[str], **options: Any) -> list[dict[str, Any]]:
    source = FilesSource(source="files", path=path if isinstance(path, list) else str(path), **options)
    return load_rows(source, "data.train").to_list()


def generator(function: str, **options: Any) -> list[dict[str, Any]]:
    return load_rows(GeneratorSource(source="generator", function=function, **options), "data.train").to_list()


def message(call: Any, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path


# ---- files


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    dataset = Dataset.from_list(ROWS)
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    dataset.to_parquet(tmp_path / "a.parquet")
    dataset.save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).rename(tmp_path / "a.arrow")
    for name in ("a.jsonl", "a.json", "a.parquet", "a.arrow"):
        assert files(tmp_path / name) == ROWS, name


def test_patterns_lists_and_limit_keep_the_order(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name, row in zip(("b.jsonl", "a.jsonl", "sub/c.jsonl"), ROWS, strict=True):
        write_jsonl(tmp_path / name, [row])
    assert files(f"{tmp_path}/*.jsonl") == [ROWS[1], ROWS[0]]
    assert files(f"{tmp_path}/**/*.jsonl") == [ROWS[1], ROWS[0], ROWS[2]]
    assert files([f"{tmp_path}/sub/*", f"{tmp_path}/b.jsonl"]) == [ROWS[2], ROWS[0]]
    assert files(f"{tmp_path}/*.jsonl", limit=1) == [ROWS[1]]
    assert files(f"{tmp_path}/*.jsonl", limit=9) == [ROWS[1], ROWS[0]]


def test_a_file_whose_name_reads_like_a_pattern(tmp_path: Path) -> None:
    assert files(write_jsonl(tmp_path / "part[1].JSONL", ROWS)) == ROWS


def test_files_that_are_not_there_or_not_readable(tmp_path: Path) -> None:
    missing = f"{tmp_path}/none*.jsonl"
    assert message(files, missing) == f"data.train.path: no file matches '{missing}'; correct the path or pattern"
    assert message(files, tmp_path) == f"data.train.path: no file matches '{tmp_path}'; correct the path or pattern"
    odd = tmp_path / "rows.csv"
    odd.write_text("a,b")
    assert message(files, odd) == (
        f"data.train.path: '{odd}' is of no known kind; give files that end in one of .json, .jsonl, .parquet, .arrow"
    )
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    assert message(files, f"{tmp_path}/a.*") == (
        "data.train.path: files of several kinds: json, parquet; give files of one kind"
    )
    # Of JSON lines, a broken one is a bad example; a file that is one JSON value is broken as a whole.
    whole = tmp_path / "whole.json"
    whole.write_text('[{"prompt": 1,')
    text = message(files, whole)
    assert text.startswith(f"data.train.path: '{whole}': ") and text.endswith("; repair the file")
    assert "\n" not in text


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "rows.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "file" / "cache")
    line = f"HF_HOME: the cache of data sets at '{tmp_path}/file/cache' cannot be written ([Errno 20] Not a directory: "
    assert message(files, tmp_path / "a.parquet").startswith(line)
    hub = HubSource(source="hub", dataset=str(tmp_path / "folder"))
    assert message(load_rows, hub, "data.train").startswith(line)
    # JSON needs none.
    assert files(write_jsonl(tmp_path / "a.jsonl", ROWS)) == ROWS


def test_a_file_without_rows(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).select([]).to_parquet(tmp_path / "a.parquet")
    (tmp_path / "b.json").write_text("[]")
    (tmp_path / "c.jsonl").write_text("")
    for name in ("a.parquet", "b.json", "c.jsonl"):
        text = message(files, tmp_path / name)
        assert text == "data.train: files source has no rows; point it at data that has some"


# ---- hub


def test_saved_datasets_and_folders_are_read_like_hub_ids(tmp_path: Path) -> None:
    dataset = Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one")
    DatasetDict({"train": dataset, "test": dataset.select([2])}).save_to_disk(tmp_path / "several")
    (tmp_path / "folder").mkdir()
    write_jsonl(tmp_path / "folder" / "train.jsonl", ROWS)

    def hub(name: str, **options: Any) -> list[dict[str, Any]]:
        return load_rows(HubSource(source="hub", dataset=str(tmp_path / name), **options), "data.eval").to_list()

    assert hub("one") == hub("several") == hub("folder") == ROWS
    assert hub("several", split="test", limit=5) == ROWS[2:]
    text = message(hub, "several", split="dev")
    assert text.startswith(f"data.eval.dataset: cannot load '{tmp_path}/several' split 'dev' (KeyError: ")
    text = message(hub, "nothing")
    assert text.startswith(f"data.eval.dataset: cannot load '{tmp_path}/nothing' split 'train' (")
    assert text.endswith("; correct dataset, config, split or revision, or the network or token that the hub needs")


# ---- generators


def some_rows(count: int, broken: bool = False) -> Iterator[dict[str, str]]:
    yield from ROWS[:count]
    if broken:
        raise RuntimeError("out of\nideas")


def unlike_rows() -> list[dict[str, str]]:
    return [{"prompt": "p"}, {"prompt": "q", "id": "007"}]


def no_rows() -> list[dict[str, str]]:
    return []


class Factory:
    rows = staticmethod(some_rows)


def test_generators_get_their_arguments() -> None:
    assert generator(f"{__name__}:some_rows", arguments={"count": 2}) == ROWS[:2]
    assert generator(f"{__name__}:Factory.rows", arguments={"count": 3}, limit=1) == ROWS[:1]


def test_rows_of_a_generator_may_have_columns_that_the_first_one_lacks() -> None:
    assert generator(f"{__name__}:unlike_rows") == [{"prompt": "p", "id": None}, {"prompt": "q", "id": "007"}]


def test_generators_of_the_current_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows_of_mine.py").write_text("def rows():\n    yield {'prompt': 'p', 'answer': 'a'}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    assert generator("rows_of_mine:rows") == [{"prompt": "p", "answer": "a"}]


@pytest.mark.parametrize(
    ("function", "arguments", "expected"),
    [
        ("no_such_module:f", {}, "function: 'no_such_module:f' cannot be imported (ModuleNotFoundError: No module"),
        (f"{__name__}:nothing", {}, f"function: '{__name__}:nothing' cannot be imported (AttributeError: module"),
        (f"{__name__}:ROWS", {}, f"function: '{__name__}:ROWS' is not callable; name a function"),
        (
            f"{__name__}:some_rows",
            {"n": 2},
            f"arguments: {__name__}:some_rows: missing a required argument: 'count'; match the function's parameters",
        ),
        (
            f"{__name__}:some_rows",
            {"count": 1, "broken": True},
            f"function: '{__name__}:some_rows' failed with RuntimeError: out of ideas ({__file__}:",
        ),
        (f"{__name__}:message", {"call": 3}, f"function: '{__name__}:message' failed with "),
    ],
)
def test_generators_that_do_not_work(function: str, arguments: dict[str, Any], expected: str) -> None:
    assert message(generator, function, arguments=arguments).startswith(f"data.train.{expected}")


def test_a_generator_without_rows() -> None:
    assert message(generator, f"{__name__}:no_rows") == (
        "data.train: generator source has no rows; point it at data that has some"
    )


# ---- rows to examples


def test_missing_columns_are_named_with_those_there() -> None:
    rows = Dataset.from_list([{"question": "q", "answer": "a"}])
    assert message(check_columns, rows, ColumnSettings(), "data.eval") == (
        "data.columns.prompt: data.eval has no column 'prompt'; set it to one of the columns there: question, answer"
    )
    assert message(check_columns, rows, ColumnSettings(messages="chat"), "data.eval").startswith(
        "data.columns.messages: data.eval has no column 'chat'; "
    )
    check_columns(rows, ColumnSettings(prompt="question"), "data.eval")
    # A recipe that a run wrote mentions every key: the columns beside messages may be missing all the same.
    written = ColumnSettings.model_validate(ColumnSettings(messages="answer").model_dump())
    check_columns(rows, written, "data.eval")
    assert message(check_columns, rows, ColumnSettings(messages="answer", tools="own"), "data.eval").startswith(
        "data.columns.tools: data.eval has no column 'own'"
    )


def test_prompt_and_answer_columns() -> None:
    example = as_example({"q": "p", "a": " x\n"}, ColumnSettings(prompt="q", answer="a"))
    assert example.prompt == ({"role": "user", "content": "p"},)
    assert example.answer == " x\n"
    assert example.messages == (turn("user", "p"), turn("assistant", " x\n"))
    assert example.answers == (1,)


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_assistant_turns_that_say_something_are_answers() -> None:
    chat = [turn("system", "s"), turn("user", "1"), turn("assistant", "2"), turn("user", "3"), turn("assistant", "4")]
    row = {"chat": [{**message, "name": None} for message in chat] + [turn("user", "5"), turn("tool", "6")]}
    example = as_example(row, ColumnSettings(messages="chat"))
    assert example.messages == tuple(chat)
    assert (example.answers, example.answer) == ((2, 4), "4")
    assert (example.only_last().answers, example.only_last().messages) == ((4,), tuple(chat))
    row["chat"][2]["content"] = " \n"
    assert as_example(row, ColumnSettings(messages="chat")).answers == (4,)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (None, "column 'chat' does not hold a list of messages"),
        ("hello", "column 'chat' does not hold a list of messages"),
        (["hello"], "column 'chat' does not hold a list of messages"),
        ([], "column 'chat' has no assistant turn"),
        ([turn("user", "x")], "column 'chat' has no assistant turn"),
        ([{"role": "assistant"}], "the answer is empty"),
        ([turn("user", [7]), turn("assistant", "x")], "column 'chat[0].content[0]' holds int, not text"),
        ([turn("user", [{"type": "image"}])], "column 'chat[0].content[0]' holds a part of type 'image'"),
        ([{"role": "assistant", "tool_calls": [{}]}], "column 'chat[0].tool_calls[0]' is no tool call"),
        ([turn("assistant", " \n")], "the answer is empty"),
    ],
)
def test_unusable_messages(value: Any, problem: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        as_example({"chat": value}, ColumnSettings(messages="chat"))
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "p", "answer": ""}, "the answer is empty"),
        ({"prompt": "p", "answer": "\t\n "}, "the answer is empty"),
        ({"prompt": "p", "answer": None}, "column 'answer' holds NoneType, not text"),
        ({"prompt": 3, "answer": "a"}, "column 'prompt' holds int, not text"),
    ],
)
def test_unusable_prompts_and_answers(row: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        as_example(row, ColumnSettings())
    assert str(caught.value) == problem


def test_training_texts_are_those_of_usable_rows(tmp_path: Path) -> None:
    rows = [*ROWS[:1], {"prompt": "no answer", "answer": ""}, *ROWS[2:]]
    source = FilesSource(source="files", path=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    assert list(training_texts(DataSettings(train=source))) == ["one?", "1", "ü?", "ü\n"]
    data = DataSettings(train=source, columns=ColumnSettings(answer="reply"))
    assert message(list, training_texts(data)).startswith("data.columns.answer: data.train has no column 'reply'; ")


def test_a_resolved_recipe_asks_for_no_more_columns() -> None:
    """It names every key; only a column that has another name than by default has to be there."""
    rows = Dataset.from_list([{"messages": [turn("user", "a"), turn("assistant", "b")]}])
    columns = ColumnSettings(messages="messages")
    check_columns(rows, ColumnSettings.model_validate(columns.model_dump()), "data.train")
    with pytest.raises(UserError, match=r"^data.columns.tools: data.train has no column 'functions'; set it to "):
        check_columns(rows, ColumnSettings(messages="messages", tools="functions"), "data.train")


def test_columns_beside_messages_need_messages() -> None:
    source = FilesSource(source="files", path="rows.jsonl")
    with pytest.raises(ValueError, match=r"data\.columns\.tools has no effect without messages"):
        DataSettings(train=source, columns=ColumnSettings(tools="own"))
    DataSettings.model_validate(DataSettings(train=source).model_dump())
    DataSettings(train=source, task="messages", columns=ColumnSettings(tools="own"))


def test_the_order_of_arguments_is_part_of_an_example() -> None:
    def digest(arguments: dict[str, int]) -> str:
        called = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
        return as_example({"m": [{"role": "user", "content": "a"}, called]}, ColumnSettings(messages="m")).digest()

    assert digest({"a": 1, "b": 2}) != digest({"b": 2, "a": 1})
