"""The two sides of a conversation: how each model's chat template writes it, and which tokens that makes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from uld_ds.data.encoding import EncodedSide, Encoder
from uld_ds.data.examples import Example
from uld_ds.data.matching import same_answers
from uld_ds.data.pairing import PairRow, pair
from uld_ds.data.rendering import Rendered, Renderer
from uld_ds.errors import UserError
from uld_ds.recipe import ModelSettings
from uld_ds.reporting.alignment_view import TokenView, visible
from uld_ds.tokenization.spans import batch_token_spans


class AddedToken(TokenView):
    """A token that a side puts around the text: it covers nothing of it, and is shown as it is called."""

    @property
    def shown(self) -> str:
        """Name of the token."""
        return visible(self.token.encode())


@dataclass(frozen=True)
class Speaker:
    """One side: a tokenizer, and how its model reads conversations.

    Attributes:
        tokenizer: the tokenizer.
        settings: what a recipe would say of the model; ``model`` is what to call the tokenizer.
        key: option that named the tokenizer, e.g. ``--student``, for messages.
    """

    tokenizer: PreTrainedTokenizerBase
    settings: ModelSettings
    key: str

    @property
    def uses_chat_template(self) -> bool:
        """Whether its own chat template writes the conversation, not a text template."""
        return self.settings.prompt_template == "chat"

    def render(self, example: Example) -> Rendered:
        """Write a conversation as this side reads it.

        Raises:
            UserError: there is no chat template, or it refuses the conversation.
        """
        name = self.settings.model
        if self.uses_chat_template and not self.tokenizer.chat_template:
            fix = f'give {self.key}-template TEXT with {{prompt}} in it, e.g. "Question: {{prompt}} Answer:"'
            raise UserError(self.key, f"{name!r} has no chat template", fix)
        with blamed(self.key, f"change the conversation, or give {self.key}-template TEXT"):
            return Renderer(self.tokenizer, self.settings, self.key)(example)

    def encode(self, rendered: Rendered) -> EncodedSide:
        """Cut a written conversation into tokens.

        Raises:
            UserError: the tokens cannot be located in the text.
        """
        with blamed(self.key, "choose another conversation or tokenizer"):
            return Encoder(self.tokenizer, uses_chat_template=self.uses_chat_template)([rendered])[0]

    def tokens(self, rendered: Rendered, encoded: EncodedSide) -> list[TokenView]:
        """Return all tokens of a side, with the bytes of its text that they cover."""
        ids, spans = (rows[0].tolist() for rows in batch_token_spans(self.tokenizer, [rendered.text]))
        data = rendered.text.encode()
        whole = encoded.ids.tolist()
        begin = next(n for n in range(len(whole)) if whole[n : n + len(ids)] == ids)
        around = [(0, 0)] * begin, [(len(data), len(data))] * (len(whole) - begin - len(ids))
        written = map(str, self.tokenizer.convert_ids_to_tokens(whole))
        return [
            (TokenView if begin <= n < begin + len(ids) else AddedToken)(number, token, (start, stop), data[start:stop])
            for n, (number, token, (start, stop)) in enumerate(
                zip(whole, written, [*around[0], *spans, *around[1]], strict=True)
            )
        ]


@dataclass(frozen=True)
class SpokenSide:
    """A conversation on one side.

    Attributes:
        name: what the tokenizer is called.
        template: what wrote the text: ``chat template``, or the text template.
        rendered: the text and its answers, narrowed to what both sides show.
        shown: the same, with all that this side shows.
        encoded: tokens of the text, and which of them are answers.
        tokens: the same tokens with the bytes that they cover.
    """

    name: str
    template: str
    rendered: Rendered
    shown: Rendered
    encoded: EncodedSide
    tokens: list[TokenView]

    @classmethod
    def of(cls, speaker: Speaker, shown: Rendered, rendered: Rendered, encoded: EncodedSide) -> SpokenSide:
        """Describe a side from what it has rendered and encoded."""
        template = speaker.settings.prompt_template
        name = "chat template" if speaker.uses_chat_template else f"text template {template!r}"
        return cls(speaker.settings.model, name, rendered, shown, encoded, speaker.tokens(rendered, encoded))


@dataclass(frozen=True)
class PairedConversation:
    """A conversation on both sides, and what training makes of it.

    Attributes:
        student: the student's side.
        teacher: the teacher's side.
        row: the prepared example: which tokens are learned, and which segments they form.
        notes: what deserves a word, as keys of ``uld_ds.data.notes.NOTES``.
        left_out: number of earlier answers that are read and not learned, because a text template shows the last alone.
    """

    student: SpokenSide
    teacher: SpokenSide
    row: PairRow
    notes: frozenset[str]
    left_out: int

    @classmethod
    def of(cls, example: Example, student: Speaker, teacher: Speaker) -> PairedConversation:
        """Prepare a conversation as training does, all of it, however long.

        Args:
            example: the conversation.
            student: the student.
            teacher: the teacher.

        Raises:
            UserError: a template refuses it, or the sides have nothing in common.
        """
        # A text template has no place for the answers of earlier turns.
        both_show_all = student.uses_chat_template and teacher.uses_chat_template
        chosen = example if both_show_all else example.only_last()
        shown = student.render(chosen), teacher.render(chosen)
        with blamed("--messages", "choose another conversation, or templates that show the same parts"):
            own, other, notes = same_answers(*shown)
        encoded = student.encode(own), teacher.encode(other)
        with blamed("--messages", "choose another conversation or tokenizer"):
            row = _row(*encoded)
        return cls(
            SpokenSide.of(student, shown[0], own, encoded[0]),
            SpokenSide.of(teacher, shown[1], other, encoded[1]),
            row,
            notes,
            len(example.answers) - len(chosen.answers),
        )


@contextmanager
def blamed(key: str, fix: str, where: str = "") -> Iterator[None]:
    """Turn what is wrong with a value into an error of the option that gave it.

    Args:
        key: the option.
        fix: what to change.
        where: place of the value, to be told before what is wrong.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(key, f"{where}: {error}" if where else str(error), fix) from error


def _row(student: EncodedSide, teacher: EncodedSide) -> PairRow:
    """Pair the sides without a limit: what does not fit then has no tokens that are its own."""
    most = len(student.ids), len(teacher.ids)
    try:
        return pair(student, teacher, alignment="segments", student_max=most[0], teacher_max=most[1])
    except ValueError as error:
        raise ValueError("no part of an answer has tokens of its own on both sides") from error
