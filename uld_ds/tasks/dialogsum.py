"""DIALOGSum: a dialogue between two people, summarized in a sentence."""

from __future__ import annotations

from uld_ds.tasks.registry import register
from uld_ds.tasks.task import Fields, Row, Shot, TextTask, text

SYSTEM = (
    "You summarise dialogues. Read the dialogue between the speakers and summarise it in one sentence, as short as "
    "possible, with the speakers' names as they are given, without retelling the dialogue in detail."
)


def _prompt(dialogue: str) -> str:
    return f"Dialogue:\n{dialogue.strip()}\nSummary:"


SHOTS = (
    Shot(
        _prompt(
            "#Person1#: The train at nine is cancelled again.\n#Person2#: Then take my car, I work from home today.\n"
            "#Person1#: You have saved me. I will be back by six."
        ),
        "#Person2# lends #Person1# a car because the train is cancelled.",
    ),
    Shot(
        _prompt(
            "#Person1#: Did you like the flat, Ines?\n#Person2#: The kitchen is lovely, but I would hear the trams "
            "all night.\n#Person1#: There is a quieter one in Lime Street.\n#Person2#: Let us see that one tomorrow."
        ),
        "Ines finds the flat too loud and will see a quieter one in Lime Street tomorrow.",
    ),
    Shot(
        _prompt(
            "#Person1#: This soup is cold.\n#Person2#: I am very sorry. Shall I bring you another?\n"
            "#Person1#: No, just the bill, please."
        ),
        "#Person1# complains about cold soup and asks for the bill.",
    ),
)


def _read(row: Row) -> Fields:
    # The test split has several summaries, as columns of their own or as rows of their own.
    several = [row[name] for name in ("summary1", "summary2", "summary3") if row.get(name)]
    summary = text(row, "summary", "summary1")
    return Fields(_prompt(text(row, "dialogue")), summary, tuple(dict.fromkeys([summary, *several])))


TASK = register(
    TextTask(
        name="dialogsum",
        about="a dialogue's summary in a sentence",
        hub="knkarthick/dialogsum",
        columns=("dialogue", "summary|summary1"),
        read=_read,
        system=SYSTEM,
        shots=SHOTS,
        max_new_tokens=96,
        metrics=("rouge", "f1", "precision", "recall"),
        words="published",
    )
)
