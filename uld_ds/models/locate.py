"""The place of a recipe's model, and whether a run can use it, before anything is loaded.

A directory, a hub id, an installed package or a GGUF file: all end as a *model directory* in Hugging Face layout or a
hub id, so that there is one way to load, ``Pretrained``. Looked at are the configuration, the kind of weights, whose
code would be run, and the length; a student that is made for a run is ``student.py``'s.
"""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig

from uld_ds.errors import UserError, one_line
from uld_ds.models.gguf import dequantized_folder
from uld_ds.models.remote_code import check_remote_code, needs_code
from uld_ds.recipe import ModelSettings
from uld_ds.recipe.models import code_options
from uld_ds.utils.cache import PACKAGE, package_folder
from uld_ds.utils.files import in_home


def locate_model(settings: ModelSettings, key: str) -> str:
    """Find a model's directory or hub id, ready for ``from_pretrained`` with ``settings.revision``.

    Args:
        settings: Teacher or student section of a recipe, with ``model`` set.
        key: Name of that section, for messages.

    Raises:
        UserError: a package that is not installed, a path or GGUF file that does not exist, an unknown hub id, weights
            that are not safetensors, code that the recipe does not trust, or a ``max_length`` beyond its positions.
    """
    place = settings.model
    is_package = place.startswith(PACKAGE)
    folder = package_folder(place, f"{key}.model") if is_package else in_home(place)
    if not folder.is_dir() and (place.startswith((".", "/", "~")) or place.count("/") > 1):
        raise UserError(f"{key}.model", f"no folder {place!r}", "correct the path, or give a hub id like org/name")
    if settings.gguf_file is not None:
        folder = dequantized_folder(folder, settings.gguf_file, key)
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
        problem = f"{place!r}: config.json describes no model ({one_line(error, kind=True)})"
        raise UserError(f"{key}.model", problem, "name a folder in Hugging Face layout") from error


def _hub_config(name: str, settings: ModelSettings, key: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, revision=settings.revision, **code_options(settings))
    except (OSError, ValueError) as error:
        if "trust_remote_code" in str(error):
            raise needs_code(name, f"{key}.model") from error
        raise UserError(
            f"{key}.model",
            f"{name!r} is no folder, and the hub does not give it ({one_line(error, kind=True)})",
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
