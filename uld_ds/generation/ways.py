"""How an architecture answers several prompts at once, measured: with padding, of equal lengths, or one by one."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from transformers import GenerationConfig

log = logging.getLogger(__name__)


class Way(NamedTuple):
    """How prompts are answered together."""

    together: Literal["any", "equal", "alone"]
    """Prompts of any lengths, the shorter ones padded on the left; those of equal lengths; or each by itself."""
    caches: bool
    """With a cache of keys and values; else every token costs a forward of all before it."""


_WAYS = (Way("any", True), Way("equal", True), Way("alone", True), Way("alone", False))
_PROBED = (12, 3, 3)
"""Tokens of the prompts that ways are tried on: two of equal length, with far more padding than prompt."""
_PROBED_TOKENS = 6
_ROUNDING, COARSE_ROUNDING = 1e-4, 3e-2
"""How far log-probabilities may be off, relative to logits: in fp32, and in other types."""


def find_way(lm: Any, *, padding: int, device: torch.device, whose: str, rounding: float = _ROUNDING) -> Way:
    """Find the first way whose answers have the log-probabilities that a forward of the whole gives them.

    Args:
        lm: Decoder-only transformers model in evaluation mode, without generation options of its own.
        padding: Token id to fill up prompts with.
        device: Device that the model computes on.
        whose: Whose answers they are, for messages.
        rounding: How far log-probabilities may be off in fp32, relative to logits; in other types at least 3e-2.
    """
    errors = []
    for way in _WAYS:
        error, dtype = _error_of(way, lm, padding, device)
        errors.append(f"{error:.3g}")
        if error < (rounding if dtype == torch.float32 else max(rounding, COARSE_ROUNDING)):
            if way != _WAYS[0]:
                how = "prompts of equal length are answered together" if way.together == "equal" else "one by one"
                cache = "" if way.caches else ", without a cache"
                log.warning("transformers' batches change the %s's answers: %s%s, slower", whose, how, cache)
            return way
    log.warning(
        "the %s answers by other probabilities than its forwards give, off by %s of its logits", whose, errors[-1]
    )
    return _WAYS[0]


def groups(lengths: Sequence[int], way: Way) -> list[list[int]]:
    """Group the numbers of the prompts that are answered together, in the order in which their lengths turn up.

    Args:
        lengths: Tokens of each prompt.
        way: How prompts are answered together.
    """
    if way.together == "any":
        return [list(range(len(lengths)))]
    found: dict[int, list[int]] = {}
    for number, length in enumerate(lengths):
        found.setdefault(length if way.together == "equal" else number, []).append(number)
    return list(found.values())


def left_padded(prompts: Sequence[ArrayLike], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Put prompts, filled up on the left, into one matrix of token ids [B, L] and its mask [B, L]."""
    return _padded(prompts, padding, device, on_the_left=True)


def right_padded(prompts: Sequence[ArrayLike], padding: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Put prompts, filled up on the right, into one matrix of token ids [B, L] and its mask [B, L]."""
    return _padded(prompts, padding, device, on_the_left=False)


def _padded(
    prompts: Sequence[ArrayLike], padding: int, device: torch.device, *, on_the_left: bool
) -> tuple[Tensor, Tensor]:
    rows = [np.asarray(prompt, np.int64) for prompt in prompts]
    longest = max(map(len, rows))
    ids = np.full((len(rows), longest), padding, np.int64)
    mask = np.zeros_like(ids)
    for row, prompt in enumerate(rows):
        place = slice(longest - len(prompt), None) if on_the_left else slice(len(prompt))
        ids[row, place] = prompt
        mask[row, place] = 1
    return torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)


@torch.no_grad()
def _error_of(way: Way, lm: Any, padding: int, device: torch.device) -> tuple[float, torch.dtype]:
    """Measure how far log-probabilities of a way are from those of a forward of the whole, relative to logits.

    Returns:
        The largest difference over that of the logits, and the type of the latter.
    """
    known = lm.config.get_text_config().vocab_size
    prompts = [1 + (number + np.arange(length)) % (known - 1) for number, length in enumerate(_PROBED)]
    error = scale = 0.0
    dtype = torch.float32
    for prompt, answer, said in _answered(prompts, way, lm, padding, device):
        ids = torch.cat([torch.from_numpy(prompt).to(device), answer])[None]
        whole = lm(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
        dtype, logits = whole.dtype, whole[0, len(prompt) - 1 : -1].float()  # [T, V]
        moved = (logits.log_softmax(-1) - said.float().log_softmax(-1)).gather(1, answer[:, None])
        error = max(error, float(moved.abs().max()))
        scale = max(scale, float(logits.abs().max()))
    return error / max(scale, 1e-6), dtype


def _answered(
    prompts: Sequence[np.ndarray], way: Way, lm: Any, padding: int, device: torch.device
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """Yield each prompt, the most probable tokens [T] after it, and their logits [T, V]."""
    options = GenerationConfig(
        max_new_tokens=_PROBED_TOKENS, do_sample=False, use_cache=way.caches, pad_token_id=padding,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    for group in groups([len(prompt) for prompt in prompts], way):
        ids, mask = left_padded([prompts[number] for number in group], padding, device)
        # Each rank answers prompts of its own.
        said = lm.generate(input_ids=ids, attention_mask=mask, generation_config=options, synced_gpus=False)
        logits = torch.stack(said.logits, 1)
        for row, number in enumerate(group):
            yield prompts[number], said.sequences[row, ids.shape[1] :], logits[row]
