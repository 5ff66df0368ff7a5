"""The documentation: its links lead somewhere, and it builds without a warning where mkdocs is installed."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_links_lead_to_pages() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http|#|\.\./)([^)#]+)", page.read_text()):
            assert target == "recipe.md" or (page.parent / target).exists(), (page.name, target)


def test_it_builds_strictly(tmp_path: Path) -> None:
    if importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed (make docs)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "training.checkpoint_every" in (tmp_path / "recipe" / "index.html").read_text()
