"""The places of an answer's parts in a rendered conversation, found with stand-ins that no template changes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from uld_ds.conversations import Message, Part, PartKind, parts_of
from uld_ds.conversations.parts import with_parts
from uld_ds.data.examples import Example

# From a private-use plane: in no text, and nothing that a template would trim or look for.
_MARK = "\U000f0add"
_FIRST = 0xF1000
_MOST = 0xFFFFD - _FIRST
# A value that is no text gets a number: templates treat the two differently.
_NUMBER = 73_195_408_261_700_000
_STAND_IN = re.compile(f"{_MARK}([{chr(_FIRST)}-{chr(_FIRST + _MOST)}]){_MARK}|731954082617([0-9]{{5}})")


@dataclass(frozen=True)
class Place:
    """The characters of one part in a rendered conversation: ``text[start:stop]``."""

    part: int
    """Number of the part among all of the answers'."""
    start: int
    stop: int


ALL_OF_CALLS = ("name", "keys", "values")


def hidden_messages(
    example: Example, prepare: Callable[[Message], Message] = dict, hide: Collection[str] = ALL_OF_CALLS
) -> list[Message]:
    """List the messages of an example with stand-ins for every part of its answers.

    Args:
        example: The conversation.
        prepare: What is done to each message before.
        hide: What of tool calls gets a stand-in, as in ``with_stand_ins``.
    """
    hidden = [prepare(message) for message in example.messages]
    first = 0
    for place in example.answers:
        number = len(parts_of(example.messages[place], place))
        hidden[place] = with_stand_ins(hidden[place], first, hide=hide)
        first += number
    return hidden


def with_stand_ins(message: Message, first: int, *, hide: Collection[str] = ALL_OF_CALLS) -> Message:
    """Put a stand-in for every part of a message.

    Args:
        message: Message of an assistant.
        first: Number of its first part.
        hide: What of tool calls gets a stand-in: ``name``, ``keys``, ``values``. Reasoning and text always do.
    """
    number = first
    is_name = -1

    def stand_in(kind: PartKind, value: object, call: int | None, is_key: bool) -> object:
        nonlocal number, is_name
        own, number = number, number + 1
        if call is not None:
            sort = "keys" if is_key else "name" if call != is_name else "values"
            is_name = call
            if sort not in hide:
                return value
        if own >= _MOST:
            return value
        return text_stand_in(own) if isinstance(value, str) else _NUMBER + own

    return with_parts(message, stand_in)


def shown_numbers(hidden: str) -> list[int]:
    """List the numbers of the stand-ins in a text, in order."""
    return [ord(character) - _FIRST if character else int(digits) for character, digits in _STAND_IN.findall(hidden)]


def texts_around(hidden: str) -> list[str]:
    """Cut a text at its stand-ins."""
    texts = []
    begin = 0
    for found in _STAND_IN.finditer(hidden):
        texts.append(hidden[begin : found.start()])
        begin = found.end()
    return [*texts, hidden[begin:]]


def text_stand_in(number: int) -> str:
    """Return the stand-in for the text of a number."""
    return f"{_MARK}{chr(_FIRST + number)}{_MARK}"


def places_of(whole: str, hidden: str, parts: Sequence[Part]) -> list[Place] | None:
    """Find the parts in a rendered conversation; what the template leaves out has no place.

    Args:
        whole: Conversation as it is rendered.
        hidden: The same conversation, rendered with stand-ins.
        parts: All parts, by number.

    Returns:
        The places in order, of each part the first one; None where the two renderings differ in more than the parts.
    """
    return places_between(whole, texts_around(hidden), shown_numbers(hidden), parts)


def places_between(
    whole: str, texts: Sequence[str], numbers: Sequence[int], parts: Sequence[Part]
) -> list[Place] | None:
    """Find the parts in a rendered conversation, as ``places_of`` does, from a hidden one that was taken apart.

    Args:
        whole: Conversation as it is rendered.
        texts: What ``texts_around`` returns for the hidden one.
        numbers: What ``shown_numbers`` returns for it.
        parts: All parts, by number.
    """
    if any(number >= len(parts) for number in numbers):
        return None
    starts = _fitted(whole, texts, [parts[number].forms for number in numbers])
    if starts is None:
        return None
    first: dict[int, Place] = {}
    for number, (start, stop) in zip(numbers, starts, strict=True):
        first.setdefault(number, Place(number, start, stop))
    return sorted(first.values(), key=lambda place: place.start)


def _fitted(whole: str, texts: Sequence[str], forms: Sequence[Sequence[str]]) -> list[tuple[int, int]] | None:
    """Fit one form of each part between the texts around them, so that all together are ``whole``."""
    if not whole.startswith(texts[0]):
        return None
    # A depth-first search, of which almost always the first form fits; tried[n] forms of part n have been tried.
    ranges: list[tuple[int, int]] = []
    tried = [0]
    position = len(texts[0])
    while len(ranges) < len(forms) or position < len(whole):
        number = len(ranges)
        stop = None
        while number < len(forms) and stop is None and tried[-1] < len(forms[number]):
            form = forms[number][tried[-1]]
            tried[-1] += 1
            if whole.startswith(form, position) and whole.startswith(texts[number + 1], position + len(form)):
                stop = position + len(form)
        if stop is not None:
            ranges.append((position, stop))
            tried.append(0)
            position = stop + len(texts[number + 1])
        elif ranges:
            position = ranges.pop()[0]
            tried.pop()
        else:
            return None
    return ranges
