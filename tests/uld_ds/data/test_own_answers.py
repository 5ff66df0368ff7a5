"""Sampled answers become rows: cases computed by hand, and what holds for any tokens of any tokenizer."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.chat_templates import stock_templates, tokenizer_with
from tests.helpers.own_answers import one_row, prompt_ids, sampled, segments, text_side, tokens
from tests.helpers.span_texts import TEXTS, tokenizer_named
from tests.helpers.talk_templates import PLAIN, TAGGED, WORDED
from tests.helpers.talks import example, said, talk, user
from tests.helpers.thinkers import SETTINGS, thinking_tokenizer
from tests.helpers.toy_tokenizers import CHAT_TEMPLATE, TRIMMING_TEMPLATE, toy
from uld_ds.data.examples import Example
from uld_ds.data.own_answers import NO_PROMPT, NOT_LOCATED, TOO_LONG, OwnAnswers
from uld_ds.data.pairing import FEATURES, Pairing
from uld_ds.data.sampled_replies import EMPTY, NOT_UTF8
from uld_ds.data.sides import TextSide
from uld_ds.tokenization.sampled_tokens import SampledTokens
from uld_ds.tokenization.spans import AlignmentError
from uld_ds.tokenization.token_bytes import SPACE_MARK

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
ASKED = Example.of("hi", "")
LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' </s>' }}{% endif %}{% endfor %}"
)
FIELDS = TAGGED.replace("m.reasoning_content and loop.last", "m.reasoning_content")
BLOCK = FIELDS.replace(
    "{% if m.reasoning_content",
    "{% if not m.reasoning_content and m.role == 'assistant' %}<r></r>\n{% endif %}{% if m.reasoning_content",
)


def chat(
    role: str, *merged: str, template: str = CHAT_TEMPLATE, more: tuple[str, ...] = (), **settings: Any
) -> TextSide:
    tokenizer = toy(*merged, bos=True, chat_template=template)
    if more:
        tokenizer.add_special_tokens({"additional_special_tokens": list(more)})
    return text_side(tokenizer, role, **settings)


def spelled(side: TextSide, *said: str) -> list[int]:
    """The ids of tokens; a text that is none in as many bytes as it has."""
    ids: list[int] = []
    for text in said:
        own = side.tokenizer.convert_tokens_to_ids(text.replace(" ", "Ġ").replace("\n", "Ċ"))
        ids += [own] if own is not None else side.tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def shown(
    student: TextSide, teacher: TextSide, *said: str, ended: bool, asked: Example = ASKED, **options: Any
) -> tuple[list[str], list[str], list[tuple[str, str]]]:
    """The learned tokens of both sides, and the segments, of an answer of these tokens."""
    row = one_row(student, teacher, asked, spelled(student, *said), ended=ended, **options)
    assert isinstance(row, dict), row
    assert set(row) == set(FEATURES)
    pairs = [("".join(own), "".join(other)) for own, other in segments(student, teacher, row)]
    return tokens(student, row, "student"), tokens(teacher, row, "teacher"), pairs


# ---- what was sampled stays, and ends are one event


def test_the_tokens_that_were_sampled_stay() -> None:
    student, teacher = chat("student", "in", "ing", "king"), chat("teacher", "ki", "ng")
    row = one_row(student, teacher, ASKED, spelled(student, "k", "in", "g", "</s>"), ended=True)
    assert isinstance(row, dict)
    prompt = prompt_ids(student, ASKED)
    assert row["student_ids"].tolist() == [*prompt, *spelled(student, "k", "in", "g", "</s>")]
    assert row["student_answers"].tolist() == [len(prompt) + n for n in range(4)]
    assert row["student_in_text"].tolist() == [True, True, True, False]
    assert (row["student_last_turn"], row["student_length"]) == (len(prompt), len(prompt) + 4)
    assert tokens(teacher, row, "teacher") == ["ki", "ng", "</s>"]
    # The bytes 0-1, 1-3, 3-4 and 0-2, 2-4 have no boundary in common but the edges.
    assert segments(student, teacher, row) == [(["k", "in", "g"], ["ki", "ng"]), (["</s>"], ["</s>"])]
    assert row["answer_bytes"] == 4
    assert row["prompt"] == "<user>hi</s>\n<assistant>"
    assert row["digest"] == Example.of("hi", "king").digest()
    assert row["notes"] == []


def test_ends_are_one_event_whatever_tokens_spell_them() -> None:
    student, teacher = chat("student"), chat("teacher", template=CHAT_TEMPLATE.replace("</s>", "[end]"))
    assert teacher.render(Example.of("hi", "a")).text.endswith("a[end]")
    *_, pairs = shown(student, teacher, "a", "</s>", ended=True)
    assert pairs == [("a", "a"), ("</s>", "[end]</s>")]
    # The student, too, may say it in several tokens, and end with a token that only its checkpoint names.
    *_, pairs = shown(teacher, student, "a", "[end]", "<system>", ended=True)
    assert pairs == [("a", "a"), ("[end]<system>", "</s>")]


def test_a_cut_off_answer_has_no_end() -> None:
    student, teacher = chat("student", "the"), chat("teacher", "th", "end")
    own, other, pairs = shown(student, teacher, "the", " ", "e", "n", ended=False)
    assert (own, other) == (["the", "Ġ", "e", "n"], ["th", "e", "Ġ", "en"])
    assert pairs == [("the", "the"), ("Ġ", "Ġ"), ("en", "en")]
    # Nor has the teacher a token that would spell some of its end, too.
    joins = chat("teacher", "nĊ", template=CHAT_TEMPLATE.replace("</s>", "\n</s>"))
    assert shown(student, joins, "e", "n", "</s>", ended=True)[1] == ["e", "nĊ", "</s>"]
    assert shown(student, joins, "e", "n", ended=False)[1] == ["e", "n"]


def test_a_cut_off_answer_ends_with_its_last_whole_character() -> None:
    student, teacher = chat("student"), chat("teacher")
    row = one_row(student, teacher, ASKED, spelled(student, "a中b日")[:-1], ended=False)
    assert isinstance(row, dict)
    assert row["answer_bytes"] == 5
    assert row["student_ids"].tolist() == [*prompt_ids(student, ASKED), *spelled(student, "a中b")]
    # A token that spells more than a part of the last character goes with it.
    merged = zoo.gpt2() if _has_gpt2() else None
    if merged is not None:
        side = text_side(merged, "student", prompt_template="{prompt}:")
        index = merged.convert_tokens_to_ids("Ġà")
        assert one_row(side, teacher, ASKED, [index], ended=False) == EMPTY
        kept = one_row(side, teacher, ASKED, [*merged("yes")["input_ids"], index], ended=False)
        assert isinstance(kept, dict) and kept["answer_bytes"] == 3


def _has_gpt2() -> bool:
    try:
        zoo.gpt2()
    except zoo.MissingPackageError:
        return False
    return True


def test_why_answers_are_left_out() -> None:
    student, teacher = chat("student"), chat("teacher")
    begun = spelled(student, "中")[:2]
    for ids, ended, reason in (
        ([], False, EMPTY),
        (spelled(student, "</s>"), True, EMPTY),
        (spelled(student, " ", "\n", "</s>"), True, EMPTY),
        (spelled(student, "<user>", "a", "</s>"), True, EMPTY),
        (begun, False, EMPTY),
        # Marks of reasoning, and nothing beside them.
        (spelled(student, "</think>"), False, EMPTY),
        (spelled(student, "\n", "</think>", "</s>"), True, EMPTY),
        (spelled(student, "<think>", "</think>", "</s>"), True, EMPTY),
        ([*begun, *spelled(student, "</s>")], True, NOT_UTF8),
        ([*begun, *spelled(student, "a")], False, NOT_UTF8),
    ):
        assert one_row(student, teacher, ASKED, ids, ended=ended) == reason
    asked = Example.of("hi, you", "")
    tight = chat("teacher", max_length=len(teacher.prompt_ids(asked)))
    assert one_row(student, tight, asked, spelled(student, "a"), ended=False) == TOO_LONG
    own = OwnAnswers(student, teacher)
    assert own([ASKED], [sampled(spelled(student, "a"), ended=False)], [np.zeros(0, np.int32)]) == [NO_PROMPT]
    refuses = chat("teacher", template="{{ raise_exception('no ' + messages[0].role) }}")
    assert "no user" in one_row(student, refuses, ASKED, spelled(student, "a"), ended=False)
    assert OwnAnswers(student, teacher)([], [], []) == []


def test_one_answer_that_cannot_be_located_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = chat("student"), chat("teacher")
    real = teacher.encode

    def encode(rendered: Any) -> Any:
        if any("b" in item.text for item in rendered):
            raise AlignmentError("byte 7 of 9")
        return real(rendered)

    monkeypatch.setattr(teacher, "encode", encode)
    answers = [sampled(spelled(student, text), ended=False) for text in "abc"]
    rows = OwnAnswers(student, teacher)([ASKED] * 3, answers, [prompt_ids(student, ASKED)] * 3)
    assert [row if isinstance(row, str) else row["answer_bytes"] for row in rows] == [1, NOT_LOCATED, 1]


def test_what_does_not_fit_ends_at_the_last_boundary_of_both() -> None:
    student = chat("student", "ab", "cd")
    teacher = chat("teacher", "abc")
    short = chat("teacher", "abc", max_length=len(teacher.prompt_ids(ASKED)) + 2)
    # ab|cd|e and abc|d|e: the only boundary before the end is after d, three tokens of the teacher's.
    *_, pairs = shown(student, teacher, "ab", "cd", "e", "</s>", ended=True)
    assert pairs == [("abcd", "abcd"), ("e", "e"), ("</s>", "</s>")]
    _, other, pairs = shown(student, short, "ab", "cd", "e", "</s>", ended=True)
    assert (other, pairs) == (["abc", "d"], [("abcd", "abcd")])


# ---- control tokens


def test_a_control_token_in_the_middle_cuts_the_answer() -> None:
    student, teacher = chat("student"), chat("teacher")
    own, other, pairs = shown(student, teacher, "a", "b", "<user>", "c", "</s>", ended=True)
    assert own == other == ["a", "b"]
    assert pairs == [("a", "a"), ("b", "b")]
    # So does one that stands for no text at all: a row that the tokenizer has no token for.
    row = one_row(student, teacher, ASKED, [*spelled(student, "a"), 9_999, *spelled(student, "b", "</s>")], ended=True)
    assert isinstance(row, dict) and row["answer_bytes"] == 1
    assert row["student_in_text"].all() and row["teacher_in_text"].all()


@pytest.mark.parametrize("special_tokens", ["control", "text"])
def test_what_looks_like_a_control_token_of_the_teacher(special_tokens: str) -> None:
    student = chat("student")
    teacher = chat("teacher", more=("<x>",), special_tokens=special_tokens)
    row = one_row(student, teacher, ASKED, spelled(student, "a<x>b", "</s>"), ended=True)
    assert isinstance(row, dict)
    said = ["<x>"] if special_tokens == "control" else ["<", "x", ">"]
    assert tokens(teacher, row, "teacher") == ["a", *said, "b", "</s>"]
    assert row["notes"] == ["teacher_typed" if special_tokens == "control" else "teacher_typed_text"]
    assert segments(student, teacher, row)[1] == (["<", "x", ">"], said)
    # Of an answer that is cut off after it, too.
    row = one_row(student, teacher, ASKED, spelled(student, "a<x>"), ended=False)
    assert isinstance(row, dict)
    assert tokens(teacher, row, "teacher") == ["a", *said]


# ---- what templates write around answers


def test_what_the_template_writes_before_an_answer_is_a_marker_where_it_is_said() -> None:
    student, teacher = chat("student", template=LLAMA2), chat("teacher")
    own, _, pairs = shown(student, teacher, " ", "a", " ", "</s>", ended=True)
    assert own == ["Ġ", "a", "Ġ", "</s>"]
    assert pairs == [("a", "a"), ("Ġ</s>", "</s>")]  # the teacher has no event beside the first space
    row = one_row(student, teacher, ASKED, spelled(student, " ", "a", " ", "</s>"), ended=True)
    assert isinstance(row, dict) and row["student_in_text"].tolist() == [False, True, False, False]
    # Where it is not said, the answer just begins; what is said beyond it is said.
    _, _, pairs = shown(student, teacher, "a", "</s>", ended=True)
    assert pairs == [("a", "a"), ("</s>", "</s>")]
    own, other, _ = shown(student, teacher, " ", " ", "a", "</s>", ended=True)
    assert (own, other) == (["Ġ", "Ġ", "a", "</s>"], ["Ġ", "a", "</s>"])
    # Cut off, white space at the end is as much text as any.
    own, other, _ = shown(student, teacher, " ", "a", " ", ended=False)
    assert (own, other) == (["Ġ", "a", "Ġ"], ["a", "Ġ"])
    # Both sides' spaces are one event.
    _, _, pairs = shown(student, chat("teacher", template=LLAMA2), " ", "a", " ", "</s>", ended=True)
    assert pairs == [("Ġ", "Ġ"), ("a", "a"), ("Ġ</s>", "Ġ</s>")]


def test_an_empty_block_of_reasoning_is_a_marker_where_it_is_said() -> None:
    student, teacher = (chat(role, template=BLOCK) for role in ("student", "teacher"))
    assert teacher.render(Example.of("hi", "a")).text.endswith("<assistant><r></r>\na</s>")
    plain = chat("teacher")
    block = "<r></r>\n"
    assert shown(student, teacher, block, "a", "</s>", ended=True)[2] == [
        ("<r></r>Ċ", "<r></r>Ċ"),
        ("a", "a"),
        ("</s>", "</s>"),
    ]
    assert shown(student, plain, block, "a", "</s>", ended=True)[2] == [("a", "a"), ("</s>", "</s>")]
    own, other, pairs = shown(student, teacher, "a", "</s>", ended=True)
    assert (own, pairs) == (["a", "</s>"], [("a", "a"), ("</s>", "</s>")])
    assert other == [*"<r></r>", "Ċ", "a", "</s>"]
    # Cut off within the block, nothing was said.
    assert one_row(student, teacher, ASKED, spelled(student, "<r></r>"), ended=False) == EMPTY


def test_white_space_that_one_side_trims_is_no_text() -> None:
    student = chat("student")
    trims = chat("teacher", template=TRIMMING_TEMPLATE)
    keeps = chat("teacher")
    said = ("\n", "a", " ", "b", "\n", "</s>")
    own, other, pairs = shown(student, keeps, *said, ended=True)
    assert own == other == ["Ċ", "a", "Ġ", "b", "Ċ", "</s>"]
    own, other, pairs = shown(student, trims, *said, ended=True)
    assert (own, other) == (["a", "Ġ", "b", "Ċ", "</s>"], ["a", "Ġ", "b", "</s>"])
    assert pairs[-1] == ("Ċ</s>", "</s>")
    own, other, pairs = shown(student, trims, *said[:-1], ended=False)
    assert own == other == ["a", "Ġ", "b"]


def test_a_space_that_ends_a_text_template_is_the_answers_first_token() -> None:
    side = {"prompt_template": "Q: {prompt}\nA: "}
    student = text_side(toy("Ġthe", "Ġa", bos=True), "student", **side)
    # Its tokenizer joins that space to the word: the prompt's ids end before it.
    student = text_side(_joins_spaces(), "student", **side)
    prompt = prompt_ids(student, ASKED)
    assert student.tokenizer.decode(prompt) == "Q: hi\nA:"
    teacher = chat("teacher")
    own, other, pairs = shown(student, teacher, " the", "</s>", ended=True)
    assert (own, other) == (["Ġthe", "</s>"], ["t", "h", "e", "</s>"])
    assert pairs == [("Ġthe", "the"), ("</s>", "</s>")]
    # Said otherwise, it begins there; said twice, one of them is the answer's.
    assert shown(student, teacher, "t", "</s>", ended=True)[:2] == (["t", "</s>"], ["t", "</s>"])
    assert shown(student, teacher, " ", " the", "</s>", ended=True)[:2] == (
        ["Ġ", "Ġthe", "</s>"],
        ["Ġ", "t", "h", "e", "</s>"],
    )
    # A tokenizer that keeps it apart has it in the prompt.
    apart = text_side(toy(bos=True), "student", **side)
    assert apart.tokenizer.decode(prompt_ids(apart, ASKED)) == "Q: hi\nA: "
    assert shown(apart, teacher, " ", "t", "</s>", ended=True)[1] == ["Ġ", "t", "</s>"]
    # The teacher may have a template like that, too.
    also = text_side(_joins_spaces(), "teacher", **side)
    own, other, pairs = shown(student, also, " the", "</s>", ended=True)
    assert pairs == [("Ġthe", "Ġthe"), ("</s>", "</s>")]


def _joins_spaces() -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "the", "Ġthe"]
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the")]
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


# ---- students that think


def test_reasoning_and_text_are_parts_of_their_own() -> None:
    student, teacher = chat("student", template=FIELDS), chat("teacher", template=WORDED)
    said = ("<r>", "why", "</r>", "so", "</s>")
    own, other, pairs = shown(student, teacher, *said, ended=True)
    assert own == [*"<r>why</r>so", "</s>"]
    assert "".join(other) == "so:ĠwhyĊso!</s>"
    assert pairs == [
        ("<r>", "so:Ġ"),
        ("w", "w"),
        ("h", "h"),
        ("y", "y"),
        ("</r>", "Ċ"),
        ("s", "s"),
        ("o", "o"),
        ("</s>", "!</s>"),
    ]
    # White space beside marks belongs to them.
    _, other, _ = shown(student, teacher, "<r>", "\n", "why", "\n", "</r>", "\n", "so", "</s>", ended=True)
    assert "".join(other) == "so:ĠwhyĊso!</s>"


def test_an_answer_that_is_cut_off_while_it_thinks_is_reasoning() -> None:
    student, teacher = chat("student", template=FIELDS), chat("teacher", template=WORDED)
    own, other, pairs = shown(student, teacher, "<r>", "why", ended=False)
    assert ("".join(own), "".join(other)) == ("<r>why", "so:Ġwhy")
    assert pairs == [("<r>", "so:Ġ"), ("w", "w"), ("h", "h"), ("y", "y")]
    # ... also where the closing mark is there, or half of it is.
    assert shown(student, teacher, "<r>", "why", "</r>", ended=False)[2] == pairs
    # A teacher that shows no reasoning has nothing to judge.
    assert "nothing of the answer" in str(
        one_row(student, chat("teacher"), ASKED, spelled(student, "<r>why"), ended=False)
    )


def test_the_teacher_may_show_no_reasoning() -> None:
    student, teacher = chat("student", template=FIELDS), chat("teacher")
    own, other, pairs = shown(student, teacher, "<r>", "why", "</r>", "so", "</s>", ended=True)
    assert (own, other) == (["s", "o", "</s>"], ["s", "o", "</s>"])
    assert pairs == [("s", "s"), ("o", "o"), ("</s>", "</s>")]
    row = one_row(student, teacher, ASKED, spelled(student, "<r>why</r>so", "</s>"), ended=True)
    assert isinstance(row, dict) and row["notes"] == ["teacher_drops_reasoning"]


def test_prompts_may_begin_or_close_the_reasoning() -> None:
    student = text_side(thinking_tokenizer(), "student", **SETTINGS)
    teacher = chat("teacher", template=FIELDS)
    asked = example([user("2+2?"), said("?")])
    assert student.prompt(asked).endswith("<r>")
    own, other, _ = shown(student, teacher, "so", "</r>", "four", "<end>", ended=True, asked=asked)
    assert own == ["s", "o", "</r>", "four", "<end>"]
    assert "".join(other) == "<r>so</r>four</s>"
    own, other, _ = shown(student, teacher, "s", "o", ended=False, asked=asked)
    assert (own, "".join(other)) == (["s", "o"], "<r>so")
    closed = replace(asked, template_arguments={"thinking": False})
    own, other, _ = shown(student, teacher, "four", "<end>", ended=True, asked=closed)
    assert (own, "".join(other)) == (["four", "<end>"], "four</s>")


def test_reasoning_by_the_usual_marks_stands_in_the_content() -> None:
    student, teacher = chat("student", template=PLAIN), chat("teacher", template=FIELDS)
    own, other, _ = shown(student, teacher, "<think>\nwhy\n</think>\n\nso", "</s>", ended=True)
    assert "".join(other) == "<r>why</r>so</s>"
    assert "".join(own) == "<think>ĊwhyĊ</think>ĊĊso</s>"
    for other_side in (teacher, chat("teacher", template=PLAIN)):
        own, other, pairs = shown(student, other_side, "<think>\nwhy", ended=False)
        assert "".join(own) == "<think>Ċwhy"
        assert pairs[1:] == [("w", "w"), ("h", "h"), ("y", "y")]


def test_reasoning_by_the_usual_marks_may_begin_in_the_prompt() -> None:
    student = chat("student", template=PLAIN.replace("<assistant>{% endif %}", "<assistant><think>\n{% endif %}"))
    knows, plain = chat("teacher", template=FIELDS), chat("teacher", template=PLAIN)
    for reply, ended in (("why\n</think>\n\nso", True), ("why", False), ("</think>\n\nso", True)):
        ids = [reply, "</s>"] if ended else [reply]
        _, other, _ = shown(student, knows, *ids, ended=ended)
        reasoning = "<r>why" * reply.startswith("why")
        assert "".join(other) == reasoning + "</r>" * bool(reasoning and ended) + "so</s>" * ended
        own, other, _ = shown(student, plain, *ids, ended=ended)
        # The teacher is told where the reasoning begins, as in data that has it in the content.
        assert "".join(other) == "<think>Ċ" + "".join(own)
        assert "".join(own).startswith(reply.replace("\n", "Ċ"))
        assert one_row(student, plain, ASKED, spelled(student, "\n", "</s>"), ended=True) == EMPTY


def test_only_kinds_that_are_learned_count() -> None:
    student, teacher = (chat(role, template=FIELDS) for role in ("student", "teacher"))
    said = ("<r>", "why", "</r>", "so", "</s>")
    assert "".join(shown(student, teacher, *said, ended=True, learn=("text",))[0]) == "so</s>"
    assert "".join(shown(student, teacher, *said, ended=True, learn=("reasoning",))[0]) == "<r>why"
    assert "".join(shown(student, teacher, *said[:-1], ended=False, learn=("reasoning",))[0]) == "<r>why"


# ---- conversations


def test_only_the_last_answer_is_the_students_own() -> None:
    student, teacher = chat("student"), chat("teacher")
    asked = example([user("one?"), said("first"), user("two?"), said("given")])
    assert len(asked.answers) == 2
    own, other, _ = shown(student, teacher, "b", "</s>", ended=True, asked=asked)
    assert own == other == ["b", "</s>"]


def test_the_teacher_reads_its_own_prompt() -> None:
    student, teacher = chat("student"), chat("teacher")
    asked = replace(ASKED, teacher=(user("hint"), said("yes"), user("hi, you")))
    row = one_row(student, teacher, asked, spelled(student, "a", "</s>"), ended=True)
    assert isinstance(row, dict)
    assert "hint" in teacher.tokenizer.decode(row["teacher_ids"])
    assert "hint" not in row["prompt"]
    assert segments(student, teacher, row) == [(["a"], ["a"]), (["</s>"], ["</s>"])]


def test_text_for_people_shows_whatever_was_said() -> None:
    student = chat("student", "in")
    own = OwnAnswers(student, chat("teacher"))
    assert own.text(sampled(spelled(student, "in", "<user>", "g", "</s>"), ended=True)) == "in<user>g"
    assert own.text(sampled(spelled(student, "a中")[:-1], ended=False)) == "a\ufffd"
    assert own.text(sampled([], ended=False)) == ""


# ---- what holds for any template, any tokenizer and any tokens


try:
    STOCK = sorted(stock_templates())
except zoo.MissingPackageError:
    STOCK = []


@pytest.mark.parametrize("name", STOCK)
def test_an_answer_as_the_template_writes_it_gives_the_row_of_a_given_one(name: str) -> None:
    student = text_side(tokenizer_with(stock_templates()[name]), "student", max_length=9_999)
    for template in (CHAT_TEMPLATE, FIELDS, WORDED):
        teacher = chat("teacher", template=template, max_length=9_999)
        given = Pairing(student, teacher, alignment="segments", turns="last")
        # Of a template that has a place for reasoning, reasoning is what stands there.
        thinks = "reasoning in a field" if student.reply_reader.may_think else "reasoning in the content"
        for kind in ("plain", thinks, "several turns"):
            wanted, own = _both_ways(given, student, teacher, kind)
            # What the student's template drops of the data, the student does not say.
            if wanted is None or "student_drops_reasoning" in wanted["notes"]:
                continue
            assert isinstance(own, dict), own
            for key, value in wanted.items():
                if key not in ("notes", "digest"):
                    assert np.array_equal(own[key], value), (kind, template, key)


def _both_ways(
    given: Pairing, student: TextSide, teacher: TextSide, kind: str
) -> tuple[dict[str, Any] | None, dict[str, Any] | str]:
    """The row of a talk, and that of its last answer as if it had been sampled; None where it is no reply."""
    asked = talk(kind).only_last()
    (row,) = given([asked])
    try:
        rendered = student.render(asked)
    except ValueError:
        return None, ""
    prompt = prompt_ids(student, asked)
    (encoded,) = student.encode([rendered])
    ids, end = encoded.ids.tolist(), encoded.turns[-1].parts[-1].stop
    if isinstance(row, str) or ids[: len(prompt)] != prompt.tolist():
        return None, ""
    # The student stops at the first token that ends a turn.
    stop = next(place for place in range(end, len(ids)) if ids[place] in student.end_ids) + 1
    if stop < len(ids):
        return None, ""
    question = replace(asked, messages=(*asked.prompt, said("")))
    return row, one_row(student, teacher, question, ids[len(prompt) : stop], ended=True)


# Tokenizers that spell any text to the last byte, and mark the end of one (ByT5's takes in white space beside it).
ENDING = ["gpt2", "mistral", "llama2_style", "gemma_style", "gemma_spaces"]


@cache
def _with_chat(name: str) -> TextSide:
    """A side whose prompts end with a special token, after which some tokenizers put a space of their own."""
    tokenizer = copy.deepcopy(tokenizer_named(name))
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + '" + str(tokenizer.eos_token) + "' }}{% endfor %}"
    return text_side(tokenizer, "student")


@FEW
@pytest.mark.parametrize("name", ENDING)
@given(text=TEXTS)
def test_an_answer_in_the_tokenizers_own_spelling_gives_the_row_of_a_given_one(name: str, text: str) -> None:
    student, teacher = _with_chat(name), chat("teacher", "th", "ing")
    given = Example.of("hi", text)
    (row,) = Pairing(student, teacher, alignment="segments", turns="last")([given])
    special = any(token in text for token in student.tokenizer.get_added_vocab())
    if isinstance(row, str) or special or SPACE_MARK in text:
        return  # (a text with the mark for a space in it is spelled as one with a space)
    prompt = prompt_ids(student, given).tolist()
    ids = student.encode([student.render(given)])[0].ids.tolist()
    assert ids[: len(prompt)] == prompt
    own = one_row(student, teacher, ASKED, ids[len(prompt) :], ended=True)
    assert isinstance(own, dict), own
    for key, value in row.items():
        assert np.array_equal(own[key], value), key


FAMILIES = [
    *zoo.names(zoo.REAL),
    *("gpt2_nfc", "gpt2_prefix_space", "gpt2_added", "mistral_nfkc", "wordpiece_cased", "unigram", "unigram_t5"),
    "gemma_spaces",
    *("unigram_bytes", "clip_style", "word_level", "characters", "plain_bytes", *zoo.names(zoo.SLOW)),
]


@cache
def _of_family(name: str) -> tuple[TextSide, TextSide, OwnAnswers, SampledTokens]:
    tokenizer = tokenizer_named(name)
    student = text_side(tokenizer, "student", prompt_template="Q: {prompt}\nA:")
    teacher = chat("teacher", max_length=2_000)
    return student, teacher, OwnAnswers(student, teacher), SampledTokens(tokenizer)


@FEW
@pytest.mark.parametrize("name", FAMILIES)
@given(data=st.data())
def test_any_tokens_of_any_tokenizer(name: str, data: st.DataObject) -> None:
    student, teacher, own, bytes_of = _of_family(name)
    size = len(student.tokenizer)
    # Ordinary tokens, often of one byte or of a piece of a character; a special one or none at all now and then.
    one = st.one_of(st.integers(0, min(size, 0x3000) - 1), st.integers(0, min(size, 400) - 1))
    ids = data.draw(st.lists(one, max_size=12))
    if data.draw(st.booleans()):
        ids += student.tokenizer("naïve 中文 kings", add_special_tokens=False)["input_ids"]
        ids = ids[: data.draw(st.integers(1, len(ids)))]
    ended = bool(student.end_ids) and data.draw(st.booleans())
    if ended:
        ids = [*ids, student.end_ids[0]]
    prompt = prompt_ids(student, ASKED)
    (row,) = own([ASKED], [sampled(ids, ended=ended)], [prompt])
    if isinstance(row, str):
        assert row in (EMPTY, NOT_UTF8)
        return
    # The ids are the sampled ones, all of them or the first few.
    kept = row["student_ids"].tolist()
    assert kept == [*prompt.tolist(), *ids][: len(kept)]
    last = int(row["student_in_text"].sum()) and not row["student_in_text"][-1]
    assert last == (kept[-1] in student.end_ids) == (not row["teacher_in_text"][-1])
    # The teacher's tokens are bytes: what they spell is what the student's spell, segment by segment.
    pieces = [b""] * len(prompt) + bytes_of.pieces(kept[len(prompt) : len(kept) - bool(last)], prompt.tolist())
    said = [pieces[place] for place in row["student_answers"][row["student_in_text"]]]
    heard = [_byte(teacher, index) for index in row["teacher_ids"][row["teacher_answers"][row["teacher_in_text"]]]]
    assert b"".join(said).lstrip() == b"".join(heard).lstrip()
    assert len(b"".join(heard)) == row["answer_bytes"]
    assert b"".join(heard).decode()
    starts = [(row["student_segments"], said), (row["teacher_segments"], heard)]
    texts = [
        [b"".join(spelled[a:b]) for a, b in pairwise([*first.tolist(), len(spelled)])] for first, spelled in starts
    ]
    number = len(row["student_segments"]) - bool(last)
    assert texts[0][1:number] == texts[1][1:number]
    assert texts[0][0].endswith(texts[1][0])
    # Segments tile the tokens, and the end is the last of them.
    for side in ("student", "teacher"):
        assert row[f"{side}_segments"].tolist() == [0, *row[f"{side}_segment_stops"].tolist()[:-1]]
        assert row[f"{side}_segment_stops"][-1] == len(row[f"{side}_answers"])


def _byte(side: TextSide, index: int) -> bytes:
    return SampledTokens(side.tokenizer).pieces([int(index)])[0]
