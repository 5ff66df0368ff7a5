"""Kernels that count probabilities above a level without a sort: softmax, exact top-k, and counts on a grid.

The bit pattern of a positive float is itself a logarithmic scale: exponent and leading mantissa bits, read as an
integer, number the bins of a geometric grid. Binning therefore costs one shift per probability.
"""

from __future__ import annotations

import math
import threading

import torch
from torch import Tensor

from uld_ds.spectrum.checks import check_normalizers
from uld_ds.spectrum.histogram import LevelCounts, LevelGrid

# Smaller blocks than this save nothing over a plain top-k.
_MIN_BLOCK = 4


class Workspace:
    """Scratch tensors for chunks of up to ``rows`` rows of width ``vocab``.

    They are used again for every chunk, since fresh memory costs more than the arithmetic.
    """

    def __init__(self, rows: int, vocab: int, grid: LevelGrid, dtype: torch.dtype, device: torch.device) -> None:
        self.p = torch.empty(rows, vocab, dtype=dtype, device=device)
        self.signs = torch.empty(rows, vocab, dtype=dtype, device=device)
        # Bit patterns are those of float32, whatever the arithmetic is done in.
        self.levels = self.signs if dtype == torch.float32 else self.signs.float()
        self.index = torch.empty(rows, vocab, dtype=torch.int64, device=device)
        self.packed = torch.empty(rows, vocab, dtype=torch.float64, device=device)
        # The packed values are dead once counted; signs are looked up in the same memory.
        self.looked_up = self.packed.view(-1).view(dtype)[: rows * vocab].view(rows, vocab)
        self.table = torch.empty(rows, grid.offset + grid.num_bins, dtype=torch.float64, device=device)
        self.grid = grid

    @property
    def num_rows(self) -> int:
        """Rows of a chunk that fit into the workspace."""
        return self.p.shape[0]

    def check(self, vocab: int, grid: LevelGrid, dtype: torch.dtype, device: torch.device) -> int:
        """Check that the workspace suits a chunk; return how many rows fit.

        Raises:
            ValueError: it was made for another vocabulary, grid, dtype or device.
        """
        wanted = (vocab, grid, dtype, device)
        made_for = (self.p.shape[1], self.grid, self.p.dtype, self.p.device)
        if made_for != wanted:
            raise ValueError(f"workspace was made for {made_for}, not for {wanted}")
        return self.num_rows


_kept = threading.local()
# One for the student's vocabulary, one for the teacher's.
_NUM_KEPT = 2


def kept_workspace(rows: int, vocab: int, grid: LevelGrid, dtype: torch.dtype, device: torch.device) -> Workspace:
    """Return a ``Workspace`` of at least ``rows`` rows, on a CPU the thread's last one if it suits.

    Fresh pages are slow on a CPU; accelerators' allocators keep memory themselves.
    """
    if device.type != "cpu":
        return Workspace(rows, vocab, grid, dtype, device)
    kept: dict[tuple[int, LevelGrid, torch.dtype], Workspace] = _kept.__dict__.setdefault("workspaces", {})
    key = (vocab, grid, dtype)
    work = kept.pop(key, None)
    if work is None or work.num_rows < rows:
        work = Workspace(rows, vocab, grid, dtype, device)
    kept[key] = work
    while len(kept) > _NUM_KEPT:
        del kept[next(iter(kept))]
    return work


def softmax_into(logits: Tensor, temperature: float, work: Workspace) -> tuple[Tensor, Tensor]:
    """Write the softmax of ``logits [R, V] / temperature`` to ``work.p[:R]``; also return which rows have none.

    The second result is ``[R]`` bool.

    Rows without a distribution (all -inf, or NaN and +inf, which callers report later) come back as zeros, so that
    no NaN ever becomes an index.
    """
    rows = logits.shape[0]
    p = work.p[:rows]
    if temperature != 1.0 or logits.dtype != p.dtype:
        scaled = work.looked_up[:rows]
        logits = scaled.copy_(logits).mul_(1.0 / temperature)
    torch.softmax(logits, dim=-1, out=p)
    # A row's normalizer poisons all of the row, so its first entry tells.
    dead = torch.isnan(p[:, 0])
    # On a CPU looking costs nothing and saves a pass; on an accelerator it would wait for the device.
    if p.device.type != "cpu" or bool(dead.any()):
        p.nan_to_num_(nan=0.0)
    return p, dead


def check_dead_rows(dead: Tensor, logits: Tensor, name: str) -> None:
    """Raise ValueError naming the first row that is dead by NaN or +inf and not for being all -inf.

    Reads one value back from the device: call it once, after the chunks.

    Args:
        dead: ``[N]`` bool, from ``softmax_into``.
        logits: ``[N, V]``.
        name: what to call ``logits`` in the error.
    """
    if bool(dead.any()):
        maxima = torch.full(dead.shape, float("-inf"), dtype=logits.dtype, device=logits.device)
        maxima[dead] = logits[dead].amax(-1)
        check_normalizers(maxima, name)


def top_probabilities(p: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the ``k <= V`` largest of each row of ``p [R, V]``, descending, and their positions: ``[R, k]`` each.

    The ``k`` largest lie in the ``k`` blocks with the largest maxima, so only those blocks are searched.
    Block ``j`` holds the columns congruent to ``j``: taking maxima over them is a contiguous, vectorized pass.
    """
    rows, vocab = p.shape
    block = 1 << round(0.5 * math.log2(vocab / k))
    num_blocks = vocab // block
    if block < _MIN_BLOCK or num_blocks < k:
        return p.topk(k, dim=-1)
    split = p[:, : num_blocks * block].unflatten(1, (block, num_blocks))  # [R, block, num_blocks]
    chosen = split.amax(dim=1).topk(k, dim=-1, sorted=False).indices  # [R, k]
    columns = chosen[:, None, :] + num_blocks * torch.arange(block, device=p.device)[None, :, None]
    columns = columns.reshape(rows, block * k)  # from [R, block, k]
    if num_blocks * block < vocab:
        rest = torch.arange(num_blocks * block, vocab, device=p.device).expand(rows, -1)
        columns = torch.cat([columns, rest], dim=1)
    values, picked = p.gather(1, columns).topk(k, dim=-1)
    return values, columns.gather(1, picked)


def count_levels(p: Tensor, unit: Tensor | float, grid: LevelGrid, work: Workspace) -> tuple[LevelCounts, Tensor]:
    """Count ``p [R, V]`` into the bins of ``grid``; also return each element's index ``[R, V]`` for ``look_up``.

    ``unit`` is a power of two, at least twice the row's total mass (float, or ``[R, 1]`` float64). Count and mass
    travel in one float64: each element adds ``unit + p``, so the sum is ``count * unit + mass`` with
    ``mass < unit``. One pass of scattered additions instead of two, and no float32 accumulation of a million terms.
    """
    rows = p.shape[0]
    levels, index, packed = work.levels[:rows], work.index[:rows], work.packed[:rows]
    table = work.table[:rows]
    below_floor = grid.floor * (1 - 2.0**-20)
    if p.dtype == levels.dtype:
        torch.clamp(p, below_floor, grid.top, out=levels)
    else:
        levels.copy_(p).clamp_(below_floor, grid.top)
    index.copy_(levels.view(torch.int32).bitwise_right_shift_(grid.shift))
    packed.copy_(p).add_(unit)
    used = table[:, grid.offset :]  # [R, B]
    used.zero_()
    table.scatter_add_(1, index, packed)
    counts = torch.floor(used / unit)
    masses = used - counts * unit
    counts[:, 0] = 0
    return LevelCounts(counts.to(p.dtype), masses.to(p.dtype)), index


def renormalize(head: Tensor, tail: LevelCounts, mass: Tensor | float) -> tuple[Tensor, LevelCounts]:
    """Scale ``head [R, k]`` and the tail's masses so that together they sum to ``mass`` (``[R]`` or one for all).

    A softmax in float32 adds up its normalizer in float32 and misses by up to 1e-5 over 262,144 entries; the
    masses here were added up in float64.
    """
    total = head.sum(-1) + tail.masses.sum(-1)
    correction = torch.where(total > 0, mass / total, torch.ones_like(total))[:, None]
    return head * correction, LevelCounts(tail.counts, tail.masses * correction)


def look_up(values: Tensor, index: Tensor, grid: LevelGrid, work: Workspace) -> Tensor:
    """Gather ``values [R, B]`` at every element's bin: ``[R, V]``, valid until the workspace is used again.

    ``index`` is the one that ``count_levels`` returned.
    """
    rows = values.shape[0]
    out = work.looked_up[:rows]
    padded = torch.nn.functional.pad(values, (grid.offset, 0))
    return torch.gather(padded, 1, index, out=out)
