"""The custom step over two engines: one teacher pass per window, then the student micro-batch by micro-batch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from uld_ds.batches import MicroBatch, SideBatch
from uld_ds.losses.normalization import RowWeights, nats_to_bits, step_weights
from uld_ds.models.row_model import Consume, Head, scores_of
from uld_ds.teachers.source import NonFiniteTeacherError
from uld_ds.training.nonfinite import Watch
from uld_ds.training.own_answers import OwnAnswers, OwnAnswerSums
from uld_ds.training.step_result import StepResult
from uld_ds.training.teaching import Judgments, Teachings
from uld_ds.utils.distributed import Ranks

T = TypeVar("T")


@dataclass
class _Sums:
    """Sums of one rank's step by name, which are added over ranks once, at its end."""

    own: OwnAnswers
    values: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        value = value.detach().double()
        self.values[name] = self.values[name] + value if name in self.values else value


class PhaseClock:
    """A clock of seconds per phase. On a GPU each phase ends with a synchronization, so that it counts its own work.

    Args:
        device: device of the models.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the body's seconds to those of a phase."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


class DistillationEngine:
    """The engine of optimizer steps of distillation, and of evaluation, on every rank alike.

    Args:
        student: DeepSpeed engine around a RowModel, with optimizer and scheduler.
        teachings: the teachers, each with its part of the loss.
        ranks: the process group.
        device: device of this rank, where batches go.
    """

    def __init__(
        self,
        student: Any,
        teachings: Teachings,
        *,
        ranks: Ranks,
        device: torch.device,
    ) -> None:
        self.student = student
        self.teachings = teachings
        self.ranks = ranks
        self.device = device
        self._gas = student.gradient_accumulation_steps()
        self._dropped = False
        self._measured_norm: float | None = None

    def train_step(self, window: Sequence[MicroBatch]) -> StepResult:
        """Run the teacher over the window once, then accumulate the student's gradient and update it. Collective.

        A step in which anything is not finite, on any rank, is skipped by all of them: weights and optimizer stay
        as they are, and so does the learning rate's schedule, which counts updates.

        Args:
            window: micro-batches of this rank, on any device; as many on every rank.
        """
        clock = PhaseClock(self.device)
        with clock.phase("data"):
            sums = _Sums(OwnAnswers(window))
            window = [micro_batch.to(self.device) for micro_batch in window]
        before, waited = self.teachings.counters, self.teachings.seconds_waited
        learning_rate = self.student.get_lr()[0]
        with clock.phase("teacher"):
            try:
                outputs = self.teachings.outputs(window, self.student.global_steps, self.device)
            except NonFiniteTeacherError as error:
                return self._without_teacher(error, learning_rate, clock)
        now = self.teachings.seconds_waited
        waited = None if waited is None or now is None else now - waited
        with clock.phase("reduce"):
            together = self.teachings.combine == "route"
            normalize = self.teachings.settings.normalize
            weights = step_weights(window, normalize, self.ranks.sum, together=together)
        watch = Watch()
        self.student.train()
        for name in self.teachings.names_by_teacher:
            sums.add(name, torch.zeros((), device=self.device))
        for number, (micro_batch, judgments, row_weights) in enumerate(zip(window, outputs, weights, strict=True), 1):
            # By DeepSpeed's own count every step would have as many micro-batches.
            self.student.set_gradient_accumulation_boundary(number == len(window))
            self._accumulate(micro_batch, judgments, row_weights, sums, clock, watch)
        tokens, gathered = (now - then for now, then in zip(self.teachings.counters, before, strict=True))
        sums.add("teacher_tokens", torch.tensor(tokens, device=self.device))
        sums.add("teacher_bytes", torch.tensor(gathered, device=self.device))
        return replace(self._result(sums, learning_rate, clock, watch), teacher_wait=waited)

    def _without_teacher(self, error: NonFiniteTeacherError, learning_rate: float, clock: PhaseClock) -> StepResult:
        # The student has not begun: for DeepSpeed, too, this was a step (the output cache counts them).
        self.student.global_steps += 1
        numbers: dict[str, Any] = dict.fromkeys(
            ("loss", "ce", "uld", "uld_head", "uld_bound", "teacher_entropy", "student_entropy", "bits_per_byte"),
            float("nan"),
        )
        return StepResult(
            **numbers,
            options={},
            learning_rate=learning_rate,
            gradient_norm=float("nan"),
            teacher_tokens=0,
            student_tokens=0,
            student_padding=float("nan"),
            teacher_bytes=0,
            seconds=clock.seconds,
            skipped=True,
            suspects=error.examples,
            reason="the teacher's logits are not finite",
        )

    def _accumulate(
        self,
        micro_batch: MicroBatch,
        judgments: Judgments,
        weights: Sequence[RowWeights],
        sums: _Sums,
        clock: PhaseClock,
        watch: Watch,
    ) -> None:
        batch, given = micro_batch.student, micro_batch.weights_of(own=False)
        seconds_of_loss = clock.seconds.get("loss", 0.0)

        def consume(hidden: Tensor, head: Head) -> Tensor:
            with clock.phase("loss"):
                watch.begin(micro_batch, hidden)
                loss, parts = self.teachings.loss(hidden, head, micro_batch, judgments, weights)
                in_text = batch.answer_in_text * given[batch.answer_example]
                nats = parts.pop("token_nats")
                watch.end(loss, nats)
                sums.add("nats", nats.double() @ in_text.double())
                of_own = sums.own.add(micro_batch, judgments, nats.detach(), self.teachings.shares)
                for name, value in {"loss": loss, **parts, **of_own}.items():
                    sums.add(name, value)
            return loss

        with clock.phase("student"):
            loss = self.student(batch, batch.answer_rows, consume)
        clock.seconds["student"] -= clock.seconds["loss"] - seconds_of_loss
        sums.add("student_tokens", batch.num_tokens())
        sums.add("student_positions", torch.tensor(self.student.module.num_positions(batch), device=self.device))
        sums.add("bytes", micro_batch.answer_bytes @ given.to(torch.int64))
        # DeepSpeed takes the mean over ranks and accumulated micro-batches; the weights are global already.
        scale: Tensor | int = self.ranks.size * self._gas
        updates = self.student.is_gradient_accumulation_boundary()
        if updates:
            with clock.phase("reduce"):
                scale = self._agreed(self.ranks.size * self._gas, watch)
        with clock.phase("backward"):
            self.student.backward(loss * scale)
        with clock.phase("step"):
            if not (updates and self._drop_non_finite()):
                self.student.step()

    def _agreed(self, scale: int, watch: Watch) -> Tensor:
        """Agree over all ranks on ``scale``, or on NaN when any rank's loss is not finite. Collective.

        A non-finite loss need not have a non-finite gradient, and may be on one rank alone. A gradient of NaN is what
        DeepSpeed looks for, over all ranks, before it updates anything: so it skips the step, on every rank, and
        clears what it has accumulated. Nothing here waits for the device.
        """
        bad = self.ranks.max(watch.bad_loss())
        return torch.where(bad > 0, float("nan"), float(scale))

    def _drop_non_finite(self) -> bool:
        """Skip a step that is not finite where DeepSpeed would take it; return whether it was skipped here.

        Without ZeRO and in fp32 it steps whatever the gradient is, which all ranks have whole, and alike, by now.
        """
        self._dropped = False
        if not hasattr(self.student.optimizer, "overflow"):
            gradients = [p.grad for p in self.student.module.parameters() if p.grad is not None]
            # In float64, where no square of a finite gradient is infinite. DeepSpeed 0.19 knows no norm of these.
            norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
            self._measured_norm = float(torch.linalg.vector_norm(torch.stack(norms)))
            self._dropped = not math.isfinite(self._measured_norm)
        if self._dropped:
            self.student.module.zero_grad(set_to_none=True)
            self.student.micro_steps += 1
            self.student.global_steps += 1
        return self._dropped

    def _gradient_norm(self) -> float:
        """Return the norm of the whole gradient before clipping, of the update just made."""
        norm = self._measured_norm if self._measured_norm is not None else self.student.get_global_grad_norm()
        # A configuration that leaves it out is refused.
        assert norm is not None
        return float(norm)

    def _blame(self, watch: Watch, loss: float) -> tuple[tuple[int, ...], str]:
        """Find the examples of all ranks that made a step non-finite, and say what was not finite. Collective."""
        by_loss = not math.isfinite(loss)
        found = self.ranks.union(watch.suspects(by_loss=by_loss)) or self.ranks.union(watch.examples())
        return tuple(found), f"the loss is {loss}" if by_loss else "the gradient is not finite"

    def _result(self, sums: _Sums, learning_rate: float, clock: PhaseClock, watch: Watch) -> StepResult:
        names = sorted(sums.values)
        with clock.phase("reduce"):
            total = self.ranks.sum(torch.stack([sums.values[name] for name in names])).tolist()
        whole = dict(zip(names, total, strict=True))
        skipped = self._dropped or not self.student.was_step_applied()
        suspects, reason = self._blame(watch, whole["loss"]) if skipped else ((), "")
        return StepResult(
            loss=whole["loss"],
            ce=whole["ce"],
            uld=whole["uld"],
            uld_head=whole["uld_head"] / max(whole["uld"], 1e-12),
            uld_bound=whole["uld_bound"],
            options={name: whole[name] for name in self.teachings.optional_parts},
            teacher_entropy=whole["teacher_entropy"],
            student_entropy=whole["student_entropy"] / max(whole["student_entropy_rows"], 1.0),
            bits_per_byte=nats_to_bits(whole["nats"]) / whole["bytes"] if whole["bytes"] else None,
            learning_rate=learning_rate,
            gradient_norm=math.inf if skipped else self._gradient_norm(),
            teacher_tokens=int(whole["teacher_tokens"]),
            student_tokens=int(whole["student_tokens"]),
            student_padding=1 - whole["student_tokens"] / whole["student_positions"],
            teacher_bytes=int(whole["teacher_bytes"]),
            seconds=clock.seconds,
            skipped=skipped,
            suspects=suspects,
            reason=reason,
            rollouts=OwnAnswerSums.of(whole),
            judged=sums.own.judged,
        )

    def close(self) -> None:
        """Free both models: memory, hooks and groups. Nothing else may be called afterwards."""
        self.student.destroy()
        del self.student, self.teachings

    def answer_scores(self, micro_batch: MicroBatch) -> Tensor:
        """Score a micro-batch's answer tokens by the student. No gradient. Collective.

        Returns:
            [A, 2] natural log-probability of each answer token, and of the student's top token at its position.
        """
        batch = micro_batch.student
        return self.apply_at(batch, batch.answer_rows, scores_of(batch.answer_ids))

    def apply_at(self, batch: SideBatch, rows: Tensor, consume: Consume[T]) -> T:
        """Apply ``consume`` to the student's hidden states at some positions. No gradient. Collective.

        Args:
            batch: the student's side of a micro-batch, on the device.
            rows: [R] positions in the batch, as its ``answer_rows`` are.
            consume: called with the hidden states, [R, H], and the output head.
        """
        self.student.eval()
        with torch.no_grad():
            return self.student(batch, rows, consume)
