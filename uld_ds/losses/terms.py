"""The registry of the objective's terms that look at token identities, the teacher's top-k tokens.

All of them read the teacher's ``TopTokens`` of the rows that stand for a segment, at temperature 1 on both sides. A
new one is one new file with a class that has what ``IdentityTerm`` asks for, a weight with its row in
``ObjectiveSettings``, and a line in ``FACTORIES``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from uld_ds.alignment.vocabulary_mapping import VocabularyRelations
from uld_ds.losses.completion import CompletionTables, CompletionTerm
from uld_ds.losses.divergences import ClassicalTerm
from uld_ds.losses.hybrid import HybridTerm
from uld_ds.losses.projection import ProjectionTerm
from uld_ds.losses.term import IdentityTerm
from uld_ds.losses.token_mapping import mapping_of, outcomes_of
from uld_ds.recipe import ObjectiveSettings

log = logging.getLogger(__name__)


def identity_terms(
    settings: ObjectiveSettings,
    relations: VocabularyRelations | None = None,
    device: torch.device | str = "cpu",
    *,
    given: ObjectiveSettings | None = None,
) -> tuple[IdentityTerm, ...]:
    """Build the identity terms that a recipe gives a weight.

    Args:
        settings: the objective, with every term that any answer has a weight for.
        relations: of the two vocabularies, where the settings say that they ``needs_vocabularies``.
        device: where logits will be.
        given: the objective whose weights given answers have, where that is another.

    Raises:
        ValueError: there are no relations, and a term needs them.
    """
    if relations is None and settings.needs_vocabularies:
        raise ValueError(f"{settings.identity_terms} need to know how the two vocabularies relate")
    return tuple(FACTORIES[name](given or settings, relations, device) for name in settings.identity_terms)


def _classical(settings: ObjectiveSettings, *_: Any) -> IdentityTerm:
    return ClassicalTerm(settings.classical, settings.classical_divergence, settings.jensen_shannon_beta)


def _hybrid(
    settings: ObjectiveSettings, relations: VocabularyRelations | None, device: torch.device | str
) -> IdentityTerm:
    assert relations is not None
    return HybridTerm(settings.hybrid, settings.hybrid_beta, mapping_of(relations.identity, device))


def _projection(
    settings: ObjectiveSettings, relations: VocabularyRelations | None, device: torch.device | str
) -> IdentityTerm:
    assert relations is not None
    as_sets = settings.projection_outcomes == "sets"
    outcomes = outcomes_of(relations.outcomes) if as_sets else None
    return ProjectionTerm(
        settings.projection,
        mapping_of(relations.teacher_outcomes if as_sets else relations.projection, device),
        kind=settings.projection_divergence,
        beta=settings.jensen_shannon_beta,
        only_one_to_one=settings.projection_rows == "one_to_one",
        num_picked=settings.projection_student_ids if settings.projection_pick == "student" else None,
        outcomes=None if outcomes is None else outcomes.to(device),
        num_outcomes=0 if outcomes is None else int(outcomes[-1]) + 1,
    )


def _completion(
    settings: ObjectiveSettings, relations: VocabularyRelations | None, device: torch.device | str
) -> IdentityTerm:
    assert relations is not None
    if len(relations.completions.teacher) == 0:
        log.warning("objective.completion has no effect: the student has every token of the teacher; set it to 0")
    return CompletionTerm(settings.completion, CompletionTables.of(relations.completions, device))


Factory = Callable[[ObjectiveSettings, VocabularyRelations | None, torch.device | str], IdentityTerm]

FACTORIES: dict[str, Factory] = {
    "classical": _classical,
    "hybrid": _hybrid,
    "projection": _projection,
    "completion": _completion,
}
"""Functions that build each identity term of ``LOSS_TERMS``, by the key of its weight."""
