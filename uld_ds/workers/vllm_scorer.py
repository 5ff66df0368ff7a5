"""vLLM as what scores texts in an actor: token ids in, log-probabilities of all their tokens out.

It runs in whatever Python has vLLM, and imports nothing of this package that the actor itself does not.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uld_ds.workers.scoring_actor import Scored, Text
from uld_ds.workers.vllm_options import VLLM_DTYPES, device_options, set_environment


@dataclass(frozen=True)
class ScorerOptions:
    """All that a scorer needs to know, as plain values."""

    model: str
    """Directory or hub id of the model."""
    revision: str | None
    precision: str
    """Type of the weights: ``bf16``, ``fp32`` or ``auto``."""
    max_length: int
    """Most tokens of a text."""
    max_tokens: int
    """Tokens of all texts of a forward: vLLM makes the float32 logits of all of them at once."""
    top: int
    """Likeliest tokens to tell at each position."""
    gpus: float
    """GPUs of the actor."""


class VllmScorer:
    """An engine of vLLM that generates next to nothing: it reads texts, and tells what it would have said.

    Args:
        options: Everything it needs to know.
    """

    def __init__(self, options: ScorerOptions) -> None:
        set_environment(options.gpus)
        # A text as long as the model reads has no place for the one token that is generated, and that nobody reads.
        os.environ.setdefault("VLLM_ALLOW_LONG_MAX_MODEL_LEN", "1")
        import vllm

        self.version: str = vllm.__version__
        self._top = options.top
        self._llm: Any = vllm.LLM(
            model=options.model,
            revision=options.revision,
            dtype=VLLM_DTYPES[options.precision],
            skip_tokenizer_init=True,
            generation_config="vllm",  # none of the checkpoint's own options and penalties
            logprobs_mode="raw_logprobs",
            max_logprobs=options.top,
            # It has to generate one token, too.
            max_model_len=options.max_length + 1,
            max_num_batched_tokens=options.max_tokens,
            # What was computed before has no log-probabilities.
            enable_prefix_caching=False,
            disable_log_stats=True,
            **device_options(
                Path(options.model),
                gpus=options.gpus,
                precision=options.precision,
                tokens=options.max_tokens + options.max_length,
            ),
        )

    def score(self, texts: Sequence[Text]) -> list[Scored]:
        """Score texts, all of them together."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=1, temperature=0.0, prompt_logprobs=self._top, flat_logprobs=True, detokenize=False
        )
        asked = [{"prompt_token_ids": ids.tolist()} for ids, _ in texts]
        outputs = self._llm.generate(asked, parameters, use_tqdm=False)
        return [
            _scored(output.prompt_logprobs, ids, positions, self._top)
            for output, (ids, positions) in zip(outputs, texts, strict=True)
        ]


def _scored(said: Any, ids: np.ndarray, positions: np.ndarray, top: int) -> Scored:
    """Read vLLM's flat log-probabilities: of each token but the first its own, then those of the likeliest ones."""
    if len(said) != len(ids):
        raise ValueError(f"vLLM tells of {len(said)} tokens, and {len(ids)} were sent")
    tokens = np.asarray(said.token_ids, np.int32).reshape(-1, 1 + top)[positions - 1]
    log_probs = np.asarray(said.logprobs, np.float32).reshape(-1, 1 + top)[positions - 1]
    if not np.array_equal(tokens[:, 0], ids[positions]):
        raise ValueError("vLLM tells of other tokens than were sent")
    return log_probs[:, 0], tokens[:, 1:], log_probs[:, 1:]
