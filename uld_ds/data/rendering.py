"""The rendering of a conversation as the text one side reads, and where the parts of its answers are in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from uld_ds.conversations import Message, Part
from uld_ds.data.control_tokens import ControlTokens
from uld_ds.data.examples import Example
from uld_ds.data.placeholders import (
    ALL_OF_CALLS,
    Place,
    hidden_messages,
    places_between,
    places_of,
    shown_numbers,
    text_stand_in,
    texts_around,
)
from uld_ds.data.templates import ChatTemplate
from uld_ds.errors import UserError
from uld_ds.recipe import ModelSettings

_MOST_SHAPES = 256


@dataclass(frozen=True)
class RenderedTurn:
    """Characters of one answer, of which parts are reasoning, text or tool calls, and the rest this side's markers."""

    lead: int
    """Where the model begins to speak: what stands between here and the first part is a marker of this side."""
    parts: tuple[Place, ...]
    """Parts of the answer that this side shows, in order; at least one."""
    end: int
    """End of this side's way to end the turn, which begins where the last part stops."""
    gaps: tuple[bool, ...] = ()
    """Whether the markers before each part, and after the last one, carry loss; empty: all do."""

    @property
    def has_lead(self) -> bool:
        """Whether a marker stands before the first part."""
        return self.lead < self.start

    @property
    def start(self) -> int:
        """Where the first part begins."""
        return self.parts[0].start

    @property
    def stop(self) -> int:
        """Where the last part stops."""
        return self.parts[-1].stop


@dataclass(frozen=True)
class Rendered:
    """A conversation's text for one side, and the answers in it, in order."""

    text: str
    turns: tuple[RenderedTurn, ...]
    parts: tuple[Part, ...]
    """All parts of the answers, also those that this side does not show; a ``Place`` names them by number."""
    prompt: str = ""
    """Everything the model reads before it starts the last answer."""
    typed: tuple[tuple[int, int], ...] = ()
    """Characters of control tokens that stand in the text because somebody wrote them there."""
    notes: frozenset[str] = frozenset()
    """What deserves a word, as keys of ``uld_ds.data.notes.NOTES`` without the side."""
    is_cut: bool = field(default=False, kw_only=True)
    """Whether parts may be missing at the end because they did not fit, and not because the template drops them."""
    context: str | None = field(default=None, kw_only=True)
    """Text that an encoder reads, where ``text`` is its decoder's alone; None without an encoder."""
    context_typed: tuple[tuple[int, int], ...] = field(default=(), kw_only=True)
    """As ``typed``, in what an encoder reads."""

    def notes_of(self, side: str) -> frozenset[str]:
        """Return the notes as keys of ``uld_ds.data.notes.NOTES``, of the side ``student`` or ``teacher``."""
        return frozenset(f"{side}_{note}" for note in self.notes)

    def shown(self) -> list[str]:
        """Return the text of each part that this side shows."""
        return [self.text[place.start : place.stop] for turn in self.turns for place in turn.parts]


@dataclass(frozen=True)
class _Shape:
    """The rendering of a conversation of plain messages with some roles, which are stand-ins."""

    texts: list[str]
    """Texts around the stand-ins."""
    numbers: list[int]
    """Numbers of the stand-ins, in order."""
    lead: int | None
    """Characters between the prompt of the last message and its content; None if it does not begin with its prompt."""


class Renderer:
    """A renderer of examples for one side, with the tokenizer's chat template or a plain one.

    Args:
        tokenizer: Tokenizer of the side.
        settings: Recipe section of the model: its ``prompt_template``, ``system_prompt`` and ``template_arguments``.
        key: Name of that section, for messages.

    Raises:
        UserError: ``prompt_template: chat`` for a tokenizer that has none, or a ``system_prompt`` that none can read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ModelSettings, key: str) -> None:
        self._plain = settings.prompt_template
        self._system_prompt = settings.system_prompt
        self.uses_chat_template = self._plain == "chat"
        self.control = ControlTokens(tokenizer)
        if not self.uses_chat_template:
            return
        if not tokenizer.chat_template:
            raise UserError(
                f"{key}.prompt_template",
                "'chat', but this tokenizer has no chat template",
                'set it to text with {prompt} in it, e.g. "{prompt}\\n"',
            )
        self.template = ChatTemplate(tokenizer, settings.template_arguments)
        self._shapes: dict[tuple[str, ...], _Shape | None] = {}
        if self._system_prompt is not None and not self.template.shows_system:
            raise UserError(
                f"{key}.system_prompt",
                f"{self._system_prompt!r}, but this chat template shows no system message",
                "leave it out, or put its text before the user's",
            )

    def prompt(self, example: Example) -> str:
        """Render everything the model reads before it starts the last answer.

        Raises:
            ValueError: the template refuses the conversation.
        """
        if not self.uses_chat_template:
            return self._plain_prompt(example)
        return self._chat(example, example.prompt, add_generation_prompt=True)

    def typed_in_prompt(self, example: Example, prompt: str) -> tuple[tuple[int, int], ...]:
        """Find the control tokens that were typed into a conversation, in its prompt.

        Args:
            example: Conversation of the prompt.
            prompt: What ``prompt`` returned for it.
        """
        return self.control.typed(example, prompt, self.prompt)

    def __call__(self, example: Example) -> Rendered:
        """Render the whole conversation.

        A plain template has no place for earlier answers: with one, an example has one answer.

        Raises:
            ValueError: the template refuses the conversation, or shows nothing of its answers as they are.
        """
        return self._conversation(example) if self.uses_chat_template else self._with_plain_template(example)

    def _with_plain_template(self, example: Example) -> Rendered:
        assert len(example.answers) == 1, "a plain template shows one answer"
        prompt = self._plain_prompt(example)
        whole = prompt + example.answer
        if _is_plain(example.messages[-1]):
            places: list[Place] | None = [Place(0, len(prompt), len(whole))]
        else:
            hidden = prompt + (hidden_messages(example)[-1]["content"] or "")
            places = places_of(whole, hidden, example.parts)
        if not places:
            raise ValueError("a text template shows the text of an answer alone, and this one has none")
        turn = RenderedTurn(len(prompt), tuple(places), len(whole))
        typed = self.control.typed(example, whole, lambda marked: self._plain_prompt(marked) + marked.answer)
        notes = _notes(typed=bool(typed), **_not_shown(example, prompt))
        return Rendered(whole, (turn,), example.parts, prompt, typed, notes)

    def answer_alone(self, example: Example) -> Rendered:
        """Render the last answer's content, as a decoder reads it, beside what its encoder reads.

        Raises:
            ValueError: the template refuses the conversation, or the answer has no text.
        """
        example = example.only_last()
        hidden = hidden_messages(example)[-1]["content"] or ""
        places = places_of(example.answer, hidden, example.parts)
        if not places:
            raise ValueError("a decoder that has its prompt in an encoder learns text alone, and the answer has none")
        turn = RenderedTurn(0, tuple(places), len(example.answer))
        prompt = self.prompt(example)
        asked = self.typed_in_prompt(example, prompt)
        typed = self.control.typed(example, example.answer, lambda marked: marked.answer)
        notes = _notes(typed=bool(asked or typed), **_not_shown(example, prompt))
        return Rendered(
            example.answer, (turn,), example.parts, prompt, typed, notes, context=prompt, context_typed=asked
        )

    def _conversation(self, example: Example) -> Rendered:
        whole = self._chat(example, example.messages)
        places, prompt = self._plain_places(example, whole)
        if not places:
            places = self._any_places(example, whole)
        if prompt is None:
            prompt = self._chat(example, example.prompt, add_generation_prompt=True)
        turns = self._turns(example, whole, places, prompt)
        typed = self.control.typed(example, whole, lambda marked: self._chat(marked, marked.messages))
        notes = _notes(
            typed=bool(typed),
            prompt=_shows_last(example, places) and (not whole.startswith(prompt) or len(prompt) > turns[-1].start),
            no_end=not whole[turns[-1].stop :].strip(),
            **_not_shown(example, whole),
        )
        return Rendered(whole[: turns[-1].end], turns, example.parts, prompt, typed, notes)

    def _plain_places(self, example: Example, whole: str) -> tuple[list[Place], str | None]:
        """Find answers among messages that are plain text, with one rendering for all conversations of a shape.

        What fits it to the last character is known, and with it the prompt of the last answer; nothing else is.
        """
        messages = self._with_system_prompt(example.messages)
        if example.tools or example.template_arguments or not all(map(_is_plain, messages)):
            return [], None
        roles = tuple(message["role"] for message in messages)
        if roles not in self._shapes:
            if len(self._shapes) >= _MOST_SHAPES:
                return [], None
            self._shapes[roles] = self._shape(roles)
        shape = self._shapes[roles]
        if shape is None:
            return [], None
        parts = [Part("text", message["content"], number) for number, message in enumerate(messages)]
        places = places_between(whole, shape.texts, shape.numbers, parts)
        if not places:
            return [], None
        # A system prompt of the recipe stands before the example's own messages.
        shift = len(messages) - len(example.messages)
        numbers = {answer + shift: number for number, answer in enumerate(example.answers)}
        known = shape.lead is not None and places[-1].part == len(messages) - 1
        prompt = whole[: places[-1].start - (shape.lead or 0)] if known else None
        found = [Place(numbers[place.part], place.start, place.stop) for place in places if place.part in numbers]
        return found, prompt

    def _shape(self, roles: Sequence[str]) -> _Shape | None:
        """Render a conversation of stand-ins; None where the template refuses one of these roles."""
        messages = [{"role": role, "content": text_stand_in(number)} for number, role in enumerate(roles)]
        try:
            hidden = self.template.render(messages)
            prompt = self.template.render(messages[:-1], add_generation_prompt=True) if len(messages) > 1 else None
        except ValueError:
            return None
        answer = hidden.find(text_stand_in(len(roles) - 1))
        begins = prompt is not None and hidden.startswith(prompt) and len(prompt) <= answer
        lead = answer - len(prompt) if begins and prompt is not None else None
        return _Shape(texts_around(hidden), shown_numbers(hidden), lead)

    def _any_places(self, example: Example, whole: str) -> list[Place]:
        # What stands around any answer stands around stand-ins, too: the places are exact, even where the answer's
        # text occurs elsewhere. Where a template looks into tool calls, fewer of their parts are hidden.
        levels: list[Sequence[str]] = [ALL_OF_CALLS]
        if any(part.kind == "tool_calls" for part in example.parts):
            levels += [("name", "values"), ("name",), ()]
        problem = "the chat template does not show the answer unchanged"
        for hide in levels:
            try:
                hidden = self._chat(example, hidden_messages(example, self.template.split, hide))
            except ValueError as error:
                problem = str(error)
                continue
            places = places_of(whole, hidden, example.parts)
            if places:
                return places
            if places is not None:
                problem = "the chat template shows nothing of the answer"
        raise ValueError(problem)

    def _turns(self, example: Example, whole: str, places: Sequence[Place], prompt: str) -> tuple[RenderedTurn, ...]:
        by_turn: dict[int, list[Place]] = {}
        for place in places:
            by_turn.setdefault(example.parts[place.part].turn, []).append(place)
        groups = list(by_turn.values())
        # Of an answer that is not shown there is nothing to see how answers begin and end.
        shows_last = _shows_last(example, places)
        mark = whole[groups[-1][-1].stop :].rstrip() if shows_last else ""
        header = self.template.header if len(groups) > 1 or not shows_last else ""
        last = groups[-1][0].start
        last_lead = len(prompt) if whole.startswith(prompt) and len(prompt) <= last else last
        turns: list[RenderedTurn] = []
        for number, group in enumerate(groups):
            start, stop = group[0].start, group[-1].stop
            begin = turns[-1].end if turns else 0
            if number < len(groups) - 1 or not shows_last:
                limit = groups[number + 1][0].start if number < len(groups) - 1 else len(whole)
                final = example.parts[group[-1].part]
                own = mark if shows_last and final.call is None else self._own_mark(example, final.turn)
                end = self._end(whole, stop, limit, own)
                lead = _earlier_lead(whole[begin:start], header, whole[last_lead:last]) + begin
            else:
                end, lead = stop + len(mark), max(last_lead, begin)
            turns.append(RenderedTurn(lead, tuple(group), end))
        return tuple(turns)

    def _own_mark(self, example: Example, turn: int) -> str:
        """Render what closes an earlier turn's last part and ends the turn, as where it is the last turn."""
        answers = tuple(place for place in example.answers if place <= turn)
        until = replace(example, messages=example.messages[: turn + 1], answers=answers)
        try:
            hidden = self._chat(until, hidden_messages(until, self.template.split))
        except ValueError:
            return ""
        return texts_around(hidden)[-1].rstrip()

    def _end(self, whole: str, stop: int, limit: int, mark: str) -> int:
        """Find the end of an earlier turn: what ends the last turn ends it too, or another token that ends turns."""
        if mark and whole.startswith(mark, stop) and stop + len(mark) <= limit:
            return stop + len(mark)
        ends = [found + len(end) for end in self.template.end_texts if (found := whole.find(end, stop, limit)) >= 0]
        return min(ends, default=stop)

    def _plain_prompt(self, example: Example) -> str:
        # Earlier answers stand where the template lets an answer stand: a few-shot prompt shows its own form.
        turns: list[str] = []
        asked: list[str] = []
        for message in self._with_system_prompt(example.prompt):
            content = message["content"] or ""
            if message["role"] == "assistant":
                turns.append(self._asking(asked) + content)
                asked = []
            else:
                asked.append(content)
        return "\n\n".join([*turns, self._asking(asked)])

    def _asking(self, contents: Sequence[str]) -> str:
        return self._plain.replace("{prompt}", "\n\n".join(contents))

    def _with_system_prompt(self, messages: Sequence[Message]) -> list[Message]:
        if self._system_prompt is None or any(message["role"] == "system" for message in messages):
            return list(messages)
        return [{"role": "system", "content": self._system_prompt}, *messages]

    def _chat(self, example: Example, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        return self.template.render(
            self._with_system_prompt(messages),
            tools=example.tools,
            arguments=example.template_arguments,
            add_generation_prompt=add_generation_prompt,
        )


def _earlier_lead(before: str, header: str, last: str) -> int:
    """Find where the model begins to speak in an earlier turn.

    Args:
        before: Text between the turn before and the answer.
        header: What a template writes where a turn is to begin.
        last: What the model says before the first part of the last answer.
    """
    found = before.rfind(header) if header else -1
    if found >= 0:
        return found + len(header)
    return len(before) - (len(last) if before.endswith(last) else 0)


def _shows_last(example: Example, places: Sequence[Place]) -> bool:
    return any(example.parts[place.part].turn == example.answers[-1] for place in places)


def _is_plain(message: Message) -> bool:
    content = message.get("content") or ""
    return len(message) == 2 and bool(content.strip()) and "</think>" not in content


def _not_shown(example: Example, text: str) -> dict[str, bool]:
    """Tell whether a system message or a tool of a conversation is missing in what a side reads."""
    systems = (message["content"] or "" for message in example.messages if message["role"] == "system")
    tools = (tool.get("function", tool).get("name", "") for tool in example.tools or ())
    return {
        "system": not all(content.strip() in text for content in systems),
        "tools": not all(name in text for name in tools),
    }


def _notes(**are: bool) -> frozenset[str]:
    return frozenset(name for name, is_so in are.items() if is_so)
