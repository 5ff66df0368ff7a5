"""The place of a recipe's model, and whether a run can use it, before anything is loaded.

A directory, a hub id, an installed package or a GGUF file: all end as a *model directory* in Hugging Face layout or a
hub id, so that there is one way to load, ``Pretrained``. Looked at are the configuration, the kind of weights, whose
code would be run, and the length; a student that is made for a run is ``student.py``'s.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import is_offline_mode
from transformers import AutoConfig, PreTrainedConfig

from uld_ds.errors import UserError, one_line
from uld_ds.models.gguf import dequantized_folder
from uld_ds.models.parts import check_config, check_positions, model_key
from uld_ds.models.remote_code import check_remote_code, needs_code
from uld_ds.models.weight_files import cached_folder, check_no_pointers, tensors, weight_files
from uld_ds.recipe import ModelSettings
from uld_ds.recipe.models import code_options
from uld_ds.utils.cache import PACKAGE, package_folder
from uld_ds.utils.files import in_home


def locate_model(settings: ModelSettings, key: str, *, runs: bool = True) -> str:
    """Find a model's directory or hub id, ready for ``from_pretrained`` with ``settings.revision``.

    Args:
        settings: Teacher or student section of a recipe, with ``model`` set.
        key: Name of that section, or of an argument of the command line in capitals, for messages.
        runs: Whether its weights are to be loaded here; otherwise they need not be there, nor be readable.

    Raises:
        UserError: a package that is not installed, a path or GGUF file that does not exist, an unknown hub id, weights
            that are not safetensors or not whole, code that the recipe does not trust, a ``max_length`` beyond its
            positions, or weights that are quantized in a way that nothing installed can read.
    """
    folder = model_folder(settings, key)
    if settings.gguf_file is not None:
        folder = dequantized_folder(folder, settings.gguf_file, key)
    place = str(folder.resolve()) if folder.is_dir() else settings.model
    config = read_config(place, settings, key)
    if not runs:
        check_positions(config, settings.model, settings.max_length, key)
        return place
    if folder.is_dir():
        _check_weights(folder, model_key(key), config)
    else:
        cached = cached_folder(place, settings.revision)
        if cached is not None:
            check_cached(cached, model_key(key))
            if is_offline_mode():
                _check_weights(cached, model_key(key), config)
    check_config(config, settings.model, settings.max_length, key)
    return place


def model_folder(settings: ModelSettings, key: str) -> Path:
    """Find the folder that a recipe means by a model; one that is not there can only be a hub id.

    Args:
        settings: Teacher or student section of a recipe, with ``model`` set.
        key: Name of that section, or of an argument of the command line in capitals, for messages.

    Raises:
        UserError: a package that is not installed, a path that does not exist, or a pointer of Git LFS in the folder.
    """
    place = str(settings.model)
    folder = package_folder(place, model_key(key)) if place.startswith(PACKAGE) else in_home(place)
    if not folder.is_dir() and (place.startswith((".", "/", "~")) or place.count("/") > 1):
        raise UserError(model_key(key), f"no folder {place!r}", "correct the path, or give a hub id like org/name")
    if folder.is_dir():
        check_no_pointers(folder, model_key(key))
    return folder


def read_config(place: str, settings: ModelSettings, key: str) -> PreTrainedConfig:
    """Read the configuration of a model.

    Args:
        place: Directory or hub id of the model.
        settings: Teacher or student section of a recipe.
        key: Name of that section, or of an argument of the command line in capitals, for messages.

    Raises:
        UserError: there is none, it describes no model, the hub does not give it, or it needs code that the recipe does
            not trust.
    """
    if Path(place).is_dir() and not (Path(place) / "config.json").is_file():
        problem = f"{settings.model!r} has no config.json"
        raise UserError(model_key(key), problem, "name a folder in Hugging Face layout")
    check_remote_code(settings, place, key)
    return _folder_config(place, settings, key) if Path(place).is_dir() else _hub_config(place, settings, key)


def _folder_config(place: str, settings: ModelSettings, key: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(place, **code_options(settings))
    except Exception as error:  # transformers raises whatever its parsing ran into
        if "trust_remote_code" in str(error):
            raise needs_code(place, model_key(key)) from error
        problem = f"{place!r}: config.json describes no model ({one_line(error, kind=True)})"
        raise UserError(model_key(key), problem, "name a folder in Hugging Face layout") from error


def _hub_config(name: str, settings: ModelSettings, key: str) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(name, revision=settings.revision, **code_options(settings))
    except Exception as error:  # the hub, its client and transformers raise whatever they ran into
        if "trust_remote_code" in str(error):
            raise needs_code(name, model_key(key)) from error
        raise UserError(
            model_key(key),
            f"{name!r} is no folder, and the hub does not give it ({one_line(error, kind=True)})",
            "correct the name, or the network or token that the hub needs",
        ) from error


def check_cached(folder: Path, key: str) -> None:
    """Check what the hub's local cache holds of a model; what it lacks may be there to download.

    Args:
        folder: of ``cached_folder``.
        key: recipe key of the model, for messages.

    Raises:
        UserError: a file is damaged, cut off, or a pointer of Git LFS; without the hub, also one that is missing.
    """
    check_no_pointers(folder, key)
    weights = sorted(folder.glob("*.safetensors"))
    for file in weights:
        tensors(file, key)
    if weights and is_offline_mode():
        weight_files(folder, key)


def _check_weights(folder: Path, key: str, config: PreTrainedConfig) -> None:
    if weight_files(folder, key, getattr(config, "transformers_weights", None)):
        return
    pickles = sorted(file.name for kind in ("*.bin", "*.pt", "*.pth", "*.pkl") for file in folder.glob(kind))
    problem = f"{str(folder)!r} has no *.safetensors"
    if pickles:
        problem += f", only {pickles[0]}: a pickle, which runs code when it is read"
    raise UserError(key, problem, "save the model again as safetensors")
