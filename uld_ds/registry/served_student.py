"""The student behind MLflow's pyfunc: chat messages or prompts in, answers out.

This file travels with every registered student and is all that serving needs of this project: it imports nothing of
it. MLflow calls ``_load_pyfunc``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

# What callers may set, with its defaults.
GENERATION: dict[str, Any] = {"max_new_tokens": 64, "do_sample": False, "temperature": 1.0, "repetition_penalty": 1.0}
PROMPT, MESSAGES = "prompt", "messages"


class ServedStudent:
    """A student that answers requests, one row at a time.

    Args:
        model: language model, decoder-only or with an encoder.
        tokenizer: the model's; chat input needs its chat template.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self._model = model.eval()
        self._tokenizer = tokenizer

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[str]:
        """Answer each row of a request.

        Args:
            model_input: rows that each have ``messages`` (a conversation: role, content) or ``prompt`` (text to
                go on from, taken as it is): a data frame, a mapping, a list of either; or plain texts.
            params: some of GENERATION.

        Returns:
            One answer per row.

        Raises:
            ValueError: a row has neither, or has messages that the student has no chat template for.
        """
        settings = {**GENERATION, **(params or {})}
        if not settings["do_sample"]:
            settings.pop("temperature")
        rows = _rows(model_input)
        if not rows:
            raise ValueError(f"a request has {MESSAGES!r} or {PROMPT!r}; this one has neither")
        return [self._answer(row, settings) for row in rows]

    def _answer(self, row: Mapping[str, Any], settings: dict[str, Any]) -> str:
        messages, prompt = row.get(MESSAGES), row.get(PROMPT)
        if messages is not None and len(messages):
            inputs = self._chat([dict(message) for message in messages])
        elif isinstance(prompt, str):
            inputs = self._text(prompt)
        else:
            raise ValueError(f"a request has {MESSAGES!r} or {PROMPT!r}; this one has {sorted(map(str, row))}")
        ids = inputs["input_ids"].to(self._model.device)
        mask = inputs["attention_mask"].to(self._model.device)
        with torch.no_grad():
            output = self._model.generate(input_ids=ids, attention_mask=mask, **settings)
        # A decoder behind an encoder puts its start token before the answer, another one the whole prompt.
        said = output[0, 1 if self._model.config.is_encoder_decoder else ids.shape[1] :]
        return str(self._tokenizer.decode(said, skip_special_tokens=True))

    def _text(self, prompt: str) -> Any:
        whole = self._tokenizer(prompt, return_tensors="pt")
        if self._model.config.is_encoder_decoder:
            return whole
        # What a tokenizer puts before a text belongs there, once; what it puts after one would end the prompt.
        bare = self._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        ids = whole["input_ids"][0].tolist()
        first = next((n for n in range(len(ids) - len(bare) + 1) if ids[n : n + len(bare)] == bare), None)
        if first is None or not bare:
            return whole
        leading = [] if bare[:first] == ids[:first] else ids[:first]
        kept = torch.tensor([[*leading, *bare]])
        return {"input_ids": kept, "attention_mask": torch.ones_like(kept)}

    def _chat(self, messages: list[dict[str, Any]]) -> Any:
        if not self._tokenizer.chat_template:
            raise ValueError(f"this student knows no conversations: give {PROMPT!r}")
        if self._model.config.is_encoder_decoder:
            # The encoder learned to read text with the special tokens that the tokenizer itself gives it.
            text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            return self._tokenizer(text, return_tensors="pt")
        return self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )


def _rows(model_input: Any) -> list[Mapping[str, Any]]:
    if isinstance(model_input, pd.DataFrame):
        rows = [
            {str(name): value for name, value in row.items() if not _missing(value)}
            for row in model_input.to_dict("records")
        ]
        # MLflow makes one row of a mapping, also of one with a list of prompts.
        return [one for row in rows if row for one in _rows(row)]
    if isinstance(model_input, str):
        return [{PROMPT: model_input}]
    if isinstance(model_input, Mapping):
        # Columns (a list of prompts, a list of conversations), or one request.
        prompts: Any = model_input.get(PROMPT)
        talks: Any = model_input.get(MESSAGES)
        if _is_list(prompts):
            return [{PROMPT: prompt} for prompt in prompts]
        if _is_list(talks) and len(talks) and _is_list(talks[0]):
            return [{MESSAGES: talk} for talk in talks]
        return [model_input]
    return [row for item in model_input for row in _rows(item)]


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)


def _load_pyfunc(path: str) -> ServedStudent:
    """Load the student from the folder of the logged model's files: MLflow calls this."""
    folder = Path(path)
    has_encoder = AutoConfig.from_pretrained(folder / "model").is_encoder_decoder
    model = (AutoModelForSeq2SeqLM if has_encoder else AutoModelForCausalLM).from_pretrained(folder / "model")
    return ServedStudent(model, AutoTokenizer.from_pretrained(folder / "components" / "tokenizer"))
