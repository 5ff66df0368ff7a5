"""The building of a spectrum store on a Ray worker: the teacher over a corpus, shard by shard."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import torch
import torch.distributed as dist
from datasets import Dataset, load_from_disk

from uld_ds.data.batching import padding_id, read_rows
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import Recipe, parse_recipe
from uld_ds.runs.folder import RunFolder
from uld_ds.runs.progress import ProgressWriter
from uld_ds.teachers.online import OnlineTeacher
from uld_ds.teachers.served.engine import ServedEngine, open_client
from uld_ds.teachers.served.scores import Engine
from uld_ds.teachers.served.teacher import ServedTeacher
from uld_ds.teachers.store.codec_quality import measure_codec
from uld_ds.teachers.store.manifest import Measured, StoreIdentity
from uld_ds.teachers.store.shard import PieceLayout, StoredExample, spans_of
from uld_ds.teachers.store.writer import StoreWriter
from uld_ds.training.engines import init_process_group, load_teacher
from uld_ds.utils.distributed import Ranks, device_for
from uld_ds.workers.fatal_errors import noting_fatal_errors
from uld_ds.workers.process import configure_process
from uld_ds.workers.scoring_actors import vllm_scoring_actors

log = logging.getLogger(__name__)

# Tokens of a shard: what a rank holds in memory before it is written. A small store has some shards all the same,
# so that every rank has something to do and little is lost when it is interrupted.
_SHARD_TOKENS = (2_048, 32_768)
_SHARDS_OF_SMALL_STORES = 64
_MEASURED_TOKENS = 256


@dataclass(frozen=True)
class StorePart:
    """One store to build: the main one, or that of held-out examples."""

    name: str
    """Name of the store, shown with its progress."""
    url: str
    """Place of the store."""
    rows: str
    """Folder of the teacher's prepared rows."""
    identity: dict[str, Any]
    """Fields of the store's ``StoreIdentity`` as plain values."""


@dataclass(frozen=True)
class StoreJob:
    """The building of a store as its workers get it: everything is resolved and the same for all ranks."""

    recipe: Recipe
    folder: Path
    """Folder for logs and progress."""
    teacher: str
    """Directory or hub id of the teacher."""
    on_gpu: bool
    teacher_deepspeed: dict[str, Any]
    parts: list[StorePart]
    """Stores in the order in which they are built: whoever finds the last one whole finds all of them."""
    engine: dict[str, Any] | None = None
    """Facts of the inference engine that the teacher runs in, see ``ServerFacts``; None where the workers run it."""
    token_variable: str | None = None
    """Environment variable of its server's token: the teacher's name among several is not in ``recipe``."""

    def to_config(self) -> dict[str, Any]:
        """Convert the job to plain values, as Ray carries them to the workers."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__}
        plain |= {"recipe": self.recipe.model_dump(mode="json"), "folder": str(self.folder)}
        return plain | {"parts": [vars(part) for part in self.parts]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> StoreJob:
        """Make the job from the plain values of ``to_config``."""
        parts = [StorePart(**part) for part in config["parts"]]
        return cls(
            **{**config, "recipe": parse_recipe(config["recipe"]), "folder": Path(config["folder"]), "parts": parts}
        )


def build_store_worker(config: dict[str, Any]) -> None:
    """Build the job's stores on this rank; the entry point that Ray calls with ``StoreJob.to_config()``."""
    job = StoreJob.from_config(config)
    stopped = RunFolder(job.folder).stopped
    if stopped.is_file():
        # The attempt before this one has found out that another one is no use.
        return
    with noting_fatal_errors(stopped):
        _build(job)


def _build(job: StoreJob) -> None:
    context = ray.train.get_context()
    configure_process(RunFolder(job.folder).logs, context.get_world_rank(), job.recipe.cluster.threads_per_worker)
    device = device_for(context.get_local_rank(), on_gpu=job.on_gpu)
    init_process_group(on_gpu=job.on_gpu)
    ranks = Ranks.current()
    progress = ProgressWriter(RunFolder(job.folder).progress) if ranks.is_first else None
    settings = job.recipe.teacher_named()
    make = _asked_for(job, ranks, device) if job.engine is not None else _online(job, ranks, device, progress)
    padding = padding_id(Pretrained.at(job.teacher, settings, "teacher").tokenizer())
    for part in job.parts:
        rows = load_from_disk(str(Path(part.rows) / "rows"))
        batcher = TeacherBatcher(rows, padding=padding, max_tokens=settings.max_tokens_per_forward)
        StoreBuild(part, rows, make(batcher), ranks, device, progress).run()
    ray.train.report({"done": 1.0})


def _online(
    job: StoreJob, ranks: Ranks, device: torch.device, progress: ProgressWriter | None
) -> Callable[[TeacherBatcher], OnlineTeacher]:
    """Load the teacher; return what makes a source of it."""
    if progress:
        progress.stage("loading the teacher")
    engine = load_teacher(job.teacher, job.recipe.teacher_named(), job.teacher_deepspeed, device)
    return lambda batcher: OnlineTeacher(
        engine,
        batcher,
        ranks=ranks,
        device=device,
        temperature=job.recipe.objective.teacher_temperature,
        top_ids=job.recipe.store.top_ids,
    )


def _asked_for(job: StoreJob, ranks: Ranks, device: torch.device) -> Callable[[TeacherBatcher], ServedTeacher]:
    """Reach the teacher's engine, a server or actors; return what makes a source of it."""
    settings = job.recipe.teacher_named()
    assert job.engine is not None
    vocab_size = int(job.engine["vocab_size"])
    engine: Engine
    if settings.source == "served":
        assert settings.server is not None
        client = open_client(settings, job.token_variable)
        engine = ServedEngine(client, settings.server, str(job.engine["model"]), vocab_size)
    else:
        logs = RunFolder(job.folder).logs
        version = str(job.engine["version"])
        engine = vllm_scoring_actors(
            job.recipe, job.teacher, vocab_size=vocab_size, version=version, logs=logs, ranks=ranks
        )
    return lambda batcher: ServedTeacher(
        engine, batcher, vocab_size=vocab_size, ranks=ranks, device=device, top_ids=job.recipe.store.top_ids
    )


class StoreBuild:
    """The building of one store, or of what is missing of it.

    Args:
        part: the store.
        rows: the teacher's prepared rows.
        teacher: the teacher's model, here or behind a server.
        ranks: the process group.
        device: device of this rank.
        progress: writer of the progress on the first rank; None on the others.
    """

    def __init__(
        self,
        part: StorePart,
        rows: Dataset,
        teacher: OnlineTeacher | ServedTeacher,
        ranks: Ranks,
        device: torch.device,
        progress: ProgressWriter | None,
    ) -> None:
        self._part = part
        self._rows = rows.with_format("numpy")
        self._teacher = teacher
        self._ranks = ranks
        self._device = device
        self._progress = progress
        self._identity = StoreIdentity.model_validate(part.identity)
        tokens = len(rows.with_format("arrow")[:]["teacher_answers"].combine_chunks().flatten())
        self._writer = StoreWriter(
            part.url,
            self._identity,
            examples=len(rows),
            examples_per_shard=_examples_per_shard(len(rows), tokens),
            key="teacher.path",
        )

    def run(self) -> None:
        """Ask the teacher about every shard that is not there yet, one per rank at a time, and finish. Collective."""
        total = self._writer.num_shards
        missing = self._agreed(sorted(set(range(total)) - self._writer.finished_shards().keys()))
        for first in range(0, len(missing), self._ranks.size):
            begin = time.perf_counter()
            mine, examples = self._mine(missing, first)
            if isinstance(self._teacher, ServedTeacher):
                # While this shard is written, the server is busy with the next one.
                self._teacher.prefetch([*examples, *self._mine(missing, first + self._ranks.size)[1]])
            # Every rank asks, also one without a shard: the weights are spread over all of them.
            answers = self._teacher.answers(examples, 0)
            if mine:
                self._writer.write_shard(mine[0], list(self._stored(examples, answers)))
            done = total - len(missing) + min(first + self._ranks.size, len(missing))
            self._show(done, total, time.perf_counter() - begin)
        sample = self._sample()
        self._ranks.barrier()
        if self._ranks.is_first:
            self._writer.finish(None if sample is None else self._measured(sample))
        self._ranks.barrier()

    def _mine(self, missing: Sequence[int], first: int) -> tuple[Sequence[int], list[int]]:
        """Choose this rank's one of the shards from a place on, or none; with its examples."""
        mine = missing[first + self._ranks.rank : first + self._ranks.rank + 1]
        return mine, list(self._writer.examples_of_shard(mine[0])) if mine else []

    def _measured(self, sample: torch.Tensor) -> Measured:
        precision = self._identity.codec.to_precision()
        return Measured(**measure_codec(sample, precision, temperature=self._identity.temperature))

    def _agreed(self, missing: list[int]) -> list[int]:
        # What the first rank has seen counts: storage may show others an older state.
        shared = [missing]
        if self._ranks.size > 1:
            dist.broadcast_object_list(shared, src=0, device=self._device)
        return shared[0]

    def _stored(self, examples: Sequence[int], answers: Sequence[Any]) -> Iterator[StoredExample]:
        rows = read_rows(self._rows, np.asarray(examples))
        for number, row, tokens in zip(examples, rows, answers, strict=True):
            turns = row["turns"].reshape(-1, 3)
            spans = spans_of(turns, row["token_bytes"])
            yield StoredExample(str(number), str(row["digest"]), turns, spans, tokens.to("cpu"), pieces=pieces_of(row))

    def _sample(self) -> torch.Tensor | None:
        """Compute [n, V] logits at the first tokens of the corpus, to measure what the codec costs. Collective.

        A server tells no logits: there is nothing to measure then.
        """
        if isinstance(self._teacher, ServedTeacher):
            return None
        examples: list[int] = []
        tokens = 0
        while tokens < _MEASURED_TOKENS and len(examples) < len(self._rows):
            tokens += len(self._rows[len(examples)]["teacher_answers"])
            examples.append(len(examples))
        return self._teacher.logits(examples, _MEASURED_TOKENS).float().cpu()

    def _show(self, done: int, total: int, seconds: float) -> None:
        if self._progress is not None:
            text = f"{self._part.name}, {self._teacher.tokens_run:,} tokens of the first worker"
            self._progress.step(done, total, {"seconds/total": seconds / self._ranks.size}, text=text)


def pieces_of(row: dict[str, Any]) -> PieceLayout | None:
    """Return what a prepared row's pieces are; None where each is the text of one answer."""
    parts = [int(part) for part in row["piece_parts"]]
    if not parts:
        return None
    leaves = np.asarray(row["piece_leaves"], np.int64).reshape(-1, 4).tolist()
    return PieceLayout(tuple(parts), tuple(map(str, row["piece_texts"])), tuple((a, b, c, d) for a, b, c, d in leaves))


def _examples_per_shard(examples: int, tokens: int) -> int:
    """Choose how many examples a shard has, from the data alone: the same however many ranks build the store."""
    least, most = _SHARD_TOKENS
    wanted = min(max(tokens // _SHARDS_OF_SMALL_STORES, least), most)
    return max(1, examples * wanted // tokens)
