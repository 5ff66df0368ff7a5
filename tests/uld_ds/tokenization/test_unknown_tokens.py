"""Unknown tokens: laid out if there is one way, and otherwise as far as all ways agree."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import given, settings

from uld_ds.tokenization.unknown_tokens import coarse_lengths, only_fill

PIECES = st.lists(st.sampled_from([b"a", b"b", b"ab", None]), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(pieces=PIECES.filter(lambda p: None in p), wanted=st.text("ab", min_size=1, max_size=9).map(str.encode))
def test_unknown_pieces_are_filled_only_if_there_is_one_way(pieces: list[bytes | None], wanted: bytes) -> None:
    unknown = [number for number, piece in enumerate(pieces) if piece is None]
    sizes = itertools.product(range(1, len(wanted) + 1), repeat=len(unknown))
    layouts = []
    for size in sizes:
        if sum(size) + sum(len(piece or b"") for piece in pieces) == len(wanted):
            place, fills, rest = 0, [], list(size)
            for piece in pieces:
                length = rest.pop(0) if piece is None else len(piece)
                if piece is None:
                    fills.append(wanted[place : place + length])
                elif wanted[place : place + length] != piece:
                    break
                place += length
            else:
                layouts.append(fills)
    found = only_fill([piece or b"" for piece in pieces], unknown, [(0, len(wanted))] * len(unknown), wanted)
    assert found is None or [found] == layouts
    if len(layouts) == 0 or len(unknown) == 1:
        assert found == (layouts[0] if layouts else None)


@settings(max_examples=300, deadline=None)
@given(pieces=PIECES.filter(lambda p: None in p), wanted=st.text("ab", max_size=9).map(str.encode))
def test_coarse_lengths_have_the_boundaries_that_all_layouts_share(pieces: list[bytes | None], wanted: bytes) -> None:
    unknown = [number for number, piece in enumerate(pieces) if piece is None]
    layouts = []
    for size in itertools.product(range(len(wanted) + 1), repeat=len(unknown)):
        rest = list(size)
        lengths = [rest.pop(0) if piece is None else len(piece) for piece in pieces]
        begins = [0, *itertools.accumulate(lengths)]
        spelled = all(wanted[at : at + len(p)] == p for at, p in zip(begins, pieces, strict=False) if p is not None)
        if spelled and begins[-1] == len(wanted):
            layouts.append(begins)
    whole = [(0, len(wanted))] * len(unknown)
    found = coarse_lengths([piece or b"" for piece in pieces], unknown, whole, wanted)
    assert (found is None) == (not layouts)
    if found is not None:
        lengths, joined = found
        begins = [0, *itertools.accumulate(lengths)]
        assert begins[-1] == len(wanted)
        for number in set(range(len(pieces) + 1)) - set(joined):
            assert {layout[number] for layout in layouts} == {begins[number]}


def test_windows_tell_neighboring_unknown_pieces_apart() -> None:
    assert only_fill([b"a", b"", b"", b"b"], [1, 2], [(1, 3), (3, 4)], b"axyzb") == [b"xy", b"z"]
    assert only_fill([b"a", b"", b"", b"b"], [1, 2], [(0, 5), (0, 5)], b"axyzb") is None


def test_an_unknown_piece_may_be_nothing_only_where_all_is_whitespace() -> None:
    assert only_fill([b"", b"a"], [0], [(0, 0)], b"a") == [b""]
    assert only_fill([b"", b"a"], [0], [(0, 1)], b"a") is None
