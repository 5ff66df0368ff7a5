"""The files of a checkpoint: copied in memory, written aside with checksums, checked before they are believed.

A rank writes its files, then, last of all, a *manifest* that names them with their sizes and sha256. A checkpoint is
whole when every rank's manifest is there and every file is as its manifest says.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uld_ds.errors import one_line
from uld_ds.runs.folder import RunFolder
from uld_ds.utils.files import remove_leftovers, whole_file, whole_folder, write_whole

_FORMAT = 1
_CHUNK = 1 << 20

HostState = dict[str, Any]
"""Contents of one rank's files by path inside the checkpoint: copies on the host that nothing else shares."""


def on_host(tree: Any) -> Any:
    """Copy nested containers and their tensors to the host, sharing nothing with what training goes on to change."""
    if isinstance(tree, Tensor):
        # A view is saved with all it is a view of: a copy holds what is seen alone.
        return tree.detach().to("cpu", copy=True).contiguous()
    if isinstance(tree, dict):
        fresh = type(tree)()
        fresh.update((on_host(key), on_host(value)) for key, value in tree.items())
        return fresh
    if type(tree) in (list, tuple):
        return type(tree)(on_host(value) for value in tree)
    return copy.deepcopy(tree)


class _Hashing:
    """A file that is written from its beginning to its end, and hashed on the way."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self.size += len(data)
        return int(self._file.write(data))

    def flush(self) -> None:
        self._file.flush()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def write_shard(target: Path, rank: int, ranks: int, state: HostState) -> None:
    """Write one rank's files and manifest into a checkpoint's folder; each is whole, and on the disk, or not there.

    Args:
        target: the checkpoint's folder.
        rank: number of this rank.
        ranks: number of all ranks.
        state: contents of this rank's files.

    Raises:
        OSError: a full disk, for one. Nothing of this rank is left then.
    """
    made: list[Path] = []
    try:
        files = {name: _write(target / name, content, made) for name, content in state.items()}
        manifest = {"format": _FORMAT, "rank": rank, "ranks": ranks, "files": files}
        made.append(target / _manifest(rank))
        write_whole(target / _manifest(rank), json.dumps(manifest, indent=1), sync=True)
    except BaseException:
        for file in made:
            file.unlink(missing_ok=True)
        raise


def _manifest(rank: int) -> str:
    return f"manifest-{rank:05d}.json"


def _write(file: Path, content: Any, made: list[Path]) -> dict[str, Any]:
    file.parent.mkdir(parents=True, exist_ok=True)
    made.append(file)
    with whole_file(file, sync=True) as out:
        hashing = _Hashing(out)
        torch.save(content, hashing)  # type: ignore[arg-type]  # writes, and never seeks
    return {"bytes": hashing.size, "sha256": hashing.hexdigest()}


def num_ranks(folder: Path) -> int | None:
    """Read how many ranks wrote a checkpoint; None when no manifest says."""
    for file in sorted(folder.glob("manifest-*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return int(json.loads(file.read_text(encoding="utf-8"))["ranks"])
    return None


def any_shards_weights(run_dir: Path) -> bool:
    """Tell whether a run has a checkpoint of a student under ZeRO-3, and so goes on under it, whatever the default."""
    return any(True for _ in run_dir.glob("checkpoint_*/*/zero_pp_rank_*_model_states.pt"))


def problem_of(folder: Path, ranks: Iterable[int]) -> str | None:
    """Find what is wrong with the files of some ranks, or None; every byte of them is read."""
    for rank in ranks:
        try:
            manifest = json.loads((folder / _manifest(rank)).read_text(encoding="utf-8"))
            files = manifest["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            return f"{_manifest(rank)} cannot be read ({_reason(error)})"
        for name, facts in files.items():
            problem = _file_problem(folder / name, facts)
            if problem is not None:
                return f"{name} {problem}"
    return None


def _file_problem(file: Path, facts: Mapping[str, Any]) -> str | None:
    try:
        size = file.stat().st_size
        if size != facts["bytes"]:
            return f"has {size} of {facts['bytes']} bytes"
        with file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return f"cannot be read ({_reason(error)})"
    return None if digest == facts["sha256"] else "does not have the bytes that were written (sha256 differs)"


def is_complete(folder: Path) -> bool:
    """Tell whether every rank wrote its manifest, and every file has its size; no contents are read."""
    ranks = num_ranks(folder)
    if ranks is None:
        return False
    try:
        manifests = [json.loads((folder / _manifest(rank)).read_text(encoding="utf-8")) for rank in range(ranks)]
        files = [(folder / name, facts["bytes"]) for manifest in manifests for name, facts in manifest["files"].items()]
        return all(file.stat().st_size == size for file, size in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def remove_others(run_dir: Path, names: Iterable[str]) -> None:
    """Remove the folders of checkpoints that are not among ``names``."""
    kept = set(names)
    for folder in RunFolder(run_dir).checkpoints():
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def keep_best(folder: Path) -> None:
    """Make ``best`` beside a checkpoint's folder hold the same files, by links where the file system has them."""
    best = RunFolder(folder.parent).best
    remove_leftovers(best)  # only the first rank writes it; links hold the disk's space as files do
    for former in (".best-new", ".best-old"):  # what a run that was killed under version 0.1.0 may have left
        shutil.rmtree(folder.parent / former, ignore_errors=True)
    # Not synchronized: the files are the checkpoint's, which are on the disk already.
    with whole_folder(best, replace=True) as aside:
        shutil.copytree(folder, aside, copy_function=_link, dirs_exist_ok=True)
        (aside / "name").write_text(folder.name, encoding="utf-8")


def best_name(run_dir: Path) -> str | None:
    """Read the name of the checkpoint that ``best`` holds; None without one."""
    with suppress(OSError):
        return (RunFolder(run_dir).best / "name").read_text(encoding="utf-8")
    return None


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # object storage behind a mount has no links
        shutil.copy2(source, target)


def _reason(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) else None  # the message around it names the file
    return one_line(said or error, kind=True)
