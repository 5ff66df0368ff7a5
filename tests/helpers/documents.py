"""The repository's README, and the code in a document."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def code_blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def run_blocks(blocks: Sequence[str], folder: Path) -> None:
    """Run a document's Python in ``folder``, one block after the other; for a rank that is to forget that it is one."""
    import torch.distributed

    torch.distributed.destroy_process_group()
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    os.chdir(folder)
    names: dict[str, Any] = {"__name__": "page"}
    for block in blocks:
        exec(compile(block, f"{folder}, a document", "exec", dont_inherit=True), names)
