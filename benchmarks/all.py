"""Every benchmark in its short version, one after the other; their tables in one file.

    make bench                                        # writes benchmarks/RESULTS.md, at most 15 minutes on two cores
    python benchmarks/all.py --only uld --only step   # some of them; the others' tables stay as they are
    python benchmarks/all.py --only quality --quality ~/quality     # the table of finished runs of quality.py

The machine should have nothing else to do. A benchmark that fails, or misses what it aims at, is named, and its output
is in the file all the same.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import machine

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "RESULTS.md"
# In the order of the file: what each is about, and how it is run.
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "uld": ("The loss alone, against TRL's", ["--quick"]),
    "step": ("A whole step, by length and vocabulary, against TRL's", ["--quick"]),
    "teacher": ("A whole step with a real teacher, against TRL's", ["--quick"]),
    "scaling": ("Ranks of one machine, and a cost model of many", ["--quick"]),
    "store": ("The spectrum store", ["--quick"]),
    "alignment": ("Byte spans and alignment", ["--quick"]),
    "checkpoint": ("Checkpoints", ["--quick"]),
    "plan": ("What a plan predicts, and what is used", ["--quick"]),
}
HEADER = (
    "# Results\n\n"
    "Written by `make bench`, which runs every benchmark in its short version; do not edit. Figures of README.md and "
    "docs/ come from here, or name their own command.\n"
)


def main() -> int:
    options = parse()
    sections = read_sections(RESULTS.read_text()) if RESULTS.is_file() else {}
    begin, failed = time.monotonic(), []
    for name in [name for name in COMMANDS if name in (options.only or COMMANDS)]:
        title, arguments = COMMANDS[name]
        body, seconds, status = run(name, arguments)
        if status:
            failed.append(name)
            body += f"\n\nIt ended with status {status}: something failed, or a goal was missed."
        sections[name] = section(name, title, arguments, body, seconds)
        write(sections)
    if options.quality is not None:
        title = "Does distilling help?"
        arguments = ["--folder", str(options.quality), "--report", *options.quality_options.split()]
        body, _, status = run("quality", arguments)
        failed += ["quality"] if status else []
        shown = ["--folder", "FOLDER", *options.quality_options.split()]
        sections["quality"] = section("quality", title, shown, body, None)
        write(sections)
    print(f"{time.monotonic() - begin:.0f} s on {machine()}; failed or missed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def run(name: str, arguments: list[str]) -> tuple[str, float, int]:
    """A benchmark's Markdown (what it printed where it wrote none), its seconds and its exit status."""
    print(f"{name}: {' '.join(arguments)}", file=sys.stderr, flush=True)
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "table.md"
        command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), *arguments, "--markdown", str(file)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
        body = file.read_text() if file.is_file() else done.stdout
    return body.strip(), time.monotonic() - begin, done.returncode


def section(name: str, title: str, arguments: list[str], body: str, seconds: float | None) -> str:
    """Of the file, with its command."""
    took = "" if seconds is None else f" ({seconds:.0f} s)"
    return f"## {title}\n\n`python benchmarks/{name}.py {' '.join(arguments)}`{took}\n\n{body}\n"


def read_sections(text: str) -> dict[str, str]:
    """The sections of a file that this wrote, by benchmark."""
    found = {}
    for part in re.split(r"^(?=## )", text, flags=re.MULTILINE):
        if command := re.search(r"^`python benchmarks/(\w+)\.py", part, re.MULTILINE):
            found[command[1]] = part.strip() + "\n"
    return found


def write(sections: dict[str, str]) -> None:
    """The file, in the order of COMMANDS; quality first."""
    order = ["quality", *COMMANDS]
    RESULTS.write_text("\n".join([HEADER, *(sections[name] for name in order if name in sections)]))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=["quality", *COMMANDS], help="repeatable; default: all")
    parser.add_argument("--quality", type=Path, metavar="FOLDER", help="of quality.py, with finished runs")
    parser.add_argument("--quality-options", default="", metavar="TEXT", help="which of them, as quality.py has it")
    options = parser.parse_args(arguments)
    if options.only and "quality" in options.only and options.quality is None:
        parser.error("--only quality needs --quality FOLDER")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
