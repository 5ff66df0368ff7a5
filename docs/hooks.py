"""For mkdocs: the recipe reference and the page of measured results are made when the pages are built, so that they are
never out of date.

Pages that mkdocs.yml does not name in its menu are put behind those that it does, by their own titles.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from launcher.recipe_reference import recipe_reference

REFERENCE = "recipe.md"
DECISIONS = "decisions"
RESULTS = "results.md"
_MEASURED = Path("benchmarks") / "RESULTS.md"


def on_config(config: Any) -> Any:
    """Completes the menu."""
    named = {page for entry in config["nav"] for page in entry.values()}
    others = {file.name: _title(file) for file in Path(config["docs_dir"]).glob("*.md") if file.name not in named}
    config["nav"] += [{title: name} for name, title in sorted(others.items(), key=lambda item: item[1])]
    decisions = [{_title(file): f"{DECISIONS}/{file.name}"} for file in _decisions(config)]
    config["nav"] += [{"Decisions": decisions}]
    config["nav"] += [{"Measured results": RESULTS}, {"Recipe reference": REFERENCE}]
    return config


def _decisions(config: Any) -> list[Path]:
    """Return the records of decisions, their index first."""
    folder = Path(config["docs_dir"]) / DECISIONS
    return sorted(folder.glob("*.md"), key=lambda file: (file.name != "README.md", file.name))


def _title(file: Path) -> str:
    """The page's first heading."""
    return file.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")


def on_files(files: Files, config: Any) -> Files:
    """Adds what is made here."""
    files.append(File.generated(config, REFERENCE, content=recipe_reference()))
    measured = Path(config["docs_dir"]).parent / _MEASURED
    files.append(File.generated(config, RESULTS, content=measured.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Files beside ``docs`` are no pages, but for the results: what links to them keeps its words."""
    markdown = markdown.replace(f"](../{_MEASURED.as_posix()}", f"]({RESULTS}")
    out = "../" * (1 + page.file.src_uri.count("/"))
    return re.sub(rf"\[([^\]]*)\]\({re.escape(out)}[^)]+\)", r"\1", markdown)
