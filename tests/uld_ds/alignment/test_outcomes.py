"""Outcomes that two vocabularies share: a pair written out, and any two by their definition."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
from hypothesis import given, settings

from tests.helpers import tokenizers_zoo as zoo
from uld_ds.alignment.vocabulary_mapping import VocabularyRelations, relate, relations_of
from uld_ds.tokenization.vocabulary import Vocabulary

SPELLINGS = st.one_of(st.none(), st.text("ab", min_size=1, max_size=4).map(str.encode))
VOCABULARIES = st.lists(SPELLINGS, min_size=1, max_size=12)


def spelled(side: str, *entries: bytes | None) -> Vocabulary:
    return Vocabulary([f"{side}{n}" for n in range(len(entries))], entries, np.zeros(len(entries), bool), None)


def outcomes(relations: VocabularyRelations) -> set[tuple[frozenset[int], frozenset[int]]]:
    """Tokens of the student and of the teacher in each outcome that has some of the student's."""
    return {
        (
            frozenset(np.flatnonzero(relations.outcomes == number).tolist()),
            frozenset(np.flatnonzero(relations.teacher_outcomes == number).tolist()),
        )
        for number in set(relations.outcomes.tolist())
    }


def test_a_pair_written_out() -> None:
    student = spelled("s", b"the", b"theory", b"5", b"x", b"the", None, b"zz")
    teacher = spelled("t", b"the", b"56", b"57", b"5", b"thesis", b"y", b"x", None)
    found = outcomes(relate(student, teacher))
    # "theory" begins with the teacher's "the", "thesis" with the student's; y and zz are nobody's.
    assert found == {
        (frozenset({0, 1, 4}), frozenset({0, 4})),
        (frozenset({2}), frozenset({1, 2, 3})),
        (frozenset({3}), frozenset({6})),
        (frozenset({5}), frozenset()),
        (frozenset({6}), frozenset()),
    }
    assert relate(student, teacher).teacher_outcomes.tolist()[5] == -1


@settings(max_examples=300, deadline=None)
@given(VOCABULARIES, VOCABULARIES)
def test_any_two_vocabularies(mine: list[bytes | None], theirs: list[bytes | None]) -> None:
    parts = {("s", n): {("s", n)} for n in range(len(mine))} | {("t", n): {("t", n)} for n in range(len(theirs))}

    def join(one: tuple[str, int], other: tuple[str, int]) -> None:
        whole = parts[one] | parts[other]
        parts.update(dict.fromkeys(whole, whole))

    for side, own, other_side, others in (("s", mine, "t", theirs), ("t", theirs, "s", mine)):
        for number, whole in enumerate(own):
            begun = [other for other in others if whole and other and whole.startswith(other)]
            if begun:
                join((side, number), (other_side, others.index(max(begun, key=len))))
    expected = {
        (frozenset(n for side, n in part if side == "s"), frozenset(n for side, n in part if side == "t"))
        for part in map(frozenset, parts.values())
        if any(side == "s" for side, _ in part)
    }
    assert outcomes(relate(spelled("s", *mine), spelled("t", *theirs))) == expected


def test_equal_vocabularies_tell_every_token_apart() -> None:
    relations = relations_of(zoo.plain_bytes(), zoo.plain_bytes())
    every = list(range(relations.num_student))
    assert relations.outcomes.tolist() == relations.teacher_outcomes.tolist() == every


def test_ends_are_one_outcome_of_their_own() -> None:
    student, teacher = (Vocabulary([f"{side}0", f"{side}1"], [b"a", None], np.zeros(2, bool), 1) for side in ("s", "t"))
    assert outcomes(relate(student, teacher)) == {
        (frozenset({0}), frozenset({0})),
        (frozenset({1}), frozenset({1})),
    }
