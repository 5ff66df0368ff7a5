"""What travels with a job."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path

import pytest

from launcher.jobs import files
from launcher.jobs.files import check_size, largest, secret_files, travelling_files, write_archive
from uld_ds.errors import UserError

NAMES = [
    "recipe.yaml", "data/train.jsonl", "code.py", "ignored/big.bin", ".env", "keys/host.pem", "figures/a.png",
    "__pycache__/code.pyc", "sub/__pycache__/x.pyc",
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return tmp_path


@pytest.fixture
def work_tree(root: Path) -> Path:
    (root / ".gitignore").write_text("ignored/\n__pycache__/\ndata/\n")
    for command in (["init", "-q"], ["add", "code.py"]):
        subprocess.run(["git", "-C", str(root), *command], check=True)
    return root


def test_in_a_work_tree_what_git_does_not_ignore(work_tree: Path) -> None:
    """Tracked or not yet; a file that the recipe names travels though it is ignored, and secrets never do."""
    found = travelling_files(work_tree, ["figures"], also=[work_tree / "data" / "train.jsonl"])
    assert list(found) == [".gitignore", "code.py", "data/train.jsonl", "recipe.yaml"]
    assert found["code.py"].read_text() == "code.py"
    assert secret_files(work_tree, found) == [".env"]


def test_a_work_tree_inside_brings_its_own_files(work_tree: Path) -> None:
    (inner := work_tree / "inner").mkdir()
    (inner / "x.py").touch()
    subprocess.run(["git", "-C", str(inner), "init", "-q"], check=True)
    assert "inner/x.py" in travelling_files(work_tree, [])
    (work_tree / "code.py").unlink()
    assert "code.py" not in travelling_files(work_tree, [])


def test_a_folder_that_git_ignores_is_no_part_of_its_work_tree(work_tree: Path) -> None:
    assert list(travelling_files(work_tree / "ignored", [])) == ["big.bin"]
    assert list(travelling_files(work_tree / "figures", [])) == ["a.png"]


def test_elsewhere_all_but_what_programs_make(root: Path) -> None:
    assert list(travelling_files(root, ["figures/*.png"])) == [
        "code.py",
        "data/train.jsonl",
        "ignored/big.bin",
        "recipe.yaml",
    ]


def test_too_much_names_what_is_largest(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "ignored" / "big.bin").write_bytes(bytes(3 * 2**20))
    (root / "data" / "more.jsonl").write_bytes(bytes(2**20))
    found = travelling_files(root, [])
    assert check_size(root, found) == sum(path.stat().st_size for path in found.values())
    monkeypatch.setattr(files, "MAX_BYTES", 2 * 2**20)
    with pytest.raises(UserError) as caught:
        check_size(root, found)
    assert str(caught.value).startswith(
        f"--working-dir: '{root}' holds 4.0 MiB in 6 files, a job takes 2.0 MiB; largest: ignored/big.bin (3.0 MiB), "
        "data/more.jsonl (1.0 MiB), "
    )
    assert str(caught.value).endswith(
        "leave them out with --exclude or .gitignore, and put what the run needs on storage that every node sees"
    )


def test_largest_names_folders_where_no_file_dominates() -> None:
    assert largest({"a/x": 4, "a/y": 5, "b": 1}) == [("a/", 9), ("b", 1)]
    assert largest({f"{n}": n for n in range(9)}) == [("8", 8), ("7", 7), ("6", 6), ("5", 5), ("4", 4)]


def test_an_archive_of_the_same_files_has_the_same_bytes(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("archives")
    (root / "code.py").chmod(0o755)
    found = travelling_files(root, [])
    write_archive(found, folder / "a.zip")
    for path in found.values():
        path.touch()
    write_archive(found, folder / "b.zip")
    assert (folder / "a.zip").read_bytes() == (folder / "b.zip").read_bytes()
    with zipfile.ZipFile(folder / "a.zip") as archive:
        assert archive.namelist() == list(found)
        assert archive.read("data/train.jsonl") == b"data/train.jsonl"
        assert archive.getinfo("code.py").external_attr >> 16 & 0o777 == 0o755
