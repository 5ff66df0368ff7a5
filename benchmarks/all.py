"""Every benchmark but the demo in its short version, one after the other; their tables in one file.

    make bench                                        # writes benchmarks/RESULTS.md, at most 15 minutes on two cores
    python benchmarks/all.py --only uld --only step   # some of them; the others' tables stay as they are
    python benchmarks/all.py --run step --run "quality --folder ~/quality --report"     # these, with these options

What ``--run`` names stands in the file beside the short versions, under its own command, until the same command is run
again. The machine should have nothing else to do. A benchmark that fails, or misses what it aims at, is named, and its
output is in the file all the same.
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
RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
# In the order of the file.
TITLES = {
    "demo": "The demo, whole",
    "quality": "Does distilling help?",
    "uld": "The loss alone, against TRL's",
    "step": "A whole step, by length and vocabulary, against TRL's",
    "teacher": "A whole step with a real teacher, against TRL's",
    "scaling": "Ranks of one machine, and a cost model of many",
    "store": "The spectrum store",
    "alignment": "Byte spans and alignment",
    "vocabulary": "Two vocabularies by their bytes",
    "checkpoint": "Checkpoints",
    "plan": "What a plan predicts, and what is used",
    "four_bits": "Frozen weights of a student in fp32, bf16 and 4 bits",
}
# Those of `make bench`. The demo is left to `--run demo`: a short one of it says nothing, and the tests have that.
SHORT = [name for name in TITLES if name != "demo"]
HEADER = (
    "# Results\n\n"
    "Written by `make bench`, which runs every benchmark but the demo in its short version, and with "
    "`BENCH='--run \"...\"'` longer ones; do not edit. The figures of README.md and docs/ come from here: a test "
    "compares them.\n"
)


def main() -> int:
    options = parse()
    sections = read_sections(RESULTS.read_text()) if RESULTS.is_file() else {}
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
    """Of the file, with its command."""
    took = "" if "--report" in arguments else f" ({seconds:.0f} s)"
    command = " ".join([f"benchmarks/{name}.py", *map(_quoted, arguments)])
    return f"## {TITLES[name]}\n\n`python {command}`{took}\n\n{body}\n"


def line_of(*words: str) -> str:
    """What names a section: a benchmark and its options, as one line."""
    return shlex.join(words)


def _quoted(word: str) -> str:
    """As it is typed into a shell, a ``~`` left to it."""
    return word if word.startswith("~/") else shlex.quote(word)


def read_sections(text: str) -> dict[str, str]:
    """The sections of a file that this wrote, by what was run."""
    found = {}
    for part in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        if command := re.search(r"^`python benchmarks/(\w+)\.py ?([^`]*)`", part, re.MULTILINE):
            found[line_of(command[1], *shlex.split(command[2]))] = part.strip() + "\n"
    return found


def write(sections: dict[str, str]) -> None:
    """The file: benchmarks in the order of TITLES, of each the short version last."""

    def place(line: str) -> tuple[int, bool, str]:
        name, *arguments = shlex.split(line)
        return list(TITLES).index(name), "--quick" in arguments, line

    RESULTS.write_text("\n".join([HEADER, *(sections[line] for line in sorted(sections, key=place))]))


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
