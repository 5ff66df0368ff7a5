"""vLLM as the engine of an actor: token ids in, token ids and raw log-probabilities out, new weights while it runs.

It runs in whatever Python has vLLM, and imports nothing of this package that the actor itself does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uld_ds.workers.rollout_actor import Answer, Prompt
from uld_ds.workers.vllm_options import VLLM_DTYPES, device_options, set_environment


@dataclass(frozen=True)
class VllmOptions:
    """All that an engine needs to know besides the weights, as plain values."""

    precision: str
    """Type of the weights: ``bf16`` or ``fp32``."""
    max_length: int
    """Most tokens of a prompt and its answer together."""
    batch_size: int
    """Most answers that are sampled together."""
    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    """0 samples from all tokens."""
    ends: tuple[int, ...]
    """Token ids that end an answer."""
    gpus: float
    """GPUs of the actor: the model is divided among several; a part of one is a part of its memory."""


class VllmEngine:
    """An engine of vLLM, started with the first weights.

    Args:
        options: Everything else.
    """

    def __init__(self, options: VllmOptions) -> None:
        self._options = options
        self._llm: Any = None

    def load(self, folder: str) -> None:
        """Start the engine with the weights of a folder, or put them in the place of those that it has."""
        if self._llm is None:
            self._llm = self._started(folder)
        else:
            self._llm.collective_rpc("take_weights", args=(folder,))

    def sample(self, prompts: Sequence[Prompt]) -> list[Answer]:
        """Sample one answer to each prompt."""
        from vllm import SamplingParams

        options = self._options
        asked = [{"prompt_token_ids": ids.tolist()} for _, ids in prompts]
        parameters = [
            SamplingParams(
                max_tokens=options.max_new_tokens,
                temperature=options.temperature,
                top_p=options.top_p,
                top_k=options.top_k,
                seed=seed,
                logprobs=0,  # of the sampled token alone
                # The ends are those that are named here, whatever the model's files say.
                stop_token_ids=list(options.ends),
                ignore_eos=True,
                detokenize=False,
            )
            for seed, _ in prompts
        ]
        outputs = self._llm.generate(asked, parameters, use_tqdm=False)
        return [_answer(output.outputs[0]) for output in outputs]

    def _started(self, folder: str) -> Any:
        options = self._options
        set_environment(options.gpus)
        from vllm import LLM

        return LLM(
            model=folder,
            dtype=VLLM_DTYPES[options.precision],
            skip_tokenizer_init=True,
            generation_config="vllm",  # none of the checkpoint's own options and penalties
            logprobs_mode="raw_logprobs",
            max_model_len=options.max_length,
            max_num_seqs=options.batch_size,
            # What was computed for other prompts, or with other weights, has no part in an answer.
            enable_prefix_caching=False,
            disable_log_stats=True,
            worker_extension_cls=f"{__name__}.TakesWeights",
            **device_options(
                Path(folder),
                gpus=options.gpus,
                precision=options.precision,
                tokens=options.batch_size * options.max_length,
            ),
        )


class TakesWeights:
    """What vLLM mixes into its own worker, one per GPU, so that it takes weights while it runs."""

    def take_weights(self, folder: str) -> None:
        """Put the weights of a folder into the model, in the place of those that it has."""
        from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

        worker: Any = self
        worker.reload_weights(weights_path=folder)
        # On CPUs, a head keeps a copy of its weights in another layout, and one that is the model's embeddings is not
        # among what is loaded (vLLM 0.32): it would go on with the old copy. Elsewhere this does nothing.
        for layer in worker.get_model().modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)


def _answer(output: Any) -> Answer:
    """Read what vLLM says of one answer."""
    ids = np.asarray(output.token_ids, np.int32)
    log_probs = [of_token[token].logprob for token, of_token in zip(ids.tolist(), output.logprobs, strict=True)]
    return ids, np.asarray(log_probs, np.float32), output.finish_reason == "stop"
