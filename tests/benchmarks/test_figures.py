"""Figures of README and docs are those of benchmarks/results/.

A section that names a benchmark's command may hold figures of that command's results alone: every decimal number, and
every cell of a table that is nothing but a number and its unit. A row of a table that names a command of its own is
held to that one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import all as every

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NUMBER = re.compile(r"(?<![\w.])\d[\d,]*(?:\.\d+)*(?:e-?\d+)?")
DECIMAL = re.compile(r"[.e]")
CELL = re.compile(r"[-+]?[\d,.]+(?:e-?\d+)?\s?(?:s|GB|GiB|MB|%|x)?")
# Of other sources, beside figures of ours: the paper's F1; versions of TRL and Python.
ELSEWHERE = {("comparison.md", "2.35"), ("comparison.md", "1.16"), ("README.md", "3.11"), ("index.md", "3.11")}


def commands(text: str) -> list[str]:
    """Benchmarks that a text names, as the files of results name them."""
    named = [" ".join(line.split()) for line in re.findall(r"`python\s+benchmarks/([^`]+)`", text)]
    return [shlex.join([shlex.split(line)[0].removesuffix(".py"), *shlex.split(line)[1:]]) for line in named]


def sections(page: Path) -> Iterator[str]:
    """Between headings, without code."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    yield from re.split(r"^#+ .*$", text, flags=re.MULTILINE)


def figures(text: str) -> list[str]:
    """Decimals, and numbers that are a cell of a table by themselves."""
    found = [number for number in NUMBER.findall(re.sub(r"`[^`]*`", "", text)) if DECIMAL.search(number)]
    for line in text.splitlines():
        if line.startswith("|"):
            found += [cell.strip() for cell in line.strip("| ").split("|") if CELL.fullmatch(cell.strip())]
    return list(dict.fromkeys(found))


def values(text: str) -> set[float]:
    """All numbers."""
    return {value_of(number) for number in NUMBER.findall(text)}


def value_of(number: str) -> float:
    (digits,) = re.findall(r"[\d,.]+(?:e-?\d+)?", number)
    digits = digits.replace(",", "").rstrip(".")
    return float(digits) if digits.count(".") < 2 else float("nan")


def held(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Pieces of a page with figures, and the commands that they are of."""
    for section in sections(page):
        rows = [line for line in section.splitlines() if line.startswith("|") and commands(line)]
        for row in rows:
            yield row, commands(row)
        rest = "\n".join(line for line in section.splitlines() if line not in rows)
        if commands(rest):
            yield rest, commands(rest)


def test_figures_were_measured() -> None:
    results = every.read_results()
    wrong, checked = [], 0
    for page in PAGES:
        for text, named in held(page):
            asked = [figure for figure in figures(text) if (page.name, figure) not in ELSEWHERE]
            if not asked:
                continue
            wrong += [f"{page.name}: no results of `{line}`" for line in named if line not in results]
            there = set().union(*(values(results[line]) for line in named if line in results))
            wrong += [
                f"{page.name}: {figure} is not in the results of {named}"
                for figure in asked
                if value_of(figure) not in there
            ]
            checked += len(asked)
    assert not wrong, "\n".join(wrong)
    assert checked > 100
    # The front page has a few of the demo's: they are held like all others.
    assert any(figures(text) for text, _ in held(ROOT / "README.md"))


def test_figures_are_found() -> None:
    table = "It took 3.5 s, not 12.\n| a | 1,024 | 4 s | -44.1 (2 to 3) | two 7 |\n| `0.25` | 2.7e-4 | x | +5% | |"
    assert figures(table) == ["3.5", "44.1", "2.7e-4", "1,024", "4 s", "+5%"]
    assert [value_of(figure) for figure in figures(table)] == [3.5, 44.1, 2.7e-4, 1024.0, 4.0, 5.0]
    assert commands("`python benchmarks/step.py --steps\n2` of `make bench`") == ["step --steps 2"]
