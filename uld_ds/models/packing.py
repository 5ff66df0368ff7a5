"""Padding-free forwards: the examples of a batch are laid end to end in one row, and none attends to another.

Attention is the only place of a transformer where positions of a row meet. transformers lets a function of one's own
stand in for it (``AttentionInterface``) and passes it the keyword arguments of the forward: ours takes the lengths of
the examples and computes each by itself, with the plain causal kernel and no mask at all, on whatever device. Where
flash attention is chosen, its own kernels of variable length get the same boundaries.

Not every architecture goes that way (state space models, learned position biases, masks of its own): ``choose_packing``
measures on a few tokens whether logits stay what they are, and otherwise leaves the model to padding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from uld_ds.batches import SideBatch
from uld_ds.errors import one_line

log = logging.getLogger(__name__)

PACKED = "uld_ds_packed"
"""Name under which transformers knows the attention of this module; never written into a configuration file."""
_KINDS_OF_LAYERS = {"full_attention", "sliding_attention"}
_NO_MASK = (1, 1, 1, 1)
"""Shape of what stands for a mask in a packed row: of four dimensions, so that no mask is made in its place."""
_windows_seen: ContextVar[list[int | None] | None] = ContextVar("windows_seen", default=None)
"""Where the windows that layers attend within are noted, while a model is measured."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_lengths: Sequence[int] | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend within each example of a packed row; without ``packed_lengths`` just as ``sdpa`` does.

    Args:
        module: attention layer that is computed.
        query: [1, heads, T, D]
        key: [1, key heads, T, D]
        value: [1, key heads, T, D]
        attention_mask: in a packed row the stand-in that ``PackedRow`` passes: boundaries say all there is to mask.
        packed_lengths: tokens of each example; they add up to T.
        sliding_window: tokens that one attends to, itself included; None for all before it.
        options: further arguments of ``sdpa_attention_forward``.

    Returns:
        [1, T, heads, D] and None, as transformers' attention functions do.

    Raises:
        ValueError: the layer has made a mask of its own, which boundaries do not say.
    """
    if packed_lengths is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **options
        )
    if attention_mask is None or attention_mask.shape != _NO_MASK:
        raise ValueError(f"{type(module).__name__} makes a mask of its own")
    if (seen := _windows_seen.get()) is not None:
        seen.append(sliding_window)
    found = []
    # Split, not sliced: the gradient of a slice is as large as the whole row, once per example.
    parts = (tensor.split(list(packed_lengths), dim=2) for tensor in (query, key, value))
    for own_query, own_key, own_value in zip(*parts, strict=True):
        mask = _window_mask(own_query.shape[2], sliding_window, query.device)
        found.append(sdpa_attention_forward(module, own_query, own_key, own_value, mask, **options)[0])
    return torch.cat(found, 1), None


def _window_mask(length: int, window: int | None, device: torch.device) -> Tensor | None:
    """Make the mask [1, 1, length, length] of a sliding window, True where one attends; None where all is in it."""
    if window is None or length <= window:
        return None
    place = torch.arange(length, device=device)
    distance = place[:, None] - place  # [length, length]
    return ((distance >= 0) & (distance < window))[None, None]


AttentionInterface.register(PACKED, packed_attention)
# In rows that are not packed (generation, a padded batch) masks are those of sdpa.
AttentionMaskInterface.register(PACKED, sdpa_mask)


@dataclass(frozen=True)
class PackedRow:
    """A padded batch [B, L] as one row of its T tokens, on the batch's device."""

    arguments: dict[str, Any]
    """Arguments of the model's forward."""
    shifts: Tensor
    """[B] how far each example moves to the left among the flattened positions."""
    length: int
    """L of the padded batch."""

    @classmethod
    def of(cls, batch: SideBatch, *, flash: bool) -> PackedRow:
        """Lay out a batch whose lengths are known on the host: nothing waits for the device.

        Args:
            batch: B examples without an encoder.
            flash: the model attends by transformers' flash attention, which takes boundaries as it names them.
        """
        lengths, device, length = batch.lengths, batch.input_ids.device, batch.input_ids.shape[1]
        assert lengths is not None, "of a batch that says so"
        starts = torch.tensor([0, *lengths]).cumsum(0)  # [B + 1]
        within = torch.cat([torch.arange(number) for number in lengths])  # [T]
        shifts = torch.arange(len(lengths)) * length - starts[:-1]  # [B]
        kept = within + (starts[:-1] + shifts).repeat_interleave(torch.tensor(lengths))  # [T]
        arguments: dict[str, Any] = {
            "input_ids": batch.input_ids.flatten()[kept.to(device, non_blocking=True)][None],  # [1, T]
            "position_ids": within[None].to(device, non_blocking=True),  # [1, T]
            "use_cache": False,
        }
        if flash:
            boundaries = starts.to(torch.int32).to(device, non_blocking=True)
            longest = max(lengths)
            arguments |= {"cu_seq_lens_q": boundaries, "cu_seq_lens_k": boundaries}
            arguments |= {"max_length_q": longest, "max_length_k": longest}
        else:
            arguments["packed_lengths"] = lengths
            # A mask of four dimensions is passed on as it is: otherwise one of [T, T] would be made for nothing.
            arguments["attention_mask"] = torch.ones(_NO_MASK, dtype=torch.bool, device=device)
        return cls(arguments, shifts.to(device, non_blocking=True), length)

    def places(self, rows: Tensor) -> Tensor:
        """Return where positions [R] of the flattened padded batch, none of them padding, are in the row, [R]."""
        return rows - self.shifts[rows // self.length]


def attends_by_flash(lm: Any) -> bool:
    """Tell whether a language model attends by one of transformers' flash attentions."""
    return str(lm.config._attn_implementation).startswith("flash_attention")


def choose_packing(
    model: Any, call: Callable[..., Any], device: torch.device, name: str, *, wanted: bool = True
) -> None:
    """Let ``model`` lay examples end to end, or pad them where its logits would not be the same (logged).

    Two things are measured on three examples of a few tokens: that logits are those of the padded batch but for
    rounding, and that another first example leaves the logits of the others alone.

    Args:
        model: RowModel whose ``packs`` is set.
        call: runs it: ``model`` itself, or the engine around it. Collective where that is.
        device: device that its inputs go to.
        name: role of the model, for the log.
        wanted: False leaves it to padding without a word.
    """
    model.packs = False
    if not wanted:
        return
    problem = _hindrance(model)
    if problem is None:
        own = model.inner.config._attn_implementation
        if not attends_by_flash(model.inner):
            model.inner.set_attn_implementation(PACKED)
        problem = _difference(model, call, device)
        model.packs = problem is None
        if problem is not None:
            model.inner.set_attn_implementation(own)
    if problem is not None:
        log.warning("%s: examples are padded to the longest of a batch: %s", name, problem)


def _hindrance(model: Any) -> str | None:
    """Say what keeps an architecture from packed rows, as far as that can be told without computing; None: nothing."""
    lm, kind = model.inner, model.inner.config.model_type
    text = lm.config.get_text_config()
    if model.has_encoder:
        return f"{kind} has an encoder"
    attention = lm.config._attn_implementation
    if attention != "sdpa" and attention != PACKED and not attends_by_flash(lm):
        return f"{kind} attends by {attention!r}, not by 'sdpa' or flash attention"
    if not lm._can_set_attn_implementation():
        return f"the attention of {kind} cannot be replaced"
    others = set(getattr(text, "layer_types", None) or ()) - _KINDS_OF_LAYERS
    if others:
        return f"{kind} has layers of the kind {', '.join(sorted(others))}"
    if getattr(text, "attention_chunk_size", None):
        return f"{kind} attends within chunks"
    if scaled := _rope_types(text) & {"dynamic", "longrope"}:
        return f"rotary frequencies of {kind} ({scaled.pop()}) follow the longest example of a row"
    return None


def _rope_types(config: Any) -> set[str]:
    """List the kinds of rotary scaling of a configuration, of all its kinds of layers."""
    parameters = getattr(config, "rope_parameters", None) or {}
    parts = [parameters, *(part for part in parameters.values() if isinstance(part, dict))]
    return {str(part["rope_type"]) for part in parts if part.get("rope_type")}


def _layers_with_a_window(config: Any) -> int:
    """Count the layers that a configuration says attend within a sliding window."""
    if not getattr(config, "sliding_window", None) or getattr(config, "use_sliding_window", None) is False:
        return 0
    kinds = getattr(config, "layer_types", None)
    return int(config.num_hidden_layers) if kinds is None else list(kinds).count("sliding_attention")


def _difference(model: Any, call: Callable[..., Any], device: torch.device) -> str | None:
    """Measure whether packed rows change the logits of a model; say how, or None where they do not."""
    lengths = (5, 2, 9)
    vocab_size = model.inner.get_input_embeddings().num_embeddings
    # Not the first ids, of which one may be padding, for which some models embed nothing.
    ids = (7 + torch.arange(3 * 9).reshape(3, 9) * 11) % vocab_size
    other = ids.clone()
    other[0] = (ids[0] + 5) % vocab_size
    seen: list[int | None] = []
    try:
        padded = _logits(model, call, ids, lengths, device, packs=False)
        note = _windows_seen.set(seen)
        try:
            packed = _logits(model, call, ids, lengths, device, packs=True)
        finally:
            _windows_seen.reset(note)
        neighbor = _logits(model, call, other, lengths, device, packs=True)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        return f"a packed row ends in {one_line(error, kind=True)}"
    windows = sum(window is not None for window in seen)
    if seen and windows < _layers_with_a_window(model.inner.config.get_text_config()):
        # No example of a few tokens would show it.
        return "its sliding window is in the mask alone"
    size = float(padded.abs().max().clamp_min(1e-6))
    rounding = {torch.float32: (1e-4, 1e-5), torch.bfloat16: (2e-2, 4e-3)}
    most, most_by_neighbor = rounding.get(model.inner.dtype, rounding[torch.bfloat16])
    off = float((packed - padded).abs().max()) / size
    leaked = float((packed - neighbor)[lengths[0] :].abs().max()) / size
    if not leaked <= most_by_neighbor:
        return f"logits of an example move by {leaked:.3g} with another beside it in a packed row"
    if not off <= most:
        return f"logits of a packed row are off by {off:.3g}"
    return None


@torch.no_grad()
def _logits(
    model: Any, call: Callable[..., Any], ids: Tensor, lengths: tuple[int, ...], device: torch.device, *, packs: bool
) -> Tensor:
    """Compute fp32 logits [T, V] of the tokens of a batch [B, L] without its padding."""
    mask = (torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]).long()  # [B, L]
    none = torch.empty(0, dtype=torch.long)
    batch = SideBatch(ids * mask, mask, none, none, none, none, lengths=lengths).to(device)
    rows = mask.flatten().nonzero()[:, 0].to(device)
    was, model.packs = model.packs, packs
    try:
        return call(batch, rows, lambda hidden, head: head.logits(hidden).float().clone())
    finally:
        model.packs = was
