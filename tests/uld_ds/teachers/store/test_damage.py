"""No spectrum store that is half-written or damaged is mistaken for a whole one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.stores import build, contents, expected, same_example, writer
from uld_ds.errors import RunError, UserError
from uld_ds.teachers.store.reader import SpectrumStore


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"teacher.store: no spectrum store at .*; correct it, or build one"):
        SpectrumStore.open(tmp_path / "nowhere", key="teacher.store")
    with pytest.raises(UserError, match="no spectrum store at memory://nowhere"):
        SpectrumStore.open("memory://nowhere")


def test_a_half_written_store(copy: Path) -> None:
    manifest = (copy / "manifest.json").read_bytes()
    (copy / "manifest.json").write_bytes(manifest[:-40])
    with pytest.raises(UserError, match="is no manifest of a spectrum store"):
        SpectrumStore.open(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match="no spectrum store"):
        SpectrumStore.open(copy)
    writer(copy)
    with pytest.raises(UserError, match="is half-written: its build was cut short; run the same"):
        SpectrumStore.open(copy)


@pytest.mark.parametrize("where", [0.02, 0.2, 0.5, 0.9, -5])
def test_a_changed_byte_is_found_and_named(copy: Path, built: Path, where: float) -> None:
    shard = sorted(copy.glob("shard-*"))[1]
    data = bytearray(shard.read_bytes())
    data[int(where * len(data)) if where > 0 else int(where)] ^= 0x10
    shard.write_bytes(data)
    store = SpectrumStore.open(copy)
    with pytest.raises(RunError, match=rf"{shard.name} is damaged \(its sha256 is not the manifest's\)"):
        store.verify()
    assert store.read([3, 49])[1].id == "row-49"
    # The build finds it too, and makes only this shard anew.
    assert sorted(writer(copy).finished_shards()) == [0, 2]
    build(copy, [1])
    assert contents(copy) == contents(built)


def test_reading_never_gives_changed_values(copy: Path) -> None:
    shard = sorted(copy.glob("shard-*"))[2]
    data, noticed = shard.read_bytes(), 0
    for position in range(0, len(data), 61):
        broken = bytearray(data)
        broken[position] ^= 0x04
        shard.write_bytes(broken)
        store = SpectrumStore.open(copy)
        try:
            items = store.read(range(40, 50))
        except RunError as error:
            assert shard.name in str(error)
            noticed += 1
        else:  # a byte that no value depends on
            assert all(same_example(item, expected(40 + place)) for place, item in enumerate(items))
    assert noticed > 0.9 * len(data) / 61


def test_missing_and_shortened_shards_are_named(copy: Path) -> None:
    first, second = sorted(copy.glob("shard-*"))[:2]
    first.unlink()
    second.write_bytes(second.read_bytes()[:-1])
    store = SpectrumStore.open(copy)
    with pytest.raises(RunError, match=f"{first.name} is missing; run the same"):
        store.verify()
    with pytest.raises(RunError, match=f"{first.name} is missing"):
        store.read([0])
    with pytest.raises(RunError, match=f"{second.name} is damaged"):
        store.read([20])
    first.write_bytes(second.read_bytes())
    with pytest.raises(RunError, match=f"{first.name} has .* bytes instead of"):
        store.verify()


def test_shards_in_each_others_place_are_noticed(copy: Path) -> None:
    first, _, last = sorted(copy.glob("shard-*"))
    first.write_bytes(last.read_bytes())
    with pytest.raises(RunError, match=f"{first.name} is damaged .holds 10 examples instead of 20"):
        SpectrumStore.open(copy).digests()
