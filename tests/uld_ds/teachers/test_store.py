"""The spectrum store: the same bytes back, the same files whatever happened, and no damage unnoticed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import fsspec
import hypothesis.strategies as st
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings

from tests.uld_ds.teachers.sayings import example, identity, same_bits
from uld_ds.errors import RunError, UserError
from uld_ds.spectrum import Spectrum
from uld_ds.spectrum_codec import CODEC_VERSION, Precision
from uld_ds.teachers.store import Measured, SpectrumStore, StoredExample, StoreIdentity, StoreManifest, StoreWriter
from uld_ds.teachers.store_files import StoreFiles
from uld_ds.teachers.store_shard import SCHEMA, spans_of
from uld_ds.teachers.tokens_codec import roundtrip

# Row groups hold 16: every shard but the last has two.
NUM, PER_SHARD = 50, 20


def writer(url: str | Path, of: StoreIdentity | None = None, **options: int) -> StoreWriter:
    return StoreWriter(url, of or identity(), **{"examples": NUM, "examples_per_shard": PER_SHARD, **options})


def build(url: str | Path, shards: Sequence[int] | None = None, top_ids: int = 0) -> StoreManifest:
    store = writer(url, identity(top_ids=top_ids))
    for index in range(store.num_shards) if shards is None else shards:
        numbers = store.examples_of_shard(index)
        store.write_shard(index, (example(number, top_ids=top_ids) for number in numbers))
    return store.finish()


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    build(folder)
    return folder


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    target = tmp_path / "copy"
    target.mkdir()
    for name, data in contents(built).items():
        (target / name).write_bytes(data)
    return target


def same_example(ours: StoredExample, theirs: StoredExample) -> bool:
    return (
        (ours.id, ours.digest) == (theirs.id, theirs.digest)
        and np.array_equal(ours.turns, theirs.turns)
        and np.array_equal(ours.spans, theirs.spans)
        and same_bits(ours.tokens, theirs.tokens)
    )


def expected(number: int, top_ids: int = 0) -> StoredExample:
    whole = example(number, top_ids=top_ids)
    return StoredExample(whole.id, whole.digest, whole.turns, whole.spans, roundtrip(whole.tokens))


# ---- what is written is read


@pytest.mark.parametrize("place", ["folder", "memory"])
def test_what_is_written_is_read_bit_for_bit(place: str, tmp_path: Path) -> None:
    url = "memory://spectra/all" if place == "memory" else tmp_path / "new" / "store"
    manifest = build(url)
    store = SpectrumStore.open(str(url))
    assert len(store) == manifest.examples == NUM
    assert [shard.examples for shard in manifest.shards] == [20, 20, 10]
    streamed = list(store.stream())
    assert manifest.teacher_tokens == sum(len(item.tokens) for item in streamed)
    assert all(same_example(item, expected(number)) for number, item in enumerate(streamed))
    assert store.digests() == [item.digest for item in streamed]
    store.verify()


def test_layouts_are_those_of_the_examples(built: Path) -> None:
    for number, (digest, turns, spans) in enumerate(SpectrumStore.open(built).layouts()):
        whole = example(number)
        assert digest == whole.digest
        assert np.array_equal(turns, whole.turns) and np.array_equal(spans, whole.spans)
    assert number == NUM - 1


def test_random_access(built: Path) -> None:
    store = SpectrumStore.open(built)
    wanted = [49, 0, 16, 15, 19, 20, 0, 31, 38]
    assert all(same_example(item, expected(number)) for number, item in zip(wanted, store.read(wanted), strict=True))
    assert store.read([]) == []
    store.close()
    assert store.read([7])[0].id == "row-7"
    for outside in (-1, NUM):
        with pytest.raises(IndexError, match=f"example {outside} of {NUM}"):
            store.read([outside])


@pytest.mark.parametrize(
    ("start", "stop"), [(0, 5), (14, 23), (16, 32), (17, 37), (49, None), (50, None), (3, 3), (0, 99)]
)
def test_streaming_a_part(built: Path, start: int, stop: int | None) -> None:
    ids = [item.id for item in SpectrumStore.open(built).stream(start, stop)]
    assert ids == [f"row-{number}" for number in range(NUM)][start:stop]


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(st.tuples(st.lists(st.integers(0, 300), max_size=6), st.integers(0, 2)), min_size=1, max_size=4))
def test_spans_follow_from_lengths(turns: list[tuple[list[int], int]]) -> None:
    shape = np.array([[len(lengths), ending, sum(lengths)] for lengths, ending in turns], np.int32)
    flat = np.array([length for lengths, _ in turns for length in lengths], np.int64)
    spans, begin = spans_of(shape, flat), 0
    for lengths, _ in turns:
        ends = np.cumsum(lengths, dtype=np.int64)
        part = spans[begin : begin + len(lengths)]
        assert part[:, 1].tolist() == ends.tolist()
        assert part[:, 0].tolist() == [0, *ends.tolist()][: len(lengths)]
        begin += len(lengths)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda item: {"turns": item.turns[0]}, "turns must have shape"),
        (lambda item: {"spans": item.spans[1:]}, "spelling tokens, spans have shape"),
        (lambda item: {"spans": item.spans + 1}, "spans must tile"),
        (lambda item: {"tokens": item.tokens[1:]}, "the teacher spoke of"),
    ],
)
def test_examples_that_contradict_themselves(
    change: Callable[[StoredExample], dict[str, object]], message: str
) -> None:
    whole = example(2, [(3, 1)])
    with pytest.raises(ValueError, match=message):
        StoredExample(**{**whole.__dict__, **change(whole)})


def test_pyarrow_alone_can_read_it(built: Path) -> None:
    manifest = json.loads((built / "manifest.json").read_text())
    rows = [row for shard in manifest["shards"] for row in pq.read_table(built / shard["name"]).to_pylist()]
    assert [row["id"] for row in rows] == [f"row-{number}" for number in range(NUM)]
    whole = example(5)
    assert rows[5]["digest"].hex() == whole.digest
    assert rows[5]["turns"] == whole.turns.ravel().tolist()
    assert rows[5]["token_bytes"] == (whole.spans[:, 1] - whole.spans[:, 0]).tolist()
    assert rows[5]["log_probs"] == whole.tokens.log_probs.tolist()
    assert torch.equal(Spectrum.from_bytes(rows[5]["spectra"]).head, expected(5).tokens.spectrum.head)


# ---- likeliest tokens beside the spectra

TOP = 24


@pytest.fixture(scope="module")
def with_top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store-with-top")
    build(folder, top_ids=TOP)
    return folder


def test_likeliest_tokens_are_read_if_wanted(with_top: Path) -> None:
    wanted = [49, 0, 16, 15]
    store = SpectrumStore.open(with_top, with_top=True)
    assert all(
        same_example(item, expected(number, TOP)) for number, item in zip(wanted, store.read(wanted), strict=True)
    )
    assert all(same_example(item, expected(number, TOP)) for number, item in enumerate(store.stream(0, 20)))
    without = SpectrumStore.open(with_top)
    assert all(same_example(item, expected(number)) for number, item in zip(wanted, without.read(wanted), strict=True))


def test_what_they_cost_is_told(with_top: Path, built: Path) -> None:
    there, plain = (SpectrumStore.open(folder).manifest for folder in (with_top, built))
    assert (there.top_ids, plain.top_ids) == (TOP, 0)
    assert plain.top_bytes_per_token == 0
    difference = there.bytes_per_token - plain.bytes_per_token
    # Beside the column itself some of Parquet's own.
    assert there.top_bytes_per_token < difference < 1.1 * there.top_bytes_per_token + 10
    assert 1.5 * TOP < there.top_bytes_per_token < 4 * TOP + 10


def test_likeliest_tokens_are_left_out_of_what_is_read(with_top: Path, tmp_path: Path) -> None:
    for name, data in contents(with_top).items():
        (tmp_path / name).write_bytes(data)
    shard = sorted(tmp_path.glob("shard-*"))[2]
    column = pq.read_metadata(shard).row_group(0).column(SCHEMA.names.index("crc32") + 1)
    assert column.path_in_schema == "top_tokens"
    broken = bytearray(shard.read_bytes())
    broken[column.data_page_offset + column.total_compressed_size // 2] ^= 0x10
    shard.write_bytes(broken)
    items = SpectrumStore.open(tmp_path).read(range(40, 50))
    assert all(same_example(item, expected(40 + place)) for place, item in enumerate(items))
    with pytest.raises(RunError, match=rf"{shard.name} is damaged"):
        SpectrumStore.open(tmp_path, with_top=True).read(range(40, 50))


def test_a_store_from_before_there_were_likeliest_tokens(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest.pop("top_ids")
    manifest["shards"] = [{k: v for k, v in shard.items() if k != "top_bytes"} for shard in manifest["shards"]]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    store = SpectrumStore.open(copy, with_top=True)
    assert store.read([7])[0].tokens.top is None
    store.check_matches(identity())


def test_examples_without_likeliest_tokens_are_not_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'row-40' has no likeliest tokens, 24 are to be kept"):
        writer(tmp_path, identity(top_ids=TOP)).write_shard(2, map(example, range(40, 50)))


# ---- the same bytes, whatever happened


def test_a_resumed_build_ends_in_the_same_bytes(built: Path, tmp_path: Path) -> None:
    first = writer(tmp_path)
    assert first.finished_shards() == {}
    first.write_shard(1, map(example, range(20, 40)))
    # What a kill can leave: a file aside, and on a file system without order a name over half of a shard.
    (tmp_path / ".aside-0123456789ab-shard-00000-0000000000000000.parquet").write_bytes(b"PAR1")
    whole = next(built.glob("shard-00000-*"))
    (tmp_path / whole.name).write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "shard-00002-0123456789abcdef.parquet").write_bytes(b"PAR1")

    again = writer(tmp_path)
    assert list(again.finished_shards()) == [1]
    with pytest.raises(ValueError, match="2 of 3 shards missing, first 0"):
        again.finish()
    for index in (0, 2):
        again.write_shard(index, map(example, again.examples_of_shard(index)))
    again.finish()
    assert contents(tmp_path) == contents(built)


KILLED_BUILD = """
import os, signal, sys
from tests.uld_ds.teachers.test_store import build
calls = 0
def kill(descriptor):
    global calls
    calls += 1
    if calls == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = kill
build(sys.argv[1])
"""


# A put is two calls of fsync, file and folder: the partial manifest's, then those of shards 0, 1, 2.
@pytest.mark.parametrize(("call", "finished"), [(4, 1), (5, 1), (9, 3)])
def test_a_killed_build_goes_on(built: Path, tmp_path: Path, call: int, finished: int) -> None:
    store = tmp_path / "store"
    command = [sys.executable, "-c", KILLED_BUILD, str(store), str(call)]
    killed = subprocess.run(command, check=False, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    with pytest.raises(UserError, match="is half-written"):
        SpectrumStore.open(store)
    again = writer(store)
    left = again.finished_shards()
    assert sorted(left) == list(range(finished))
    build(store, [index for index in range(again.num_shards) if index not in left])
    assert contents(store) == contents(built)


def test_building_what_is_built_changes_nothing(copy: Path, built: Path) -> None:
    assert sorted(writer(copy).finished_shards()) == [0, 1, 2]
    assert writer(copy).finish() == SpectrumStore.open(built).manifest
    assert contents(copy) == contents(built)


def test_a_shard_must_be_whole(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shard 2 holds 10 examples, got 9"):
        writer(tmp_path).write_shard(2, map(example, range(40, 49)))
    assert list(contents(tmp_path)) == ["manifest.partial.json"]


def test_nothing_is_left_beside_the_store(built: Path) -> None:
    names = sorted(contents(built))
    assert names == ["manifest.json", *(shard.name for shard in SpectrumStore.open(built).manifest.shards)]


def test_what_was_measured_is_told(copy: Path) -> None:
    measured = Measured(mean_relative_error=1e-4, gradient_cosine=0.9999, tokens=64)
    writer(copy).finish(measured)
    assert SpectrumStore.open(copy).manifest.measured == measured


# ---- nothing half-written or damaged is mistaken for whole


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


# ---- of another teacher, other data, another codec


CHANGES = [
    ({"data_digest": "e" * 64}, "data_digest", "train on the data it was built from"),
    ({"teacher": "org/other"}, "teacher", "use what it was built with"),
    ({"revision": None}, "revision", "use what it was built with"),
    ({"prompt_template": "{prompt}"}, "prompt_template", "use what it was built with"),
    ({"system_prompt": "Be brief."}, "system_prompt", "use what it was built with"),
    ({"temperature": 2.0}, "temperature", "use what it was built with"),
    ({"tokenizer_digest": "b" * 64}, "tokenizer_digest", "use what it was built with"),
    ({"top_ids": 64}, "top_ids", "set store.top_ids to the store's"),
    ({"precision": Precision(step=1 / 16)}, r"codec\.precision\.step", "set the recipe's precision to the store's"),
]


@pytest.mark.parametrize(("change", "field", "fix"), CHANGES)
def test_a_store_of_something_else_is_refused(
    built: Path, tmp_path: Path, change: dict[str, object], field: str, fix: str
) -> None:
    other = identity(**change)  # type: ignore[arg-type]
    store = SpectrumStore.open(built)
    store.check_matches(identity())
    with pytest.raises(UserError, match=rf"^teacher.store: .* has {field} .*, but here it is .*; .*{fix}") as caught:
        store.check_matches(other, key="teacher.store")
    assert "\n" not in str(caught.value)
    # And nobody builds over it, whole or not.
    writer(tmp_path)
    for place, what in ((built, "the store"), (tmp_path, "the unfinished store")):
        with pytest.raises(UserError, match=f"^store: {what} at .* has {field} .*; remove it, or build elsewhere"):
            writer(place, other)


def test_shards_of_another_size_are_not_mixed(tmp_path: Path) -> None:
    writer(tmp_path)
    with pytest.raises(UserError, match="has examples_per_shard 20, but here it is 8"):
        writer(tmp_path, examples_per_shard=8)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format_version", 2, "format_version 2, but this release reads 1"),
        ("codec", {"version": CODEC_VERSION + 1, "precision": {}}, f"codec.version {CODEC_VERSION + 1}, but"),
        ("max_length", "128", "max_length: Input should be a valid integer"),
        ("surprise", 1, "surprise: Extra inputs"),
    ],
)
def test_manifests_of_other_releases(copy: Path, field: str, value: object, message: str) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, field: value}))
    with pytest.raises(UserError, match=message):
        SpectrumStore.open(copy)


# ---- files


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = StoreFiles(tmp_path)
    files.put("a", b"old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        files.put("a", b"new")
    assert contents(tmp_path) == {"a": b"old"}


def test_a_file_system_without_atomic_puts_gets_a_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = StoreFiles(f"dir::file://{tmp_path}")
    moves: list[str] = []
    mv = type(files._fs).mv
    monkeypatch.setattr(type(files._fs), "mv", lambda self, a, b: (moves.append(b), mv(self, a, b)))
    files.put("a", b"new")
    assert [move.rsplit("/", 1)[1] for move in moves] == ["a"]
    assert files.names() == ["a"] and files.read("a") == b"new" and files.read("b") is None


def test_an_object_store_gets_one_put_and_no_rename() -> None:
    files = StoreFiles("memory://one-put")
    files.put("a", b"1")
    assert fsspec.filesystem("memory").find("/one-put") == ["/one-put/a"]


def test_memory_stays_flat(built: Path) -> None:
    store = SpectrumStore.open(built)
    tracemalloc.start()
    peaks = []
    for stop in (8, NUM):
        tracemalloc.reset_peak()
        for _ in store.stream(0, stop):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peaks[1] < 3 * peaks[0]
