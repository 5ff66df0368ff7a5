"""A training run on a Ray worker: a trainer wired to Ray's context, checkpoints, MLflow and the run's folder."""

from __future__ import annotations

import gc
import logging
from typing import Any

import ray.train
import ray.util
import torch

from uld_ds.checkpointing.export import export_trained
from uld_ds.checkpointing.manager import Checkpoints
from uld_ds.checkpointing.state import TrainState
from uld_ds.data.sides import TextSide
from uld_ds.rollouts.engine import RolloutEngine
from uld_ds.runs.job import Job
from uld_ds.runs.progress import ProgressWriter
from uld_ds.runs.stop_file import StopFile
from uld_ds.tracking.recorder import Recorder
from uld_ds.tracking.system_metrics import NodeMonitor
from uld_ds.training.assembly import Assembly, assemble
from uld_ds.training.callbacks import TrainerCallback
from uld_ds.training.engines import init_process_group
from uld_ds.training.profiling import StepProfiler
from uld_ds.training.rollout_setup import MakeEngine
from uld_ds.training.skipped_steps import SkippedSteps
from uld_ds.training.trainer import Outcome, Trainer, TrainResult, peak_memory_bytes
from uld_ds.training.unknown_tail import UnknownTail
from uld_ds.utils.distributed import Ranks, device_for
from uld_ds.utils.files import write_whole
from uld_ds.workers.fatal_errors import note_if_final, noting_fatal_errors
from uld_ds.workers.finish import finish
from uld_ds.workers.process import configure_process
from uld_ds.workers.rollout_actors import vllm_actors
from uld_ds.workers.run_callback import RecordCallback, SnapshotCallback, StageCallback, StageLog

log = logging.getLogger(__name__)


def train_worker(config: dict[str, Any]) -> None:
    """Train on this rank; the entry point that Ray calls with ``Job.to_config()``."""
    job = Job.from_config(config)
    if job.stopped_file.is_file():
        # The attempt before this one has found out that another one is no use.
        return
    with noting_fatal_errors(job.stopped_file):
        Worker(job).run()


class Worker:
    """One rank of a training run.

    Args:
        job: the run.
    """

    def __init__(self, job: Job) -> None:
        self.job = job
        self.device = _join(job)
        self.ranks = Ranks.current()
        first = self.ranks.is_first
        self.recorder = Recorder(job) if first else None
        self.monitor = _node_monitor(job)
        self.progress = ProgressWriter(job.progress_file) if first else None
        self.stages = StageLog(self.progress)

    def run(self) -> None:
        """Train, resuming from the last checkpoint if there is one, then export and register the student."""
        checkpoints = Checkpoints(
            self.job.run_dir,
            self.ranks,
            on_written=self._checkpoint_written,
            on_failed=lambda error: note_if_final(self.job.stopped_file, error),
        )
        begins = ray.train.get_checkpoint() is None
        parts = assemble(
            self.job,
            ranks=self.ranks,
            device=self.device,
            begins=begins,
            stage=self.stages.stage,
            make_rollout_engine=self._rollout_engine(),
        )
        result = self._trainer(parts, checkpoints).run()
        if result.outcome is Outcome.FINISHED:
            checkpoints.wait()
            return self._finish(parts, result)
        if self.monitor is not None:
            self.monitor.finish()
        if result.outcome is Outcome.GAVE_UP:
            self._give_up(result.state)
        return None

    def _rollout_engine(self) -> MakeEngine | None:
        """Return what makes actors that sample rollouts; None where the workers sample, or nobody does."""
        job, rollouts = self.job, self.job.recipe.rollouts
        if rollouts is None or rollouts.engine != "vllm":
            return None

        def make(student: Any, side: TextSide) -> RolloutEngine:
            self.stages.stage(f"starting {rollouts.actors.count} rollout actor(s)")
            return vllm_actors(
                student,
                job.recipe,
                ends=side.end_ids,
                folder=job.folder.rollouts,
                logs=job.folder.logs,
                ranks=self.ranks,
                on_gpu=job.on_gpu,
            )

        return make

    def _trainer(self, parts: Assembly, checkpoints: Checkpoints) -> Trainer:
        recipe, first = self.job.recipe, self.ranks.is_first
        callbacks: list[TrainerCallback] = [StageCallback(self.stages)]
        if self.recorder is not None and self.progress is not None:
            skipped = SkippedSteps(self.job.skipped_file, parts.train_rows)
            callbacks.append(RecordCallback(self.job, self.recorder, self.progress, skipped, self.ranks.size))
            callbacks.append(UnknownTail(recipe, self.progress.warning))
        callbacks.append(SnapshotCallback(self.job, parts, self.ranks))
        stop_file = StopFile(self.job.run_dir)
        profiler = StepProfiler(recipe.profile.steps if first else [], self.job.folder.profile, self.device)
        return Trainer(
            parts.engine,
            parts.batches,
            recipe,
            rounds=parts.rounds,
            evaluators=parts.evaluators,
            checkpoints=checkpoints,
            callbacks=callbacks,
            should_stop=lambda: stop_file.is_agreed(self.ranks, self.device),
            profiled=profiler.step,
        )

    def _checkpoint_written(self, step: int, seconds: float) -> None:
        if self.progress is not None:
            self.progress.checkpoint(step, seconds)

    def _give_up(self, state: TrainState) -> None:
        """Write down why training gave up, on the first rank: a restart would meet the same numbers."""
        if self.recorder is not None:
            self.recorder.sync()
            text = (
                f"{state.skipped_in_a_row} steps in a row, up to step {state.step}, were skipped because loss or "
                f"gradient was not finite (see {self.job.skipped_file}; training.max_skipped_steps): lower "
                "training.optimizer.learning_rate or correct these examples. The last checkpoint is good: none of "
                "these steps has changed a weight"
            )
            write_whole(self.job.stopped_file, text)

    def _finish(self, parts: Assembly, result: TrainResult) -> None:
        # Before the export's barrier: then the first rank finds every node's last sample.
        if self.monitor is not None:
            self.monitor.finish()
        self.stages.stage("exporting the student")
        export_trained(parts.engine.student, parts.tokenizer, self.job.recipe.student, self.job.export_dir, self.ranks)
        peak = int(self.ranks.max(torch.tensor(peak_memory_bytes(self.device), device=self.device)))
        # Nothing needs the engines any more; the exported student must not stand in memory beside them.
        parts.engine.close()
        gc.collect()
        if self.recorder is not None and self.progress is not None:
            finish(self.job, self.recorder, self.progress, result.state, result.bits_after, peak)
        # A barrier: other ranks wait here while the first one registers.
        ray.train.report({"step": result.state.step, "loss": result.state.final_loss})


def _join(job: Job) -> torch.device:
    """Set up this process, join the process group, log where this rank is, and return its device."""
    context = ray.train.get_context()
    configure_process(job.folder.logs, context.get_world_rank(), job.recipe.cluster.threads_per_worker)
    device = device_for(context.get_local_rank(), on_gpu=job.on_gpu)
    rank, size = context.get_world_rank(), context.get_world_size()
    log.info("rank %d of %d on %s: %s", rank, size, ray.util.get_node_ip_address(), device)
    init_process_group(on_gpu=job.on_gpu)
    return device


def _node_monitor(job: Job) -> NodeMonitor | None:
    """Start to record this node's system metrics, on one rank of each node; None on the others."""
    context, tracking = ray.train.get_context(), job.recipe.tracking
    if not tracking.system_metrics or context.get_local_rank() != 0:
        return None
    monitor = NodeMonitor(
        job.journals,
        job.run_id,
        job.tracking_uri,
        node=f"node-{context.get_node_rank()}",
        every=tracking.system_metrics_every,
    )
    monitor.start()
    return monitor
