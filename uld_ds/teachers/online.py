"""The teacher beside the student: frozen, sharded by ZeRO-3 over all ranks, run once per optimizer step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from uld_ds.data.windows import SideBatch, Window
from uld_ds.language_model import Head, log_probs_of
from uld_ds.spectrum import Spectrum


class OnlineTeacher:
    """Turns a window's segments into spectra with a DeepSpeed engine around a frozen RowModel.

    Args:
        engine: from ``deepspeed.initialize`` without an optimizer, or a RowModel itself when unsharded.
        temperature: softens the teacher's distributions before their identities are dropped.
    """

    def __init__(self, engine: Any, *, temperature: float = 1.0) -> None:
        self._engine = engine
        self._temperature = temperature

    @torch.no_grad()
    def spectra(self, window: Window) -> list[Spectrum]:
        """One Spectrum per micro-batch; each sub-batch of the window is one gather of the teacher's weights."""
        parts = [self._engine(batch, batch.segment_rows, self._as_spectra) for batch in window.teacher_batches]
        return window.split(Spectrum.cat([spectrum for chunks in parts for spectrum in chunks]))

    @torch.no_grad()
    def answer_log_probs(self, batch: SideBatch) -> Tensor:
        """[A] natural log-probability of each answer token."""
        return self._engine(batch, batch.answer_rows, log_probs_of(batch.answer_ids))

    def _as_spectra(self, hidden: Tensor, head: Head) -> list[Spectrum]:
        # A list, because ZeRO-3's hooks look into what a module returns and know tensors, lists and dicts.
        return [
            Spectrum.from_logits(head.logits(hidden[chunk]), temperature=self._temperature)
            for chunk in head.chunks(hidden)
        ]
