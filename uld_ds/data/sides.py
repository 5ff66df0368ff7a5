"""The sides of the data: how examples become text, and text tokens, for one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from uld_ds.data.encoding import EncodedSide, Encoder, SplitEncoder
from uld_ds.data.rendering import Rendered, RenderedTurn, Renderer
from uld_ds.data.sources import Example
from uld_ds.models.parts import check_vocabulary
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import ModelSettings
from uld_ds.tokenization.loading import tokenizer_digest
from uld_ds.tokenization.spans import AlignmentError


class Side(Protocol):
    """The interface that pairing needs of a side, whether it has a tokenizer or was stored."""

    shows_all_answers: bool
    """Whether all answers of a conversation are shown; False where its last answer is the only one."""

    def identity(self) -> dict[str, Any]:
        """Return all that decides what examples become, as plain values."""
        ...

    def render(self, example: Example) -> Rendered:
        """Render an example as text, with the places of its answers.

        Raises:
            ValueError: the example cannot be used.
        """
        ...

    def encode(self, rendered: Sequence[Rendered]) -> list[EncodedSide]:
        """Encode rendered examples as tokens with byte spans.

        Raises:
            AlignmentError: the tokens cannot be located in the text.
        """
        ...

    def max_tokens(self, encoded: EncodedSide) -> int:
        """Return how many of an example's tokens may be used."""
        ...


class TextSide:
    """A side with a tokenizer.

    Args:
        tokenizer: Tokenizer of the model.
        settings: Recipe section of the model.
        key: ``teacher`` or ``student``.
        decoder_start: Token id that the decoder of an encoder-decoder model begins with; None for decoder-only models.
        rows: Rows of the model's embeddings, where the tokenizer has ids beyond them; None where it has none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: ModelSettings,
        key: str,
        *,
        decoder_start: int | None = None,
        rows: int | None = None,
    ) -> None:
        self._renderer = Renderer(tokenizer, settings, key)
        self._encoder: Encoder | SplitEncoder
        if decoder_start is None:
            self._encoder = Encoder(tokenizer, uses_chat_template=self._renderer.uses_chat_template)
        else:
            self._encoder = SplitEncoder(tokenizer, decoder_start)
        self._decoder_start = decoder_start
        self._rows = rows
        self._settings = settings
        self.tokenizer = tokenizer
        self._is_teacher = key == "teacher"
        self.tokenizer_digest = tokenizer_digest(tokenizer)
        # A text template has no place for the answers of earlier turns, and a decoder reads the last one alone.
        self.shows_all_answers = self._renderer.uses_chat_template and decoder_start is None

    @classmethod
    def of_model(cls, model: Pretrained, settings: ModelSettings, role: Literal["teacher", "student"]) -> TextSide:
        """Make the side of a model that is there.

        Args:
            model: Model whose tokenizer it is.
            settings: Recipe section of the model.
            role: Role of the model.

        Raises:
            UserError: no tokenizer there, one that does not belong to the model, no template for it, or a decoder that
                does not say how it begins.
        """
        tokenizer, rows = model.tokenizer(), model.embedding_rows()
        fits = check_vocabulary(tokenizer, rows, model.key)
        return cls(tokenizer, settings, role, decoder_start=model.decoder_start(), rows=None if fits else rows)

    def identity(self) -> dict[str, Any]:
        """Return tokenizer, templates and length: all that decides what examples become."""
        chosen = self._settings.model_dump(include={"prompt_template", "system_prompt", "max_length"})
        return {"tokenizer": self.tokenizer_digest, "decoder_start": self._decoder_start, **chosen}

    def prompt(self, example: Example) -> str:
        """Render everything the model reads before it starts the last answer."""
        return self._renderer.prompt(self._own(example))

    def prompt_ids(self, example: Example) -> list[int]:
        """Encode the prompt of an example as it stands in front of an answer, or in an encoder."""
        if self._renderer.uses_chat_template or self._decoder_start is not None:
            ids = self._encoder.prompt(self.prompt(example))
            self._check_rows(ids)
            return ids
        # A space that ends a plain template is part of the answer's first token, once an answer follows.
        word = {"role": "assistant", "content": "the"}
        (encoded,) = self.encode([self.render(replace(example, messages=(*example.prompt, word)))])
        return encoded.ids[: encoded.turns[-1].first].tolist()

    def render(self, example: Example) -> Rendered:
        """Render the whole conversation; for a model with an encoder, the last answer and what its encoder reads."""
        own = self._own(example)
        if self._decoder_start is None:
            return self._renderer(own)
        length = len(own.answer)
        return Rendered(own.answer, (RenderedTurn(0, length, length),), context=self._renderer.prompt(own))

    def _own(self, example: Example) -> Example:
        if not self._is_teacher:
            return example
        # A task has a system prompt of its own; one in the recipe is meant to replace it.
        return example.for_teacher(own_system=self._settings.system_prompt is None)

    def encode(self, rendered: Sequence[Rendered]) -> list[EncodedSide]:
        """Encode rendered examples as tokens with byte spans.

        Raises:
            AlignmentError: they cannot be located in the text, or one of them has no row in the model's embeddings.
        """
        encoded = self._encoder(rendered)
        for side in encoded:
            self._check_rows(side.ids)
            self._check_rows(side.encoder_ids)
        return encoded

    def _check_rows(self, ids: Sequence[int] | np.ndarray) -> None:
        if self._rows is not None and len(ids) and (largest := int(max(ids))) >= self._rows:
            token = self.tokenizer.convert_ids_to_tokens(largest)
            role = "teacher" if self._is_teacher else "student"
            raise AlignmentError(
                f"{token!r} is token {largest}, beyond the {self._rows} rows of the {role}'s embeddings"
            )

    def max_tokens(self, encoded: EncodedSide) -> int:
        """Return the recipe's ``max_length``, whatever the example."""
        return self._settings.max_length


def same_answers(student: Rendered, teacher: Rendered) -> tuple[Rendered, Rendered]:
    """Narrow both sides to the answers that both show.

    Both keep equally many answers and, when one side trims them, none of the white space around them.
    """
    number = min(len(student.turns), len(teacher.turns))
    student, teacher = _first_turns(student, number), _first_turns(teacher, number)
    if student.shown() == teacher.shown():
        return student, teacher
    return _stripped(student), _stripped(teacher)


def _first_turns(rendered: Rendered, number: int) -> Rendered:
    if number == len(rendered.turns):
        return rendered
    turns = rendered.turns[:number]
    return replace(rendered, text=rendered.text[: turns[-1].end], turns=turns)


def _stripped(rendered: Rendered) -> Rendered:
    turns = []
    for turn, shown in zip(rendered.turns, rendered.shown(), strict=True):
        start = turn.start + len(shown) - len(shown.lstrip())
        turns.append(RenderedTurn(start, start + len(shown.strip()), turn.end))
    return replace(rendered, turns=tuple(turns))
