"""Compact spectra: next-token distributions with the token identities dropped.

A spectrum is a distribution's probabilities in descending order. The largest are kept exactly (the head); the rest
as counts and masses on a geometric grid of levels (the tail), which is all that the ULD distance needs
(``uld_ds.spectrum.histogram_distance``). Nothing in a ``Spectrum`` has the size of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from uld_ds.spectrum import codec, truncated
from uld_ds.spectrum.checks import accumulation_dtype, check_logits, check_temperature
from uld_ds.spectrum.histogram import LevelGrid
from uld_ds.spectrum.kernels import (
    check_dead_rows,
    count_levels,
    kept_workspace,
    renormalize,
    softmax_into,
    top_probabilities,
)
from uld_ds.spectrum.parts import SpectrumParts
from uld_ds.spectrum.precision import Precision
from uld_ds.spectrum.tail_shapes import TailShape

DEFAULT_NUM_HEAD = 256
# Elements per chunk: measured on a CPU, where scratch should stay in cache and small operations be few.
_CHUNK_ELEMENTS_CPU = 1 << 20
_CHUNK_ELEMENTS_ACCELERATOR = 1 << 25


class Spectrum(SpectrumParts):
    """``N`` compact spectra: sorted next-token distributions as an exact head and a histogram of the tail.

    Attributes:
        head: ``[N, K]`` the largest probabilities, descending, exact; zeros where a vocabulary is smaller.
        counts: ``[N, B]`` how many of the remaining probabilities lie in each bin of ``grid``.
        masses: ``[N, B]`` their sums.
        grid: the levels.
        temperature: what the logits were divided by.
        log_scale: ``[N]`` nats, or None for all zeros: every probability is to be multiplied by ``exp(log_scale)``
            (the chain scale of merged segments). ``head`` and ``masses`` are stored without it.
        error: ``[N]`` or None for all zeros: a bound on the W1 distance between what is stored and the true
            distribution, before scaling: what a lossy codec cost, and what nobody knows of a truncated tail.
        unknown_mass: ``[N]`` or None where every probability is known: the mass, before scaling, of tokens of which
            nothing else is known (``from_top_log_probs``). Whatever the stored tail puts in their place is an estimate.

    A row of zeros is padding: its distance to anything is 0.
    """

    __slots__ = ()

    @classmethod
    def from_parts(cls, parts: SpectrumParts) -> Spectrum:
        """Wrap decoded ``parts`` as a ``Spectrum``; nothing is copied."""
        return cls(
            parts.head,
            parts.counts,
            parts.masses,
            grid=parts.grid,
            temperature=parts.temperature,
            log_scale=parts.log_scale,
            error=parts.error,
            unknown_mass=parts.unknown_mass,
        )

    @classmethod
    @torch.no_grad()
    def from_logits(
        cls,
        logits: Tensor,
        *,
        temperature: float = 1.0,
        num_head: int = DEFAULT_NUM_HEAD,
        grid: LevelGrid | None = None,
        chunk_rows: int | None = None,
        check: bool = True,
        name: str = "logits",
    ) -> Spectrum:
        """Compute the spectra of ``softmax(logits / temperature)``.

        Args:
            logits: ``[N, V]`` of any floating dtype. -inf entries are tokens of probability 0; a row of nothing else
                is padding.
            temperature: > 0.
            num_head: probabilities per row kept exactly.
            grid: levels for the others (default: ``LevelGrid.below_head(num_head)``); more mantissa bits, less error.
            chunk_rows: rows at a time; scratch is about 28 bytes per element of a chunk.
            check: look for NaN and +inf, which reads one value back from the device after all chunks.
            name: what to call ``logits`` in an error.

        Raises:
            ValueError: wrong shape, dtype, ``temperature`` or ``num_head``, or a row with NaN or +inf (named).
        """
        check_logits(logits, name)
        check_temperature(temperature, "temperature")
        if num_head < 1:
            raise ValueError(f"num_head must be at least 1, got {num_head}")
        grid = grid or LevelGrid.below_head(num_head)
        rows, vocab = logits.shape
        dtype = accumulation_dtype(logits.dtype)
        budget = _CHUNK_ELEMENTS_CPU if logits.device.type == "cpu" else _CHUNK_ELEMENTS_ACCELERATOR
        chunk = min(chunk_rows or max(1, budget // vocab), max(rows, 1))
        work = kept_workspace(chunk, vocab, grid, dtype, logits.device)
        head = torch.zeros(rows, num_head, dtype=dtype, device=logits.device)
        counts = torch.zeros(rows, grid.num_bins, dtype=dtype, device=logits.device)
        masses = torch.zeros_like(counts)
        dead = torch.zeros(rows, dtype=torch.bool, device=logits.device)
        for start in range(0, rows, chunk):
            part = slice(start, min(start + chunk, rows))
            p, dead[part] = softmax_into(logits[part], temperature, work)
            top, where = top_probabilities(p, min(num_head, vocab))  # [R, k] each
            p.scatter_(1, where, 0.0)
            tail, _ = count_levels(p, 2.0, grid, work)
            head[part, : top.shape[1]], (counts[part], masses[part]) = renormalize(top, tail, 1.0)
        if check:
            check_dead_rows(dead, logits, name)
        return cls(head, counts, masses, grid=grid, temperature=temperature)

    @classmethod
    @torch.no_grad()
    def from_top_log_probs(
        cls,
        log_probs: Tensor,
        *,
        vocab_size: int,
        num_head: int = DEFAULT_NUM_HEAD,
        grid: LevelGrid | None = None,
        tail: TailShape = truncated.DEFAULT_TAIL,
        name: str = "log_probs",
    ) -> Spectrum:
        """Make spectra of distributions of which only the largest probabilities are known.

        What the others hold together becomes ``unknown_mass``; an estimate of how it lies on them stands in their
        place, and ``error`` bounds what that may cost (``uld_ds.spectrum.truncated``).

        Args:
            log_probs: ``[N, k]`` natural log-probabilities at temperature 1, descending, of any floating dtype. A row
                that ends in -inf knows fewer; one of nothing else is padding. Together they may exceed 1 by what half
                precision rounds away: such rows are scaled back.
            vocab_size: Tokens of the vocabulary, of which all but those of ``log_probs`` share the unknown mass.
            num_head: Probabilities per row kept exactly.
            grid: Levels for the others (default: ``LevelGrid.below_head(num_head)``).
            tail: Shape of the estimate (``uld_ds.spectrum.tail_shapes``); ``left_out`` for none.
            name: What to call ``log_probs`` in an error.

        Raises:
            ValueError: wrong shape, dtype or ``num_head``; a row that is not descending, holds NaN or more than 1, or
                leaves more than the tokens beyond it could hold (named).
        """
        parts = truncated.from_top_log_probs(
            log_probs,
            vocab_size=vocab_size,
            num_head=num_head,
            grid=grid or LevelGrid.below_head(num_head),
            tail=tail,
            name=name,
        )
        return cls.from_parts(parts)

    @classmethod
    def cat(cls, spectra: Sequence[Spectrum]) -> Spectrum:
        """Concatenate spectra along the rows.

        Raises:
            ValueError: there are none, or they differ in grid, head size or temperature.
        """
        if not spectra:
            raise ValueError("Spectrum.cat needs at least one Spectrum")
        first = spectra[0]
        for other in spectra[1:]:
            if first._kind() != other._kind():
                raise ValueError(f"cannot concatenate spectra of kinds {first._kind()} and {other._kind()}")
        return cls(
            torch.cat([s.head for s in spectra]),
            torch.cat([s.counts for s in spectra]),
            torch.cat([s.masses for s in spectra]),
            grid=first.grid,
            temperature=first.temperature,
            log_scale=_cat_optional([s.log_scale for s in spectra], spectra),
            error=_cat_optional([s.error for s in spectra], spectra),
            unknown_mass=_cat_optional([s.unknown_mass for s in spectra], spectra),
        )

    def shift(self, log_scale: Tensor) -> Spectrum:
        """Multiply the spectra by ``exp(log_scale)``, ``[N]`` nats (chain rule over a merged segment).

        Raises:
            ValueError: ``log_scale`` is not ``[N]``.
        """
        if tuple(log_scale.shape) != (len(self),):
            raise ValueError(f"log_scale must have shape [{len(self)}], got {list(log_scale.shape)}")
        moved = log_scale.to(self.head)
        moved = moved if self.log_scale is None else moved + self.log_scale
        return Spectrum(
            self.head,
            self.counts,
            self.masses,
            grid=self.grid,
            temperature=self.temperature,
            log_scale=moved,
            error=self.error,
            unknown_mass=self.unknown_mass,
        )

    def to_bytes(self, precision: Precision | None = None) -> bytes:
        """Encode the spectra as compact, versioned bytes (``uld_ds.spectrum.codec``), about 80 per row, with the error.

        Raises:
            ValueError: ``precision.num_exact`` exceeds ``num_head``.
        """
        return codec.encode(self, precision or codec.default_precision(self.num_head))

    @staticmethod
    def from_bytes(data: bytes) -> Spectrum:
        """Decode spectra that ``to_bytes`` wrote, on the CPU; ``error`` bounds what the codec cost.

        Raises:
            ValueError: the bytes are of another version or kind, damaged or cut short (says which).
        """
        return Spectrum.from_parts(codec.decode(data))

    def _kind(self) -> tuple[int, LevelGrid, float]:
        return self.num_head, self.grid, self.temperature

    @property
    def num_bytes(self) -> int:
        """Bytes that the tensors hold in memory."""
        parts = (self.head, self.counts, self.masses, self.log_scale, self.error, self.unknown_mass)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def total_mass(self) -> Tensor:
        """Sum the probabilities of each row, ``[N]``, ``exp(log_scale)`` included."""
        mass = self.unscaled_mass()
        return mass if self.log_scale is None else mass * self.log_scale.exp()

    def entropy(self) -> Tensor:
        """Compute the entropy of each normalized row in nats, ``[N]``; 0 for padding.

        A tail bin counts as that many equal probabilities, which overstates its share by at most
        ``w**2 / 8`` of its mass, ``w`` the bin's width in nats.
        """
        mass = self.unscaled_mass()
        mean_level = self.masses / self.counts.clamp_min(torch.finfo(self.counts.dtype).tiny)
        # The underflow bin has no counts; its members are taken to sit at the floor.
        mean_level[:, 0] = self.grid.floor
        terms = torch.xlogy(self.head, self.head).sum(-1) + torch.xlogy(self.masses, mean_level).sum(-1)
        alive = mass > 0
        safe = torch.where(alive, mass, torch.ones_like(mass))
        return torch.where(alive, safe.log() - terms / safe, torch.zeros_like(mass)).clamp_min(0)

    def to_probabilities(self, num_ranks: int) -> Tensor:
        """Expand to the ``num_ranks`` largest probabilities, scaled, descending: ``[N, num_ranks]``.

        The head is exact; tail probabilities are their bins' means. The exact method compares these.
        """
        ranks = torch.arange(num_ranks + 1, device=self.head.device)
        p = self.cumulative_mass(ranks).diff(dim=-1).to(self.head.dtype)
        return p if self.log_scale is None else p * self.log_scale.exp()[:, None]


def _cat_optional(parts: list[Tensor | None], spectra: Sequence[Spectrum]) -> Tensor | None:
    """Concatenate vectors of which absent ones stand for zeros; None when all are absent."""
    if all(part is None for part in parts):
        return None
    return torch.cat(
        [s.head.new_zeros(len(s)) if part is None else part for part, s in zip(parts, spectra, strict=True)]
    )
