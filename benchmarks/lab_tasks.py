"""Problems of lab.py, made in an environment of their own with reasoning-gym in it: one JSON row a line.

    python lab_tasks.py sorting 60000 rows.jsonl

A row is a prompt and the right answer to it; of several, one that is drawn by the prompt alone, and ``also`` has the
others, with ``|`` between them. Prompts are short forms of the library's questions, whose constant words cost steps and
teach nothing; every prompt occurs once.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable
from itertools import permutations, product
from pathlib import Path
from typing import Any

import reasoning_gym

Row = dict[str, str]


def sorting(entry: dict[str, Any]) -> Row:
    """``> 56 25 75``: from the largest number down; ``<``: up."""
    facts = entry["metadata"]
    sign = {"ascending": "<", "descending": ">"}[facts["direction"]]
    given, ordered = (
        " ".join(str(int(float(number))) for number in facts[name]) for name in ("original_numbers", "sorted_numbers")
    )
    return {"prompt": f"{sign} {given}", "answer": ordered}


def even_first(entry: dict[str, Any]) -> Row:
    """``# 56 25 75 12``: even numbers, then odd ones, in any order among themselves."""
    numbers = [int(float(number)) for number in entry["metadata"]["original_numbers"]]
    prompt = " ".join(map(str, ["#", *numbers]))
    even, odd = ([number for number in numbers if number % 2 == rest] for rest in (0, 1))
    orders = product(permutations(even), permutations(odd))
    right = sorted({" ".join(map(str, first + second)) for first, second in orders})
    told = random.Random(prompt).choice(right)  # noqa: S311 (no secret)
    return {"prompt": prompt, "answer": told, "also": "|".join(answer for answer in right if answer != told)}


def backward(entry: dict[str, Any]) -> Row:
    """A word, and its letters from the last to the first."""
    return {"prompt": entry["metadata"]["word"].lower(), "answer": entry["answer"].lower()}


def sums(entry: dict[str, Any]) -> Row:
    """``12+7-30``."""
    return {"prompt": entry["metadata"]["expression"].replace(" ", ""), "answer": entry["answer"]}


def chained_sums(entry: dict[str, Any]) -> Row:
    """``12+7-30``: every partial result, the last one being the library's answer: several steps, each from the last."""
    row = sums(entry)
    first, *rest = re.findall(r"[+-]?\d+", row["prompt"])
    results = [int(first)]
    for term in rest:
        results.append(results[-1] + int(term))
    assert str(results[-1]) == row["answer"]
    return {**row, "answer": " ".join(map(str, results[1:]))}


UP_TO_99 = {"max_decimals": 0, "min_value": 0, "max_value": 99}
# The library's name, its options, and the short form.
TASKS: dict[str, tuple[str, dict[str, Any], Callable[[dict[str, Any]], Row]]] = {
    "sorting": ("number_sorting", {"min_numbers": 3, "max_numbers": 4, **UP_TO_99}, sorting),
    "even first": ("number_sorting", {"min_numbers": 3, "max_numbers": 4, **UP_TO_99}, even_first),
    "sorting few": ("number_sorting", {"min_numbers": 2, "max_numbers": 3, **UP_TO_99}, sorting),
    "spell_backward": ("spell_backward", {"min_word_len": 3, "max_word_len": 7}, backward),
    "chain_sum": (
        "chain_sum",
        {"min_terms": 3, "max_terms": 4, "min_digits": 1, "max_digits": 2},
        chained_sums,
    ),
    "chain_sum digits": (
        "chain_sum",
        {"min_terms": 4, "max_terms": 5, "min_digits": 1, "max_digits": 1},
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
    rows = {row["prompt"]: row for row in map(short, drawn)}
    lines = (json.dumps(row) + "\n" for row in rows.values())
    options.output.write_text("".join(lines))


if __name__ == "__main__":
    main()
