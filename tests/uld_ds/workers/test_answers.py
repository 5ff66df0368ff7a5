"""What an engine of Ray's own has answered is written as our own actors write."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from uld_ds.data.templates import ReplyMarks, ReplyReader
from uld_ds.workers.answers import write_engine_rows


def test_rows_of_an_engine_are_answers(tmp_path: Path) -> None:
    texts = [" said ", "cut off here", ""]
    batch = pa.table({"id": ["a", "b", "c"], "generated_text": texts, "num_generated_tokens": [3, 8, 1]})
    reader = ReplyReader(ReplyMarks("<think>", "</think>", ""), ())
    counted = write_engine_rows(batch, parts=str(tmp_path), max_new_tokens=8, reader=reader, stop=(), prompt_ends={})
    assert counted.to_pylist() == [{"prompts": 3, "tokens": 12}]
    (part,) = tmp_path.iterdir()
    rows = pq.read_table(part).to_pylist()
    assert rows == [
        {"id": "a", "text": "said", "tokens": 3, "finish": "stop", "reasoning": ""},
        {"id": "b", "text": "cut off here", "tokens": 8, "finish": "length", "reasoning": ""},
        {"id": "c", "text": "", "tokens": 1, "finish": "stop", "reasoning": ""},
    ]


def test_rows_of_an_engine_have_their_reasoning_apart(tmp_path: Path) -> None:
    """The engine was given no stops, and left control tokens in the text."""
    reader = ReplyReader(ReplyMarks("", "</r>", "<f>", "<r>", is_known=True), ("<e>",))
    texts = ["so\n</r>four\nmore<e>", "so and", "four\nmore<e>", "<f>four", "and</r>two"]
    names = ["a", "b", "c", "d", "e"]
    batch = pa.table({"id": names, "generated_text": texts, "num_generated_tokens": [7, 8, 3, 3, 8]})
    ends = {"a": "<e><r>", "b": "<e><r>", "e": "<r>"}
    write_engine_rows(batch, parts=str(tmp_path), max_new_tokens=8, reader=reader, stop=("\n",), prompt_ends=ends)
    (part,) = tmp_path.iterdir()
    found = [(row["reasoning"], row["text"], row["finish"]) for row in pq.read_table(part).to_pylist()]
    assert found == [
        ("so", "four", "stop"),
        ("so and", "", "length"),
        ("", "four", "stop"),
        ("", "four", "stop"),
        ("and", "two", "length"),
    ]
