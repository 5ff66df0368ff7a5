"""The documentation: its links lead somewhere, and it builds without a warning where mkdocs is installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def test_links_lead_to_pages() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!http|#|\.\./)([^)#]+)", page.read_text()):
            assert target == "recipe.md" or (page.parent / target).exists(), (page.name, target)


def test_messages_of_troubleshooting_are_in_the_program() -> None:
    """Their longest piece without values, in code whose strings are put together."""
    files = [file for folder in ("uld_ds", "launcher") for file in (ROOT / folder).rglob("*.py")]
    code = re.sub(r'"\s*\n\s*f?"', "", "\n".join(file.read_text() for file in files))
    rows = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs" / "troubleshooting.md").read_text(), flags=re.M)
    assert len(rows) > 10
    for message in rows:
        longest = max(re.findall(r"[a-z][a-zA-Z ]+[a-z]", message), key=len)
        assert len(longest) > 12, message
        assert longest in code, message


def test_charts_are_those_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    charts = importlib.import_module("charts")
    sections = charts.every.read_results()
    for name, chart in {"steps.svg": charts.steps, "quality.svg": charts.quality}.items():
        assert (ROOT / "docs" / name).read_text() == chart(sections), f"{name}: run python docs/charts.py"


def test_it_builds_strictly(tmp_path: Path) -> None:
    if importlib.util.find_spec("material") is None:
        pytest.skip("mkdocs-material is not installed (make docs)")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "training.checkpoint_every" in (tmp_path / "recipe" / "index.html").read_text()
    assert "The spectrum store" in (tmp_path / "results" / "index.html").read_text()
    assert "benchmarks/store.py --quick" in (tmp_path / "results" / "store" / "index.html").read_text()
    assert 'href="../results/"' in (tmp_path / "performance" / "index.html").read_text()
