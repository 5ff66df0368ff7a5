"""What runs on each Ray worker: wires the parts together in the order data takes, and nothing else."""

from __future__ import annotations

import gc
import logging
import resource
import time
from typing import Any

import numpy as np
import ray.train
import ray.util
import torch
from datasets import Dataset
from transformers import set_seed

from uld_ds.batches import MicroBatch
from uld_ds.checkpointing.export import export_student
from uld_ds.checkpointing.manager import Checkpoints
from uld_ds.checkpointing.state import TrainState
from uld_ds.data.batching import Batcher, padding_id
from uld_ds.data.sampling import deal, num_run_examples, num_steps, step_examples
from uld_ds.evaluation.bits_per_byte import bits_per_byte, of_student
from uld_ds.evaluation.calibration import Calibration
from uld_ds.losses.objective import Objective
from uld_ds.runs.job import Job
from uld_ds.runs.phases import with_other
from uld_ds.runs.progress import ProgressWriter
from uld_ds.runs.stop_file import StopFile
from uld_ds.tokenization.loading import load_tokenizer
from uld_ds.tracking.recorder import Recorder
from uld_ds.tracking.system_metrics import NodeMonitor
from uld_ds.training.engine import DistillationEngine
from uld_ds.training.engines import init_process_group, load_student
from uld_ds.training.loss_spikes import SpikeDetector
from uld_ds.training.profiling import StepProfiler
from uld_ds.training.skipped_steps import SkippedSteps
from uld_ds.training.step_result import StepResult
from uld_ds.utils.distributed import Ranks, device_for
from uld_ds.utils.files import write_whole
from uld_ds.workers.fatal_errors import giving_up, note_if_final
from uld_ds.workers.finish import finish
from uld_ds.workers.process import configure_process
from uld_ds.workers.report_snapshots import ReportKeeper, shown_rows
from uld_ds.workers.teacher_setup import TeacherSide

log = logging.getLogger(__name__)


def train_worker(config: dict[str, Any]) -> None:
    """Entry point of every rank; ``config`` is ``Job.to_config()``."""
    job = Job.from_config(config)
    if job.stopped_file.is_file():
        # The attempt before this one has found out that another one is no use.
        return
    with giving_up(job.stopped_file):
        Worker(job).run()


class Worker:
    """One rank of a training run."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.recipe = job.recipe
        context = ray.train.get_context()
        configure_process(job.folder.logs, context.get_world_rank(), self.recipe.cluster.threads_per_worker)
        self.device = device_for(context.get_local_rank(), on_gpu=job.on_gpu)
        log.info(
            "rank %d of %d on %s: %s",
            context.get_world_rank(),
            context.get_world_size(),
            ray.util.get_node_ip_address(),
            self.device,
        )
        init_process_group(on_gpu=job.on_gpu)
        self.ranks = Ranks.current()
        self.stop_file = StopFile(job.run_dir)
        self.recorder = Recorder(job) if self.ranks.is_first else None
        self.monitor: NodeMonitor | None = None
        if self.recipe.tracking.system_metrics and context.get_local_rank() == 0:
            self.monitor = NodeMonitor(
                job.journals,
                job.run_id,
                job.tracking_uri,
                node=f"node-{context.get_node_rank()}",
                every=self.recipe.tracking.system_metrics_every,
            )
            self.monitor.start()
        self.progress = ProgressWriter(job.progress_file) if self.ranks.is_first else None
        profiled = self.recipe.profile.steps if self.ranks.is_first else []
        self.profiler = StepProfiler(profiled, job.folder.profile, self.device)
        self.skipped: SkippedSteps | None = None
        self.checkpoints = Checkpoints(
            job.run_dir,
            self.ranks,
            on_written=self._checkpoint_written,
            on_failed=lambda error: note_if_final(job.stopped_file, error),
        )

        self.student_tokenizer = load_tokenizer(job.student, self.recipe.student.revision, "student.model")
        self.teacher = TeacherSide(job, ranks=self.ranks, device=self.device, stage=self._stage)
        self.train_rows = job.split("train").rows
        if self.ranks.is_first:
            self.skipped = SkippedSteps(job.skipped_file, self.train_rows)
        self.eval_rows = job.split("eval").rows if self.recipe.data.eval else None
        self.train_data = self._batcher(self.train_rows)
        self.eval_data = None if self.eval_rows is None else self._batcher(self.eval_rows)
        training = self.recipe.training
        self.total_steps = num_steps(
            len(self.train_data), training.batch_size, epochs=training.epochs, steps=training.steps
        )
        self.engine = self._load_engine()
        shown = self.train_data if self.eval_data is None else self.eval_data
        self.report = ReportKeeper(
            job, shown_rows(job), shown, self.student_tokenizer, ranks=self.ranks, device=self.device
        )
        self.calibrations: dict[str, dict[str, Any] | None] = {}

    def run(self) -> None:
        """Trains from where the last checkpoint left off, then exports and registers the student."""
        restored = self.checkpoints.restore(self.engine.student, self._warn)
        state = restored or TrainState()
        if self.progress is not None:
            self.progress.start(state.step, self.total_steps, self.ranks.size)
        if restored is None:
            self._log_data()
            self.report.beginning(self.teacher.tokenizer)
            state.bits_teacher = self._evaluate(state, "teacher")
            self.teacher.show(self.report, self.engine.teacher, shown_rows(self.job), self.calibrations.get("teacher"))
            state.bits_before = self._evaluate(state, "before")
            self.report.student("before", self.engine, self.calibrations.get("before"))
        saved = state.step
        while state.step < self.total_steps:
            if self.stop_file.is_agreed(self.ranks, self.device):
                return self._stop(state, saved)
            self._train_step(state)
            if state.skipped_in_a_row >= self.recipe.training.max_skipped_steps:
                return self._give_up(state)
            # Before the checkpoint: a run that resumes from it does not look back.
            every = self.recipe.evaluation.every
            bits = None
            if every and state.step % every == 0 and state.step < self.total_steps:
                bits = self._evaluate(state, "student")
            if state.step % self.recipe.training.checkpoint_every == 0 or state.step == self.total_steps:
                self._checkpoint(state, bits)
                saved = state.step
        bits_after = self._evaluate(state, "after")
        self.report.student("after", self.engine, self.calibrations.get("after"))
        self._finish(state, bits_after)

    def _stop(self, state: TrainState, saved: int) -> None:
        """Leaves with a checkpoint of this step; ``saved`` is the step of the last one."""
        self._stage(f"told to stop after step {state.step}")
        if state.step > saved:
            self._checkpoint(state)
        self.checkpoints.wait()
        if self.monitor is not None:
            self.monitor.finish()

    def _checkpoint(self, state: TrainState, bits: float | None = None) -> None:
        """Begins to write a checkpoint; ``bits`` are the held-out bits per byte of this very step, where known."""
        best = bits is not None and (state.best_bits is None or bits < state.best_bits)
        if best:
            state.best_bits, state.best_step = bits, state.step
        if self.recorder is not None:
            self.recorder.sync()
        begin = time.perf_counter()
        self.checkpoints.save(self.engine.student, state, {"loss": state.final_loss}, best=best)
        if self.recorder is not None:
            # How long training was held up; what is written meanwhile is no part of it.
            self.recorder.metrics(state.step, {"seconds/checkpoint": time.perf_counter() - begin})

    def _checkpoint_written(self, step: int, seconds: float) -> None:
        if self.progress is not None:
            self.progress.checkpoint(step, seconds)

    def _warn(self, text: str) -> None:
        log.warning("%s", text)
        if self.progress is not None:
            self.progress.warning(text)

    def _load_engine(self) -> DistillationEngine:
        # Teacher first: its sharding must not see the student's configuration.
        source = self.teacher.source(self.train_rows, begins=ray.train.get_checkpoint() is None)
        self._stage("loading the student")
        student = load_student(self.job, self.device, self.total_steps)
        relations = self.teacher.relations(self.student_tokenizer)
        objective = Objective.of(self.recipe.objective, relations, self.device, total_steps=self.total_steps)
        return DistillationEngine(student, source, objective, ranks=self.ranks, device=self.device)

    def _batcher(self, rows: Dataset) -> Batcher:
        return Batcher(rows, padding=padding_id(self.student_tokenizer), merge=self.recipe.objective.merge)

    def _train_step(self, state: TrainState) -> None:
        begin = time.perf_counter()
        # Dropout depends on the step, not on how often the run was restarted.
        set_seed(step_seed(self.recipe.run.seed, state.step, self.ranks.rank))
        window = self._window(state.step)
        data_seconds = time.perf_counter() - begin
        with self.profiler.step(state.step + 1):
            result = self.engine.train_step(window)
        seconds = time.perf_counter() - begin
        state.step += 1
        state.tokens += result.student_tokens + result.teacher_tokens
        state.train_seconds += seconds
        if result.skipped:
            self._note_skip(state, result)
            return
        state.skipped_in_a_row = 0
        state.final_loss = result.loss
        self._warn_of_spike(state, result.loss)
        phases = result.seconds | {"data": data_seconds + result.seconds.get("data", 0.0)}
        self._log_step(state, result, with_other(phases, seconds), seconds)

    def _note_skip(self, state: TrainState, result: StepResult) -> None:
        state.skipped += 1
        state.skipped_in_a_row += 1
        if self.recorder is None or self.progress is None or self.skipped is None:
            return
        line = self.skipped.add(state.step, result)
        log.warning("step %d was skipped: %s (%s)", state.step, result.reason, ", ".join(line["places"]))
        self.recorder.metrics(state.step, {"train/skipped_steps": float(state.skipped)})
        self.progress.skipped(state.step, self.total_steps, result.reason, line["places"])

    def _warn_of_spike(self, state: TrainState, loss: float) -> None:
        height = SpikeDetector(self.recipe.training.loss_spike, state.recent_losses).add(loss)
        if height is None or self.recorder is None:
            return
        text = f"step {state.step}: loss {loss:.4g} is {height:.1f} standard deviations above the recent median"
        self._warn(text)
        self.recorder.metrics(state.step, {"train/loss_spike": height})

    def _give_up(self, state: TrainState) -> None:
        """Ends this rank as all others end: a restart would meet the same numbers."""
        self.checkpoints.wait()
        if self.monitor is not None:
            self.monitor.finish()
        if self.recorder is not None:
            self.recorder.sync()
            text = (
                f"{state.skipped_in_a_row} steps in a row, up to step {state.step}, were skipped because loss or "
                f"gradient was not finite (see {self.job.skipped_file}; training.max_skipped_steps): lower "
                "training.optimizer.learning_rate or correct these examples. The last checkpoint is good: none of "
                "these steps has changed a weight"
            )
            write_whole(self.job.stopped_file, text)

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
        begin = time.perf_counter()
        if who == "teacher":
            scores = self.teacher.scores(self.engine.teacher, self.eval_rows)
            if scores is None:
                return None
        else:
            scores = of_student(self.engine)
        calibration = Calibration(self.device)
        bits = bits_per_byte(
            scores,
            self.eval_data,
            ranks=self.ranks,
            micro_batch_size=self.recipe.evaluation.micro_batch_size,
            device=self.device,
            calibration=calibration,
        )
        self.calibrations[who] = calibration.to_json(self.ranks)
        if self.recorder is not None and self.progress is not None:
            name = "eval/teacher_bits_per_byte" if who == "teacher" else "eval/bits_per_byte"
            seconds = {f"seconds/evaluation_{who}": time.perf_counter() - begin}
            self.recorder.metrics(state.step, {name: bits, **seconds})
            self.progress.evaluation(state.step, who, bits)
        return bits

    def _log_data(self) -> None:
        if self.recorder is None:
            return
        facts = self.job.split("train").facts
        names = ["examples", "answer_bytes", "student_tokens", "teacher_tokens", "segments", "alignment_rate"]
        names += ["student_tokens_per_segment", "teacher_tokens_per_segment"]
        self.recorder.metrics(0, {f"data/{name}": getattr(facts, name) for name in names})

    def _log_step(self, state: TrainState, result: StepResult, phases: dict[str, float], seconds: float) -> None:
        if self.recorder is None or self.progress is None:
            return
        metrics = {
            **result.metrics(),
            "tokens_per_second": (result.student_tokens + result.teacher_tokens) / seconds,
            "seconds/total": seconds,
            **{f"seconds/{phase}": value for phase, value in phases.items()},
            "peak_memory_bytes": float(peak_memory_bytes(self.device)),
        }
        self.recorder.metrics(state.step, metrics)
        self.progress.step(state.step, self.total_steps, metrics)

    def _finish(self, state: TrainState, bits_after: float | None) -> None:
        self.checkpoints.wait()
        # Before the export's barrier: then the first rank finds every node's last sample.
        if self.monitor is not None:
            self.monitor.finish()
        self._stage("exporting the student")
        export_student(self.engine.student, self.student_tokenizer, self.job.export_dir, self.ranks)
        peak = int(self.ranks.max(torch.tensor(peak_memory_bytes(self.device), device=self.device)))
        # Nothing needs the engines any more; the exported student must not stand in memory beside them.
        self.engine.student.destroy()
        del self.engine
        gc.collect()
        if self.recorder is not None and self.progress is not None:
            finish(self.job, self.recorder, self.progress, state, bits_after, peak)
        # A barrier: other ranks wait here while the first one registers.
        ray.train.report({"step": state.step, "loss": state.final_loss})

    def _stage(self, text: str) -> None:
        log.info("%s", text)
        if self.progress is not None:
            self.progress.stage(text)


def step_seed(seed: int, step: int, rank: int) -> int:
    """One 32-bit seed out of three numbers, well mixed."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory this process has held: on its GPU, or resident on the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
