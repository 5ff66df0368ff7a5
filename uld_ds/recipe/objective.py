"""The section of a recipe about the loss: weights of its terms, and how both sides are paired."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from uld_ds.recipe.base import Strict
from uld_ds.recipe.loss_terms import ARXIV, LossTerm, loss_terms_of


class ObjectiveSettings(Strict):
    ce: Annotated[
        float,
        Field(ge=0),
        LossTerm(
            label="cross-entropy",
            unit="nats per token",
        ),
    ] = 1.0
    """Weight of the cross-entropy on the answer."""
    uld: Annotated[
        float,
        Field(ge=0),
        LossTerm(
            label="ULD",
            title="ULD distance",
            unit="per segment, 0 to 2",
            summand="ULD distance",
            reference=f"{ARXIV}2402.12030",
        ),
    ] = 1.5
    """Weight of the ULD distance (the paper's lambda)."""
    likelihood: Annotated[
        float,
        Field(ge=0),
        LossTerm(
            label="likelihood of segments",
            title="Likelihood of the same bytes",
            summand="likelihood matching",
            reference=f"{ARXIV}2503.20083",
        ),
    ] = 0.0
    """Weight of likelihood matching: what probability do both models give to each segment's bytes?"""
    likelihood_divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon", "total_variation"] = "forward_kl"
    """Between those two probabilities, each against "anything else"."""
    likelihood_temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divides their logarithms; a high one weighs unlikely segments like likely ones."""
    classical: Annotated[
        float,
        Field(ge=0),
        LossTerm(
            label="classical distillation",
            title="Classical divergence",
            summand="",
            reference=f"{ARXIV}2306.13649",
            details={"classical_divergence": "{}"},
            identities=True,
        ),
    ] = 0.0
    """Weight of a divergence between the two distributions themselves, token by token, at temperature 1. Only where
    both sides have the same tokenizer."""
    classical_divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    """``forward_kl``: KL(teacher, student); ``reverse_kl``: KL(student, teacher); ``jensen_shannon``: generalized."""
    jensen_shannon_beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The teacher's share of the mixture that ``classical_divergence: jensen_shannon`` compares both sides with."""
    hybrid: Annotated[
        float,
        Field(ge=0),
        LossTerm(
            label="hybrid",
            title="Hybrid divergence",
            summand="hybrid divergence",
            identities=True,
            vocabularies=True,
        ),
    ] = 0.0
    """Weight of the hybrid divergence: tokens that both vocabularies have are compared by identity (generalized
    Jensen-Shannon), the others by their sorted probabilities."""
    hybrid_beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The teacher's share of the mixture that ``hybrid`` compares both sides with."""
    projection: Annotated[
        float,
        Field(ge=0),
        LossTerm(
            label="projection",
            title="Divergence from the teacher, projected",
            summand="KL of the projected teacher",
            identities=True,
            vocabularies=True,
        ),
    ] = 0.0
    """Weight of KL(teacher, student) with the teacher's top-k tokens carried to the student's vocabulary: each to
    the student token with the longest bytes that it begins with."""
    top_ids: Annotated[int, Field(ge=1, le=65535)] = 64
    """How many of the teacher's top-k tokens ``classical``, ``hybrid`` and ``projection`` tell apart; the others
    count as "anything else"."""
    student_temperature: Annotated[float, Field(gt=0)] = 1.0
    teacher_temperature: Annotated[float, Field(gt=0)] = 1.0
    alignment: Literal["segments", "positional"] = "segments"
    """Which positions are compared: byte-aligned segments, or the n-th token with the n-th (the paper)."""
    skip_student_end: bool = False
    """With ``positional``: leave the student's end of turn (EOS) out of the pairs. Cross-entropy still sees it."""
    skip_teacher_end: bool = False
    """With ``positional``: leave the teacher's end of turn out of the pairs."""
    merge: Literal["first", "chain"] = "first"
    """Of a segment of several tokens: compare the distributions before its first token, or (``chain``) before its
    last, each scaled by the probability of the tokens before that."""
    normalize: Literal["token", "sample"] = "token"
    """``token``: sums over global counts. ``sample``: mean of per-example means (the paper)."""
    combine: Literal["sum", "route", "difference"] = "sum"
    """Of several ``teachers``: all judge every row and the terms are summed by their weights (``sum``); each row is
    judged by the one that ``data.columns.teacher`` names (``route``); or the student is moved by what the first, the
    strong one, gives more likelihood than the second, the weak one (``difference``, for ``likelihood``)."""
    method: Literal["linear", "exact"] = "linear"
    """How the distance is computed; ``exact`` sorts and is the reference."""

    @property
    def weighed_terms(self) -> list[LossTerm]:
        """Rows of the loss terms with a weight, in the order of their keys."""
        return [term for key, term in LOSS_TERMS.items() if getattr(self, key)]

    @property
    def identity_terms(self) -> list[str]:
        """Keys of the terms with a weight that look at token identities, in the order of the fields."""
        return [term.key for term in self.weighed_terms if term.identities]

    @property
    def num_top_ids(self) -> int:
        """Number of the teacher's top-k tokens that the objective looks at; 0 if at none."""
        return self.top_ids if self.identity_terms else 0

    @property
    def needs_vocabularies(self) -> bool:
        """Whether a term looks at how the two vocabularies relate."""
        return any(term.vocabularies for term in self.weighed_terms)

    @model_validator(mode="after")
    def _something_to_learn(self) -> ObjectiveSettings:
        if not self.weighed_terms:
            *most, last = (f"objective.{key}" for key in LOSS_TERMS)
            raise ValueError(f"{', '.join(most)} and {last} are all 0: nothing to learn")
        return self

    @model_validator(mode="after")
    def _something_to_merge(self) -> ObjectiveSettings:
        if self.merge == "chain" and self.alignment == "positional":
            raise ValueError("objective.merge 'chain' needs alignment 'segments': positional pairs are single tokens")
        if self.classical and self.merge == "chain":
            raise ValueError(
                "objective.merge 'chain' has no meaning for objective.classical: with one tokenizer on both sides a "
                "segment is one token; take merge 'first'"
            )
        for key in (term.key for term in self.weighed_terms if term.vocabularies):
            if self.alignment == "positional":
                raise ValueError(f"objective.{key} needs alignment 'segments': positional pairs follow different text")
            if self.merge == "chain":
                raise ValueError(
                    f"objective.merge 'chain' has no meaning for objective.{key}, which compares both models where "
                    "a segment begins; take merge 'first'"
                )
        if self.likelihood and self.alignment == "positional":
            raise ValueError("objective.likelihood needs alignment 'segments': positional pairs are of different bytes")
        if self.alignment == "segments" and (self.skip_student_end or self.skip_teacher_end):
            raise ValueError("objective.skip_student_end and skip_teacher_end need alignment 'positional'")
        return self


LOSS_TERMS: dict[str, LossTerm] = loss_terms_of(ObjectiveSettings)
"""Rows of all terms of the loss, by the key of the weight: what the fields above say of themselves."""
