"""The rendering of a conversation as the text one side reads, and where the answers are in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from uld_ds.data.sources import Example
from uld_ds.errors import UserError, one_line
from uld_ds.recipe import ModelSettings

# From a private-use plane: in no answer, and nothing that a template would trim or look for.
PLACEHOLDER = "\U000f0add\U000f0add\U000f0add"
# What templates do to the white space around an answer; what they show is what is distilled.
TRIMS: tuple[Callable[[str], str], ...] = (str, str.strip, str.lstrip, str.rstrip)


@dataclass(frozen=True)
class RenderedTurn:
    """Characters of one answer: ``text[start:stop]``; ``text[stop:end]`` is this side's way to end the turn."""

    start: int
    stop: int
    end: int


@dataclass(frozen=True)
class Rendered:
    """A conversation's text for one side, and the answers in it, in order."""

    text: str
    turns: tuple[RenderedTurn, ...]
    context: str | None = field(default=None, kw_only=True)
    """Text that an encoder reads, where ``text`` is its decoder's alone; None without an encoder."""

    def shown(self) -> list[str]:
        """Return each answer's text as this side reads it."""
        return [self.text[turn.start : turn.stop] for turn in self.turns]


class Renderer:
    """A renderer of examples for one side, with the tokenizer's chat template or a plain one.

    Args:
        tokenizer: Tokenizer of the side.
        settings: Recipe section of the model: its ``prompt_template`` and ``system_prompt``.
        key: Name of that section, for messages.

    Raises:
        UserError: ``prompt_template: chat`` for a tokenizer that has none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: ModelSettings, key: str) -> None:
        self._tokenizer = tokenizer
        self._template = settings.prompt_template
        self._system_prompt = settings.system_prompt
        self.uses_chat_template = self._template == "chat"
        if self.uses_chat_template and not tokenizer.chat_template:
            raise UserError(
                f"{key}.prompt_template",
                "'chat', but this tokenizer has no chat template",
                'set it to text with {prompt} in it, e.g. "{prompt}\\n"',
            )

    def prompt(self, example: Example) -> str:
        """Render everything the model reads before it starts the last answer."""
        if not self.uses_chat_template:
            return self._plain_prompt(example)
        messages = self._with_system_prompt(example.prompt)
        return self._chat(messages, add_generation_prompt=True)

    def __call__(self, example: Example) -> Rendered:
        """Render the whole conversation.

        A plain template has no place for earlier answers: with one, an example has one answer.

        Raises:
            ValueError: the template does not show the answers as they are.
        """
        if self.uses_chat_template:
            return self._conversation(example)
        assert len(example.answers) == 1, "a plain template shows one answer"
        prompt = self._plain_prompt(example)
        stop = len(prompt) + len(example.answer)
        return Rendered(prompt + example.answer, (RenderedTurn(len(prompt), stop, stop),))

    def _conversation(self, example: Example) -> Rendered:
        whole = self._chat(self._with_system_prompt(example.messages), add_generation_prompt=False)
        # What stands around any answer stands around these, too: their places are exact, even where their text
        # occurs elsewhere. Placeholders show those places.
        hidden = [
            {**message, "content": PLACEHOLDER} if i in example.answers else message
            for i, message in enumerate(example.messages)
        ]
        around = self._chat(self._with_system_prompt(hidden), add_generation_prompt=False).split(PLACEHOLDER)
        answers = [example.messages[i]["content"] for i in example.answers]
        for trim in TRIMS:
            shown = [trim(answer) for answer in answers]
            if len(around) == len(answers) + 1 and whole == _interleaved(around, shown):
                return _located(around, shown)
        raise ValueError("the chat template does not show the answer unchanged")

    def _plain_prompt(self, example: Example) -> str:
        # Earlier answers stand where the template lets an answer stand: a few-shot prompt shows its own form.
        turns: list[str] = []
        asked: list[str] = []
        for message in self._with_system_prompt(example.prompt):
            if message["role"] == "assistant":
                turns.append(self._asking(asked) + message["content"])
                asked = []
            else:
                asked.append(message["content"])
        return "\n\n".join([*turns, self._asking(asked)])

    def _asking(self, contents: Sequence[str]) -> str:
        return self._template.replace("{prompt}", "\n\n".join(contents))

    def _with_system_prompt(self, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        if self._system_prompt is None or any(message["role"] == "system" for message in messages):
            return list(messages)
        return [{"role": "system", "content": self._system_prompt}, *messages]

    def _chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except ValueError:
            raise
        except Exception as error:  # a template is a program: "a" + 1 in it is a TypeError
            reason = str(error) if isinstance(error, TemplateError) else one_line(error, kind=True)
            raise ValueError(f"the chat template refuses the conversation: {reason}") from error
        assert isinstance(text, str)
        return text


def _interleaved(around: list[str], shown: list[str]) -> str:
    return around[0] + "".join(answer + after for answer, after in zip(shown, around[1:], strict=True))


def _located(around: list[str], shown: list[str]) -> Rendered:
    # What ends the last turn ends the earlier ones, or nothing does. White space after it belongs to the next turn.
    mark = around[-1].rstrip()
    turns = []
    position = 0
    for before, answer, after in zip(around, shown, around[1:], strict=False):
        start = position + len(before)
        stop = position = start + len(answer)
        turns.append(RenderedTurn(start, stop, stop + len(mark) if after.startswith(mark) else stop))
    return Rendered(_interleaved(around, shown)[: turns[-1].end], tuple(turns))
