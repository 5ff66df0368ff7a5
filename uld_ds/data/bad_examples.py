"""The report of examples that were left out: how many for which reason, and which rows they are."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from uld_ds.errors import one_line

_FILE = "bad_examples.json"
# A corpus can be all wrong; a list that nobody can open helps nobody.
_MOST_LISTED = 10_000
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")


def reason_of(problem: str) -> str:
    """Strip a problem of what differs from row to row: numbers, names of columns and files, details in brackets.

     reason_of("line 7 of train.jsonl is not JSON (Expecting value: line 1 column 1 (char 0))")
    'line N of a file is not JSON'
    >>> reason_of("column 'answer' holds int, not text")
    'column holds int, not text'
    """
    text = re.sub(r"\s*\(.*$", "", problem, flags=re.S)
    text = re.sub(r"(line|element|value) \d+ of .+? (is not|holds)", r"\1 N of a file \2", text)
    text = re.sub(r"\d+", "N", _QUOTED.sub("", text))
    return one_line(text)


def note_bad_examples(folder: Path, problems: Sequence[tuple[int, str]], places: Sequence[str]) -> None:
    """Write the report of left-out examples into a folder of prepared data.

    Args:
        folder: Folder of the prepared data.
        problems: Number of a row, counted from 0, and what is wrong with it.
        places: Places of all rows in the user's data.
    """
    counts = Counter(reason_of(problem) for _, problem in problems)
    listed = [{"row": row, "place": places[row], "problem": text[:300]} for row, text in problems[:_MOST_LISTED]]
    content = {
        "rows": len(places),
        "left_out": len(problems),
        "by_reason": dict(counts.most_common()),
        "examples": listed,
    }
    (folder / _FILE).write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")


def bad_examples(folder: Path) -> dict[str, Any]:
    """Read the report of left-out examples that ``note_bad_examples`` wrote into a folder."""
    content: dict[str, Any] = json.loads((folder / _FILE).read_text(encoding="utf-8"))
    return content
