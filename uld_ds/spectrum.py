"""Compact spectra: next-token distributions with the token identities dropped.

A spectrum is a distribution's probabilities in descending order. The largest are kept exactly (the head); the rest
as counts and masses on a geometric grid of levels (the tail), which is all that the ULD distance needs
(``uld_ds.areas``). Nothing in a ``Spectrum`` has the size of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds import spectrum_codec
from uld_ds.level_counts import (
    LevelCounts,
    LevelGrid,
    check_dead_rows,
    count_levels,
    kept_workspace,
    renormalise,
    softmax_into,
    top_probabilities,
)
from uld_ds.spectrum_checks import accumulation_dtype, check_logits, check_temperature
from uld_ds.spectrum_codec import Precision

DEFAULT_NUM_HEAD = 256
# Elements per chunk: measured on a CPU, where scratch should stay in cache and small operations be few.
_CHUNK_ELEMENTS_CPU = 1 << 20
_CHUNK_ELEMENTS_ACCELERATOR = 1 << 25


class Spectrum:
    """``N`` compact spectra.

    Attributes:
        head: ``[N, K]`` the largest probabilities, descending, exact; zeros where a vocabulary is smaller.
        counts: ``[N, B]`` how many of the remaining probabilities lie in each bin of ``grid``.
        masses: ``[N, B]`` their sums.
        grid: the levels.
        temperature: what the logits were divided by.
        log_scale: ``[N]`` nats, or None for all zeros: every probability is to be multiplied by ``exp(log_scale)``
            (the chain scale of merged segments). ``head`` and ``masses`` are stored without it.
        error: ``[N]`` or None for all zeros: a bound on the W1 distance between what is stored and the true
            distribution, before scaling; what a lossy codec cost.

    A row of zeros is padding: its distance to anything is 0.
    """

    __slots__ = ("counts", "error", "grid", "head", "log_scale", "masses", "temperature")

    def __init__(
        self,
        head: Tensor,
        counts: Tensor,
        masses: Tensor,
        *,
        grid: LevelGrid,
        temperature: float = 1.0,
        log_scale: Tensor | None = None,
        error: Tensor | None = None,
    ) -> None:
        """Wrap the parts; raises ValueError when their shapes disagree."""
        rows = head.shape[0]
        wanted = {"counts": (rows, grid.num_bins), "masses": (rows, grid.num_bins)}
        for name, part in (("counts", counts), ("masses", masses)):
            if tuple(part.shape) != wanted[name]:
                raise ValueError(f"{name} must have shape {list(wanted[name])}, got {list(part.shape)}")
        for name, vector in (("log_scale", log_scale), ("error", error)):
            if vector is not None and tuple(vector.shape) != (rows,):
                raise ValueError(f"{name} must have shape [{rows}], got {list(vector.shape)}")
        self.head = head
        self.counts = counts
        self.masses = masses
        self.grid = grid
        self.temperature = temperature
        self.log_scale = log_scale
        self.error = error

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
        """Spectra of ``softmax(logits / temperature)``, ``logits [N, V]`` of any floating dtype.

        Args:
            logits: -inf entries are tokens of probability 0; a row of nothing else is padding.
            temperature: > 0.
            num_head: probabilities per row kept exactly.
            grid: levels for the others (default: ``LevelGrid.below_head(num_head)``); more mantissa bits, less error.
            chunk_rows: rows at a time; scratch is about 28 bytes per element of a chunk.
            check: look for NaN and +inf, which reads one value back from the device after all chunks.
            name: what to call ``logits`` in an error.

        Raises:
            ValueError: wrong shape or dtype, or a row with NaN or +inf (named).
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
            top, where = top_probabilities(p, min(num_head, vocab))
            p.scatter_(1, where, 0.0)
            tail, _ = count_levels(p, 2.0, grid, work)
            head[part, : top.shape[1]], (counts[part], masses[part]) = renormalise(top, tail, 1.0)
        if check:
            check_dead_rows(dead, logits, name)
        return cls(head, counts, masses, grid=grid, temperature=temperature)

    def __len__(self) -> int:
        return self.head.shape[0]

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Spectrum:
        """The rows of a slice, an integer tensor or a list of row numbers, in that order."""
        if isinstance(index, int):
            raise TypeError("a Spectrum is indexed by a slice, an integer tensor or a list, not by one int")
        if not isinstance(index, slice):
            index = torch.as_tensor(index, dtype=torch.int64, device=self.head.device)
        return self._map(lambda part: part[index])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Spectrum:
        """The same spectra on another device."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Spectrum:
        return Spectrum(
            function(self.head),
            function(self.counts),
            function(self.masses),
            grid=self.grid,
            temperature=self.temperature,
            log_scale=None if self.log_scale is None else function(self.log_scale),
            error=None if self.error is None else function(self.error),
        )

    @classmethod
    def cat(cls, spectra: Sequence[Spectrum]) -> Spectrum:
        """Concatenate along the rows; raises ValueError for an empty list or different grids or head sizes."""
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
        )

    def shift(self, log_scale: Tensor) -> Spectrum:
        """The same spectra multiplied by ``exp(log_scale)``, ``[N]`` nats (chain rule over a merged segment)."""
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
        )

    def with_head(self, num_head: int) -> Spectrum:
        """The same spectra with only the ``num_head`` largest kept exactly; the others join the tail.

        Raises:
            ValueError: more are asked for than there are.
        """
        if not 1 <= num_head <= self.num_head:
            raise ValueError(f"num_head must lie in 1..{self.num_head}, got {num_head}")
        top_octave = min(self.grid.top_octave, LevelGrid.below_head(num_head).top_octave)
        grid = replace(self.grid, top_octave=top_octave)
        # Bins are numbered from the floor up: a higher top only appends some.
        grown = (0, grid.num_bins - self.grid.num_bins)
        counts, masses = F.pad(self.counts, grown), F.pad(self.masses, grown)
        moved = self.head[:, num_head:]
        levels = moved.float().clamp(grid.floor, grid.top).contiguous()
        index = (levels.view(torch.int32) >> grid.shift).long() - grid.offset
        counts.scatter_add_(1, index, (moved > 0).to(counts.dtype))
        masses.scatter_add_(1, index, moved)
        return Spectrum(
            self.head[:, :num_head],
            counts,
            masses,
            grid=grid,
            temperature=self.temperature,
            log_scale=self.log_scale,
            error=self.error,
        )

    def to_bytes(self, precision: Precision | None = None) -> bytes:
        """Compact, versioned bytes (``uld_ds.spectrum_codec``), about 80 per row; the error goes with them.

        Raises:
            ValueError: ``precision.num_exact`` exceeds ``num_head``.
        """
        return spectrum_codec.encode(self, precision or spectrum_codec.default_precision(self.num_head))

    @staticmethod
    def from_bytes(data: bytes) -> Spectrum:
        """What ``to_bytes`` wrote, on the CPU; ``error`` bounds what the codec cost.

        Raises:
            ValueError: the bytes are of another version or kind, damaged or cut short (says which).
        """
        return spectrum_codec.decode(data)

    def _kind(self) -> tuple[int, LevelGrid, float]:
        return self.num_head, self.grid, self.temperature

    @property
    def num_head(self) -> int:
        """How many of the largest probabilities are kept exactly."""
        return self.head.shape[1]

    @property
    def tail(self) -> LevelCounts:
        """Counts and masses of everything but the head, unscaled."""
        return LevelCounts(self.counts, self.masses)

    @property
    def num_bytes(self) -> int:
        """Bytes held in memory."""
        parts = (self.head, self.counts, self.masses, self.log_scale, self.error)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)

    def unscaled_mass(self) -> Tensor:
        """Sum of the stored probabilities, ``[N]``: 1, or 0 for padding, up to rounding."""
        return self.head.sum(-1) + self.masses.sum(-1)

    def total_mass(self) -> Tensor:
        """Sum of the probabilities, ``[N]``, ``exp(log_scale)`` included."""
        mass = self.unscaled_mass()
        return mass if self.log_scale is None else mass * self.log_scale.exp()

    def entropy(self) -> Tensor:
        """Entropy of the normalised distribution in nats, ``[N]``; 0 for padding.

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

    def cumulative_mass(self, ranks: Tensor) -> Tensor:
        """Sum of the ``r`` largest probabilities, unscaled, for ranks ``[M]`` or ``[N, M]``: ``[N, M]``.

        Exact within the head and wherever a rank falls between two bins; inside a bin its members are taken to
        be equal.
        """
        rows = len(self)
        ranks = ranks.expand(rows, -1) if ranks.dim() == 1 else ranks
        # Descending levels; the underflow bin comes last and, having no counts, is reached by any rank beyond.
        counts, masses = self.counts.flip(-1).double(), self.masses.flip(-1).double()
        zero = counts.new_zeros(rows, 1)
        steps = torch.arange(self.num_head + 1, dtype=torch.float64, device=counts.device).expand(rows, -1)
        at_rank = torch.cat([steps, self.num_head + counts.cumsum(-1)], dim=1)
        head = torch.cat([zero, self.head.double().cumsum(-1)], dim=1)
        at_mass = torch.cat([head, head[:, -1:] + masses.cumsum(-1)], dim=1)
        wanted = ranks.double().contiguous()
        right = torch.searchsorted(at_rank, wanted, right=False).clamp(1, at_rank.shape[1] - 1)
        r0, r1 = at_rank.gather(1, right - 1), at_rank.gather(1, right)
        m0, m1 = at_mass.gather(1, right - 1), at_mass.gather(1, right)
        share = torch.where(r1 > r0, (wanted - r0) / (r1 - r0).clamp_min(1e-300), torch.ones_like(r0))
        return m0 + share.clamp(0, 1) * (m1 - m0)

    def to_probabilities(self, num_ranks: int) -> Tensor:
        """The ``num_ranks`` largest probabilities, scaled, descending: ``[N, num_ranks]``, for the exact method.

        The head is exact; tail probabilities are their bins' means.
        """
        ranks = torch.arange(num_ranks + 1, device=self.head.device)
        p = self.cumulative_mass(ranks).diff(dim=-1).to(self.head.dtype)
        return p if self.log_scale is None else p * self.log_scale.exp()[:, None]

    def num_probabilities(self) -> int:
        """Ranks that the longest row needs: the head plus every counted member of the tail."""
        if len(self) == 0:
            return self.num_head
        return self.num_head + int(self.counts.double().sum(-1).max().ceil())


def _cat_optional(parts: list[Tensor | None], spectra: Sequence[Spectrum]) -> Tensor | None:
    """Concatenate vectors of which absent ones stand for zeros; None when all are absent."""
    if all(part is None for part in parts):
        return None
    return torch.cat(
        [s.head.new_zeros(len(s)) if part is None else part for part, s in zip(parts, spectra, strict=True)]
    )
