"""What a round of rollouts was like: facts known when it was sampled, and those known once it was trained on."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class RoundSummary:
    """Facts of a round's answers, known before the first of them is trained on."""

    round: int
    """Number of the round, from 0."""
    step: int
    """Optimizer steps done when its first answer is trained on."""
    answers: int
    """Answers that were sampled."""
    usable: int
    """Answers among them that are trained on."""
    left_out: dict[str, int]
    """Number of the others by reason, e.g. ``empty``."""
    ended: float
    """Share of the answers that the student ended itself, 0 to 1."""
    tokens: float
    """Mean length of the answers in the student's tokens."""
    bytes: float
    """Mean length of the usable answers in UTF-8 bytes."""
    distinct: float
    """Share of different answers among them, by their tokens, 0 to 1."""
    repeated: float
    """Share of an answer's 4-grams of tokens that have occurred in it before, 0 to 1; mean over answers."""
    student_nats_per_byte: float
    """Mean negative log-probability of the usable answers, ends included, under the student that sampled them; NaN
    where none is usable."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by phase, on the slowest rank: ``weights``, ``sampling``, ``alignment``, ``writing``, ``waiting``."""
    tokens_per_second: float = 0.0
    """Sampled tokens per second of sampling, over all ranks."""
    held_up: float | None = None
    """Seconds that training was held up by the round; where that was not measured, the sum of ``seconds``."""

    @property
    def was_sampled(self) -> bool:
        """Tell whether this attempt at the run has sampled answers of it, and not only read what is there."""
        return "sampling" in self.seconds

    @property
    def pause(self) -> float:
        """Seconds that training was held up by the round, measured or as the sum of its phases."""
        return sum(self.seconds.values()) if self.held_up is None else self.held_up

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class RoundJudgment:
    """Facts of a round that are known once all its answers were trained on."""

    round: int
    step: int
    """Optimizer steps done when its last answer was trained on."""
    teacher_nats_per_byte: float
    """Mean negative log-probability of the same answers, ends included, under the teacher."""
    student_nats_per_byte: float
    """As in ``RoundSummary``."""

    @property
    def kl_per_byte(self) -> float:
        """Estimate KL(student, teacher) in nats per byte: what learning from own answers lowers."""
        return self.teacher_nats_per_byte - self.student_nats_per_byte

    def to_json(self) -> dict[str, Any]:
        """Return the facts as plain values."""
        return asdict(self) | {"kl_per_byte": self.kl_per_byte}


@dataclass(frozen=True)
class ShownAnswer:
    """One answer of a round, for people to look at."""

    prompt: str
    """Everything the student read before it, as text."""
    answer: str
    """The sampled tokens as text, without what ended it."""
    ended: bool
    student_nats: float
    """Negative log-probability of all of it under the student that sampled it."""
    teacher_nats: float
    """The same under the teacher."""
    bytes: int

    def clipped(self, most: int) -> ShownAnswer:
        """Return the answer with at most so many characters of the prompt, its last ones, and of the text."""
        prompt = self.prompt if len(self.prompt) <= most else f"…{self.prompt[-most:]}"
        text = self.answer if len(self.answer) <= most else f"{self.answer[:most]}…"
        return replace(self, prompt=prompt, answer=text)

    def to_json(self) -> dict[str, Any]:
        """Return the answer as plain values."""
        return asdict(self)
