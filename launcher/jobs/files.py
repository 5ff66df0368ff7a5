"""Which files of the working directory travel with a job, and the archive of them."""

from __future__ import annotations

import fnmatch
import os
import subprocess
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from uld_ds.errors import UserError

MAX_BYTES = 100 * 2**20
"""Largest request, in bytes, that Ray's dashboard takes (DASHBOARD_CLIENT_MAX_SIZE)."""

# Where there is no git to say what is source: what programs make, and can make again.
_MADE = (
    ".git", ".hg", ".svn", ".venv", "venv", "__pycache__", "node_modules", ".tox", ".nox", ".cache", ".idea", ".vscode",
    ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints", "*.egg-info", "*.pyc",
    "mlruns", "mlartifacts", "mlflow.db", "wandb", "checkpoint_*", ".prepared",
)  # fmt: skip
# Whoever reaches the cluster can read what is uploaded.
_SECRET_FILES = (
    ".env", ".env.*", ".netrc", ".pypirc", ".git-credentials", "*.pem", "*.key", "*.pfx", "*.p12", "id_rsa*",
    "id_ed25519*", "credentials.json", ".aws", ".ssh", ".kube", "kubeconfig*",
)  # fmt: skip
_NUM_SHOWN = 5


def travelling_files(root: Path, exclude: Sequence[str], *, also: Collection[Path] = ()) -> dict[str, Path]:
    """List the files of a working directory that a job gets, by their names in it.

    In a git work tree: what git tracks and what it would track (not what .gitignore names). Elsewhere: everything
    but what programs make. In both cases without files that hold secrets by their names, and without ``exclude``.

    Args:
        root: the working directory.
        exclude: patterns of names, or of paths in ``root``, of files and folders.
        also: files in ``root`` that travel whatever is said above.
    """
    tracked = _git_files(root)
    names = _walk(root) if tracked is None else tracked
    patterns = (*_SECRET_FILES, *exclude, *(_MADE if tracked is None else ()))
    chosen = {name for name in names if not _matches(name, patterns)}
    chosen.update(file.relative_to(root).as_posix() for file in also)
    return {name: root / name for name in sorted(chosen)}


def secret_files(root: Path, files: Mapping[str, Path]) -> list[str]:
    """List the names at the top of ``root`` that stay behind because they look like secrets."""
    return sorted(path.name for path in root.iterdir() if _matches(path.name, _SECRET_FILES) and path.name not in files)


def _git_files(root: Path) -> list[str] | None:
    """List the files below ``root`` that git tracks or would track.

    None when ``root`` is in no git work tree, or is ignored by the one it is in, or there is no git.
    """
    listing = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    if listing is None or _git(root, "check-ignore", "-q", ".") is not None:
        return None
    found: list[str] = []
    for entry in listing.split(b"\0"):
        name = os.fsdecode(entry).rstrip("/")
        path = root / name
        if name and path.is_file():
            found.append(name)
        elif name and path.is_dir() and not path.is_symlink():
            # A submodule, or a work tree inside this one: git names the folder alone.
            inner = _git_files(path) if (path / ".git").exists() else None
            found.extend(f"{name}/{file}" for file in inner or ())
    return found


def _git(root: Path, *words: str) -> bytes | None:
    """Run git and return what it prints; None when it fails, or is not there."""
    try:
        return subprocess.run(["git", "-C", str(root), *words], capture_output=True, check=True).stdout  # noqa: S603, S607
    except (OSError, subprocess.CalledProcessError):
        return None


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if not _matches(name, _MADE))
        yield from ((here / name).relative_to(root).as_posix() for name in names if (here / name).is_file())


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Tell whether a pattern names the path, a folder that holds it, or any part of it."""
    path = PurePosixPath(name)
    wholes = [path.as_posix(), *(parent.as_posix() for parent in path.parents)][:-1] or [name]
    return any(
        fnmatch.fnmatchcase(candidate, pattern.rstrip("/"))
        for pattern in patterns
        for candidate in (*wholes, *path.parts)
    )


def check_size(root: Path, files: Mapping[str, Path]) -> int:
    """Count the bytes of a job's files, and check that Ray takes them.

    Raises:
        UserError: they are more than Ray takes; names the largest.
    """
    sizes = {name: path.stat().st_size for name, path in files.items()}
    total = sum(sizes.values())
    if total <= MAX_BYTES:
        return total
    shown = ", ".join(f"{name} ({_mib(size)})" for name, size in largest(sizes))
    raise UserError(
        "--working-dir",
        f"{str(root)!r} holds {_mib(total)} in {len(files):,} files, a job takes {_mib(MAX_BYTES)}; largest: {shown}",
        "leave them out with --exclude or .gitignore, and put what the run needs on storage that every node sees",
    )


def largest(sizes: Mapping[str, int]) -> list[tuple[str, int]]:
    """Find the largest folders (named with a slash) and files, followed down while one is most of its parent.

    >>> largest({"a/b/c": 90, "a/b/d": 1, "e": 5})
    [('a/b/c', 90), ('e', 5)]
    """
    groups: dict[str, dict[str, int]] = {}
    for name, size in sizes.items():
        groups.setdefault(name.partition("/")[0], {})[name] = size
    found = [_narrowed(top, inside) for top, inside in groups.items()]
    return sorted(found, key=lambda entry: -entry[1])[:_NUM_SHOWN]


def _narrowed(folder: str, inside: Mapping[str, int]) -> tuple[str, int]:
    total = sum(inside.values())
    if folder in inside:
        return folder, total
    children: dict[str, dict[str, int]] = {}
    for name, size in inside.items():
        child = name[len(folder) + 1 :].partition("/")[0]
        children.setdefault(f"{folder}/{child}", {})[name] = size
    most = max(children, key=lambda child: sum(children[child].values()))
    if sum(children[most].values()) >= 0.8 * total:
        return _narrowed(most, children[most])
    return f"{folder}/", total


def write_archive(files: Mapping[str, Path], archive: Path) -> None:
    """Write a zip of the files, with the same bytes whenever they have: Ray keeps one copy of each content."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, path in files.items():
            entry = zipfile.ZipInfo(name)  # dated 1980
            entry.external_attr = (0o755 if os.access(path, os.X_OK) else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            zipped.writestr(entry, path.read_bytes())


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
