"""The files of a model's weights, as far as their headers tell: whether they are there, whole, and what they hold."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from uld_ds.errors import UserError, one_line

INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
_POINTER = b"version https://git-lfs.github.com/spec/"
_MOST_POINTER_BYTES = 1024
# What the format's own library refuses, too.
_MOST_HEADER_BYTES = 100_000_000
_READ_BESIDE_WEIGHTS = {".json", ".model", ".txt", ".jinja", ".gguf"}
_AGAIN = "download it again"


def is_pointer(file: Path) -> bool:
    """Tell whether a file is one of Git LFS's pointers, which stand where a file was not fetched."""
    if not file.is_file() or file.stat().st_size > _MOST_POINTER_BYTES:
        return False
    with file.open("rb") as stream:
        return stream.read(len(_POINTER)) == _POINTER


def cached_folder(name: str, revision: str | None) -> Path | None:
    """Find the folder of the hub's local cache that holds a model's configuration; None where there is none."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def check_no_pointers(folder: Path, key: str) -> None:
    """Check that what is read of a model's folder besides weights was fetched.

    Raises:
        UserError: a file is a pointer of Git LFS.
    """
    for file in sorted(folder.iterdir()):
        if file.suffix in _READ_BESIDE_WEIGHTS:
            _check_no_pointer(file, key)


def weight_files(folder: Path, key: str, named: str | None = None) -> list[Path]:
    """List the files that transformers reads a model's weights from, each of them whole.

    Args:
        folder: of the model.
        key: recipe key of the model, for messages.
        named: file that the configuration names as ``transformers_weights``.

    Returns:
        The files, or none where there are no safetensors.

    Raises:
        UserError: a file is missing, damaged, cut off, or a pointer of Git LFS.
    """
    if named is None and not any(folder.glob("*.safetensors")) and not (folder / INDEX).is_file():
        return []
    files = [folder / name for name in _names(folder, key, named)]
    for file in files:
        tensors(file, key)
    return files


def _names(folder: Path, key: str, named: str | None) -> list[str]:
    first = named or WHOLE
    if (folder / first).is_file() and not first.endswith(".json"):
        return [first]
    index = folder / (named or INDEX)
    if not index.is_file():
        others = sorted(file.name for file in folder.glob("*.safetensors"))
        problem = f"{str(folder)!r} has neither {WHOLE} nor {INDEX}, only {others[0]}"
        raise UserError(key, problem, "name a folder as transformers saves it")
    _check_no_pointer(index, key)
    try:
        listed = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        problem = f"{index.name} in {str(folder)!r} lists no weights ({one_line(error, kind=True)})"
        raise UserError(key, problem, _AGAIN) from error
    missing = [name for name in listed if not (folder / name).is_file()]
    if missing:
        problem = f"{str(folder)!r} lacks {len(missing)} of {len(listed)} files of weights, e.g. {missing[0]}"
        raise UserError(key, problem, "download what is missing")
    return listed


def tensors(file: Path, key: str) -> dict[str, dict[str, Any]]:
    """Read the header of a safetensors file: type, shape and place of each tensor.

    The format begins with the length of a JSON header, 8 bytes little endian; then come the tensors, and nothing else.

    Args:
        file: the file.
        key: recipe key of the model, for messages.

    Raises:
        UserError: the file is damaged, cut off, or a pointer of Git LFS.
    """
    _check_no_pointer(file, key)
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _MOST_HEADER_BYTES:
            raise _damaged(file, key, f"is no safetensors file ({size:,} bytes)")
        header = stream.read(length)
    if len(header) < length:
        raise _damaged(file, key, f"is cut off: {size:,} bytes, {8 + length:,} of header alone")
    try:
        found = dict(json.loads(header))
        found.pop("__metadata__", None)
        wanted = 8 + length + max((tensor["data_offsets"][1] for tensor in found.values()), default=0)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise _damaged(file, key, f"has a damaged header ({one_line(error, kind=True)})") from error
    if size != wanted:
        what = "is cut off" if size < wanted else "is damaged"
        raise _damaged(file, key, f"{what}: {size:,} bytes, and its header speaks of {wanted:,}")
    return found


def tensor_bytes(files: list[Path], key: str) -> int:
    """Sum the bytes of all tensors in safetensors files, by their headers.

    Raises:
        UserError: as ``tensors``.
    """
    ends = [tensor["data_offsets"][1] for file in files for tensor in _last(tensors(file, key))]
    return sum(ends)


def _last(found: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    if found:
        yield max(found.values(), key=lambda tensor: tensor["data_offsets"][1])


def _check_no_pointer(file: Path, key: str) -> None:
    if is_pointer(file):
        problem = f"{file.name} in {str(file.parent)!r} is a pointer of Git LFS, not the file itself"
        raise UserError(key, problem, "run `git lfs pull` in that folder, or download the file")


def _damaged(file: Path, key: str, what: str) -> UserError:
    return UserError(key, f"{file.name} in {str(file.parent)!r} {what}", _AGAIN)
