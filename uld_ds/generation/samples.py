"""A few sample answers of a model that is loaded already, sharded or whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase

from uld_ds.data.batching import padding_id

NUM_ANSWERS = 2
REPETITION_PENALTY = 1.3


def sample_answers(
    lm: Any, tokenizer: PreTrainedTokenizerBase, rows: Dataset, side: str, max_new_tokens: int, device: torch.device
) -> list[str]:
    """Generate a model's answers to the first NUM_ANSWERS prompts of prepared rows, greedily.

    Repetition is penalized by REPETITION_PENALTY. Of a model that is sharded over ranks: collective, and the same on
    all of them.

    Args:
        lm: Transformers model.
        tokenizer: Tokenizer of the model.
        rows: Rows of prepare.py.
        side: ``student`` or ``teacher``.
        max_new_tokens: Most tokens of an answer; 0 for no answers.
        device: Device of the model.
    """
    if max_new_tokens == 0:
        return []
    prompts = [_prompt_ids(row, side) for row in rows.select(range(min(NUM_ANSWERS, len(rows))))]
    input_ids, mask = _left_padded(prompts, padding_id(tokenizer))
    own = lm.generation_config
    options = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        repetition_penalty=REPETITION_PENALTY,
        eos_token_id=tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id,
        pad_token_id=padding_id(tokenizer),
        decoder_start_token_id=own.decoder_start_token_id,
    )
    with torch.no_grad():
        said = lm.generate(
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            generation_config=options,
            # Every rank asks the same and stops at the same token.
            synced_gpus=False,
        )
    # A decoder says its first token before the answer, and not the prompt.
    begins = 1 if lm.config.is_encoder_decoder else input_ids.shape[1]
    return [str(tokenizer.decode(row[begins:], skip_special_tokens=True)) for row in said]


def _prompt_ids(row: dict[str, Any], side: str) -> list[int]:
    """Return the token ids of a prepared row's prompt, up to its last answer."""
    encoder = row[f"{side}_encoder_ids"]
    if encoder:
        return list(encoder)
    answers = np.asarray(row[f"{side}_answers"])
    starts = np.flatnonzero(np.diff(answers, prepend=-1) > 1)
    return list(row[f"{side}_ids"][: int(answers[starts[-1]])])


def _left_padded(prompts: Sequence[Sequence[int]], padding: int) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.full((len(prompts), longest), padding)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        mask[row, longest - len(prompt) :] = 1
    return ids, mask
