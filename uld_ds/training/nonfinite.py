"""Detection of losses and gradients that are not finite, and of the examples that they came from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uld_ds.batches import MicroBatch


@dataclass
class _Look:
    """What is watched of one micro-batch: tensors that nobody waits for until something is wrong."""

    micro_batch: MicroBatch
    loss: Tensor
    """[] loss of the micro-batch."""
    nats: Tensor
    """[A] cross-entropy of the student's answer tokens in nats."""
    bad_gradient: Tensor | None = None
    """[A] bool: the gradient of the row's hidden state is not finite."""


class Watch:
    """A watch over the losses and gradients of one rank's step.

    It costs a pass over the hidden states' gradient and no synchronization with the device: who caused what is only
    asked after a step that did not happen.
    """

    def __init__(self) -> None:
        self._looks: list[_Look] = []

    def begin(self, micro_batch: MicroBatch, hidden: Tensor) -> None:
        """Watch the gradient of a micro-batch's hidden states, [A, H]."""
        self._looks.append(_Look(micro_batch, hidden.new_zeros(()), hidden.new_zeros(len(hidden))))
        look = self._looks[-1]

        def note(gradient: Tensor) -> None:
            look.bad_gradient = ~torch.isfinite(gradient).all(dim=1)

        if hidden.requires_grad:
            hidden.register_hook(note)

    def end(self, loss: Tensor, nats: Tensor) -> None:
        """Note loss, [], and nats per answer token, [A], of the micro-batch that ``begin`` was given last."""
        self._looks[-1].loss, self._looks[-1].nats = loss.detach(), nats.detach()

    def bad_loss(self) -> Tensor:
        """Tell whether any loss so far is not finite, as a float32 scalar on the device: 1 or 0."""
        return torch.stack([(~torch.isfinite(look.loss)).float() for look in self._looks]).amax()

    def suspects(self, *, by_loss: bool) -> list[int]:
        """Find the examples of this rank that a non-finite loss, or else a non-finite gradient, came from.

        Of a micro-batch whose loss is not finite while all its tokens' are, every example is one: padding aside, a
        row of a batch does not know of the others, but a sum does not tell them apart.
        """
        found: set[int] = set()
        for look in self._looks:
            if by_loss:
                rows = ~torch.isfinite(look.nats)
                is_bad = not bool(torch.isfinite(look.loss))
            else:
                if look.bad_gradient is None:
                    continue
                rows = look.bad_gradient
                is_bad = bool(rows.any())
            if is_bad:
                found.update(_examples(look.micro_batch, rows))
        return sorted(found)

    def examples(self) -> list[int]:
        """List all examples of this rank's step but stand-ins, sorted."""
        return sorted({example for look in self._looks for example in _counted(look.micro_batch)})


def _examples(micro_batch: MicroBatch, rows: Tensor) -> list[int]:
    of_rows = micro_batch.student.answer_example[rows].unique().tolist()
    return [micro_batch.examples[place] for place in of_rows] or _counted(micro_batch)


def _counted(micro_batch: MicroBatch) -> list[int]:
    weights = micro_batch.example_weight.tolist()
    return [example for example, weight in zip(micro_batch.examples, weights, strict=True) if weight]
