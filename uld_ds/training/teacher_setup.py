"""A teacher of a job as one rank has it: a model here or behind a server, with an output cache or not, or a store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from uld_ds.alignment.vocabulary_mapping import VocabularyRelations, relations_of
from uld_ds.data.batching import padding_id
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.data.teacher_views import view_of
from uld_ds.evaluation.bits_per_byte import Scores, stored_scorer, teacher_scorer
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import NamedTeacherSettings
from uld_ds.recipe.models import ONLY_TEACHER
from uld_ds.runs.job import Job
from uld_ds.teachers.cache import OutputCache
from uld_ds.teachers.cached import CachedTeacher, cache_identity
from uld_ds.teachers.online import OnlineTeacher
from uld_ds.teachers.served.engine import ServedEngine, open_client
from uld_ds.teachers.served.teacher import ServedTeacher
from uld_ds.teachers.source import ModelSource, TeacherSource
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.teachers.stored import StoredTeacher, held_out_store
from uld_ds.training.engines import load_teacher
from uld_ds.utils.distributed import Ranks


class TeacherSetup:
    """A teacher of a run: its outputs for training, scores of held-out answers, and vocabulary.

    Rows that it is given are those of the run: it takes its own view of them.

    Args:
        job: the run.
        settings: the teacher among those of the run's recipe.
        ranks: the process group.
        device: device of this rank, where batches go.
        stage: called with a sentence about what takes a while.
    """

    def __init__(
        self,
        job: Job,
        settings: NamedTeacherSettings,
        *,
        ranks: Ranks,
        device: torch.device,
        stage: Callable[[str], None],
    ) -> None:
        self._job = job
        self.settings = settings
        self._ranks = ranks
        self._device = device
        self._stage = stage
        self._padding = 0
        self.tokenizer: PreTrainedTokenizerBase | None = None
        """The teacher's tokenizer; None with a stored teacher."""
        if self.settings.source != "stored":
            self.tokenizer = self._pretrained.tokenizer()
            self._padding = padding_id(self.tokenizer)

    @property
    def _pretrained(self) -> Pretrained:
        return Pretrained.at(self._job.teachers[self.settings.name], self.settings, self.settings.key)

    def source(self, rows: Dataset, *, begins: bool) -> TeacherSource:
        """Open the source of teacher outputs for the training data, and load the model if it is needed. Collective.

        Args:
            rows: the training data, as prepared.
            begins: the run does not resume from a checkpoint, so the teacher itself is measured, too.
        """
        recipe = self._job.recipe
        if self.settings.source == "stored":
            assert self.settings.path is not None
            with_top = recipe.taught.num_top_ids > 0
            store = SpectrumStore.open(self.settings.path, key=self._key, with_top=with_top)
            return StoredTeacher(store, view_of(rows, self.settings.name), self._key)
        if not self.settings.cache:
            return self._model(rows)
        cache = OutputCache(
            self._job.cached_outputs(self.settings.name),
            cache_identity(
                recipe, self.settings, Path(self._job.splits["train"]).name, self._job.servers.get(self.settings.name)
            ),
            rank=self._ranks.rank,
            precision=self.settings.codec.to_precision(),
            vocab_size=self._rebuilt_vocab_size,
        )
        judges, judged = recipe.rollouts is not None, self.batcher(rows).judged
        missing = int(judges or (begins and recipe.data.eval is not None) or not cache.complete(len(rows), judged))
        needed = self._ranks.max(torch.tensor(missing, device=self._device))
        teacher = self._model(rows) if needed else None
        return CachedTeacher(
            cache,
            teacher,
            num_examples=len(rows),
            judged=judged,
            ranks=self._ranks,
            device=self._device,
            keeps_teacher=judges,
        )

    @property
    def _rebuilt_vocab_size(self) -> int | None:
        """Ids of a served teacher of whose distributions the top-k tokens that are kept are all that is known."""
        server = self.settings.server if self.settings.source == "served" else None
        if server is None or server.top != self._job.recipe.taught.num_top_ids:
            return None
        return int(self._job.servers[self.settings.name]["vocab_size"])

    def _model(self, rows: Dataset) -> ModelSource:
        return self._online(rows) if self.settings.source == "online" else self._served(rows)

    def _served(self, rows: Dataset) -> ServedTeacher:
        settings, facts = self.settings, self._job.servers[self.settings.name]
        assert settings.server is not None
        vocab_size = int(facts["vocab_size"])
        engine = ServedEngine(open_client(settings), settings.server, str(facts["model"]), vocab_size)
        return ServedTeacher(
            engine,
            self.batcher(rows),
            vocab_size=vocab_size,
            ranks=self._ranks,
            device=self._device,
            top_ids=self._job.recipe.taught.num_top_ids,
        )

    def _online(self, rows: Dataset) -> OnlineTeacher:
        own = self.settings.name
        self._stage("loading the teacher" if own == ONLY_TEACHER else f"loading the teacher {own}")
        objective = self._job.recipe.taught
        return OnlineTeacher(
            load_teacher(self._job.teachers[own], self.settings, self._job.teachers_deepspeed[own], self._device),
            self.batcher(rows),
            ranks=self._ranks,
            device=self._device,
            temperature=objective.teacher_temperature,
            top_ids=objective.num_top_ids,
        )

    def ask_about(self, source: TeacherSource, rows: Dataset) -> None:
        """Let the teacher be asked about other examples by number: given ones, and the student's own after them.

        Args:
            source: what ``source`` has returned.
            rows: all of them, prepared.
        """
        teacher = source.asked if isinstance(source, CachedTeacher) else source
        assert isinstance(teacher, OnlineTeacher | ServedTeacher), "only a model can judge new text"
        teacher.ask_about(self.batcher(rows))

    def relations(self, student: PreTrainedTokenizerBase) -> VocabularyRelations | None:
        """Relate the student's vocabulary to the teacher's, where the objective looks at that; else None."""
        if not self._job.recipe.taught.needs_vocabularies:
            return None
        teacher = self.tokenizer
        if teacher is None:  # a stored teacher; the driver has seen that it is the same tokenizer
            teacher = Pretrained.from_settings(self.settings, self.settings.key).tokenizer()
        return relations_of(student, teacher)

    def scores(self, source: TeacherSource, held_out: Dataset) -> Scores | None:
        """Make the scorer of held-out answers by the teacher; None when no teacher outputs were stored for them."""
        batcher = self.batcher(held_out)
        if self.settings.source != "stored":
            return teacher_scorer(source, batcher, self._device)
        stored = self.store_of(held_out, held_out=True)
        return None if stored is None else stored_scorer(stored, batcher, self._device)

    def store_of(self, rows: Dataset, *, held_out: bool) -> StoredTeacher | None:
        """Open the store of ``rows``, training or held-out ones; None when the latter were never stored."""
        path = self.settings.path
        assert path is not None
        store = held_out_store(path, self._key) if held_out else SpectrumStore.open(path, key=self._key)
        return None if store is None else StoredTeacher(store, view_of(rows, self.settings.name), self._key)

    def batcher(self, rows: Dataset) -> TeacherBatcher:
        """Make the batcher of the teacher's side of prepared rows, with at most so many tokens per forward."""
        view = view_of(rows, self.settings.name)
        return TeacherBatcher(view, padding=self._padding, max_tokens=self.settings.max_tokens_per_forward)

    @property
    def _key(self) -> str:
        return f"{self.settings.key}.path"
