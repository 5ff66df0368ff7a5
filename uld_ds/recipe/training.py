"""The sections of a recipe about training, evaluation and generation of answers.

Models are strict: an unknown key, or a value of another type, is an error.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from uld_ds.recipe.base import Beta, Strict
from uld_ds.recipe.data import DataSource
from uld_ds.tasks.task import Words


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
    """Passes over the training data, with ``rollouts.share: 1`` over the prompts; set this or ``steps``."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; set this or ``epochs``."""
    batch_size: Annotated[int, Field(ge=1)] = 8
    """Examples per optimizer step over all workers."""
    micro_batch_size: Annotated[int, Field(ge=1)] = 1
    """Examples per student forward on one worker. Accumulation follows from the other two. With
    ``micro_batch_tokens`` the most examples, by default any number."""
    micro_batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens per student forward on one worker, at most, on either side: a step's examples are dealt to workers and
    micro-batches by their lengths, so that long ones take no more memory than short ones. A longer example is alone in
    one. Default: by number of examples."""
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

    @model_validator(mode="before")
    @classmethod
    def _tokens_alone_bound_a_micro_batch(cls, tree: Any) -> Any:
        if isinstance(tree, dict) and tree.get("micro_batch_tokens") is not None and "micro_batch_size" not in tree:
            default = cls.model_fields["batch_size"].default
            return {**tree, "micro_batch_size": tree.get("batch_size", default)}
        return tree

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
    words: Words | None = None
    """How F1, exact match, accuracy and ROUGE read answers: ``published``, English as the paper's scores do, or
    ``unicode``, any script. Default: what the task says."""
    suites: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
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
    """0 takes the most probable token each time."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the smallest set of tokens with so much probability."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from the top so many tokens; 0 from all."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Prompts of similar length that are answered together by one worker."""
    held_out: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of prompts kept for evaluation, chosen by a hash of the prompt: the same whatever else changes."""
    drop: list[Literal["empty", "truncated"]] = Field(default=["empty", "truncated"])
    """Answers that are counted and left out: those that say nothing, those that were cut off."""
