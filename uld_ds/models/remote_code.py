"""Code that comes with a model: none is run, except of one repository at one commit where the recipe says so.

A class that a model brings is named in its ``config.json`` or ``tokenizer_config.json`` under ``auto_map``, as
``module.Class`` for a module beside that file, or as ``organization/name--module.Class`` for one of another
repository. Before anything is imported, every such name is compared with what the recipe trusts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uld_ds.errors import UserError
from uld_ds.recipe.models import FULL_COMMIT, trusted_code

if TYPE_CHECKING:
    from uld_ds.recipe.models import ModelSettings, RemoteCodeSettings

_FILES = ("config.json", "tokenizer_config.json")


def needs_code(place: str, key: str) -> UserError:
    """Make the error of a model that cannot be loaded without code of its own, which nobody has trusted."""
    problem = f"{place!r} needs code of its own, and uld-ds runs none that comes with a model unless told to"
    if not key.startswith("teacher"):
        return UserError(key, problem, "use a model that transformers knows (only a teacher may have code of its own)")
    repository = "organization/name" if Path(place).is_dir() else place
    fix = (
        "use a model that transformers knows, or read its code and then write "
        f"teacher.remote_code: {{repository: {repository}, revision: <the commit's 40 digits>}}"
    )
    return UserError(key, problem, fix)


def check_remote_code(settings: ModelSettings, place: str, key: str) -> None:
    """Check that loading a model would run no code but that which the recipe trusts.

    Args:
        settings: Section of the model; that of a teacher may trust a repository.
        place: Directory or hub id.
        key: Name of the section in the recipe, for messages.

    Raises:
        UserError: the model's configuration names code of another repository or of its own folder, or a hub id whose
            ``revision`` may be another commit tomorrow.
    """
    trusted = trusted_code(settings)
    if trusted is None:
        return
    is_folder = Path(place).is_dir()
    if not is_folder and not FULL_COMMIT.fullmatch(settings.revision or ""):
        problem = f"{settings.revision!r} is no commit, and {place!r} says which of the trusted code is run"
        fix = f"set {key}.revision to the 40 hexadecimal digits of one"
        if place == trusted.repository:
            fix = f"set {key}.revision={trusted.revision}, as {key}.remote_code.revision is"
        raise UserError(f"{key}.revision", problem, fix)
    for name in _FILES:
        for reference in _classes(_content(place, name, settings.revision)):
            _check_reference(reference, trusted, place, name, is_folder=is_folder, key=key)


def _check_reference(
    reference: str, trusted: RemoteCodeSettings, place: str, file: str, *, is_folder: bool, key: str
) -> None:
    repository, separator, _ = reference.rpartition("--")
    if not separator and is_folder:
        problem = f"{file} in {place!r} names {reference!r} of its own folder, which has no revision"
        fix = "give the hub id as model; offline, what is in the hub's cache is enough"
        raise UserError(f"{key}.remote_code", problem, fix)
    wanted = repository if separator else place
    if wanted != trusted.repository:
        problem = f"{trusted.repository!r} is trusted, and {file} of {place!r} names {reference!r} of {wanted!r}"
        fix = "read that code, and correct repository and revision"
        raise UserError(f"{key}.remote_code.repository", problem, fix)


def _content(place: str, name: str, revision: str | None) -> Mapping[str, Any]:
    from transformers.utils import cached_file

    file = cached_file(place, name, revision=revision, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return {}
    content = json.loads(Path(file).read_text(encoding="utf-8"))
    return content if isinstance(content, Mapping) else {}


def _classes(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield all names under ``auto_map``, wherever in a configuration it is: parts of a model have their own."""
    for key, value in content.items():
        if key == "auto_map":
            yield from _texts(value)
        elif isinstance(value, Mapping):
            yield from _classes(value)


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from _texts(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _texts(value)
