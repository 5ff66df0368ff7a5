"""How vLLM is started in an actor: its environment, and what it takes of a device. Imports nothing but NumPy's like."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

VLLM_DTYPES = {"bf16": "bfloat16", "fp32": "float32", "auto": "bfloat16"}
"""vLLM's names of types, by a recipe's."""
_GPU_SHARE = 0.9
"""Share of a GPU's memory that vLLM takes for itself, where it has all of the GPU."""
_GIB = 2**30
_ENVIRONMENT = {
    # The engine runs in the actor's process: it goes when that goes.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # On CPUs, threads are as many as the actor has cores, and wherever the system puts them.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
}
_ENVIRONMENT_ON_CPUS = {
    # vLLM compiles some helpers at the first answer although it is told to be eager. It takes longer than it saves, and
    # wants a C++ compiler.
    "TORCH_COMPILE_DISABLE": "1",
}


def set_environment(gpus: float) -> None:
    """Set what vLLM reads of the environment when it is imported, where nobody has set it.

    Args:
        gpus: GPUs of the actor.
    """
    for name, value in (_ENVIRONMENT if gpus > 0 else _ENVIRONMENT | _ENVIRONMENT_ON_CPUS).items():
        os.environ.setdefault(name, value)


def device_options(folder: Path, *, gpus: float, precision: str, tokens: int) -> dict[str, Any]:
    """Choose vLLM's options that depend on the actor's device.

    Args:
        folder: of the model, in Hugging Face layout.
        gpus: GPUs of the actor: the model is divided among several; a part of one is a part of its memory.
        precision: the recipe's name of the weights' type.
        tokens: most tokens whose keys and values are held at once.
    """
    if gpus > 1:
        return {"tensor_parallel_size": math.ceil(gpus), "distributed_executor_backend": "mp"}
    if gpus > 0:
        return {"gpu_memory_utilization": _GPU_SHARE * gpus}
    has_own = "VLLM_CPU_KVCACHE_SPACE" in os.environ
    memory = {} if has_own else {"kv_cache_memory_bytes": _cache_bytes(folder, precision, tokens)}
    # Compiling takes longer than it saves.
    return {"enforce_eager": True, **memory}


def _cache_bytes(folder: Path, precision: str, tokens: int) -> int:
    """Compute the bytes of so many tokens' keys and values, 1 GiB at least: vLLM itself takes all memory."""
    file = folder / "config.json"
    if not file.is_file():  # a hub id
        return 4 * _GIB
    config = json.loads(file.read_text(encoding="utf-8"))
    config = config.get("text_config", config)
    try:
        heads = config["num_attention_heads"]
        size = config.get("head_dim") or config["hidden_size"] // heads
        per_token = 2 * config["num_hidden_layers"] * (config.get("num_key_value_heads") or heads) * size
    except KeyError:  # an architecture with other words
        return 4 * _GIB
    return max(_GIB, (4 if precision == "fp32" else 2) * per_token * tokens)
