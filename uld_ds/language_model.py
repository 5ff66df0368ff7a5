"""A causal language model that computes logits only where somebody reads them.

Full logits are [B, L, V]; prompts and padding make most of them useless, and at large vocabularies they dwarf
everything else. Here the body runs over whole sequences, the output head only over chosen positions, in chunks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from uld_ds.data.windows import SideBatch

log = logging.getLogger(__name__)
T = TypeVar("T")
Gather = Callable[[Iterable[nn.Parameter]], AbstractContextManager]


class RowModel(nn.Module):
    """Wraps a causal language model; the unit that DeepSpeed gets, for teacher and student alike.

    Args:
        lm: the model.
        gather: context in which given parameters are whole, for sharded ones. Lets the head be gathered once
            for all chunks.
    """

    def __init__(self, lm: PreTrainedModel, gather: Gather | None = None) -> None:
        super().__init__()
        self.lm = lm
        self._gather: Gather = gather or (lambda _parameters: nullcontext())
        self.direct_head = True

    @property
    def head(self) -> nn.Module:
        return self.lm.get_output_embeddings()

    def forward(
        self,
        batch: SideBatch,
        rows: Tensor,
        consume: Callable[[Tensor, slice], T],
        chunk_rows: int | None = None,
    ) -> list[T]:
        """Applies ``consume`` to the logits at ``rows``.

        Args:
            batch: B sequences of L tokens.
            rows: [R] indices into the flattened [B * L] positions.
            consume: takes logits [C, V] and which of the R rows they are. Never called with all [B * L].
            chunk_rows: C at most; all rows at once by default.

        Returns:
            What ``consume`` returned, chunk by chunk. For no rows, one call with [0, V].
        """
        hidden = self._hidden_rows(batch, rows)
        step = chunk_rows or max(len(rows), 1)
        chunks = [slice(start, min(start + step, len(rows))) for start in range(0, max(len(rows), 1), step)]
        if not self.direct_head:
            return [consume(hidden[chunk], chunk) for chunk in chunks]
        head = self.head
        if torch.is_grad_enabled() or not isinstance(head, nn.Linear):
            return [consume(head(hidden[chunk]), chunk) for chunk in chunks]
        # Not through the module: its hooks would gather and release the weight for every chunk, and ranks with
        # other numbers of chunks would wait for each other for ever.
        with self._gather(head.parameters()):
            return [consume(F.linear(hidden[chunk], head.weight, head.bias), chunk) for chunk in chunks]

    def _hidden_rows(self, batch: SideBatch, rows: Tensor) -> Tensor:
        if self.direct_head:
            output = self.lm.base_model(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).last_hidden_state
        else:
            output = self.lm(
                input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
            ).logits
        return output.flatten(0, 1)[rows]


def largest_head_error(model: RowModel, call: Callable[..., list[Tensor]], device: torch.device) -> float:
    """How far the head applied to the body's output is from the model's own logits, at most.

    Some architectures scale or cap their logits after the head. That is measured, not guessed from a name.

    Args:
        model: the wrapped model.
        call: runs it: ``model`` itself, or the engine around it.
        device: where its inputs go.
    """
    ids = torch.arange(1, 5, device=device)[None]
    empty = torch.empty(0, dtype=torch.long, device=device)
    batch = SideBatch(ids, torch.ones_like(ids), empty, empty, empty, empty, empty, empty)
    rows = torch.arange(4, device=device)
    results = []
    with torch.no_grad():
        for direct in (True, False):
            model.direct_head = direct
            results.append(call(batch, rows, lambda logits, _chunk: logits.float())[0])
    model.direct_head = True
    return float((results[0] - results[1]).abs().max())


def choose_head_path(
    model: RowModel, call: Callable[..., list[Tensor]], device: torch.device, name: str
) -> None:
    """Lets ``model`` compute logits by its head alone, or by the whole model where that differs (logged)."""
    error = largest_head_error(model, call, device)
    if error > 1e-3:
        model.direct_head = False
        log.warning(
            "%s: logits are not head(body) (off by %.3g): computing them for whole sequences, with more memory",
            name,
            error,
        )
