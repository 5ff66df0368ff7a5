"""The sizes of a model, from its configuration and the headers of its files: no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from uld_ds.errors import UserError, one_line
from uld_ds.models.gguf import gguf_path, unreadable
from uld_ds.models.layer_pruning import keep_in_config
from uld_ds.models.locate import check_cached, model_folder, read_config
from uld_ds.models.parts import check_config, check_vocabulary, rows_needed
from uld_ds.models.pretrained import Pretrained
from uld_ds.models.trial import try_student, unmade_model, with_own_head
from uld_ds.models.weight_files import cached_folder, tensor_bytes, weight_files
from uld_ds.recipe import ModelSettings, NamedTeacherSettings, StudentSettings, TrainedTokenizerSettings
from uld_ds.recipe.models import code_options
from uld_ds.tokenization.loading import load_tokenizer
from uld_ds.tokenization.sentencepiece_files import SENTENCEPIECE_FILES
from uld_ds.utils.cache import converted_gguf

_TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", *SENTENCEPIECE_FILES)


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that memory, traffic and time depend on."""

    name: str
    parameters: int
    """Number of parameters, a tied head counted once; adapters included."""
    learning: int
    """Number of parameters that have gradients and optimizer states, where it is a student."""
    head_learns: bool
    """Whether the output head learns."""
    largest: int
    """Elements of the largest parameter: what ZeRO-3 gathers at least."""
    layers: int
    layer_parameters: int
    """Number of parameters of one layer."""
    hidden: int
    intermediate: int
    queries: int
    """Width of all query heads together."""
    keys: int
    """Width of all key heads together; as much again for the values."""
    heads: int
    vocab: int
    file_bytes: int | None
    """Bytes of its weights on disk; None where they are not here."""
    quantized: int = 0
    """Number of parameters that are held in 4 bits."""
    largest_quantized: int = 0
    """Parameters of the largest matrix in 4 bits: what exists unpacked at a time."""
    adapters: str | None = None
    """Which layers have adapters and which have none, in words; None without adapters."""

    @property
    def body_parameters(self) -> int:
        """Parameters that every token is multiplied with, embedding and head left out."""
        return self.layers * self.layer_parameters


def shape_of(
    config: PreTrainedConfig,
    name: str,
    file_bytes: int | None = None,
    student: StudentSettings | None = None,
    *,
    key: str = "model",
    **code: Any,
) -> Shape:
    """Measure the model that a configuration describes; it is built without memory for its weights.

    Args:
        config: of the model.
        name: for a person.
        file_bytes: of its weights on disk.
        student: what of it is frozen or adapted.
        key: where the user gave the model, for messages.
        **code: options of ``remote_code_options``.

    Raises:
        UserError: no model can be made of it, or not the student that is asked for.
    """
    trial = None if student is None else try_student(config, student, name)
    model: Any = unmade_model(config, key, name, **code)
    layers = _layers(model)
    layer_parameters = sum(p.numel() for layer in layers for p in layer.parameters()) // len(layers)
    in_four_bits = [0] if trial is None else [0, *trial.in_four_bits]
    model = model if trial is None else trial.model
    head = model.get_output_embeddings()
    head = getattr(head, "base_layer", head)
    text: Any = config.get_text_config()
    sizes = [parameter.numel() for parameter in model.parameters()]
    learning = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    heads = getattr(text, "num_attention_heads", None) or 0  # none in a state-space model
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // max(heads, 1)
    return Shape(
        name=name,
        parameters=sum(sizes),
        learning=learning,
        head_learns=head is None or any(parameter.requires_grad for parameter in head.parameters()),
        largest=max(sizes),
        layers=len(layers),
        layer_parameters=layer_parameters,
        hidden=text.hidden_size,
        intermediate=getattr(text, "intermediate_size", None) or getattr(text, "d_ff", None) or 4 * text.hidden_size,
        queries=heads * head_dim,
        keys=(getattr(text, "num_key_value_heads", None) or heads) * head_dim,
        heads=heads,
        vocab=text.vocab_size,
        file_bytes=file_bytes,
        quantized=sum(in_four_bits),
        largest_quantized=max(in_four_bits),
        adapters=None if trial is None else trial.adapters,
    )


def _layers(model: Any) -> list[Any]:
    """Find a transformer's layers: its longest list of modules, and those like it (an encoder's beside a decoder's)."""
    from torch import nn

    lists = {name: list(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    # Not the lists inside a layer.
    outer = [found for name, found in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    if not outer:
        return [model]
    longest = max(outer, key=len)
    kind = type(longest[0])
    return [layer for found in outer if len(found) == len(longest) or isinstance(found[0], kind) for layer in found]


def teacher_shape(settings: NamedTeacherSettings) -> Shape:
    """Measure a teacher of the recipe.

    Raises:
        UserError: its configuration is not to be had.
    """
    return _existing(settings, settings.key)


def student_shape(settings: StudentSettings) -> Shape:
    """Measure the recipe's student, one that is made anew included.

    Raises:
        UserError: its configuration is not to be had.
    """
    if settings.from_config is None:
        return _existing(settings, "student", settings)
    tokenizer = settings.tokenizer
    if isinstance(tokenizer, TrainedTokenizerSettings):
        vocab = tokenizer.vocab_size
    else:
        assert tokenizer is not None
        vocab = rows_needed(load_tokenizer(tokenizer, None, "student.tokenizer"))
    options = settings.from_config
    try:
        config = AutoConfig.for_model(**options, vocab_size=vocab)
    except Exception as error:  # each architecture checks its options in its own way
        problem = f"no {options['model_type']!r} model can be made of it ({one_line(error, kind=True)})"
        raise UserError("student.from_config", problem, "correct its options") from error
    return shape_of(config, f"a new {options['model_type']}", student=settings, key="student.from_config")


def _existing(settings: ModelSettings, role: str, student: StudentSettings | None = None) -> Shape:
    place, key = str(settings.model), f"{role}.model"
    folder, gguf = model_folder(settings, role), settings.gguf_file
    if gguf is not None:
        converted = converted_gguf(gguf_path(folder, gguf, role), "models")
        if (converted / "config.json").is_file():
            folder, gguf = converted, None
    source = str(folder.resolve()) if folder.is_dir() else place
    model = Pretrained.at(source, settings, role)
    config = read_config(source, settings, role) if gguf is None else _gguf_config(model, gguf, role)
    check_config(config, place, settings.max_length, role)
    file_bytes = None if gguf is not None else _checked_bytes(model, config, student)
    if file_bytes is not None:
        config = with_own_head(config, Path(model.place), key, **code_options(settings))
    if student is not None and student.keep_layers is not None:
        # Layers that are not there, or that it cannot go without, are what `uld-ds train` says.
        keep_in_config(config.get_text_config(), student.keep_layers)
        file_bytes = None
    return shape_of(config, place, file_bytes, student, key=key, **code_options(settings))


def _gguf_config(model: Pretrained, gguf_file: str, role: str) -> PreTrainedConfig:
    try:
        return model.config(gguf_file=gguf_file)
    except Exception as error:  # transformers raises whatever its parsing ran into
        raise unreadable(gguf_file, role, error) from error


def _checked_bytes(model: Pretrained, config: PreTrainedConfig, student: StudentSettings | None) -> int | None:
    """Compare what is here of a model, as a run would; return the bytes of its weights, None where they are not here.

    Raises:
        UserError: its files are damaged, or its tokenizer is not that of its weights.
    """
    folder, files = Path(model.place), []
    if folder.is_dir():
        files = weight_files(folder, model.key, getattr(config, "transformers_weights", None))
    else:
        cached = cached_folder(model.place, model.revision)
        if cached is None:
            return None
        folder = cached
        check_cached(folder, model.key)
    has_own_tokenizer = student is None or student.tokenizer is None
    if has_own_tokenizer and any((folder / name).is_file() for name in _TOKENIZERS):
        check_vocabulary(model.tokenizer(), model.embedding_rows(), model.key)
    return tensor_bytes(files, model.key) if files else None
