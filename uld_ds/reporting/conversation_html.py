"""A whole conversation as one HTML page: no scripts, nothing loaded, light and dark, on paper too."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from uld_ds.reporting.alignment_html import TokenRows
from uld_ds.reporting.conversation_view import Block, ConversationView
from uld_ds.reporting.templates import render


@dataclass(frozen=True)
class ShownBlock:
    """A block as the page shows it."""

    label: str
    style: str
    num_tokens: tuple[int, int]
    texts: dict[str, str]
    """Of a prompt, what each side reads; else nothing."""
    rows: TokenRows
    """Of all other blocks, the rows of tokens."""

    @classmethod
    def of(cls, block: Block) -> ShownBlock:
        """Choose a block's style, and what it shows."""
        is_prompt = block.kind == "prompt"
        style = "event" if block.is_event else "part" if block.learned else "read"
        texts = block.prompt_texts() if is_prompt else {}
        rows = TokenRows("ltr", []) if is_prompt else TokenRows.of(block.rows())
        return cls(block.label, style, (len(block.student), len(block.teacher)), texts, rows)


def conversation_page(view: ConversationView) -> str:
    """Render the page of a conversation, as a string to be written in UTF-8."""
    answers = [
        (number, [ShownBlock.of(block) for block in blocks])
        for number, blocks in groupby(view.blocks, lambda block: block.answer)
    ]
    return render("conversation.html.j2", view=view, figures=_figures(view), answers=answers)


def _figures(view: ConversationView) -> list[tuple[str, str]]:
    student, teacher = view.tokens_per_segment
    events, of_both = view.num_events
    return [
        (f"{view.alignment_rate:.0%}", "of the student's tokens begin a segment"),
        (f"{view.num_segments:,}", "segment" if view.num_segments == 1 else "segments"),
        (f"{student:.2f}", "student tokens per segment"),
        (f"{teacher:.2f}", "teacher tokens per segment"),
        (f"{of_both:,} of {events:,}", "events on both sides"),
    ]
