"""Tokens of two vocabularies that spell the same bytes, or a beginning of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.span_texts import tokenizer_named
from uld_ds.alignment import vocabulary_mapping
from uld_ds.alignment.vocabulary_mapping import NONE, relate, relations_of
from uld_ds.tokenization.vocabulary import Vocabulary


def vocabulary_of(name: str) -> Vocabulary:
    try:
        return Vocabulary.of(zoo.ALL[name]())
    except zoo.MissingPackageError as missing:
        pytest.skip(str(missing))


def spelled(*entries: bytes | None, end: int | None = None, is_byte: tuple[int, ...] = ()) -> Vocabulary:
    mask = np.zeros(len(entries), bool)
    mask[list(is_byte)] = True
    return Vocabulary([f"{number}{entry!r}" for number, entry in enumerate(entries)], entries, mask, end)


def test_relations_of_a_pair_written_out() -> None:
    student = spelled(b"A", b"th", b" ", b"the", b"A", None, b" th", end=5, is_byte=(0,))
    teacher = spelled(None, b"the", b"then", b" there", b"A", b"t", b"the", None, end=7)
    relations = relate(student, teacher)
    # Of two tokens "A" of the student the one for a character; of two tokens "the" of the teacher one has a twin.
    assert relations.identity.tolist() == [NONE, 3, NONE, NONE, 4, NONE, NONE, 5]
    assert relations.projection.tolist() == [NONE, 3, 3, 6, 4, NONE, 3, 5]
    assert relations.num_student == 7


def test_an_end_of_text_is_related_only_where_both_have_one() -> None:
    student, teacher = spelled(b"a", None), spelled(None, b"a", end=0)
    assert relate(student, teacher).identity.tolist() == [NONE, 0]


def test_equal_vocabularies_are_related_token_by_token() -> None:
    relations = relate(vocabulary_of("mistral"), vocabulary_of("mistral"))
    assert relations.identity.tolist() == relations.projection.tolist() == list(range(32_000))


@pytest.mark.parametrize("name", [*zoo.REAL, *zoo.TRAINED, "slow_wordpiece", "byt5"])
def test_spellings_are_what_the_tokenizer_decodes_in_running_text(name: str) -> None:
    tokenizer, found = tokenizer_named(name), vocabulary_of(name)
    assert len(found) >= len(set(tokenizer.get_vocab().values()))
    text = "said the cat, while 12 others (none of them) jumped over it"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.unk_token_id in ids:
        ids = [index for index in ids if index != tokenizer.unk_token_id]
        assert all(found.spellings[index] is not None for index in ids)
        return
    whole = b"".join(found.spellings[index] or b"?" for index in ids)
    assert whole.replace(b" ", b"") == text.replace(" ", "").encode()
    if name in ("wordpiece", "slow_wordpiece"):  # a word has its space before it, even after a parenthesis
        assert b"said the cat, while 12 others( none of them)" in whole
    elif name != "clip_style":  # whose tokens do not tell where a word begins
        assert whole.removeprefix(b" ") == text.encode()


@pytest.mark.parametrize(
    ("student", "teacher", "shared"),
    [
        ("mistral", "deepseek", [" the", "ing", ",", "é", "中", " "]),
        ("wordpiece", "smollm2", [" the", "ing", ",", " cat"]),
        ("smollm2", "gemma_style", [" the", "ing", "\n", " cat"]),
        # Added tokens that the model makes of spaces.
        ("smollm2", "gemma_spaces", [" the", "  ", "   ", "    ", "\n\n"]),
        ("gemma_spaces", "smollm2", [" the", "  ", "   ", "    ", "\n\n"]),
        ("unigram", "mistral", [" return", ","]),
        ("byt5", "gpt2", ["a", " ", "\n"]),
    ],
)
def test_families_meet_in_their_bytes(student: str, teacher: str, shared: list[str]) -> None:
    mine, theirs = vocabulary_of(student), vocabulary_of(teacher)
    relations, where = relate(mine, theirs), theirs.by_bytes()
    for text in shared:
        assert mine.spellings[relations.identity[where[text.encode()]]] == text.encode(), text


@pytest.mark.parametrize("student", ["smollm2", "mistral", "wordpiece", "unigram_bytes", "characters"])
def test_a_projection_is_the_longest_beginning_there_is(student: str) -> None:
    mine, theirs = vocabulary_of(student), vocabulary_of("gpt2")
    relations = relate(mine, theirs)
    all_spellings = {entry for entry in mine.spellings if entry is not None}
    for index in np.random.default_rng(0).choice(50_000, 300, replace=False).tolist():
        entry = theirs.spellings[index]
        assert entry is not None
        beginnings = [entry[:n] for n in range(1, len(entry) + 1) if entry[:n] in all_spellings]
        found = relations.projection[index]
        assert (found == NONE) == (not beginnings)
        assert not beginnings or mine.spellings[found] == beginnings[-1]
    identical = relations.identity != NONE
    np.testing.assert_array_equal(relations.identity[identical], relations.projection[identical])
    assert len(set(relations.identity[identical].tolist())) == identical.sum()


def test_what_has_no_bytes_has_no_twin() -> None:
    # Both have <unk> and <s>; the unknown token of one says nothing about that of another.
    mine, theirs = vocabulary_of("unigram"), vocabulary_of("mistral")
    relations = relate(mine, theirs)
    assert [theirs.tokens[index] for index in range(3)] == ["<unk>", "<s>", "</s>"]
    assert relations.identity[:3].tolist() == [NONE, NONE, mine.end]


def test_space_before_a_word_where_a_tokenizer_drops_it() -> None:
    found = vocabulary_of("wordpiece")
    of = dict(zip(found.tokens, found.spellings, strict=True))
    assert (of["the"], of["##the"], of[","], of["[CLS]"]) == (b" the", b"the", b",", None)
    assert vocabulary_of("slow_wordpiece").spellings == found.spellings


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    monkeypatch.setenv("ULD_DS_CACHE", str(tmp_path))

    def only_file() -> Path:
        (file,) = (tmp_path / "vocabularies").iterdir()
        return file

    return only_file


def test_relations_are_computed_once_per_pair(kept: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    first = relations_of(zoo.unigram(), zoo.word_level())
    assert kept().stat().st_size > 0

    def never(*_: Any) -> Any:
        raise AssertionError("computed a second time")

    monkeypatch.setattr(vocabulary_mapping, "relate", never)
    second = relations_of(zoo.unigram(), zoo.word_level())
    np.testing.assert_array_equal(first.identity, second.identity)
    np.testing.assert_array_equal(first.projection, second.projection)
    assert (second.num_student, second.identity.dtype) == (first.num_student, np.int64)
    with pytest.raises(AssertionError, match="second time"):
        relations_of(zoo.word_level(), zoo.unigram())


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "another array"])
def test_a_damaged_file_is_made_anew(kept: Callable[[], Path], damage: str, caplog: pytest.LogCaptureFixture) -> None:
    right = relations_of(zoo.unigram(), zoo.word_level())
    file = kept()
    data = file.read_bytes()
    middle = len(data) // 2
    file.write_bytes(
        {
            "empty": b"",
            "cut": data[:middle],
            "flipped": data[: middle - 8]
            + bytes(255 - byte for byte in data[middle - 8 : middle + 8])
            + data[middle + 8 :],
            "another array": b"\x93NUMPY",
        }[damage]
    )
    caplog.set_level(logging.WARNING)
    again = relations_of(zoo.unigram(), zoo.word_level())
    np.testing.assert_array_equal(again.projection, right.projection)
    assert "is damaged" in caplog.text
    caplog.clear()
    relations_of(zoo.unigram(), zoo.word_level())
    assert not caplog.text
    assert kept() == file


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ULD_DS_CACHE", str(tmp_path / "file"))
    assert len(relations_of(zoo.unigram(), zoo.word_level()).identity) == len(zoo.word_level())
    assert "not kept" in caplog.text
