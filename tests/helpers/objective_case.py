"""A small objective put together by hand, with its loss and gradients by autograd in float64."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.helpers.segments import micro_batch_of, teacher_of
from uld_ds.batches import JudgedBatch, SegmentRows, SideBatch
from uld_ds.losses.normalization import RowWeights
from uld_ds.losses.objective import Objective
from uld_ds.models.row_model import Head, LogitMap
from uld_ds.recipe import ObjectiveSettings
from uld_ds.recipe.rollouts import RolloutSettings, taught
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.spectrum.top_tokens import TopTokens

ANSWERS, HIDDEN, VOCAB, TEACHER_VOCAB = 21, 16, 211, 307


# Token that begins the second answer.
SECOND = 8


SEGMENTS = torch.tensor([0, 2, 3, 7, 8, 12, 13, 14, 20])


NOTHING = torch.empty(0, dtype=torch.long)


STOPS = torch.tensor([2, 3, 7, 8, 12, 13, 14, 20, 21])


def side_batch(ids: Tensor) -> SideBatch:
    """Only what the objective reads: the answers' ids, and where they are. Token 8 begins a second answer."""
    rows = torch.arange(len(ids))
    return SideBatch(NOTHING, NOTHING, rows + 5 * (rows >= 8), ids, NOTHING, NOTHING)


def segments_of(starts: Tensor, stops: Tensor, num_answers: int, merge: str = "first") -> SegmentRows:
    compared = starts if merge == "first" else stops - 1
    others = torch.tensor([i for i in range(num_answers) if i not in compared.tolist()], dtype=torch.long)
    runs = list(zip(starts.tolist(), stops.tolist(), strict=True))
    members = [(row, n) for n, (start, stop) in enumerate(runs) for row in range(start, stop)]
    earlier = [] if merge == "first" else [(row, n) for row, n in members if row < stops[n] - 1]
    pairs = [torch.tensor(part, dtype=torch.long).reshape(-1, 2).unbind(1) for part in (earlier, members)]
    return SegmentRows(compared, others, *pairs[0], *pairs[1])


class Case:
    """Random hidden states, head, teacher and weights, the same every time."""

    def __init__(self, *, bias: bool = False, logit_map: LogitMap | None = None, reach_head: bool = True) -> None:
        torch.manual_seed(0)
        self.hidden = torch.randn(ANSWERS, HIDDEN if reach_head else VOCAB) * (1 if reach_head else 3)
        self.weight = torch.randn(VOCAB, HIDDEN) * 0.8 if reach_head else None
        self.bias = torch.randn(VOCAB) if bias else None
        self.logit_map = logit_map or LogitMap()
        self.teacher = torch.randn(len(SEGMENTS), TEACHER_VOCAB) * 3
        self.teacher_scale = -torch.rand(len(SEGMENTS)) * (STOPS - SEGMENTS - 1)
        self.teacher_log_probs = -torch.rand(len(SEGMENTS)) * 4 - 0.01
        self.batch = side_batch(torch.randint(0, VOCAB, (ANSWERS,)))
        self.weights = RowWeights(torch.rand(ANSWERS) / ANSWERS, torch.rand(len(SEGMENTS)) / len(SEGMENTS))

    def leaves(self, dtype: torch.dtype) -> list[Tensor]:
        given = [tensor for tensor in (self.hidden, self.weight, self.bias) if tensor is not None]
        return [tensor.to(dtype, copy=True).requires_grad_() for tensor in given]

    def head(self, leaves: list[Tensor]) -> Head:
        weight = leaves[1] if self.weight is not None else None
        return Head(weight, leaves[2] if self.bias is not None else None, self.logit_map)

    def two_answers(self, segments: SegmentRows, own: list[bool] | None) -> JudgedBatch:
        """A micro-batch of both answers, each an example, some of which the student sampled."""
        batch = replace(self.batch, answer_example=(torch.arange(ANSWERS) >= SECOND).long())
        return replace(
            micro_batch_of(batch, segments),
            segment_example=(segments.compared >= SECOND).long(),
            own=None if own is None else torch.tensor(own),
        )

    def only(self, answers: list[bool]) -> Case:
        """The same case with weights in some of the two answers alone."""
        counts = torch.tensor(answers).float()
        other = copy(self)
        other.weights = RowWeights(
            self.weights.answers * counts[(torch.arange(ANSWERS) >= SECOND).long()],
            self.weights.segments * counts[(SEGMENTS >= SECOND).long()],
        )
        return other

    def reference(self, settings: ObjectiveSettings) -> tuple[float, list[Tensor]]:
        """Loss and gradients in float64, by autograd through a sort."""
        leaves = self.leaves(torch.float64)
        logits = self.head(leaves).logits(leaves[0])
        nats = F.cross_entropy(logits, self.batch.answer_ids, reduction="none")
        loss = settings.ce * (nats @ self.weights.answers.double())
        compared = SEGMENTS if settings.merge == "first" else STOPS - 1
        p = (logits[compared] / settings.student_temperature).softmax(-1).sort(-1, descending=True).values
        q = (self.teacher.double() / settings.teacher_temperature).softmax(-1).sort(-1, descending=True).values
        if settings.merge == "chain":
            scale = [-nats[start : stop - 1].sum() for start, stop in zip(SEGMENTS, STOPS, strict=True)]
            p = p * torch.stack(scale).exp()[:, None]
            q = q * self.teacher_scale.double().exp()[:, None]
        distance = (F.pad(p, (0, TEACHER_VOCAB - VOCAB)) - q).abs().sum(-1)
        loss = loss + settings.uld * (distance @ self.weights.segments.double())
        loss = loss + settings.likelihood * self.binary_kl(nats, settings)
        if settings.classical:
            loss = loss + settings.classical * (self.lumped(logits, settings) @ self.weights.segments.double())
        loss.backward()
        return loss.item(), [leaf.grad for leaf in leaves if leaf.grad is not None]

    def lumped(self, logits: Tensor, settings: ObjectiveSettings) -> Tensor:
        """[S] KL(teacher, student) over the teacher's top-k tokens and all others together."""
        p, q = self.teacher.double()[:, :VOCAB].softmax(-1), logits[SEGMENTS].softmax(-1)
        ids = p.topk(settings.top_ids).indices
        p, q = ((torch.cat([x.gather(1, ids), 1 - x.gather(1, ids).sum(1, keepdim=True)], 1)) for x in (p, q))
        return (p * (p / q).log()).sum(1)

    def binary_kl(self, nats: Tensor, settings: ObjectiveSettings) -> Tensor:
        """Between the probabilities of the bytes of each segment, weighed, from their definition."""
        own = torch.stack([-nats[start:stop].sum() for start, stop in zip(SEGMENTS, STOPS, strict=True)])
        p = (self.teacher_log_probs.double() / settings.likelihood_temperature).exp()
        q = (own / settings.likelihood_temperature).exp()
        values: Tensor = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
        return values @ self.weights.segments.double()

    def chunked(
        self,
        settings: ObjectiveSettings,
        *,
        rollouts: RolloutSettings | None = None,
        own: list[bool] | None = None,
    ) -> tuple[float, list[Tensor], dict[str, Tensor]]:
        leaves = self.leaves(torch.float32)
        spectrum = Spectrum.from_logits(self.teacher, temperature=settings.teacher_temperature)
        if settings.merge == "chain":
            spectrum = spectrum.shift(self.teacher_scale)
        segments = segments_of(SEGMENTS, STOPS, ANSWERS, settings.merge)
        classical = taught(settings, rollouts).classical
        top = TopTokens.from_logits(self.teacher[:, :VOCAB], 50) if classical else None
        loss, parts = Objective.from_settings(settings, rollouts=rollouts)(
            leaves[0],
            self.head(leaves),
            self.two_answers(segments, own),
            teacher_of(spectrum, self.teacher_log_probs, top),
            self.weights,
        )
        (loss * 2).backward()
        return loss.item(), [leaf.grad / 2 for leaf in leaves if leaf.grad is not None], parts
