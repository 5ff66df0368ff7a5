"""Completion sets of two vocabularies: a pair written out, and any two by definition."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from tests.helpers import tokenizers_zoo as zoo
from uld_ds.alignment.completions import NONE, CompletionIndex
from uld_ds.alignment.vocabulary_mapping import relations_of
from uld_ds.tokenization.vocabulary import Vocabulary

# Few letters, so that tokens begin each other; the last byte, which no other follows.
SPELLINGS = st.one_of(
    st.none(), st.text("ab", min_size=1, max_size=4).map(str.encode), st.sampled_from([b"\xff", b"a\xff", b"\xff\xffa"])
)
VOCABULARIES = st.lists(SPELLINGS, min_size=1, max_size=12)


def spelled(*entries: bytes | None) -> Vocabulary:
    return Vocabulary([f"{number}" for number in range(len(entries))], entries, np.zeros(len(entries), bool), None)


def sets_of(index: CompletionIndex) -> dict[tuple[int, int], set[int]]:
    """The completion set of each pair."""
    columns = zip(index.teacher, index.student, index.low, index.high, strict=True)
    return {(int(y), int(a)): set(index.order[low:high].tolist()) for y, a, low, high in columns}


def test_a_pair_written_out() -> None:
    student = spelled(b"5", b"6", b"7", b"63", b"5", None, b"12")
    teacher = spelled(b"56", b"5", b"563", b"12", b"58", None, b"123", b"56")
    index = CompletionIndex.of(student, teacher)
    # Nothing completes 58 after 5, or 123 after 12; 5 and 12 have twins.
    assert sets_of(index) == {(0, 0): {1, 3}, (2, 0): {3}, (7, 0): {1, 3}}
    assert index.canonical.tolist() == [0, 1, 2, 3, 0, NONE, 6]
    assert index.begin.tolist() == [3, NONE, 5, NONE, 6, NONE, 1, 3], "of 12, 123, 5, 56, 56, 563, 58"
    assert index.end.tolist() == [6, NONE, 6, NONE, 7, NONE, 2, 6]


@settings(max_examples=300, deadline=None)
@given(VOCABULARIES, VOCABULARIES)
def test_any_two_vocabularies(mine: list[bytes | None], theirs: list[bytes | None]) -> None:
    index = CompletionIndex.of(spelled(*mine), spelled(*theirs))
    expected = {
        (y, a): completing
        for y, whole in enumerate(theirs)
        for a, begun in enumerate(mine)
        if whole and begun and whole not in mine and mine.index(begun) == a
        if whole.startswith(begun)
        if (completing := {u for u, other in enumerate(mine) if other and other.startswith(whole[len(begun) :])})
    }
    assert sets_of(index) == expected
    keys = index.teacher * len(mine) + index.student
    assert (np.diff(keys) > 0).all()
    for y, whole in enumerate(theirs):
        for other, bytes_ in enumerate(theirs):
            if index.begin[y] != NONE and index.begin[other] != NONE:
                begins = index.begin[y] <= index.begin[other] < index.end[y]
                assert begins == (bytes_ or b"").startswith(whole or b"-")


def test_real_vocabularies() -> None:
    student, teacher = zoo.ALL["mistral"](), zoo.ALL["smollm2"]()
    index, words = relations_of(student, teacher).completions, Vocabulary.of(teacher)
    mine = Vocabulary.of(student)
    found = sets_of(index)
    assert len(found) > 20_000
    for (y, a), completing in list(found.items())[::997]:
        rest = (words.spellings[y] or b"").removeprefix(mine.spellings[a] or b"-")
        assert rest and completing == {u for u, other in enumerate(mine.spellings) if other and other.startswith(rest)}


def test_equal_vocabularies_have_nothing_to_complete() -> None:
    relations = relations_of(zoo.plain_bytes(), zoo.plain_bytes())
    assert sets_of(relations.completions) == {}
    assert (relations.completions.begin == NONE).all()
