"""The state of a run beside the engines' own; it travels in every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class TrainState:
    """Counts, losses and bits per byte of a run, which the engines do not keep themselves."""

    step: int = 0
    """Optimizer steps done."""
    bits_before: float | None = None
    """Held-out bits per byte of the student before training."""
    bits_teacher: float | None = None
    """Held-out bits per byte of the teacher."""
    final_loss: float | None = None
    """Loss of the last step that was not skipped."""
    tokens: int = 0
    """Student and teacher tokens processed."""
    train_seconds: float = 0.0
    """Seconds spent in steps, over all attempts."""
    skipped: int = 0
    """Steps that changed nothing, because something in them was not finite."""
    skipped_in_a_row: int = 0
    """Skipped steps in a row up to the last one done; 0 when that one was applied."""
    recent_losses: list[float] = field(default_factory=list)
    """Recent losses that spikes are measured against, oldest first."""
    best_bits: float | None = None
    """Lowest held-out bits per byte at a checkpoint."""
    best_step: int | None = None
    """Step of the checkpoint with ``best_bits``."""
    round_teacher_nats: float = 0.0
    """Negative log-probability under the teacher of the current round's answers that were trained on."""
    round_bytes: float = 0.0
    """UTF-8 bytes of these answers."""
