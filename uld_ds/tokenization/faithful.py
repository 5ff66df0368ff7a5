"""Tokenizers as their own files describe them, whatever transformers makes of their class.

``AutoTokenizer`` decides by class names: that of ``tokenizer_config.json``, or, for a few values of ``model_type``, one
of its own choice. Most of those classes keep a file's vocabulary alone (see ``pipeline.py``). Everything that was
trained on a text was trained on the file's tokens, so here the file counts: where the two differ it is loaded as it
stands, by the generic class, and the difference is said, because other programs will read the folder differently.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uld_ds.errors import one_line
from uld_ds.tokenization.notices import say
from uld_ds.tokenization.sentencepiece_files import SENTENCEPIECE_FILES, with_the_pipeline_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOTICE = (
    "{place}: tokenizer.json is used as it stands; AutoTokenizer, which other programs use, {what}; "
    "load it there with PreTrainedTokenizerFast.from_pretrained"
)
# Where a folder names tokens beside tokenizer.json.
_NAMES_TOKENS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def as_the_files_say(
    place: str, options: Mapping[str, Any], find: Callable[[str], Path | None]
) -> PreTrainedTokenizerBase:
    """Load a tokenizer with ``AutoTokenizer``, or as its own file stands where that is not the same.

    Args:
        place: directory or hub id.
        options: further options of ``from_pretrained``.
        find: finds a file of that place by its name, once something was loaded from there.

    Raises:
        Exception: whatever transformers runs into.
    """
    from transformers import AutoTokenizer

    try:
        # tekken.json and mistral-common: another interface, without the pipeline that spans are read from.
        made: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(place, mistral_format=False, **options)
    except Exception as error:  # bare Exceptions of the tokenizers library, too
        return _without_its_class(place, options, find, error)
    name = type(made).__name__
    if (file := find("tokenizer.json")) is None:
        model = next((file for name in SENTENCEPIECE_FILES if (file := find(name))), None)
        return made if model is None or not made.is_fast else with_the_pipeline_of(model, made, place)
    differing = ", ".join(_differences(made, file, find)) if _is_rebuilt(made) else ""
    if not differing:
        return made
    if not type(made).__module__.startswith("transformers."):  # its author's own code, which the user trusts
        say(f"{place}: its own class {name} differs from its tokenizer.json: {differing}")
        return made
    say(_NOTICE.format(place=place, what=f"makes another tokenizer of it, {name}: {differing}"))
    return _as_it_stands(place, options, made)


def what_others_make(folder: Path) -> str:
    """Say what ``AutoTokenizer`` makes of a folder otherwise than its tokenizer.json has it; nothing where it does not.

    For ``model_type: qwen2`` and the like, whatever class the folder names.
    """
    from transformers import AutoTokenizer

    def find(name: str) -> Path | None:
        return folder / name if (folder / name).is_file() else None

    if (file := find("tokenizer.json")) is None:
        return ""
    try:
        made = AutoTokenizer.from_pretrained(folder, mistral_format=False)
    except Exception:  # of a package that is missing here, e.g.: as_the_files_say tells whoever loads it
        return ""
    differing = _differences(made, file, find) if _is_rebuilt(made) else []
    return f"a `{type(made).__name__}` of it (`{', '.join(differing)}`)" if differing else ""


def _without_its_class(
    place: str, options: Mapping[str, Any], find: Callable[[str], Path | None], error: Exception
) -> PreTrainedTokenizerBase:
    """Load ``tokenizer.json`` where its class fails on it; raise the class's error where there is no such way."""
    # An OSError: the hub, a missing file. To ask again is to wait again.
    if isinstance(error, OSError) or "trust_remote_code" in str(error) or find("tokenizer.json") is None:
        raise error
    try:
        tokenizer = _as_it_stands(place, options, None)
    except Exception:
        raise error from None
    say(_NOTICE.format(place=place, what=f"fails: {one_line(error, kind=True)}"))
    return tokenizer


def _is_rebuilt(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Tell whether a tokenizer's class builds its own pipeline, instead of taking that of the file."""
    from transformers import PreTrainedTokenizerFast

    return isinstance(tokenizer, PreTrainedTokenizerFast) and type(tokenizer) is not PreTrainedTokenizerFast


def _differences(made: PreTrainedTokenizerBase, file: Path, find: Callable[[str], Path | None]) -> list[str]:
    from tokenizers import Tokenizer

    from uld_ds.tokenization.pipeline import differences

    named = {
        text
        for name in _NAMES_TOKENS
        if (beside := find(name))
        for text in _texts(json.loads(beside.read_text(encoding="utf-8")))
    }
    return differences(Tokenizer.from_file(str(file)), made.backend_tokenizer, named)


def _texts(value: Any) -> Iterator[str]:
    """List all texts in JSON, names of keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield key
            yield from _texts(item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)


def _as_it_stands(
    place: str, options: Mapping[str, Any], made: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """Load ``tokenizer.json`` by the generic class, with what the special class knows besides the pipeline."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(place, **options)
    if made is None:
        return tokenizer
    tokenizer.padding_side = made.padding_side
    tokenizer.model_input_names = made.model_input_names
    # Names that only the class has, of tokens that the file has.
    has = tokenizer.get_vocab()
    defaults = {
        name: token
        for name, token in made.special_tokens_map.items()
        if isinstance(token, str) and token in has and getattr(tokenizer, name, None) is None
    }
    if defaults:
        tokenizer.add_special_tokens(defaults)
    return tokenizer
