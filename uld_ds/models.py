"""Where models and tokenizers come from: directories, hub ids, installed packages, GGUF files, configs.

Everything ends as a *model directory* in Hugging Face layout (or a hub id), so that the workers have one way
to load: ``from_pretrained``.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from uld_ds.architectures import SAFE_WEIGHTS, auto_class
from uld_ds.errors import UserError
from uld_ds.new_embeddings import remake_embeddings
from uld_ds.places import PACKAGE, build_once, converted_gguf, in_home, package_folder
from uld_ds.recipe import DType, ModelSettings, StudentSettings, TrainedTokenizerSettings
from uld_ds.recipe_models import NO_CODE, code_options
from uld_ds.remote_code import check_remote_code, needs_code
from uld_ds.shaping import with_layers
from uld_ds.tokenizer_files import load_tokenizer, one_line
from uld_ds.tokenizer_training import train_tokenizer

log = logging.getLogger(__name__)

DTYPES: dict[DType, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def locate_model(settings: ModelSettings, key: str) -> str:
    """A model's directory or hub id, ready for ``from_pretrained`` with ``settings.revision``.

    Args:
        settings: a recipe's teacher or student section with ``model`` set.
        key: that section's name, for messages.

    Raises:
        UserError: a package that is not installed, a path or GGUF file that does not exist, an unknown hub id.
    """
    place = settings.model
    is_package = place.startswith(PACKAGE)
    folder = package_folder(place, f"{key}.model") if is_package else in_home(place)
    if not folder.is_dir() and (place.startswith((".", "/", "~")) or place.count("/") > 1):
        raise UserError(f"{key}.model", f"no folder {place!r}", "correct the path, or give a hub id like org/name")
    if settings.gguf_file is not None:
        folder = _converted_gguf(folder, settings.gguf_file, key)
    if not folder.is_dir():
        check_remote_code(settings, place, key)
        config = _hub_config(place, settings, key)
    elif (folder / "config.json").is_file():
        place = str(folder.resolve())
        check_remote_code(settings, place, key)
        config = _folder_config(place, settings, key)
        _check_weights(folder, key)
    else:
        raise UserError(f"{key}.model", f"{place!r} has no config.json", "name a folder in Hugging Face layout")
    _check_length(config, settings, key)
    return place


def _folder_config(place: str, settings: ModelSettings, key: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(place, **code_options(settings))
    except Exception as error:  # transformers raises whatever its parsing ran into
        if "trust_remote_code" in str(error):
            raise needs_code(place, f"{key}.model") from error
        problem = f"{place!r}: config.json describes no model ({one_line(error)})"
        raise UserError(f"{key}.model", problem, "name a folder in Hugging Face layout") from error


def _hub_config(name: str, settings: ModelSettings, key: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, revision=settings.revision, **code_options(settings))
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise needs_code(name, f"{key}.model") from error
        raise UserError(
            f"{key}.model",
            f"{name!r} is no folder, and the hub does not give it ({one_line(error)})",
            "correct the name, or the network or token that the hub needs",
        ) from error


def _check_weights(folder: Path, key: str) -> None:
    pickles = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in folder.glob(kind))
    if not list(folder.glob("*.safetensors")):
        problem = f"{str(folder)!r} has no *.safetensors"
        if pickles:
            problem += f", only {pickles[0]}: a pickle, which runs code when it is read"
        raise UserError(f"{key}.model", problem, "save the model again as safetensors")


def _check_length(config: PreTrainedConfig, settings: ModelSettings, key: str) -> None:
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and longest < settings.max_length:
        problem = f"{settings.max_length} is more than the {longest} positions of {settings.model!r}"
        raise UserError(f"{key}.max_length", problem, "lower it")


def _converted_gguf(folder: Path, gguf_file: str, key: str) -> Path:
    if not folder.is_dir():
        problem = f"no folder {str(folder)!r} that could hold {gguf_file!r}"
        raise UserError(f"{key}.model", problem, "download the file and name its folder")
    if Path(gguf_file).is_absolute() or ".." in Path(gguf_file).parts:
        raise UserError(f"{key}.gguf_file", f"{gguf_file!r} leads out of {str(folder)!r}", "name a file inside it")
    source = folder / gguf_file
    if not source.is_file():
        raise UserError(f"{key}.gguf_file", f"no file {gguf_file!r} in {str(folder)!r}", "correct the file's name")
    target = converted_gguf(source, "models")

    def convert(aside: Path) -> None:
        from transformers import GgufConfig

        log.info("dequantising %s once into %s", gguf_file, target)
        try:
            with _bars_only_on_a_terminal():
                model = AutoModelForCausalLM.from_pretrained(
                    folder, gguf_file=gguf_file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
                )
            tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file)
        except Exception as error:  # transformers raises whatever its parsing ran into
            problem = f"{gguf_file!r} cannot be read ({one_line(error)})"
            raise UserError(f"{key}.gguf_file", problem, "name a GGUF file that transformers supports") from error
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)

    return build_once(target, convert)


def _bars_only_on_a_terminal() -> AbstractContextManager[Any]:
    """A progress bar redrawn into a log file is noise; on a terminal it tells that something happens."""
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())


def make_student(settings: StudentSettings, texts: Callable[[], Iterable[str]], seed: int, target: Path) -> Path:
    """Makes ``target`` the directory a student with a tokenizer, layers or weights of its own starts from, once.

    Args:
        settings: with ``from_config``, or with ``model`` and another ``tokenizer`` or some of its layers.
        texts: gives the training text, read only when a tokenizer is trained.
        seed: fixes the initial weights.

    Raises:
        UserError: an architecture or option that transformers does not know, or layers that are not there.
    """

    def build(aside: Path) -> None:
        tokenizer = _student_tokenizer(settings, texts)
        tokenizer.save_pretrained(aside)
        _initial_student(settings, tokenizer, seed).save_pretrained(aside)

    return build_once(target, build)


def _student_tokenizer(settings: StudentSettings, texts: Callable[[], Iterable[str]]) -> PreTrainedTokenizerBase:
    if isinstance(settings.tokenizer, TrainedTokenizerSettings):
        return train_tokenizer(settings.tokenizer.train, settings.tokenizer.vocab_size, texts())
    if settings.tokenizer is None:
        return load_tokenizer(locate_model(settings, "student"), settings.revision, "student.model")
    return load_tokenizer(settings.tokenizer, None, "student.tokenizer")


def _initial_student(settings: StudentSettings, tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    set_seed(seed)
    if settings.from_config is not None:
        return _new_model(settings.from_config, tokenizer)
    place = locate_model(settings, "student")
    kind = auto_class(AutoConfig.from_pretrained(place, revision=settings.revision, **NO_CODE))
    model: PreTrainedModel = kind.from_pretrained(
        place, revision=settings.revision, dtype=torch.float32, **SAFE_WEIGHTS, **NO_CODE
    )
    if settings.keep_layers is not None:
        model = with_layers(model, settings.keep_layers)
    if settings.tokenizer is None:
        return model
    if settings.embeddings != "keep":
        old = load_tokenizer(place, settings.revision, "student.model")
        remake_embeddings(model, old, tokenizer, spelled=settings.embeddings == "spelled")
    elif model.config.get_text_config().vocab_size < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer))
    _speak_for(tokenizer, model.config)
    # A checkpoint brings its own, with the ids of the tokenizer it had.
    _speak_for(tokenizer, model.generation_config)
    return model


def _new_model(options: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if "vocab_size" in options:
        raise UserError("student.from_config.vocab_size", "follows from student.tokenizer", "remove it")
    try:
        config = AutoConfig.for_model(**options, vocab_size=len(tokenizer))
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
    problem = f"no {options['model_type']!r} model can be made of it ({one_line(error)})"
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
