"""Saved models and tokenizers that transformers 4 reads as well: many servers still have it.

transformers 5 writes the rotary embeddings' numbers as ``rope_parameters`` alone, which transformers 4 does not know:
it takes its defaults without a word, and logits are others. Of tokenizers it writes a class that transformers 4 does
not have, or one that does something else there. Here both spellings are written, where transformers 5 goes on to read
the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from uld_ds.models.weight_files import tensors, weight_files
from uld_ds.tokenization.faithful import what_others_make
from uld_ds.utils.files import write_whole

log = logging.getLogger(__name__)

CONFIG = "config.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
GENERIC = "PreTrainedTokenizerFast"
"""What transformers 4 calls a tokenizer that is read from tokenizer.json alone; transformers 5 knows it by that name,
too, and writes ``TokenizersBackend``."""
TRIED = {
    *("bart", "bloom", "cohere", "cohere2", "falcon", "gemma", "gemma2", "gemma3_text", "glm4", "gpt2", "gpt_neox"),
    *("gpt_oss", "granite", "llama", "llama4_text", "mistral", "mixtral", "mt5", "nemotron", "olmo2", "olmoe", "opt"),
    *("phi", "phi3", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2", "t5"),
}
"""Types of models that were saved by transformers 5.23 and read by 4.57 with equal logits; a test does so again."""
# One flag says there that the head is the embeddings and that what enters it is scaled; here they are two.
_SCALED_WHERE_TIED = ("t5", "mt5")
_RENAMED = {"qwen3_moe": {"num_experts": "num_local_experts"}}
_OF_ALL_LAYERS = ("full_attention", "sliding_attention")
_APART = {"rope_theta", "partial_rotary_factor"}


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer so that transformers 4 reads it, too."""
    tokenizer.save_pretrained(folder)
    adapt_tokenizer(folder, tokenizer)


def adapt_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write a saved tokenizer's class and special tokens as both versions read them.

    A class of its own (``LlamaTokenizer``) builds its pipeline in transformers 4 otherwise than in 5; where
    tokenizer.json alone says all of it, the class that obeys the file is named.

    Args:
        folder: where the tokenizer was saved.
        tokenizer: the tokenizer.
    """
    file = folder / TOKENIZER_CONFIG
    if not file.is_file():
        return
    content = json.loads(file.read_text(encoding="utf-8"))
    if _is_all_in_its_file(tokenizer, folder):
        content["tokenizer_class"] = GENERIC
    if isinstance(content.get("extra_special_tokens"), list):
        # In transformers 4 that is a mapping, and a list an error; the list has this name there.
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
    write_whole(file, json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def _is_all_in_its_file(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    if type(tokenizer) is PreTrainedTokenizerFast:
        return True
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or "auto_map" in tokenizer.init_kwargs:
        return False
    read = PreTrainedTokenizerFast.from_pretrained(folder)
    roles = [(one.all_special_tokens, one.special_tokens_map) for one in (read, tokenizer)]
    return _pipeline(read.backend_tokenizer) == _pipeline(backend) and roles[0] == roles[1]


def _pipeline(backend: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(backend.to_str())
    # How the last text was filled up or cut, which is no part of a tokenizer.
    return {name: value for name, value in content.items() if name not in ("padding", "truncation")}


def adapt_config(folder: Path) -> None:
    """Write a saved model's configuration as transformers 4 reads it, beside what transformers 5 reads.

    What transformers 5 would then read otherwise is left out.
    """
    file = folder / CONFIG
    before = file.read_text(encoding="utf-8")
    content = json.loads(before)
    for part in _parts(content):
        renamed = _RENAMED.get(str(part.get("model_type")), {})
        older = {name: part[new] for name, new in renamed.items() if new in part} | _older_rope(part)
        for name, value in older.items():
            part.setdefault(name, value)
    if content.get("model_type") in _SCALED_WHERE_TIED and _has_own_head(folder):
        content["tie_word_embeddings"] = False
    after = json.dumps(content, indent=2, sort_keys=True) + "\n"
    if content == json.loads(before):
        return
    expected = AutoConfig.from_pretrained(folder).to_dict()
    write_whole(file, after)
    found = AutoConfig.from_pretrained(folder).to_dict()
    if not _holds(found, expected):
        log.info("%s: config.json is written as transformers 5 reads it alone", folder)
        write_whole(file, before)


def readers_of(folder: Path) -> str:
    """Say which versions of transformers read a saved model and its tokenizer, for its card."""
    content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    kind = content.get("model_type")
    is_unscaled = kind in _SCALED_WHERE_TIED and not content.get("scale_decoder_outputs", False)
    if any(part.get("rope_parameters") and not _is_older(part) for part in _parts(content)):
        said = (
            "Read it with transformers 5: transformers 4 does not know `rope_parameters`, as config.json has them for "
            "its rotary embeddings, and would take other numbers without a word."
        )
    elif is_unscaled and not _has_own_head(folder):
        said = (
            "Read it with transformers 5: its output head is its embeddings, and what enters the head is not scaled, "
            "which transformers 4 would do."
        )
    elif kind in TRIED:
        said = (
            f"Its files are written for transformers 5 and 4: `{kind}` models of this kind were read by transformers "
            "4.57 with the same logits."
        )
    else:
        said = (
            "Its files are written for transformers 5 and, as far as that has the same, for 4. "
            f"`{kind}` models were not tried with transformers 4: compare logits before you serve it there."
        )
    file = folder / TOKENIZER_CONFIG
    named = json.loads(file.read_text(encoding="utf-8")).get("tokenizer_class") if file.is_file() else GENERIC
    if named != GENERIC:
        said += f" Its tokenizer is a `{named}`, of which transformers 4 may make other tokens, or which it may lack."
    if others := what_others_make(folder):
        said += (
            f" Load its tokenizer with `{GENERIC}.from_pretrained`: for `{kind}` models, `AutoTokenizer` of "
            f"transformers 5 makes {others}, and so other tokens."
        )
    return said


def _has_own_head(folder: Path) -> bool:
    files = weight_files(folder, str(folder))
    return any("lm_head.weight" in tensors(file, str(folder)) for file in files)


def _is_older(part: dict[str, Any]) -> bool:
    older = _older_rope(part)
    return bool(older) and all(part.get(name) == value for name, value in older.items())


def _parts(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a configuration and those in it: a model for text and pictures has one for its text."""
    yield content
    for value in content.values():
        if isinstance(value, dict) and "model_type" in value:
            yield from _parts(value)


def _older_rope(part: dict[str, Any]) -> dict[str, Any]:
    """Spell ``rope_parameters`` as transformers 4 does; {} where there are none, or none that it could have."""
    rope = part.get("rope_parameters")
    if not isinstance(rope, dict):
        return {}
    if not any(isinstance(value, dict) for value in rope.values()):
        return _flat(part, rope)
    if set(rope) != set(_OF_ALL_LAYERS) or not str(part.get("model_type")).startswith("gemma3"):
        return {}
    wide, narrow = (rope[kind] or {} for kind in _OF_ALL_LAYERS)
    # Its narrow layers are never scaled there.
    if narrow.get("rope_type", "default") != "default":
        return {}
    return {**_flat(part, wide), "rope_local_base_freq": narrow.get("rope_theta")}


def _flat(part: dict[str, Any], rope: dict[str, Any]) -> dict[str, Any]:
    theta, share = rope.get("rope_theta"), rope.get("partial_rotary_factor")
    if theta is None:
        return {}
    if part.get("model_type") in ("gpt_neox", "gpt_neox_japanese"):
        found: dict[str, Any] = {"rotary_emb_base": theta, "rotary_pct": share}
    else:
        found = {"rope_theta": theta} | ({} if share is None else {"partial_rotary_factor": share})
    scaling = {name: value for name, value in rope.items() if name not in _APART}
    kind = scaling.get("rope_type", "default")
    if kind == "default":
        return found | {"rope_scaling": None}
    if kind == "longrope":
        # transformers 4 takes these three and no other, and the length that it was trained at beside them.
        original = scaling.get("original_max_position_embeddings")
        factors = {name: scaling.get(name) for name in ("short_factor", "long_factor")}
        found |= {"original_max_position_embeddings": original}
        return found | {"rope_scaling": {"type": kind, **factors}}
    return found | {"rope_scaling": scaling}


def _holds(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Tell whether all that is expected is found, in configurations within configurations, too."""
    for name, value in expected.items():
        other = found.get(name)
        if isinstance(value, dict) and isinstance(other, dict) and "model_type" in value:
            if not _holds(other, value):
                return False
        elif other != value:
            return False
    return True
