"""A few sample answers of a model that is loaded already, sharded or whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from datasets import Dataset
from transformers import GenerationConfig

from uld_ds.data.batching import padding_id
from uld_ds.data.sides import TextSide
from uld_ds.generation.decoding import Answer, end_ids, read_generated
from uld_ds.generation.ways import left_padded

NUM_ANSWERS = 2
REPETITION_PENALTY = 1.3


def sample_answers(
    lm: Any,
    side: TextSide,
    rows: Dataset,
    role: Literal["student", "teacher"],
    max_new_tokens: int,
    device: torch.device,
) -> list[Answer]:
    """Generate a model's answers to the first NUM_ANSWERS prompts of prepared rows, greedily.

    Repetition is penalized by REPETITION_PENALTY. Of a model that is sharded over ranks: collective, and the same on
    all of them.

    Args:
        lm: Transformers model.
        side: Side of the model: its tokenizer, the ends of its turns, the reading of what it says.
        rows: Rows of prepare.py.
        role: Whose prompts they are.
        max_new_tokens: Most tokens of an answer; 0 for no answers.
        device: Device of the model.
    """
    if max_new_tokens == 0:
        return []
    prompts = [_prompt_ids(row, role) for row in rows.select(range(min(NUM_ANSWERS, len(rows))))]
    padding = padding_id(side.tokenizer)
    input_ids, mask = left_padded(prompts, padding, device)
    own = lm.generation_config
    ends = sorted({*end_ids(own.eos_token_id), *side.end_ids})
    options = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        repetition_penalty=REPETITION_PENALTY,
        eos_token_id=ends or None,
        pad_token_id=padding,
        decoder_start_token_id=own.decoder_start_token_id,
    )
    with torch.no_grad():
        said = lm.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=options,
            # Every rank asks the same and stops at the same token.
            synced_gpus=False,
        )
    # A decoder says its first token before the answer, and not the prompt.
    begins = 1 if lm.config.is_encoder_decoder else input_ids.shape[1]
    asked: Sequence[Sequence[int]] = [()] * len(prompts) if lm.config.is_encoder_decoder else prompts
    return [
        read_generated(side.tokenizer, row[begins:], ends, side.reply_reader, prompt)
        for row, prompt in zip(said.tolist(), asked, strict=True)
    ]


def given_answer(side: TextSide, row: dict[str, Any]) -> Answer:
    """Read the last answer of a prepared row as what the student generates is read.

    Args:
        side: Side of the student.
        row: Row of prepare.py.
    """
    ids, begins = list(row["student_ids"]), row["student_last_turn"]
    prompt = () if row["student_encoder_ids"] else ids[:begins]
    return read_generated(side.tokenizer, ids[begins:], side.end_ids, side.reply_reader, prompt)


def _prompt_ids(row: dict[str, Any], role: str) -> list[int]:
    """Return the token ids of a prepared row's prompt, up to its last answer."""
    return list(row[f"{role}_encoder_ids"] or row[f"{role}_ids"][: row[f"{role}_last_turn"]])
