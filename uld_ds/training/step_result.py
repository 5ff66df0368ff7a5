"""What one optimizer step did: the engine fills it in, a run's metrics are made of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, over all ranks."""

    loss: float
    ce: float
    """Cross-entropy, nats per answer token (per sample with ``normalize: sample``)."""
    uld: float
    """ULD distance per segment, 0 to 2."""
    uld_head: float
    """Share of ``uld`` that lies among the largest probabilities, 0 to 1."""
    uld_bound: float
    """``uld`` is at most this far from the exact distance; NaN where that is not computed."""
    options: dict[str, float]
    """By name, what only some objectives have: the divergence of likelihood matching and of each term that looks at
    identities, nats per segment; ``uld_gate``, the share of segments that passed it."""
    scheduled: dict[str, float]
    """The weights that follow a schedule, by their terms' names: those of this step."""
    teacher_entropy: float
    """Nats, mean over segments."""
    student_entropy: float
    """Nats, mean over a sample of answer tokens."""
    bits_per_byte: float
    """Of the step's own training answers, before the update."""
    learning_rate: float
    """The one this step used."""
    gradient_norm: float
    """Before clipping."""
    teacher_tokens: int
    """Tokens in all forwards of the teacher, without padding."""
    student_tokens: int
    student_padding: float
    """Share of the positions in the student's forwards that hold no token, 0 to 1."""
    teacher_bytes: int
    """Of the teacher's weights, received by all ranks together from others."""
    seconds: dict[str, float]
    """Per phase: ``data`` (to the device), ``teacher``, ``reduce`` (counts and sums over ranks, and waiting for them),
    ``student`` (forward), ``loss``, ``backward``, ``step`` (the optimizer). No second is in two of them."""
    skipped: bool = False
    """Something was not finite, on whichever rank: no rank has changed its weights or its optimizer's state."""
    suspects: tuple[int, ...] = ()
    """Of a skipped step: the examples of all ranks that it came from; where that cannot be told, all of the step."""
    reason: str = ""
    """Of a skipped step: what was not finite."""

    def metrics(self) -> dict[str, float]:
        """What is logged of every step, by the names that a run's history has."""
        return {
            "train/loss": self.loss,
            "train/ce": self.ce,
            "train/uld": self.uld,
            "train/uld_head_share": self.uld_head,
            "train/uld_error_bound": self.uld_bound,
            **{f"train/{name}": value for name, value in self.options.items()},
            **{f"train/weight_{name}": value for name, value in self.scheduled.items()},
            "train/teacher_entropy": self.teacher_entropy,
            "train/student_entropy": self.student_entropy,
            "train/bits_per_byte": self.bits_per_byte,
            "train/learning_rate": self.learning_rate,
            "train/gradient_norm": self.gradient_norm,
            "student_tokens": float(self.student_tokens),
            "student_padding": self.student_padding,
            "teacher_tokens": float(self.teacher_tokens),
            "teacher_bytes_gathered": float(self.teacher_bytes),
        }
