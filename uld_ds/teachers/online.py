"""The teacher beside the student: frozen, sharded by ZeRO-3 over all ranks, run once per optimizer step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.data.windows import SideBatch, Window
from uld_ds.spectrum import Spectrum

# Rows of logits that exist at a time: 256 x 128k x 4 bytes = 131 MB.
CHUNK_ROWS = 256


class OnlineTeacher:
    """Turns a window's segments into spectra with a DeepSpeed engine around a frozen RowModel.

    Args:
        engine: from ``deepspeed.initialize`` without an optimizer, or a RowModel itself when unsharded.
        temperature: softens the teacher's distributions before their identities are dropped.
    """

    def __init__(self, engine: Any, *, temperature: float = 1.0) -> None:
        self._engine = engine
        self._temperature = temperature

    def spectra(self, window: Window) -> list[Spectrum]:
        """One Spectrum per micro-batch; each sub-batch of the window is one gather of the teacher's weights."""
        parts = [
            Spectrum.cat(self._run(batch, batch.segment_rows, self._as_spectrum))
            for batch in window.teacher_batches
        ]
        return window.split(Spectrum.cat(parts))

    def answer_log_probs(self, batch: SideBatch) -> Tensor:
        """[A] natural log-probability of each answer token."""

        def pick(logits: Tensor, chunk: slice) -> Tensor:
            return -F.cross_entropy(logits.float(), batch.answer_ids[chunk], reduction="none")

        return torch.cat(self._run(batch, batch.answer_rows, pick))

    def _as_spectrum(self, logits: Tensor, _chunk: slice) -> Spectrum:
        return Spectrum.from_logits(logits, temperature=self._temperature)

    def _run(self, batch: SideBatch, rows: Tensor, consume: Any) -> Any:
        with torch.no_grad():
            return self._engine(batch, rows, consume, chunk_rows=CHUNK_ROWS)
