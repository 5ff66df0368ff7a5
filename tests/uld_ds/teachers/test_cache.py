"""The run's own memory: what was computed and what is cached are the same bits, on every rank, after any crash."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.helpers.teacher_outputs import same_bits, tokens_of
from uld_ds.errors import RunError, UserError
from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers import cache
from uld_ds.teachers.cache import OutputCache
from uld_ds.teachers.outputs_codec import roundtrip

IDENTITY = "a" * 64


def memory(folder: Path, rank: int = 0, identity: str = IDENTITY, **options: Precision) -> OutputCache:
    return OutputCache(folder, identity, rank=rank, **options)


def said(examples: Iterable[int], variant: int = 0) -> dict[int, TeacherTokens]:
    return {number: tokens_of(1 + number % 5, 1000 * variant + number) for number in examples}


def journals(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_what_is_computed_is_what_is_cached(tmp_path: Path) -> None:
    ours = memory(tmp_path)
    computed = ours.append(1, said([4, 0, 9]))
    assert list(computed) == [4, 0, 9]
    assert all(same_bits(computed[number], roundtrip(tokens)) for number, tokens in said([4, 0, 9]).items())
    for reader in (ours, memory(tmp_path), memory(tmp_path, rank=3)):
        for wanted in ([9, 4], [0], [4, 4, 9, 0]):
            read = reader.read(wanted)
            assert all(same_bits(computed[number], tokens) for number, tokens in zip(wanted, read, strict=True))
    assert ours.read([]) == []
    assert ours.append(2, {}) == {}


def test_what_is_known(tmp_path: Path) -> None:
    ours = memory(tmp_path)
    assert len(ours) == 0 and ours.complete(0) and not ours.complete(1) and 0 not in ours
    ours.append(1, said([0, 2]))
    assert [number in ours for number in (0, 1, 2, 3, -1, 10**9)] == [True, False, True, False, False, False]
    assert len(ours) == 2 and ours.complete(1) and not ours.complete(3)
    ours.append(2, said([1]))
    assert ours.complete(3) and not ours.complete(4)
    with pytest.raises(KeyError, match="3"):
        ours.read([0, 3])


def test_ranks_learn_from_each_other(tmp_path: Path) -> None:
    first, second = memory(tmp_path, 0), memory(tmp_path, 1)
    first.append(1, said([0, 1]))
    assert 0 not in second
    second.refresh()
    assert 0 in second and 1 in second
    second.append(1, said([2, 3]))
    first.append(2, said([4]))
    first.refresh()
    second.refresh()
    assert first.complete(5) and second.complete(5)
    for number, tokens in said(range(5)).items():
        assert same_bits(first.read([number])[0], second.read([number])[0])
        assert same_bits(first.read([number])[0], roundtrip(tokens))
    assert journals(tmp_path) == ["00000-0000.journal", "00001-0000.journal"]


def test_refresh_reads_only_what_is_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = memory(tmp_path, 0), memory(tmp_path, 1)
    first.append(1, said(range(10)))
    second.refresh()
    learned: list[int] = []
    learn = OutputCache._learn
    monkeypatch.setattr(
        OutputCache, "_learn", lambda self, f, s, table, o: (learned.append(len(table)), learn(self, f, s, table, o))
    )
    second.refresh()
    assert learned == []
    first.append(2, said([10, 11]))
    second.refresh()
    assert learned == [2, 2]  # by the one who wrote it, and by the other


def test_a_restart_begins_a_file_of_its_own(tmp_path: Path) -> None:
    for step in range(3):
        ours = memory(tmp_path)
        assert len(ours) == step
        ours.append(step, said([step]))
        ours.close()
    assert journals(tmp_path) == [f"00000-000{attempt}.journal" for attempt in range(3)]
    # Who only reads writes nothing.
    memory(tmp_path, rank=7)
    assert len(journals(tmp_path)) == 3


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(1, 10_000))
def test_a_torn_record_is_none(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    folder = tmp_path_factory.mktemp("memory")
    ours = memory(folder)
    ours.append(1, said([0, 1]))
    journal = folder / "00000-0000.journal"
    whole = journal.stat().st_size
    ours.append(2, said([2, 3, 4]))
    data = journal.read_bytes()
    journal.write_bytes(data[: whole + cut % (len(data) - whole)])

    again = memory(folder)
    assert [number in again for number in range(5)] == [True, True, False, False, False]
    computed = again.append(2, said([2, 3, 4]))
    assert memory(folder).complete(5)
    assert all(
        same_bits(computed[n], tokens) for n, tokens in zip((2, 3, 4), memory(folder).read([2, 3, 4]), strict=True)
    )


@pytest.mark.parametrize("size", [0, 3, 7, 30, 70])
def test_a_torn_head_is_no_file(tmp_path: Path, size: int) -> None:
    memory(tmp_path).append(1, said([0]))
    journal = tmp_path / "00000-0000.journal"
    journal.write_bytes(journal.read_bytes()[:size])
    again = memory(tmp_path)
    assert len(again) == 0
    again.append(1, said([0]))
    assert memory(tmp_path).complete(1)


def test_a_record_that_is_being_written_is_picked_up_when_it_is_whole(tmp_path: Path) -> None:
    ours = memory(tmp_path / "ours")
    ours.append(1, said([0]))
    ours.append(2, said([1]))
    data = (tmp_path / "ours" / "00000-0000.journal").read_bytes()
    growing = tmp_path / "theirs" / "00000-0000.journal"
    growing.parent.mkdir()
    reader = memory(growing.parent, rank=1)
    counts = []
    for size in range(0, len(data) + 1, 41):
        growing.write_bytes(data[:size])
        reader.refresh()
        counts.append(len(reader))
    growing.write_bytes(data)
    reader.refresh()
    assert counts == sorted(counts) and set(counts) >= {0, 1} and len(reader) == 2
    assert same_bits(reader.read([1])[0], roundtrip(said([1])[1]))


def test_of_two_memories_all_choose_the_earlier(tmp_path: Path) -> None:
    # Two ranks that did not see each other's: only a crash between them can do that.
    ranks = [memory(tmp_path, rank) for rank in range(3)]
    steps = {0: 5, 1: 3, 2: 3}
    for rank in (0, 2, 1):  # whoever saw rank 2's first must change its mind
        ranks[rank]._write(steps[rank], [0], cache.encode_many([said([0], variant=rank)[0]]))
    want = roundtrip(said([0], variant=1)[0])
    for ours in ranks:
        ours.refresh()
        assert len(ours) == 1
        assert same_bits(ours.read([0])[0], want)
    assert same_bits(memory(tmp_path, 9).read([0])[0], want)


def test_what_is_cached_is_not_said_again(tmp_path: Path) -> None:
    ours = memory(tmp_path)
    before = ours.append(1, said([0, 1]))
    size = (tmp_path / "00000-0000.journal").stat().st_size
    again = ours.append(7, said([1, 0], variant=3))
    assert all(same_bits(before[number], again[number]) for number in (0, 1))
    assert (tmp_path / "00000-0000.journal").stat().st_size == size


def test_another_identity_is_refused(tmp_path: Path) -> None:
    memory(tmp_path).append(1, said([0]))
    expected = (
        f"^teacher.memory: {tmp_path} is of another teacher, data or template .identity aaaaaaaaaaaaaaaa there, "
        "bbbbbbbbbbbbbbbb here.; remove the folder, or give the run another name$"
    )
    with pytest.raises(UserError, match=expected):
        memory(tmp_path, identity="b" * 64)


def test_another_release_is_refused(tmp_path: Path) -> None:
    memory(tmp_path).append(1, said([0]))
    journal = tmp_path / "00000-0000.journal"
    data = bytearray(journal.read_bytes())
    data[4] += 1
    journal.write_bytes(data)
    with pytest.raises(UserError, match=r"00000-0000.journal is no journal of this release; remove it"):
        memory(tmp_path)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    memory(tmp_path).append(1, said([0]))
    assert (tmp_path / "notes.txt").read_text() == "hello"


def test_damage_is_noticed_and_named(tmp_path: Path) -> None:
    ours = memory(tmp_path)
    ours.append(1, said([0, 1]))
    journal = tmp_path / "00000-0000.journal"
    data = bytearray(journal.read_bytes())
    data[-3] ^= 1
    journal.write_bytes(data)
    again = memory(tmp_path)
    assert same_bits(again.read([0])[0], roundtrip(said([0])[0]))
    with pytest.raises(RunError, match=r"00000-0000.journal is damaged \(example 1\); remove this file"):
        again.read([1])


def test_a_table_that_was_changed_ends_the_file(tmp_path: Path) -> None:
    ours = memory(tmp_path)
    ours.append(1, said([0]))
    end = (tmp_path / "00000-0000.journal").stat().st_size
    ours.append(2, said([1]))
    data = bytearray((tmp_path / "00000-0000.journal").read_bytes())
    struct.pack_into("<q", data, end + struct.calcsize("<4sqII"), 10**6)  # claims to be another example
    (tmp_path / "00000-0000.journal").write_bytes(data)
    again = memory(tmp_path)
    assert 0 in again and len(again) == 1


def test_it_counts_only_once_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = memory(tmp_path)

    def full(_: int) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(cache.os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            ours.append(1, said([0]))
    assert 0 not in ours
    (tmp_path / "00000-0000.journal").write_bytes((tmp_path / "00000-0000.journal").read_bytes()[:-9])
    ours.append(2, said([1]))
    assert 1 in memory(tmp_path) and 0 not in memory(tmp_path)


def test_precision_is_the_callers(tmp_path: Path) -> None:
    coarse = memory(tmp_path / "coarse", precision=Precision(num_exact=8, rank_ratio=1.5, step=1 / 4))
    fine = memory(tmp_path / "fine")
    for ours in (coarse, fine):
        ours.append(1, said(range(40)))
    sizes = [next((tmp_path / name).iterdir()).stat().st_size for name in ("coarse", "fine")]
    assert 2 * sizes[0] < sizes[1]
    assert coarse.read([3])[0].spectrum.num_head == 8


def truncated(number: int, top_ids: int) -> TeacherTokens:
    """What an inference engine tells: the likeliest tokens of 300, and no more."""
    tokens = tokens_of(1 + number % 5, number, top_ids=top_ids)
    assert tokens.top is not None
    return replace(tokens, spectrum=Spectrum.from_top_log_probs(tokens.top.log_probs, vocab_size=300))


def test_what_earlier_releases_cannot_read_is_in_files_that_they_refuse(tmp_path: Path) -> None:
    versions = {}
    for kind, tokens in {
        "plain": tokens_of(3, 1),
        "with top-k tokens": tokens_of(3, 1, top_ids=8),
        "truncated": replace(truncated(3, 8), top=None),
    }.items():
        ours = memory(tmp_path / kind)
        ours.append(1, {0: tokens})
        versions[kind] = (tmp_path / kind / journals(tmp_path / kind)[0]).read_bytes()[4]
        assert same_bits(memory(tmp_path / kind).read([0])[0], roundtrip(tokens))
    assert versions == {"plain": 1, "with top-k tokens": 2, "truncated": 2}


def test_truncated_spectra_are_rebuilt_where_the_vocabulary_is_known(tmp_path: Path) -> None:
    ours = OutputCache(tmp_path, IDENTITY, rank=0, vocab_size=300)
    computed = ours.append(1, {number: truncated(number, 16) for number in range(4)})
    read = OutputCache(tmp_path, IDENTITY, rank=1).read(range(4))
    for number, tokens in enumerate(read):
        assert same_bits(tokens, computed[number])
        assert same_bits(tokens, roundtrip(truncated(number, 16), vocab_size=300))
        assert same_bits(ours.as_read([truncated(number, 16)])[0], tokens)
        assert tokens.spectrum.unknown_mass is not None
    plain = OutputCache(tmp_path / "plain", IDENTITY, rank=0)
    plain.append(1, {number: truncated(number, 16) for number in range(4)})
    size, larger = (
        sum(file.stat().st_size for file in place.glob("*.journal")) for place in (tmp_path, tmp_path / "plain")
    )
    assert size < larger - 4 * 40
