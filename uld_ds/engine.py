"""The custom step over two engines: one teacher pass per window, then the student micro-batch by micro-batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from uld_ds.data.windows import MicroBatch
from uld_ds.distributed import Ranks
from uld_ds.language_model import Head, log_probs_of
from uld_ds.normalisation import RowWeights, step_weights
from uld_ds.objective import Objective
from uld_ds.teachers import TeacherSource
from uld_ds.teachers.tokens import TeacherSegments, TeacherTokens


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step did, over all ranks."""

    loss: float
    ce: float
    """Cross-entropy, nats per answer token (per sample with ``normalise: sample``)."""
    uld: float
    """ULD distance per segment, 0 to 2."""
    uld_head: float
    """Share of ``uld`` that lies among the largest probabilities, 0 to 1."""
    uld_bound: float
    """``uld`` is at most this far from the exact distance; NaN where that is not computed."""
    likelihood: float | None
    """Divergence of likelihood matching per segment; None where it has no weight."""
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
    teacher_bytes: int
    """Of the teacher's weights, received by all ranks together from others."""
    seconds: dict[str, float]
    """Per phase: ``data`` (to the device), ``teacher``, ``reduce`` (counts and sums over ranks, and waiting for them),
    ``student`` (forward), ``loss``, ``backward``, ``step`` (the optimizer). No second is in two of them."""


@dataclass
class _Sums:
    """Local sums of one step; added over ranks once, at its end."""

    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach().double()
        self.values[name] = self.values[name] + value if name in self.values else value


class PhaseClock:
    """Seconds per named phase. On a GPU each phase ends with a synchronisation, so that it counts its own work."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


class DistillationEngine:
    """One optimizer step of distillation, and evaluation, on every rank alike.

    Args:
        student: DeepSpeed engine around a RowModel, with optimizer and scheduler.
        teacher: where spectra come from.
        objective: the loss.
        ranks: the process group.
        device: where batches go.
    """

    def __init__(
        self,
        student: Any,
        teacher: TeacherSource,
        objective: Objective,
        *,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.student = student
        self.teacher = teacher
        self.objective = objective
        self.ranks = ranks
        self.device = device
        self._gas = student.gradient_accumulation_steps()

    def train_step(self, window: Sequence[MicroBatch]) -> StepResult:
        """Runs the teacher over the window once, then accumulates the student's gradient and updates it.

        Args:
            window: exactly ``accumulation`` micro-batches, on any device.

        Raises:
            ValueError: another number of micro-batches.
            FloatingPointError: the loss is not finite.
        """
        if len(window) != self._gas:
            raise ValueError(f"a window of {len(window)} micro-batches for {self._gas} accumulated ones")
        clock = PhaseClock(self.device)
        with clock.phase("data"):
            window = [micro_batch.to(self.device) for micro_batch in window]
        before = self.teacher.tokens_run, self.teacher.bytes_gathered
        learning_rate = self.student.get_lr()[0]
        with clock.phase("teacher"):
            said = self._said(window)
        with clock.phase("reduce"):
            weights = step_weights(window, self.objective.settings.normalise, self.ranks.sum)
        sums = _Sums()
        self.student.train()
        for micro_batch, teacher, row_weights in zip(window, said, weights, strict=True):
            self._accumulate(micro_batch, teacher, row_weights, sums, clock)
        tokens, gathered = self.teacher.tokens_run - before[0], self.teacher.bytes_gathered - before[1]
        sums.add("teacher_tokens", torch.tensor(tokens, device=self.device))
        sums.add("teacher_bytes", torch.tensor(gathered, device=self.device))
        return self._result(sums, learning_rate, clock)

    def _said(self, window: Sequence[MicroBatch]) -> list[TeacherSegments]:
        """What the teacher says of each micro-batch, one row per segment."""
        examples = [example for micro_batch in window for example in micro_batch.examples]
        answers = iter(self.teacher.answers(examples, self.student.global_steps))
        said = []
        for micro_batch in window:
            tokens = TeacherTokens.cat([next(answers) for _ in micro_batch.examples])
            said.append(tokens.to(self.device).segments(micro_batch.teacher_segments))
        return said

    def _accumulate(
        self, micro_batch: MicroBatch, teacher: TeacherSegments, weights: RowWeights, sums: _Sums, clock: PhaseClock
    ) -> None:
        batch = micro_batch.student
        seconds_of_loss = clock.seconds.get("loss", 0.0)

        def consume(hidden: Tensor, head: Head) -> Tensor:
            with clock.phase("loss"):
                loss, parts = self.objective(
                    hidden, head, batch, micro_batch.student_segments, teacher.spectrum, weights, teacher.log_probs
                )
                in_text = batch.answer_in_text * micro_batch.example_weight[batch.answer_example]
                sums.add("nats", parts.pop("token_nats").double() @ in_text.double())
                for name, value in {"loss": loss, **parts}.items():
                    sums.add(name, value)
            return loss

        with clock.phase("student"):
            loss = self.student(batch, batch.answer_rows, consume)
        clock.seconds["student"] -= clock.seconds["loss"] - seconds_of_loss
        sums.add("student_tokens", batch.attention_mask.sum())
        sums.add("bytes", micro_batch.answer_bytes @ micro_batch.example_weight.to(torch.int64))
        # DeepSpeed takes the mean over ranks and accumulated micro-batches; the weights are global already.
        with clock.phase("backward"):
            self.student.backward(loss * (self.ranks.size * self._gas))
        with clock.phase("step"):
            self.student.step()

    def _result(self, sums: _Sums, learning_rate: float, clock: PhaseClock) -> StepResult:
        names = sorted(sums.values)
        with clock.phase("reduce"):
            total = self.ranks.sum(torch.stack([sums.values[name] for name in names])).tolist()
        whole = dict(zip(names, total, strict=True))
        if not torch.isfinite(torch.tensor(whole["loss"])):
            raise FloatingPointError(
                f"the loss is {whole['loss']}: lower training.optimizer.learning_rate or check the data"
            )
        return StepResult(
            loss=whole["loss"],
            ce=whole["ce"],
            uld=whole["uld"],
            uld_head=whole["uld_head"] / max(whole["uld"], 1e-12),
            uld_bound=whole["uld_bound"],
            likelihood=whole.get("likelihood"),
            teacher_entropy=whole["teacher_entropy"],
            student_entropy=whole["student_entropy"] / max(whole["student_entropy_rows"], 1.0),
            bits_per_byte=bits(whole["nats"]) / whole["bytes"],
            learning_rate=learning_rate,
            gradient_norm=float(self.student.get_global_grad_norm() or 0.0),
            teacher_tokens=int(whole["teacher_tokens"]),
            student_tokens=int(whole["student_tokens"]),
            teacher_bytes=int(whole["teacher_bytes"]),
            seconds=clock.seconds,
        )

    def answer_log_probs(self, micro_batch: MicroBatch) -> Tensor:
        """[A] natural log-probability that the student gives each answer token. No gradient."""
        batch = micro_batch.student
        self.student.eval()
        with torch.no_grad():
            return self.student(batch, batch.answer_rows, log_probs_of(batch.answer_ids))


def bits(nats: float) -> float:
    """Nats as bits."""
    return nats / 0.6931471805599453
