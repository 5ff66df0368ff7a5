"""Which tokens are the answer, which bytes each covers, and how a side begins and ends."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from tests.helpers.toy_tokenizers import CHAT_TEMPLATE, texts, toy
from uld_ds.conversations import Part
from uld_ds.data.encoding import EncodedPart, EncodedSide, Encoder
from uld_ds.data.examples import Example
from uld_ds.data.placeholders import Place
from uld_ds.data.rendering import Rendered, RenderedTurn, Renderer
from uld_ds.recipe import ModelSettings


def plain(prompt: str, answer: str, after: str = "") -> Rendered:
    text = prompt + answer + after
    place = Place(0, len(prompt), len(prompt + answer))
    return Rendered(text, (RenderedTurn(len(prompt), (place,), len(text)),), (Part("text", answer, 1),))


@dataclass
class OneTurn:
    """A side with a single answer, flat."""

    ids: np.ndarray
    first: int
    stop: int
    spans: np.ndarray


def flat(side: EncodedSide) -> OneTurn:
    (turn,) = side.turns
    assert turn.end == len(side.ids)
    (part,) = turn.parts
    return OneTurn(side.ids, part.first, part.stop, part.spans)


def encode(tokenizer, rendered: Rendered, *, chat: bool = False) -> OneTurn:  # type: ignore[no-untyped-def]
    return flat(Encoder(tokenizer, uses_chat_template=chat)([rendered])[0])


def spans(side: OneTurn | EncodedPart) -> list[tuple[int, int]]:
    assert len(side.spans) == side.stop - side.first
    return [(int(start), int(stop)) for start, stop in side.spans]


def test_plain_text_ends_with_eos() -> None:
    tokenizer = toy("ab", "cd")
    side = encode(tokenizer, plain("ab ", "cdab"))
    assert texts(tokenizer, side.ids) == ["ab", " ", "cd", "ab", "</s>"]
    assert (side.first, side.stop, spans(side)) == (2, 4, [(0, 2), (2, 4)])


def test_a_token_that_straddles_the_first_byte_belongs_to_the_answer_from_there_on() -> None:
    tokenizer = toy("abc", "de")
    side = encode(tokenizer, plain("xa", "bcde"))
    assert texts(tokenizer, side.ids) == ["x", "abc", "de", "</s>"]
    assert (side.first, side.stop, spans(side)) == (1, 3, [(0, 2), (2, 4)])


def test_a_token_that_straddles_the_last_byte_covers_what_is_before_it() -> None:
    tokenizer = toy("bc")
    side = encode(tokenizer, plain("a", "ab", after="c</s>"), chat=True)
    assert texts(tokenizer, side.ids) == ["a", "a", "bc", "</s>"]
    assert (side.first, side.stop, spans(side)) == (1, 3, [(0, 1), (1, 2)])


def test_characters_split_over_tokens_have_spans_in_bytes() -> None:
    side = encode(toy(), plain("ü", "é🙂"))
    assert (side.first, spans(side)) == (2, [(i, i + 1) for i in range(6)])


@pytest.mark.parametrize("chat", [True, False])
def test_the_tokenizers_own_bos_comes_before_plain_text_only(chat: bool) -> None:
    tokenizer = toy(bos=True, adds_bos=True)
    side = encode(tokenizer, plain("ab", "c"), chat=chat)
    assert texts(tokenizer, side.ids) == ([] if chat else ["<s>"]) + ["a", "b", "c", "</s>"]
    assert (side.first, side.stop) == ((2, 3) if chat else (3, 4))


@pytest.mark.parametrize(("bos", "start"), [(True, "<s>"), (False, "</s>")])
def test_an_answer_with_nothing_before_it_gets_a_start(bos: bool, start: str) -> None:
    tokenizer = toy(bos=bos)
    for chat in (True, False):
        side = encode(tokenizer, plain("", "ab"), chat=chat)
        assert texts(tokenizer, side.ids) == [start, "a", "b", "</s>"]
        assert (side.first, side.stop, spans(side)) == (1, 3, [(0, 1), (1, 2)])


def test_an_answer_that_nothing_can_predict() -> None:
    with pytest.raises(ValueError, match=r"^nothing stands before the answer, and the tokenizer has no BOS or EOS"):
        encode(toy(eos=False), plain("", "ab"))
    side = encode(toy(eos=False), plain("x", "ab"))
    assert (side.first, side.stop, len(side.ids)) == (1, 3, 3)


def test_the_end_of_a_turn_in_a_chat_template() -> None:
    settings = ModelSettings(model="x")
    for template, tail in ((CHAT_TEMPLATE, ["</s>"]), (CHAT_TEMPLATE.replace("</s>", "!?"), ["!", "?", "</s>"])):
        tokenizer = toy("cd", chat_template=template)
        rendered = Renderer(tokenizer, settings, "student")(Example.of("cd", "cde"))
        side = encode(tokenizer, rendered, chat=True)
        assert texts(tokenizer, side.ids[side.first : side.stop]) == ["cd", "e"]
        assert texts(tokenizer, side.ids[side.stop :]) == tail
        assert spans(side) == [(0, 2), (2, 3)]


def test_several_texts_at_once_and_none() -> None:
    encoder = Encoder(toy("ab"), uses_chat_template=False)
    items = [plain("x", "ab"), plain("xyz", "é"), plain("", "abab")]
    together = [flat(side) for side in encoder(items)]
    for side, item in zip(together, items, strict=True):
        alone = flat(encoder([item])[0])
        assert np.array_equal(side.ids, alone.ids) and np.array_equal(side.spans, alone.spans)
        assert (side.first, side.stop) == (alone.first, alone.stop)
    assert encoder([]) == []


def test_every_answer_of_a_conversation_ends_as_the_last_one_does() -> None:
    tokenizer = toy("ab", chat_template=CHAT_TEMPLATE.replace("</s>", "!?"))
    messages = [("user", "x"), ("assistant", "abc"), ("user", "ab"), ("assistant", "é")]
    example = Example(tuple({"role": role, "content": content} for role, content in messages), (1, 3))
    rendered = Renderer(tokenizer, ModelSettings(model="x"), "student")(example)
    (side,) = Encoder(tokenizer, uses_chat_template=True)([rendered])
    (one,), (two,) = (turn.parts for turn in side.turns)
    ends = [turn.end for turn in side.turns]
    assert texts(tokenizer, side.ids[one.first : one.stop]) == ["ab", "c"]
    assert texts(tokenizer, side.ids[one.stop : ends[0]]) == ["!", "?"]
    # No token of these ends a conversation: only with one more does generation know where to stop.
    assert texts(tokenizer, side.ids[two.stop : ends[1]]) == ["!", "?", "</s>"]
    assert (spans(one), spans(two), ends[1]) == ([(0, 2), (2, 3)], [(0, 1), (1, 2)], len(side.ids))
    # <user> x ! ? \n <assistant> ab c ! ? \n <user> ab ! ? \n <assistant> 2 bytes ! ?
    assert (one.first, one.stop, ends[0], two.first, two.stop) == (6, 8, 10, 17, 19)
