"""The sections of a recipe: every key that exists is a field here, with its meaning.

Models are strict: an unknown key, or a value of another type, is an error.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from uld_ds.errors import UserError
from uld_ds.remote_code import FULL_COMMIT
from uld_ds.tasks.registry import get_task

if TYPE_CHECKING:
    from uld_ds.spectrum_codec import Precision

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


class ModelSettings(Strict):
    model: Annotated[str, Field(min_length=1)]
    """A directory, a hub id, or ``package:NAME`` for the folder of an installed Python package."""
    gguf_file: str | None = None
    """A GGUF file inside ``model``: dequantised once into a safetensors cache."""
    revision: str | None = None
    """Branch, tag or commit of a hub id."""
    precision: DType = "bf16"
    """Type the weights are held and multiplied in."""
    deepspeed: str | None = None
    """DeepSpeed JSON: a path or a name from ds_configs/. Default: ZeRO-3 for the device at hand."""
    prompt_template: str = "chat"
    """``chat`` for the tokenizer's own chat template, or text with ``{prompt}`` in it."""
    system_prompt: str | None = None
    """Put before the conversation when it has no system message of its own."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Tokens per example. Longer ones are cut where both tokenizers have a boundary."""

    @model_validator(mode="after")
    def _template_has_a_place_for_the_prompt(self) -> ModelSettings:
        if self.prompt_template != "chat" and "{prompt}" not in self.prompt_template:
            raise ValueError(f"prompt_template {self.prompt_template!r} is neither 'chat' nor contains {{prompt}}")
        return self


class RemoteCodeSettings(Strict):
    """Python code that comes with a model and may be run, by every worker, as whoever started the run."""

    repository: Annotated[str, Field(pattern=r"^[\w.-]+/[\w.-]+$")]
    """The hub id that it lies in: the model's own, or one that the model's configuration names."""
    revision: str
    """The commit that you have read, as 40 hexadecimal digits: a branch or tag may be something else tomorrow."""

    @model_validator(mode="after")
    def _is_a_commit(self) -> RemoteCodeSettings:
        if not FULL_COMMIT.fullmatch(self.revision):
            raise ValueError(
                f"revision {self.revision!r} is no commit: write the 40 hexadecimal digits of the one you have read"
            )
        return self


class CodecSettings(Strict):
    """What the teacher's spectra cost in bytes: finer is larger. Defaults are those of the codec itself."""

    num_exact: Annotated[int, Field(ge=1, le=4096)] = 64
    """Largest probabilities stored one by one."""
    rank_ratio: Annotated[float, Field(ge=1.001, le=4)] = 1.12
    """The others are stored in blocks of ranks; end of a block over its beginning."""
    step: Annotated[float, Field(ge=1e-3, le=1)] = 1 / 64
    """Resolution in nats of the mass of a block that holds little."""
    even_mass: Annotated[float, Field(ge=1e-4, le=1)] = 1 / 900
    """Blocks with more than this mass are resolved to ``step * even_mass`` of probability."""
    dropped_mass: Annotated[float, Field(ge=0, le=0.1)] = 1e-5
    """So much of the far end of the tail may be left out."""
    mantissa_bits: Annotated[int, Field(ge=0, le=10)] = 5
    """Levels per octave of a spectrum that was read are two to this power: memory, not bytes."""

    def to_precision(self) -> Precision:
        """For the encoder.

        Raises:
            UserError: the steps are too fine for the codec.
        """
        # The codec needs PyTorch, which takes seconds to import; reading a recipe does not.
        from uld_ds.spectrum_codec import Precision

        try:
            return Precision(**self.model_dump())
        except ValueError as error:
            raise UserError("teacher.codec", str(error), "make step or even_mass larger") from error


class TeacherSettings(ModelSettings):
    model: Annotated[str, Field(min_length=1)] | None = None  # type: ignore[assignment]
    """A directory, a hub id, or ``package:NAME``. May be left out with ``source: stored``."""
    source: Literal["online", "stored"] = "online"
    """``online``: the teacher runs beside the student. ``stored``: what it said is read from ``path``."""
    path: str | None = None
    """Spectrum store, a folder or fsspec URL: where ``uld-ds store build`` writes and ``source: stored`` reads."""
    sharding: Literal["zero3", "none"] = "zero3"
    """``zero3``: spread over all workers. ``none``: whole on each of them, for a teacher that is small enough."""
    remember: bool = True
    """Keep what the online teacher said: later epochs and restarts read it instead of running the teacher."""
    codec: CodecSettings = CodecSettings()
    """Precision of what is kept, in memory of the run and in a store."""
    remote_code: RemoteCodeSettings | None = None
    """Run code that comes with ``model``, of this repository at this commit and no other. Default: none is run."""
    max_tokens_per_forward: Annotated[int, Field(ge=1)] = 4096
    """Bounds the memory of one teacher forward: the window runs in sub-batches of this many tokens per rank."""

    @model_validator(mode="after")
    def _says_where_it_is(self) -> TeacherSettings:
        if self.source == "online" and self.model is None:
            raise ValueError("teacher.model is missing: source 'online' needs it")
        if self.source == "stored" and self.path is None:
            raise ValueError("teacher.path is missing: source 'stored' needs the folder or URL of a spectrum store")
        if self.remote_code is not None and self.gguf_file is not None:
            raise ValueError("teacher.remote_code has no effect with teacher.gguf_file, which has no code")
        if self.sharding == "none" and self.deepspeed is not None:
            raise ValueError("teacher.deepspeed has no effect with teacher.sharding 'none'")
        return self


class StoreSettings(Strict):
    """What ``uld-ds store build`` keeps beside the spectra."""

    top_ids: Annotated[int, Field(ge=0, le=65535)] = 0
    """Of each distribution so many of the likeliest tokens, by their ids: for objectives that look at identities (64
    serves ``objective.top_ids`` up to 64). 4 to 6 bytes each before compression."""


class TrainedTokenizerSettings(Strict):
    train: Literal["unigram", "bpe"]
    """Kind of tokenizer to train on the training text."""
    vocab_size: Annotated[int, Field(ge=300)] = 4096
    """Entries, the 256 bytes and the special tokens included."""


class LoraSettings(Strict):
    """Low-rank adapters beside frozen weights (arXiv 2106.09685); merged into them at export."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Of each adapter: what is learnt of a matrix [m, n] is ``rank * (m + n)`` numbers."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """An adapter counts ``alpha / rank`` times."""
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Names of the linear layers that get one, e.g. ``[q_proj, v_proj]``; ``all-linear``: all but the output head."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    quantise: Literal["nf4"] | None = None
    """Hold the frozen linear layers in 4 bits (QLoRA, arXiv 2305.14314): ``pip install 'uld-ds[qlora]'``. For ZeRO
    stages up to 2, of which 2 is then the default."""


class StudentSettings(ModelSettings):
    model: Annotated[str, Field(min_length=1)] | None = None  # type: ignore[assignment]
    """Where the student starts from; leave it out when ``from_config`` makes a new one."""
    from_config: dict[str, Any] | None = None
    """A new student: ``model_type`` and that architecture's options, as in transformers' config.json."""
    tokenizer: str | TrainedTokenizerSettings | None = None
    """Default: the model's own. A directory, a hub id, or ``{train: unigram, vocab_size: 4096}``."""
    embeddings: Literal["keep", "random", "spelled"] = "keep"
    """Of ``model`` for another ``tokenizer``: ``keep`` its rows, by number; ``random`` new ones; or ``spelled``: each
    row the mean of those of the old tokens that spell the new one."""
    keep_layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Start from these layers of ``model`` alone, numbered from 0. Default: all of them."""
    freeze: list[Annotated[str, Field(min_length=1)]] = []
    """Parameters that stay as they are, by patterns of their names: ``[model.embed_tokens.*, model.layers.0.*]``."""
    lora: LoraSettings | None = None
    """Learn low-rank adapters instead of the model's own parameters; ``{}`` for the defaults."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    @property
    def quantise(self) -> Literal["nf4"] | None:
        """How frozen layers are held, where that is not ``precision``."""
        return None if self.lora is None else self.lora.quantise

    @model_validator(mode="after")
    def _shape_fits(self) -> StudentSettings:
        if self.keep_layers is not None:
            if self.from_config is not None:
                raise ValueError("student.keep_layers needs student.model: a new model has the layers it is given")
            if self.keep_layers != sorted(set(self.keep_layers)):
                raise ValueError(f"student.keep_layers {self.keep_layers} must name each layer once, in order")
        if self.embeddings != "keep" and (self.model is None or self.tokenizer is None):
            raise ValueError(
                f"student.embeddings {self.embeddings!r} needs student.model and another student.tokenizer"
            )
        if self.lora is not None and self.freeze:
            raise ValueError("student.freeze has no effect with student.lora, which freezes all but its adapters")
        return self

    @model_validator(mode="after")
    def _one_origin(self) -> StudentSettings:
        if (self.model is None) == (self.from_config is None):
            raise ValueError("exactly one of student.model and student.from_config must be set")
        if self.from_config is not None:
            if "model_type" not in self.from_config:
                raise ValueError("student.from_config needs model_type, e.g. llama")
            if self.tokenizer is None:
                raise ValueError("student.from_config makes a new model: set student.tokenizer as well")
            if self.gguf_file is not None:
                raise ValueError("student.gguf_file needs student.model, not student.from_config")
            longest = self.from_config.get("max_position_embeddings", self.max_length)
            if isinstance(longest, int) and longest < self.max_length:
                raise ValueError(
                    f"student.max_length {self.max_length} is more than "
                    f"student.from_config.max_position_embeddings {longest}"
                )
        return self


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
