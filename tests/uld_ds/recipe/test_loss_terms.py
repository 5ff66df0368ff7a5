"""The table of loss terms: what each row makes known of its term."""

from __future__ import annotations

from typing import Any

from uld_ds.recipe import ObjectiveSettings
from uld_ds.recipe.loss_terms import LossTerm
from uld_ds.recipe.objective import LOSS_TERMS

EVERYTHING: dict[str, Any] = {
    **dict(zip(LOSS_TERMS, (1.0, 1.5, 0.5, 0.7, 0.4, 0.9, 0.6), strict=True)),
    "classical_divergence": "reverse_kl",
}


def facts_of(**objective: Any) -> dict[str, Any]:
    settings = ObjectiveSettings.model_validate(objective)
    return {name: value for term in LOSS_TERMS.values() for name, value in term.facts(settings).items()}


def test_rows_are_those_of_the_weights_in_their_order() -> None:
    assert list(LOSS_TERMS) == ["ce", "uld", "likelihood", "classical", "hybrid", "projection", "completion"]
    assert [term.key for term in LOSS_TERMS.values()] == list(LOSS_TERMS)
    assert [key for key, term in LOSS_TERMS.items() if term.needs_one_tokenizer] == ["classical"]
    for key, term in LOSS_TERMS.items():
        info = ObjectiveSettings.model_fields[key]
        assert (info.annotation, info.description is not None) == (float, True), key
        for name in term.details:
            assert name in ObjectiveSettings.model_fields, (key, name)


def test_what_the_objective_asks_of_teacher_and_tokenizers_follows_from_the_rows() -> None:
    def needs(**objective: Any) -> tuple[list[str], int, bool]:
        settings = ObjectiveSettings.model_validate(objective)
        return settings.identity_terms, settings.num_top_ids, settings.needs_vocabularies

    assert needs() == ([], 0, False)
    assert needs(classical=1.0, top_ids=8) == (["classical"], 8, False)
    assert needs(projection=0.1, hybrid=0.1) == (["hybrid", "projection"], 64, True)
    assert needs(likelihood=1.0) == ([], 0, False)


def test_facts_have_the_names_and_the_order_that_registered_versions_have() -> None:
    assert list(facts_of(**EVERYTHING).items()) == [
        ("ce_weight", 1.0),
        ("uld_weight", 1.5),
        ("likelihood_weight", 0.5),
        ("classical_weight", 0.7),
        ("classical_divergence", "reverse_kl"),
        ("hybrid_weight", 0.4),
        ("projection_weight", 0.9),
        ("projection_divergence", "forward_kl"),
        ("projection_outcomes", "tokens"),
        ("projection_rows", "all"),
        ("projection_pick", "teacher"),
        ("completion_weight", 0.6),
    ]
    plain = facts_of()
    assert (plain["ce_weight"], plain["projection_weight"]) == (1.0, 0.0)
    assert plain["classical_divergence"] is None, "it has no effect"


def test_the_sum_in_words() -> None:
    known = {name: value for name, value in facts_of(**EVERYTHING).items() if value is not None}
    assert [term.described(known) for term in LOSS_TERMS.values()] == [
        "1.0 x cross-entropy",
        "1.5 x ULD distance ([arXiv 2402.12030](https://arxiv.org/abs/2402.12030))",
        "0.5 x likelihood matching ([arXiv 2503.20083](https://arxiv.org/abs/2503.20083))",
        "0.7 x reverse kl ([arXiv 2306.13649](https://arxiv.org/abs/2306.13649))",
        "0.4 x hybrid divergence",
        "0.9 x projection by forward kl of tokens on all segments with the teacher's tokens",
        "0.6 x cross-entropy of completion sets ([arXiv 2609.34738](https://arxiv.org/abs/2609.34738))",
    ]
    assert LOSS_TERMS["hybrid"].described({"hybrid_weight": 0.0}) == ""
    assert LOSS_TERMS["hybrid"].described({}) == ""


def test_a_row_may_say_little() -> None:
    term = LossTerm(label="top token", key="top1", reference="https://journal.org/7")
    assert (term.chart_title, term.unit) == ("Top token", "per segment")
    assert term.described({"top1_weight": 2.0}) == "2.0 x top token ([paper](https://journal.org/7))"
