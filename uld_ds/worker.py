"""What runs on each Ray worker: wires the parts together in the order data takes, and nothing else."""

from __future__ import annotations

import gc
import logging
import resource
import time
from typing import Any

import numpy as np
import ray.train
import torch
from datasets import Dataset, disable_progress_bars
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.utils import logging as transformers_logging

from uld_ds import checkpoint, tracking
from uld_ds.checkpoint import TrainState
from uld_ds.data.order import deal, num_run_examples, num_steps, step_examples
from uld_ds.data.teacher_batches import TeacherBatcher
from uld_ds.data.windows import Batcher, MicroBatch
from uld_ds.distributed import Ranks, device_for
from uld_ds.engine import DistillationEngine, StepResult
from uld_ds.evaluation.bits_per_byte import bits_per_byte, of_student, of_teacher
from uld_ds.export import export_student
from uld_ds.finish import finish
from uld_ds.job import Job
from uld_ds.loading import init_process_group, load_student, load_teacher
from uld_ds.models import load_tokenizer
from uld_ds.objective import Objective
from uld_ds.report.progress import ProgressWriter
from uld_ds.teachers.online import OnlineTeacher

log = logging.getLogger(__name__)


def train_worker(config: dict[str, Any]) -> None:
    """Entry point of every rank; ``config`` is ``Job.to_config()``."""
    job = Job.from_config(config)
    Worker(job).run()


class Worker:
    """One rank of a training run."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.recipe = job.recipe
        context = ray.train.get_context()
        _configure_process(job, context.get_world_rank())
        self.device = device_for(context.get_local_rank(), on_gpu=job.on_gpu)
        init_process_group(on_gpu=job.on_gpu)
        self.ranks = Ranks.current()
        self.client = tracking.open_client(job.tracking_uri) if self.ranks.is_first else None
        self.progress = ProgressWriter(job.progress_file) if self.ranks.is_first else None

        self.student_tokenizer = load_tokenizer(job.student, self.recipe.student.revision, "student.model")
        teacher_tokenizer = load_tokenizer(job.teacher, self.recipe.teacher.revision, "teacher.model")
        self.teacher_padding = _padding(teacher_tokenizer)
        self.train_rows = job.split("train").rows
        self.eval_rows = job.split("eval").rows if self.recipe.data.eval else None
        self.train_data = self._batcher(self.train_rows)
        self.eval_data = None if self.eval_rows is None else self._batcher(self.eval_rows)
        training = self.recipe.training
        self.total_steps = num_steps(
            len(self.train_data), training.batch_size, epochs=training.epochs, steps=training.steps
        )
        self.engine = self._load_engine()

    def run(self) -> None:
        """Trains from where the last checkpoint left off, then exports and registers the student."""
        restored = checkpoint.restore(self.engine.student)
        state = restored or TrainState()
        if restored is None:
            self._log_data()
            state.bits_teacher = self._evaluate(state, "teacher")
            state.bits_before = self._evaluate(state, "before")
        while state.step < self.total_steps:
            self._train_step(state)
            if state.step % self.recipe.training.checkpoint_every == 0 or state.step == self.total_steps:
                self._stage("writing a checkpoint")
                checkpoint.save(self.engine.student, state, self.job.run_dir, {"loss": state.final_loss})
            every = self.recipe.evaluation.every
            if every and state.step % every == 0 and state.step < self.total_steps:
                self._evaluate(state, "student")
        bits_after = self._evaluate(state, "after")
        self._finish(state, bits_after)

    def _load_engine(self) -> DistillationEngine:
        # Teacher first: its sharding must not see the student's configuration.
        self._stage("loading the teacher")
        teacher = OnlineTeacher(
            load_teacher(self.job, self.device),
            self._teacher_batcher(self.train_rows),
            ranks=self.ranks,
            device=self.device,
            temperature=self.recipe.objective.teacher_temperature,
        )
        self._stage("loading the student")
        student = load_student(self.job, self.device, self.total_steps)
        return DistillationEngine(
            student, teacher, Objective(self.recipe.objective), ranks=self.ranks, device=self.device
        )

    def _batcher(self, rows: Dataset) -> Batcher:
        return Batcher(rows, padding=_padding(self.student_tokenizer), merge=self.recipe.objective.merge)

    def _teacher_batcher(self, rows: Dataset) -> TeacherBatcher:
        budget = self.recipe.teacher.max_tokens_per_forward
        return TeacherBatcher(rows, padding=self.teacher_padding, max_tokens=budget)

    def _train_step(self, state: TrainState) -> None:
        begin = time.perf_counter()
        # Dropout depends on the step, not on how often the run was restarted.
        set_seed(step_seed(self.recipe.run.seed, state.step, self.ranks.rank))
        window = self._window(state.step)
        data_seconds = time.perf_counter() - begin
        result = self.engine.train_step(window)
        seconds = time.perf_counter() - begin
        state.step += 1
        state.final_loss = result.loss
        state.tokens += result.student_tokens + result.teacher_tokens
        state.train_seconds += seconds
        self._log_step(state, result, {"data": data_seconds, **result.seconds}, seconds)

    def _window(self, step: int) -> list[MicroBatch]:
        training = self.recipe.training
        total = None if training.epochs is None else num_run_examples(len(self.train_data), training.epochs)
        indices = step_examples(step, len(self.train_data), training.batch_size, self.recipe.run.seed, total=total)
        dealt = deal(
            indices,
            self.train_data.lengths,
            rank=self.ranks.rank,
            ranks=self.ranks.size,
            micro_batch_size=training.micro_batch_size,
        )
        return self.train_data.window(dealt)

    def _evaluate(self, state: TrainState, who: str) -> float | None:
        if self.eval_data is None or self.eval_rows is None:
            return None
        self._stage(f"measuring held-out bits per byte ({who})")
        if who == "teacher":
            log_probs = of_teacher(self.engine.teacher, self._teacher_batcher(self.eval_rows), self.device)
        else:
            log_probs = of_student(self.engine)
        bits = bits_per_byte(
            log_probs,
            self.eval_data,
            ranks=self.ranks,
            micro_batch_size=self.recipe.evaluation.micro_batch_size,
            device=self.device,
        )
        if self.client is not None and self.progress is not None:
            name = "eval/teacher_bits_per_byte" if who == "teacher" else "eval/bits_per_byte"
            tracking.log_metrics(self.client, self.job.run_id, state.step, {name: bits})
            self.progress.evaluation(state.step, who, bits)
        return bits

    def _log_data(self) -> None:
        if self.client is None:
            return
        facts = self.job.split("train").facts
        names = ["examples", "answer_bytes", "student_tokens", "teacher_tokens", "segments", "alignment_rate"]
        names += ["student_tokens_per_segment", "teacher_tokens_per_segment"]
        tracking.log_metrics(self.client, self.job.run_id, 0, {f"data/{name}": getattr(facts, name) for name in names})

    def _log_step(self, state: TrainState, result: StepResult, phases: dict[str, float], seconds: float) -> None:
        if self.client is None or self.progress is None:
            return
        metrics = {
            "train/loss": result.loss,
            "train/ce": result.ce,
            "train/uld": result.uld,
            "train/uld_head_share": result.uld_head,
            "train/uld_error_bound": result.uld_bound,
            "train/teacher_entropy": result.teacher_entropy,
            "train/student_entropy": result.student_entropy,
            "train/bits_per_byte": result.bits_per_byte,
            "train/learning_rate": result.learning_rate,
            "train/gradient_norm": result.gradient_norm,
            "tokens_per_second": (result.student_tokens + result.teacher_tokens) / seconds,
            "seconds/total": seconds,
            **{f"seconds/{phase}": value for phase, value in phases.items()},
            "peak_memory_bytes": float(peak_memory_bytes(self.device)),
        }
        tracking.log_metrics(self.client, self.job.run_id, state.step, metrics)
        self.progress.step(state.step, self.total_steps, metrics)

    def _finish(self, state: TrainState, bits_after: float | None) -> None:
        self._stage("exporting the student")
        export_student(self.engine.student, self.student_tokenizer, self.job.export_dir, self.ranks)
        peak = int(self.ranks.max(torch.tensor(peak_memory_bytes(self.device), device=self.device)))
        # Nothing needs the engines any more; the exported student must not stand in memory beside them.
        self.engine.student.destroy()
        del self.engine
        gc.collect()
        if self.client is not None and self.progress is not None:
            finish(self.job, self.client, self.progress, state, bits_after, peak)
        # A barrier: other ranks wait here while the first one registers.
        ray.train.report({"step": state.step, "loss": state.final_loss})

    def _stage(self, text: str) -> None:
        log.info("%s", text)
        if self.progress is not None:
            self.progress.stage(text)


def _configure_process(job: Job, rank: int) -> None:
    logs = job.run_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=logs / f"rank-{rank}.log",
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        force=True,
    )
    disable_progress_bars()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(job.recipe.cluster.threads_per_worker)


def _padding(tokenizer: PreTrainedTokenizerBase) -> int:
    # Padded positions are masked; any id that exists will do.
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def step_seed(seed: int, step: int, rank: int) -> int:
    """One 32-bit seed out of three numbers, well mixed."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held: on its GPU, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
