"""The decoding of a model's answers: greedy or by sampling, and where it stops; one batch of prompts at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from uld_ds.data.batching import padding_id
from uld_ds.data.templates import ReplyReader
from uld_ds.generation.ways import COARSE_ROUNDING, Way, find_way, groups, left_padded, right_padded
from uld_ds.models.architectures import DTYPES
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import DType, GenerationSettings
from uld_ds.tasks.task import Task

Finish = Literal["stop", "length"]
_PROMPT_END = 64
"""Tokens at the end of a prompt among which the beginning of reasoning is looked for."""


@dataclass(frozen=True)
class Decoding:
    """The options of decoding: all that decides an answer, besides the prompt and the model."""

    max_new_tokens: int
    """Most tokens of an answer, the one that ends the turn included."""
    stop: tuple[str, ...] = ()
    """Texts before the first of which an answer ends."""
    temperature: float = 0.0
    """Sampling temperature; 0 is greedy."""
    top_p: float = 1.0
    """Mass of the smallest set of tokens that are sampled from; 1 keeps all tokens."""
    top_k: int = 0
    """Number of most probable tokens that are sampled from; 0 keeps all tokens."""
    seed: int = 0
    """Seed of sampling; 0 when decoding is greedy."""

    @classmethod
    def of(cls, settings: GenerationSettings, task: Task, seed: int) -> Decoding:
        """Make the options that a recipe sets; those that it leaves out are the task's."""
        return cls(
            max_new_tokens=settings.max_new_tokens or task.max_new_tokens,
            stop=task.stop if settings.stop is None else tuple(settings.stop),
            temperature=settings.temperature,
            top_p=settings.top_p,
            top_k=settings.top_k,
            # Greedy answers do not depend on it: another seed must not generate them again.
            seed=seed if settings.temperature else 0,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the options as plain values."""
        return asdict(self) | {"stop": list(self.stop)}


@dataclass(frozen=True)
class Answer:
    """A generated answer of a model."""

    text: str
    """Text of the answer, without white space around it, without its reasoning and without what stopped it."""
    tokens: int
    """Tokens that were generated, the one that ends the turn included."""
    finish: Finish
    """Why the answer ends: ``stop``, or ``length`` where it was cut off."""
    reasoning: str = ""
    """Reasoning before the answer, where the model's chat template has some."""


class Model:
    """A language model that answers batches of prompts.

    Args:
        pretrained: Model to load.
        precision: Type of the weights.
        device: Device that it computes on.
        ends: Token ids that end an answer, besides those that the model itself names.
        reader: Reader of what it generates, if its template is known.
    """

    def __init__(
        self,
        pretrained: Pretrained,
        precision: DType,
        device: torch.device,
        *,
        ends: Sequence[int] = (),
        reader: ReplyReader | None = None,
    ) -> None:
        self._reader = reader
        self._tokenizer = pretrained.tokenizer()
        self.lm: Any = pretrained.load(dtype=DTYPES[precision]).eval().to(device)
        self._start = pretrained.decoder_start()
        self._device = device
        own = self._tokenizer.eos_token_id
        named = end_ids(self.lm.generation_config.eos_token_id)
        self._ends = sorted({*named, *end_ids(own), *ends})
        self._padding = padding_id(self._tokenizer)
        # A checkpoint's own sampling options and penalties would be mixed into ours.
        self.lm.generation_config = GenerationConfig()
        # Where batches change answers, they are smaller; an encoder's are not known to.
        self._way: Way | None = None if self._start is None else Way("any", caches=True)

    @torch.no_grad()
    def answer(self, prompts: Sequence[Sequence[int]], decoding: Decoding, ids: Sequence[str]) -> list[Answer]:
        """Generate one answer per prompt.

        Args:
            prompts: Token ids of B prompts, of similar lengths; the shorter ones are padded on the left, for an encoder
                on the right. Prompts whose answers a batch would change are answered in smaller ones.
            decoding: Options of decoding.
            ids: B names that sampled answers depend on besides the seed; they do not depend on the batch's other
                prompts.
        """
        if self._way is None:
            # Nothing is computed from their log-probabilities: what another type would move, batches may move, too.
            self._way = find_way(
                self.lm, padding=self._padding, device=self._device, whose="model", rounding=COARSE_ROUNDING
            )
        found: dict[int, Answer] = {}
        for group in groups([len(prompt) for prompt in prompts], self._way):
            asked, names = [prompts[number] for number in group], [ids[number] for number in group]
            found |= zip(group, self._together(asked, decoding, names, caches=self._way.caches), strict=True)
        return [found[number] for number in range(len(prompts))]

    def _together(
        self, prompts: Sequence[Sequence[int]], decoding: Decoding, ids: Sequence[str], *, caches: bool
    ) -> list[Answer]:
        padded = left_padded if self._start is None else right_padded
        input_ids, mask = padded(prompts, self._padding, self._device)
        longest = input_ids.shape[1]
        processors = LogitsProcessorList()
        if decoding.temperature > 0:
            processors.append(SeededSampling(decoding, ids))
        # Reasoning may hold what ends an answer.
        has_stops = decoding.stop and not (self._reader and self._reader.may_think)
        stops = {"stop_strings": list(decoding.stop), "tokenizer": self._tokenizer} if has_stops else {}
        output = self.lm.generate(
            input_ids=input_ids,
            attention_mask=mask,
            logits_processor=processors,
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            use_cache=caches,
            eos_token_id=self._ends or None,
            pad_token_id=self._padding,
            decoder_start_token_id=self._start,
            **stops,
        )
        said = output[:, longest if self._start is None else 1 :]
        # An encoder's prompt begins nothing that the decoder goes on with.
        asked = prompts if self._start is None else [()] * len(prompts)
        return [self._read(row, decoding.stop, prompt) for row, prompt in zip(said.tolist(), asked, strict=True)]

    def _read(self, generated: list[int], stop: Sequence[str], prompt: Sequence[int] = ()) -> Answer:
        return read_generated(self._tokenizer, generated, self._ends, self._reader, prompt, stop)


def read_generated(
    tokenizer: PreTrainedTokenizerBase,
    generated: Sequence[int],
    ends: Collection[int],
    reader: ReplyReader | None,
    prompt: Sequence[int],
    stop: Sequence[str] = (),
) -> Answer:
    """Read generated tokens as an answer, and the reasoning before it where the template knows how.

    Args:
        tokenizer: Tokenizer of the model.
        generated: Tokens that the model said, and padding after their end.
        ends: Token ids that end an answer.
        reader: Reader of what the model generates, if its template is known.
        prompt: Token ids of the prompt that the decoder itself has read.
        stop: Texts before the first of which an answer ends.
    """
    end = next((place for place, token in enumerate(generated) if token in ends), None)
    said = list(generated if end is None else generated[:end])
    tokens = len(said) + (end is not None)
    if reader is not None:
        whole, asked = str(tokenizer.decode(said, skip_special_tokens=False)), prompt_end(tokenizer, prompt)
        if reader.is_marked(whole, asked):
            return read_reply(reader, whole, stop, tokens, prompt=asked, is_whole=end is not None)
    text: Any = tokenizer.decode(said, skip_special_tokens=True)
    stops = [place for string in stop if (place := text.find(string)) >= 0]
    if not stops:
        return Answer(text.strip(), tokens, "length" if end is None else "stop")
    # What was generated after a stop is padding, for other rows of the batch that went on.
    return Answer(text[: min(stops)].strip(), _tokens_until_stop(tokenizer, said, stop), "stop")


def prompt_end(tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> str:
    """Return the end of a prompt as text, long enough to show whether it begins the reasoning."""
    return str(tokenizer.decode(list(prompt[-_PROMPT_END:]), skip_special_tokens=False))


def _tokens_until_stop(tokenizer: PreTrainedTokenizerBase, said: list[int], stop: Sequence[str]) -> int:
    low, high = 1, len(said)
    while low < high:
        middle = (low + high) // 2
        text: Any = tokenizer.decode(said[:middle], skip_special_tokens=True)
        low, high = (low, middle) if any(string in text for string in stop) else (middle + 1, high)
    return low


def read_reply(
    reader: ReplyReader, reply: str, stop: Sequence[str], tokens: int, *, prompt: str, is_whole: bool
) -> Answer:
    """Read a generated text with its control tokens as reasoning and an answer, which ends before a stop.

    Args:
        reader: Reader of the model's template.
        reply: Generated text.
        stop: Texts before the first of which the answer ends.
        tokens: Tokens that were generated.
        prompt: End of the prompt's text.
        is_whole: Whether the model itself has ended it.
    """
    reasoning, answer = reader.split(reply, prompt)
    stops = [place for string in stop if (place := answer.find(string)) >= 0]
    cut = answer[: min(stops)].strip() if stops else answer
    return Answer(cut, tokens, "stop" if is_whole or stops else "length", reasoning)


def end_ids(named: int | Sequence[int] | None) -> list[int]:
    """List the ids of a configuration's ``eos_token_id``, which may be one, several or none."""
    return [] if named is None else [named] if isinstance(named, int) else [int(number) for number in named]


class SeededSampling(LogitsProcessor):
    """Sampling as a greedy choice among perturbed logits (the Gumbel-max trick), with noise of each prompt's own.

    The answer to a prompt does not depend on which prompts are in its batch, on how many workers there are, or on
    what was answered before.
    """

    def __init__(self, decoding: Decoding, ids: Sequence[str]) -> None:
        self._decoding = decoding
        self._draws = [draws_of(decoding.seed, name) for name in ids]

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Perturb logits ``scores`` [B, V]; those outside top_k and top_p become -inf."""
        kept = filtered(scores.float() / self._decoding.temperature, self._decoding.top_k, self._decoding.top_p)
        uniform = torch.stack(  # [B, V]
            [torch.rand(scores.shape[1], generator=draw, dtype=torch.float64) for draw in self._draws]
        )
        return kept - torch.log(-torch.log(uniform.clamp_min(1e-300))).to(kept)


def filtered(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set logits [B, V] to -inf outside the ``top_k`` largest and outside the smallest set of mass ``top_p``."""
    if 0 < top_k < logits.shape[1]:
        least = logits.topk(top_k).values[:, -1:]  # [B, 1]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if top_p < 1:
        ordered, places = logits.sort(descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # [B, V]: mass of all larger ones
        outside = torch.zeros_like(before, dtype=torch.bool).scatter(1, places, before >= top_p)
        logits = logits.masked_fill(outside, float("-inf"))
    return logits


def draws_of(seed: int, name: str) -> torch.Generator:
    """Make the generator of one prompt's random numbers, which depend on the seed and its name alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
