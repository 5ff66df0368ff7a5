"""Logits of every shape that the distance has to cope with, and a reference written the way the paper writes it."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def zipf(rows: int, vocab: int, *, slope: float = 1.2, noise: float = 1.0, seed: int = 0) -> Tensor:
    """Float64 logits whose probabilities fall as a power of the rank, blurred, tokens in random order."""
    rng = torch.Generator().manual_seed(seed)
    ideal = -slope * torch.log(torch.arange(1, vocab + 1, dtype=torch.float64))
    order = torch.stack([torch.randperm(vocab, generator=rng) for _ in range(rows)])
    return ideal[order] + noise * torch.randn(rows, vocab, dtype=torch.float64, generator=rng)


def gaussian(rows: int, vocab: int, *, scale: float, seed: int = 0) -> Tensor:
    """Float64 logits without any peak: an untrained model's."""
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, vocab, dtype=torch.float64, generator=rng)


def one_hot(rows: int, vocab: int) -> Tensor:
    """All probability on one token, the others impossible."""
    logits = torch.full((rows, vocab), -math.inf, dtype=torch.float64)
    logits[torch.arange(rows), torch.arange(rows) * 7 % vocab] = 0.0
    return logits


def masked(logits: Tensor, *, every: int) -> Tensor:
    """The same logits with every ``every``-th token made impossible."""
    logits = logits.clone()
    logits[:, ::every] = -math.inf
    return logits


def reference_distance(p: Tensor, q: Tensor) -> Tensor:
    """``sum_i |p_(i) - q_(i)|``, one row at a time in Python numbers' precision, sorted lists padded with zeros."""
    distances = []
    for p_row, q_row in zip(p.double().tolist(), q.double().tolist(), strict=True):
        width = max(len(p_row), len(q_row))
        p_sorted = sorted(p_row, reverse=True) + [0.0] * (width - len(p_row))
        q_sorted = sorted(q_row, reverse=True) + [0.0] * (width - len(q_row))
        distances.append(math.fsum(abs(a - b) for a, b in zip(p_sorted, q_sorted, strict=True)))
    return torch.tensor(distances, dtype=torch.float64)


def reference_with_gradient(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Distance ``[N]`` and its gradient ``[N, V_s]`` with respect to the student's logits, float64, from a sort.

    Among equal probabilities the sort's order is arbitrary, so they share the mean of their signs.
    """
    p, q = torch.softmax(student.double(), -1), torch.softmax(teacher.double(), -1)
    p_sorted, order = p.sort(-1, descending=True)
    q_sorted = q.sort(-1, descending=True).values
    width = max(p.shape[1], q.shape[1])
    gap = torch.zeros(len(p), width, dtype=torch.float64)
    gap[:, : p.shape[1]] += p_sorted
    gap[:, : q.shape[1]] -= q_sorted
    signs = torch.empty_like(p)
    for row in range(len(p)):
        _, group, size = torch.unique_consecutive(p_sorted[row], return_inverse=True, return_counts=True)
        total = torch.zeros(len(size), dtype=torch.float64).index_add(0, group, gap[row, : p.shape[1]].sign())
        signs[row, order[row]] = (total / size)[group]
    return gap.abs().sum(-1), p * (signs - (signs * p).sum(-1, keepdim=True))


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine between two gradients taken as one vector each."""
    a, b = a.double().flatten(), b.double().flatten()
    return float(a @ b / (a.norm() * b.norm()))
