"""Where the teacher's spectra come from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from uld_ds.teachers.tokens import TeacherTokens


class TeacherSource(Protocol):
    """What the engine needs of a teacher, whatever it is."""

    tokens_run: int
    """Tokens that went through the teacher on this rank so far, without padding."""

    def answers(self, examples: Sequence[int]) -> list[TeacherTokens]:
        """What the teacher says about the answers of each example of the training data. Collective."""
        ...
