"""A view of what two vocabularies have in common, for a terminal and for a program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from uld_ds.alignment.vocabulary_mapping import VocabularyRelations, relate
from uld_ds.reporting.alignment_view import visible
from uld_ds.tokenization.vocabulary import Vocabulary

_EXAMPLES = 8


@dataclass(frozen=True)
class VocabularyView:
    """Two vocabularies and how they relate."""

    student: Vocabulary
    teacher: Vocabulary
    relations: VocabularyRelations
    names: tuple[str, str]
    """Names of the student's and of the teacher's tokenizer."""

    @classmethod
    def of(cls, student: Vocabulary, teacher: Vocabulary, names: tuple[str, str]) -> VocabularyView:
        """Relate two vocabularies, and make the view of them."""
        return cls(student, teacher, relate(student, teacher), names)

    @property
    def teacher_identical(self) -> float:
        """Share of the teacher's tokens with one of the same bytes in the student's vocabulary."""
        return float((self.relations.identity >= 0).mean())

    @property
    def student_identical(self) -> float:
        """Share of the student's tokens with one of the same bytes in the teacher's vocabulary."""
        found = self.relations.identity
        return len(np.unique(found[found >= 0])) / len(self.student)

    @property
    def projected(self) -> float:
        """Share of the teacher's tokens that begin with (or are) a token of the student's."""
        return float((self.relations.projection >= 0).mean())

    def to_json(self) -> dict[str, Any]:
        """Convert the view to plain data; bytes are hexadecimal."""
        return {
            "student": _side(self.student, self.names[0]) | {"identical": self.student_identical},
            "teacher": _side(self.teacher, self.names[1])
            | {"identical": self.teacher_identical, "projected": self.projected},
            "examples": {
                kind: [
                    {"teacher": [of_teacher, _hex(self.teacher, of_teacher)], "student": _other(self.student, found)}
                    for of_teacher, found in pairs
                ]
                for kind, pairs in self._examples().items()
            },
        }

    def to_rich(self) -> RenderableType:
        """Lay the view out for a terminal."""
        table = Table(box=None, pad_edge=False)
        for heading in ("", "student", "teacher"):
            table.add_column(heading, justify="right" if heading else "left")
        sides = (self.student, self.teacher)
        table.add_row("tokens", *(f"{len(side):,}" for side in sides))
        table.add_row("without bytes (special, unknown)", *(f"{_num_silent(side):,}" for side in sides))
        table.add_row("same bytes on the other side", f"{self.student_identical:.1%}", f"{self.teacher_identical:.1%}")
        table.add_row("begins with a token of the student", "", f"{self.projected:.1%}")
        return Group(table, *(self._line(*item) for item in self._examples().items()))

    def _line(self, kind: str, pairs: list[tuple[int, int]]) -> Text:
        shown = []
        for of_teacher, found in pairs:
            spelled = _shown(self.teacher, of_teacher)
            shown.append(spelled if found < 0 or kind == "identical" else f"{spelled} → {_shown(self.student, found)}")
        return Text(f"{kind}: ", style="bold") + Text("  ".join(shown) or "none", style="not bold")

    def _examples(self) -> dict[str, list[tuple[int, int]]]:
        """Choose some of the teacher's tokens of each kind with their student's, spread over the vocabulary.

        Returns:
            Kind -> pairs of a teacher's id and the student's id that it is projected to, -1 for none.
        """
        identity, projection = self.relations.identity, self.relations.projection
        has_bytes = np.array([spelled is not None for spelled in self.teacher.spellings], bool)
        kinds = {
            "identical": identity >= 0,
            "only a beginning": (identity < 0) & (projection >= 0),
            "nothing": has_bytes & (projection < 0),
        }
        examples = {}
        for kind, chosen in kinds.items():
            ids = np.flatnonzero(chosen)
            spread = ids[np.unique(np.linspace(0, len(ids) - 1, min(_EXAMPLES, len(ids))).astype(int))]
            examples[kind] = [(int(index), int(projection[index])) for index in spread]
        return examples


def _side(vocabulary: Vocabulary, name: str) -> dict[str, Any]:
    return {"name": name, "tokens": len(vocabulary), "without_bytes": _num_silent(vocabulary)}


def _num_silent(vocabulary: Vocabulary) -> int:
    return sum(spelled is None for spelled in vocabulary.spellings)


def _hex(vocabulary: Vocabulary, index: int) -> str | None:
    spelled = vocabulary.spellings[index]
    return None if spelled is None else spelled.hex()


def _other(vocabulary: Vocabulary, index: int) -> list[Any] | None:
    return None if index < 0 else [index, _hex(vocabulary, index)]


def _shown(vocabulary: Vocabulary, index: int) -> str:
    """Write a token with everything invisible made visible; one without bytes as the vocabulary writes it."""
    spelled = vocabulary.spellings[index]
    return str(vocabulary.tokens[index]) if spelled is None else visible(spelled)
