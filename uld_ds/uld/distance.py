"""The ULD distance between next-token distributions over different vocabularies, and its gradient.

``W1(p, q) = sum_i |p_(i) - q_(i)|`` (Boizard et al., arXiv 2402.12030, section 3), the Wasserstein-1 distance under
a uniform cost. Two ways to get it: ``exact`` sorts (``uld_ds.uld.sorted``); ``linear`` never does. The ``k`` largest
probabilities are paired rank by rank, the others through counts above a level
(``uld_ds.spectrum.histogram_distance``), and the gradient is written down instead of recorded: ``dW1/dp_i`` is the
sign of ``p_(i) - q_(i)`` at ``p_i``'s rank, and through the softmax
``dW1/dz_i = p_i * (s_i - sum_j s_j p_j) / temperature``.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from uld_ds.spectrum.checks import accumulation_dtype, check_logits, check_temperature
from uld_ds.spectrum.histogram import LevelCounts, LevelGrid
from uld_ds.spectrum.kernels import Workspace, check_dead_rows, kept_workspace, softmax_into
from uld_ds.spectrum.spectrum import DEFAULT_NUM_HEAD, Spectrum
from uld_ds.uld.chunk import distance_of_chunk
from uld_ds.uld.sorted import probabilities, sorted_distance

# With the teacher's logits at hand nothing has to be stored, so levels can be four times as fine.
_LOGITS_MANTISSA_BITS = 7
# Elements per chunk: measured on a CPU, where scratch should stay in cache and small operations be few.
_CHUNK_ELEMENTS_CPU = 3 << 18
_CHUNK_ELEMENTS_ACCELERATOR = 1 << 25
# exp() of these stays a normal float32; a spectrum scaled by less than exp(-60) is nothing.
_MIN_LOG_SCALE = -60.0
_MAX_LOG_RATIO = 60.0


class UldTerms(NamedTuple):
    """Distance, gradient and diagnostics of ``N`` rows."""

    distance: Tensor
    """``[N]``: ``W1`` between the (scaled) spectra, between 0 and the sum of both masses."""
    grad: Tensor | None
    """``[N, V]``: ``d distance[n] / d student_logits[n]``; None when not asked for."""
    bound: Tensor | None
    """``[N]``: bound on ``|distance - exact distance|``, a lossy spectrum's error included; None when not asked for."""
    grad_log_scale: Tensor
    """``[N]``: ``d distance[n] / d student_log_scale[n]``."""
    head: Tensor
    """``[N]``: the part of ``distance`` between the ranks kept exactly."""
    log_normalizer: Tensor
    """``[N]``: ``logsumexp(student_logits / student_temperature)``, for cross-entropy; -inf for padding."""


def uld_distance(
    student_logits: Tensor,
    teacher: Tensor | Spectrum,
    *,
    student_temperature: float = 1.0,
    teacher_temperature: float = 1.0,
    method: Literal["linear", "exact"] = "linear",
    mask: Tensor | None = None,
    student_log_scale: Tensor | None = None,
    teacher_log_scale: Tensor | None = None,
    num_head: int = DEFAULT_NUM_HEAD,
    grid: LevelGrid | None = None,
    chunk_rows: int | None = None,
) -> Tensor:
    """Compute the ULD distance per row, ``[N]``, differentiable in ``student_logits`` and ``student_log_scale``.

    Boizard et al., arXiv 2402.12030, section 3. A masked row, or one where either side has nothing but -inf
    (padding), has distance 0 and gradient 0.

    Args:
        student_logits: ``[N, V_s]``, any floating dtype; computed in float32, or in float64 if it is that.
        teacher: logits ``[N, V_t]``, or a ``Spectrum`` of ``N`` rows. Never differentiated.
        student_temperature: > 0, divides the student's logits.
        teacher_temperature: > 0, divides teacher logits. A ``Spectrum`` was made at one; another here is an error.
        method: ``linear``: time linear in the vocabulary, no graph over it, once differentiable;
            ``exact``: sorts, through autograd. With a ``Spectrum`` ``exact`` is exact for what the spectrum holds.
        mask: ``[N]``, False (0) where a row does not count.
        student_log_scale: ``[N]`` nats or None: multiplies the student's probabilities by ``exp`` of it. NaN or +inf
            here makes that row's distance NaN.
        teacher_log_scale: ``[N]`` nats or None: multiplies the teacher's probabilities, on top of a ``Spectrum``'s own.
        num_head: largest probabilities that ``linear`` keeps exactly of teacher logits (a ``Spectrum`` has its own).
        grid: levels for the others in ``linear`` with teacher logits (a ``Spectrum`` has its own).
        chunk_rows: rows at a time in ``linear``.

    Raises:
        ValueError: shapes, dtypes, temperatures or ``method`` are wrong; a row holds NaN or +inf (named).
    """
    check_logits(student_logits, "student_logits")
    check_temperature(student_temperature, "student_temperature")
    check_temperature(teacher_temperature, "teacher_temperature")
    if isinstance(teacher, Spectrum):
        if teacher_temperature not in (1.0, teacher.temperature):
            raise ValueError(
                f"teacher_temperature {teacher_temperature} asked for, but the Spectrum was made at "
                f"{teacher.temperature}: give the temperature to Spectrum.from_logits"
            )
    else:
        check_logits(teacher, "teacher logits")
    rows = student_logits.shape[0]
    if rows != len(teacher):
        raise ValueError(f"student_logits has {rows} rows, teacher has {len(teacher)}: they must agree")
    _check_vectors(rows, mask=mask, student_log_scale=student_log_scale, teacher_log_scale=teacher_log_scale)
    if method == "exact":
        return _exact(
            student_logits,
            teacher,
            student_temperature,
            teacher_temperature,
            mask,
            student_log_scale,
            teacher_log_scale,
        )
    if method != "linear":
        raise ValueError(f'method must be "linear" or "exact", got {method!r}')
    if not isinstance(teacher, Spectrum):
        grid = grid or LevelGrid.below_head(num_head, mantissa_bits=_LOGITS_MANTISSA_BITS)
        teacher = Spectrum.from_logits(
            teacher.detach(),
            temperature=teacher_temperature,
            num_head=num_head,
            grid=grid,
            chunk_rows=chunk_rows,
            name="teacher logits",
        )
    if teacher_log_scale is not None:
        teacher = teacher.shift(teacher_log_scale)
    distance: Tensor = _LinearUld.apply(
        student_logits, student_log_scale, teacher, student_temperature, mask, chunk_rows
    )
    return distance


def _check_vectors(rows: int, **vectors: Tensor | None) -> None:
    for name, vector in vectors.items():
        if vector is not None and tuple(vector.shape) != (rows,):
            raise ValueError(f"{name} must have shape [{rows}], got {list(vector.shape)}")


def _exact(
    student_logits: Tensor,
    teacher: Tensor | Spectrum,
    student_temperature: float,
    teacher_temperature: float,
    mask: Tensor | None,
    student_log_scale: Tensor | None,
    teacher_log_scale: Tensor | None,
) -> Tensor:
    if isinstance(teacher, Spectrum):
        dtype = accumulation_dtype(student_logits.dtype, teacher.head.dtype)
        q = teacher.to_probabilities(teacher.num_probabilities()).to(dtype)
        q_alive = teacher.unscaled_mass() > 0
    else:
        dtype = accumulation_dtype(student_logits.dtype, teacher.dtype)
        q, q_alive = probabilities(teacher.detach(), teacher_temperature, dtype, "teacher logits")
    p, alive = probabilities(student_logits, student_temperature, dtype, "student_logits")
    alive = alive & q_alive
    if mask is not None:
        alive = alive & mask.bool()
    if student_log_scale is not None:
        p = p * student_log_scale.to(dtype).exp()[:, None]
    if teacher_log_scale is not None:
        q = q * teacher_log_scale.to(dtype).exp()[:, None]
    return torch.where(alive, sorted_distance(p, q), torch.zeros((), dtype=dtype, device=p.device))


class _LinearUld(torch.autograd.Function):
    """``uld_value_and_grad`` behind autograd: the gradient is computed on the way forward and kept."""

    @staticmethod
    def forward(
        ctx: Any,
        student_logits: Tensor,
        student_log_scale: Tensor | None,
        teacher: Spectrum,
        temperature: float,
        mask: Tensor | None,
        chunk_rows: int | None,
    ) -> Tensor:
        wanted = any(ctx.needs_input_grad)
        terms = uld_value_and_grad(
            student_logits,
            teacher,
            student_temperature=temperature,
            student_log_scale=student_log_scale,
            mask=mask,
            chunk_rows=chunk_rows,
            out=torch.empty_like(student_logits) if wanted else None,
            want_grad=wanted,
            want_bound=False,
        )
        ctx.save_for_backward(terms.grad, terms.grad_log_scale)
        return terms.distance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_distance: Tensor) -> tuple[Tensor | None, ...]:
        grad, grad_log_scale = ctx.saved_tensors
        grad_logits = grad * grad_distance[:, None].to(grad.dtype) if ctx.needs_input_grad[0] else None
        grad_scale = grad_log_scale * grad_distance if ctx.needs_input_grad[1] else None
        return grad_logits, grad_scale, None, None, None, None


@torch.no_grad()
def uld_value_and_grad(
    student_logits: Tensor,
    spectrum: Spectrum,
    *,
    student_temperature: float = 1.0,
    student_log_scale: Tensor | None = None,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
    probability_weight: Tensor | None = None,
    out: Tensor | None = None,
    accumulate: bool = False,
    want_grad: bool = True,
    want_bound: bool = True,
    chunk_rows: int | None = None,
    workspace: Workspace | None = None,
    check: bool = True,
) -> UldTerms:
    """Compute the ULD distance, its closed-form gradient and its error bound without autograd, for fused objectives.

    Args:
        student_logits: ``[N, V]``, any floating dtype.
        spectrum: the teacher's ``N`` rows, its ``log_scale`` included.
        student_temperature: > 0.
        student_log_scale: ``[N]`` nats or None.
        mask: ``[N]``, False where a row does not count.
        weight: ``[N]`` multiplies ``grad`` row by row (not ``distance``, ``grad_log_scale``): the chain rule's factor.
        probability_weight: ``[N]`` or None: adds this much of ``softmax(student_logits)`` to ``grad``, masked rows
            included, at no cost. That is cross-entropy's gradient but for ``-1`` at the target; its value is
            ``log_normalizer`` less the target's logit. Needs a student temperature of 1.
        out: ``[N, V]`` tensor of any floating dtype to write ``grad`` into.
        accumulate: add to ``out`` instead of overwriting it, so that another term's gradient can be there already.
        want_grad: False skips the gradient.
        want_bound: False skips the error bound.
        chunk_rows: rows at a time.
        workspace: from ``uld_workspace``; ``chunk_rows`` is its own then. Without one, a CPU thread keeps its last.
        check: look for NaN and +inf, which reads one value back from the device after all chunks. Without it such
            rows count as padding.

    Raises:
        ValueError: shapes disagree; ``accumulate`` without ``out``; ``probability_weight`` at another temperature;
            ``workspace`` was made for other tensors; a row holds NaN or +inf (named).
    """
    check_logits(student_logits, "student_logits")
    check_temperature(student_temperature, "student_temperature")
    rows, vocab = student_logits.shape
    if rows != len(spectrum):
        raise ValueError(f"student_logits has {rows} rows, spectrum has {len(spectrum)}: they must agree")
    if out is not None and out.shape != student_logits.shape:
        raise ValueError(f"out must have shape {[rows, vocab]}, got {list(out.shape)}")
    if accumulate and out is None:
        raise ValueError("accumulate needs out")
    _check_vectors(
        rows, mask=mask, student_log_scale=student_log_scale, weight=weight, probability_weight=probability_weight
    )
    if probability_weight is not None and student_temperature != 1.0:
        raise ValueError(f"probability_weight needs student_temperature 1, got {student_temperature}")
    dtype, device = accumulation_dtype(student_logits.dtype), student_logits.device
    if want_grad and out is None:
        out = torch.empty(rows, vocab, dtype=dtype, device=device)
    scales = _scales(spectrum, student_log_scale, dtype)
    if workspace is None:
        chunk = _chunk_rows(student_logits, chunk_rows)
        work = kept_workspace(chunk, vocab, spectrum.grid, dtype, device)
    else:
        work = workspace
        chunk = work.check(vocab, spectrum.grid, dtype, device)
    results = torch.zeros(5, rows, dtype=dtype, device=device)  # the terms of ChunkDistance, then log-normalizers
    dead = torch.zeros(rows, dtype=torch.bool, device=device)
    for start in range(0, rows, chunk):
        part = slice(start, min(start + chunk, rows))
        p, dead[part] = softmax_into(student_logits[part], student_temperature, work)
        alive = (spectrum.head[part, 0] > 0) & ~dead[part]
        if mask is not None:
            alive = alive & mask[part].bool()
        row_scale = alive.to(dtype) if scales is None else scales.result[part] * alive
        tail = LevelCounts(spectrum.counts[part].to(dtype), spectrum.masses[part].to(dtype))
        found = distance_of_chunk(
            p,
            spectrum.head[part].to(dtype),
            tail,
            None if scales is None else scales.ratio[part],
            spectrum.grid,
            work,
            want_signs=want_grad,
            want_bound=want_bound,
        )
        if spectrum.error is not None:
            found.terms[1] += spectrum.error[part]
        results[:4, part] = found.terms * row_scale
        at_largest = student_logits[part].gather(1, found.where[:, :1]).squeeze(1)  # [R]
        normalizer = at_largest.to(dtype) / student_temperature - found.largest.log()
        results[4, part] = normalizer.masked_fill(dead[part], float("-inf"))
        if want_grad and out is not None:
            factor = row_scale / student_temperature
            if weight is not None:
                factor = factor * weight[part]
            of_p = None if probability_weight is None else probability_weight[part]
            found.write_grad(factor, of_p, out[part], accumulate)
    if check:
        check_dead_rows(dead, student_logits, "student_logits")
    distance, bound, slope, head, log_normalizer = results.unbind(0)
    return UldTerms(distance, out if want_grad else None, bound if want_bound else None, slope, head, log_normalizer)


def uld_workspace(student_logits: Tensor, spectrum: Spectrum, *, chunk_rows: int | None = None) -> Workspace:
    """Make the scratch of ``uld_value_and_grad`` for tensors of this width, dtype and device.

    It takes about 24 bytes per element of a chunk.
    """
    chunk, dtype = _chunk_rows(student_logits, chunk_rows), accumulation_dtype(student_logits.dtype)
    return Workspace(chunk, student_logits.shape[1], spectrum.grid, dtype, student_logits.device)


def _chunk_rows(logits: Tensor, asked: int | None) -> int:
    budget = _CHUNK_ELEMENTS_CPU if logits.device.type == "cpu" else _CHUNK_ELEMENTS_ACCELERATOR
    return min(asked or max(1, budget // logits.shape[1]), max(len(logits), 1))


class _Scales(NamedTuple):
    """Scales of ``N`` rows: ``W1(e^a p, e^b q) = e^b W1(e^(a-b) p, q)``, so the teacher's levels stay in place."""

    ratio: Tensor
    """``[N]``: ``e^(a-b)``, what the student's probabilities are multiplied by."""
    result: Tensor
    """``[N]``: ``e^b``, what comes out is multiplied by."""


def _scales(spectrum: Spectrum, student_log_scale: Tensor | None, dtype: torch.dtype) -> _Scales | None:
    if spectrum.log_scale is None and student_log_scale is None:
        return None
    zeros = spectrum.head.new_zeros(len(spectrum), dtype=dtype)
    a = zeros if student_log_scale is None else student_log_scale.to(dtype)
    b = zeros if spectrum.log_scale is None else spectrum.log_scale.to(dtype)
    # A teacher this much smaller than the student, or than 1, contributes nothing a float32 could show.
    b = torch.maximum(b, a - _MAX_LOG_RATIO).clamp_min(_MIN_LOG_SCALE)
    # A NaN scale must reach the result, and must not reach the levels, where it would become an index.
    return _Scales((a - b).exp().nan_to_num(nan=0.0), torch.where(torch.isnan(a - b), torch.nan, b.exp()))
