"""New embeddings for a model, for a tokenizer that is not its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from uld_ds.errors import UserError
from uld_ds.tokenization.vocabulary import Vocabulary

# Special tokens that mean the same in every vocabulary, whatever they are called.
_ROLES = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def remake_embeddings(
    model: PreTrainedModel, old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase, *, spelled: bool
) -> None:
    """Give a model embeddings and an output head of ``len(new)`` rows; they are one matrix if they were one.

    Args:
        model: Model, whole and on the CPU; changed in place.
        old: Tokenizer of the model so far.
        new: Tokenizer that it will have.
        spelled: Whether each row is the mean of the rows of those old tokens that spell the new one (as in Gee et al.,
            Fast Vocabulary Transfer, EMNLP 2022; here by bytes: the longest first). Otherwise, and for tokens that
            nothing spells, rows are drawn from a normal distribution with the mean and deviation that each column had.

    Raises:
        UserError: ``spelled`` with a tokenizer whose tokens' bytes cannot be told.
    """
    sources: list[list[int]] = spellings(old, new) if spelled else [[] for _ in range(len(new))]
    parts: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    tied = parts[1] is None or parts[0].weight is parts[1].weight
    made = [_rows(part.weight.detach(), sources) for part in parts[: 1 if tied else 2]]
    bias = None if tied else getattr(parts[1], "bias", None)
    of_bias = None if bias is None else _rows(bias.detach()[:, None], sources)[:, 0]
    model.resize_token_embeddings(len(new), mean_resizing=False)
    resized: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    with torch.no_grad():
        for part, rows in zip(resized, made, strict=False):
            part.weight.copy_(rows)
        if of_bias is not None:
            resized[1].bias.copy_(of_bias)


def _rows(weight: Tensor, sources: list[list[int]]) -> Tensor:
    """Make new rows [V_new, H] of old ones.

    Args:
        weight: [V_old, H].
        sources: For each of the V_new rows, the old ones that it is the mean of; drawn at random where there are none.
    """
    # [V_new, H]
    rows = weight.mean(0) + weight.std(0) * torch.randn(len(sources), weight.shape[1], dtype=weight.dtype)
    known = [(row, len(ids)) for row, ids in enumerate(sources) if ids]
    if not known:
        return rows
    flat = torch.tensor([token for ids in sources for token in ids])
    starts = torch.tensor([0, *(number for _, number in known[:-1])]).cumsum(0)
    rows[[row for row, _ in known]] = nn.functional.embedding_bag(flat, weight, starts, mode="mean")
    return rows


def spellings(old: PreTrainedTokenizerBase, new: PreTrainedTokenizerBase) -> list[list[int]]:
    """Spell each of the new tokenizer's tokens in ids of old tokens, the longest first; [] where none do.

    Raises:
        UserError: the bytes of one tokenizer's tokens cannot be told.
    """
    ids = _vocabulary(old).by_bytes()
    longest = max(map(len, ids), default=0)
    found = [_spelled(spelling, ids, longest) for spelling in _vocabulary(new).spellings[: len(new)]]
    # The last ids of some vocabularies belong to no token.
    found += [[] for _ in range(len(new) - len(found))]
    for role in _ROLES:
        there, here = getattr(old, role), getattr(new, role)
        if there is not None and here is not None:
            found[here] = [there]
    return found


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> Vocabulary:
    try:
        return Vocabulary.of(tokenizer)
    except ValueError as error:
        raise UserError(
            "student.embeddings", f"'spelled' needs to know what tokens spell: {error}", "take random"
        ) from error


def _spelled(spelling: bytes | None, ids: dict[bytes, int], longest: int) -> list[int]:
    found, start = [], 0
    while spelling and start < len(spelling):
        for stop in range(min(len(spelling), start + longest), start, -1):
            if (token := ids.get(spelling[start:stop])) is not None:
                found.append(token)
                start = stop
                break
        else:
            return []
    return found
