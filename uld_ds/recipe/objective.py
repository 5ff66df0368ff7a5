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
    """The teacher's share of the mixture that ``classical_divergence`` and ``projection_divergence`` compare both sides
    with where they are ``jensen_shannon``."""
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
            summand="projection",
            details={
                "projection_divergence": "by {}",
                "projection_outcomes": "of {}",
                "projection_rows": "on {} segments",
                "projection_pick": "with the {}'s tokens",
            },
            identities=True,
            vocabularies=True,
        ),
    ] = 0.0
    """Weight of the divergence between both sides with the teacher's top-k tokens carried to the student's vocabulary:
    each to the student token with the longest bytes that it begins with."""
    projection_divergence: Literal["forward_kl", "reverse_kl", "jensen_shannon"] = "forward_kl"
    """``forward_kl``: KL(teacher, student); ``reverse_kl``: KL(student, teacher); ``jensen_shannon``: generalized."""
    projection_outcomes: Literal["tokens", "sets"] = "tokens"
    """What ``projection`` tells apart: tokens of the student, or sets of those that the bytes of both vocabularies do
    not tell apart where a segment begins. Sets are for students with longer tokens than their teacher's."""
    projection_rows: Literal["all", "one_to_one"] = "all"
    """``one_to_one``: ``projection`` compares only segments of one token on both sides; elsewhere it is 0, and what is
    left weighs what it did."""
    projection_pick: Literal["teacher", "student"] = "teacher"
    """Whose likeliest tokens ``projection`` tells apart: all that the teacher's ``top_ids`` are carried to, or of those
    the student's likeliest ``projection_student_ids``, all others counting as "anything else"."""
    projection_student_ids: Annotated[int, Field(ge=1, le=65535)] = 16
    """How many tokens ``projection_pick: student`` tells apart."""
    completion: Annotated[
        float,
        Field(ge=0),
        LossTerm(
            label="completion",
            title="Completion sets",
            summand="cross-entropy of completion sets",
            reference=f"{ARXIV}2609.34738",
            identities=True,
            vocabularies=True,
        ),
    ] = 0.0
    """Weight of the cross-entropy of completion sets: where the student's token begins what the teacher would write as
    one token that the student has not, the student tokens that finish it are supervised together, one position on."""
    skip_whitespace_rows: bool = False
    """Leave segments whose student token is nothing but spaces, tabs and line breaks out of all terms that look at
    tokens: there bytes say little of what the teacher means."""
    top_ids: Annotated[int, Field(ge=1, le=65535)] = 64
    """How many of the teacher's top-k tokens ``classical``, ``hybrid``, ``projection`` and ``completion`` look at; the
    others count as "anything else"."""
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

    def check_choices(self) -> None:
        """Check that what is said of terms has an effect, given all weights of given and own answers.

        Raises:
            ValueError: names the key that has none.
        """
        for name in ("projection_divergence", "projection_outcomes", "projection_rows", "projection_pick"):
            if (value := getattr(self, name)) != type(self).model_fields[name].default and not self.projection:
                raise ValueError(f"objective.{name} {value!r} has no effect with objective.projection 0")
        field = type(self).model_fields["projection_student_ids"]
        if self.projection_student_ids != field.default and self.projection_pick != "student":
            raise ValueError(
                f"objective.projection_student_ids {self.projection_student_ids} has no effect with "
                "objective.projection_pick 'teacher': set it to 'student'"
            )
        if self.projection_pick == "student" and self.projection_student_ids >= self.top_ids:
            raise ValueError(
                f"objective.projection_student_ids {self.projection_student_ids} picks nothing out of "
                f"objective.top_ids {self.top_ids}: make it smaller"
            )
        if self.skip_whitespace_rows and not any(term.vocabularies for term in self.weighed_terms):
            names = ", ".join(term.key for term in LOSS_TERMS.values() if term.vocabularies)
            raise ValueError(f"objective.skip_whitespace_rows has no effect without a weight for one of {names}")

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
