"""A teacher in an inference engine against the same weights in the workers: agreement, gradients, training, speed.

    make vllm                                             # vLLM's build for CPUs, in an environment of its own
    python benchmarks/served.py --quick                   # fewer rows, one seed
    python benchmarks/served.py --output served.json --markdown served.md

SmolLM2-135M over the demo's rows, whose stores ``uld-ds store build`` makes four times: by the workers and by vLLM in
actors (``--engine vllm``), in fp32 and in bf16, one thread each. Of vLLM's, the likeliest ``--top`` tokens are known.

    agreement   natural log-probabilities of the text's own tokens against those of the workers in fp32, token by token
    gradients   of a whole step of the demo's student after some steps, by objective, against the store of the workers
                in fp32: cosine of all parameters' gradients
    training    runs of the demo's student from each of two stores, the same seeds: held-out bits per byte
    speed       text tokens a second of building, without starting; vLLM's start apart; and through ``vllm serve``
    waiting     share of their time that steps wait for that server, which has the other core, by the student's size:
                in the first pass over the data, the first steps aside

The bf16 store of the workers says what rounding alone does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from arms import ROOT
from measuring import add_output_options, spread, write_results
from served_server import served

sys.path.insert(0, str(ROOT))

RECIPE = ROOT / "launcher" / "recipes" / "store.yaml"
REFERENCE = "workers, fp32"
STORES = {
    REFERENCE: ("transformers", "fp32"),
    "workers, bf16": ("transformers", "bf16"),
    "vLLM, fp32": ("vllm", "fp32"),
    "vLLM, bf16": ("vllm", "bf16"),
}
TRAINED = (REFERENCE, "vLLM, bf16")
SERVED = "vLLM, bf16, served"
# Of a Llama; the first is the demo's.
STUDENTS = {
    "3M": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4},
    "28M": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8},
}
OBJECTIVES = {
    "0.7 ce + 0.3 projection": {"ce": 0.7, "projection": 0.3, "uld": 0.0},
    "projection": {"ce": 0.0, "projection": 1.0, "uld": 0.0},
    "likelihood": {"ce": 0.0, "likelihood": 1.0, "uld": 0.0},
    "uld": {"ce": 0.0, "uld": 1.0},
}
QUANTILES = (0.5, 0.9, 0.99)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = ROOT / ".cache" / "vllm" / "bin" / "python"
    parser.add_argument("--python", type=Path, default=default, help="a Python with vLLM (default: that of make vllm)")
    parser.add_argument("--top", type=int, default=64, help="likeliest tokens that vLLM tells (default: 64)")
    parser.add_argument("--rows", type=int, help="training rows (default: 800)")
    parser.add_argument("--seeds", type=int, help="training runs from each store (default: 3)")
    add_output_options(parser, quick="96 rows, one seed, 12 steps")
    options = parser.parse_args()
    if not options.python.exists():
        parser.error(f"--python {options.python} is not there: run `make vllm`, or name another")
    options.rows = options.rows or (96 if options.quick else 800)
    options.seeds = options.seeds or (1 if options.quick else 3)
    with tempfile.TemporaryDirectory(prefix="uld-ds-served-") as place:
        folder = Path(place)
        built = {name: build(folder, name, options) for name in STORES}
        agreement = {name: compared(folder, name) for name in STORES if name != REFERENCE}
        trained = {name: [train(folder, name, seed, options) for seed in range(options.seeds)] for name in TRAINED}
        gradients = gradients_of(folder, options)
        with served(options.python, model_of(folder, options), options.top, folder / "vllm.log") as url:
            built[SERVED] = build(folder, SERVED, options, url)
            waits = {title: waiting(folder, title, url, options) for title in STUDENTS}
    results = {"built": built, "agreement": agreement, "gradients": gradients, "trained": trained, "waits": waits}
    notes = [f"{built[REFERENCE]['text_tokens']:,} tokens of text, top {options.top}, one thread each"]
    write_results("served", table(results), results, options, notes=notes)
    return 0


# --- stores -----------------------------------------------------------------------------------------------------


def recipe_of(folder: Path, name: str, options: argparse.Namespace, **changes: Any) -> Path:
    """The recipe of a store, and of training from it; ``changes`` replace whole sections."""
    tree = yaml.safe_load(RECIPE.read_text())
    slug = slug_of(name)
    tree["run"] = {"name": slug, "storage": str(folder / "runs")}
    tree["teacher"] |= {"path": str(folder / "stores" / slug)}
    tree["data"]["train"]["limit"] = options.rows
    tree["store"] = {"top_ids": options.top}
    engine, precision = STORES.get(name, (None, None))
    if precision is None:
        of_workers = ("sharding", "max_tokens_per_forward")
        tree["teacher"] = {key: value for key, value in tree["teacher"].items() if key not in of_workers}
    else:
        tree["teacher"] |= {"precision": precision}
    if engine == "vllm":
        tree["store"] |= {"engine": "vllm", "top": options.top, "actors": {"python": str(options.python), "cpus": 1}}
    tree["cluster"] = {"workers": 1, "accelerator": "cpu", "threads_per_worker": 1}
    tree.pop("registry")
    file = folder / f"{slug}{len(changes)}.yaml"
    file.write_text(yaml.safe_dump(tree | changes))
    return file


def command(*words: str) -> str:
    """Runs the command line, and returns what it printed last."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "launcher", *words], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-3000:])
    return done.stdout.splitlines()[-1]


def build(folder: Path, name: str, options: argparse.Namespace, url: str | None = None) -> dict[str, Any]:
    """Builds a store; returns its facts, and where the seconds went. ``url`` is where a server answers."""
    file = recipe_of(folder, name, options)
    if url is not None:
        tree = yaml.safe_load(file.read_text())
        tree["teacher"] |= {"server": server_at(url, options)}
        file.write_text(yaml.safe_dump(tree))
    print(f"building: {name}", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    facts = json.loads(command("store", "build", str(file), "--json"))
    seconds = time.perf_counter() - begin
    journal = folder / "runs" / f"{file.stem.rstrip('0')}-store" / "progress.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step" and event["text"].startswith("data.train")]
    tokens = int(steps[-1]["text"].split(", ")[1].split()[0].replace(",", ""))
    return facts | {
        "text_tokens": tokens,
        "seconds": seconds,
        "asking": sum(event["seconds/total"] for event in steps),
    }


def slug_of(name: str) -> str:
    return name.replace(", ", "-").lower()


def compared(folder: Path, name: str) -> dict[str, Any]:
    """How far a store's log-probabilities are from those of the workers in fp32."""
    from uld_ds.teachers.store.reader import SpectrumStore

    stores = [SpectrumStore.open(str(folder / "stores" / slug_of(which)), with_top=True) for which in (REFERENCE, name)]
    right, found, same, likeliest = [], [], [], []
    for mine, theirs in zip(*(store.read(list(range(len(store)))) for store in stores), strict=True):
        right.append(mine.tokens.log_probs.numpy())
        found.append(theirs.tokens.log_probs.numpy())
        same.append((mine.tokens.top.ids[:, 0] == theirs.tokens.top.ids[:, 0]).numpy())
        likeliest.append(np.abs(mine.tokens.top.log_probs[:, 0].numpy() - theirs.tokens.top.log_probs[:, 0].numpy()))
    difference = np.abs(np.concatenate(right) - np.concatenate(found))
    return {
        "tokens": len(difference),
        "mean": float(difference.mean()),
        "quantiles": np.quantile(difference, QUANTILES).tolist(),
        "max": float(difference.max()),
        "bias": float(np.mean(np.concatenate(found) - np.concatenate(right))),
        "likeliest": float(np.concatenate(likeliest).mean()),
        "same": float(np.concatenate(same).mean()),
    }


def server_at(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """A recipe's ``teacher.server``."""
    return {"url": url, "api": "vllm", "top": options.top, "timeout": 600}


def model_of(folder: Path, options: argparse.Namespace) -> Path:
    """The teacher's weights, in Hugging Face layout."""
    from uld_ds.models.locate import locate_model
    from uld_ds.recipe import load_recipe

    recipe = load_recipe(recipe_of(folder, REFERENCE, options), environment={})
    return Path(locate_model(recipe.teacher_named().model_copy(update={"source": "online"}), "teacher"))


def waiting(folder: Path, title: str, url: str, options: argparse.Namespace) -> dict[str, float]:
    """How long the steps of a student take, and what of it they wait for the server."""
    print(f"served: the {title} student", file=sys.stderr, flush=True)
    slug = f"served-{title.lower()}"
    steps = 6 if options.quick else 16
    training = {"steps": steps, "batch_size": 16, "micro_batch_tokens": 2048}
    run = {"name": slug, "storage": str(folder / "runs")}
    tree = yaml.safe_load(recipe_of(folder, SERVED, options, run=run, training=training).read_text())
    tree["teacher"] |= {"source": "served", "server": server_at(url, options)}
    del tree["teacher"]["path"]
    tree["data"]["train"]["limit"] = max(options.rows, 16 * steps)
    heads = STUDENTS[title]["hidden_size"] // 64
    sizes = STUDENTS[title] | {"num_attention_heads": heads, "num_key_value_heads": heads}
    tree["student"]["from_config"] |= sizes
    file = folder / f"{slug}.yaml"
    file.write_text(yaml.safe_dump(tree))
    command("train", str(file), "--json")
    journal = folder / "runs" / slug / "progress.jsonl"
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    later = [event for event in events if event["event"] == "step"][2:]
    whole = sum(event["seconds/total"] for event in later)
    waited = sum(event["teacher_wait_seconds"] for event in later)
    return {"seconds": whole / len(later), "share": waited / whole}


# --- learning ---------------------------------------------------------------------------------------------------


def train(folder: Path, name: str, seed: int, options: argparse.Namespace) -> float:
    """Held-out bits per byte of a run from a store."""
    print(f"training: {name}, seed {seed}", file=sys.stderr, flush=True)
    run = {"name": f"{slug_of(name)}-{seed}", "storage": str(folder / "runs"), "seed": seed}
    training = {
        "steps": 12 if options.quick else 120,
        "batch_size": 16,
        "micro_batch_tokens": 2048,
        "optimizer": {"learning_rate": 2.0e-3, "weight_decay": 0.05},
        "schedule": {"kind": "cosine", "warmup": 0.1, "final": 0.1},
    }
    file = recipe_of(folder, name, options, run=run, training=training)
    return float(json.loads(command("train", str(file), "--json"))["bits_per_byte"]["after"])


def gradients_of(folder: Path, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Cosines of gradients with those of the workers' store in fp32, by store and objective."""
    found: dict[str, dict[str, float]] = {name: {} for name in STORES if name != REFERENCE}
    student = folder / "runs" / f"{slug_of(REFERENCE)}-0" / "export"
    for title, objective in OBJECTIVES.items():
        files = []
        for name in STORES:
            run = {"name": f"{slug_of(name)}-gradient", "storage": str(folder / "runs")}
            sections = {"run": run, "objective": objective, "training": {"steps": 1, "batch_size": 64}}
            tree = yaml.safe_load(recipe_of(folder, name, options, **sections).read_text())
            tree["student"] = {"model": str(student), "precision": "fp32", "max_length": 320}
            file = folder / f"gradient-{slug_of(name)}.yaml"
            file.write_text(yaml.safe_dump(tree))
            files.append(str(file))
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        worker = [sys.executable, str(Path(__file__).with_name("served_gradients.py")), *files]
        done = subprocess.run(worker, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        cosines = json.loads(done.stdout.splitlines()[-1])
        for name, cosine in zip(found, cosines, strict=True):
            found[name][title] = cosine
    return found


# --- results ----------------------------------------------------------------------------------------------------


def table(results: dict[str, Any]) -> str:
    """Markdown: a table for each question."""
    names = [f"{quantile:.0%}" for quantile in QUANTILES]
    lines = [
        "Log-probabilities of the text's tokens, nats from those of the workers in fp32:",
        "",
        f"| store | mean | {' | '.join(names)} | most | bias | of the likeliest, mean | same likeliest token |",
        "|---|---|" + "---|" * len(names) + "---|---|---|---|",
    ]
    for name, row in results["agreement"].items():
        quantiles = " | ".join(f"{value:.5f}" for value in row["quantiles"])
        lines.append(
            f"| {name} | {row['mean']:.5f} | {quantiles} | {row['max']:.4f} | {row['bias']:+.5f} | "
            f"{row['likeliest']:.5f} | {row['same']:.2%} |"
        )
    lines += ["", "Cosine of a step's gradient with that of the workers' store in fp32:", ""]
    lines += [f"| store | {' | '.join(OBJECTIVES)} |", "|---|" + "---|" * len(OBJECTIVES)]
    for name, row in results["gradients"].items():
        lines.append(f"| {name} | {' | '.join(f'{row[title]:.5f}' for title in OBJECTIVES)} |")
    lines += ["", "Held-out bits per byte of a student, median (least to most):", "", "| store | |", "|---|---|"]
    lines += [f"| {name} | {spread(values, '.4f')} |" for name, values in results["trained"].items()]
    between = [abs(a - b) for a, b in zip(*(results["trained"][name] for name in TRAINED), strict=True)]
    lines.append(f"\nOf the same seed they differ by {statistics.mean(between):.4f} on average.")
    lines += ["", "| store | text tokens/s | starting and the rest, s | bytes per token | of them top-k |"]
    lines += ["|---|---|---|---|---|"]
    for name, row in results["built"].items():
        rate, rest = row["text_tokens"] / row["asking"], row["seconds"] - row["asking"]
        size = f"{row['bytes_per_token']:.0f} | {row['top_bytes_per_token']:.0f}"
        lines.append(f"| {name} | {rate:,.0f} | {rest:.0f} | {size} |")
    lines += ["", "| student | seconds of a step | of them it waits for the server |", "|---|---|---|"]
    lines += [f"| {title} | {row['seconds']:.2f} | {row['share']:.1%} |" for title, row in results["waits"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
