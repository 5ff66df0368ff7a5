"""What each teacher of a run gives to a step: its outputs for a window, and its part of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from uld_ds.batches import MicroBatch
from uld_ds.losses.difference import centered_difference
from uld_ds.losses.normalization import RowWeights
from uld_ds.losses.objective import Objective
from uld_ds.models.row_model import Head
from uld_ds.recipe import ObjectiveSettings
from uld_ds.recipe.models import ONLY_TEACHER
from uld_ds.teacher_outputs import TeacherSegments, TeacherTokens
from uld_ds.teachers.source import AheadSource, TeacherSource

OF_STUDENT = ("ce", "student_entropy", "student_entropy_rows")
"""Parts of the loss that are of the student alone: counted once, however many teachers there are."""
Judgments = Mapping[int, TeacherSegments]
"""Outputs for a micro-batch's segments, by the number of the teacher; one that judges none of them is not there."""


@dataclass(frozen=True)
class Teaching:
    """One teacher of a run: where its outputs come from, and what they weigh."""

    name: str
    """The recipe's name of the teacher."""
    source: TeacherSource
    """Source of its outputs for the training data."""
    objective: Objective
    """The loss, with terms that know how its vocabulary relates to the student's."""
    weight: float = 1.0
    """Weighs all that the loss compares with it."""


@dataclass(frozen=True)
class Teachings:
    """All teachers of a run, and how they are combined."""

    teachers: tuple[Teaching, ...]
    combine: Literal["sum", "route", "difference"] = "sum"

    @classmethod
    def of_one(cls, source: TeacherSource, objective: Objective) -> Teachings:
        """Make the teachers of a run with one."""
        return cls((Teaching(ONLY_TEACHER, source, objective),))

    @property
    def counters(self) -> tuple[int, int]:
        """Tokens that went through the teachers on this rank so far, and bytes of their weights that it received."""
        sources = [teacher.source for teacher in self.teachers]
        return sum(source.tokens_run for source in sources), sum(source.bytes_gathered for source in sources)

    @property
    def seconds_waited(self) -> float | None:
        """Seconds for which steps have waited for teachers elsewhere so far; None where all are here."""
        sources = [teacher.source for teacher in self.teachers]
        waited = [source.seconds_waited for source in sources if isinstance(source, AheadSource)]
        known = [seconds for seconds in waited if seconds is not None]
        return sum(known) if known else None

    def prefetch(self, examples: Sequence[int]) -> None:
        """Let teachers elsewhere be asked about examples that are needed soon, those of the next step first."""
        for teacher in self.teachers:
            if isinstance(teacher.source, AheadSource):
                teacher.source.prefetch(examples)

    @property
    def shares(self) -> list[float]:
        """Share of each teacher in what they say together of an answer."""
        if self.combine == "difference":  # it is the strong one's judgment that counts
            return [1.0, 0.0]
        if self.combine == "route" or len(self.teachers) == 1:
            return [1.0] * len(self.teachers)
        whole = sum(teacher.weight for teacher in self.teachers)
        return [teacher.weight / whole for teacher in self.teachers]

    def outputs(
        self, window: Sequence[MicroBatch], step: int, device: torch.device
    ) -> list[dict[int, TeacherSegments]]:
        """Get the outputs of every teacher for each micro-batch of a window, one row per segment. Collective.

        Every rank asks every teacher, one after the other, also one that judges none of this rank's examples.

        Args:
            window: the micro-batches of this rank's step.
            step: optimizer step that needs them.
            device: device that they go to.

        Raises:
            NonFiniteTeacherError: on every rank, when the logits of one of them are not finite.
        """
        outputs: list[dict[int, TeacherSegments]] = [{} for _ in window]
        for number, teacher in enumerate(self.teachers):
            asked = [_judged(micro_batch, number) for micro_batch in window]
            answers = iter(teacher.source.answers([example for own in asked for example in own], step))
            for said, micro_batch, own in zip(outputs, window, asked, strict=True):
                if own:
                    tokens = TeacherTokens.cat([next(answers) for _ in own])
                    said[number] = tokens.to(device).segments(micro_batch.pairs[number].teacher)
        return outputs

    def loss(
        self, hidden: Tensor, head: Head, micro_batch: MicroBatch, judgments: Judgments, weights: Sequence[RowWeights]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one micro-batch, and its parts: one pass for each teacher over the rows that it judges.

        Cross-entropy is in the first pass over a row. What is compared with a teacher counts by its weight, in the
        loss and in the parts, which are sums over the teachers; beside them stand those of each of several, without
        its weight, by ``NAME/`` and their name.

        Args:
            hidden: [A, H] the student's hidden states, one row per answer token, differentiable.
            head: the student's output head; its tensors receive gradients.
            micro_batch: the student's side, with the segments of each teacher.
            judgments: what the teachers say of it; at least one says something.
            weights: of answer rows and segments, for each teacher.

        Returns:
            As ``Objective``.
        """
        if self.combine == "difference":
            judgments = {0: self._difference(micro_batch, judgments)}
        loss, parts = hidden.new_zeros((), dtype=torch.float32), {"token_nats": hidden.new_zeros(len(hidden))}
        first = True
        for number, said in judgments.items():
            teacher, own = self.teachers[number], self._weighed(number, weights[number], first=first)
            pairs = micro_batch.pairs[number]
            own = replace(own, answers=pairs.of(own.answers))
            more, found = teacher.objective(pairs.of(hidden), head, micro_batch.judged_by(number), said, own)
            loss = more if first else loss + more
            nats = found.pop("token_nats")
            found["teacher_entropy"] = self._share_of_entropy(number, found["teacher_entropy"])
            if pairs.answers is not None:
                parts["token_nats"] = parts["token_nats"].to(nats.dtype).index_copy(0, pairs.answers, nats)
            elif first:
                parts["token_nats"] = nats
            # The student itself is looked at once, wherever it is.
            new = {name: value for name, value in found.items() if first or self._is_apart or name not in OF_STUDENT}
            parts |= {name: parts[name] + value if name in parts else value for name, value in new.items()}
            if self.names_by_teacher:
                values = {name: value for name, value in found.items() if name in self.names_of_parts}
                parts |= {f"{teacher.name}/{name}": value / teacher.weight for name, value in values.items()}
            first = False
        return loss, parts

    @property
    def _is_apart(self) -> bool:
        """Whether each row is judged by one teacher, so that passes for several have no row in common."""
        return self.combine == "route"

    def _weighed(self, number: int, weights: RowWeights, *, first: bool) -> RowWeights:
        """Weigh the rows of one teacher's pass: segments by its weight, cross-entropy where no pass has had it yet."""
        weight = self.teachers[number].weight
        if weight != 1.0 and self.combine != "difference":
            weights = replace(weights, segments=weights.segments * weight)
        if first or self._is_apart:
            return weights
        return replace(weights, answers=torch.zeros_like(weights.answers))

    def _share_of_entropy(self, number: int, weighed: Tensor) -> Tensor:
        """Make a teacher's entropy, weighed as its segments are, its part of a mean over the teachers."""
        weight, share = self.teachers[number].weight, self.shares[number]
        return weighed if self.combine == "difference" or weight == share else weighed * (share / weight)

    def _difference(self, micro_batch: MicroBatch, judgments: Judgments) -> TeacherSegments:
        """Put the difference of two teachers in the place of the strong one's log-probabilities."""
        strong, weak = self.teachers
        example = micro_batch.pairs[0].example
        log_probs = judgments[0].log_probs * strong.weight, judgments[1].log_probs * weak.weight
        return replace(judgments[0], log_probs=centered_difference(*log_probs, example))

    @property
    def settings(self) -> ObjectiveSettings:
        """The recipe's objective, which is the same for all teachers."""
        return self.teachers[0].objective.settings

    @property
    def optional_parts(self) -> list[str]:
        """Names of the parts of the loss that not every run has."""
        return self.teachers[0].objective.optional_parts + self.names_by_teacher

    @property
    def names_of_parts(self) -> list[str]:
        """Names of the parts that are told of each of several teachers."""
        return ["uld", *self.teachers[0].objective.optional_parts]

    @property
    def names_by_teacher(self) -> list[str]:
        """Names of all parts that are told of each of several teachers, with the teachers' names before them."""
        if len(self.teachers) == 1 or self.combine == "difference":
            return []
        return [f"{teacher.name}/{name}" for teacher in self.teachers for name in self.names_of_parts]


def _judged(micro_batch: MicroBatch, number: int) -> list[int]:
    places = micro_batch.pairs[number].places(len(micro_batch.examples))
    return [micro_batch.examples[place] for place in places]
