"""The evaluation of a model on held-out rows: its answers beside their references, and its bits per byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset

from uld_ds.data.batching import padding_id
from uld_ds.data.examples import ExampleReader
from uld_ds.data.sides import TextSide
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.data.teacher_rows import TEACHER_FEATURES, TeacherEncoding
from uld_ds.evaluation.metrics import percentile_interval, resampled
from uld_ds.evaluation.predictions import Prediction
from uld_ds.generation.decoding import Answer, Decoding, Model
from uld_ds.generation.prompts import Prompt, batches_by_length
from uld_ds.losses.normalization import nats_to_bits
from uld_ds.models.packing import choose_packing
from uld_ds.models.row_model import RowModel, choose_head_path, log_probs_of

Note = Callable[[int, int], None]


@dataclass(frozen=True)
class BitsPerByte:
    """The bits that a model needs for each byte of answers it has never seen."""

    mean: float
    """Bits of all answers by their bytes."""
    low: float
    """Lower end of the 95 % bootstrap interval over examples."""
    high: float
    """Upper end of the 95 % bootstrap interval over examples."""
    examples: int
    """Examples that were measured."""
    answer_bytes: int
    """Bytes of their answers."""


def answer_rows(
    model: Model,
    prompts: Sequence[Prompt],
    references: Sequence[tuple[str, ...]],
    decoding: Decoding,
    *,
    batch_size: int,
    note: Note = lambda done, total: None,
) -> list[tuple[Prediction, Answer]]:
    """Generate a model's answers, with their references, in the order of ``prompts``.

    Args:
        model: Model that answers.
        prompts: Prompts to answer.
        references: References of each prompt.
        decoding: Options of decoding.
        batch_size: Prompts of similar length that are answered together.
        note: Called with how many are answered, of how many.
    """
    places = {prompt.id: place for place, prompt in enumerate(prompts)}
    said: list[Answer | None] = [None] * len(prompts)
    done = 0
    for batch in batches_by_length(prompts, batch_size):
        ids = [prompt.id for prompt in batch]
        for name, answer in zip(ids, model.answer([p.ids.tolist() for p in batch], decoding, ids), strict=True):
            said[places[name]] = answer
        done += len(batch)
        note(done, len(prompts))
    return [
        (Prediction(answer.text, texts), answer)
        for answer, texts in zip(said, references, strict=True)
        if answer is not None
    ]


@torch.no_grad()
def bits_per_byte_of(
    model: Model,
    side: TextSide,
    rows: Dataset,
    reader: ExampleReader,
    *,
    batch_tokens: int,
    device: torch.device,
    packing: bool = True,
) -> BitsPerByte | None:
    """Measure a model's bits per byte of the rows' answers, as its own side reads them; None where no row has one.

    Only tokens that spell an answer count: how a side ends its turn is its own convention and has no bytes.

    Args:
        model: Model to measure.
        side: Side of the model.
        rows: Held-out rows.
        reader: Reader of rows by the recipe's task.
        batch_tokens: Most tokens of a forward.
        device: Device of the model.
        packing: Whether examples of a forward are laid end to end, where the architecture allows it.
    """
    encode = TeacherEncoding(side, turns="last")
    examples = []
    for row in rows:
        try:
            examples.append(reader(row))
        except ValueError:  # a row without an answer can be asked, but not be measured
            continue
    encoded = [item for item in encode(examples) if isinstance(item, dict)]
    if not encoded:
        return None
    data = Dataset.from_list(encoded, features=TEACHER_FEATURES)
    batcher = TeacherBatcher(data, padding=padding_id(side.tokenizer), max_tokens=batch_tokens)
    wrapped = RowModel(model.lm)
    choose_head_path(wrapped, wrapped, device, "model")
    choose_packing(wrapped, wrapped, device, "model", wanted=packing)
    nats = np.zeros(len(encoded))
    for group in batcher.groups(range(len(encoded)), padded=not wrapped.packs):
        batch = batcher.batch(group).to(device)
        found = wrapped(batch, batch.answer_rows, log_probs_of(batch.answer_ids)) * batch.answer_in_text
        sums = torch.zeros(len(group), device=device).index_add_(0, batch.answer_example, -found)
        nats[group] = sums.double().cpu().numpy()
    sizes = np.array([row["answer_bytes"] for row in encoded])
    return summed_up(nats, sizes)


def summed_up(nats: np.ndarray, sizes: np.ndarray, *, resamples: int = 1000, seed: int = 0) -> BitsPerByte:
    """Compute bits per byte from nats [N] and bytes [N] of N answers: a ratio of sums, resampled by examples.

    Args:
        nats: [N] negative natural log-probability of each answer.
        sizes: [N] bytes of each answer.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
    """
    drawn = [nats_to_bits(nats[chosen].sum()) / sizes[chosen].sum() for chosen in resampled(len(nats), resamples, seed)]
    low, high = percentile_interval(np.array(drawn), 0.95)
    mean = nats_to_bits(float(nats.sum())) / float(sizes.sum())
    return BitsPerByte(mean, float(low), float(high), len(nats), int(sizes.sum()))
