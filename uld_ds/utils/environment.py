"""The environment of a run: versions of packages, revision of the code, the machine."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from uld_ds.version import __version__

REVISION = "ULD_DS_REVISION"
"""Environment variable with the revision of the code that an image holds, where there is no git to ask."""
LIBRARIES = ("torch", "transformers", "tokenizers", "deepspeed", "ray", "mlflow", "datasets", "accelerate", "numpy")
EXTRAS = {
    "bert-score": "bertscore",
    "bitsandbytes": "qlora",
    "gguf": "demo",
    "lm-eval": "harness",
    "peft": "lora",
    "vllm": "vllm",
}
"""Optional library -> the extra of this package that installs it."""
_GIT_SECONDS = 10


@dataclass(frozen=True)
class CodeRevision:
    """The revision of this package's code."""

    revision: str
    """Commit, else what ``ULD_DS_REVISION`` says, else the release."""
    dirty: bool | None
    """Whether files differ from the revision; None where that cannot be known."""

    def __str__(self) -> str:
        return self.revision + ("-dirty" if self.dirty else "")


@functools.cache
def code_revision() -> CodeRevision:
    """Find the revision of this package's own repository, not that of the folder that a command runs in."""
    # The package itself; this module lies in one of its folders.
    root = Path(__file__).resolve().parents[1]
    # An installed copy inside somebody else's repository is not that repository's code.
    tracked = _git(root, "ls-files", "--error-unmatch", "__init__.py")
    commit = _git(root, "rev-parse", "HEAD") if tracked is not None else None
    if commit is None:
        return CodeRevision(os.environ.get(REVISION) or f"release {__version__}", None)
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ":/")
    return CodeRevision(commit, None if changes is None else bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    # Of the caller's environment, a GIT_DIR would point elsewhere.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(  # noqa: S603 (fixed arguments)
            ["git", "-C", str(folder), *arguments],  # noqa: S607 (whichever git the user has)
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_GIT_SECONDS,
            check=True,
            env=variables,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def library_versions() -> dict[str, str]:
    """Collect the versions of Python and of the libraries that shape a run.

    Raises:
        PackageNotFoundError: one of ``LIBRARIES`` is not installed.
    """
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def environment() -> dict[str, Any]:
    """Describe code, machine, Python and all packages as plain values, the same for runs in the same environment."""
    packages = {dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions()}
    return {
        "uld_ds": __version__,
        "code": asdict(code_revision()),
        "python": sys.version,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "libraries": library_versions(),
        "packages": {name: packages[name] for name in sorted(filter(None, packages), key=str.lower)},
    }
