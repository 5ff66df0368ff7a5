"""Where the teacher's spectra come from."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from uld_ds.data.windows import SideBatch, Window
from uld_ds.spectrum import Spectrum


class TeacherSource(Protocol):
    """What the engine needs of a teacher, whatever it is."""

    def spectra(self, window: Window) -> list[Spectrum]:
        """One Spectrum per micro-batch, one row per segment."""
        ...

    def answer_log_probs(self, batch: SideBatch) -> Tensor:
        """[A] natural log-probability of each answer token of the teacher's side."""
        ...
