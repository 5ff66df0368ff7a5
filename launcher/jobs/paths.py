"""The files that a recipe names: those that travel with a job, and those that every node must see by itself."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from uld_ds.errors import UserError
from uld_ds.recipe import FilesSource, GeneratorSource, HubSource, Recipe

_SHARED_FIX = "name a place that every node sees by its absolute path"


def check_shared_paths(recipe: Recipe) -> None:
    """Check that what must outlive the job, or be seen by all its workers, has absolute paths.

    A relative path of a job is one in its copy of the working directory, which is each node's own and goes with it.

    Raises:
        UserError: one of them is relative.
    """
    for key, place in _shared(recipe):
        if not _is_elsewhere(place):
            problem = f"{place!r} is relative: in a job it lies in a copy of the working directory, which goes with it"
            raise UserError(key, problem, _SHARED_FIX)


def _shared(recipe: Recipe) -> Iterator[tuple[str, str]]:
    yield "run.storage", recipe.run.storage
    for teacher in recipe.teachers:
        if teacher.source == "stored" and teacher.path is not None:
            yield f"{teacher.key}.path", teacher.path
    if recipe.tracking.uri is not None and recipe.tracking.uri.startswith("sqlite:///"):
        yield "tracking.uri", recipe.tracking.uri.removeprefix("sqlite:///")
    models = [(f"{teacher.key}.model", teacher.model) for teacher in recipe.teachers]
    for key, model in (*models, ("student.model", recipe.student.model)):
        # A name that is no folder here is a hub id, or a package.
        if model is not None and (model.startswith(".") or Path(model).is_dir()):
            yield key, model


def travelling_paths(recipe: Recipe, root: Path) -> list[Path]:
    """List the files that the recipe names by relative paths, absolute; they must travel with the job.

    Args:
        recipe: its relative paths begin at ``root``, where the job runs.
        root: the working directory.

    Raises:
        UserError: one does not exist, or is outside of ``root``.
    """
    files: list[Path] = []
    for key, place in _travelling(recipe, root):
        if _is_elsewhere(place):
            continue
        whole = root / place
        # What is there is meant, whatever its name would stand for as a pattern.
        matches = [str(whole)] if whole.exists() else glob.glob(str(whole), recursive=True)  # noqa: PTH207
        found = [Path(match) for match in sorted(matches)]
        if not found:
            problem = f"no file matches {place!r} in the working directory {str(root)!r}"
            raise UserError(key, problem, "correct it, or name a place that the cluster sees by its absolute path")
        for path in found:
            inside = path if path.is_file() else None
            files.extend(_inside(file, root, key) for file in ([inside] if inside else sorted(path.rglob("*"))))
    return [file for file in files if file.is_file()]


def _travelling(recipe: Recipe, root: Path) -> Iterator[tuple[str, str]]:
    for name, source in (("train", recipe.data.train), ("eval", recipe.data.eval)):
        if isinstance(source, FilesSource):
            for pattern in [source.path] if isinstance(source.path, str) else source.path:
                yield f"data.{name}.path", pattern
        elif isinstance(source, HubSource) and (source.dataset.startswith(".") or (root / source.dataset).is_dir()):
            yield f"data.{name}.dataset", source.dataset
        elif isinstance(source, GeneratorSource):
            module = source.function.partition(":")[0].replace(".", "/")
            # A module that is no file here is one of an installed package.
            yield from ((f"data.{name}.function", file) for file in (f"{module}.py", module) if (root / file).exists())
    tokenizer = recipe.student.tokenizer
    if isinstance(tokenizer, str) and (tokenizer.startswith(".") or (root / tokenizer).exists()):
        yield "student.tokenizer", tokenizer
    teachers = [(teacher.key, teacher) for teacher in recipe.teachers]
    for role, settings in (*teachers, ("student", recipe.student)):
        if settings.deepspeed is not None and (root / settings.deepspeed).is_file():
            yield f"{role}.deepspeed", settings.deepspeed


def inside_root(file: Path, root: Path, key: str) -> Path:
    """Make ``file`` an absolute path below ``root``, links left as they are.

    Raises:
        UserError: it is elsewhere.
    """
    return _inside(Path(os.path.abspath(file)), root, key)  # noqa: PTH100 (keeps links)


def _inside(path: Path, root: Path, key: str) -> Path:
    path = Path(os.path.normpath(path))
    if not path.is_relative_to(root):
        problem = f"{str(path)!r} is outside of the working directory {str(root)!r}, which is what a job gets"
        raise UserError(key, problem, "move it there, or choose another --working-dir")
    return path


def _is_elsewhere(place: str) -> bool:
    """Tell whether a place does not begin at the working directory: an absolute path, a home folder, a URL."""
    return place.startswith(("/", "~")) or "://" in place
