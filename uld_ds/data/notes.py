"""What deserves a word about prepared examples without making them unusable: counted by example, said once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

_OF_A_SIDE = {
    "typed": "hold special tokens of the {side}'s tokenizer in the text of messages, which become control tokens "
    "(data.special_tokens: text makes text of them)",
    "typed_text": "hold special tokens of the {side}'s tokenizer in the text of messages, which become text",
    "prompt": "begin otherwise for the {side} than what it is given to answer: its chat template writes another text "
    "before an answer than its generation prompt ({side}.template_arguments may make them agree)",
    "system": "have a system message that the {side}'s chat template does not show",
    "tools": "have tools that the {side}'s chat template does not show",
    "no_end": "get the {side}'s end-of-text token at their end: its chat template writes none",
    "drops_reasoning": "have reasoning that the {side}'s template does not show: it carries no loss",
    "drops_text": "have text that the {side}'s template does not show: it carries no loss",
    "drops_tool_calls": "have tool calls that the {side}'s template does not show: they carry no loss",
}
NOTES = {
    f"{side}_{name}": text.format(side=side) for side in ("student", "teacher") for name, text in _OF_A_SIDE.items()
}
"""What each note says, after a number of examples."""


def counted(notes: Iterable[Iterable[str]]) -> dict[str, int]:
    """Count in how many examples each note stands, the most frequent first.

    Args:
        notes: Notes of each example.
    """
    counts = Counter(note for own in notes for note in set(own))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def lines_of(counts: dict[str, int], examples: int) -> list[str]:
    """Write a line for each note.

    Args:
        counts: Number of examples of each note.
        examples: Number of all examples.
    """
    return [f"{number:,} of {examples:,} examples {NOTES[note]}" for note, number in counts.items()]
