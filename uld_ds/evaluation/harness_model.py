"""The model of lm-evaluation-harness with one start token before each text, and nothing but the text scored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from uld_ds.data.encoding import leading_special_ids
from uld_ds.errors import UserError


class OneStartModel(HFLM):
    """The harness's model of transformers, whose tokens of a text do not depend on what its tokenizer adds to one.

    lm-eval 0.4.13 lets the tokenizer add what it likes, by ``add_bos_token`` all of it or nothing. Both are wrong:

    - ``loglikelihood_rolling`` (perplexity suites) puts a start token before the text itself. A BOS that the tokenizer
      adds stands there a second time, and is scored as a part of the text; so is an EOS after it.
    - ``loglikelihood`` and ``generate_until`` put none before a context: without its tokenizer's BOS the model reads
      what it never read in training. But an EOS that the tokenizer adds stands between context and continuation.

    Here a rolling text has no special tokens of its own, and a context those that its tokenizer puts *before* a text.
    An encoder reads what the tokenizer makes of a text, as in training.

    Args:
        tokenizer: The model's tokenizer.
        key: Recipe key or option that names the model, for messages.
        **options: Options of ``HFLM``, ``pretrained`` among them.

    Raises:
        UserError: the tokenizer has no token that could stand before a text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, key: str, **options: Any) -> None:
        self._leading = leading_special_ids(tokenizer)
        self._rolling = False
        super().__init__(tokenizer=tokenizer, prefix_token_id=_start(tokenizer, self._leading, key), **options)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, left_truncate_len: int | None = None, **kwargs: Any
    ) -> list[int]:
        """Encode a text with what stands before it, or, for ``loglikelihood_rolling``, without."""
        if self._rolling:
            ids = self._bare(string)
            # A text that begins with the start token needs no other one.
            return ids[1:] if ids[:1] == [self.prefix_token_id] else ids
        if self.backend != "causal" or add_special_tokens is not None:
            return list(super().tok_encode(string, add_special_tokens, left_truncate_len, **kwargs))
        ids = self._bare(string)
        if ids[: len(self._leading)] != self._leading:
            ids = [*self._leading, *ids]
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_batch_encode(
        self,
        strings: Sequence[str],
        padding_side: str = "left",
        left_truncate_len: int | None = None,
        truncation: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Encode prompts to be continued: ids and attention mask, each [prompts, tokens]."""
        if self.backend != "causal":
            ids, mask = super().tok_batch_encode(strings, padding_side, left_truncate_len, truncation)
            return ids, mask
        rows = [self.tok_encode(string, left_truncate_len=left_truncate_len) for string in strings]
        padded = self.tokenizer.pad({"input_ids": rows}, padding_side=padding_side, return_tensors="pt")
        return padded["input_ids"], padded["attention_mask"]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts, each from its first token on: natural log-probabilities."""
        self._rolling = True
        try:
            return list(super().loglikelihood_rolling(requests, disable_tqdm))
        finally:
            self._rolling = False

    def _bare(self, string: str) -> list[int]:
        return list(self.tokenizer.encode(string, add_special_tokens=False))


def _start(tokenizer: PreTrainedTokenizerBase, leading: Sequence[int], key: str) -> int:
    """Choose the token that a text's first one is predicted from, as training does: what leads, else BOS, else EOS."""
    for token in (*reversed(leading), tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    problem = "its tokenizer has neither BOS nor EOS, and a suite's first token needs one before it"
    raise UserError(key, problem, "give the tokenizer a bos_token, or leave evaluation.suites empty")
