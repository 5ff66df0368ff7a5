"""A whole optimizer step, with the teacher beside the student or out of a store, against a step of TRL GOLD.

    python benchmarks/teacher.py --quick                  # one pair, a few minutes on two cores
    python benchmarks/teacher.py --gemma FOLDER --output teacher.json --markdown teacher.md

Pairs (teacher -> student), in fp32, eight answers of 256 teacher tokens a step:

    demo     SmolLM2-135M -> a 3M Llama with a 4,096-entry Unigram tokenizer (the demo's)
    bytes    SmolLM2-135M -> a 20M Llama with GPT-2's byte-level tokenizer: TRL's extended mode knows only such pairs
    gemma    Gemma 3 270M -> SmolLM2-135M; FOLDER holds the teacher in Hugging Face layout

Arms, each a process of its own that waits for its turn, so that a busy machine disturbs all alike:

    online          the teacher whole beside the student, micro-batches of at most 2,400 tokens end to end
    online, auto    the same with ``teacher.precision: auto``: bf16 where that is measured to be faster
    online 2 ranks  on two ranks of one thread each, the teacher sharded by ZeRO-3 over both
    stored          the teacher's words out of a spectrum store, no teacher in memory
    before, online  with ``--before TREE``: the build of that checkout, micro-batches of one; before, stored likewise
    trl positional  trl.experimental.gold GOLDTrainer, position by position (micro-batches of one)
    trl positional, teacher in bf16    trl extended: segments by byte offsets

Printed are medians with smallest and largest, the peak memory of the process (of the larger rank), bytes of the
teacher's weights that were gathered, and ratios where the spread leaves them a meaning. Building the store is timed
apart: it is paid once for any number of students and epochs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from arms import ROOT, Arm, budget, build_store, compared, in_turns, ours, trl
from measuring import add_output_options, add_trl_options, num_cores, spread, write_results
from random_llama import save_random_llama
from uld import trl_python

TOKENS, EXAMPLES, BUDGET = 256, 8, 2400
# (arm, against, at least this many times faster, at most this share of its memory; None: no aim).
TARGETS: list[tuple[str, str, float, float | None]] = [
    ("online", "trl positional", 3.0, 0.8),
    ("online, auto", "trl positional", 3.0, 0.8),
    ("stored", "trl positional", 12.0, 0.5),
    ("stored", "trl extended", 5.0, 0.6),
    ("online", "before, online", 1.5, None),
    ("stored", "before, stored", 2.0, None),
]
ARMS = [
    "online",
    "online, auto",
    "online 2 ranks",
    "stored",
    "before, online",
    "before, stored",
    "trl positional",
    "trl positional, teacher in bf16",
    "trl extended",
]
# scaling.py has two ranks of the same pair.
QUICK_ARMS = [arm for arm in ARMS if arm not in ("online 2 ranks", "trl positional, teacher in bf16")]


def arms_of(pair: dict[str, Any], folder: Path, trl_python: Path | None, before: Path | None) -> list[Arm]:
    """All arms of a pair."""
    arms = [
        ours("online", folder, changes=budget(BUDGET)),
        ours("online, auto", folder, changes=[*budget(BUDGET), "teacher.precision=auto"]),
        ours("online 2 ranks", folder, ranks=2),
        ours("stored", folder, changes=budget(BUDGET), stored=True),
    ]
    if before is not None:
        arms += [
            ours("before, online", folder, tree=before),
            ours("before, stored", folder, stored=True, tree=before),
        ]
    if trl_python is not None:
        arms.append(trl("positional", folder, trl_python, teacher_dtype="bfloat16"))
        modes = ("positional", "extended") if pair["byte_level"] else ("positional",)
        arms += [trl(mode, folder, trl_python) for mode in modes]
    return arms


def measure(pair: dict[str, Any], folder: Path, options: argparse.Namespace, python: Path | None) -> dict[str, Any]:
    """All arms of one pair, step by step in turns."""
    begin = time.perf_counter()
    build_store(folder)
    building = time.perf_counter() - begin
    arms = [arm for arm in arms_of(pair, folder, python, options.before) if arm.name in options.only]
    in_turns(pair["name"], arms, options.steps, folder / "arms.log")
    facts = json.loads((folder / "store.json").read_text())
    records = [arm.to_json() for arm in arms]
    return {"pair": pair["name"], "store_seconds": building, "store": facts, "arms": records}


# --- pairs ------------------------------------------------------------------------------------------------------


def make_pair(name: str, folder: Path, gemma: Path | None) -> dict[str, Any]:
    """Models, text and recipe of a pair in ``folder``."""
    sys.path.insert(0, str(ROOT))
    from transformers import AutoTokenizer

    smollm2 = located_smollm2()
    teacher = str(gemma) if name == "gemma" else smollm2
    student = smollm2 if name == "gemma" else str(scratch_student(name, folder / "student"))
    texts = answers_of(AutoTokenizer.from_pretrained(teacher))
    rows = [{"prompt": f"Explain part {number}.", "answer": text} for number, text in enumerate(texts)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "run": {"name": "b", "storage": str(folder / "runs")},
        "teacher": {"model": teacher, "precision": "fp32", "max_length": 1024, "max_tokens_per_forward": 2400},
        "student": {"model": student, "precision": "fp32", "max_length": 1024},
        "data": {"train": {"source": "files", "path": str(folder / "train.jsonl")}},
        "training": {"steps": 100, "batch_size": EXAMPLES},
        "cluster": {"workers": 1, "accelerator": "cpu", "threads_per_worker": num_cores()},
    }
    if name == "gemma":
        # The base model has no chat template.
        recipe["teacher"]["prompt_template"] = "{prompt}\n"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    pair = {"name": name, "teacher": teacher, "student": student, "byte_level": name == "bytes"}
    (folder / "pair.json").write_text(
        json.dumps(pair | {"text": str(folder / "train.jsonl"), "examples": EXAMPLES, "max_length": 1024})
    )
    return pair


def located_smollm2() -> str:
    """The demo teacher's folder, converted if need be."""
    from uld_ds.models.locate import locate_model
    from uld_ds.recipe import load_recipe

    return locate_model(
        load_recipe(ROOT / "launcher" / "recipes" / "demo.yaml", environment={}).teacher_named(), "teacher"
    )


def scratch_student(name: str, folder: Path) -> Path:
    """A small Llama from scratch; of the demo's size and tokenizer, or of GPT-2's tokenizer."""
    from launcher.recipes.stdlib_docstrings import pairs
    from tests.helpers import tokenizers_zoo
    from uld_ds.tokenization.training import train_tokenizer

    if name == "demo":
        tokenizer: Any = train_tokenizer("unigram", 4096, (text for row in pairs("train") for text in row.values()))
    else:
        tokenizer = tokenizers_zoo.gpt2()
        tokenizer.chat_template = (
            "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token + '\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
        )
        tokenizer.pad_token = tokenizer.eos_token
    size = 192 if name == "demo" else 320
    save_random_llama(
        folder,
        tokenizer,
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=512 if name == "demo" else 1024,
        num_hidden_layers=4,
        max_position_embeddings=1024,
    )
    return folder


def answers_of(tokenizer: Any, number: int = 4 * EXAMPLES) -> list[str]:
    """Real text in pieces of TOKENS tokens of the teacher."""
    from launcher.recipes.stdlib_docstrings import pairs

    text = "\n\n".join(row["answer"] for row in pairs("train"))[: number * TOKENS * 8]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = [tokenizer.decode(ids[start : start + TOKENS]) for start in range(0, number * TOKENS, TOKENS)]
    return [piece.strip().replace("\ufffd", "?") for piece in pieces]


# --- results ----------------------------------------------------------------------------------------------------


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: every arm of every pair, then the targets."""
    lines = [
        "| pair | arm | s/step, median (min to max) | peak memory, GB | gathered, MB/step |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        for arm in result["arms"]:
            if arm["failed"] or not arm["seconds"]:
                lines.append(f"| {result['pair']} | {arm['name']} | {arm['failed'] or 'no step'} | | |")
                continue
            seconds = spread(arm["seconds"], ".2f")
            numbers = f"{arm['peak_bytes'] / 1e9:.2f} | {arm['gathered_bytes'] / 1e6:.0f}"
            lines.append(f"| {result['pair']} | {arm['name']} | {seconds} | {numbers} |")
    lines.append("")
    for result in results:
        arms = {arm["name"]: arm for arm in result["arms"]}
        store = result["store"]
        lines.append(
            f"{result['pair']}: a store of {store['teacher_tokens']:,} tokens, {store['bytes_per_token']:.1f} bytes "
            f"each, built in {result['store_seconds']:.0f} s (start-up included)"
        )
        for fast, slow, wanted, memory in TARGETS:
            if slow in arms and fast in arms:
                middle, said = compared(arms[slow], arms[fast])
                verdict = "" if middle != middle else (" - reached" if middle >= wanted else " - missed")
                lines.append(f"- {fast} against {slow}: {said} times faster (aim {wanted:g}){verdict}")
                if arms[slow]["peak_bytes"] and arms[fast]["peak_bytes"]:
                    share = arms[fast]["peak_bytes"] / arms[slow]["peak_bytes"]
                    aim = "" if memory is None else f" (aim {memory:g}) - {'reached' if share <= memory else 'missed'}"
                    lines.append(f"- memory of it: {share:.2f} of {slow}'s{aim}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", action="append", choices=["demo", "bytes", "gemma"], help="default: all there are")
    parser.add_argument("--gemma", type=Path, help="folder of Gemma 3 270M in Hugging Face layout")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each arm (default: 5)")
    parser.add_argument("--only", action="append", choices=ARMS, help="measure only these arms; repeatable")
    parser.add_argument("--before", type=Path, metavar="TREE", help="a checkout of another build, measured beside")
    add_trl_options(parser)
    add_output_options(parser, quick="the demo pair, three steps, without online 2 ranks and TRL's teacher in bf16")
    options = parser.parse_args()
    names = options.pair or (["demo"] if options.quick else ["demo", "bytes", *(["gemma"] if options.gemma else [])])
    if "gemma" in names and options.gemma is None:
        parser.error("--pair gemma needs --gemma FOLDER")
    options.steps = 3 if options.quick else options.steps
    options.only = options.only or (QUICK_ARMS if options.quick else ARMS)
    python = trl_python(options.cache) if options.with_trl else None
    results = []
    for name in names:
        folder = Path(tempfile.mkdtemp(prefix=f"uld-ds-{name}-"))
        try:
            results.append(measure(make_pair(name, folder, options.gemma), folder, options, python))
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    note = f"{EXAMPLES} answers of {TOKENS} teacher tokens a step, fp32"
    write_results("teacher", table(results), results, options, notes=[note])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
