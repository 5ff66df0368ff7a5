"""Every stock chat template with every kind of conversation, and against every other template."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.chat_templates import llama_cpp_templates, stock_templates, templates_in, tokenizer_with
from tests.helpers.talks import TALKS, said, talk, user
from tests.helpers.talks import example as of_messages
from tests.helpers.tokenizers_zoo import MissingPackageError
from uld_ds.data.encoding import Encoder
from uld_ds.data.examples import Example
from uld_ds.data.matching import same_answers
from uld_ds.data.pairing import pair
from uld_ds.data.rendering import Rendered, Renderer
from uld_ds.recipe import ModelSettings

SETTINGS = ModelSettings(model="x", max_length=9_999)
REFUSED = "the chat template refuses the conversation: "
NOTHING = "the chat template shows nothing of the answer"

try:
    NAMES = sorted(stock_templates())
except MissingPackageError as missing:
    NAMES = []
    pytestmark = pytest.mark.skip(reason=str(missing))


@cache
def renderer(name: str) -> tuple[Any, Renderer]:
    tokenizer = tokenizer_with(stock_templates()[name])
    return tokenizer, Renderer(tokenizer, SETTINGS, "student")


@cache
def example(kind: str) -> Example:
    return talk(kind)


@cache
def rendered(name: str, kind: str) -> Rendered | str:
    try:
        return renderer(name)[1](example(kind))
    except ValueError as error:
        return str(error)


@pytest.mark.parametrize("name", NAMES)
def test_answers_are_found_where_they_stand(name: str) -> None:
    tokenizer, render = renderer(name)
    for kind in TALKS:
        found = rendered(name, kind)
        if isinstance(found, str):
            check_refusal(name, kind, found)
            continue
        for turn in found.turns:
            # In order, each a form of what the data says, between where the model begins to speak and the turn's end.
            bounds = [turn.lead, *(edge for place in turn.parts for edge in (place.start, place.stop)), turn.end]
            assert bounds == sorted(bounds)
            for place in turn.parts:
                assert found.text[place.start : place.stop] in found.parts[place.part].forms
        # Whatever has no place is not there at all: Llama 3 and Mistral leave out the text beside a tool call.
        for number, part in enumerate(found.parts):
            assert number in numbers(found) or part.kind == "tool_calls" or part.text not in found.text, kind
        # What is trained begins with what generation is given, or it is said.
        assert found.text.startswith(found.prompt) != ("prompt" in found.notes)
        if "prompt" not in found.notes:
            assert found.turns[-1].lead == len(found.prompt)
        ending = found.text[found.turns[-1].stop : found.turns[-1].end]
        assert bool(ending.strip()) != ("no_end" in found.notes)
        (side,) = Encoder(tokenizer, uses_chat_template=True)([found])
        assert {int(side.ids[-1])} <= render.control.ids, "nothing tells generation to stop"


def numbers(side: Rendered) -> set[int]:
    return {place.part for turn in side.turns for place in turn.parts}


def check_refusal(name: str, kind: str, problem: str) -> None:
    """What is refused is refused by the template, or is a call that it does not show at all."""
    if problem.startswith(REFUSED):
        return
    assert problem == NOTHING, (name, kind)
    only_calls = all("tool_calls" in message and not message["content"] for message in TALKS[kind][1::2])
    assert only_calls, (name, kind)
    shown = renderer(name)[1].template.render(example(kind).messages, tools=example(kind).tools)
    assert "celsius" not in shown


def test_most_are_handled() -> None:
    refused = [(name, kind) for name in NAMES for kind in TALKS if isinstance(rendered(name, kind), str)]
    plain = [(name, kind) for name, kind in refused if "call" not in kind and "result" not in kind]
    # Templates of Gemma 1 alone refuse system messages; of the others, some want roles to alternate, one call at a
    # time, or know no tools. The figures are in docs/alignment.md.
    assert [(name.split("/")[1].split("_")[0], kind) for name, kind in plain] == [("gemma", "system")] * 3
    assert (len(NAMES), len(NAMES) * len(TALKS), len(refused)) == (106, 1272, 188)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_those_of_llama_cpp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of Granite, Kimi, SmolLM3, Hermes, Ministral and others, from a source package that is not built."""
    own = templates_in(llama_cpp_templates(tmp_path), "llama.cpp")
    monkeypatch.setattr(f"{__name__}.stock_templates", lambda: own)
    handled = 0
    for name in own:
        test_answers_are_found_where_they_stand(name)
        handled += sum(isinstance(rendered(name, kind), Rendered) for kind in TALKS)
    print(f"{handled} of {len(own) * len(TALKS)} pairs of template and conversation")
    assert len(own) == 70 and handled / (len(own) * len(TALKS)) > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_each_against_every_other(name: str) -> None:
    for kind in TALKS:
        own = rendered(name, kind)
        if isinstance(own, str):
            continue
        for other_name in NAMES[NAMES.index(name) :]:
            other = rendered(other_name, kind)
            if not isinstance(other, str):
                check_pair(own, other)


def check_pair(own: Rendered, other: Rendered) -> None:
    try:
        student, teacher, notes = same_answers(own, other)
    except ValueError as error:
        assert str(error) == "the two sides show no part of the answer alike"
        assert not numbers(own) & numbers(other)
        return
    assert student.shown() == teacher.shown()
    assert [len(turn.gaps) for turn in student.turns] in (
        [0] * len(student.turns),
        [len(turn.parts) + 1 for turn in student.turns],
    )
    assert [turn.gaps for turn in student.turns] == [turn.gaps for turn in teacher.turns]
    for side, name in ((own, "student"), (other, "teacher")):
        there = {side.parts[place.part].kind for turn in side.turns for place in turn.parts}
        missing = {part.kind for part in side.parts} - there
        assert {note for note in notes if "_drops_" in note and note.startswith(name)} >= {
            f"{name}_drops_{kind}" for kind in missing
        }


PAIRS = [("trl/qwen3", "trl/gptoss"), ("trl/glm4moe", "trl/qwen3_8"), ("trl/llama3_1", "trl/nemotron_3_nano")]


@pytest.mark.parametrize(("student_name", "teacher_name"), PAIRS)
def test_paired_tokens_spell_the_same_bytes(student_name: str, teacher_name: str) -> None:
    for kind in TALKS:
        sides = rendered(student_name, kind), rendered(teacher_name, kind)
        if isinstance(sides[0], str) or isinstance(sides[1], str):
            continue
        student, teacher, _ = same_answers(*sides)
        encoded = [
            Encoder(renderer(name)[0], uses_chat_template=True)([side])[0]
            for name, side in ((student_name, student), (teacher_name, teacher))
        ]
        row: Any = pair(*encoded, alignment="segments", student_max=9_999, teacher_max=9_999)
        said = []
        for side, name in (("student", student_name), ("teacher", teacher_name)):
            tokens = row[f"{side}_ids"][row[f"{side}_answers"]]
            runs = zip(row[f"{side}_segments"], row[f"{side}_segment_stops"], strict=True)
            spelled = [
                renderer(name)[0].decode(tokens[start:stop]) for start, stop in runs if row[f"{side}_in_text"][start]
            ]
            said.append(spelled)
        assert said[0] == said[1]
        assert "".join(said[0]) == "".join(student.shown())
        assert row["answer_bytes"] == len("".join(said[0]).encode())


TRICKY = ["/no_think", "why? /think", "a\n", " b ", "<tool_response>x</tool_response>", "<|im_end|>", "[INST]", "é 中"]


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_of_plain_messages_is_what_generation_is_given(name: str) -> None:
    """It is read off the conversation, not rendered: whatever stands in the messages."""
    _, render = renderer(name)
    for content in TRICKY:
        for messages in (
            [user(content), said("fine")],
            [user("a"), said(content), user(content), said(f"so {content}")],
            [{"role": "system", "content": content}, user(content), said("fine")],
        ):
            try:
                found = render(of_messages(messages))
                expected = render.prompt(of_messages(messages))
            except ValueError:
                continue
            assert found.prompt == expected
