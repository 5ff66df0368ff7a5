"""What a student's frozen weights take beside adapters: in fp32, in bf16, and in 4 bits (student.lora.quantize).

    python benchmarks/four_bits.py            # 0.7 billion parameters: some four minutes, 5 GB of memory
    python benchmarks/four_bits.py --quick    # a tenth of them

One rank, ZeRO-2, LoRA of rank 16 on all linear layers, one step of 256 tokens; each form in a process of its own, from
the same files in bf16. ``weights`` counts bytes of everything frozen. ``loaded`` is resident memory after loading
without what was there before, ``loading`` its highest moment on the way (pages of the files that are mapped into memory
count, which any other process may take), ``step`` the highest of a forward and backward pass, the weights included.
Memory does not depend on how busy the machine is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measuring import PeakMemory, add_output_options, write_results
from random_llama import save_random_llama

ROOT = Path(__file__).resolve().parents[1]
FORMS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32", "lora": {}},
    "bf16": {"precision": "bf16", "lora": {}},
    "NF4 beside bf16": {"precision": "bf16", "lora": {"quantize": "nf4"}},
}
WHOLE = {"hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 12, "vocab_size": 32_000}
QUICK = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 4, "vocab_size": 16_000}
_TOKENS = 256


def save_student(folder: Path, sizes: dict[str, int]) -> None:
    """Random weights; of a tokenizer only the numbers of its special tokens are asked for."""
    import torch

    from uld_ds.tokenization.training import train_tokenizer

    torch.set_default_dtype(torch.bfloat16)
    save_random_llama(folder, train_tokenizer("bpe", 300, ["a few words"]), **sizes)


def measure(folder: Path, form: str) -> dict[str, int]:
    """Bytes, in this process."""
    import torch

    from uld_ds.recipe import parse_recipe
    from uld_ds.training.deepspeed_config import student_config
    from uld_ds.training.engines import init_process_group, load_student

    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    init_process_group(on_gpu=False)
    recipe = parse_recipe(
        {
            "run": {"name": "four-bits"},
            "teacher": {"model": "none"},
            "student": {"model": str(folder), "deepspeed": "student_zero2_cpu.json", **FORMS[form]},
            "data": {"train": {"source": "files", "path": "none"}},
            "training": {"steps": 1, "batch_size": 1},
        }
    )
    config = student_config(recipe, on_gpu=False)
    cpu, loading, step = torch.device("cpu"), PeakMemory("cpu"), PeakMemory("cpu")
    # Libraries that are imported when a model is first loaded are no part of it.
    options: dict[str, Any] = {"training": recipe.training, "seed": 0, "total_steps": 1, "device": cpu}
    load_student(str(folder / "small"), recipe.student, config, **options).destroy()
    with loading:
        student = load_student(str(folder), recipe.student, config, **options)
    before = loading.before
    with step:
        ids = torch.arange(_TOKENS)[None]
        hidden = student.module.lm.get_base_model().model(input_ids=ids, use_cache=False).last_hidden_state
        hidden.float().square().mean().backward()
    frozen = [name for name, parameter in student.module.named_parameters() if not parameter.requires_grad]
    state = student.module.state_dict()
    weights = sum(tensor.nbytes for name, tensor in state.items() if any(name.startswith(key) for key in set(frozen)))
    assert loading.peak is not None and step.peak is not None
    return {
        "weights": weights,
        "loaded": step.before - before,
        "loading": loading.peak,
        "step": step.before + step.peak - before,
    }


def in_a_process(folder: Path, form: str) -> dict[str, int]:
    """The same in a fresh one."""
    command = [sys.executable, __file__, "--of", str(folder), form]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29533"}
    environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", nargs=2, metavar=("FOLDER", "FORM"), help=argparse.SUPPRESS)
    add_output_options(parser, quick="a student of a tenth of the size")
    options = parser.parse_args()
    if options.of:
        print(json.dumps(measure(Path(options.of[0]), options.of[1])))
        return
    sizes = QUICK if options.quick else WHOLE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_student(folder, sizes)
        save_student(folder / "small", {**QUICK, "num_hidden_layers": 1})
        found = {form: in_a_process(folder, form) for form in FORMS}
    head = "| frozen weights | weights, MB | loaded, MB | loading, MB | step, MB |\n|---|---|---|---|---|\n"
    rows = [
        f"| {form} | " + " | ".join(f"{value / 1e6:.0f}" for value in row.values()) + " |"
        for form, row in found.items()
    ]
    write_results("four_bits", head + "\n".join(rows), found, options)


if __name__ == "__main__":
    main()
