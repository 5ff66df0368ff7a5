"""A whole conversation in a terminal: its blocks below each other, with a line on what each of them is."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from uld_ds.reporting.alignment_terminal import LABEL_WIDTH, SIGNS, TokenLines
from uld_ds.reporting.conversation_view import Block, ConversationView

_EVENT, _READ_ONLY = ("blue",), ("dim",)


class ConversationRows:
    """The blocks of a conversation, for rich to print.

    Args:
        view: the conversation.
    """

    def __init__(self, view: ConversationView) -> None:
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        view = self._view
        for label, side in (("student", view.student), ("teacher", view.teacher)):
            heading = f"{label:<{LABEL_WIDTH}}{side.name}, {len(side.tokens)} tokens, {side.template}"
            yield Text(heading, style="bold")
        yield from map(Text, view.summary)
        yield Text(SIGNS, style="dim")
        answer = 0
        for block in view.blocks:
            if view.num_answers > 1 and block.answer != answer:
                yield Text(f"\nanswer {block.answer} of {view.num_answers}", style="bold underline")
            answer = block.answer
            yield Text("")
            yield from _block(block, console, options)
        if view.notes:
            yield Text("")
        for note in view.notes.values():
            yield from _hanging("note", note, "", console, options)


def _block(block: Block, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
    if block.kind == "prompt":
        yield Text(f"{block.label} ({len(block.student)} and {len(block.teacher)} tokens)", style="dim italic")
        for label, text in block.prompt_texts().items():
            yield from _hanging(label, text, "dim", console, options)
        return
    if block.is_event:
        yield Text(block.label, style="blue italic")
        yield TokenLines(block.rows(), _EVENT)
    elif block.learned:
        yield Text(block.label, style="italic")
        yield TokenLines(block.rows())
    else:
        yield Text(block.label, style="dim italic")
        yield TokenLines(block.rows(), _READ_ONLY)


def _hanging(label: str, text: str, style: str, console: Console, options: ConsoleOptions) -> Iterator[Text]:
    """Yield the lines of a text that wraps beside its label."""
    lines = Text(text).wrap(console, options.max_width - LABEL_WIDTH, overflow="fold")
    for number, line in enumerate(lines):
        own = f"{'' if number else label:<{LABEL_WIDTH}}"
        yield Text.assemble((own, f"bold {style}"), (line.plain.rstrip(), style))
