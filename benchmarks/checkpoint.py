"""How long a checkpoint holds training up: the copy to the host's memory, against writing it there and then.

    python benchmarks/checkpoint.py --parameters 60e6 --repeats 5
    python benchmarks/checkpoint.py --quick                 # 20 million parameters, three repeats

One rank, ZeRO-3, AdamW in fp32 (16 bytes per parameter). ``copy`` is what a step waits for; ``write`` (serialize, hash,
fsync) goes on beside training, ``synchronous`` is both, one after the other. ``restore`` is what a run that goes on
needs of a checkpoint: to compare its checksums and to load it (the file system's cache is warm).
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from measuring import add_output_options, spread, write_results
from transformers import LlamaConfig, LlamaForCausalLM


def engine_of(num_parameters: int) -> Any:
    """A student engine of about so many parameters, after one update, so that Adam has its moments."""
    import deepspeed

    from uld_ds.training.deepspeed_config import read_config
    from uld_ds.training.engines import init_process_group

    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    init_process_group(on_gpu=False)
    width = 512
    layers = max(1, round((num_parameters - 2 * 16_384 * width) / (12 * width * width)))
    sizes = {"hidden_size": width, "intermediate_size": 4 * width * 2 // 3, "num_hidden_layers": layers}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=16_384, num_attention_heads=8, **sizes))
    config = read_config(None, "student", on_gpu=False) | {
        "train_micro_batch_size_per_gpu": 1,
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "torch_adam": True}},
    }
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=config)
    ids = torch.arange(16)[None]
    engine.backward(engine(input_ids=ids, labels=ids).loss)
    engine.step()
    return engine


def measure(engine: Any, folder: Path, repeats: int) -> dict[str, Any]:
    """Seconds of each part in every repeat, and the bytes they are about."""
    from uld_ds.checkpointing.deepspeed_state import _TAG, host_state
    from uld_ds.checkpointing.files import problem_of, write_shard
    from uld_ds.checkpointing.state import TrainState

    copies, writes, restores, size = [], [], [], 0
    for repeat in range(repeats + 1):
        begin = time.perf_counter()
        state = host_state(engine, TrainState(step=repeat))
        copied = time.perf_counter()
        write_shard(folder / f"checkpoint_{repeat:09d}", 0, 1, state)
        written = time.perf_counter()
        problem = problem_of(folder / f"checkpoint_{repeat:09d}", [0])
        assert problem is None, problem
        engine.load_checkpoint(str(folder / f"checkpoint_{repeat:09d}"), tag=_TAG)
        restored = time.perf_counter()
        size = sum(file.stat().st_size for file in (folder / f"checkpoint_{repeat:09d}").rglob("*") if file.is_file())
        shutil.rmtree(folder / f"checkpoint_{repeat:09d}")
        if repeat:  # the first one also faults the memory in
            copies.append(copied - begin)
            writes.append(written - copied)
            restores.append(restored - written)
    both = [copy + write for copy, write in zip(copies, writes, strict=True)]
    return {"bytes": size, "copy": copies, "write": writes, "synchronous": both, "restore": restores}


def table(found: dict[str, Any]) -> str:
    """Markdown."""
    parts = (spread(found[name], ".2f") for name in ("copy", "write", "synchronous", "restore"))
    return (
        "| parameters | checkpoint, MB | copy (training waits), s | write (beside training), s | synchronous, s "
        "| compare and load, s |\n"
        "|---|---|---|---|---|---|\n"
        f"| {found['parameters'] / 1e6:.0f}M | {found['bytes'] / 1e6:,.0f} | {' | '.join(parts)} |"
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=float, help="of the student (default: 60e6)")
    parser.add_argument("--repeats", type=int, help="after one that warms up (default: 5)")
    parser.add_argument("--folder", type=Path, default=None, help="where checkpoints are written; default: temporary")
    add_output_options(parser, quick="20 million parameters, three repeats")
    options = parser.parse_args()
    options.parameters = options.parameters or (20e6 if options.quick else 60e6)
    options.repeats = options.repeats or (3 if options.quick else 5)
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="29517")
    engine = engine_of(int(options.parameters))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(engine, Path(folder), options.repeats)
    parameters = sum(getattr(p, "ds_numel", p.numel()) for p in engine.module.parameters())
    found = {"parameters": parameters, **found}
    write_results("checkpoint", table(found), found, options, notes=["One rank, ZeRO-3, AdamW in fp32"])


if __name__ == "__main__":
    main()
