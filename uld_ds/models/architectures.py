"""The two kinds of language model that a checkpoint may be: decoder-only, or an encoder and a decoder.

A decoder-only model reads prompt and answer as one sequence. In an encoder-decoder model (T5, mT5, BART) the encoder
reads the prompt, and the decoder begins with a token of its own and goes on with the answer.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, GenerationConfig, PreTrainedConfig

from uld_ds.recipe import DType

# A pickle is code, too.
SAFE_WEIGHTS: dict[str, Any] = {"use_safetensors": True}


def auto_class(config: PreTrainedConfig) -> Any:
    """Choose the class of transformers that loads such a model with its output head."""
    return AutoModelForSeq2SeqLM if is_encoder_decoder(config) else AutoModelForCausalLM


def is_encoder_decoder(config: Any) -> bool:
    """Tell whether a configuration is of an encoder-decoder model."""
    return bool(getattr(config, "is_encoder_decoder", False))


def named_start(generation: GenerationConfig) -> int | None:
    """Find the token id that ``generate`` would begin with: decoder_start_token_id, else bos_token_id, else None."""
    for token in (generation.decoder_start_token_id, generation.bos_token_id):
        if token is not None:
            return int(token[0] if isinstance(token, list) else token)
    return None


DTYPES: dict[DType, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
