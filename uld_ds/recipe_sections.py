"""The sections of a recipe: every key that exists is a field here, with its meaning, or in recipe_models.py (teacher,
student, store) or recipe_objective.py.

Models are strict: an unknown key, or a value of another type, is an error.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from uld_ds.tasks.registry import get_task

DType = Literal["fp32", "bf16"]
Beta = Annotated[float, Field(ge=0, lt=1)]


class Strict(BaseModel):
    """Unknown keys and implicit conversions (``"3"`` for 3) are errors; a recipe never changes once loaded."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class RunSettings(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)]
    """Names the run's folder; running the same name again resumes it."""
    storage: str = "runs"
    """Folder that holds runs. Every node must see it under the same path."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Fixes data order, initial weights and dropout."""


class FilesSource(Strict):
    source: Literal["files"]
    path: str | list[str]
    """One or more .json, .jsonl, .parquet or .arrow files (glob patterns allowed)."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many rows."""


class HubSource(Strict):
    source: Literal["hub"]
    dataset: str
    """Hugging Face dataset id or a local dataset directory."""
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many rows."""


class GeneratorSource(Strict):
    source: Literal["generator"]
    function: Annotated[str, Field(pattern=r"^[\w.]+:[\w.]+$")]
    """``module:function``; called with ``arguments``, yields one mapping per example."""
    arguments: dict[str, Any] = {}
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use the first so many rows."""


DataSource = Annotated[FilesSource | HubSource | GeneratorSource, Field(discriminator="source")]


class ColumnSettings(Strict):
    prompt: str = "prompt"
    answer: str = "answer"
    messages: str | None = None
    """A column of chat messages (role, content); their assistant turns are answers. Replaces prompt, answer."""


class DataSettings(Strict):
    train: DataSource
    eval: DataSource | None = None
    """Held-out examples for bits per byte. Must not overlap the training examples."""
    task: str | None = None
    """How rows become prompts and answers: squad, qed, fairytaleqa, pubmedqa, dialogsum (few-shot for the teacher),
    prompt_answer, messages. Default: as ``columns`` say."""
    shots: Annotated[int, Field(ge=0)] | None = None
    """Examples that the task shows the teacher. Default: all that it has."""
    columns: ColumnSettings = ColumnSettings()
    turns: Literal["all", "last"] = "all"
    """Which assistant turns of a conversation are answers. Where a side has a text template: the last alone."""
    workers: Annotated[int, Field(ge=1)] | None = None
    """Processes that prepare examples. Default: as many as there are cores, where there is work for them."""
    on_bad_example: Literal["error", "skip"] = "error"
    """What an unusable example (not JSON, no answer, nothing that fits into max_length) does: stop the run before it
    begins, or be left out, counted by reason and listed in ``bad_examples.json``."""

    @model_validator(mode="after")
    def _task_is_known(self) -> DataSettings:
        task = None if self.task is None else get_task(self.task)
        if self.shots is not None and (task is None or task.reads_columns_of_recipe):
            raise ValueError("data.shots needs a data.task that has examples to show, e.g. squad")
        if task is not None and not task.reads_columns_of_recipe and self.columns != ColumnSettings():
            raise ValueError(f"data.columns has no effect with data.task {self.task!r}, which knows its own")
        if self.task == "prompt_answer" and self.columns.messages is not None:
            raise ValueError("data.columns.messages has no effect with data.task 'prompt_answer': take 'messages'")
        return self


class OptimizerSettings(Strict):
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Applies to matrices, not to biases and norms."""
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False)
    """Adam's decay rates of the first and second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8


class ScheduleSettings(Strict):
    kind: Literal["one_cycle", "cosine", "linear", "constant"] = "one_cycle"
    """Shape after warm-up. ``one_cycle`` also warms up along a cosine."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of all steps."""
    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate at the end, as a share of the peak."""


class TrainingSettings(Strict):
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training data; set this or ``steps``."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; set this or ``epochs``."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Examples per optimizer step over all workers."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 1
    """Examples per student forward on one worker. Accumulation follows from the other two."""
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0
    """Largest gradient norm; 0 turns clipping off."""
    max_skipped_steps: Annotated[int, Field(ge=1)] = 10
    """A step whose loss or gradient is not finite on any rank is skipped; after so many in a row the run stops."""
    loss_spike: Annotated[float, Field(ge=0)] = 8.0
    """Warn of a loss so many robust standard deviations above the median of the last 64; 0: never."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 100
    """Steps between checkpoints; the last step always makes one."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 2
    """How many of the latest stay on disk."""

    @model_validator(mode="after")
    def _one_length(self) -> TrainingSettings:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("exactly one of training.epochs and training.steps must be set")
        return self


class EvaluationSettings(Strict):
    every: Annotated[int, Field(ge=1)] | None = None
    """Steps between held-out evaluations; always before the first and after the last step."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 8
    """Held-out examples per forward on one worker."""
    sample_tokens: Annotated[int, Field(ge=0)] = 48
    """Length of the sample answer shown at the end; 0 for none."""
    metrics: list[str] | None = None
    """What ``uld-ds evaluate`` scores answers by, e.g. ``[f1, em, rouge]``. Default: what the task says."""
    suites: list[Annotated[str, Field(min_length=1)]] = []
    """Standard suites that ``uld-ds evaluate`` runs besides, through lm-evaluation-harness (``pip install
    'uld-ds[harness]'``): names like ``hellaswag``, or a task's YAML file."""
    suite_rows: Annotated[int, Field(ge=1)] | None = None
    """Rows of each suite, for a quick look. Default: all."""


class GenerationSettings(Strict):
    """How a model answers prompts: the teacher's in ``uld-ds generate``, any in ``uld-ds evaluate`` (greedily)."""

    prompts: DataSource | None = None
    """Rows that ``uld-ds generate`` asks about. Default: ``data.train``."""
    output: str | None = None
    """Folder for ``train.parquet`` and ``held_out.parquet``. Default: ``answers`` in the run's folder."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """``vllm`` needs ``pip install 'uld-ds[vllm]'``, and GPUs or a build of vLLM for CPUs."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Longest answer in tokens. Default: the task's."""
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    """An answer ends before the first of these texts. Default: the task's."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0 takes the likeliest token each time."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the smallest set of tokens with so much probability."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from the so many likeliest tokens; 0 from all."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Prompts of similar length that are answered together by one worker."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of prompts kept for evaluation, chosen by a hash of the prompt: the same whatever else changes."""
    drop: list[Literal["empty", "truncated"]] = ["empty", "truncated"]
    """Answers that are counted and left out: those that say nothing, those that were cut off."""


class ClusterSettings(Strict):
    workers: Annotated[int, Field(ge=1)] = 1
    """Data-parallel ranks; teacher and student are sharded across all of them."""
    accelerator: Literal["auto", "gpu", "cpu"] = "auto"
    """One GPU per worker, or none. ``auto``: GPUs when the cluster has one for each worker."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    threads_per_worker: Annotated[int, Field(ge=1)] = 1
    """Torch threads. More than there are free cores makes everything slower."""
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray places the workers: on few nodes or many; strictly on one node, or on a node each."""
    accelerator_type: str | None = None
    """Only on nodes with this kind of accelerator, as Ray names it, e.g. ``H100``."""
    resources_per_worker: dict[str, Annotated[float, Field(gt=0)]] = {}
    """More of Ray's resources for each worker: ``memory`` in bytes, or a cluster's own, e.g. ``{fast_disk: 1}``."""
    labels: dict[str, str] = {}
    """Only on nodes with these Ray labels, e.g. ``{pool: training}``; also ``"!x"``, ``"in(x, y)"``."""
    wait_seconds: Annotated[float, Field(ge=0)] = 0
    """How long to wait for nodes that are still to come (autoscaling), or longer than a minute for busy ones."""
    grace_seconds: Annotated[float, Field(ge=0)] = 120
    """How long a run that SIGTERM tells to stop may take for the step it is in and a last checkpoint."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Restarts from the last checkpoint before the run counts as failed; -1 without end."""
    hang_seconds: Annotated[float, Field(ge=1)] = 300
    """A worker that answers nothing for so long (stopped, swapped out, its node frozen) counts as one that failed."""
    dashboard_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Serve Ray's dashboard here when this command starts Ray itself."""

    @model_validator(mode="after")
    def _resources_have_one_name(self) -> ClusterSettings:
        for name, key in {"CPU": "cpus_per_worker", "GPU": "accelerator"}.items():
            if name in self.resources_per_worker:
                raise ValueError(f"cluster.resources_per_worker.{name} is set by cluster.{key}")
        return self


class TrackingSettings(Strict):
    uri: str | None = None
    """MLflow tracking URI. Default: MLFLOW_TRACKING_URI, else sqlite in ``run.storage``."""
    experiment: str = "uld-ds"
    patience: Annotated[float, Field(ge=0)] = 600.0
    """Seconds that a trained student waits for a server that does not answer, before the command gives up."""
    system_metrics: bool = True
    """Record what every node's processors, memory, disk and network do."""
    system_metrics_every: Annotated[float, Field(gt=0)] = 10.0
    """Seconds between two samples."""


class ProfileSettings(Strict):
    steps: list[Annotated[int, Field(ge=1)]] = []
    """Optimizer steps that PyTorch's profiler records on the first worker, into ``profile`` in the run's folder."""


class RegistrySettings(Strict):
    model_name: Annotated[str, Field(pattern=r"^[^/:'\"]+$")] | None = None
    """Registered model's name; leave it out to export without registering."""
    alias: Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")] = "candidate"
    """Alias moved to the new version."""

    @model_validator(mode="after")
    def _alias_is_free(self) -> RegistrySettings:
        if self.alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", self.alias):
            raise ValueError(f"registry.alias {self.alias!r} is MLflow's own name for a version")
        return self
