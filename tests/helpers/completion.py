"""The completion term from its definition, out of byte strings and in float64."""

from __future__ import annotations

import torch
from torch import Tensor

Spellings = list[bytes | None]


def completion_value(student: Spellings, teacher: Spellings, p: Tensor, k: int, token: int, logits: Tensor) -> Tensor:
    """The value of one segment: scalar, differentiable.

    Args:
        student: bytes of the student's tokens.
        teacher: bytes of the teacher's tokens.
        p: [V_t] the teacher's probabilities where the segment begins.
        k: how many of its likeliest tokens are looked at.
        token: the student's first token.
        logits: [V_s] of the student behind that.
    """
    mine = {spelled for spelled in student if spelled}
    likeliest = p.argsort(descending=True, stable=True).tolist()[:k]
    lacking = [(teacher[y] or b"", p[y]) for y in likeliest if teacher[y] and teacher[y] not in mine and p[y] > 0]
    masses: dict[bytes, Tensor] = {}
    for spelled, mass in lacking:
        shortest = min((other for other, _ in lacking if spelled.startswith(other)), key=len)
        masses[shortest] = masses.get(shortest, torch.zeros((), dtype=torch.float64)) + mass
    value, q, begun = torch.zeros((), dtype=torch.float64), logits.softmax(0), student[token]
    for shortest, mass in masses.items():
        if begun and shortest.startswith(begun) and shortest != begun:
            rest = shortest[len(begun) :]
            completing = [u for u, other in enumerate(student) if other and other.startswith(rest)]
            if completing:
                value = value - mass * q[completing].sum().log()
    return value
