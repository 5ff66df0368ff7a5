"""PubMedQA: a question about a medical abstract, answered yes, no or maybe and with the abstract's conclusion."""

from __future__ import annotations

from collections.abc import Mapping

from uld_ds.tasks.registry import register
from uld_ds.tasks.task import Fields, Row, Shot, TextTask, text

DECISIONS = ("yes", "no", "maybe")
SYSTEM = (
    "You are a medical expert who reads a research abstract. Answer the question from the abstract alone: first yes, "
    "no or maybe, then the conclusion in one or two sentences, straight to the point, without retelling the study."
)


def _prompt(abstract: str, question: str) -> str:
    return f"Abstract: {abstract.strip()}\nQuestion: {question.strip()}"


SHOTS = (
    Shot(
        _prompt(
            "Eighty adults with tension headache kept a diary for six weeks and were assigned by lot to a daily walk "
            "of half an hour or to no change. Headache days fell from 9 to 5 a month with walking and from 9 to 8 "
            "without (p = 0.01).",
            "Does a daily walk reduce the number of headache days?",
        ),
        "Yes. A daily walk of half an hour led to fewer days with tension headache over six weeks.",
    ),
    Shot(
        _prompt(
            "In 212 patients the length of stay after hernia repair was compared between morning and afternoon "
            "operations. The median was two days in both groups (p = 0.74).",
            "Do patients operated on in the morning leave hospital earlier?",
        ),
        "No. The time of day of hernia repair made no difference to the length of stay.",
    ),
    Shot(
        _prompt(
            "Nineteen children with recurrent cough received honey before sleep. Cough improved in ten, was the same "
            "in seven and worse in two. There was no comparison group.",
            "Is honey effective against recurrent cough in children?",
        ),
        "Maybe. Half of the children improved, but a controlled study is needed.",
    ),
)


def _read(row: Row) -> Fields:
    context = row.get("context")
    parts = context.get("contexts") if isinstance(context, Mapping) else [context]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise ValueError("column 'context' holds neither text nor a list of 'contexts'")
    conclusion = text(row, "long_answer").strip()
    decision = row.get("final_decision")  # the dataset's unlabeled part has none
    if decision is not None and decision not in DECISIONS:
        raise ValueError(f"column 'final_decision' holds {decision!r}, not one of {', '.join(DECISIONS)}")
    answer = conclusion if decision is None else f"{decision.capitalize()}. {conclusion}"
    return Fields(_prompt(" ".join(parts), text(row, "question")), answer, (answer,))


TASK = register(
    TextTask(
        name="pubmedqa",
        about="yes, no or maybe to a question about a medical abstract, and its conclusion",
        hub="qiaojin/PubMedQA",
        columns=("context", "question", "long_answer"),
        read=_read,
        system=SYSTEM,
        shots=SHOTS,
        max_new_tokens=150,
        metrics=("accuracy", "f1", "precision", "recall", "rouge"),
        words="published",
    )
)
