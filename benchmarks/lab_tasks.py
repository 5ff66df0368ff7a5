"""Problems of lab.py, made in an environment of their own with reasoning-gym in it: one JSON row a line.

    python lab_tasks.py sorting 60000 rows.jsonl

A row is a prompt and the one right answer to it. Prompts are short forms of the library's questions, whose constant
words cost steps and teach nothing; every prompt occurs once.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import reasoning_gym

Row = tuple[str, str]


def sorting(entry: dict[str, Any]) -> Row:
    """``> 56 25 75``: from the largest number down; ``<``: up."""
    facts = entry["metadata"]
    sign = {"ascending": "<", "descending": ">"}[facts["direction"]]
    given, ordered = (
        " ".join(str(int(float(number))) for number in facts[name]) for name in ("original_numbers", "sorted_numbers")
    )
    return f"{sign} {given}", ordered


def backward(entry: dict[str, Any]) -> Row:
    """A word, and its letters from the last to the first."""
    return entry["metadata"]["word"].lower(), entry["answer"].lower()


def sums(entry: dict[str, Any]) -> Row:
    """``12+7-30``."""
    return entry["metadata"]["expression"].replace(" ", ""), entry["answer"]


def chained_sums(entry: dict[str, Any]) -> Row:
    """``12+7-30``: every partial result, the last one being the library's answer: several steps, each from the last."""
    expression, final = sums(entry)
    first, *rest = re.findall(r"[+-]?\d+", expression)
    results = [int(first)]
    for term in rest:
        results.append(results[-1] + int(term))
    assert str(results[-1]) == final
    return expression, " ".join(map(str, results[1:]))


UP_TO_99 = {"max_decimals": 0, "min_value": 0, "max_value": 99}
# The library's name, its options, and the short form.
TASKS: dict[str, tuple[str, dict[str, Any], Callable[[dict[str, Any]], Row]]] = {
    "sorting": ("number_sorting", {"min_numbers": 3, "max_numbers": 4, **UP_TO_99}, sorting),
    "sorting few": ("number_sorting", {"min_numbers": 2, "max_numbers": 3, **UP_TO_99}, sorting),
    "spell_backward": ("spell_backward", {"min_word_len": 3, "max_word_len": 7}, backward),
    "chain_sum": (
        "chain_sum",
        {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 2},
        chained_sums,
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=list(TASKS))
    parser.add_argument("number", type=int, help="problems that are drawn; those drawn twice are kept once")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    name, settings, short = TASKS[options.task]
    drawn = reasoning_gym.create_dataset(name, size=options.number, seed=0, **settings)
    rows = dict(short(entry) for entry in drawn)
    lines = (json.dumps({"prompt": prompt, "answer": answer}) + "\n" for prompt, answer in rows.items())
    options.output.write_text("".join(lines))


if __name__ == "__main__":
    main()
