"""The training objective: a weighted sum of cross-entropy, ULD distance, likelihood matching and identity terms.

Cross-entropy is on the answer, the ULD distance is to the teacher's spectra; ``uld_ds.losses.terms`` has the terms
that look at token identities.

``L = ce * sum_i a_i CE_i + uld * sum_s b_s W1(student_s, teacher_s) + likelihood * sum_s b_s D(student_s, teacher_s)``
``  + sum_t weight_t * sum_s b_s term_t(student_s, teacher_s)``
with row weights ``a``, ``b`` from ``losses/normalization.py`` and ``D`` from ``losses/likelihood.py`` (Boizard et al.,
arXiv 2402.12030, with segments in place of truncated positions). With ``merge: chain`` both distributions of a segment
are scaled by the probability of the segment's tokens before them, and the student's scale is differentiated like
everything else.

The weights ``ce``, ``uld``, ... may be others for answers that the student sampled itself (``rollouts.objective``); the
row weights are of given and own answers together.

Loss and gradients are computed in one pass over chunks of rows (``uld_ds.losses.chunked``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.alignment.vocabulary_mapping import VocabularyRelations
from uld_ds.batches import JudgedBatch
from uld_ds.losses.chunked import NUM_PARTS, ChunkedLoss, Rows, head_tensors
from uld_ds.losses.difference import tilted
from uld_ds.losses.likelihood import LikelihoodPart, likelihood_part
from uld_ds.losses.normalization import RowWeights
from uld_ds.losses.term import Compared, IdentityTerm
from uld_ds.losses.terms import identity_terms
from uld_ds.models.row_model import Head, log_probs_of
from uld_ds.recipe import ObjectiveSettings
from uld_ds.recipe.rollouts import RolloutSettings, taught
from uld_ds.teacher_outputs import TeacherSegments
from uld_ds.uld.distance import uld_distance, uld_value_and_grad

# Rows of a micro-batch whose student entropy is measured: enough for a curve, few enough to cost nothing.
_ENTROPY_ROWS = 32


class _Chunk(NamedTuple):
    """Cross-entropy and ULD of C rows, with their gradient."""

    parts: list[Tensor]
    """``NUM_PARTS`` tensors of [C]."""
    grad: Tensor
    """[C, V] float32 d loss / d logits."""
    log_normalizer: Tensor
    """[C] float32 ``logsumexp(logits)``."""


@dataclass(frozen=True)
class Objective:
    """The training objective of a recipe: all of its terms with their weights."""

    settings: ObjectiveSettings
    """The objective, with every term that given or own answers have a weight for."""
    terms: tuple[IdentityTerm, ...] = ()
    """The terms that look at token identities: all that the settings give a weight."""
    is_space: Tensor | None = None
    """[V_s] bool from ``VocabularyRelations``, for ``skip_whitespace_rows``."""
    given: ObjectiveSettings | None = None
    """The recipe's objective, whose weights given answers have. Default: ``settings``."""
    own: Mapping[str, float] | None = None
    """Weight of every term for the student's own answers, by its key. Default: those of given answers."""

    def __post_init__(self) -> None:
        if [term.name for term in self.terms] != self.settings.identity_terms:
            raise ValueError(f"the objective needs {self.settings.identity_terms}: see Objective.from_settings")

    @property
    def optional_parts(self) -> list[str]:
        """Names of the parts of this objective's loss that not every objective has."""
        likelihood = ["likelihood"] if self.settings.likelihood else []
        return likelihood + [term.name for term in self.terms]

    @classmethod
    def from_settings(
        cls,
        settings: ObjectiveSettings,
        relations: VocabularyRelations | None = None,
        device: torch.device | str = "cpu",
        *,
        rollouts: RolloutSettings | None = None,
    ) -> Objective:
        """Build the objective that a recipe describes.

        Args:
            settings: the recipe's objective.
            relations: of the two vocabularies, where the recipe's ``taught`` says that it ``needs_vocabularies``.
            device: where logits will be.
            rollouts: the recipe's rollouts, which may have other weights for the student's own answers.

        Raises:
            ValueError: a term needs relations that are not given.
        """
        every = taught(settings, rollouts)
        terms = identity_terms(every, relations, device, given=settings)
        own = None if rollouts is None else rollouts.weights(settings)
        is_space = None if relations is None else torch.from_numpy(relations.is_space).to(device)
        return cls(every, terms, is_space, given=settings, own=own)

    def _weight(self, name: str, given: float, is_own: Tensor | None) -> float | Tensor:
        """Return a term's weight in the loss: one for all rows, or [N] of N rows of which some are of own answers.

        Args:
            name: the term's key.
            given: its weight for given answers.
            is_own: [N] bool, or None where all rows are of given answers.
        """
        if is_own is None or self.own is None:
            return given
        return torch.where(is_own, self.own[name], given)

    def __call__(
        self,
        hidden: Tensor,
        head: Head,
        micro_batch: JudgedBatch,
        teacher: TeacherSegments,
        weights: RowWeights,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of one micro-batch, and its parts.

        Args:
            hidden: [A, H] the student's hidden states, one row per answer token, differentiable.
            head: the student's output head; its tensors receive gradients.
            micro_batch: the student's side, with S segments among the A rows, as one teacher judges it.
            teacher: the teacher's outputs for the S segments, with ``settings.num_top_ids`` or more top-k tokens where
                a term looks at identities.
            weights: of the A and S rows.

        Returns:
            A scalar, and detached parts that add up over the micro-batches and ranks of a step: ``ce``, ``uld``
            (of all answers, without the recipe's weights: they compare across recipes), ``uld_head`` (the share of
            ``uld`` among the largest probabilities), ``uld_bound`` (how far ``uld`` may be from the exact distance),
            ``teacher_entropy`` (nats, weighed like ``uld``), ``student_entropy`` (nats, summed over a sample of
            ``student_entropy_rows`` rows); the ``optional_parts``: ``likelihood``, of every term its value. Beside them
            ``token_nats`` [A].

        Raises:
            ValueError: the teacher has another number of rows than there are segments; what a term needs is missing.
        """
        segments, spectrum = micro_batch.student_segments, teacher.spectrum
        if len(spectrum) != len(segments):
            raise ValueError(f"{len(spectrum)} teacher rows for {len(segments)} segments: not aligned")
        order = torch.cat([segments.compared, segments.others])  # [A], the S compared rows first
        likelihood = self._likelihood(hidden, head, micro_batch, teacher, weights)
        rows = self._rows(hidden, head, micro_batch, teacher, order, weights, likelihood)
        loss, *per_row = ChunkedLoss.apply(hidden[order], *head_tensors(head), head, rows, self._one_chunk)
        in_order, *of_rows = (part.detach() for part in per_row)
        nats = torch.empty_like(in_order)
        nats[order] = in_order
        distance, head_distance, bound = (part[: len(segments)] for part in of_rows[: NUM_PARTS - 1])
        of_terms = of_rows[NUM_PARTS - 1 :]
        of_segments = weights.segments.to(distance.dtype)
        with torch.no_grad():
            counted = (weights.answers[:_ENTROPY_ROWS] > 0).float()
            student_entropy = entropy(head.logits(hidden[:_ENTROPY_ROWS])) @ counted
        parts = {} if likelihood is None else {"likelihood": likelihood.value}
        for term, value, shares in zip(self.terms, of_terms, rows.term_shares, strict=True):
            parts[term.name] = value[: len(shares)] @ shares.to(value.dtype)
        return loss, parts | {
            "token_nats": nats,
            "ce": nats @ weights.answers.to(nats.dtype),
            "uld": distance @ of_segments,
            "uld_head": head_distance @ of_segments,
            "uld_bound": bound @ of_segments,
            "teacher_entropy": spectrum.entropy().to(of_segments.dtype) @ of_segments,
            "student_entropy": student_entropy,
            "student_entropy_rows": counted.sum(),
        }

    def _compared(self, micro_batch: JudgedBatch, teacher: TeacherSegments, order: Tensor) -> Compared | None:
        """Collect what the identity terms compare the student with; None without such terms."""
        if not self.terms:
            return None
        if teacher.top is None or len(teacher.top) != len(micro_batch.student_segments):
            raise ValueError(f"{self.terms[0].name} needs the teacher's top-k tokens of every segment")
        compared = Compared.of(micro_batch, teacher, order, self.settings.top_ids)
        if not self.settings.skip_whitespace_rows:
            return compared
        if self.is_space is None:
            raise ValueError("skip_whitespace_rows needs to know how the two vocabularies relate")
        is_space = F.pad(self.is_space, (0, 1), value=False)
        return compared.without(is_space[compared.student_ids.clamp(max=len(self.is_space))])

    def _likelihood(
        self,
        hidden: Tensor,
        head: Head,
        micro_batch: JudgedBatch,
        teacher: TeacherSegments,
        weights: RowWeights,
    ) -> LikelihoodPart | None:
        """Match the likelihoods of all segments; None without a weight.

        A pass of its own over their tokens, because the slope of one token's cross-entropy depends on all of them,
        which may lie in different chunks.
        """
        if not self.settings.likelihood:
            return None
        batch, segments = micro_batch.student, micro_batch.student_segments
        with torch.no_grad():
            of_tokens = log_probs_of(batch.answer_ids[segments.members])(hidden[segments.members], head)
        given = self.given or self.settings
        own = segments.log_probs(of_tokens)
        return likelihood_part(
            # Of two teachers, what stands there is their difference.
            tilted(own, teacher.log_probs) if self.settings.combine == "difference" else teacher.log_probs,
            own,
            weights.segments,
            self.settings,
            weight=self._weight("likelihood", given.likelihood, micro_batch.own_segments),
        )

    def _rows(
        self,
        hidden: Tensor,
        head: Head,
        micro_batch: JudgedBatch,
        teacher: TeacherSegments,
        order: Tensor,
        weights: RowWeights,
        likelihood: LikelihoodPart | None,
    ) -> Rows:
        batch, segments = micro_batch.student, micro_batch.student_segments
        log_scale, place = None, segments.earlier
        if self.settings.merge == "chain":
            with torch.no_grad():
                earlier_ids = batch.answer_ids[segments.earlier]
                log_scale = segments.log_scale(log_probs_of(earlier_ids)(hidden[segments.earlier], head))
            place = _inverse(order)[segments.earlier]
        given, own_segments = self.given or self.settings, micro_batch.own_segments
        compared = self._compared(micro_batch, teacher, order)
        ce_weights = (weights.answers * self._weight("ce", given.ce, micro_batch.own_answers))[order]
        ce_slopes, likelihood_loss = ce_weights.clone(), ce_weights.new_zeros(())
        if likelihood is not None:
            likelihood_loss = likelihood.loss.to(ce_weights.dtype)
            # A segment's log-probability is the sum of its tokens': each one's cross-entropy, negated.
            slopes = -likelihood.slopes.to(ce_slopes.dtype)
            ce_slopes.index_add_(0, _inverse(order)[segments.members], slopes[segments.member_segment])
        return Rows(
            ids=batch.answer_ids[order],
            ce_weights=ce_weights,
            ce_slopes=ce_slopes,
            uld_weights=weights.segments * self._weight("uld", given.uld, own_segments),
            spectrum=teacher.spectrum,
            prepared=tuple(term.prepare(compared) for term in self.terms if compared is not None),
            term_weights=tuple(
                compared.laid_out(weights.segments * self._weight(term.name, term.weight, own_segments), term.row)
                for term in self.terms
                if compared is not None
            ),
            term_shares=tuple(
                compared.laid_out(weights.segments, term.row) for term in self.terms if compared is not None
            ),
            log_scale=log_scale,
            earlier=place,
            earlier_segment=segments.earlier_segment,
            likelihood_loss=likelihood_loss,
        )

    def _needs_autograd(self) -> bool:
        return self.settings.method != "linear" or self.settings.student_temperature != 1.0

    def _one_chunk(self, logits: Tensor, rows: Rows, chunk: slice) -> tuple[list[Tensor], Tensor]:
        """Compute cross-entropy, ULD and identity terms of C rows, and their common gradient [C, V]."""
        parts, grad, log_normalizer = (self._by_autograd if self._needs_autograd() else self._closed_form)(
            logits, rows, chunk
        )
        for term, prepared, weight in zip(self.terms, rows.prepared, rows.term_weights, strict=True):
            value = torch.zeros_like(log_normalizer, dtype=torch.float64)
            if term.row == "next" or chunk.start < rows.num_compared:
                value = term.add(logits, log_normalizer, prepared[chunk], weight[chunk], grad).double()
            parts.append(value)
        return parts, grad

    def _closed_form(self, logits: Tensor, rows: Rows, chunk: slice) -> _Chunk:
        """Compute cross-entropy and ULD of C rows in closed form; one softmax serves both."""
        targets = rows.ids[chunk, None]
        slopes = rows.ce_slopes[chunk]
        if chunk.start < rows.num_compared:
            grad = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
            terms = uld_value_and_grad(
                logits,
                rows.spectrum[chunk],
                student_log_scale=None if rows.log_scale is None else rows.log_scale[chunk],
                weight=rows.uld_weights[chunk],
                probability_weight=slopes,
                out=grad,
                # One look at the whole loss per step finds NaN, without waiting for the device in every chunk.
                check=False,
            )
            if rows.log_scale is not None:
                rows.note_scale_slopes(chunk, rows.uld_weights[chunk] * terms.grad_log_scale)
            assert terms.bound is not None
            log_normalizer = terms.log_normalizer
            of_segments = [terms.distance, terms.head, terms.bound]
        else:
            log_normalizer = logits.float().logsumexp(1)
            grad = (logits.float() - log_normalizer[:, None]).exp_().mul_(slopes[:, None])
            of_segments = [torch.zeros_like(log_normalizer)] * 3
        nats = log_normalizer - logits.gather(1, targets).squeeze(1)
        grad.scatter_add_(1, targets, -slopes[:, None].to(grad.dtype))
        return _Chunk([nats, *of_segments], grad, log_normalizer)

    def _by_autograd(self, logits: Tensor, rows: Rows, chunk: slice) -> _Chunk:
        """Compute cross-entropy and ULD of C rows by autograd, for any method and temperature."""
        scale = None
        # A row that is not finite makes the whole step's loss so, which all ranks then hear of; an error here would
        # be one rank's alone.
        broken = (logits.isnan() | (logits == float("inf"))).any(1)
        with torch.enable_grad():
            z = logits.detach().float().masked_fill(broken[:, None], 0.0).requires_grad_()
            nats = F.cross_entropy(z, rows.ids[chunk], reduction="none")
            distance = torch.zeros_like(nats)
            loss = nats @ rows.ce_slopes[chunk]
            if chunk.start < rows.num_compared:
                scale = None if rows.log_scale is None else rows.log_scale[chunk].clone().requires_grad_()
                distance = uld_distance(
                    z,
                    rows.spectrum[chunk],
                    student_temperature=self.settings.student_temperature,
                    method=self.settings.method,
                    student_log_scale=scale,
                )
                loss = loss + distance.to(nats.dtype) @ rows.uld_weights[chunk]
            grad, *of_scale = torch.autograd.grad(loss, [z] if scale is None else [z, scale])
        if of_scale:
            rows.note_scale_slopes(chunk, of_scale[0])
        nats, distance = (part.detach().masked_fill(broken, float("nan")) for part in (nats, distance))
        unknown = torch.full_like(nats, float("nan"))
        return _Chunk([nats, distance, unknown, unknown], grad, logits.float().logsumexp(1))


def _inverse(order: Tensor) -> Tensor:
    """Invert a permutation, to tell where each row went: ``_inverse(order)[order] == arange``."""
    where = torch.empty_like(order)
    where[order] = torch.arange(len(order), device=order.device)
    return where


def entropy(logits: Tensor) -> Tensor:
    """Compute the entropy of each row of ``logits [N, V]`` in nats, [N]; entries of -inf count nothing."""
    log_p = logits.float().log_softmax(-1)
    return -torch.where(log_p > float("-inf"), log_p.exp() * log_p, log_p.new_zeros(())).sum(-1)
