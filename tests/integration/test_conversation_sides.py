"""Reasoning and tool calls on two sides with different chat templates: what is aligned, and what carries loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken

from tests.helpers.stored_talks import store_of
from tests.helpers.talks import call, example, said, user
from tests.helpers.toy_tokenizers import SPECIAL, texts, toy
from uld_ds.conversations import KINDS
from uld_ds.data.notes import NOTES
from uld_ds.data.pairing import Pairing
from uld_ds.data.placeholders import _fitted, places_of, text_stand_in
from uld_ds.data.rendering import Renderer
from uld_ds.data.sides import TextSide
from uld_ds.errors import UserError
from uld_ds.recipe import ModelSettings
from uld_ds.teachers.stored_side import StoredSide

# Reasoning in a field, calls as JSON; the reasoning of earlier turns is dropped.
FIELDS = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}"
    "{% if m.reasoning_content and loop.last %}{{ '<r>' + m.reasoning_content + '</r>' }}{% endif %}"
    "{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}"
    "{{ '<call>' + c.function.name + ':' + c.function.arguments | tojson }}{% endfor %}"
    "{{ '</s>\n' }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# Reasoning in a field that comes trimmed, calls as tags; the order of text and calls is another.
TAGS = (
    "{% for m in messages %}{{ '[' + m.role + ']' }}"
    "{% if m.reasoning_content %}{{ 'think: ' + m.reasoning_content | trim + '\n' }}{% endif %}"
    "{% for c in m.tool_calls or [] %}{{ '{' + c.function.name }}"
    "{% for k, v in c.function.arguments | items %}{{ ' ' + k + '=' + (v if v is string else v | tojson) }}{% endfor %}"
    "{{ '}' }}{% endfor %}{{ m.content or '' }}{{ '!' }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
# Knows content alone.
PLAIN = (
    "{% for m in messages %}{{ '<' + m.role + '>' + m.content + '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def side(template: str, key: str = "student", **settings: Any) -> TextSide:
    special_tokens = settings.pop("special_tokens", "control")
    tokenizer = toy(bos=True, chat_template=template)
    chosen = ModelSettings(model="x", max_length=999, **settings)
    return TextSide(tokenizer, chosen, key, special_tokens=special_tokens)


def paired(student: TextSide, teacher: Any, talk: Any, learn: Any = KINDS) -> dict[str, Any]:
    (row,) = Pairing(student, teacher, alignment="segments", turns="all", learn=learn)([talk])
    assert isinstance(row, dict), row
    return row


def learned(side: TextSide, row: dict[str, Any], name: str) -> list[str]:
    """Runs of learned tokens as text, those that spell a part in brackets."""
    ids, answers, in_text = row[f"{name}_ids"], np.asarray(row[f"{name}_answers"]), row[f"{name}_in_text"]
    cuts = np.flatnonzero((np.diff(answers) != 1) | (np.diff(in_text.astype(int)) != 0)) + 1
    runs = []
    for places, spells in zip(np.split(answers, cuts), np.split(in_text, cuts), strict=True):
        said = side.tokenizer.decode(ids[places])
        runs.append(f"[{said}]" if spells[0] else said)
    return runs


THOUGHT = example([user("2+2?"), said("four", reasoning="\ntwo and two ")])


def test_markers_are_events_and_parts_are_bytes() -> None:
    student, teacher = side(FIELDS), side(TAGS, "teacher")
    row = paired(student, teacher, THOUGHT)
    # The teacher's template trims the reasoning: neither side keeps the white space as the answer's.
    assert learned(student, row, "student") == ["<r>\n", "[two and two]", " </r>", "[four]", "</s>"]
    assert learned(teacher, row, "teacher") == ["think: ", "[two and two]", "\n", "[four]", "!</s>"]
    assert row["answer_bytes"] == len("two and twofour") and row["notes"] == []
    # Every token is a byte: a segment for each of 15 bytes, one for each of three events with all of its tokens.
    runs = list(zip(row["student_segments"].tolist(), row["student_segment_stops"].tolist(), strict=True))
    assert len(runs) == 15 + 3
    assert [stop - start for start, stop in runs] == [4, *[1] * 11, 5, *[1] * 4, 1]
    stops = row["teacher_segment_stops"] - row["teacher_segments"]
    assert stops.tolist() == [7, *[1] * 11, 1, *[1] * 4, 2]


def test_what_one_side_drops_carries_no_loss_on_the_other() -> None:
    student, teacher = side(FIELDS), side(PLAIN, "teacher")
    row = paired(student, teacher, THOUGHT)
    assert learned(student, row, "student") == ["[four]", "</s>"]
    assert learned(teacher, row, "teacher") == ["[four]", "</s>"]
    assert row["notes"] == ["teacher_drops_reasoning"]
    row = paired(side(PLAIN), side(FIELDS, "teacher"), THOUGHT)
    assert row["notes"] == ["student_drops_reasoning"] and row["answer_bytes"] == 4


def test_reasoning_in_the_content_is_shown_by_a_template_that_knows_none() -> None:
    inline = example([user("2+2?"), said("<think>\ntwo and two\n</think>\n\nfour")])
    student, teacher = side(PLAIN), side(FIELDS, "teacher")
    row = paired(student, teacher, inline)
    assert learned(student, row, "student") == ["<think>\n", "[two and two]", "\n</think>\n\n", "[four]", "</s>"]
    assert learned(teacher, row, "teacher") == ["<r>", "[two and two]", "</r>", "[four]", "</s>"]


@pytest.mark.parametrize(
    ("learn", "student_said", "size"),
    [
        (("text",), ["[four]", "</s>"], 4),
        (("reasoning",), ["<r>\n", "[two and two]"], 11),
        (("reasoning", "text"), ["<r>\n", "[two and two]", " </r>", "[four]", "</s>"], 15),
    ],
)
def test_parts_that_are_not_learned_are_read_only(learn: Any, student_said: list[str], size: int) -> None:
    student, teacher = side(FIELDS), side(TAGS, "teacher")
    row = paired(student, teacher, THOUGHT, learn)
    assert learned(student, row, "student") == student_said
    assert (row["answer_bytes"], row["notes"]) == (size, [])


def test_earlier_reasoning_that_one_template_drops() -> None:
    talk = example([user("a"), said("one", reasoning="why"), user("b"), said("two", reasoning="so")])
    student, teacher = side(FIELDS), side(TAGS, "teacher")
    row = paired(student, teacher, talk)
    assert learned(student, row, "student") == ["[one]", "</s>", "<r>", "[so]", "</r>", "[two]", "</s>"]
    assert learned(teacher, row, "teacher")[:2] == ["[one]", "!"]
    assert row["notes"] == ["student_drops_reasoning"]


CALLED = example([user("weather?"), said("Looking.", tool_calls=[call({"city": 'P "x"', "n": 2, "ok": True})])])


def test_tool_calls_that_are_written_alike_are_one_text() -> None:
    student, teacher = side(FIELDS), side(FIELDS.replace("<call>", "CALL "), "teacher")
    row = paired(student, teacher, CALLED)
    text = 'get_weather:{"city": "P \\"x\\"", "n": 2, "ok": true'
    assert learned(student, row, "student") == ["[Looking.]", "<call>", f"[{text}]", "}</s>"]
    assert learned(teacher, row, "teacher") == ["[Looking.]", "CALL ", f"[{text}]", "}</s>"]
    assert row["answer_bytes"] == len("Looking.") + len(text)


def test_tool_calls_that_are_written_otherwise_share_their_names_and_values() -> None:
    student, teacher = side(FIELDS), side(TAGS, "teacher")
    row = paired(student, teacher, CALLED)
    # The value with quotes is written in two ways: it is a marker. So is the text that stands elsewhere.
    assert [run for run in learned(student, row, "student") if run[0] == "["] == [
        "[get_weather]",
        "[city]",
        "[n]",
        "[2]",
        "[ok]",
        "[true]",
    ]
    assert learned(teacher, row, "teacher") == [
        "{", "[get_weather]", " ", "[city]", '=P "x" ', "[n]", "=", "[2]", " ", "[ok]", "=", "[true]",
        "}Looking.!</s>",
    ]  # fmt: skip
    assert "Looking." in "".join(learned(student, row, "student"))
    assert row["notes"] == []


def test_calls_into_which_a_template_looks() -> None:
    """Its keys have no places of their own: they are written into the markers, which are learned."""
    looks = FIELDS.replace("c.function.arguments | tojson", "(c.function.arguments.city or '?') + '@'")
    student, teacher = side(looks), side(looks.replace("@", "#"), "teacher")
    row = paired(student, teacher, example([user("weather?"), said(None, tool_calls=[call({"city": "Rome"})])]))
    assert learned(student, row, "student") == ["<call>", "[get_weather:Rome]", "@</s>"]
    assert row["notes"] == []


def test_what_closes_an_earlier_call_is_learned() -> None:
    closed = TAGS.replace("{{ '!' }}", "{{ '' if m.tool_calls else '!' }}")
    result = {"role": "tool", "content": "sunny"}
    talk = example([user("weather?"), said(None, tool_calls=[call({"city": "Rome"})]), result, said("It is sunny.")])
    student = side(closed)
    row = paired(student, side(closed, "teacher"), talk)
    assert learned(student, row, "student") == ["{", "[get_weather city=Rome]", "}", "[It is sunny.]", "!</s>"]


def test_a_part_that_begins_within_a_token_is_a_marker() -> None:
    close = FIELDS.replace("'<r>' + m.reasoning_content + '</r>'", "m.reasoning_content")
    talk = example([user("q"), said("bc", reasoning="xa")])
    tokenizer = toy("ab", bos=True, chat_template=close)
    student = TextSide(tokenizer, ModelSettings(model="x", max_length=99), "student")
    row = paired(student, side(close, "teacher"), talk)
    # x, ab, c: the second token spells both parts, so the second part has no beginning of its own.
    assert [tokenizer.decode([i]) for i in row["student_ids"][row["student_answers"]]] == ["x", "ab", "c", "</s>"]
    assert row["student_in_text"].tolist() == [True, True, False, False] and row["answer_bytes"] == 2


def test_calls_that_a_template_does_not_show() -> None:
    row = paired(side(FIELDS), side(PLAIN, "teacher"), CALLED)
    assert row["notes"] == ["teacher_drops_tool_calls"] and row["answer_bytes"] == len("Looking.")
    only_call = example([user("weather?"), said(None, tool_calls=[call()])])
    (problem,) = Pairing(side(FIELDS), side(PLAIN, "teacher"), alignment="segments", turns="all")([only_call])
    assert isinstance(problem, str) and problem.startswith("the chat template")


def test_a_text_template_shows_the_content_alone() -> None:
    student = TextSide(
        toy(bos=True), ModelSettings(model="x", prompt_template="Q: {prompt}\nA:", max_length=99), "student"
    )
    row = paired(student, side(FIELDS, "teacher"), THOUGHT)
    assert learned(student, row, "student") == ["[four]", "</s>"]
    assert row["notes"] == ["student_drops_reasoning"]


# ---- prompts


def test_what_is_trained_begins_with_what_generation_is_given_or_it_is_said() -> None:
    more = FIELDS.replace("<assistant>{% endif %}", "<assistant><r></r>{% endif %}")
    talk = example([user("2+2?"), said("four")])
    row = paired(side(more), side(FIELDS, "teacher"), talk)
    assert row["notes"] == ["student_prompt"]
    # What the template writes before an answer beyond its generation prompt, the student learns to write.
    opened = PLAIN.replace("+ m.content", "+ ('<r></r>' if m.role == 'assistant' else '') + m.content")
    student = side(opened)
    row = paired(student, side(FIELDS, "teacher"), talk)
    assert learned(student, row, "student") == ["<r></r>", "[four]", "</s>"]
    assert row["notes"] == [] and row["student_last_turn"] == len(student.prompt_ids(talk))


def test_system_messages_that_are_not_shown() -> None:
    deaf = "{% for m in messages if m.role != 'system' %}{{ m.content }}</s>{% endfor %}"
    talk = example([{"role": "system", "content": "Be kind."}, user("a"), said("b")])
    row = paired(side(deaf), side(FIELDS, "teacher"), talk)
    assert "student_system" in row["notes"] and "teacher_system" not in row["notes"]
    with pytest.raises(UserError) as caught:
        side(deaf, system_prompt="Be kind.")
    assert str(caught.value) == (
        "student.system_prompt: 'Be kind.', but this chat template shows no system message; "
        "leave it out, or put its text before the user's"
    )


def test_a_typed_bos_is_not_doubled() -> None:
    tokenizer = toy(bos=True, adds_bos=True)
    for template, begins in (("<s>{prompt}:", ["<s>", "q"]), ("{prompt}:", ["<s>", "q"])):
        own = TextSide(tokenizer, ModelSettings(model="x", prompt_template=template, max_length=99), "student")
        asked = example([user("q"), said("a")])
        assert texts(tokenizer, own.prompt_ids(asked))[:2] == begins
        (encoded,) = own.encode([own.render(asked)])
        assert texts(tokenizer, encoded.ids.tolist())[:2] == begins


# ---- control tokens in the text of messages


def test_typed_control_tokens_are_counted_and_may_become_text() -> None:
    talk = example([user("say </s> now"), said("a </s> b")])
    control, text = side(FIELDS), side(FIELDS, special_tokens="text")
    end = control.tokenizer.convert_tokens_to_ids("</s>")
    rows = [paired(own, side(FIELDS, "teacher"), talk) for own in (control, text)]
    assert [row["notes"] for row in rows] == [
        ["student_typed", "teacher_typed"],
        ["student_typed_text", "teacher_typed"],
    ]
    # Both turns' own ends stay; the last one is an answer's token, the other a prompt's.
    assert [row["student_ids"].tolist().count(end) for row in rows] == [4, 2]
    spelled = [own.tokenizer.decode(row["student_ids"]) for own, row in zip((control, text), rows, strict=True)]
    assert spelled[0] == spelled[1]
    assert rows[1]["answer_bytes"] == rows[0]["answer_bytes"] == len("a </s> b")
    ids = text.prompt_ids(talk)
    assert ids.count(end) == 1 and control.prompt_ids(talk).count(end) == 2
    assert rows[1]["student_ids"][: len(ids)].tolist() == ids
    assert text.identity() != control.identity()


# ---- ends


def test_ends_come_from_template_and_tokenizer() -> None:
    tokenizer = toy(
        bos=True, chat_template=FIELDS.replace("{{ '</s>\n' }}", "{{ '<system>' if m.tool_calls else '<user>' }}")
    )
    own = TextSide(tokenizer, ModelSettings(model="x"), "student")
    assert {tokenizer.decode([i]) for i in own.end_ids} == {"</s>", "<user>", "<system>"}
    assert set(SPECIAL) >= {"<user>", "<system>"}
    # What closes a call is no end: another call may come; nor is what is begun after the turn.
    calls = "{{ '<user><system>' if m.tool_calls else '<system><assistant>' }}"
    own = side(FIELDS.replace("{{ '</s>\n' }}", calls))
    assert {own.tokenizer.decode([i]) for i in own.end_ids} == {"</s>", "<system>"}
    # An end need not be marked as special.
    tokenizer = toy(bos=True, chat_template=PLAIN.replace("</s>", "[end]"))
    tokenizer.add_tokens(["[en", "[end]"])
    own = TextSide(tokenizer, ModelSettings(model="x"), "student")
    assert {tokenizer.decode([i]) for i in own.end_ids} == {"</s>", "[end]"}
    own = TextSide(toy(bos=True), ModelSettings(model="x", prompt_template="{prompt}"), "student")
    assert [own.tokenizer.decode([i]) for i in own.end_ids] == ["</s>"]


def test_replies_are_split_where_the_template_knows_how() -> None:
    reader = side(FIELDS).reply_reader
    assert reader.split("<r>two and two</r>four") == ("two and two", "four")
    assert reader.split("four") == ("", "four")
    assert reader.split("<r>two and") == ("two and", "")
    assert reader.may_think and not side(PLAIN).reply_reader.may_think
    assert side(PLAIN).reply_reader.split("<think>\nso\n</think>\n\nfour") == ("so", "four")
    # Whether a prompt begins the reasoning is seen on it: variables of a conversation may decide it.
    may = "<assistant>{{ '<r></r>' if brief else '<r>' }}{% endif %}"
    for variables in ({}, {"brief": True}):
        asked = side(FIELDS.replace("<assistant>{% endif %}", may), template_arguments=variables)
        reader, question = asked.reply_reader, example([user("2+2?"), said("four")])
        begun, closed = (asked.prompt(replace(question, template_arguments={"brief": on})) for on in (False, True))
        assert begun.endswith("<assistant><r>") and closed.endswith("<r></r>")
        assert reader.split("so</r>four", begun) == ("so", "four")
        assert reader.split("so and", begun) == ("so and", "")
        assert reader.split("four", closed) == ("", "four")
        assert reader.is_marked("so and", begun) and not reader.is_marked("four", closed)


def test_a_mark_before_the_answer_alone_is_none_of_its_text() -> None:
    channels = FIELDS.replace("{{ m.content or '' }}", "{{ '<f>' * (m.role == 'assistant') + (m.content or '') }}")
    reader = side(channels).reply_reader
    assert reader.is_marked("<f>four") and reader.split("<f>four") == ("", "four")
    assert reader.split("<r>so</r><f>four") == ("so", "four")
    # Nor is a text that ends the turn, after which the tokenizer's own end of text was trained.
    reader = side(PLAIN.replace("</s>", "[end]\n")).reply_reader
    assert reader.is_marked("four[end]") and reader.split("four[end]") == ("", "four")


# ---- a store of such answers


@pytest.mark.parametrize("learn", [KINDS, ("text",)], ids=["all", "text"])
@pytest.mark.parametrize("student_template", [FIELDS, TAGS, PLAIN], ids=["fields", "tags", "plain"])
@pytest.mark.parametrize("teacher_template", [FIELDS, TAGS], ids=["fields", "tags"])
def test_a_stored_side_pairs_like_the_one_it_came_from(
    tmp_path: Path, student_template: str, teacher_template: str, learn: Any
) -> None:
    talks = [
        THOUGHT,
        CALLED,
        example([user("a"), said(" one ", reasoning="why"), user("b"), said("two", reasoning="so")]),
        example([user("a"), said("plain")]),
        example([user("a"), said("one"), user("b"), said("two")]),
        example([user("x"), said("", reasoning="t", tool_calls=[call(), call({"é": [1, {"k": "v"}]}, number=2)])]),
    ]
    student, teacher = side(student_template), side(teacher_template, "teacher")
    stored = StoredSide(store_of(tmp_path, teacher, talks))
    online, offline = (
        Pairing(student, other, alignment="segments", turns="all", learn=learn)(talks) for other in (teacher, stored)
    )
    compared = 0
    for expected, row in zip(online, offline, strict=True):
        if isinstance(expected, str):
            assert isinstance(row, str)
            continue
        assert isinstance(row, dict), row
        for column in ("student_ids", "student_answers", "student_segments", "student_segment_stops"):
            assert row[column].tolist() == expected[column].tolist(), column
        for column in ("teacher_in_text", "teacher_segments", "teacher_segment_stops"):
            assert row[column].tolist() == expected[column].tolist(), column
        assert row["answer_bytes"] == expected["answer_bytes"]
        compared += 1
    assert compared >= 4


# ---- places


def test_places_are_found_by_what_stands_around() -> None:
    (part,) = example([user("a"), said(" b\n")]).parts
    hidden = f"b{text_stand_in(0)}c"
    assert [(p.start, p.stop) for p in places_of("b b\nc", hidden, [part]) or ()] == [(1, 4)]
    assert [(p.start, p.stop) for p in places_of("bbc", hidden, [part]) or ()] == [(1, 2)]
    assert places_of("bBc", hidden, [part]) is None
    # The first form of the first part fits, too, but leaves no place for the second: another one is tried.
    parts = example([user("x"), said("a"), user("y"), said("b")]).parts
    first = example([user("x"), said("a ")]).parts[0]
    hidden = f"{text_stand_in(0)}{text_stand_in(1)}"
    second = example([user("x"), said(" b")]).parts[0]
    assert [(p.start, p.stop) for p in places_of("a b", hidden, [first, second]) or ()] == [(0, 2), (2, 3)]
    assert [(p.start, p.stop) for p in places_of("ab", hidden, [*parts]) or ()] == [(0, 1), (1, 2)]
    assert places_of("", "", [part]) == []
    # The longest form of the first part would take what the second one is.
    assert _fitted("ab", ["", "", ""], [("ab", "a"), ("b",)]) == [(0, 1), (1, 2)]
    assert _fitted("abb", ["", "", ""], [("ab", "a"), ("b",)]) == [(0, 2), (2, 3)]


def test_every_note_has_its_words() -> None:
    assert all(f"{name}_{note}" in NOTES for name in ("student", "teacher") for note in ("typed", "prompt", "no_end"))
    render = Renderer(toy(bos=True, chat_template=FIELDS), ModelSettings(model="x"), "student")
    assert render(THOUGHT).notes == frozenset()


# ---- what is not there


@pytest.mark.parametrize(
    "last", [said(None, tool_calls=[call()]), said("", reasoning="why")], ids=["call", "reasoning"]
)
def test_an_earlier_turn_ends_where_it_ends_if_the_last_one_is_not_shown(last: dict[str, Any]) -> None:
    soft = PLAIN.replace("m.content", "(m.content or '')")
    student, teacher = side(soft), side(soft, "teacher")
    row = paired(student, teacher, example([user("a"), said("one"), user("b"), last]))
    assert learned(student, row, "student") == learned(teacher, row, "teacher") == ["[one]", "</s>"]
    kind = "tool_calls" if "tool_calls" in last else "reasoning"
    assert row["notes"] == [f"student_drops_{kind}", f"teacher_drops_{kind}"]


@pytest.mark.parametrize(
    ("learn", "expected"),
    [
        (("text",), ["[Looking.]", "!</s>"]),
        (("tool_calls",), ["{", '[get_weather city=P "x" n=2 ok=true]']),
    ],
)
def test_what_is_not_learned_is_no_marker_where_calls_stand_before_the_text(learn: Any, expected: list[str]) -> None:
    student = side(TAGS)
    row = paired(student, side(TAGS, "teacher"), CALLED, learn)
    assert learned(student, row, "student") == expected


def test_an_answer_without_anything_that_is_learned_is_called_so() -> None:
    (problem,) = Pairing(side(FIELDS), side(TAGS, "teacher"), alignment="segments", turns="all", learn=("reasoning",))(
        [CALLED]
    )
    assert problem == "the answer has none of what data.learn names (reasoning)"


def test_a_store_that_was_cut_says_nothing_of_what_a_template_drops(tmp_path: Path) -> None:
    student, teacher = side(FIELDS), side(FIELDS, "teacher")
    (encoded,) = teacher.encode([teacher.render(THOUGHT)])
    most = encoded.turns[0].parts[0].stop
    short = TextSide(teacher.tokenizer, ModelSettings(model="x", max_length=most), "teacher")
    talks = [THOUGHT, example([user("a"), said("b")])]
    stored = StoredSide(store_of(tmp_path, short, talks))
    online, row = paired(student, short, THOUGHT), paired(student, stored, THOUGHT)
    # The reasoning fits to its last byte, and nothing after it: what closes it is not learned either.
    assert learned(student, online, "student") == learned(student, row, "student") == ["<r>", "[\ntwo and two ]"]
    assert row["notes"] == []


def test_what_text_templates_and_encoders_do_not_show_is_said() -> None:
    tools = ({"type": "function", "function": {"name": "look"}},)
    talk = example([user("say </s> now"), said("a </s> b")], tools=tools)
    end = toy().eos_token_id
    for special_tokens, typed, counts in (("control", "student_typed", (1, 2)), ("text", "student_typed_text", (0, 1))):
        chosen = ModelSettings(model="x", max_length=99, prompt_template="Q: {prompt}\nA:")
        own = TextSide(toy(bos=True), chosen, "student", decoder_start=0, special_tokens=special_tokens)  # type: ignore[arg-type]
        row = paired(own, side(FIELDS, "teacher"), talk)
        assert row["notes"] == ["student_tools", typed, "teacher_tools", "teacher_typed"]
        assert tuple(row[f"student_{name}"].tolist().count(end) for name in ("encoder_ids", "ids")) == counts
        assert row["student_encoder_ids"].tolist() == own.prompt_ids(talk)
    decoder = TextSide(toy(bos=True), chosen, "student")
    assert "student_tools" in paired(decoder, side(FIELDS, "teacher"), talk)["notes"]


def test_typed_tokens_that_take_white_space_keep_it_as_text() -> None:
    tokenizer = toy(bos=True, chat_template=FIELDS)
    greedy = AddedToken("<|x|>", special=True, normalized=False, lstrip=True, rstrip=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [greedy]})
    own = TextSide(tokenizer, ModelSettings(model="x", max_length=99), "student", special_tokens="text")
    row = paired(own, side(FIELDS, "teacher"), example([user("q"), said("a  <|x|>  b")]))
    spelled = row["student_ids"][row["student_answers"]]
    assert "".join(texts(tokenizer, spelled)) == "a  <|x|>  b</s>"
