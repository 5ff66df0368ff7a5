"""What a rank puts into a checkpoint."""

from __future__ import annotations

import torch


def state(rank: int) -> dict[str, object]:
    """Return the files of one rank: a model's and an optimizer's."""
    return {
        f"state/rank_{rank}_model.pt": {"weight": torch.arange(1000.0) + rank, "step": 7},
        f"state/rank_{rank}_optim.pt": {"moment": torch.full((1000,), 0.5 + rank)},
    }
