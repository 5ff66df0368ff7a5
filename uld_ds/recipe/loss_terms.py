"""The names of a loss term wherever a person reads of it: one row beside the term's weight in the recipe.

A weight in ``ObjectiveSettings`` carries its row, ``Annotated[float, Field(ge=0), LossTerm(...)]``; ``LOSS_TERMS`` of
``uld_ds.recipe.objective`` is the table. The recipe's checks, a run's facts, the report, the comparison and the model
card iterate over it, so that a term that has a row is missing in none of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

ARXIV = "https://arxiv.org/abs/"


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """One row of the table of loss terms."""

    label: str
    """Name of the term in a sum, e.g. ``ULD`` in ``1.5 x ULD``."""
    title: str = ""
    """Heading of the term's chart in a run's report. Default: the label, with a capital."""
    unit: str = "per segment"
    """Unit of the term's value, at the chart's axis."""
    summand: str | None = None
    """Name of the term in the model card's sum. Default: the label; empty where ``details`` say it all."""
    reference: str | None = None
    """Address of the paper that the term is from."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Other keys of the objective that say which term it is, each with its words in the model card.

    They are told with the weight; ``{}`` in the words stands for the value."""
    identities: bool = False
    """Whether the term looks at *which* tokens the teacher expects: it is an ``IdentityTerm`` then."""
    vocabularies: bool = False
    """Whether the term looks at how the two vocabularies relate, which makes it one for any two tokenizers."""
    key: str = ""
    """Key of the weight and name of the metric: the field's name, filled in by ``loss_terms_of``."""

    @property
    def chart_title(self) -> str:
        """Heading of the term's chart."""
        return self.title or self.label[:1].upper() + self.label[1:]

    @property
    def weight_fact(self) -> str:
        """Name of the term's weight among the facts of a registered version."""
        return f"{self.key}_weight"

    @property
    def needs_one_tokenizer(self) -> bool:
        """Whether the term compares tokens by their ids alone, so that both sides need one tokenizer."""
        return self.identities and not self.vocabularies

    def facts(self, objective: BaseModel) -> dict[str, Any]:
        """Collect a registered version's facts about the term: the weight, and details (None without a weight)."""
        weight = getattr(objective, self.key)
        details = {name: getattr(objective, name) if weight else None for name in self.details}
        return {self.weight_fact: weight, **details}

    def described(self, facts: Mapping[str, Any]) -> str:
        """Write the term as a summand of the model card's loss, in Markdown; empty without a weight.

        Args:
            facts: facts of a registered version, with those that the method ``facts`` collects.
        """
        weight = facts.get(self.weight_fact)
        if not weight:
            return ""
        known = ((words, facts.get(name)) for name, words in self.details.items())
        details = [words.format(str(value).replace("_", " ")) for words, value in known if value is not None]
        name = self.label if self.summand is None else self.summand
        return " ".join(filter(None, [f"{weight} x", name, *details, self._link()]))

    def _link(self) -> str:
        if self.reference is None:
            return ""
        name = self.reference.replace(ARXIV, "arXiv ") if self.reference.startswith(ARXIV) else "paper"
        return f"([{name}]({self.reference}))"


def loss_terms_of(settings: type[BaseModel]) -> dict[str, LossTerm]:
    """Collect the loss terms' rows from a section's fields, by the keys of the weights, in the order of the fields."""
    rows = {}
    for key, info in settings.model_fields.items():
        for row in info.metadata:
            if isinstance(row, LossTerm):
                rows[key] = replace(row, key=key)
    return rows
