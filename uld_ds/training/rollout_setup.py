"""The rollouts of a run on one rank, put together from its job: plan, prompts, folder, and what samples and pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from uld_ds.data.batching import Batcher, padding_id
from uld_ds.data.dealing import Dealer
from uld_ds.data.own_answers import OwnAnswers
from uld_ds.data.prepare import PREPARED_FORMAT
from uld_ds.data.several_teachers import SeveralOwnAnswers
from uld_ds.data.sides import TextSide
from uld_ds.data.teacher_views import features_of
from uld_ds.errors import RunError
from uld_ds.generation.sampling import Sampled, Sampling
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import Recipe
from uld_ds.recipe.models import ONLY_TEACHER
from uld_ds.rollouts.engine import RolloutEngine
from uld_ds.rollouts.journal import RoundFolder, rows_of
from uld_ds.rollouts.prompts import asked_of
from uld_ds.rollouts.rounds import RoundPlan
from uld_ds.runs.job import Job
from uld_ds.training.local_rollouts import LocalEngine
from uld_ds.training.preparation import steps_of_run
from uld_ds.training.rollout_batches import RolloutBatches
from uld_ds.training.rollouts import Pairer, Rollouts
from uld_ds.utils.distributed import Ranks

_FORMAT = 1

MakeEngine = Callable[[Any, TextSide], RolloutEngine]
"""Makes what samples, from the student's engine and its side."""


class RolloutSetup:
    """The parts of a run's rollouts that do not need the student's engine.

    Args:
        job: the run, whose recipe has rollouts.
        ranks: the process group.
        device: device of this rank.
    """

    def __init__(self, job: Job, *, ranks: Ranks, device: torch.device) -> None:
        recipe = job.recipe
        assert recipe.rollouts is not None
        self._job = job
        self._settings = recipe.rollouts
        self._ranks = ranks
        self._device = device
        special_tokens = recipe.data.special_tokens
        student = Pretrained.at(job.student, recipe.student, "student")
        self._student = TextSide.of_model(student, recipe.student, "student", special_tokens=special_tokens)
        pairers = {}
        for settings in recipe.teachers:
            teacher = Pretrained.at(job.teachers[settings.name], settings, settings.key)
            side = TextSide.of_model(teacher, settings, "teacher", special_tokens=special_tokens)
            pairers[settings.name] = OwnAnswers(self._student, side, learn=recipe.data.learn)
        self._pairer: Pairer = pairers[ONLY_TEACHER] if list(pairers) == [ONLY_TEACHER] else self._several(pairers)
        self._features = features_of(list(pairers))
        self._prompts = job.rows("prompts")
        self.given = self._stand_in() if recipe.only_own_answers else job.rows("train")
        """Given training examples; where there are none, one that stands in for own answers that cannot be used."""
        self.sampling = Sampling.of(self._settings, recipe.run.seed)

    def _several(self, pairers: dict[str, OwnAnswers]) -> SeveralOwnAnswers:
        return SeveralOwnAnswers(pairers, common=self._job.recipe.objective.combine == "difference")

    def batcher(self, rows: Dataset) -> Batcher:
        """Make the batcher of given and own rows together."""
        recipe = self._job.recipe
        padding = padding_id(self._student.tokenizer)
        return Batcher(rows, padding=padding, merge=recipe.objective.merge, own_from=len(self.given))

    def plan(self) -> RoundPlan:
        """Make the plan of the run's rounds."""
        recipe = self._job.recipe
        return RoundPlan(
            every=self._settings.every,
            per_step=recipe.own_examples,
            samples=self._settings.samples_per_prompt,
            num_prompts=len(self._prompts),
            total_steps=steps_of_run(recipe, num_data=len(self.given), num_prompts=len(self._prompts)),
            seed=recipe.run.seed,
        )

    def batches(
        self,
        student: Any,
        on_rows: Callable[[Dataset], None],
        folder: Path,
        make_engine: MakeEngine | None = None,
        *,
        dealer: Dealer,
    ) -> RolloutBatches:
        """Make the run's batches, of given and own answers.

        Args:
            student: the student's DeepSpeed engine.
            on_rows: told of given and own rows together whenever a round begins.
            folder: where rounds are kept; what is there was answered by an earlier attempt at the same run.
            make_engine: makes what samples, where that is not the student in the workers.
            dealer: deals a step's examples to micro-batches.
        """
        recipe = self._job.recipe
        rollouts = Rollouts(
            self.plan(),
            self._prompts,
            self.given,
            RoundFolder(folder, self._identity(recipe), self._features),
            (make_engine or self._local)(student, self._student),
            self._pairer,
            batch_size=self._settings.batch_size,
            ahead=bool(self._settings.ahead),
            ranks=self._ranks,
            device=self._device,
        )
        return RolloutBatches(
            rollouts,
            self.batcher,
            on_rows,
            recipe.training,
            num_given=len(self.given),
            seed=recipe.run.seed,
            ranks=self._ranks,
            dealer=dealer,
        )

    def _local(self, student: Any, side: TextSide) -> RolloutEngine:
        return LocalEngine(
            student,
            self.sampling,
            ends=side.end_ids,
            padding=padding_id(side.tokenizer),
            device=self._device,
            own_copy=bool(self._settings.ahead),
        )

    def _identity(self, recipe: Recipe) -> str:
        """Digest all that decides a round's answers and their rows, besides the student's weights."""
        assert recipe.rollouts is not None
        settings = recipe.rollouts.model_dump(mode="json", exclude={"actors", "objective", "prompts"})
        what = [_FORMAT, PREPARED_FORMAT, Path(self._job.splits["prompts"]).name, settings, recipe.run.seed]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def _stand_in(self) -> Dataset:
        """Make one row that stands in, with weight 0, for own answers that cannot be used.

        Raises:
            RunError: no prompt can be answered in a way that both sides read.
        """
        tokenizer = self._student.tokenizer
        said = tokenizer("the", add_special_tokens=False)["input_ids"]
        problem = ""
        for number in range(len(self._prompts)):
            prompt = self._prompts.with_format("numpy")[number]["prompt_ids"]
            (row,) = self._pairer([asked_of(self._prompts, number)], [Sampled.given(said)], [prompt])
            if not isinstance(row, str):
                return rows_of([row], self._features)
            problem = problem or row
        raise RunError(f"no prompt of rollouts can be answered in a way that both sides read: {problem}")
