"""What holds for every conversation and every pair of chat templates: what is learned, where it is, and how often.

Each kind of text has a letter of its own, so that one that is where it should not be is seen: reasoning has ρ, text τ,
tool calls κ, and what nobody may ever learn, what users and systems say, υ.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.stored_talks import store_of
from tests.helpers.talks import call, example, said, user
from tests.helpers.toy_tokenizers import toy
from uld_ds.conversations import KINDS
from uld_ds.data.pairing import Pairing
from uld_ds.data.sides import TextSide
from uld_ds.data.teacher_rows import TeacherEncoding
from uld_ds.recipe import ModelSettings
from uld_ds.teachers.stored_side import StoredSide

COMPARED = (
    *("student_ids", "student_answers", "student_segments", "student_segment_stops"),
    *("teacher_in_text", "teacher_segments", "teacher_segment_stops"),
)
LETTERS = {"reasoning": "ρ", "text": "τ", "tool_calls": "κ"}
_BEGIN = "{% for m in messages %}{{ '<' + m.role + '>' }}"
_END = "{{ '</s>' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
_CALLS = (
    "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + ':' + c.function.arguments | tojson + '.' }}"
    "{% endfor %}"
)
_TAGS = (
    "{% for c in m.tool_calls or [] %}{{ '{' + c.function.name }}"
    "{% for k, v in c.function.arguments | items %}{{ ' ' + k + '=' + (v if v is string else v | tojson) }}{% endfor %}"
    "{{ '}' }}{% endfor %}"
)
_REASONING = "{% if m.reasoning_content %}{{ '<r>' + m.reasoning_content + '</r>' }}{% endif %}"
_TEXT = "{{ m.content or '' }}"
TEMPLATES = {
    "whole": _BEGIN + _REASONING + _TEXT + _CALLS + _END,
    "last reasoning": _BEGIN
    + _REASONING.replace("content %}", "content and loop.last %}").replace("+ m.reasoning_content", "+ m.thinking|trim")
    + _TEXT
    + _CALLS
    + _END,
    "calls first, trimmed": _BEGIN + _REASONING + _TAGS + "{{ (m.content or '') | trim }}" + "|" + _END,
    "reasoning last": _BEGIN + _TEXT + _CALLS + "\n" + _REASONING + _END,
    "no calls": _BEGIN + _TEXT + _REASONING + _END,
    "content alone": _BEGIN + "{{ m.content | trim }}" + _END.replace("</s>", "|"),
    "no text beside calls": _BEGIN + "{% if m.tool_calls %}" + _TAGS + "{% else %}" + _TEXT + "{% endif %}" + _END,
    "sorted": _BEGIN + _REASONING + _TEXT + _TAGS.replace("| items", "| dictsort") + _END,
}
MERGES = {"student": ("xy", "zx"), "teacher": ("xyz", "yy")}


@cache
def _side(template: str, role: str, max_length: int = 999) -> TextSide:
    tokenizer = toy(*MERGES[role], bos=True, chat_template=TEMPLATES[template])
    return TextSide(tokenizer, ModelSettings(model="x", max_length=max_length), role)


def _text(letter: str, *, blank: bool = False) -> st.SearchStrategy[str]:
    inner = st.text(alphabet=f'xyz {letter}\n"é', max_size=5)
    return inner if blank else st.builds(lambda one, other: one + letter + other, inner, inner)


_value = st.recursive(
    st.one_of(_text("κ"), st.sampled_from(["", " ", True, None, 3, -1.5])),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(_text("κ"), inner, max_size=2)),
    max_leaves=4,
)
_call = st.builds(
    lambda name, arguments: call(arguments, name=name), _text("κ"), st.dictionaries(_text("κ"), _value, max_size=3)
)


@st.composite
def _turn(draw: Any) -> dict[str, Any]:
    reasoning = draw(st.one_of(st.none(), _text("ρ")))
    text = draw(st.one_of(_text("τ"), st.sampled_from(["", None])))
    if reasoning and text and draw(st.booleans()):
        return said(f"<think>\n{reasoning}</think>\n{text}")
    calls = draw(st.lists(_call, max_size=2))
    fields = {"reasoning": reasoning} if reasoning else {}
    return said(text, **fields, **({"tool_calls": calls} if calls else {}))


@st.composite
def _conversation(draw: Any) -> Any:
    messages = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(_text("υ"))})
    for turn in draw(st.lists(_turn(), min_size=1, max_size=3)):
        messages += [user(draw(_text("υ"))), turn]
    found = example(messages)
    return found if found.answers[-1:] == (len(messages) - 1,) else None


_talks = st.lists(_conversation().filter(bool), min_size=1, max_size=3)
_name = st.sampled_from(sorted(TEMPLATES))
_learn = st.sampled_from([KINDS, *[(kind,) for kind in KINDS], ("reasoning", "text")])


def _bytes_of(side: TextSide, ids: Sequence[int]) -> bytes:
    tokens = side.tokenizer.convert_ids_to_tokens([int(number) for number in ids])
    return b"".join(_byte(c) if len(t) < 4 or t[0] != "<" else c.encode() for t in tokens for c in t)


@cache
def _byte(character: str) -> bytes:
    # GPT-2's letters for bytes: the printable ones stand for themselves, the others follow from 256 on.
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [number for number in range(256) if number not in own]
    code = ord(character)
    return bytes([code if code < 256 else others[code - 256]])


def _segments(row: dict[str, Any], name: str) -> list[tuple[int, int]]:
    return list(zip(row[f"{name}_segments"].tolist(), row[f"{name}_segment_stops"].tolist(), strict=True))


def _learned(side: TextSide, row: dict[str, Any], name: str, *, in_text: bool | None = None) -> bytes:
    answers, spells = np.asarray(row[f"{name}_answers"]), np.asarray(row[f"{name}_in_text"])
    chosen = answers if in_text is None else answers[spells == in_text]
    return _bytes_of(side, row[f"{name}_ids"][chosen])


def _check(row: dict[str, Any], sides: dict[str, TextSide], learn: Sequence[str]) -> None:
    allowed = {LETTERS[kind].encode() for kind in learn}
    for name, side in sides.items():
        answers = row[f"{name}_answers"].tolist()
        assert all(one < other for one, other in pairwise(answers)), "no token is learned twice"
        assert answers[0] > 0 and answers[-1] == len(row[f"{name}_ids"]) - 1
        everything = _learned(side, row, name)
        assert "υ".encode() not in everything
        assert all(letter.encode() not in everything for letter in LETTERS.values() if letter.encode() not in allowed)
        ranges = _segments(row, name)
        assert all(start < stop for start, stop in ranges) and all(a[1] <= b[0] for a, b in pairwise(ranges))
        assert len(_learned(side, row, name, in_text=True)) == row["answer_bytes"]
    texts = [_learned(side, row, name, in_text=True) for name, side in sides.items()]
    assert texts[0] == texts[1]
    for (start, stop), (other, end) in zip(_segments(row, "student"), _segments(row, "teacher"), strict=True):
        spells = row["student_in_text"][start:stop], row["teacher_in_text"][other:end]
        assert len({*spells[0].tolist(), *spells[1].tolist()}) == 1, "an event is paired with an event"
        if spells[0][0]:
            own = _bytes_of(sides["student"], row["student_ids"][row["student_answers"][start:stop]])
            assert own == _bytes_of(sides["teacher"], row["teacher_ids"][row["teacher_answers"][other:end]])


def _pairing(student: TextSide, teacher: Any, learn: Any) -> Pairing:
    return Pairing(student, teacher, alignment="segments", turns="all", learn=learn)


@settings(max_examples=60, deadline=None)
@given(talks=_talks, student=_name, teacher=_name, learn=_learn, cut=st.sampled_from([20, 31, 42, 53, 64, 75]))
def test_what_is_learned(talks: list[Any], student: str, teacher: str, learn: Any, cut: int) -> None:
    sides = {"student": _side(student, "student"), "teacher": _side(teacher, "teacher")}
    rows = _pairing(sides["student"], sides["teacher"], learn)(talks)
    for row in rows:
        if isinstance(row, dict):
            _check(row, sides, learn)
    # What is cut is the beginning of what is not.
    for name in sides:
        short = {**sides, name: _side({"student": student, "teacher": teacher}[name], name, cut)}
        for whole, row in zip(rows, _pairing(short["student"], short["teacher"], learn)(talks), strict=True):
            if isinstance(row, dict):
                assert isinstance(whole, dict)
                _check(row, sides, learn)
                for column in ("ids", "answers", "in_text", "segments", "segment_stops"):
                    for side in sides:
                        begun = row[f"{side}_{column}"].tolist()
                        assert begun == whole[f"{side}_{column}"].tolist()[: len(begun)]
                assert len(row[f"{name}_ids"]) <= cut


@settings(max_examples=40, deadline=None)
@given(talks=_talks, student=_name, teacher=_name, learn=_learn, most=st.sampled_from([999, 30, 50, 70, 90]))
def test_a_stored_side_pairs_like_the_one_it_came_from(
    talks: list[Any], student: str, teacher: str, learn: Any, most: int
) -> None:
    own, online = _side(student, "student"), _side(teacher, "teacher", most)
    # Without one that ends, a store cannot tell answers that were cut from those of a tokenizer without an end of text.
    talks = [example([user("υ"), said("τ")]), *talks]
    stored_rows = TeacherEncoding(online, turns="all")(talks)
    usable = [talk for talk, row in zip(talks, stored_rows, strict=True) if isinstance(row, dict)]
    if not usable:
        return
    with tempfile.TemporaryDirectory() as folder:
        stored = StoredSide(store_of(Path(folder), online, usable))
        pairs = zip(_pairing(own, online, learn)(usable), _pairing(own, stored, learn)(usable), strict=True)
        for expected, row in pairs:
            assert isinstance(expected, str) == isinstance(row, str), (expected, row)
            if isinstance(expected, dict) and isinstance(row, dict):
                for column in COMPARED:
                    assert row[column].tolist() == expected[column].tolist(), column
                assert row["answer_bytes"] == expected["answer_bytes"]
