"""The making of a student: a new model, or layers of one that is there, with a tokenizer of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from uld_ds.errors import UserError, one_line
from uld_ds.models.architectures import auto_class
from uld_ds.models.embeddings import remake_embeddings
from uld_ds.models.generation_options import writable
from uld_ds.models.layer_pruning import with_layers
from uld_ds.models.parts import embedding_rows_of, rows_needed
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import StudentSettings, TrainedTokenizerSettings
from uld_ds.tokenization.loading import load_tokenizer
from uld_ds.tokenization.training import train_tokenizer
from uld_ds.utils.cache import build_once


def make_student(settings: StudentSettings, texts: Callable[[], Iterable[str]], seed: int, target: Path) -> Path:
    """Make the directory that a student with a tokenizer, layers or weights of its own starts from, once.

    Args:
        settings: Student section with ``from_config``, or with ``model`` and another ``tokenizer`` or some layers.
        texts: Gives the training text, read only when a tokenizer is trained.
        seed: Fixes the initial weights.
        target: Directory to make; one that is there already is not made again.

    Raises:
        UserError: an architecture or option that transformers does not know, or layers that are not there.
    """

    def build(aside: Path) -> None:
        tokenizer = _student_tokenizer(settings, texts)
        tokenizer.save_pretrained(aside)
        model: Any = _initial_student(settings, tokenizer, seed)
        model.generation_config = writable(model.generation_config)
        model.save_pretrained(aside)

    return build_once(target, build)


def _student_tokenizer(settings: StudentSettings, texts: Callable[[], Iterable[str]]) -> PreTrainedTokenizerBase:
    if isinstance(settings.tokenizer, TrainedTokenizerSettings):
        return train_tokenizer(settings.tokenizer.train, settings.tokenizer.vocab_size, texts())
    if settings.tokenizer is None:
        return Pretrained.from_settings(settings, "student").tokenizer()
    return load_tokenizer(settings.tokenizer, None, "student.tokenizer")


def _initial_student(settings: StudentSettings, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    set_seed(seed)
    if settings.from_config is not None:
        return _new_model(settings.from_config, tokenizer)
    base = Pretrained.from_settings(settings, "student")
    model: PreTrainedModel = base.load(dtype=torch.float32)
    if settings.keep_layers is not None:
        model = with_layers(model, settings.keep_layers)
    if settings.tokenizer is None:
        return model
    if settings.embeddings != "keep":
        remake_embeddings(model, base.tokenizer(), tokenizer, spelled=settings.embeddings == "spelled")
    elif embedding_rows_of(model) < (rows := rows_needed(tokenizer)):
        model.resize_token_embeddings(rows)
    _speak_for(tokenizer, model.config)
    # A checkpoint brings its own, with the ids of the tokenizer it had.
    _speak_for(tokenizer, model.generation_config)
    return model


def _new_model(options: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if "vocab_size" in options:
        raise UserError("student.from_config.vocab_size", "follows from student.tokenizer", "remove it")
    try:
        config = AutoConfig.for_model(**options, vocab_size=rows_needed(tokenizer))
    except Exception as error:  # each architecture checks its options in its own way
        raise _cannot_be_made(options, error) from error
    # What a configuration does not know it keeps as an attribute that nobody ever reads.
    unknown = config.__dict__.keys() & options.keys() - type(config)().__dict__.keys()
    if unknown:
        raise UserError(
            f"student.from_config.{min(unknown)}", f"unknown to {config.model_type!r} models", "remove or correct it"
        )
    if getattr(config, "num_decoder_layers", 0) > config.num_hidden_layers:
        problem = f"{config.num_decoder_layers} is more than num_layers {config.num_hidden_layers}"
        # The cache of generate() has as many layers as the encoder.
        raise UserError("student.from_config.num_decoder_layers", problem, "transformers cannot generate with it")
    _speak_for(tokenizer, config)
    try:
        return auto_class(config).from_config(config, dtype=torch.float32)
    except Exception as error:  # a bad value surfaces wherever the architecture first uses it
        raise _cannot_be_made(options, error) from error


def _cannot_be_made(options: dict[str, Any], error: Exception) -> UserError:
    problem = f"no {options['model_type']!r} model can be made of it ({one_line(error, kind=True)})"
    return UserError("student.from_config", problem, "correct its options")


def _speak_for(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    # generate() starts, stops and pads by the config's ids, so they must be this tokenizer's.
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "decoder_start_token_id", None) is not None:
        # As T5 has it: padding comes before all that a decoder says.
        named = (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
        config.decoder_start_token_id = next((token for token in named if token is not None), None)
