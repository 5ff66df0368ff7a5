"""GGUF files, each dequantized once into a model directory, as which it is loaded ever after."""

from __future__ import annotations

import io
import logging
import sys
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from uld_ds.errors import UserError, one_line
from uld_ds.tokenization.gguf import save_gguf_tokenizer
from uld_ds.utils.cache import build_once, converted_gguf

log = logging.getLogger(__name__)


def dequantized_folder(folder: Path, gguf_file: str, key: str) -> Path:
    """Dequantize a GGUF file into a model directory with safetensors (bf16) and its tokenizer, in the cache.

    Args:
        folder: Folder that holds the file.
        gguf_file: Path of the file inside the folder.
        key: Section of the model in the recipe, for messages.

    Returns:
        The directory; one that is there already is not made again.

    Raises:
        UserError: as ``gguf_path``, or a file that transformers cannot read.
    """
    source = gguf_path(folder, gguf_file, key)
    target = converted_gguf(source, "models")

    def convert(aside: Path) -> None:
        from transformers import GgufConfig

        log.info("dequantizing %s once into %s", gguf_file, target)
        try:
            with _bars_only_on_a_terminal():
                model = AutoModelForCausalLM.from_pretrained(
                    folder, gguf_file=gguf_file, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
                )
            save_gguf_tokenizer(source, aside)
        except Exception as error:  # transformers raises whatever its parsing ran into
            raise unreadable(gguf_file, key, error) from error
        model.save_pretrained(aside)

    return build_once(target, convert)


def unreadable(gguf_file: str, key: str, error: Exception) -> UserError:
    """Make the error of a GGUF file that transformers does not read: one that it does not support, or a damaged one."""
    problem = f"{gguf_file!r} cannot be read ({one_line(error, kind=True)})"
    return UserError(f"{key}.gguf_file", problem, "name a GGUF file that transformers supports, or download it again")


def gguf_path(folder: Path, gguf_file: str, key: str) -> Path:
    """Find a GGUF file in its folder.

    Args:
        folder: Folder that holds the file.
        gguf_file: Path of the file inside the folder.
        key: Section of the model in the recipe, for messages.

    Raises:
        UserError: no such folder or file, or a path that leads out of the folder.
    """
    if not folder.is_dir():
        problem = f"no folder {str(folder)!r} that could hold {gguf_file!r}"
        raise UserError(f"{key}.model", problem, "download the file and name its folder")
    if Path(gguf_file).is_absolute() or ".." in Path(gguf_file).parts:
        raise UserError(f"{key}.gguf_file", f"{gguf_file!r} leads out of {str(folder)!r}", "name a file inside it")
    source = folder / gguf_file
    if not source.is_file():
        raise UserError(f"{key}.gguf_file", f"no file {gguf_file!r} in {str(folder)!r}", "correct the file's name")
    return source


def _bars_only_on_a_terminal() -> AbstractContextManager[Any]:
    """Silence progress bars, unless on a terminal, where they tell that something happens; in a log they are noise."""
    return nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO())
