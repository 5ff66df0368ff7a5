"""The interfaces of teacher sources, and the error of a teacher whose logits are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from uld_ds.batches import SideBatch
from uld_ds.data.teacher_batching import TeacherBatcher
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


class ModelSource(TeacherSource, Protocol):
    """The interface of a source behind which there is a model, here or elsewhere: it can judge any text."""

    def ask_about(self, batcher: TeacherBatcher) -> None:
        """Take other examples to be asked about by number."""
        ...

    def answer_scores(self, batch: SideBatch) -> Tensor:
        """Compute [A, 2] natural log-probabilities: of each answer token, and of the most probable token there.

        The batch is any teacher's side of examples, of the training data or not. Collective.
        """
        ...

    def close(self) -> None:
        """Let go of the model; the source cannot be used any more."""
        ...


@runtime_checkable
class AheadSource(Protocol):
    """The interface that sources have besides which can ask for outputs before anybody waits for them."""

    @property
    def seconds_waited(self) -> float | None:
        """Seconds for which steps have waited for outputs so far, on the slowest rank; None where nobody waits."""
        ...

    def prefetch(self, examples: Sequence[int]) -> None:
        """Begin to ask for the outputs of examples that are needed soon.

        What was begun for others is given up.

        Args:
            examples: Numbers of all examples that are needed soon, those of the next step first.
        """
        ...
