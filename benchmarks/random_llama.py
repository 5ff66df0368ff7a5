"""Models of any size with random weights: what a step costs does not depend on what they have learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_random_llama(folder: Path, tokenizer: Any, **options: Any) -> None:
    """A Llama of four heads with tied embeddings, and its tokenizer, in Hugging Face layout.

    Args:
        folder: made.
        tokenizer: gives the special tokens; ``vocab_size`` may be larger than it.
        options: of ``LlamaConfig``.
    """
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        num_attention_heads=4,
        num_key_value_heads=4,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **options,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
