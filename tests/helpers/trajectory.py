"""A fixed tiny run, bit for bit: its losses, its held-out bits per byte, its export, and the store that it learns from.

Run by itself (``python -m tests.helpers.trajectory FILE``) it writes what it found as JSON. Kernels that a processor
chooses by its abilities would give other bits on another machine: the environment that ``PINNED`` asks for makes them
the plainest ones, so it must be set before PyTorch is imported.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

PINNED = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "DNNL_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
LIBRARIES = ("torch", "transformers", "tokenizers", "deepspeed", "datasets", "numpy")
STEPS = 6
_SUBJECTS = ("a path", "naïve text", "the list", "every token", "one student", "a large teacher", "the byte range")
_VERBS = ("returns", "splits", "joins", "reads", "compares", "stores")


def made_with() -> dict[str, str]:
    """Name what bits depend on beside the code: libraries and the processor's family."""
    return {"machine": platform.machine()} | {name: version(name) for name in LIBRARIES}


def rows() -> list[dict[str, str]]:
    """Write the questions and answers of the run: sentences of a few words, some with characters of several bytes."""
    found = []
    for number in range(42):
        subject, verb = _SUBJECTS[number % len(_SUBJECTS)], _VERBS[number % len(_VERBS)]
        other = _SUBJECTS[(3 * number + 1) % len(_SUBJECTS)]
        answer = f"It {verb} {other}, {'then ' * (number % 3)}and gives {number} → {subject}."
        found.append({"prompt": f"What happens to {subject} in case {number}?", "answer": answer})
    return found


def recipe_in(folder: Path) -> dict[str, Any]:
    """Make tiny models and data in ``folder``, and the recipe of one rank over them."""
    from tests.helpers.tiny import save_tiny_model, tiny_recipe_in

    examples = rows()
    teacher = save_tiny_model(folder / "teacher", examples, kind="bpe", vocab_size=380, seed=1)
    student = save_tiny_model(folder / "student", examples, kind="unigram", vocab_size=340, seed=2)
    recipe = tiny_recipe_in(folder, teacher, student, examples)
    for name, part in {"train": examples[:32], "eval": examples[32:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    recipe["student"]["deepspeed"] = "student_zero3_cpu.json"
    recipe["objective"] = {"uld": 1.5, "likelihood": 0.5, "hybrid": 0.4, "projection": 0.9, "top_ids": 16}
    recipe["store"] = {"top_ids": 16}
    recipe["training"] |= {"steps": STEPS}
    recipe["cluster"] |= {"workers": 1}
    # The bits are those of padded batches, as they were before there were others.
    for side in ("teacher", "student"):
        recipe[side] |= {"packing": False}
    return recipe


def train(recipe: dict[str, Any], target: str) -> dict[str, Any]:
    """Train it by the library's own trainer, on this rank: losses as they are in memory, and the export's digest."""
    from uld_ds import Trainer

    trainer = Trainer.from_recipe(recipe, callbacks=[])
    result = trainer.run()
    trainer.save(target)
    state = result.state
    assert result.bits_after is not None
    assert state.bits_before is not None
    assert state.bits_teacher is not None
    bits = {"before": state.bits_before, "teacher": state.bits_teacher, "after": result.bits_after}
    trainer.engine.close()
    return {
        "losses": [step["train/loss"].hex() for step in trainer.history],
        "bits per byte": {name: value.hex() for name, value in bits.items()},
        "export": weights_digest(Path(target)),
    }


def weights_digest(folder: Path) -> str:
    """Digest the tensors of an export, by name: not the file, whose header names the library's version."""
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.tobytes())
    return digest.hexdigest()


def build_store(recipe: dict[str, Any], folder: str) -> None:
    """Build the stores of training and held-out examples, on this rank."""
    import torch
    from datasets import load_from_disk

    from launcher.drivers.store import part_of
    from uld_ds.data.sides import TextSide
    from uld_ds.data.teacher_batching import TeacherBatcher
    from uld_ds.models.pretrained import Pretrained
    from uld_ds.recipe import parse_recipe
    from uld_ds.teachers.online import OnlineTeacher
    from uld_ds.teachers.stored import held_out_url
    from uld_ds.training.deepspeed_config import teacher_config
    from uld_ds.training.engines import load_teacher
    from uld_ds.utils.distributed import Ranks
    from uld_ds.workers.store import StoreBuild

    parsed, cpu, ranks = parse_recipe(recipe), torch.device("cpu"), Ranks.current()
    assert parsed.teacher_named().model is not None
    assert parsed.data.eval is not None
    side = TextSide.of_model(
        Pretrained.from_settings(parsed.teacher_named(), "teacher"), parsed.teacher_named(), "teacher"
    )
    engine = load_teacher(
        parsed.teacher_named().model, parsed.teacher_named(), teacher_config(parsed.teacher_named(), on_gpu=False), cpu
    )
    url = f"{folder}/store"
    for key, source, place in (
        ("data.eval", parsed.data.eval, held_out_url(url)),
        ("data.train", parsed.data.train, url),
    ):
        part = part_of(key, source, place, parsed, side, Path(folder) / "x")
        part = replace(part, identity=part.identity | {"teacher": "teacher"})
        data = load_from_disk(str(Path(part.rows) / "rows"))
        batcher = TeacherBatcher(data, padding=0, max_tokens=parsed.teacher_named().max_tokens_per_forward)
        teacher = OnlineTeacher(engine, batcher, ranks=ranks, device=cpu, top_ids=parsed.store.top_ids)
        StoreBuild(part, data, teacher, ranks, cpu, None).run()


def measure(folder: Path) -> dict[str, Any]:
    """Run all of it: an online teacher on one and on two ranks, and a stored one on two; and the first one packed."""
    from tests.helpers.ranks import run_on_ranks

    recipe = recipe_in(folder)

    def named(name: str, **teacher: Any) -> dict[str, Any]:
        return recipe | {"run": recipe["run"] | {"name": name}, "teacher": recipe["teacher"] | teacher}

    packed = {side: recipe[side] | {"packing": True} for side in ("teacher", "student")}
    two = {"cluster": recipe["cluster"] | {"workers": 2}}
    run_on_ranks(build_store, 1, recipe, str(folder))
    files = sorted((folder / "store").glob("*.*"))
    store = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    stored = named("stored", source="stored", path=str(folder / "store"), model=None) | two
    del stored["teacher"]["precision"], stored["teacher"]["max_length"]
    stored["objective"] = {"uld": 1.5, "likelihood": 0.5}
    return {
        "store": store,
        "online, 1 rank": run_on_ranks(train, 1, named("one"), str(folder / "one"))[0],
        "online, 2 ranks": run_on_ranks(train, 2, named("two") | two, str(folder / "two"))[0],
        "packed, 1 rank": run_on_ranks(train, 1, named("packed") | packed, str(folder / "packed"))[0],
        "stored, 2 ranks": run_on_ranks(train, 2, stored, str(folder / "stored"))[0],
    }


if __name__ == "__main__":
    missing = {name: value for name, value in PINNED.items() if os.environ.get(name) != value}
    if missing:
        sys.exit(f"set {' '.join(f'{name}={value}' for name, value in missing.items())}")
    with tempfile.TemporaryDirectory() as place:
        os.environ["ULD_DS_CACHE"] = place
        found = measure(Path(place))
    Path(sys.argv[1]).write_text(json.dumps({"made with": made_with(), **found}, indent=1) + "\n")
