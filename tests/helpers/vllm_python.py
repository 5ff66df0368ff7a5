"""The Python that tests of vLLM run it with: one that was named, that of `make vllm`, or their own."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

ENVIRONMENT = Path(__file__).parents[2] / ".cache" / "vllm"


def vllm_python() -> str:
    """The interpreter to use; the test that asks is skipped where there is none."""
    named = os.environ.get("ULD_DS_VLLM_PYTHON")
    if named:
        return named
    # The mark is the last thing that is made: without it the environment is half of one.
    if (ENVIRONMENT / ".installed").is_file():
        return str(ENVIRONMENT / "bin" / "python")
    if importlib.util.find_spec("vllm") is not None:
        return sys.executable
    pytest.skip("no vLLM here: `make vllm` installs its build for CPUs, ULD_DS_VLLM_PYTHON names another Python")
