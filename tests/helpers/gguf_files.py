"""GGUF files small enough for a test, written as llama.cpp's converter writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE = 1, 2, 3, 4, 6
SIZE: dict[str, int] = {"layers": 1, "width": 32, "inner": 64, "heads": 2}
# Names of weights in Hugging Face layout and in GGUF's.
_WEIGHTS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "model.layers.0.self_attn.k_proj.weight": "blk.0.attn_k.weight",
    "model.layers.0.self_attn.v_proj.weight": "blk.0.attn_v.weight",
    "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
    "model.layers.0.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
    "model.layers.0.mlp.up_proj.weight": "blk.0.ffn_up.weight",
    "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
    "model.layers.0.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
}


def byte_level_bpe(texts: list[str], size: int, pre_tokenizer: Any) -> Tokenizer:
    """A byte-level BPE tokenizer learned behind a pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def write_gguf(
    file: Path,
    tokens: list[str],
    kinds: list[int],
    *,
    merges: list[str] | None = None,
    scores: list[float] | None = None,
    model: str = "gpt2",
    pre: str | None = None,
    special: dict[str, int] | None = None,
    weights: bool = False,
) -> Path:
    """Write a Llama of one layer with a vocabulary; ``special`` is e.g. ``{"bos": 0}``; without weights, no tensors."""
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_context_length(512)
    writer.add_embedding_length(SIZE["width"])
    writer.add_block_count(SIZE["layers"])
    writer.add_feed_forward_length(SIZE["inner"])
    writer.add_head_count(SIZE["heads"])
    writer.add_head_count_kv(SIZE["heads"])
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model(model)
    if pre is not None:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    if merges is not None:
        writer.add_token_merges(merges)
    if scores is not None:
        writer.add_token_scores(scores)
    for name, index in (special or {}).items():
        getattr(writer, f"add_{name}_token_id")(index)
    if weights:
        for name, weight in tiny_llama(len(tokens)).state_dict().items():
            writer.add_tensor(_WEIGHTS[name], weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def tiny_llama(vocab_size: int) -> Any:
    """The random model whose weights are written; its heads are not permuted, which a random one need not be."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=SIZE["width"],
        intermediate_size=SIZE["inner"],
        num_hidden_layers=SIZE["layers"],
        num_attention_heads=SIZE["heads"],
        tie_word_embeddings=False,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def vocabulary(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Tokens by their ids, and merges as GGUF has them."""
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(pair) for pair in model["merges"]]
