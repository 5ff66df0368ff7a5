"""Folders of installed packages, and the cache of what was converted once."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from uld_ds.errors import UserError
from uld_ds.utils.files import file_digest, in_home, whole_folder

PACKAGE = "package:"


def cache_dir() -> Path:
    """Folder for converted models: ``ULD_DS_CACHE``, or ``uld-ds`` in the user's cache folder."""
    default = in_home(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "uld-ds"
    return Path(os.environ.get("ULD_DS_CACHE", default))


def package_folder(place: str, key: str) -> Path:
    """The folder of the installed Python package that ``package:NAME`` names.

    Raises:
        UserError: it is not installed, or is a single file.
    """
    package = place.removeprefix(PACKAGE)
    # Located, never imported: a package of weights may pull in a whole inference runtime.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(key, f"the Python package {package!r} is not installed", "install it, with pip's --no-deps")
    return Path(spec.submodule_search_locations[0])


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Makes folder ``target`` with ``build(folder_aside)`` unless it exists; never leaves half of one."""
    if target.is_dir():
        return target
    try:
        # On the disk before it has its name, which is all that is looked at later.
        with whole_folder(target, sync=True) as aside:
            build(aside)
    except OSError:
        if not target.is_dir():  # else another process was faster, with the same content
            raise
    return target


def converted_gguf(source: Path, kind: str) -> Path:
    """Where what was made of the GGUF file ``source`` is kept: a folder of the cache named after its content."""
    return cache_dir() / kind / f"{source.stem}-{file_digest(source)[:16]}"
