"""The result of one optimizer step, which the engine fills in and a run's metrics are made of."""

from __future__ import annotations

from dataclasses import dataclass

from uld_ds.training.own_answers import Judged, OwnAnswerSums


@dataclass(frozen=True)
class StepResult:
    """The result of one optimizer step, over all ranks."""

    loss: float
    """Weighted sum of all terms of the objective."""
    ce: float
    """Cross-entropy, nats per answer token (per sample with ``normalize: sample``)."""
    uld: float
    """ULD distance per segment, 0 to 2."""
    uld_head: float
    """Share of ``uld`` that lies among the largest probabilities, 0 to 1."""
    uld_bound: float
    """Bound on the distance of ``uld`` from the exact one; NaN where that is not computed."""
    options: dict[str, float]
    """Values, by name, that only some objectives have.

    The divergence of likelihood matching and of each term that looks at identities, nats per segment."""
    teacher_entropy: float
    """Entropy of the teacher in nats, mean over segments."""
    student_entropy: float
    """Entropy of the student in nats, mean over a sample of answer tokens."""
    bits_per_byte: float | None
    """Bits per byte of the step's given answers, before the update; None where the student sampled all of them."""
    learning_rate: float
    """Learning rate that this step used."""
    gradient_norm: float
    """Norm of the gradient before clipping."""
    teacher_tokens: int
    """Tokens in all forwards of the teacher, without padding."""
    student_tokens: int
    """Tokens in all forwards of the student, without padding."""
    student_padding: float
    """Share of the positions in the student's forwards that hold no token, 0 to 1."""
    teacher_bytes: int
    """Bytes of the teacher's weights that all ranks together received from others."""
    seconds: dict[str, float]
    """Seconds per phase, on this rank; no second is in two of them.

    ``data`` (to the device), ``teacher``, ``reduce`` (counts and sums over ranks, and waiting for them), ``student``
    (forward), ``loss``, ``backward``, ``step`` (the optimizer)."""
    teacher_wait: float | None = None
    """Seconds of ``teacher`` that the step, on its slowest rank, waited for a server; None where all teachers are here.
    """
    skipped: bool = False
    """Whether something was not finite on any rank: then no rank has changed weights or optimizer state."""
    suspects: tuple[int, ...] = ()
    """Examples of all ranks that a skipped step's failure came from; where that cannot be told, all of the step."""
    reason: str = ""
    """Sentence that says what was not finite in a skipped step."""
    rollouts: OwnAnswerSums | None = None
    """What teacher and student gave to the student's own answers; None where there are none."""
    judged: Judged | None = None
    """The teacher's nats of each own answer of this rank; None in runs without rollouts."""

    def metrics(self) -> dict[str, float]:
        """Collect the metrics that are logged of every step, by the names that a run's history has."""
        return {
            "train/loss": self.loss,
            "train/ce": self.ce,
            "train/uld": self.uld,
            "train/uld_head_share": self.uld_head,
            "train/uld_error_bound": self.uld_bound,
            **{f"train/{name}": value for name, value in self.options.items()},
            "train/teacher_entropy": self.teacher_entropy,
            "train/student_entropy": self.student_entropy,
            **({} if self.bits_per_byte is None else {"train/bits_per_byte": self.bits_per_byte}),
            **({} if self.rollouts is None else self.rollouts.metrics()),
            **({} if self.teacher_wait is None else {"teacher_wait_seconds": self.teacher_wait}),
            "train/learning_rate": self.learning_rate,
            "train/gradient_norm": self.gradient_norm,
            "student_tokens": float(self.student_tokens),
            "student_padding": self.student_padding,
            "teacher_tokens": float(self.teacher_tokens),
            "teacher_bytes_gathered": float(self.teacher_bytes),
        }
