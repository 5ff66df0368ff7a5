"""What vLLM takes of an actor's device, and what it reads of the environment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from uld_ds.workers.vllm_options import device_options, set_environment


def cache_bytes(folder: Path, precision: str, tokens: int) -> int:
    options = device_options(folder, gpus=0.0, precision=precision, tokens=tokens)
    assert options["enforce_eager"]
    return int(options["kv_cache_memory_bytes"])


def test_memory_of_a_cpu_is_what_a_batch_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    llama = {"num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(llama))
    # 2 (keys, values) x 32 layers x 8 heads x 128 numbers of 2 bytes: 128 KiB a token.
    assert cache_bytes(tmp_path, "bf16", 64 * 4096) == 2**17 * 64 * 4096
    assert cache_bytes(tmp_path, "fp32", 64 * 4096) == 2**18 * 64 * 4096
    (tmp_path / "config.json").write_text(json.dumps({"text_config": llama | {"head_dim": 256}}))
    assert cache_bytes(tmp_path, "auto", 64 * 4096) == 2**18 * 64 * 4096
    assert cache_bytes(tmp_path, "fp32", 8 * 96) == 2**30
    (tmp_path / "config.json").write_text("{}")
    assert cache_bytes(tmp_path, "fp32", 96) == cache_bytes(tmp_path / "org" / "model", "fp32", 96) == 2**32
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    assert device_options(tmp_path, gpus=0.0, precision="bf16", tokens=9) == {"enforce_eager": True}


@pytest.mark.parametrize(
    ("gpus", "expected"),
    [
        (1.0, {"gpu_memory_utilization": 0.9}),
        (0.5, {"gpu_memory_utilization": 0.45}),
        (4.0, {"tensor_parallel_size": 4, "distributed_executor_backend": "mp"}),
    ],
)
def test_gpus_of_an_actor(gpus: float, expected: dict[str, Any], tmp_path: Path) -> None:
    assert device_options(tmp_path, gpus=gpus, precision="bf16", tokens=96) == expected


def test_on_gpus_compiling_pays_and_what_somebody_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"VLLM_LOGGING_LEVEL": "DEBUG"})
    set_environment(1.0)
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0" and os.environ["VLLM_LOGGING_LEVEL"] == "DEBUG"
    assert "TORCH_COMPILE_DISABLE" not in os.environ
    set_environment(0.0)
    assert os.environ["TORCH_COMPILE_DISABLE"] == "1"
