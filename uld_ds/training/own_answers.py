"""What teacher and student give to the student's own answers of an optimizer step, as tensors that nobody waits for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from uld_ds.batches import JudgedBatch, MicroBatch
from uld_ds.teacher_outputs import TeacherSegments


@dataclass(frozen=True)
class SegmentNats:
    """Nats of a micro-batch's examples on the answer tokens that are in a segment: those that both sides judge."""

    teacher: Tensor
    """[B] float64 negative log-probability of each example's segments under the teacher, at temperature 1."""
    student: Tensor
    """[B] float64 the same under the student."""

    @classmethod
    def of(cls, judged: JudgedBatch, teacher: TeacherSegments, token_nats: Tensor, num_examples: int) -> SegmentNats:
        """Sum the nats of each example.

        Args:
            judged: B examples with S segments.
            teacher: the teacher's outputs for the S segments.
            token_nats: [A] the student's nats of its answer tokens.
            num_examples: number B of examples.
        """
        segments, owner = judged.student_segments, judged.segment_example
        nothing = torch.zeros(num_examples, dtype=torch.float64, device=token_nats.device)
        of_tokens = token_nats[segments.members].double()
        return cls(
            teacher=nothing.index_add(0, owner, -teacher.log_probs.double()),
            student=nothing.index_add(0, owner[segments.member_segment], of_tokens),
        )

    @classmethod
    def mean(cls, nats: Sequence[SegmentNats], shares: Sequence[float]) -> SegmentNats:
        """Average the nats by several teachers, each with its share; those of the only one stay as they are.

        Args:
            nats: of the same B examples, by each teacher and by the student on that teacher's segments.
            shares: share of each; a teacher that judges none of an example's segments has nats of 0.
        """
        if len(nats) == 1:
            return nats[0]
        pairs = list(zip(nats, shares, strict=True))
        return cls(
            teacher=torch.stack([own.teacher * share for own, share in pairs]).sum(0),
            student=torch.stack([own.student * share for own, share in pairs]).sum(0),
        )


@dataclass(frozen=True)
class OwnAnswerSums:
    """Sums over the own answers of an optimizer step, of all ranks."""

    teacher_nats: float
    """Negative log-probability of the answers' segments, ends included, under the teacher."""
    student_nats: float
    """The same under the student, before the update."""
    bytes: int
    """UTF-8 bytes of the answers."""

    @classmethod
    def of(cls, sums: Mapping[str, float]) -> OwnAnswerSums | None:
        """Take the sums from a step's; None where it has no own answers."""
        if not sums.get("own_bytes"):
            return None
        return cls(sums["own_teacher_nats"], sums["own_student_nats"], int(sums["own_bytes"]))

    def metrics(self) -> dict[str, float]:
        """Collect the metrics that are logged of every step with own answers."""
        return {
            "rollouts/step_teacher_nats_per_byte": self.teacher_nats / self.bytes,
            "rollouts/step_student_nats_per_byte": self.student_nats / self.bytes,
        }


@dataclass
class Judged:
    """The teacher's nats of each own answer of this rank's step."""

    examples: list[int] = field(default_factory=list)
    """Index of each example in the data."""
    nats: list[Tensor] = field(default_factory=list)
    """Scalar float64 of each, on the device."""

    @property
    def teacher_nats(self) -> Tensor:
        """[n] float64 negative log-probability of each example's segments under the teacher, on the device."""
        return torch.stack(self.nats) if self.nats else torch.zeros(0, dtype=torch.float64)


class OwnAnswers:
    """The own answers of one rank's step, judged micro-batch by micro-batch.

    Args:
        window: the step's micro-batches, as data made them: on a device, to ask which are own answers waits for that.
    """

    def __init__(self, window: Sequence[MicroBatch]) -> None:
        self._places = iter([_own_places(micro_batch) for micro_batch in window])
        self.judged: Judged | None = None if all(micro_batch.own is None for micro_batch in window) else Judged()

    def add(
        self,
        micro_batch: MicroBatch,
        judgments: Mapping[int, TeacherSegments],
        token_nats: Tensor,
        shares: Sequence[float] = (1.0,),
    ) -> dict[str, Tensor]:
        """Judge the own answers of the window's next micro-batch.

        Args:
            micro_batch: that one, on the device.
            judgments: outputs of each teacher that judges some of its segments, by the teacher's number.
            token_nats: [A] the student's nats of its answer tokens.
            shares: share of each teacher in what is said of an answer; 1 of one that judges it alone.

        Returns:
            Scalars that add up over micro-batches and ranks to what ``OwnAnswerSums.of`` takes; none in runs without
            rollouts.
        """
        places = next(self._places)
        if micro_batch.own is None or self.judged is None:
            return {}
        number = len(micro_batch.examples)
        of_teachers = [
            SegmentNats.of(micro_batch.judged_by(teacher), said, micro_batch.pairs[teacher].of(token_nats), number)
            for teacher, said in judgments.items()
        ]
        nats = SegmentNats.mean(of_teachers, [shares[teacher] for teacher in judgments])
        own = micro_batch.weights_of(own=True)
        self.judged.examples += [micro_batch.examples[place] for place in places]
        # Indexed by numbers, each is a view: a list would be copied to the device, and waited for.
        self.judged.nats += [nats.teacher[place] for place in places]
        return {
            "own_teacher_nats": nats.teacher @ own.double(),
            "own_student_nats": nats.student @ own.double(),
            "own_bytes": micro_batch.answer_bytes @ own.to(torch.int64),
        }


def _own_places(micro_batch: MicroBatch) -> list[int]:
    """List the places among the B examples that hold own answers, but no stand-ins."""
    return [] if micro_batch.own is None else micro_batch.weights_of(own=True).nonzero().flatten().tolist()
