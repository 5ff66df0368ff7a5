"""Sampling of a model's own answers, as token ids: seeded per prompt, in batches that do not depend on the workers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from uld_ds.errors import FinalError
from uld_ds.generation.decoding import draws_of, end_ids, filtered
from uld_ds.generation.ways import Way, find_way, groups, left_padded
from uld_ds.recipe.rollouts import RolloutSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """A prompt that is to be answered once."""

    name: str
    """Name that the draws depend on besides the seed: of the round, the prompt and the sample."""
    prompt: np.ndarray
    """[n] int32 token ids of the prompt."""


@dataclass(frozen=True)
class Sampled:
    """An answer that a model has sampled."""

    ids: np.ndarray
    """[T] int32 token ids, the one that ended the answer included."""
    log_probs: np.ndarray
    """[T] float32 natural log-probability of each under the model's own distribution, whatever the temperature."""
    ended: bool
    """Whether the last token is one that ends an answer; False where it was cut off."""

    @classmethod
    def given(cls, ids: Sequence[int]) -> Sampled:
        """Make an answer of tokens that nobody sampled; it is cut off, and its log-probabilities are not known."""
        return cls(np.asarray(ids, np.int32), np.full(len(ids), np.nan, np.float32), ended=False)


@dataclass(frozen=True)
class Sampling:
    """The options of sampling: all that decides an answer, besides the prompt and the model."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    @classmethod
    def of(cls, settings: RolloutSettings, seed: int) -> Sampling:
        """Make the options that a recipe sets."""
        return cls(settings.max_new_tokens, settings.temperature, settings.top_p, settings.top_k, seed)


def batches_by_length(asked: Sequence[Asked], batch_size: int) -> list[list[int]]:
    """Batch prompts of similar length, the longest first; return the numbers of each batch's.

    The batches depend on the prompts alone: an answer is the same bit for bit whoever samples its batch.
    """
    ordered = sorted(range(len(asked)), key=lambda number: (-len(asked[number].prompt), number))
    return [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]


class Sampler:
    """A language model that samples answers to batches of prompts, through transformers' ``generate``.

    Whether an architecture bears padding on the left, and whether its cache gives what a forward of the whole gives, is
    measured with its first batch.

    Args:
        lm: Decoder-only transformers model, or PEFT's wrapper around one, in evaluation mode whenever it is asked. Its
            weights may change from batch to batch.
        ends: Token ids that end an answer, besides those that the model's generation configuration names.
        padding: Token id to fill up prompts with.
        device: Device that the model computes on.
    """

    def __init__(self, lm: Any, *, ends: Sequence[int], padding: int, device: torch.device) -> None:
        # PEFT's own generate would lend adapters again that are in their layers already.
        self._lm: Any = lm.get_base_model() if hasattr(lm, "get_base_model") else lm
        self._ends = sorted({*end_ids(self._lm.generation_config.eos_token_id), *ends})
        self._padding = padding
        self._device = device
        self._way: Way | None = None

    @torch.no_grad()
    def sample(self, asked: Sequence[Asked], sampling: Sampling) -> list[Sampled]:
        """Sample one answer to each of a batch's prompts.

        Each token takes one uniform number of its prompt's own generator: an answer depends on the batch's other
        prompts by rounding alone, and the same batch has the same answers bit for bit.

        Args:
            asked: Prompts, none of them empty.
            sampling: Options of sampling.

        Raises:
            FinalError: the model's logits are not finite.
        """
        with self._own_options():
            if self._way is None:
                self._way = find_way(self._lm, padding=self._padding, device=self._device, whose="student")
            return self._answers(asked, sampling, self._way, self._ends)

    @contextmanager
    def _own_options(self) -> Iterator[None]:
        """Keep a checkpoint's own sampling options and penalties from being mixed into ours."""
        held = self._lm.generation_config
        self._lm.generation_config = GenerationConfig()
        try:
            yield
        finally:
            self._lm.generation_config = held

    def _answers(self, asked: Sequence[Asked], sampling: Sampling, way: Way, ends: Sequence[int]) -> list[Sampled]:
        found: dict[int, Sampled] = {}
        for group in groups([len(one.prompt) for one in asked], way):
            found |= zip(group, self._together([asked[n] for n in group], sampling, way, ends), strict=True)
        return [found[number] for number in range(len(asked))]

    def _together(self, asked: Sequence[Asked], sampling: Sampling, way: Way, ends: Sequence[int]) -> Iterator[Sampled]:
        input_ids, mask = left_padded([one.prompt for one in asked], self._padding, self._device)
        draws = _Draws(sampling, [one.name for one in asked], self._device)
        options = GenerationConfig(
            max_new_tokens=sampling.max_new_tokens,
            do_sample=False,
            use_cache=way.caches,
            eos_token_id=list(ends) or None,
            pad_token_id=self._padding,
        )
        self._lm.generate(
            input_ids=input_ids,
            attention_mask=mask,
            generation_config=options,
            logits_processor=LogitsProcessorList([draws]),
            # Each rank answers prompts of its own.
            synced_gpus=False,
        )
        for ids, log_probs in zip(*draws.taken(), strict=True):
            yield _until_end(ids, log_probs, ends)


class _Draws(LogitsProcessor):
    """The choice of each token by the inverse of the cumulative distribution, and a record of what was chosen.

    Args:
        sampling: Options of sampling.
        names: Names of B prompts.
        device: Device of the logits.
    """

    def __init__(self, sampling: Sampling, names: Sequence[str], device: torch.device) -> None:
        self._sampling = sampling
        uniform = [
            torch.rand(sampling.max_new_tokens, generator=draws_of(sampling.seed, name), dtype=torch.float64)
            for name in names
        ]
        self._uniform = torch.stack(uniform, 1).to(device)  # [T, B]
        self._ids: list[Tensor] = []
        self._log_probs: list[Tensor] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Choose a token for each row of logits ``scores`` [B, V], which become infinite there."""
        options = self._sampling
        uniform = self._uniform[len(self._ids)]  # [B]
        if options.temperature == 1 and options.top_k == 0 and options.top_p == 1:
            logits = scores
        else:
            logits = filtered(scores / options.temperature, options.top_k, options.top_p)
        chosen = inverse_cdf(logits, uniform)[:, None]  # [B, 1]
        self._log_probs.append((scores.gather(1, chosen) - scores.logsumexp(1, keepdim=True))[:, 0])
        self._ids.append(chosen[:, 0])
        # A copy of the model's logits that nobody else reads.
        return scores.scatter_(1, chosen, float("inf"))

    def taken(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the chosen ids [B, T] int32 and their log-probabilities [B, T] float32, those after an end, too."""
        ids, log_probs = torch.stack(self._ids, 1).cpu(), torch.stack(self._log_probs, 1).cpu()
        return ids.to(torch.int32).numpy(), log_probs.numpy()


def inverse_cdf(logits: Tensor, uniform: Tensor) -> Tensor:
    """Choose tokens [B] by logits [B, V]: the first up to which the distribution has more mass than ``uniform``.

    Args:
        logits: [B, V]; a token of -inf is never chosen.
        uniform: [B] float64 in [0, 1).
    """
    # In float64: over a large vocabulary, sums of float32 lose what rare tokens have.
    mass = (logits - logits.amax(1, keepdim=True)).exp_().cumsum(1, dtype=torch.float64)  # [B, V]
    whole = mass[:, -1:]
    # Rounded up to all of it, it would be found nowhere.
    sought = torch.minimum(uniform[:, None] * whole, torch.nextafter(whole, torch.zeros_like(whole)))
    return torch.searchsorted(mass, sought, right=True)[:, 0].clamp_max(logits.shape[1] - 1)


def _until_end(ids: np.ndarray, log_probs: np.ndarray, ends: Iterable[int]) -> Sampled:
    """Cut generated tokens [T] behind the first that ends the answer.

    Raises:
        FinalError: a log-probability is not finite.
    """
    last = np.flatnonzero(np.isin(ids, list(ends)))
    length = last[0] + 1 if len(last) else len(ids)
    if not np.isfinite(log_probs[:length]).all():
        raise FinalError("the student's logits are not finite: it has nothing to sample from")
    return Sampled(ids[:length].copy(), log_probs[:length].copy(), bool(len(last)))
