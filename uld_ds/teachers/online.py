"""The online teacher beside the student: frozen, sharded by ZeRO-3 over all ranks or whole on each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from uld_ds.batches import SideBatch
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.models.row_model import Consume, Head, scores_of
from uld_ds.spectrum.spectrum import Spectrum
from uld_ds.spectrum.top_tokens import TopTokens
from uld_ds.teacher_outputs import TeacherTokens
from uld_ds.teachers.gather_counter import GatherCounter
from uld_ds.teachers.source import NonFiniteTeacherError
from uld_ds.utils.distributed import Ranks
from uld_ds.utils.host_memory import return_free_memory

T = TypeVar("T")


class OnlineTeacher:
    """A teacher source that runs a frozen model over examples' answers; each batch is one gather of its weights.

    Args:
        engine: Engine of ``deepspeed.initialize`` without an optimizer, or a RowModel itself when it is not sharded.
        batcher: Batches of the teacher's side of the training data.
        ranks: Process group whose ranks call the teacher together.
        device: Device that batches go to.
        temperature: Softens the teacher's distributions before their tokens' identities are dropped.
        top_ids: Number of top-k tokens to keep by id as well, at temperature 1; 0 for none.
    """

    def __init__(
        self,
        engine: Any,
        batcher: TeacherBatcher,
        *,
        ranks: Ranks,
        device: torch.device,
        temperature: float = 1.0,
        top_ids: int = 0,
    ) -> None:
        self._engine: Any = engine
        self._traffic = GatherCounter(engine, ranks.size)
        self._batcher = batcher
        self._ranks = ranks
        self._device = device
        self._temperature = temperature
        self._top_ids = top_ids
        self.tokens_run = 0
        """Tokens that went through the teacher on this rank so far, without padding."""

    @property
    def bytes_gathered(self) -> int:
        """Bytes of the teacher's weights that this rank has received from others."""
        return self._traffic.bytes

    @property
    def _packs(self) -> bool:
        model: Any = getattr(self._engine, "module", self._engine)
        return bool(model.packs)

    def ask_about(self, batcher: TeacherBatcher) -> None:
        """Take other examples to be asked about by number: new ones have come, e.g. the student's own answers."""
        self._batcher = batcher

    def close(self) -> None:
        """Free the model's memory; the teacher cannot be used any more."""
        if hasattr(self._engine, "destroy"):
            self._engine.destroy()
        # DeepSpeed ties parameters, modules and hooks into knots that outlive the engine: what counts are the weights.
        for tensor in [*self._engine.parameters(), *self._engine.buffers()]:
            for held in (tensor, getattr(tensor, "ds_tensor", None)):
                if held is not None:
                    held.data = held.data.new_empty(0)
        self._engine = None
        return_free_memory()

    def answers(self, examples: Sequence[int], step: int) -> list[TeacherTokens]:
        """Compute the teacher outputs of each example. Collective: every rank runs as many forwards as any.

        Raises:
            NonFiniteTeacherError: on every rank, when an example of any has logits that are not finite.
        """
        groups = self._batcher.groups(sorted(set(examples)), padded=not self._packs)
        number = int(self._ranks.max(torch.tensor(len(groups), device=self._device)))
        said: dict[int, TeacherTokens] = {}
        bad: set[int] = set()
        for group in groups:
            said |= zip(group, self._run(group, bad), strict=True)
        for _ in range(number - len(groups)):
            # The others need this rank's shards; nobody needs what the forward gives.
            self._forward(self._batcher.batch([self._batcher.shortest]), lambda _hidden, _head: [])
        if self._ranks.max(torch.tensor(len(bad), device=self._device)):
            raise NonFiniteTeacherError(self._ranks.union(sorted(bad)))
        return [said[example] for example in examples]

    def answer_scores(self, batch: SideBatch) -> Tensor:
        """Compute [A, 2] natural log-probabilities: of each answer token, and of the most probable token there.

        The batch is any teacher's side of examples, of the training data or not. Collective.
        """
        return self._forward(batch, scores_of(batch.answer_ids.to(self._device)))

    def apply_at(self, batch: SideBatch, rows: Tensor, consume: Consume[T]) -> T:
        """Return what ``consume`` makes of the teacher's hidden states at the positions ``rows``. Collective."""
        return self._forward(batch, consume, rows)

    @property
    def language_model(self) -> Any:
        """The transformers model, for ``generate``; its weights are gathered as it runs."""
        return getattr(self._engine, "module", self._engine).lm

    def logits(self, examples: Sequence[int], num_rows: int) -> Tensor:
        """Compute logits [num_rows or fewer, V] of the first answer tokens of some examples.

        Collective: all ranks call it with the same arguments.
        """
        batch = self._batcher.batch(examples)
        rows = batch.answer_rows[:num_rows].to(self._device)
        return torch.cat(self._forward(batch, lambda hidden, head: [head.logits(hidden).clone()], rows))

    def _run(self, group: Sequence[int], bad: set[int]) -> list[TeacherTokens]:
        """Compute the outputs of a group's examples; those with logits that are not finite are added to ``bad``."""
        batch = self._batcher.batch(group)
        counts = torch.bincount(batch.answer_example, minlength=len(group)).tolist()
        tokens = TeacherTokens.cat(self._forward(batch, self._tokens_of(batch.answer_ids.to(self._device))))
        rows = (~torch.isfinite(tokens.log_probs)).cpu()
        bad.update(group[place] for place in batch.answer_example[rows].unique().tolist())
        stops = torch.tensor(counts).cumsum(0).tolist()
        return [tokens[stop - count : stop] for count, stop in zip(counts, stops, strict=True)]

    @torch.no_grad()
    def _forward(self, batch: SideBatch, consume: Consume[Any], rows: Tensor | None = None) -> Any:
        self.tokens_run += int(batch.num_tokens())
        batch = batch.to(self._device)
        return self._engine(batch, batch.answer_rows if rows is None else rows, consume)

    def _tokens_of(self, ids: Tensor) -> Consume[list[TeacherTokens]]:
        def consume(hidden: Tensor, head: Head) -> list[TeacherTokens]:
            # A list, because ZeRO-3's hooks look into what a module returns and know tensors, lists and dicts.
            parts = []
            for chunk in head.chunks(hidden):
                logits = head.logits(hidden[chunk])  # [n, V]
                # Whether all is finite is asked once per batch: to ask here would wait for the device.
                spectrum = Spectrum.from_logits(logits, temperature=self._temperature, check=False)
                right = logits.gather(1, ids[chunk, None]).squeeze(1).float()  # [n]
                normalizer = logits.float().logsumexp(1)  # [n]
                top = None
                if self._top_ids:
                    top = TopTokens.from_logits(logits, self._top_ids, log_normalizer=normalizer)
                parts.append(TeacherTokens(spectrum, right - normalizer, top))
            return parts

        return consume
