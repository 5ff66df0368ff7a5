"""What is written to a spectrum store is read: the same bytes back, and the top-k tokens beside them."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings

from tests.helpers.stores import NUM, build, contents, expected, same_example, writer
from tests.helpers.teacher_outputs import example, identity, same_bits
from uld_ds.errors import RunError
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.teachers.outputs_codec import roundtrip
from uld_ds.teachers.store.manifest import CodecFacts, ServedFacts
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.teachers.store.shard import SCHEMA, StoredExample, spans_of

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


@pytest.mark.parametrize("rebuilt", [True, False])
def test_a_store_of_truncated_spectra(rebuilt: bool, tmp_path: Path) -> None:
    served = ServedFacts(engine="vllm", model="m", version="0.32.0", top=16, vocab_size=300)
    codec = CodecFacts.of(truncated=True, rebuilt=rebuilt)
    store = writer(tmp_path, identity(top_ids=16, top_codec=2, served=served, codec=codec), examples=7)

    def told(number: int) -> StoredExample:
        whole = example(number, top_ids=16)
        assert whole.tokens.top is not None
        spectrum = Spectrum.from_top_log_probs(whole.tokens.top.log_probs, vocab_size=300)
        return replace(whole, tokens=replace(whole.tokens, spectrum=spectrum))

    store.write_shard(0, map(told, range(7)))
    manifest = store.finish()
    vocab_size = 300 if rebuilt else None
    for with_top in (True, False):
        opened = SpectrumStore.open(tmp_path, with_top=with_top)
        for found in (list(opened.stream()), opened.read(range(7))):
            for number, item in enumerate(found):
                want = roundtrip(told(number).tokens, vocab_size=vocab_size)
                assert same_bits(item.tokens, want if with_top else replace(want, top=None))
                assert torch.equal(item.tokens.spectrum.unknown_mass, want.spectrum.unknown_mass)
    spectra = pq.read_table(tmp_path / manifest.shards[0].name).column("spectra").to_pylist()
    assert {blob[4] for blob in spectra} == {4 if rebuilt else 3}


def test_layouts_are_those_of_the_examples(built: Path) -> None:
    for number, layout in enumerate(SpectrumStore.open(built).layouts()):
        whole = example(number)
        assert (layout.digest, layout.pieces) == (whole.digest, None)
        assert np.array_equal(layout.turns, whole.turns) and np.array_equal(layout.spans, whole.spans)
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


# ---- top-k tokens beside the spectra

TOP = 24


@pytest.fixture(scope="module")
def with_top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store-with-top")
    build(folder, top_ids=TOP)
    return folder


def test_top_k_tokens_are_read_if_wanted(with_top: Path) -> None:
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


def test_top_k_tokens_are_left_out_of_what_is_read(with_top: Path, tmp_path: Path) -> None:
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


def test_a_store_from_before_there_were_top_k_tokens(copy: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest.pop("top_ids")
    manifest["shards"] = [{k: v for k, v in shard.items() if k != "top_bytes"} for shard in manifest["shards"]]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    store = SpectrumStore.open(copy, with_top=True)
    assert store.read([7])[0].tokens.top is None
    store.check_matches(identity())


def test_examples_without_top_k_tokens_are_not_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'row-40' has no top-k tokens, 24 are to be kept"):
        writer(tmp_path, identity(top_ids=TOP)).write_shard(2, map(example, range(40, 50)))
