"""Rollouts in the workers themselves: each rank samples its batches by a copy of the student, or by the student."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from uld_ds.errors import RunError
from uld_ds.generation.sampling import Asked, Sampled, Sampler, Sampling
from uld_ds.training.plain_copy import PlainCopy, evaluating


class LocalEngine:
    """A ``RolloutEngine`` without any process of its own.

    Args:
        student: DeepSpeed engine around a RowModel.
        sampling: Options of sampling.
        ends: Token ids that end an answer, besides those that the student's generation configuration names.
        padding: Token id to fill up prompts with.
        device: Device of this rank.
        own_copy: Whether to sample by a copy of the student, which may be trained meanwhile. Under ZeRO-3 there is one
            in any case.
    """

    def __init__(
        self,
        student: Any,
        sampling: Sampling,
        *,
        ends: Sequence[int],
        padding: int,
        device: torch.device,
        own_copy: bool,
    ) -> None:
        is_sharded = student.zero_optimization_partition_weights()
        self._copy = PlainCopy(student) if own_copy or is_sharded else None
        lm = student.module.lm if self._copy is None else self._copy.lm
        self._lm: Any = lm
        self._sampling = sampling
        self._sampler = Sampler(lm, ends=ends, padding=padding, device=device)
        self._device = device
        # Sums depend on their number, and a new thread may have another.
        self._threads = torch.get_num_threads()

    def take_weights(self) -> None:
        """Copy the student's weights of now, where there is a copy. Collective."""
        if self._copy is not None:
            self._copy.fill()
        if self._device.type == "cuda":
            # Another thread reads them on a stream of its own.
            torch.cuda.synchronize(self._device)

    def sample(self, batches: Mapping[int, Sequence[Asked]]) -> Iterator[tuple[int, list[Sampled]]]:
        """Sample this rank's batches of a round; see ``RolloutEngine``."""
        if self._copy is not None and not self._copy.is_filled:
            raise RunError("answers were to be sampled without the weights of a round")
        torch.set_num_threads(self._threads)
        stream = self._stream()
        for number, asked in batches.items():
            # Between two batches the caller has its own way with model and stream.
            with evaluating(self._lm), nullcontext() if stream is None else torch.cuda.stream(stream):
                answers = self._sampler.sample(asked, self._sampling)
            yield number, answers

    def release(self) -> None:
        """Free the weights of the round."""
        if self._copy is not None:
            self._copy.free()

    def close(self) -> None:
        """Free everything."""
        self.release()

    def _stream(self) -> torch.cuda.Stream | None:
        """Make a stream on which a copy computes beside training, on a GPU."""
        if self._copy is None or self._device.type != "cuda":
            return None
        return torch.cuda.Stream(self._device)
