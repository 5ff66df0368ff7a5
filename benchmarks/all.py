"""Every benchmark but the demo in its short version, one after the other; their tables in one file per benchmark.

    make bench                                        # writes benchmarks/results/, at most 15 minutes on two cores
    python benchmarks/all.py --only uld --only step   # some of them; the others' tables stay as they are
    python benchmarks/all.py --run step --run "quality --folder ~/quality --report"     # these, with these options

What ``--run`` names stands beside the short version in its benchmark's file, under its own command, until the same
command is run again; ``README.md`` in that folder lists them all. The machine should have nothing else to do. A
benchmark that fails, or misses what it aims at, is named, and its output is in the file all the same.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
# In the order of the index.
TITLES = {
    "demo": "The demo, whole",
    "quality": "Does distilling help?",
    "lab": "Which objective teaches most?",
    "pretrained": "A pretrained student, and a teacher that is better",
    "on_policy_cost": "What a step on own answers costs, against TRL's",
    "uld": "The loss alone, against TRL's",
    "step": "A whole step, by length and vocabulary, against TRL's",
    "teacher": "A whole step with a real teacher, against TRL's",
    "scaling": "Ranks of one machine, and a cost model of many",
    "store": "The spectrum store",
    "served": "A teacher in an inference engine",
    "truncated": "A teacher of whom only the likeliest tokens are known",
    "top_tokens": "Top-k tokens in a store",
    "alignment": "Byte spans and alignment",
    "vocabulary": "Two vocabularies by their bytes",
    "sampling": "Sampling own answers, against transformers' generate",
    "packing": "Padding, and lengths that differ",
    "checkpoint": "Checkpoints",
    "plan": "What a plan predicts, and what is used",
    "four_bits": "Frozen weights of a student in fp32, bf16 and 4 bits",
}
# Those of `make bench`. The demo is left to `--run demo`: a short one of it says nothing, and the tests have that. The
# pretrained pair and the served teacher are left to `--run`, too: they need a quarter of a gigabyte, and four.
SHORT = [name for name in TITLES if name not in ("demo", "pretrained", "served")]
INDEX = "README.md"
WRITTEN_BY = (
    "Written by `make bench`, which runs every benchmark but the demo in its short version, and with "
    "`BENCH='--run \"...\"'` longer ones; do not edit. The figures of README.md and docs/ come from here: a test "
    "compares them.\n"
)


def main() -> int:
    options = parse()
    sections = read_results()
    short = [] if options.run and not options.only else [[name, "--quick"] for name in options.only or SHORT]
    begin, failed = time.monotonic(), []
    for name, *arguments in [*short, *(shlex.split(line) for line in options.run)]:
        body, seconds, status = run(name, arguments)
        if status:
            failed.append(name)
            body += f"\n\nIt ended with status {status}: something failed, or a goal was missed."
        sections[line_of(name, *arguments)] = section(name, arguments, body, seconds)
        write(sections)
    print(f"{time.monotonic() - begin:.0f} s on {machine()}; failed or missed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def run(name: str, arguments: list[str]) -> tuple[str, float, int]:
    """A benchmark's Markdown (what it printed where it wrote none), its seconds and its exit status."""
    print(f"{name}: {' '.join(arguments)}", file=sys.stderr, flush=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.md"
        command = [
            sys.executable,
            str(ROOT / "benchmarks" / f"{name}.py"),
            *map(os.path.expanduser, arguments),
            "--markdown",
            str(file),
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        body = file.read_text() if file.is_file() else done.stdout
    return body.strip(), time.monotonic() - begin, done.returncode


def section(name: str, arguments: list[str], body: str, seconds: float) -> str:
    """Format a section of a benchmark's file: what was run, its seconds, and what came out."""
    took = "" if "--report" in arguments else f" ({seconds:.0f} s)"
    return f"## {_heading(arguments)}\n\n`{command_of(name, arguments)}`{took}\n\n{body}\n"


def _heading(arguments: list[str]) -> str:
    """Name a run within its benchmark's file."""
    return {(): "Without options", ("--quick",): "Short version"}.get(
        tuple(arguments), f"`{' '.join(map(_quoted, arguments))}`"
    )


def command_of(name: str, arguments: list[str]) -> str:
    """Spell a run as it is typed into a shell."""
    return " ".join([f"python benchmarks/{name}.py", *map(_quoted, arguments)])


def line_of(*words: str) -> str:
    """What names a section: a benchmark and its options, as one line."""
    return shlex.join(words)


def _quoted(word: str) -> str:
    """As it is typed into a shell, a ``~`` left to it."""
    return word if word.startswith("~/") else shlex.quote(word)


def read_results() -> dict[str, str]:
    """Read the sections of all files of results, by what was run; none where there is no folder yet."""
    found: dict[str, str] = {}
    for name in TITLES:
        if (file := RESULTS / f"{name}.md").is_file():
            found |= read_sections(file.read_text())
    return found


def read_sections(text: str) -> dict[str, str]:
    """The sections of a file that this wrote, by what was run."""
    found = {}
    for part in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        if command := re.search(r"^`python benchmarks/(\w+)\.py ?([^`]*)`", part, re.MULTILINE):
            found[line_of(command[1], *shlex.split(command[2]))] = part.strip() + "\n"
    return found


def write(sections: dict[str, str]) -> None:
    """Write a file for each benchmark, of its runs the short version last, and the index of all."""
    RESULTS.mkdir(exist_ok=True)
    index = [f"# Results\n\n{WRITTEN_BY}", "| benchmark | command | results |", "|---|---|---|"]
    for name, title in TITLES.items():
        lines = sorted((line for line in sections if shlex.split(line)[0] == name), key=_place)
        if not lines:
            continue
        header = f"# {title}\n\n{WRITTEN_BY.strip()} All benchmarks: [{INDEX}]({INDEX}).\n"
        (RESULTS / f"{name}.md").write_text("\n".join([header, *(sections[line] for line in lines)]))
        first, *others = [f"`{command_of(name, shlex.split(line)[1:])}`" for line in lines]
        index.append(f"| {title} | {first} | [{name}.md]({name}.md) |")
        index += [f"| | {command} | |" for command in others]
    (RESULTS / INDEX).write_text("\n".join(index) + "\n")


def _place(line: str) -> tuple[bool, str]:
    """Order a benchmark's runs: the short version last."""
    return "--quick" in shlex.split(line), line


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=list(TITLES), help="repeatable; default: all")
    parser.add_argument(
        "--run", action="append", default=[], metavar="TEXT", help="a benchmark with options, repeatable"
    )
    options = parser.parse_args(arguments)
    for line in options.run:
        if (shlex.split(line) or [""])[0] not in TITLES:
            parser.error(f"--run {line!r} begins with none of {', '.join(TITLES)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
