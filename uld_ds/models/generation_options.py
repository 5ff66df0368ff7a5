"""The generation options of a checkpoint: taken by transformers, and kept in a form that it writes again."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path

from transformers import GenerationConfig

from uld_ds.errors import UserError, one_line


def writable(options: GenerationConfig) -> GenerationConfig:
    """Return the same generation options in a form that ``save_pretrained`` writes.

    transformers 5.23 loads and saves options that have no effect for it, though a server may read them (``temperature``
    without ``do_sample``); but once any of them has changed, e.g. an id of another tokenizer, it refuses to write them.
    """
    with suppress(ValueError):
        options.validate(strict=True)
        return options
    with tempfile.TemporaryDirectory(prefix="uld-ds-generation-") as folder:
        # Options that were read from a file count as unchanged.
        options.to_json_file(Path(folder) / "generation_config.json")
        return GenerationConfig.from_pretrained(folder)


def check_options(place: str, revision: str | None, key: str) -> None:
    """Check that transformers takes the generation options of a checkpoint, which it reads with the weights.

    Args:
        place: Directory in Hugging Face layout, or hub id.
        revision: Branch, tag or commit of a hub id.
        key: Recipe key that names the place.

    Raises:
        UserError: it refuses them.
    """
    try:
        GenerationConfig.from_pretrained(place, revision=revision or "main")
    except OSError:
        return  # none there, or no JSON: the model is loaded without
    except Exception as error:  # a value of another type surfaces wherever it is first used
        problem = f"{place!r}: transformers refuses its generation_config.json ({one_line(error, kind=True)})"
        raise UserError(key, problem, "correct that file") from error
