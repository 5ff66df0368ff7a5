"""What a bug report should say of an installation: versions, devices, variables, the cache. Nothing of it is secret."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from launcher.drivers.import_probe import probe_imports
from uld_ds.errors import one_line
from uld_ds.utils.cache import cache_dir
from uld_ds.utils.environment import EXTRAS, LIBRARIES, code_revision
from uld_ds.utils.machine import this_machine
from uld_ds.utils.redaction import Redactor
from uld_ds.version import __version__

MODULES = {"bert-score": "bert_score", "lm-eval": "lm_eval"}
"""Names that ``import`` takes of libraries that are named otherwise."""
_VARIABLES = re.compile(
    r"(ULD_DS|RAY|HF|HUGGING_?FACE|TRANSFORMERS|TOKENIZERS|DATASETS|PYTORCH|DS|DEEPSPEED|CUDA|NVIDIA|NCCL|GLOO|HIP|ROCR"
    r"|OMP|MKL|OPENBLAS|KMP|MLFLOW|AWS|AZURE|GOOGLE|FSSPEC|VLLM|CONDA)_\w+|(PYTHON|TORCH)\w+"
    r"|LD_LIBRARY_PATH|LD_PRELOAD|XDG_CACHE_HOME|VIRTUAL_ENV|TMPDIR|(HTTPS?|NO|ALL)_PROXY|MASTER_(ADDR|PORT)"
    r"|(LOCAL_)?RANK|(LOCAL_)?WORLD_SIZE",
    flags=re.IGNORECASE,
)
_NVIDIA_SMI_SECONDS = 20


def bug_report() -> dict[str, Any]:
    """Collect the facts of an installation as plain values, with secrets hidden and the home folder as ``~``.

    Takes seconds: every library is imported, in another process. No Ray is started.
    """
    libraries = {name: _installed(name) for name in (*LIBRARIES, *EXTRAS)}
    imports = probe_imports([MODULES.get(name, name) for name, found in libraries.items() if found is not None])
    facts = {
        "uld_ds": {"version": __version__, **asdict(code_revision())},
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "platform": platform.platform(),
        "libraries": {
            name: {
                "version": found,
                "extra": EXTRAS.get(name),
                "problem": imports.problems.get(MODULES.get(name, name)),
            }
            for name, found in libraries.items()
        },
        "machine": asdict(this_machine()),
        "torch": imports.torch,
        "nvidia_smi": _nvidia_smi(),
        "environment": relevant_variables(os.environ),
        "cache": _cache(),
    }
    found = _without_home(Redactor().tree(facts))
    assert isinstance(found, dict)
    return found


def relevant_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Select the variables that libraries of a run read, by name; their values are not redacted yet.

    >>> relevant_variables({"EDITOR": "ed", "NCCL_DEBUG": "INFO", "http_proxy": "http://10.0.0.1:3128"})
    {'NCCL_DEBUG': 'INFO', 'http_proxy': 'http://10.0.0.1:3128'}
    """
    return {name: variables[name] for name in sorted(variables) if _VARIABLES.fullmatch(name)}


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _nvidia_smi() -> dict[str, Any] | None:
    """Return the driver's version and the names of its GPUs; None where there is no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run(  # noqa: S603 (fixed arguments)
            [program, "--query-gpu=driver_version,name", "--format=csv,noheader"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_NVIDIA_SMI_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return {"driver": None, "gpus": [], "problem": one_line(error)}
    rows = [line.split(", ", 1) for line in done.stdout.splitlines() if ", " in line]
    return {"driver": rows[0][0] if rows else None, "gpus": [name for _, name in rows], "problem": None}


def _cache() -> dict[str, Any]:
    folder = cache_dir()
    there = next((place for place in (folder, *folder.parents) if place.is_dir()), None)
    free = None
    with suppress(OSError):
        free = shutil.disk_usage(there).free if there is not None else None
    return {"folder": str(folder), "exists": folder.is_dir(), "free_bytes": free}


def _without_home(tree: Any) -> Any:
    """Replace the home folder by ``~`` in all texts: as a rule it has a person's name in it."""
    if isinstance(tree, dict):
        return {key: _without_home(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_without_home(value) for value in tree]
    home = ""
    with suppress(RuntimeError):
        home = str(Path.home()).rstrip("/")
    return re.sub(rf"{re.escape(home)}(?![\w.-])", "~", tree) if isinstance(tree, str) and home else tree
