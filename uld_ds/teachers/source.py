"""The interface of a teacher source, and the error of a teacher whose logits are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from uld_ds.teacher_outputs import TeacherTokens


class NonFiniteTeacherError(ArithmeticError):
    """Logits of the teacher that are not finite. Raised on every rank alike, with the examples of all of them."""

    def __init__(self, examples: Sequence[int]) -> None:
        self.examples = tuple(examples)
        super().__init__(f"the teacher's logits are not finite in examples {', '.join(map(str, examples))}")


class TeacherSource(Protocol):
    """The interface that the training engine needs of a teacher, online, cached or stored."""

    @property
    def tokens_run(self) -> int:
        """Tokens that went through the teacher on this rank so far, without padding."""
        ...

    @property
    def bytes_gathered(self) -> int:
        """Bytes of the teacher's weights that this rank has received from others so far."""
        ...

    def answers(self, examples: Sequence[int], step: int) -> list[TeacherTokens]:
        """Return the teacher outputs at the answer tokens of each example of the training data. Collective.

        Args:
            examples: Numbers of the examples.
            step: Optimizer step that needs them.
        """
        ...
