"""The parts of compact spectra, and the operations on them that both the codec and ``Spectrum`` need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from uld_ds.spectrum.histogram import LevelCounts, LevelGrid


class SpectrumParts:
    """Head, tail and scale of ``N`` compact spectra, without the making of them: see ``uld_ds.spectrum.Spectrum``."""

    __slots__ = ("counts", "error", "grid", "head", "log_scale", "masses", "temperature", "unknown_mass")

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
        unknown_mass: Tensor | None = None,
    ) -> None:
        """Wrap the parts of ``N`` spectra.

        Raises:
            ValueError: their shapes disagree.
        """
        rows = head.shape[0]
        wanted = {"counts": (rows, grid.num_bins), "masses": (rows, grid.num_bins)}
        for name, part in (("counts", counts), ("masses", masses)):
            if tuple(part.shape) != wanted[name]:
                raise ValueError(f"{name} must have shape {list(wanted[name])}, got {list(part.shape)}")
        for name, vector in (("log_scale", log_scale), ("error", error), ("unknown_mass", unknown_mass)):
            if vector is not None and tuple(vector.shape) != (rows,):
                raise ValueError(f"{name} must have shape [{rows}], got {list(vector.shape)}")
        self.head = head
        self.counts = counts
        self.masses = masses
        self.grid = grid
        self.temperature = temperature
        self.log_scale = log_scale
        self.error = error
        self.unknown_mass = unknown_mass

    def __len__(self) -> int:
        return self.head.shape[0]

    def __getitem__(self, index: slice | Tensor | Sequence[int]) -> Self:
        """Select the rows of a slice, an integer tensor or a list of row numbers, in that order.

        Raises:
            TypeError: ``index`` is one int.
        """
        if isinstance(index, int):
            raise TypeError("a Spectrum is indexed by a slice, an integer tensor or a list, not by one int")
        if not isinstance(index, slice):
            index = torch.as_tensor(index, dtype=torch.int64, device=self.head.device)
        return self._map(lambda part: part[index])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Move the spectra to another device."""
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        return type(self)(
            function(self.head),
            function(self.counts),
            function(self.masses),
            grid=self.grid,
            temperature=self.temperature,
            log_scale=None if self.log_scale is None else function(self.log_scale),
            error=None if self.error is None else function(self.error),
            unknown_mass=None if self.unknown_mass is None else function(self.unknown_mass),
        )

    def with_head(self, num_head: int) -> Self:
        """Keep only the ``num_head`` largest probabilities of each row exactly; the others join the tail.

        Raises:
            ValueError: ``num_head`` is below 1 or above the present one.
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
        return type(self)(
            self.head[:, :num_head],
            counts,
            masses,
            grid=grid,
            temperature=self.temperature,
            log_scale=self.log_scale,
            error=self.error,
            unknown_mass=self.unknown_mass,
        )

    @property
    def num_head(self) -> int:
        """The number of largest probabilities that are kept exactly."""
        return self.head.shape[1]

    @property
    def tail(self) -> LevelCounts:
        """Counts and masses of everything but the head, unscaled."""
        return LevelCounts(self.counts, self.masses)

    def unscaled_mass(self) -> Tensor:
        """Sum the stored probabilities of each row, ``[N]``: up to rounding 1, or 0 for padding.

        Less where a truncated distribution's tail was left out.
        """
        return self.head.sum(-1) + self.masses.sum(-1)

    def cumulative_mass(self, ranks: Tensor) -> Tensor:
        """Sum the ``r`` largest unscaled probabilities of each row, for ``ranks [M]`` or ``[N, M]``: ``[N, M]``.

        Exact within the head and wherever a rank falls between two bins; inside a bin its members are taken to
        be equal.
        """
        rows = len(self)
        ranks = ranks.expand(rows, -1) if ranks.dim() == 1 else ranks
        # Descending levels; the underflow bin comes last and, having no counts, is reached by any rank beyond.
        counts, masses = self.counts.flip(-1).double(), self.masses.flip(-1).double()
        zero = counts.new_zeros(rows, 1)
        steps = torch.arange(self.num_head + 1, dtype=torch.float64, device=counts.device).expand(rows, -1)
        at_rank = torch.cat([steps, self.num_head + counts.cumsum(-1)], dim=1)  # [N, K + 1 + B]
        head = torch.cat([zero, self.head.double().cumsum(-1)], dim=1)
        at_mass = torch.cat([head, head[:, -1:] + masses.cumsum(-1)], dim=1)  # [N, K + 1 + B]
        wanted = ranks.double().contiguous()
        right = torch.searchsorted(at_rank, wanted, right=False).clamp(1, at_rank.shape[1] - 1)
        r0, r1 = at_rank.gather(1, right - 1), at_rank.gather(1, right)
        m0, m1 = at_mass.gather(1, right - 1), at_mass.gather(1, right)
        share = torch.where(r1 > r0, (wanted - r0) / (r1 - r0).clamp_min(1e-300), torch.ones_like(r0))
        return m0 + share.clamp(0, 1) * (m1 - m0)

    def num_probabilities(self) -> int:
        """Count the ranks that the longest row needs: the head plus every counted member of the tail."""
        if len(self) == 0:
            return self.num_head
        return self.num_head + int(self.counts.double().sum(-1).max().ceil())
