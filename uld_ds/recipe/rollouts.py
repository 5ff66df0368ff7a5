"""The section of a recipe about rollouts: answers that the student itself samples, and that its teacher judges."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from uld_ds.recipe.actors import RolloutActorSettings
from uld_ds.recipe.base import Strict
from uld_ds.recipe.data import DataSource
from uld_ds.recipe.objective import LOSS_TERMS, ObjectiveSettings


class RolloutSettings(Strict):
    """How much of each batch the student answers itself, and how. Left out: all answers are those of the data."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of each batch's examples that are the student's own answers; the others are the data's."""
    every: Annotated[int, Field(ge=1)] = 25
    """Optimizer steps between two rounds of sampling; 1: fully on-policy."""
    prompts: DataSource | None = None
    """Rows whose prompts the student answers; they need no answers. Default: those of ``data.train``."""
    samples_per_prompt: Annotated[int, Field(ge=1)] = 1
    """Answers to each prompt of a round, each of a draw of its own."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 128
    """Longest own answer, in the student's tokens. Short ones suffice (arXiv 2605.27028)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampling; 1 samples from the student's own distribution."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Sample from the smallest set of tokens with so much probability."""
    top_k: Annotated[int, Field(ge=0)] = 0
    """Sample from the top so many tokens; 0 from all."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Prompts of similar length that are answered together, by one worker or actor."""
    engine: Literal["transformers", "vllm"] = "transformers"
    """``transformers``: in the workers. ``vllm``: in Ray actors beside them; needs ``pip install 'uld-ds[vllm]'``."""
    actors: RolloutActorSettings = RolloutActorSettings()
    ahead: Annotated[int, Field(ge=0, le=1)] = 0
    """1: the next round is sampled while the current one is trained on. Its answers are then of the student one round
    before: one round off-policy."""
    objective: dict[str, Annotated[float, Field(ge=0)]] | None = None
    """Weights of the objective's terms for own answers, e.g. ``{projection: 1.0}``; terms that are left out have none.
    Default: those of ``objective``, without ``ce``."""

    @model_validator(mode="after")
    def _terms_are_known(self) -> RolloutSettings:
        for key in self.objective or {}:
            if key not in LOSS_TERMS:
                raise ValueError(f"rollouts.objective.{key} is no term of the objective: {', '.join(LOSS_TERMS)} are")
        if self.objective is not None and not any(self.objective.values()):
            raise ValueError("rollouts.objective: every weight is 0, so that nothing is learned from own answers")
        return self

    @model_validator(mode="after")
    def _actors_sample(self) -> RolloutSettings:
        if self.engine == "transformers" and self.actors != RolloutActorSettings():
            raise ValueError("rollouts.actors has no effect with rollouts.engine 'transformers': the workers sample")
        return self

    def own_examples(self, batch_size: int) -> int:
        """Count the own answers in a batch of so many examples: at least one, and of a smaller share not all."""
        most = batch_size if self.share == 1 else max(batch_size - 1, 1)
        return min(max(round(self.share * batch_size), 1), most)

    def weights(self, objective: ObjectiveSettings) -> dict[str, float]:
        """Return the weight of every term of the objective for own answers, by its key."""
        if self.objective is not None:
            return {key: self.objective.get(key, 0.0) for key in LOSS_TERMS}
        return {key: 0.0 if key == "ce" else getattr(objective, key) for key in LOSS_TERMS}


def taught(objective: ObjectiveSettings, rollouts: RolloutSettings | None) -> ObjectiveSettings:
    """Return an objective with every term that given or own answers have a weight for, each with its larger weight.

    It says what has to be there (vocabularies, top-k tokens), not how much it counts.
    """
    if rollouts is None:
        return objective
    own = rollouts.weights(objective)
    larger: dict[str, Any] = {key: max(getattr(objective, key), own[key]) for key in LOSS_TERMS}
    return ObjectiveSettings.model_validate({**objective.model_dump(), **larger})
