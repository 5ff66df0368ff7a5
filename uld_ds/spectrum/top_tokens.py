"""The top-k tokens of next-token distributions: ids and log-probabilities, which spectra leave out on purpose.

Ids mean something in one vocabulary alone. Objectives that look at identities (the same tokenizer, the same byte
strings, byte prefixes) take them from here; everything else keeps to spectra.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements per chunk: float32 copies of the logits exist for one chunk at a time.
_CHUNK_ELEMENTS_CPU = 1 << 21
_CHUNK_ELEMENTS_ACCELERATOR = 1 << 26


@dataclass(frozen=True)
class TopTokens:
    """The top-k tokens of each of T next-token distributions, the most probable first."""

    ids: Tensor
    """[T, k] int64: token ids, no two of a row the same; of equally likely tokens the lower id comes first."""
    log_probs: Tensor
    """[T, k] float32: natural log-probabilities at temperature 1, descending; -inf for what cannot be."""

    def __post_init__(self) -> None:
        if self.ids.dim() != 2 or self.ids.shape != self.log_probs.shape:
            raise ValueError(f"ids {list(self.ids.shape)} and log_probs {list(self.log_probs.shape)} must be [T, k]")

    @classmethod
    @torch.no_grad()
    def from_logits(cls, logits: Tensor, k: int, *, log_normalizer: Tensor | None = None) -> TopTokens:
        """Take the top-k tokens of each row of logits.

        A row's result does not depend on the rows beside it.

        Args:
            logits: [T, V], any floating dtype; taken as float32. A row with NaN has NaN log-probabilities.
            k: tokens per row; V where the vocabulary is smaller.
            log_normalizer: [T] float32, ``logsumexp(logits)``, if at hand.

        Raises:
            ValueError: ``k`` is not positive, or ``logits`` are not [T, V].
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if logits.dim() != 2:
            raise ValueError(f"logits must be [T, V], got {list(logits.shape)}")
        k = min(k, logits.shape[1])
        budget = _CHUNK_ELEMENTS_CPU if logits.device.type == "cpu" else _CHUNK_ELEMENTS_ACCELERATOR
        step = max(1, budget // max(logits.shape[1], 1))
        parts = []
        for start in range(0, max(len(logits), 1), step):
            values = logits[start : start + step].float()
            known = values.logsumexp(1) if log_normalizer is None else log_normalizer[start : start + step]
            ids = _top_ids(values, k)
            log_probs = values.gather(1, ids) - known[:, None]
            # Padding, a row of nothing but -inf, is not NaN.
            parts.append(cls(ids, log_probs.masked_fill(known[:, None] == float("-inf"), float("-inf"))))
        return cls.cat(parts)

    @classmethod
    def cat(cls, parts: Sequence[TopTokens]) -> TopTokens:
        """Concatenate top-k tokens along the rows.

        Raises:
            ValueError: there are none, or they differ in k.
        """
        widths = {part.k for part in parts}
        if len(widths) != 1:
            raise ValueError(f"rows with {sorted(widths)} tokens each cannot stand in one table")
        return cls(torch.cat([part.ids for part in parts]), torch.cat([part.log_probs for part in parts]))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice | Tensor) -> TopTokens:
        return TopTokens(self.ids[rows], self.log_probs[rows])

    def to(self, device: torch.device | str) -> TopTokens:
        """Move the top-k tokens to another device."""
        return TopTokens(self.ids.to(device), self.log_probs.to(device))

    def first(self, k: int) -> TopTokens:
        """Keep only the first ``k`` tokens of each row; all where a row has fewer."""
        return TopTokens(self.ids[:, :k], self.log_probs[:, :k])

    def bounded_log_probs(self) -> Tensor:
        """Return [T, k] float64 log-probabilities, lowered where rounding has made a row sum to more than 1."""
        log_p = self.log_probs.double()
        return log_p - log_p.logsumexp(1, keepdim=True).clamp(min=0.0)

    @property
    def k(self) -> int:
        """The number of tokens kept per row."""
        return self.ids.shape[1]

    @property
    def rest(self) -> Tensor:
        """The probability of all other tokens together, [T] in the dtype of ``log_probs``, within [0, 1].

        Known to about 1e-6 where log-probabilities are float32, to some 1e-4 where they have been float16: a rest of
        that size need not be one.
        """
        taken = self.log_probs.double().exp().sum(1)
        return (1 - taken).clamp(min=0.0).to(self.log_probs.dtype)


def _top_ids(values: Tensor, k: int) -> Tensor:
    """Find the ids of the ``k`` largest of each row of ``values [T, V]``, equal ones by lowest id: [T, k].

    ``topk`` does not say which of equal values it takes, and logits in bf16 have many.
    """
    vocab = values.shape[1]
    some, ids = values.topk(k, dim=1)
    smallest = some[:, -1:]
    above = some > smallest
    # Of all that equal the smallest one taken: the lowest ids, as many as there is room for.
    descending = torch.arange(vocab, 0, -1, dtype=torch.int32, device=values.device)
    tied = vocab - (values.eq(smallest) * descending).topk(k, dim=1).values.to(torch.int64)
    place = torch.arange(k, device=values.device) - above.sum(1, keepdim=True)
    # (Where a row is NaN, nothing equals anything.)
    ids = torch.where(above, ids, tied.gather(1, place.clamp(min=0)).clamp(max=vocab - 1))
    ids = ids.sort(dim=1).values
    return ids.gather(1, values.gather(1, ids).sort(dim=1, descending=True, stable=True).indices)
