"""The parts of a model, compared with each other before any of it is loaded: by whoever starts something with it.

Configuration, headers of its files, tokenizer and the libraries that it needs: what does not fit together would
otherwise end every worker, after minutes, and again after each restart. Plans, runs, stores, answers and evaluations
ask here.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uld_ds.errors import UserError, one_line
from uld_ds.models.weight_files import tensors, weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Every process that prepares rows imports this module: what makes models (1,600 modules, a second or two, and a slower
# garbage collector ever after) is imported where a model is made.

log = logging.getLogger(__name__)

_ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
# Packages, by the names that they are imported and installed by. transformers asks for some of them only where there
# is a GPU, which the machine that a command is given on need not have.
_LIBRARIES = {
    "gptq": {"optimum": "optimum", "gptqmodel": "gptqmodel"},
    "awq": {"gptqmodel": "gptqmodel"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
}


def model_key(section: str) -> str:
    """Name the key of a section's model in a recipe; an argument of the command line, in capitals, is a key itself."""
    return section if section.isupper() else f"{section}.model"


def check_config(config: PreTrainedConfig, name: str, max_length: int, key: str) -> None:
    """Check a configuration against what a recipe asks for, and against the libraries that are installed.

    Args:
        config: of the model.
        name: what the user called the model.
        max_length: tokens of an example.
        key: section of the model in the recipe.

    Raises:
        UserError: examples longer than the model's positions, or weights that are quantized in a way that nothing
            installed can read.
    """
    check_positions(config, name, max_length, key)
    _check_quantization(config, name, model_key(key))


def check_positions(config: PreTrainedConfig, name: str | None, max_length: int, key: str) -> None:
    """Check that a model has positions for a recipe's examples.

    Args:
        config: of the model.
        name: what the user called the model.
        max_length: tokens of an example.
        key: section of the model in the recipe.

    Raises:
        UserError: it has fewer.
    """
    longest = getattr(config.get_text_config(), "max_position_embeddings", None)
    if longest is not None and longest < max_length:
        problem = f"{max_length} is more than the {longest} positions of {name!r}"
        # A model that is given on the command line is read as the recipe's student is.
        section = "student" if key.isupper() else key
        raise UserError(f"{section}.max_length", problem, "lower it")


def _check_quantization(config: Any, name: str, key: str) -> None:
    if getattr(config, "quantization_config", None) is None:
        return
    from transformers.quantizers import AutoHfQuantizer
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

    from uld_ds.models.quantization import quantization_method

    method = str(quantization_method(config))
    about = f"the weights of {name!r} are quantized ({method})"
    missing = [package for module, package in _LIBRARIES.get(method, {}).items() if find_spec(module) is None]
    if missing:
        problem = f"{about}, which needs {' and '.join(missing)}, not installed here"
        raise UserError(key, problem, f"pip install {' '.join(missing)}, on every node, or take it unquantized")
    if not any(known.startswith(method) for known in AUTO_QUANTIZATION_CONFIG_MAPPING):
        raise UserError(key, f"{about}, which transformers does not know", "take it unquantized")
    try:
        AutoHfQuantizer.from_config(config.quantization_config, pre_quantized=True).validate_environment()
    except ImportError as error:
        fix = "install it, on every node, or take it unquantized"
        raise UserError(key, f"{about} ({one_line(error)})", fix) from error
    except Exception as error:  # e.g. that there is no GPU here: there may be some where the workers are
        log.info("%s: %s", about, one_line(error, kind=True))


def embedding_rows(config: PreTrainedConfig, key: str, name: str, folder: Path | None = None, **code: Any) -> int:
    """Find how many token ids a model knows: the rows of its embeddings, and of its output head.

    Args:
        config: of the model.
        key: recipe key of the model, for messages.
        name: what the user called the model.
        folder: of its weights, where they are here.
        **code: options of ``remote_code_options``.

    Raises:
        UserError: no model can be made of the configuration, or its weights are of another size.
    """
    from uld_ds.models.trial import unmade_model

    model = unmade_model(config, key, name, **code)
    if folder is not None and getattr(config, "quantization_config", None) is None:
        embeddings: Any = model.get_input_embeddings()
        weight: Any = getattr(embeddings, "weight", None)
        named = [name for name, other in model.named_parameters(remove_duplicate=False) if other is weight]
        if named:
            last = ".".join(named[0].split(".")[-2:])
            _check_rows(folder, key, last, weight.shape, getattr(config, "transformers_weights", None))
    return embedding_rows_of(model)


def embedding_rows_of(model: PreTrainedModel) -> int:
    """Find how many token ids a model knows that is there, with weights or without."""
    parts: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    rows = [int(part.weight.shape[0]) for part in parts if hasattr(part, "weight")]
    return min(rows, default=int(getattr(model.config.get_text_config(), "vocab_size", 0)))


def _check_rows(folder: Path, key: str, name: str, shape: Any, named: str | None) -> None:
    """Compare the embeddings' rows in the files with those of the configuration, where a tensor is called so."""
    found = {
        tensor["shape"][0]
        for file in weight_files(folder, key, named)
        for other, tensor in tensors(file, key).items()
        if other.endswith(name) and len(tensor["shape"]) == 2 and tensor["shape"][1] == shape[1]
    }
    if found and shape[0] not in found:
        problem = f"the embeddings in {str(folder)!r} have {min(found)} rows, and its config.json says {shape[0]}"
        raise UserError(key, problem, "take weights and configuration of one model")


def rows_needed(tokenizer: PreTrainedTokenizerBase) -> int:
    """Count the rows that embeddings need for a tokenizer: one more than its largest id, and one per entry."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, key: str) -> bool:
    """Compare a tokenizer with the embeddings of its model.

    Some models have an added token without a row, which nobody writes: Gemma 3's 1B has ``<image_soft_token>``. It is
    said, and examples that hold one cannot be used.

    Args:
        tokenizer: of the model.
        rows: of its embeddings.
        key: recipe key of the model, for messages.

    Returns:
        Whether every id has a row.

    Raises:
        UserError: a token that any text may hold, or one that begins, ends or fills up sequences, has no row.
    """
    beyond = {token: number for token, number in tokenizer.get_vocab().items() if number >= rows}
    if not beyond:
        return True
    roles = {getattr(tokenizer, role): role.removesuffix("_token") for role in _ROLES}
    in_order = sorted(beyond, key=lambda token: beyond[token])
    plain = [token for token in in_order if beyond[token] not in tokenizer.added_tokens_decoder]
    needed = [*(token for token in in_order if token in roles), *plain]
    if needed:
        token = needed[0]
        what = f" ({roles[token]})" if token in roles else ""
        problem = f"its tokenizer has {token!r}{what} as id {beyond[token]}, and its embeddings have {rows} rows"
        raise UserError(key, problem, "take tokenizer and weights of one model, or a tokenizer whose ids have rows")
    some = ", ".join(in_order[:3])
    log.warning(
        "%s: %d added tokens have no row among %d: examples with one are bad (%s)", key, len(beyond), rows, some
    )
    return False
