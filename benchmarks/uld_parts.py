"""The losses that benchmarks/uld.py compares, and what they are computed on.

Imports nothing of torch, uld_ds or trl until asked: the module is also read where one of them is missing.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

CE_WEIGHT, ULD_WEIGHT = 1.0, 1.5
# These read the student's logits alone; the teacher's spectra are small. The others read the teacher's logits too.
READ_ONE_SIDE = {"spectrum", "distance", "cross_entropy"}


def zipf_logits(rows: int, vocab: int, seed: int, device: str, dtype: Any) -> Any:
    """Logits whose probabilities fall as a power of the rank, blurred, tokens in random order."""
    import torch

    rng = torch.Generator().manual_seed(seed)
    ideal = -1.2 * torch.log(torch.arange(1, vocab + 1, dtype=torch.float32))
    logits = torch.empty(rows, vocab, dtype=dtype, device=device)
    for row in range(rows):
        blurred = ideal[torch.randperm(vocab, generator=rng)] + torch.randn(vocab, generator=rng)
        logits[row] = blurred.to(device=device, dtype=dtype)
    return logits


def byte_offsets(tokens: int, device: str) -> tuple[Any, Any]:
    """Spans of ``tokens`` four-byte tokens for both sides, boundaries apart at every fourth: some tokens merge."""
    import torch

    ends = 4 * torch.arange(1, tokens + 1)
    shifted = ends.clone()
    shifted[3:-1:4] += 1
    sides = [torch.stack([torch.cat([e.new_zeros(1), e[:-1]]), e], dim=1)[None] for e in (ends, shifted)]
    return sides[0].to(device), sides[1].to(device)


def our_parts(student: Any, teacher: Any, target: Any) -> dict[str, Callable[[], Any]]:
    """What uld_ds computes, one callable per part; each returns the student's gradient."""
    import torch
    from torch.nn import functional as F

    from uld_ds.spectrum.spectrum import Spectrum
    from uld_ds.uld.distance import uld_distance, uld_value_and_grad

    rows = torch.arange(len(student), device=student.device)
    ce = torch.full((len(student),), CE_WEIGHT / len(student), device=student.device)
    uld = torch.full((len(student),), ULD_WEIGHT / len(student), device=student.device)
    ready = Spectrum.from_logits(teacher)

    def fused(spectrum: Spectrum) -> Any:
        out = torch.empty_like(student)
        terms = uld_value_and_grad(student, spectrum, weight=uld, probability_weight=ce, out=out, want_bound=False)
        loss = (terms.log_normalizer - student[rows, target]) @ ce + terms.distance @ uld
        out[rows, target] -= ce.to(out.dtype)
        return loss, out

    def autograd(distance: Callable[[Any], Any] | None) -> Any:
        z = student.detach().requires_grad_()
        loss = CE_WEIGHT * F.cross_entropy(z.float(), target)
        if distance is not None:
            loss = loss + ULD_WEIGHT * distance(z).mean()
        loss.backward()
        return loss.detach(), z.grad

    return {
        "linear": lambda: fused(Spectrum.from_logits(teacher)),
        "spectrum": lambda: fused(ready),
        "distance": lambda: autograd(lambda z: uld_distance(z, ready)),
        "exact": lambda: autograd(lambda z: uld_distance(z, teacher, method="exact")),
        "cross_entropy": lambda: autograd(None),
    }


def trl_parts(student: Any, teacher: Any, target: Any) -> dict[str, Callable[[], Any]]:
    """TRL GOLD's loss, with its own configuration object."""
    import torch
    from trl.experimental.gold.gold_config import GOLDConfig
    from trl.experimental.gold.gold_trainer import ULDLoss

    device = str(student.device)
    s_offsets, t_offsets = byte_offsets(len(student), device)
    t_ids = torch.arange(len(teacher), device=device)[None] * 37 % teacher.shape[1]

    def part(extended: bool) -> Callable[[], Any]:
        with tempfile.TemporaryDirectory() as scratch:
            config = GOLDConfig(
                output_dir=scratch,
                uld_crossentropy_weight=CE_WEIGHT,
                uld_distillation_weight=ULD_WEIGHT,
                use_extended_uld=extended,
                uld_skip_student_eos=False,
                uld_skip_teacher_eos=False,
                uld_use_hybrid_loss=False,
                report_to="none",
                bf16=False,
                use_cpu=device == "cpu",
            )
        loss_of = ULDLoss(config, device=device)

        def run() -> Any:
            z = student.detach().requires_grad_()
            loss = loss_of(
                z[None], teacher[None], target[None], t_ids, target[None], t_ids,
                student_byte_offsets=s_offsets, teacher_byte_offsets=t_offsets,
            )  # fmt: skip
            loss.backward()
            return loss.detach(), z.grad

        return run

    return {"trl_extended": part(True), "trl_positional": part(False)}
