"""The picture of a conversation: what both sides show where, what is learned, and that it is what training does."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from io import StringIO
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tests.helpers.talk_templates import PLAIN, TAGGED, WORDED
from tests.helpers.talks import TALKS, call, example, said, talk, user
from tests.helpers.toy_tokenizers import toy
from uld_ds.data.examples import Example
from uld_ds.data.pairing import Pairing
from uld_ds.data.sides import TextSide
from uld_ds.errors import UserError
from uld_ds.recipe import ModelSettings
from uld_ds.reporting.conversation_html import conversation_page
from uld_ds.reporting.conversation_sides import PairedConversation, Speaker
from uld_ds.reporting.conversation_terminal import ConversationRows
from uld_ds.reporting.conversation_view import Block, ConversationView

MERGED = "two", "four"
THOUGHT = example([user("2+2?"), said("four", reasoning_content="two two")])


def speaker(template: str | None, key: str, *merged: str, bos: bool = False, **settings: Any) -> Speaker:
    chosen = ModelSettings(model=f"the {key}", **settings)
    return Speaker(toy(*merged, bos=bos, chat_template=template), chosen, f"--{key}")


def view_of(conversation: Example, student: str = TAGGED, teacher: str = WORDED, **options: Any) -> ConversationView:
    sides = speaker(student, "student", *MERGED), speaker(teacher, "teacher")
    return ConversationView.of(PairedConversation.of(conversation, *sides), **options)


def said_by(block: Block) -> tuple[str, str]:
    """What both sides show in a block, with a bar before every token."""
    student, teacher = ("".join("|" + token.shown for token in side) for side in (block.student, block.teacher))
    return student, teacher


# ---- blocks


def test_blocks_are_what_both_sides_show_at_one_place() -> None:
    view = view_of(THOUGHT)
    assert [(block.label, block.learned, block.is_event, len(block.segments)) for block in view.blocks] == [
        ("prompt", False, False, 0),
        ("marker", True, True, 1),
        ("reasoning", True, False, 3),
        ("marker", True, True, 1),
        ("text", True, False, 1),
        ("end of the turn", True, True, 1),
    ]
    assert [said_by(block) for block in view.blocks[1:]] == [
        ("|<|r|>", "|s|o|:|·"),
        ("|two|·|two", "|t|w|o|·|t|w|o"),
        ("|<|/|r|>", "|↵"),
        ("|four", "|f|o|u|r"),
        ("|</s>", "|!|</s>"),
    ]
    assert view.blocks[0].prompt_texts() == {
        "student": "<user>2+2?</s><assistant>",
        "teacher": "[user]2+2?![assistant]",
    }
    segments = [(segment.student, segment.teacher) for segment in view.blocks[2].segments]
    assert segments == [(range(1), range(3)), (range(1, 2), range(3, 4)), (range(2, 3), range(4, 7))]
    assert view.summary == (
        "4 segments; 100% of the student's tokens begin one",
        "tokens per segment: student 1.00, teacher 2.75",
        "3 events (markers and ends of turns), 3 of them on both sides",
    )
    assert view.notes == {}


def test_the_student_is_the_one_whose_tokens_count() -> None:
    sides = speaker(TAGGED, "student"), speaker(TAGGED, "teacher", *MERGED)
    view = ConversationView.of(PairedConversation.of(THOUGHT, *sides))
    assert (view.num_tokens, view.num_segments, view.alignment_rate) == ((11, 4), 4, 4 / 11)
    assert view.warning is not None
    assert view.warning.startswith("only 36% of the student's tokens begin a segment, and only there ")


@pytest.mark.parametrize("name", TALKS)
@pytest.mark.parametrize(("student", "teacher"), [(TAGGED, WORDED), (WORDED, TAGGED), (TAGGED, TAGGED)])
def test_the_view_is_what_training_prepares(name: str, student: str, teacher: str) -> None:
    view = view_of(talk(name), student, teacher)
    sides = [
        TextSide(toy(*merged, chat_template=template), ModelSettings(model="x", max_length=9999), key)
        for key, template, merged in (("student", student, MERGED), ("teacher", teacher, ()))
    ]
    (row,) = Pairing(sides[0], sides[1], alignment="segments", turns="all")([talk(name)])
    assert isinstance(row, dict)
    learned = [block for block in view.blocks if block.learned]
    for side in ("student", "teacher"):
        ids = [token.id for block in learned for token in getattr(block, side)]
        assert ids == row[f"{side}_ids"][row[f"{side}_answers"]].tolist()
        everything = [token.id for block in view.blocks for token in getattr(block, side)]
        assert everything[: len(row[f"{side}_ids"])] == row[f"{side}_ids"].tolist()
    assert sum(len(block.segments) for block in view.blocks) == len(row["student_segments"])
    lengths = [len(segment.student) for block in view.blocks for segment in block.segments]
    assert lengths == (row["student_segment_stops"] - row["student_segments"]).tolist()
    spelling = np.asarray(row["student_in_text"])
    assert view.num_tokens[0] == spelling.sum()
    assert view.num_segments == spelling[row["student_segments"]].sum()


def test_what_one_side_drops_is_shown_and_carries_no_loss() -> None:
    view = view_of(THOUGHT, TAGGED, PLAIN)
    dropped = view.blocks[1]
    assert (dropped.label, dropped.holds, dropped.learned) == ("reasoning: no loss", ("reasoning",), False)
    assert said_by(dropped) == ("|<|r|>|two|·|two|<|/|r|>", "")
    assert view.notes == {
        "teacher_drops_reasoning": "Conversations like this one have reasoning that the teacher's template does not "
        "show: it carries no loss."
    }
    assert view.num_events == (1, 1)


def test_earlier_reasoning_that_one_template_drops() -> None:
    conversation = example([user("a"), said("one", reasoning_content="why"), user("b"), said("two")])
    view = view_of(conversation)
    assert [(block.answer, block.label) for block in view.blocks] == [
        (1, "prompt"),
        (1, "reasoning: no loss"),
        (1, "text"),
        (1, "end of the turn"),
        (2, "prompt"),
        (2, "text"),
        (2, "end of the turn"),
    ]
    assert said_by(view.blocks[1]) == ("", "|s|o|:|·|w|h|y|↵")
    assert view.num_answers == 2


def test_tool_calls_and_what_stands_elsewhere() -> None:
    conversation = example([user("x"), said("Look.", tool_calls=[call({"a": 'b"'}, name="f")])])
    view = view_of(conversation)
    # The text stands after the call on the teacher's side, and the value is escaped on the student's: markers of both.
    assert [(block.label, *said_by(block)) for block in view.blocks[1:]] == [
        ("marker with text", "|L|o|o|k|.|<|c|a|l|l|>", "|{"),
        ("tool calls", "|f", "|f"),
        ("marker", '|:|{|"', "|·"),
        ("tool calls", "|a", "|a"),
        ("end of the turn with text and tool calls", '|"|:|·|"|b|\\|"|"|}|</s>', '|=|b|"|}|L|o|o|k|.|!|</s>'),
    ]


def test_white_space_that_one_side_trims_belongs_to_markers() -> None:
    trimming = WORDED.replace("m.reasoning_content + ", "m.reasoning_content | trim + ")
    view = view_of(example([user("x"), said("a", reasoning_content="\nb ")]), TAGGED, trimming)
    assert [(block.label, *said_by(block)) for block in view.blocks[1:4]] == [
        ("marker", "|<|r|>|↵", "|s|o|:|·"),
        ("reasoning", "|b", "|b"),
        ("marker", "|·|<|/|r|>", "|↵"),
    ]


def test_markers_of_one_side_are_no_segment() -> None:
    opened = TAGGED.replace("<assistant>{% endif %}", "<assistant><r>{% endif %}")
    view = view_of(THOUGHT, opened, WORDED)
    assert (view.blocks[1].label, *said_by(view.blocks[1])) == ("marker of the teacher alone", "", "|s|o|:|·")
    assert view.blocks[1].segments == [] and view.num_events == (3, 2)


def test_a_part_that_begins_within_a_token_is_not_compared() -> None:
    joined = "{% for m in messages %}{{ '[' + (m.reasoning_content or '') + m.content + ']' }}{% endfor %}"
    sides = speaker(joined, "student", "yf"), speaker(joined, "teacher")
    conversation = example([user("x"), said("four", reasoning_content="why")])
    view = ConversationView.of(PairedConversation.of(conversation, *sides))
    labels = {block.label: said_by(block) for block in view.blocks}
    assert labels["text: not compared, one side begins it within a token"] == ("|o|u|r", "|f|o|u|r")
    assert (view.num_segments, view.num_tokens) == (3, (3, 3))


def test_a_text_template_shows_the_last_answer() -> None:
    conversation = example([user("a"), said("one"), user("b"), said("two")])
    sides = (
        speaker(None, "student", bos=True, prompt_template="Q: {prompt}\nA:"),
        speaker(TAGGED, "teacher", bos=True),
    )
    view = ConversationView.of(PairedConversation.of(conversation, *sides), after=1)
    assert view.student.template == "text template 'Q: {prompt}\\nA:'"
    assert view.blocks[0].prompt_texts()["student"] == "Q: a↵A:one↵↵Q: b↵A:"
    assert said_by(view.blocks[-1]) == ("|</s>", "|</s>")
    assert view.notes["earlier_answers"] == (
        "A text template shows the last answer alone: earlier ones (1) are read, not learned."
    )
    assert view.notes["after"] == "What stands after the last answer (1 of the messages) is left out."


def test_tokens_that_a_side_adds_are_called_by_their_names() -> None:
    tokenizer = toy(bos=True, adds_bos=True)
    own = Speaker(tokenizer, ModelSettings(model="x", prompt_template="{prompt}:"), "--student")
    view = ConversationView.of(PairedConversation.of(example([user("q"), said("a")]), own, speaker(TAGGED, "teacher")))
    assert view.blocks[0].prompt_texts()["student"] == "<s>q:"
    first, last = view.student.tokens[0], view.student.tokens[-1]
    assert (first.token, first.span, first.covered) == ("<s>", (0, 0), b"")
    assert (last.token, last.span, last.shown) == ("</s>", (3, 3), "</s>")


def test_long_prompts_are_shortened_in_the_middle() -> None:
    view = view_of(example([user("x" * 500), said("four")]))
    text = view.blocks[0].prompt_texts()["student"]
    assert text == "<user>" + "x" * 114 + " […281 characters…] " + "x" * 105 + "</s><assistant>"
    assert view_of(example([user("x" * 219), said("a")])).blocks[0].prompt_texts()["student"].count("x") == 219


def test_what_cannot_be_shown_names_its_side() -> None:
    with pytest.raises(UserError) as caught:
        view_of(example([{"role": "system", "content": "s"}, user("a"), said("b")]), TAGGED, PLAIN)
    assert str(caught.value) == (
        "--teacher: the chat template refuses the conversation: Roles are user and assistant, not system; "
        "change the conversation, or give --teacher-template TEXT"
    )
    with pytest.raises(UserError) as caught:
        PairedConversation.of(THOUGHT, speaker(None, "student"), speaker(TAGGED, "teacher"))
    assert str(caught.value) == (
        "--student: 'the student' has no chat template; "
        'give --student-template TEXT with {prompt} in it, e.g. "Question: {prompt} Answer:"'
    )
    silent = "{% for m in messages %}{{ m.role + (m.reasoning_content or '') + '|' }}{% endfor %}"
    with pytest.raises(UserError) as caught:
        view_of(THOUGHT, silent, PLAIN)
    assert str(caught.value) == (
        "--messages: the two sides show no part of the answer alike; "
        "choose another conversation, or templates that show the same parts"
    )


# ---- its forms


def test_json() -> None:
    record = view_of(example([user("q"), said("two")])).to_json()
    assert json.loads(json.dumps(record)) == record
    assert record["student"] == {
        "name": "the student",
        "template": "chat template",
        "text": "<user>q</s><assistant>two</s>",
        "num_tokens": 6,
    }
    assert [block["kind"] for block in record["blocks"]] == ["prompt", "text", "end"]
    (two,) = toy(*MERGED)("two")["input_ids"]
    text = record["blocks"][1]
    assert text.pop("teacher") == {
        "ids": toy()("two")["input_ids"],
        "tokens": ["t", "w", "o"],
        "bytes": ["74", "77", "6f"],
        "spans": [[19, 20], [20, 21], [21, 22]],
    }
    assert text == {
        "kind": "text",
        "answer": 1,
        "learned": True,
        "holds": [],
        "student": {"ids": [two], "tokens": ["two"], "bytes": ["74776f"], "spans": [[22, 25]]},
        "segments": [{"student": [0, 1], "teacher": [0, 3]}],
    }
    assert {name: record[name] for name in ("num_segments", "num_events", "alignment_rate", "notes")} == {
        "num_segments": 1,
        "num_events": {"all": 1, "of_both": 1},
        "alignment_rate": 1.0,
        "notes": {},
    }
    assert record["tokens_per_segment"] == {"student": 1.0, "teacher": 3.0}


def rendered(view: ConversationView, width: int, **options: Any) -> list[str]:
    console = Console(width=width, file=StringIO(), **options)
    console.print(ConversationRows(view))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


def test_the_terminal() -> None:
    assert rendered(view_of(THOUGHT, TAGGED, PLAIN), 60) == [
        "student the student, 19 tokens, chat template",
        "teacher the teacher, 12 tokens, chat template",
        "1 segment; 100% of the student's tokens begin one",
        "tokens per segment: student 1.00, teacher 4.00",
        "1 event (markers and ends of turns), 1 of them on both sides",
        "┃ boundary of both   ┆ of one side only",
        "",
        "prompt (7 and 7 tokens)",
        "student <user>2+2?</s><assistant>",
        "teacher <user>2+2?</s><assistant>",
        "",
        "reasoning: no loss",
        "student ┃<┆r┆>┆two┆·┆two┆<┆/┆r┆>┃",
        "teacher ┃                       ┃",
        "",
        "text",
        "student ┃four   ┃",
        "teacher ┃f┆o┆u┆r┃",
        "",
        "end of the turn",
        "student ┃</s>┃",
        "teacher ┃</s>┃",
        "",
        "note    Conversations like this one have reasoning that the",
        "        teacher's template does not show: it carries no",
        "        loss.",
    ]


def test_the_terminal_tells_answers_apart_and_events_by_color() -> None:
    conversation = example([user("a b"), said("one"), user("b"), said("two")])
    lines = rendered(view_of(conversation), 60, force_terminal=True, color_system="standard")
    plain = [re.sub(r"\x1b\[[\d;]*[mG]", "", line) for line in lines]
    assert [line for line in plain if line.startswith("answer ")] == ["answer 1 of 2", "answer 2 of 2"]
    at = {label: plain.index(label) for label in ("text", "end of the turn")}
    assert "\x1b[36m" in lines[at["text"] + 1] and "\x1b[34m" not in lines[at["text"] + 1]
    assert "\x1b[34m" in lines[at["end of the turn"] + 1]
    assert lines[plain.index("prompt (6 and 21 tokens)") + 1].startswith("\x1b[1;2mstudent ")
    alone = rendered(view_of(THOUGHT), 60)
    assert not [line for line in alone if line.startswith("answer ")]


class Page(HTMLParser):
    """Headings and classes of the blocks, and that all elements are closed in order."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.blocks: list[str] = []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = (dict(attributes).get("class") or "").split()
        if "block" in named:
            self.blocks.append(" ".join(named[1:]))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["h3"]:
            self.blocks[-1] += f": {data}"


def test_the_page() -> None:
    page = conversation_page(view_of(THOUGHT, TAGGED, PLAIN))
    assert Page(page).blocks == [
        "read prompt: prompt",
        "read: reasoning: no loss",
        "part: text",
        "event: end of the turn",
    ]
    assert "<code>&lt;user&gt;2+2?&lt;/s&gt;&lt;assistant&gt;</code>" in page
    assert "<dd>student: the student <span>(19 tokens, chat template)</span></dd>" in page
    assert "<li>Conversations like this one have reasoning that the teacher&#39;s template does not show" in page
    assert re.findall(r"<li><b>(.*?)</b> (.*?)</li>", page) == [
        ("100%", "of the student&#39;s tokens begin a segment"),
        ("1", "segment"),
        ("1.00", "student tokens per segment"),
        ("4.00", "teacher tokens per segment"),
        ("1 of 1", "events on both sides"),
    ]
    assert "<h2>Answer 1 of 1</h2>" in page
    # The side that shows nothing has a dash.
    assert '<bdi class="nothing">–</bdi>' in page


def test_the_page_needs_nothing_else() -> None:
    page = conversation_page(view_of(example([user("<script>x</script>"), said("<b>&\"'")])))
    assert not re.search(r"url\(|@import|<script|https?://|src=|href=", page)
    assert "prefers-color-scheme: dark" in page
    assert "<b>&" not in page
