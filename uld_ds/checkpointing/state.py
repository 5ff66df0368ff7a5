"""What a run knows of itself beside the weights; it travels in every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TrainState:
    """What the engines do not know of themselves."""

    step: int = 0
    """Optimizer steps done."""
    bits_before: float | None = None
    bits_teacher: float | None = None
    final_loss: float | None = None
    tokens: int = 0
    """Student and teacher tokens processed."""
    train_seconds: float = 0.0
    """Spent in steps, over all attempts."""
    skipped: int = 0
    """Steps that changed nothing, because something in them was not finite."""
    skipped_in_a_row: int = 0
    """Of them, those right before the next step."""
    recent_losses: list[float] = field(default_factory=list)
    """What loss spikes are measured against, oldest first."""
    best_bits: float | None = None
    """Lowest held-out bits per byte at a checkpoint."""
    best_step: int | None = None
