"""The training objective: cross-entropy on the answer plus the ULD distance to the teacher's spectra.

``L = ce * sum_i a_i CE_i + uld * sum_s b_s W1(student_s, teacher_s)`` with row weights ``a``, ``b`` from
normalisation.py (Boizard et al., arXiv 2402.12030, with segments in place of truncated positions).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from uld_ds.data.windows import SideBatch
from uld_ds.normalisation import RowWeights
from uld_ds.recipe import ObjectiveSettings
from uld_ds.spectrum import Spectrum
from uld_ds.uld import uld_distance


@dataclass(frozen=True)
class Objective:
    """Cross-entropy and ULD, weighed as the recipe says."""

    settings: ObjectiveSettings

    def __call__(
        self, logits: Tensor, batch: SideBatch, spectrum: Spectrum, weights: RowWeights
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of one micro-batch and its parts.

        Args:
            logits: [A, V] the student's, one row per answer token, differentiable.
            batch: the student's side.
            spectrum: [S] the teacher's, one row per segment.
            weights: of the A and S rows.

        Returns:
            A scalar, and detached parts: scalars ``ce`` and ``uld`` without the recipe's weights, so that they
            compare across recipes, and ``token_nats`` [A].
        """
        if len(spectrum) != len(batch.segment_answers):
            raise ValueError(
                f"{len(spectrum)} teacher rows for {len(batch.segment_answers)} segments: not aligned"
            )
        token_nats = F.cross_entropy(logits.float(), batch.answer_ids, reduction="none")
        ce = (token_nats * weights.answers).sum()
        distance = uld_distance(
            logits[batch.segment_answers],
            spectrum,
            student_temperature=self.settings.student_temperature,
            teacher_temperature=self.settings.teacher_temperature,
            method=self.settings.method,
        )
        uld = (distance * weights.segments).sum()
        loss = self.settings.ce * ce + self.settings.uld * uld
        return loss, {"ce": ce.detach(), "uld": uld.detach(), "token_nats": token_nats.detach().double()}
