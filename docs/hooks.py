"""For mkdocs: the recipe reference and the pages of measured results are made when the pages are built, so that they
are never out of date.

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
RESULTS = "results"
_MEASURED = Path("benchmarks") / "results"


def on_config(config: Any) -> Any:
    """Completes the menu."""
    named = {page for entry in config["nav"] for page in entry.values()}
    others = {file.name: _title(file) for file in Path(config["docs_dir"]).glob("*.md") if file.name not in named}
    config["nav"] += [{title: name} for name, title in sorted(others.items(), key=lambda item: item[1])]
    decisions = [{_title(file): f"{DECISIONS}/{file.name}"} for file in _pages(Path(config["docs_dir"]) / DECISIONS)]
    measured = [{_title(file): f"{RESULTS}/{file.name}"} for file in _measured(config)]
    config["nav"] += [{"Decisions": decisions}, {"Measured results": measured}, {"Recipe reference": REFERENCE}]
    return config


def _measured(config: Any) -> list[Path]:
    """Return the files of results, their index first."""
    return _pages(Path(config["docs_dir"]).parent / _MEASURED)


def _pages(folder: Path) -> list[Path]:
    """Return a folder's pages, their index first."""
    return sorted(folder.glob("*.md"), key=lambda file: (file.name != "README.md", file.name))


def _title(file: Path) -> str:
    """The page's first heading."""
    return file.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")


def on_files(files: Files, config: Any) -> Files:
    """Adds what is made here."""
    files.append(File.generated(config, REFERENCE, content=recipe_reference()))
    for file in _measured(config):
        content = file.read_text(encoding="utf-8")
        files.append(File.generated(config, f"{RESULTS}/{file.name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Files beside ``docs`` are no pages, but for those of results: what links to them keeps its words."""
    up = "../" * page.file.src_uri.count("/")  # from the page to docs
    markdown = markdown.replace(f"]({up}../{_MEASURED.as_posix()}/", f"]({up}{RESULTS}/")
    return re.sub(rf"\[([^\]]*)\]\({re.escape(up)}\.\./[^)]+\)", r"\1", markdown)
