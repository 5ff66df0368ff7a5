"""SQuAD: questions whose answer is a piece of an encyclopedia's paragraph. Also SQuAD 2, where some have none."""

from __future__ import annotations

from uld_ds.tasks import extractive
from uld_ds.tasks.registry import register
from uld_ds.tasks.task import Fields, Row, TextTask, text, texts


def _read(row: Row) -> Fields:
    return extractive.fields(text(row, "context"), text(row, "question"), texts(row, "answers", "text"))


TASK = register(
    TextTask(
        name="squad",
        about="extractive QA: the answer is a piece of a paragraph",
        hub="rajpurkar/squad",
        columns=("context", "question", "answers"),
        read=_read,
        system=extractive.SYSTEM,
        shots=extractive.SHOTS,
        max_new_tokens=extractive.MAX_NEW_TOKENS,
        metrics=extractive.METRICS,
        words=extractive.WORDS,
    )
)
