"""A language model that computes logits only where somebody reads them.

Full logits are [B, L, V]; prompts and padding make most of them useless, and at large vocabularies they dwarf
everything else. Here the body (a decoder, or an encoder and a decoder) runs over whole sequences; the output head is
handed, with the hidden states of chosen positions, to whoever wants logits, and that one makes them in chunks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from uld_ds.batches import SideBatch
from uld_ds.models.architectures import is_encoder_decoder
from uld_ds.models.output_head import HeadWeights, LowRank, lend, open_head, shifted_adapters
from uld_ds.models.packing import PackedRow, attends_by_flash

log = logging.getLogger(__name__)
T = TypeVar("T")

# Elements of a chunk of logits: 32 MB of fp32 on a CPU, half a gigabyte on an accelerator.
_CHUNK_ELEMENTS_CPU = 1 << 23
_CHUNK_ELEMENTS_ACCELERATOR = 1 << 27


@dataclass(frozen=True)
class LogitMap:
    """The map that an architecture applies to its logits after the output head: ``cap * tanh(scale * z / cap)``."""

    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitMap:
        """Read the map from a configuration; ``choose_head_path`` measures whether that is all there is to it."""
        text = config.get_text_config()
        multiplied = getattr(text, "logit_scale", None) or 1.0
        divided = getattr(text, "logits_scaling", None) or 1.0
        capped = getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)
        return cls(multiplied / divided, capped)

    def __call__(self, logits: Tensor) -> Tensor:
        """Map logits of any shape."""
        scaled = logits if self.scale == 1.0 else logits * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    def backward_(self, grad: Tensor, mapped: Tensor) -> Tensor:
        """Turn the gradient after the map into the one before it, in place; ``mapped`` is what the map returned."""
        if self.cap is not None:
            grad.mul_(1 - (mapped.to(grad.dtype) / self.cap) ** 2)
        return grad if self.scale == 1.0 else grad.mul_(self.scale)


@dataclass(frozen=True)
class Head:
    """The way from hidden states [N, H] to logits [N, V]: ``map(hidden @ weight.T + bias + low_rank(hidden))``.

    With ``weight`` None, "hidden states" are logits already (a model whose head cannot be reached).
    """

    weight: Tensor | None
    bias: Tensor | None
    logit_map: LogitMap
    low_rank: LowRank | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Compute logits [N, V] of hidden states [N, H], in the type of ``hidden``."""
        if self.weight is None:
            return hidden
        logits = F.linear(hidden, self.weight, self.bias)
        if self.low_rank is not None:
            # In place: adapters kept in fp32 beside a bf16 base must not turn all logits into fp32.
            logits += self.low_rank(hidden)
        return self.logit_map(logits)

    def chunks(self, hidden: Tensor) -> Iterator[slice]:
        """Yield slices of the rows whose logits may exist at a time; one empty slice when there are no rows."""
        budget = _CHUNK_ELEMENTS_CPU if hidden.device.type == "cpu" else _CHUNK_ELEMENTS_ACCELERATOR
        vocab_size = hidden.shape[1] if self.weight is None else self.weight.shape[0]
        step = max(1, budget // vocab_size)
        for start in range(0, max(len(hidden), 1), step):
            yield slice(start, min(start + step, len(hidden)))


Consume = Callable[[Tensor, Head], T]


class RowModel(nn.Module):
    """A wrapped language model, with an encoder or without; the unit that DeepSpeed gets, for teacher and student."""

    def __init__(self, lm: PreTrainedModel) -> None:
        super().__init__()
        self.lm = lm
        self.has_encoder = is_encoder_decoder(lm.config)
        self.logit_map = LogitMap.of(lm.config)
        # A linear head, with or without LoRA, opens itself. Anything else (quantized) keeps its own forward.
        self.direct_head = open_head(lm.get_output_embeddings()) is None
        self.packs = False
        """Whether the examples of a batch are laid end to end instead of padded; ``choose_packing`` finds out."""

    def forward(self, batch: SideBatch, rows: Tensor, consume: Consume[T]) -> T:
        """Call ``consume(hidden [R, H], head)`` for the positions ``rows`` and return what it returned.

        Args:
            batch: B sequences of L tokens; with an encoder, those of the decoder, and E tokens for the encoder.
            rows: [R] indices into the flattened [B * L] positions.
            consume: makes logits with ``head``, in chunks. Runs on every rank alike, also for no rows.
        """
        output = self.lm.get_output_embeddings()
        inputs, rows = self._laid_out(batch, rows)
        # Adapters may have been switched since, to some that cannot lend their weights.
        if not self.direct_head or open_head(output) is not None:
            logits = self.lm(**inputs).logits.flatten(0, 1)[rows]
            return consume(logits, Head(None, None, LogitMap()))
        hidden = self._hidden(batch, inputs).flatten(0, 1)[rows]

        def use(hidden: Tensor, whole: HeadWeights) -> T:
            return consume(hidden, Head(whole.weight, whole.bias, self.logit_map, whole.low_rank))

        return lend(output, hidden, use)

    @property
    def inner(self) -> Any:
        """The language model itself, without the wrapper that holds adapters."""
        return _unwrapped(self.lm)

    def num_positions(self, batch: SideBatch) -> int:
        """Count the positions that are computed for a batch: its tokens, and padding where there is any."""
        return sum(batch.lengths) if self._is_packed(batch) else batch.num_positions()  # type: ignore[arg-type]

    def _is_packed(self, batch: SideBatch) -> bool:
        return self.packs and batch.lengths is not None

    def _laid_out(self, batch: SideBatch, rows: Tensor) -> tuple[dict[str, Any], Tensor]:
        """Return the arguments of a forward, and where ``rows`` are among its flattened positions."""
        if not self._is_packed(batch):
            return self._inputs(batch), rows
        packed = PackedRow.of(batch, flash=attends_by_flash(self.inner))
        return packed.arguments, packed.places(rows)

    def _inputs(self, batch: SideBatch) -> dict[str, Any]:
        """Return the arguments of a forward of the whole model on a padded batch."""
        own = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if not self.has_encoder:
            return {**own, "use_cache": False}
        decoder = {f"decoder_{name}": value for name, value in own.items()}
        return {**decoder, "input_ids": batch.encoder_ids, "attention_mask": batch.encoder_mask, "use_cache": False}

    def _hidden(self, batch: SideBatch, inputs: dict[str, Any]) -> Tensor:
        """Compute the hidden states, [B, L, H] or [1, T, H], that the output head is applied to."""
        lm = self.inner
        if not self.has_encoder:
            body = body_of(lm)
            assert body is not None, "the head is direct"
            return body(**inputs).last_hidden_state
        read = lm.get_encoder()(input_ids=batch.encoder_ids, attention_mask=batch.encoder_mask).last_hidden_state
        return lm.get_decoder()(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            encoder_hidden_states=read,
            encoder_attention_mask=batch.encoder_mask,
            use_cache=False,
        ).last_hidden_state


def _unwrapped(lm: Any) -> Any:
    # PEFT's wrapper has a base_model too, which is the whole language model.
    wrapped = getattr(lm, "get_base_model", None)
    return lm if wrapped is None else wrapped()


def body_of(lm: Any) -> nn.Module | None:
    """Find the part of a decoder-only model that computes what its output head reads; None where there is none.

    transformers 5.23 calls it by another name than it has in some architectures (``base_model`` of Llama 4 and of
    Mllama's text model is the whole): there it is the part that holds the embeddings.
    """
    if lm.base_model is not lm:
        return lm.base_model
    embeddings = lm.get_input_embeddings()
    holding = [part for part in lm.children() if part is not embeddings and embeddings in part.modules()]
    return holding[0] if len(holding) == 1 else None


def choose_head_path(model: RowModel, call: Callable[..., Any], device: torch.device, name: str) -> None:
    """Let ``model`` compute logits by its head alone, or by the whole model where that differs (logged).

    Some architectures scale, cap or shift their logits in ways of their own. That is measured on four tokens, not
    guessed from a name.

    Args:
        model: Wrapped model.
        call: Runs it: ``model`` itself, or the engine around it.
        device: Device that its inputs go to.
        name: Role of the model, for the log.
    """
    problem = open_head(model.lm.get_output_embeddings())
    if problem is None and not model.has_encoder and body_of(_unwrapped(model.lm)) is None:
        problem = "stands on no part that can be reached"
    if problem is not None:
        model.direct_head = False
        log.warning("%s: its output head %s: logits of whole sequences, with more memory", name, problem)
        return
    errors: list[float] = []
    for logit_map in _possible_maps(model.lm.config):
        model.logit_map = logit_map
        error, dtype = _largest_head_error(model, call, device)
        if error < (1e-2 if dtype == torch.bfloat16 else 1e-4):  # rounding
            return
        errors.append(error)
    model.direct_head = False
    log.warning("%s: logits are not head(body), off by %.3g: whole sequences, with more memory", name, min(errors))


def _possible_maps(config: Any) -> list[LogitMap]:
    """List the maps that an architecture may apply to logits; of some encoder-decoder models it is not configured."""
    maps = [LogitMap.of(config)]
    if is_encoder_decoder(config):
        # T5 scales what enters a tied head, T5 1.1 and mT5 do not.
        maps.append(LogitMap(config.hidden_size**-0.5))
    return maps


def _largest_head_error(model: RowModel, call: Callable[..., Any], device: torch.device) -> tuple[float, torch.dtype]:
    """Measure how far the head applied to the body's output is from the model's own logits, relative to their size.

    Returns:
        The largest difference, and the type of the model's own logits.
    """
    ids = torch.arange(1, 5, device=device)[None]
    none = torch.empty(0, dtype=torch.long, device=device)
    ones = torch.ones_like(ids)
    encoder: dict[str, Any] = {"encoder_ids": ids, "encoder_mask": ones} if model.has_encoder else {}
    batch = SideBatch(ids, ones, none, none, none, none, **encoder)
    rows = torch.arange(4, device=device)
    results = []
    # LoRA's B starts at zero, where its path could be anything.
    with torch.no_grad(), shifted_adapters(model.lm.get_output_embeddings()):
        for direct in (True, False):
            model.direct_head = direct
            results.append(call(batch, rows, lambda hidden, head: head.logits(hidden).clone()))
    model.direct_head = True
    found, own = (logits.float() for logits in results)
    return float((found - own).abs().max() / own.abs().max().clamp_min(1e-6)), results[1].dtype


def scores_of(ids: Tensor) -> Consume[Tensor]:
    """Make a consumer of [R, 2] natural log-probabilities: of tokens ``ids`` [R], and of the most probable tokens.

    No gradient.
    """

    def consume(hidden: Tensor, head: Head) -> Tensor:
        parts = []
        for chunk in head.chunks(hidden):
            logits = head.logits(hidden[chunk]).float()  # [n, V]
            right = -F.cross_entropy(logits, ids[chunk], reduction="none")  # [n]
            parts.append(torch.stack([right, logits.max(1).values - logits.logsumexp(1)], 1))
        return torch.cat(parts)

    return consume


def log_probs_of(ids: Tensor) -> Consume[Tensor]:
    """Make a consumer of the natural log-probability [R] of token ``ids`` [R] at each row. No gradient."""

    def consume(hidden: Tensor, head: Head) -> Tensor:
        parts = [
            -F.cross_entropy(head.logits(hidden[chunk]).float(), ids[chunk], reduction="none")
            for chunk in head.chunks(hidden)
        ]
        return torch.cat(parts)

    return consume
