"""Every term that looks at identities has a row in the recipe's table and a factory."""

from __future__ import annotations

import pytest

from tests.helpers import tokenizers_zoo as zoo
from uld_ds.alignment.vocabulary_mapping import relations_of
from uld_ds.losses.terms import FACTORIES, identity_terms
from uld_ds.recipe import ObjectiveSettings
from uld_ds.recipe.objective import LOSS_TERMS


def test_terms_that_look_at_identities_have_a_factory_and_no_others() -> None:
    assert list(FACTORIES) == [key for key, term in LOSS_TERMS.items() if term.identities]


@pytest.mark.parametrize("key", FACTORIES)
def test_a_factory_makes_the_term_of_its_key(key: str) -> None:
    relations = relations_of(zoo.plain_bytes(), zoo.characters()) if LOSS_TERMS[key].vocabularies else None
    (term,) = identity_terms(ObjectiveSettings.model_validate({key: 0.25}), relations)
    assert (term.name, term.weight) == (key, 0.25)
