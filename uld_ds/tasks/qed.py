"""QED: natural questions with the paragraph that explains their answer."""

from __future__ import annotations

from uld_ds.tasks import extractive
from uld_ds.tasks.registry import register
from uld_ds.tasks.task import Fields, Row, TextTask, text, texts


def _read(row: Row) -> Fields:
    references = texts(row, "original_nq_answers", "string")
    return extractive.fields(text(row, "paragraph_text"), text(row, "question", "question_text"), references)


TASK = register(
    TextTask(
        name="qed",
        about="extractive QA: natural questions, the answer is a piece of a paragraph",
        hub="google-research-datasets/qed",
        columns=("paragraph_text", "question|question_text", "original_nq_answers"),
        read=_read,
        system=extractive.SYSTEM,
        shots=extractive.SHOTS,
        max_new_tokens=extractive.MAX_NEW_TOKENS,
        metrics=extractive.METRICS,
        words=extractive.WORDS,
    )
)
