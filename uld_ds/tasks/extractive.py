"""The shared part of the two tasks of extractive question answering, where the answer is a piece of the text."""

from __future__ import annotations

from uld_ds.tasks.task import NO_RESPONSE, Fields, Shot, Words

SYSTEM = (
    "You take part in a reading comprehension exercise. Read the context carefully and answer the question with a "
    "few consecutive words copied from the context, as few as possible, and nothing else. If the context does not "
    f"hold the answer, say: {NO_RESPONSE}."
)
METRICS = ("f1", "precision", "recall", "em", "rouge")
WORDS: Words = "published"
MAX_NEW_TOKENS = 32


def prompt(context: str, question: str) -> str:
    """Write the prompt: the text and the question about it."""
    return f"Context: {context.strip()}\nQuestion: {question.strip()}"


def fields(context: str, question: str, references: tuple[str, ...]) -> Fields:
    """Make the fields of a row; where there is no answer, NO_RESPONSE is the one to be distilled."""
    said = tuple(reference for reference in references if reference.strip())
    return Fields(prompt(context, question), said[0] if said else NO_RESPONSE, said)


SHOTS = (
    Shot(
        prompt(
            "The ferry to the island of Vessel leaves the old harbour at six in the morning and takes ninety minutes.",
            "How long does the ferry take?",
        ),
        "ninety minutes",
    ),
    Shot(
        prompt(
            "Mira Toll, who had repaired clocks since she was a child, opened her workshop in 1931 beside the mill.",
            "Who opened a workshop beside the mill?",
        ),
        "Mira Toll",
    ),
    Shot(
        prompt(
            "Because the winter of that year was mild, the lake did not freeze and the race was held on foot.",
            "Why did the lake not freeze?",
        ),
        "the winter of that year was mild",
    ),
    Shot(
        prompt(
            "The bridge was painted green in spring. Its architect asked for the colour of the reeds below it.",
            "How many people crossed the bridge?",
        ),
        NO_RESPONSE,
    ),
    Shot(
        prompt(
            "Of the 48 apple trees in the orchard, a third bear red fruit; the others bear yellow fruit.",
            "What share of the trees bears red fruit?",
        ),
        "a third",
    ),
)
