"""Files of a store, in a folder or anywhere fsspec reaches; a file appears whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any, BinaryIO, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from uld_ds.errors import UserError, one_line
from uld_ds.utils.files import ASIDE, write_whole

# Protocols where a put is atomic by itself, and a rename would be a copy.
_ATOMIC_PUT = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss", "oci", "memory"}


class StoreFiles:
    """The files directly inside a store's folder.

    Args:
        url: Path, or URL with a protocol that fsspec knows.
        key: Recipe key where the user named it.

    Raises:
        UserError: a protocol that is unknown or whose package is not installed, or no URL.
    """

    def __init__(self, url: str | os.PathLike[str], *, key: str = "store") -> None:
        self.url = str(url).rstrip("/")
        try:
            self._fs, root = cast("tuple[Any, str]", fsspec.core.url_to_fs(str(url)))
        except (ImportError, ValueError) as error:
            fix = "install the package" if isinstance(error, ImportError) else "give a folder or another URL"
            raise UserError(key, f"{str(url)!r} cannot be reached ({one_line(error)})", fix) from error
        self._root = root.rstrip("/")

    def path(self, name: str) -> str:
        """Return the path or URL of the file ``name``, as the user would write it."""
        return f"{self.url}/{name}"

    def names(self) -> list[str]:
        """List the names of all files, sorted; none if there is no folder."""
        self._fs.invalidate_cache(self._root)
        try:
            entries = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return []
        names = [entry.rstrip("/").rsplit("/", 1)[-1] for entry in entries]
        return sorted(name for name in names if not name.startswith(ASIDE))

    def read(self, name: str) -> bytes | None:
        """Read the content of the file ``name``; None if there is no such file."""
        try:
            return cast("bytes", self._fs.cat_file(self._at(name)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def open(self, name: str) -> BinaryIO:
        """Open the file ``name`` for random access.

        Raises:
            FileNotFoundError: there is no such file.
        """
        # Readers of Parquet know which bytes they want: no guessing ahead.
        options = {} if isinstance(self._fs, LocalFileSystem) else {"cache_type": "none"}
        return cast("BinaryIO", self._fs.open(self._at(name), "rb", **options))

    def put(self, name: str, data: bytes) -> None:
        """Write ``data`` as the file ``name``, durably: whole or not at all."""
        if not _ATOMIC_PUT.isdisjoint(_protocols(self._fs)):
            self._fs.pipe_file(self._at(name), data)
            return
        self._fs.makedirs(self._root, exist_ok=True)
        if isinstance(self._fs, LocalFileSystem):
            # A shard that is there under its name is not made again.
            write_whole(Path(self._at(name)), data, sync=True)
        else:
            aside = self._at(f"{ASIDE}{secrets.token_hex(6)}-{name}")
            self._fs.pipe_file(aside, data)
            self._fs.mv(aside, self._at(name))

    def remove(self, name: str) -> None:
        """Remove the file ``name``; nothing happens if it is gone already."""
        try:
            self._fs.rm_file(self._at(name))
        except FileNotFoundError:
            return

    def remove_leftovers(self) -> None:
        """Remove the unfinished files that killed writers left aside."""
        try:
            entries = self._fs.ls(self._root, detail=False)
        except FileNotFoundError:
            return
        for name in (entry.rsplit("/", 1)[-1] for entry in entries):
            if name.startswith(ASIDE):
                self.remove(name)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"


def _protocols(fs: Any) -> set[str]:
    protocol = fs.protocol
    return {protocol} if isinstance(protocol, str) else set(protocol)
