"""The difference of two teachers: a student is moved by what a strong one finds likelier than a weak one does.

``d_s = w_strong log p_strong(s) - w_weak log p_weak(s)`` is a difference per segment, less its mean over the answer:
what both teachers know, and how sure each is in general, cancels, and what is left says where the strong one knows
better. It is an advantage, as policy gradients have it; but ``-sum_s d_s log q(s)`` has no minimum: a segment with
``d_s < 0`` would be pushed towards probability 0 for ever. So the student is compared with a target instead, by the
recipe's divergence, and the target is the student itself with its log-odds moved by the difference:

``logit p*(s) = logit q(s) + d_s``, with ``q`` held fixed.

The slope of KL(p*, q) along the student's log-odds is ``q - p*``: it has the sign of ``-d_s``, is at most 1 in size,
and goes to nothing as q comes near to 0 or 1. Neither teacher's own probabilities are imitated, so two teachers that
are both surer, or both less sure, than the student can teach it. The target moves with the student: cross-entropy,
beside it, says how far it goes. Moving a student by the shift between two models is the idea of Delta-KD (arXiv
2509.14526), which starts from the student before training, token by token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uld_ds.losses.likelihood import log_probability, log_rest


def centered_difference(strong: Tensor, weak: Tensor, example: Tensor) -> Tensor:
    """Compute the difference of two teachers' log-probabilities of S segments, less its mean over each answer.

    Args:
        strong: [S] natural log-probability of each segment's bytes under the teacher to move towards.
        weak: [S] the same under the teacher to move away from.
        example: [S] the example that each segment belongs to.

    Returns:
        [S] float64 nats, whose sum over the segments of every example is 0.
    """
    difference = strong.double() - weak.double()
    if not len(difference):
        return difference
    number = int(example.max()) + 1
    sums = difference.new_zeros(number).index_add_(0, example, difference)
    counts = torch.bincount(example, minlength=number).clamp_min(1)
    return difference - (sums / counts)[example]


def tilted(student: Tensor, difference: Tensor) -> Tensor:
    """Compute the log-probabilities of the student's own segments with their log-odds moved.

    Args:
        student: [S] the student's natural log-probability of each segment's bytes; not differentiated.
        difference: [S] nats that the log-odds move by.

    Returns:
        [S] float64 natural log-probabilities.
    """
    log_q = log_probability(student)
    return torch.nn.functional.logsigmoid(log_q - log_rest(log_q) + difference.double())
