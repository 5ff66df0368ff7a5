"""FairytaleQA: questions about a section of a tale, answered in the reader's own words."""

from __future__ import annotations

from uld_ds.tasks.extractive import prompt
from uld_ds.tasks.registry import register
from uld_ds.tasks.task import Fields, Row, Shot, TextTask, text

SYSTEM = (
    "You answer questions about a story. Read the passage step by step, then answer the question briefly, in your "
    "own words where that is shorter, with at most fifteen words and nothing else."
)
SHOTS = (
    Shot(
        prompt(
            "The miller's daughter had hidden the key in a loaf of bread. When the giant asked for supper she gave "
            "him the whole basket, and he swallowed loaf and key together.",
            "Why could nobody open the door after supper?",
        ),
        "The giant had swallowed the key with the bread.",
    ),
    Shot(
        prompt(
            "The fox promised the heron a fish for every feather. By evening the heron stood bare in the reeds and "
            "the fox had caught nothing at all.",
            "How did the heron feel in the evening?",
        ),
        "cheated",
    ),
    Shot(
        prompt(
            "An old woman lived at the edge of the marsh with her three goats. Every night she counted them, and one "
            "night she counted four.",
            "What was strange about the goats one night?",
        ),
        "There was one more than before.",
    ),
)


def _read(row: Row) -> Fields:
    answer = text(row, "answer", "answer1")
    others = row.get("references") or []
    second = [row["answer2"]] if row.get("answer2") else []
    references = dict.fromkeys([answer, *others, *second])
    if not all(isinstance(reference, str) for reference in references):
        raise ValueError("column 'references' does not hold a list of texts")
    asked = prompt(text(row, "content", "story_section"), text(row, "question"))
    return Fields(asked, answer, tuple(reference for reference in references if reference.strip()))


TASK = register(
    TextTask(
        name="fairytaleqa",
        about="generative QA: questions about a tale, answered in own words",
        hub="WorkInTheTime/FairytaleQA",
        columns=("content|story_section", "question", "answer|answer1"),
        read=_read,
        system=SYSTEM,
        shots=SHOTS,
        max_new_tokens=64,
        metrics=("f1", "precision", "recall", "em", "rouge"),
        words="published",
    )
)
