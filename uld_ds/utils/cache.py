"""Folders of installed packages, and the cache of converted models."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

from uld_ds.errors import UserError
from uld_ds.utils.files import file_digest, in_home, whole_folder

PACKAGE = "package:"
# What GGUF files are converted into is kept by this number: 2 since tokens have the ids and the split of their file.
_CONVERSION = 2


def cache_dir() -> Path:
    """Locate the folder for converted models: ``ULD_DS_CACHE``, else ``uld-ds`` in the user's cache folder."""
    default = in_home(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "uld-ds"
    return Path(os.environ.get("ULD_DS_CACHE", default))


def package_folder(place: str, key: str) -> Path:
    """Locate the folder of the installed Python package that ``package:NAME`` names, without importing it.

    Args:
        place: ``package:NAME``.
        key: the recipe's key that holds it, for the error.

    Raises:
        UserError: the package is not installed, or is a single file.
    """
    package = place.removeprefix(PACKAGE)
    # Located, never imported: a package of weights may pull in a whole inference runtime.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(key, f"the Python package {package!r} is not installed", "install it, with pip's --no-deps")
    return Path(spec.submodule_search_locations[0])


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Make folder ``target`` with ``build(folder_aside)`` unless it exists; never leave half of one.

    Raises:
        OSError: it could not be written, and no other process has made it meanwhile.
    """
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
    """Name the cache's folder for what is converted from GGUF file ``source``, after a digest of its content.

    Args:
        source: the GGUF file; it is read whole.
        kind: subfolder of the cache, one for each kind of result.
    """
    return cache_dir() / kind / f"{source.stem}-{file_digest(source)[:16]}-{_CONVERSION}"
