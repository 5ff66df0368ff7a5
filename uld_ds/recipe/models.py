"""The sections of a recipe about its models: teacher, student, and how a store keeps the teacher's outputs."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from uld_ds.errors import UserError
from uld_ds.recipe.base import DType, Strict, TeacherDType
from uld_ds.recipe.server import ServerSettings
from uld_ds.spectrum.precision import BOUNDS, Precision

FULL_COMMIT = re.compile(r"[0-9a-f]{40}")
NO_CODE: dict[str, Any] = {"trust_remote_code": False}


class ModelSettings(Strict):
    model: Annotated[str, Field(min_length=1)]
    """A directory, a hub id, or ``package:NAME`` for the folder of an installed Python package."""
    gguf_file: str | None = None
    """A GGUF file inside ``model``: dequantized once into a safetensors cache."""
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
    template_arguments: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template, e.g. ``{enable_thinking: true}``; those of a row count more."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Tokens per example. Longer ones are cut where both tokenizers have a boundary."""
    packing: bool = True
    """Lay examples of a forward end to end, so that nothing is computed for padding, where the architecture's logits
    stay the same: that is measured when the model is loaded. ``false``: pad them to the longest."""

    @model_validator(mode="after")
    def _template_has_a_place_for_the_prompt(self) -> ModelSettings:
        if self.prompt_template != "chat" and "{prompt}" not in self.prompt_template:
            raise ValueError(f"prompt_template {self.prompt_template!r} is neither 'chat' nor contains {{prompt}}")
        if self.prompt_template != "chat" and self.template_arguments:
            raise ValueError("template_arguments has no effect with a text prompt_template: it is for chat templates")
        for name in self.template_arguments:
            if not name.isidentifier():  # YAML takes {a:b}, without a space, for a key that is called so
                raise ValueError(f"template_arguments: {name!r} is no name of a variable: write {{name: value}}")
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


def _within_bounds(name: str) -> Any:
    """Make the field's constraint from the bounds that the codec itself sets for a setting."""
    least, most = BOUNDS[name]
    return Field(ge=least, le=most)


class CodecSettings(Strict):
    """What the teacher's spectra cost in bytes: finer is larger. Defaults are those of the codec itself."""

    num_exact: Annotated[int, _within_bounds("num_exact")] = Precision.num_exact
    """Largest probabilities stored one by one."""
    rank_ratio: Annotated[float, _within_bounds("rank_ratio")] = Precision.rank_ratio
    """The others are stored in blocks of ranks; end of a block over its beginning."""
    step: Annotated[float, _within_bounds("step")] = Precision.step
    """Resolution in nats of the mass of a block that holds little."""
    even_mass: Annotated[float, _within_bounds("even_mass")] = Precision.even_mass
    """Blocks with more than this mass are resolved to ``step * even_mass`` of probability."""
    dropped_mass: Annotated[float, _within_bounds("dropped_mass")] = Precision.dropped_mass
    """So much of the far end of the tail may be left out."""
    mantissa_bits: Annotated[int, _within_bounds("mantissa_bits")] = Precision.mantissa_bits
    """Levels per octave of a spectrum that was read are two to this power: memory, not bytes."""

    def to_precision(self) -> Precision:
        """Convert the settings to the codec's own ``Precision``.

        Raises:
            UserError: the steps are too fine for the codec.
        """
        try:
            return Precision(**self.model_dump())
        except ValueError as error:
            raise UserError("teacher.codec", str(error), "make step or even_mass larger") from error


class TeacherSettings(ModelSettings):
    model: Annotated[str, Field(min_length=1)] | None = None  # type: ignore[assignment]
    """A directory, a hub id, or ``package:NAME``. May be left out with ``source: stored``."""
    precision: TeacherDType = "bf16"  # type: ignore[assignment]
    """Type the weights are held and multiplied in. ``auto``: bf16, but fp32 on CPUs that were measured to multiply bf16
    no faster; with vLLM always bf16."""
    source: Literal["online", "served", "stored"] = "online"
    """``online``: the teacher runs beside the student. ``served``: an inference engine at ``server`` is asked.
    ``stored``: its outputs are read from ``path``."""
    server: ServerSettings | None = None
    """The inference engine that ``source: served`` asks, and that ``uld-ds store build`` asks where there is one;
    ``model`` is then needed for its tokenizer and chat template alone."""
    path: str | None = None
    """Spectrum store, a folder or fsspec URL: where ``uld-ds store build`` writes and ``source: stored`` reads."""
    sharding: Literal["zero3", "none"] = "zero3"
    """``zero3``: spread over all workers. ``none``: whole on each of them, for a teacher that is small enough."""
    cache: bool = True
    """Cache the outputs of an online or served teacher: later epochs and restarts read them instead of asking it."""
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
        if self.source == "served" and self.model is None:
            raise ValueError("teacher.model is missing: source 'served' needs its tokenizer and chat template")
        if self.source == "served" and self.server is None:
            raise ValueError("teacher.server is missing: source 'served' needs the url and the api of an engine")
        if self.source == "stored" and self.path is None:
            raise ValueError("teacher.path is missing: source 'stored' needs the folder or URL of a spectrum store")
        if self.remote_code is not None and self.gguf_file is not None:
            raise ValueError("teacher.remote_code has no effect with teacher.gguf_file, which has no code")
        if self.sharding == "none" and self.deepspeed is not None:
            raise ValueError("teacher.deepspeed has no effect with teacher.sharding 'none'")
        return self


ONLY_TEACHER = "teacher"
"""Name of the teacher of a recipe that has one, in the section ``teacher``."""


class NamedTeacherSettings(TeacherSettings):
    """One of several teachers: the keys of the section ``teacher``, a name, and a weight."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", max_length=64)]
    """What messages, metrics and folders call it, and a row's column with ``objective.combine: route``."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Weighs all that the loss compares with this teacher; cross-entropy, which needs no teacher, is not part of it."""

    @property
    def key(self) -> str:
        """Key of its section for messages: ``teacher``, or ``teachers.NAME`` where a recipe has a list."""
        return ONLY_TEACHER if self.name == ONLY_TEACHER else f"teachers.{self.name}"

    @classmethod
    def only(cls, teacher: TeacherSettings) -> NamedTeacherSettings:
        """Name the teacher of a recipe that has one; which of its keys were given is still known."""
        return cls.model_construct(
            _fields_set=set(teacher.model_fields_set), **dict(teacher), name=ONLY_TEACHER, weight=1.0
        )


class StoreSettings(Strict):
    """What ``uld-ds store build`` keeps beside the spectra."""

    top_ids: Annotated[int, Field(ge=0, le=65535)] = 0
    """Of each distribution so many top-k tokens, by their ids: for objectives that look at identities (64
    serves ``objective.top_ids`` up to 64). 4 to 6 bytes each before compression."""


class TrainedTokenizerSettings(Strict):
    train: Literal["unigram", "bpe"]
    """Kind of tokenizer to train on the training text."""
    vocab_size: Annotated[int, Field(ge=300)] = 4096
    """Entries, the 256 bytes and the special tokens included."""


class LoraSettings(Strict):
    """Low-rank adapters beside frozen weights (arXiv 2106.09685); merged into them at export."""

    rank: Annotated[int, Field(ge=1)] = 16
    """Of each adapter: what is learned of a matrix [m, n] is ``rank * (m + n)`` numbers."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """An adapter counts ``alpha / rank`` times."""
    targets: Literal["all-linear"] | Annotated[list[str], Field(min_length=1)] = "all-linear"
    """Names of the linear layers that get one, e.g. ``[q_proj, v_proj]``; ``all-linear``: all but the output head.
    Experts of a mixture, which are no linear layers, get none."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    quantize: Literal["nf4"] | None = None
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
    freeze: list[Annotated[str, Field(min_length=1)]] = Field(default_factory=list)
    """Parameters that stay as they are, by patterns of their names: ``[model.embed_tokens.*, model.layers.0.*]``."""
    lora: LoraSettings | None = None
    """Learn low-rank adapters instead of the model's own parameters; ``{}`` for the defaults."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    @property
    def quantize(self) -> Literal["nf4"] | None:
        """Format of the frozen layers' weights; None where it is ``precision``."""
        return None if self.lora is None else self.lora.quantize

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


def code_options(settings: ModelSettings) -> dict[str, Any]:
    """Build the arguments of transformers' ``from_pretrained`` about code that comes with a model."""
    return remote_code_options(trusted_code(settings))


def remote_code_options(trusted: RemoteCodeSettings | None) -> dict[str, Any]:
    """Build the arguments that let ``from_pretrained`` run a repository's code at its commit; with None, no code."""
    # Without code_revision a module of another repository than the model's would be that of its main branch.
    return NO_CODE if trusted is None else {"trust_remote_code": True, "code_revision": trusted.revision}


def trusted_code(settings: ModelSettings) -> RemoteCodeSettings | None:
    """Return the model's code that the recipe trusts, or None.

    A student's section has no such key: what the student becomes would need the code wherever it is loaded.
    """
    trusted: RemoteCodeSettings | None = getattr(settings, "remote_code", None)
    return trusted
