"""The sides of the data: how examples become text, and text tokens, for one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, Literal, Protocol

import numpy as np
from transformers import PreTrainedTokenizerBase

from uld_ds.data.encoding import EncodedSide, Encoder, SplitEncoder
from uld_ds.data.examples import Example
from uld_ds.data.rendering import Rendered, Renderer
from uld_ds.data.templates import ReplyMarks, ReplyReader
from uld_ds.models.parts import check_vocabulary
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import ModelSettings, SpecialTokens
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


def end_ids_of(tokenizer: PreTrainedTokenizerBase, settings: ModelSettings) -> tuple[int, ...]:
    """List the token ids that end an answer of a model as it is trained.

    Args:
        tokenizer: Tokenizer of the model.
        settings: Recipe section of the model.
    """
    return TextSide(tokenizer, settings, "student").end_ids


class TextSide:
    """A side with a tokenizer.

    Args:
        tokenizer: Tokenizer of the model.
        settings: Recipe section of the model.
        key: ``teacher`` or ``student``.
        decoder_start: Token id that the decoder of an encoder-decoder model begins with; None for decoder-only models.
        special_tokens: The recipe's ``data.special_tokens``: what those become that are typed into messages.
        rows: Rows of the model's embeddings, where the tokenizer has ids beyond them; None where it has none.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        settings: ModelSettings,
        key: str,
        *,
        decoder_start: int | None = None,
        special_tokens: SpecialTokens = "control",
        rows: int | None = None,
    ) -> None:
        self._renderer = Renderer(tokenizer, settings, key)
        self._encoder: Encoder | SplitEncoder
        if decoder_start is None:
            self._encoder = Encoder(
                tokenizer, uses_chat_template=self._renderer.uses_chat_template, typed_as_text=special_tokens == "text"
            )
        else:
            self._encoder = SplitEncoder(tokenizer, decoder_start, typed_as_text=special_tokens == "text")
        self._decoder_start = decoder_start
        self._rows = rows
        self._settings = settings
        self._special_tokens = special_tokens
        self.tokenizer = tokenizer
        self._is_teacher = key == "teacher"
        self.tokenizer_digest = tokenizer_digest(tokenizer)
        # A text template has no place for the answers of earlier turns, and a decoder reads the last one alone.
        self.shows_all_answers = self._renderer.uses_chat_template and decoder_start is None

    @classmethod
    def of_model(
        cls,
        model: Pretrained,
        settings: ModelSettings,
        role: Literal["teacher", "student"],
        *,
        special_tokens: SpecialTokens = "control",
    ) -> TextSide:
        """Make the side of a model that is there.

        Args:
            model: Model whose tokenizer it is.
            settings: Recipe section of the model.
            role: Role of the model.
            special_tokens: The recipe's ``data.special_tokens``.

        Raises:
            UserError: no tokenizer there, one that does not belong to the model, no template for it, or a decoder that
                does not say how it begins.
        """
        tokenizer, rows = model.tokenizer(), model.embedding_rows()
        fits = check_vocabulary(tokenizer, rows, model.key)
        return cls(
            tokenizer,
            settings,
            role,
            decoder_start=model.decoder_start(),
            special_tokens=special_tokens,
            rows=None if fits else rows,
        )

    def identity(self) -> dict[str, Any]:
        """Return tokenizer, templates and length: all that decides what examples become."""
        chosen = self._settings.model_dump(include={"prompt_template", "system_prompt", "max_length"})
        if self._settings.template_arguments:
            chosen["template_arguments"] = self._settings.template_arguments
        if self._special_tokens != "control":
            chosen["special_tokens"] = self._special_tokens
        return {"tokenizer": self.tokenizer_digest, "decoder_start": self._decoder_start, **chosen}

    def prompt(self, example: Example) -> str:
        """Render everything the model reads before it starts the last answer."""
        return self._renderer.prompt(self._own(example))

    def prompt_ids(self, example: Example) -> list[int]:
        """Encode the prompt of an example as it stands in front of an answer, or in an encoder."""
        own = self._own(example)
        if self._renderer.uses_chat_template or self._decoder_start is not None:
            prompt = self._renderer.prompt(own)
            ids = self._encoder.prompt(prompt, self._renderer.typed_in_prompt(own, prompt))
            self._check_rows(ids)
            return ids
        # A space that ends a plain template is part of the answer's first token, once an answer follows.
        word = {"role": "assistant", "content": "the"}
        asked = replace(example, messages=(*example.prompt, word), answers=(len(example.messages) - 1,))
        (encoded,) = self.encode([self.render(asked)])
        return encoded.ids[: encoded.turns[-1].lead].tolist()

    @cached_property
    def reply_marks(self) -> ReplyMarks:
        """What this side's template writes around the reasoning and the text of an answer."""
        if self._renderer.uses_chat_template:
            return self._renderer.template.reply_marks
        return ReplyMarks("<think>", "</think>", "")

    @cached_property
    def end_ids(self) -> tuple[int, ...]:
        """Token ids that end an answer of this side, as it is trained; the tokenizer's end of text is one of them."""
        own = self.tokenizer.eos_token_id
        texts = self._renderer.template.end_texts if self._renderer.uses_chat_template else ()
        named = (self.tokenizer.convert_tokens_to_ids(text) for text in texts)
        return tuple(sorted({int(number) for number in (own, *named) if number is not None}))

    @property
    def control_ids(self) -> frozenset[int]:
        """Token ids that the tokenizer marks as special."""
        return self._renderer.control.ids

    @property
    def answer_edges(self) -> tuple[str, str]:
        """What this side's template writes before an answer without reasoning, and after it before what ends it."""
        return self._renderer.template.edges if self._renderer.uses_chat_template else ("", "")

    @property
    def uses_chat_template(self) -> bool:
        """Whether conversations are rendered by the tokenizer's chat template."""
        return self._renderer.uses_chat_template

    @property
    def reply_reader(self) -> ReplyReader:
        """The reader of what this side's model generates."""
        return ReplyReader(self.reply_marks, tuple(self._renderer.control.texts))

    def served_chat(self) -> dict[str, Any]:
        """Return all that a served student needs to know of its chat template, as plain values.

        Served students do without this package: ``registry/served_student.py`` reads this, and has the same defaults.
        """
        known: dict[str, Any] = {"marks": asdict(self.reply_marks), "control": self._renderer.control.texts}
        if not self._renderer.uses_chat_template:
            return known
        template = self._renderer.template
        arguments_as_text, null_content = template.call_style
        return known | {
            "reasoning": template.reasoning_style,
            "in_blocks": template.takes_blocks,
            "arguments_as_text": arguments_as_text,
            "null_content": null_content,
            "no_tools": template.no_tools,
        }

    def render(self, example: Example) -> Rendered:
        """Render the whole conversation; for a model with an encoder, the last answer and what its encoder reads."""
        own = self._own(example)
        rendered = self._renderer(own) if self._decoder_start is None else self._renderer.answer_alone(own)
        if self._special_tokens == "text" and "typed" in rendered.notes:
            return replace(rendered, notes=(rendered.notes - {"typed"}) | {"typed_text"})
        return rendered

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
