"""Every term that looks at identities has a row in the recipe's table and a factory."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers import tokenizers_zoo as zoo
from uld_ds.alignment.completions import CompletionIndex
from uld_ds.alignment.vocabulary_mapping import VocabularyRelations, relations_of
from uld_ds.losses.projection import ProjectionTerm
from uld_ds.losses.terms import FACTORIES, identity_terms
from uld_ds.recipe import ObjectiveSettings
from uld_ds.recipe.objective import LOSS_TERMS
from uld_ds.recipe.rollouts import RolloutSettings, taught

SAME = np.arange(5)
RELATIONS = VocabularyRelations(SAME, SAME, 5, np.zeros(5, bool), SAME, SAME, CompletionIndex.nothing(5, 5))


def test_terms_that_look_at_identities_have_a_factory_and_no_others() -> None:
    assert list(FACTORIES) == [key for key, term in LOSS_TERMS.items() if term.identities]


@pytest.mark.parametrize("key", FACTORIES)
def test_a_factory_makes_the_term_of_its_key(key: str) -> None:
    relations = relations_of(zoo.plain_bytes(), zoo.characters()) if LOSS_TERMS[key].vocabularies else None
    (term,) = identity_terms(ObjectiveSettings.model_validate({key: 0.25}), relations)
    assert (term.name, term.weight) == (key, 0.25)


def projection_of(settings: ObjectiveSettings, given: ObjectiveSettings | None = None) -> ProjectionTerm:
    (term,) = identity_terms(settings, RELATIONS, given=given)
    assert isinstance(term, ProjectionTerm)
    return term


def said(term: ProjectionTerm) -> tuple[float, str, float, bool, int | None]:
    return term.weight, term.kind, term.beta, term.only_one_to_one, term.num_picked


def test_a_projection_is_what_the_recipe_says() -> None:
    assert said(projection_of(ObjectiveSettings(projection=0.3))) == (0.3, "forward_kl", 0.5, False, None)
    chosen = ObjectiveSettings(
        projection=0.3,
        projection_divergence="jensen_shannon",
        jensen_shannon_beta=0.2,
        projection_rows="one_to_one",
        projection_pick="student",
        projection_student_ids=7,
    )
    assert said(projection_of(chosen)) == (0.3, "jensen_shannon", 0.2, True, 7)


def test_one_of_own_answers_alone_has_the_recipes_choices_and_no_weight_for_given_ones() -> None:
    given = ObjectiveSettings(projection_divergence="reverse_kl", projection_rows="one_to_one")
    every = taught(given, RolloutSettings(objective={"projection": 1.0}))
    assert said(projection_of(every, given)) == (0.0, "reverse_kl", 0.5, True, None)


def test_completion_between_equal_vocabularies_is_told_to_have_no_effect(caplog: pytest.LogCaptureFixture) -> None:
    relations = relations_of(zoo.plain_bytes(), zoo.plain_bytes())
    identity_terms(ObjectiveSettings(completion=1.0), relations)
    assert caplog.messages == [
        "objective.completion has no effect: the student has every token of the teacher; set it to 0"
    ]
