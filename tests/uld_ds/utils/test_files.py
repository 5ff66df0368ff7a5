"""Files and folders appear whole or not at all, whoever writes and whatever goes wrong."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest

from uld_ds.utils import files
from uld_ds.utils.files import ASIDE, remove_leftovers, whole_file, whole_folder, write_whole


def names(folder: Path) -> list[str]:
    return sorted(item.name for item in folder.iterdir())


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of what has been waited for, in order."""
    found: list[str] = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: found.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
    )
    yield found


def test_text_is_written_as_utf_8_and_bytes_as_they_are(tmp_path: Path) -> None:
    write_whole(tmp_path / "text", "déjà vu\r\n")
    write_whole(tmp_path / "bytes", b"\x00\xff")
    assert (tmp_path / "text").read_bytes() == b"d\xc3\xa9j\xc3\xa0 vu\r\n"
    assert (tmp_path / "bytes").read_bytes() == b"\x00\xff"
    write_whole(tmp_path / "text", "shorter")
    assert (tmp_path / "text").read_bytes() == b"shorter"
    assert names(tmp_path) == ["bytes", "text"]


def test_text_is_utf_8_whatever_the_locale_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locale.getencoding", lambda: "ascii")
    write_whole(tmp_path / "text", "é")
    assert (tmp_path / "text").read_bytes() == b"\xc3\xa9"


@pytest.mark.parametrize("old", [None, b"old"])
def test_a_failure_in_the_middle_leaves_the_old_content_and_nothing_aside(tmp_path: Path, old: bytes | None) -> None:
    file = tmp_path / "file"
    if old is not None:
        file.write_bytes(old)

    def write() -> None:
        with whole_file(file, sync=True) as out:
            out.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "lone \ud800")
    assert (file.read_bytes() if old is not None else None) == old
    assert names(tmp_path) == ([] if old is None else ["file"])


def test_a_rename_that_fails_leaves_the_old_content_and_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_whole(tmp_path / "file", "old")

    def fail(aside: Path, target: Path) -> None:
        raise OSError(28, "No space left on device", str(aside))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left") as raised:
        write_whole(tmp_path / "file", "new")
    assert raised.value.filename == str(tmp_path / "file")  # not the name aside, which nobody knows
    assert (tmp_path / "file").read_text() == "old" and names(tmp_path) == ["file"]


def test_a_folder_that_is_not_there_is_said_with_the_name_of_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised:
        write_whole(tmp_path / "none" / "file", "text")
    assert raised.value.filename == str(tmp_path / "none" / "file")


def test_what_is_not_whole_is_not_found_among_its_kind(tmp_path: Path) -> None:
    with whole_file(tmp_path / "rows.parquet") as out:
        out.write(b"half")
        (aside,) = names(tmp_path)
        assert aside.startswith(ASIDE) and not list(tmp_path.glob("*.parquet"))
    assert names(tmp_path) == ["rows.parquet"]


def test_the_longest_name_that_a_file_system_takes_can_be_written(tmp_path: Path) -> None:
    name = "é" * 127
    write_whole(tmp_path / name, "x")
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_a_plain_write(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "file", "text")
        (tmp_path / "plain").write_text("text")
        with whole_folder(tmp_path / "folder"):
            pass
        (tmp_path / "plain-folder").mkdir()
    finally:
        os.umask(before)
    modes = {item.name: stat.S_IMODE(item.stat().st_mode) for item in tmp_path.iterdir()}
    assert modes["file"] == modes["plain"] == 0o666 & ~mask
    assert modes["folder"] == modes["plain-folder"] == 0o777 & ~mask


def _write_often(file: Path, letter: str) -> None:
    for _ in range(200):
        write_whole(file, letter * 10_000)


def test_of_writers_at_once_one_wins_with_its_whole_content(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_whole(file, "a" * 10_000)
    writers = [get_context("spawn").Process(target=_write_often, args=(file, letter)) for letter in "bc"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        content = file.read_text()
        assert len(content) == 10_000
        seen.add(content[:1] if len(set(content)) == 1 else content)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen <= {"a", "b", "c"} and names(tmp_path) == ["file"]


def test_threads_of_one_process_do_not_meet_aside(tmp_path: Path) -> None:
    meet = threading.Barrier(2)

    def write(letter: str) -> None:
        with whole_file(tmp_path / "file") as out:
            out.write(letter.encode() * 10)
            meet.wait(10)

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "file").read_text() in ("a" * 10, "b" * 10) and names(tmp_path) == ["file"]


def test_only_the_first_writer_of_a_new_file_is_heard(tmp_path: Path) -> None:
    write_whole(tmp_path / "file", "first", only_new=True)
    with pytest.raises(FileExistsError):
        write_whole(tmp_path / "file", "second", only_new=True)
    assert (tmp_path / "file").read_text() == "first" and names(tmp_path) == ["file"]


def test_content_is_on_the_disk_before_its_name_and_only_where_asked(tmp_path: Path, synced: list[str]) -> None:
    write_whole(tmp_path / "file", "text")
    assert synced == []
    write_whole(tmp_path / "file", "text", sync=True)
    content, folder = synced
    assert content.startswith(ASIDE) and folder == tmp_path.name


def test_a_folder_has_its_files_on_the_disk_before_its_name(tmp_path: Path, synced: list[str]) -> None:
    with whole_folder(tmp_path / "folder", sync=True) as aside:
        (aside / "deep").mkdir()
        for name in ("one", "deep/two"):
            (aside / name).write_text("x")
    assert synced[-1] == tmp_path.name and sorted(synced[:-1]) == sorted(["one", "two", "deep", aside.name])


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"
    with whole_folder(folder) as aside:
        (aside / "one").write_text("old")

    def fail() -> None:
        with whole_folder(folder, replace=True) as aside:
            (aside / "two").write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        fail()
    assert names(folder.parent) == ["folder"] and names(folder) == ["one"]
    with pytest.raises(OSError, match="not empty"), whole_folder(folder) as aside:
        (aside / "two").write_text("another")
    assert names(folder.parent) == ["folder"] and names(folder) == ["one"]
    with whole_folder(folder, replace=True) as aside:
        (aside / "two").write_text("new")
    assert names(folder.parent) == ["folder"] and names(folder) == ["two"]


def test_a_rename_that_fails_leaves_the_old_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rename = tmp_path / "folder", Path.rename
    folder.mkdir()
    (folder / "one").write_text("old")

    def fail(self: Path, target: Path) -> Path:
        if (self / "two").exists():
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no"), whole_folder(folder, replace=True) as aside:
        (aside / "two").write_text("new")
    assert names(tmp_path) == ["folder"] and names(folder) == ["one"]


def test_leftovers_of_one_target_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for target in ("best", "my-best", "other"):
        files._aside(tmp_path / target).mkdir()
    files._aside(tmp_path / "best").write_text("half")
    (tmp_path / "best").mkdir()
    remove_leftovers(tmp_path / "best")
    assert sorted(name.rpartition("-")[2] for name in names(tmp_path)) == ["best", "best.part", "other.part"]
    remove_leftovers(tmp_path / "none" / "best")
