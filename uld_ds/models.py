"""Where models and tokenizers come from: directories, hub ids, installed packages, GGUF files, configs.

Everything ends as a *model directory* in Hugging Face layout (or a hub id), so that the workers have one way
to load: ``from_pretrained``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from uld_ds.errors import UserError
from uld_ds.recipe import ModelSettings, Precision, StudentSettings, TrainedTokenizerSettings
from uld_ds.tokenizer_training import train_tokenizer

log = logging.getLogger(__name__)

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


def cache_dir() -> Path:
    """Folder for converted models: ``ULD_DS_CACHE``, or ``uld-ds`` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "uld-ds"
    return Path(os.environ.get("ULD_DS_CACHE", default))


def locate_model(settings: ModelSettings, key: str) -> str:
    """A model's directory or hub id, ready for ``from_pretrained`` with ``settings.revision``.

    Args:
        settings: a recipe's teacher or student section with ``model`` set.
        key: that section's name, for messages.

    Raises:
        UserError: a package that is not installed, a path or GGUF file that does not exist, an unknown hub id.
    """
    if settings.model.startswith("package:"):
        place = str(_package_folder(settings.model, f"{key}.model"))
    else:
        place = settings.model
    if settings.gguf_file is not None:
        return str(_converted_gguf(Path(place), settings.gguf_file, f"{key}.gguf_file"))
    if Path(place).is_dir():
        if not (Path(place) / "config.json").is_file():
            raise UserError(
                f"{key}.model", f"{place!r} has no config.json", "name a folder in Hugging Face layout"
            )
        return str(Path(place).resolve())
    if place.startswith((".", "/", "~")) or place.count("/") > 1:
        raise UserError(
            f"{key}.model", f"no folder {place!r}", "correct the path, or give a hub id like org/name"
        )
    return _known_hub_id(place, settings.revision, key)


def _known_hub_id(name: str, revision: str | None, key: str) -> str:
    try:
        AutoConfig.from_pretrained(name, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{key}.model",
            f"{name!r} is no folder, and the hub does not give it ({reason})",
            "correct the name, or the network or token that the hub needs",
        ) from error
    return name


def _package_folder(model: str, key: str) -> Path:
    package = model.removeprefix("package:")
    # Located, never imported: a package of weights may pull in a whole inference runtime.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            key, f"the Python package {package!r} is not installed", "install it, with pip's --no-deps"
        )
    return Path(spec.submodule_search_locations[0])


def _converted_gguf(folder: Path, gguf_file: str, key: str) -> Path:
    source = folder / gguf_file
    if not source.is_file():
        raise UserError(key, f"no file {gguf_file!r} in {str(folder)!r}", "correct the file's name")
    target = cache_dir() / "models" / f"{source.stem}-{file_digest(source)[:16]}"

    def convert(aside: Path) -> None:
        from transformers import GgufConfig

        log.info("dequantising %s once into %s", gguf_file, target)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=gguf_file,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(aside)
        AutoTokenizer.from_pretrained(folder, gguf_file=gguf_file).save_pretrained(aside)

    return build_once(target, convert)


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """Makes folder ``target`` with ``build(folder_aside)`` unless it exists; never leaves half of one."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        build(aside)
        aside.chmod(0o755)
        if not target.is_dir():
            aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over what decides how text becomes ids, the chat template included."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        digest = hashlib.sha256()
        for file in sorted(Path(folder).rglob("*")):
            if file.is_file():
                digest.update(f"{file.relative_to(folder)}:{file_digest(file)}\n".encode())
    return digest.hexdigest()


def load_tokenizer(place: str, revision: str | None, key: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model directory or hub id.

    Raises:
        UserError: there is none.
    """
    try:
        return AutoTokenizer.from_pretrained(place, revision=revision)
    except (OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            key, f"no tokenizer at {place!r} ({reason})", "name a folder or hub id that has one"
        ) from error


def make_student(
    settings: StudentSettings, texts: Callable[[], Iterable[str]], seed: int, target: Path
) -> Path:
    """Makes ``target`` the directory a student with a tokenizer or weights of its own starts from, once.

    Args:
        settings: with ``from_config``, or with ``model`` and another ``tokenizer``.
        texts: gives the training text, read only when a tokenizer is trained.
        seed: fixes the initial weights.

    Raises:
        UserError: an architecture or option that transformers does not know.
    """

    def build(aside: Path) -> None:
        tokenizer = _student_tokenizer(settings, texts)
        tokenizer.save_pretrained(aside)
        _initial_student(settings, tokenizer, seed).save_pretrained(aside)

    return build_once(target, build)


def _student_tokenizer(
    settings: StudentSettings, texts: Callable[[], Iterable[str]]
) -> PreTrainedTokenizerBase:
    if isinstance(settings.tokenizer, TrainedTokenizerSettings):
        return train_tokenizer(settings.tokenizer.train, settings.tokenizer.vocab_size, texts())
    if isinstance(settings.tokenizer, str):
        return load_tokenizer(settings.tokenizer, None, "student.tokenizer")
    return load_tokenizer(locate_model(settings, "student"), settings.revision, "student.model")


def _initial_student(
    settings: StudentSettings, tokenizer: PreTrainedTokenizerBase, seed: int
) -> PreTrainedModel:
    set_seed(seed)
    if settings.from_config is not None:
        return AutoModelForCausalLM.from_config(
            _student_config(settings.from_config, tokenizer), dtype=torch.float32
        )
    model = AutoModelForCausalLM.from_pretrained(
        locate_model(settings, "student"), revision=settings.revision, dtype=torch.float32
    )
    if model.get_input_embeddings().weight.shape[0] < len(tokenizer):
        model.resize_token_embeddings(len(tokenizer))
    _speak_for(tokenizer, model.config)
    return model


def _student_config(options: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Any:
    rest = dict(options)
    model_type = rest.pop("model_type")
    try:
        config = AutoConfig.for_model(model_type, vocab_size=len(tokenizer), **rest)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            "student.from_config", f"{model_type!r}: {reason}", "see transformers' docs"
        ) from error
    unknown = [name for name in rest if name not in type(config)().to_dict()]
    if unknown:
        raise UserError(f"student.from_config.{unknown[0]}", f"unknown to {model_type!r} models", "remove it")
    _speak_for(tokenizer, config)
    return config


def _speak_for(tokenizer: PreTrainedTokenizerBase, config: Any) -> None:
    # generate() stops and pads by the config's ids, so they must be this tokenizer's.
    config.bos_token_id = tokenizer.bos_token_id
    config.eos_token_id = tokenizer.eos_token_id
    config.pad_token_id = tokenizer.pad_token_id
