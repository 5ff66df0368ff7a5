"""A conversation as the text one side reads, and where the answer is in it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from uld_ds.data.sources import Example
from uld_ds.errors import UserError
from uld_ds.recipe import ModelSettings

# From a private-use plane: in no answer, and nothing that a template would trim or look for.
PLACEHOLDER = "\U000f0add\U000f0add\U000f0add"


@dataclass(frozen=True)
class Rendered:
    """Text for one side. ``text[start:stop]`` is the answer; what follows it is this side's way to end a turn."""

    text: str
    start: int
    stop: int


class Renderer:
    """Renders examples for one side, with the tokenizer's chat template or a plain one.

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
        """Everything the model reads before it starts the answer."""
        if not self.uses_chat_template:
            return self._plain_prompt(example)
        messages = self._with_system_prompt(list(example.prompt))
        return self._chat(messages, add_generation_prompt=True)

    def __call__(self, example: Example) -> Rendered:
        """The whole conversation.

        Raises:
            ValueError: the template does not show the answer as it is.
        """
        if not self.uses_chat_template:
            prompt = self._plain_prompt(example)
            return Rendered(prompt + example.answer, len(prompt), len(prompt) + len(example.answer))
        whole = self._conversation(example)
        # What stands around any answer stands around this one, too: its place is exact, even where its text
        # occurs elsewhere. A placeholder shows that place.
        before, found, after = self._conversation(replace(example, answer=PLACEHOLDER)).partition(PLACEHOLDER)
        start, stop = len(before), len(whole) - len(after)
        # Templates may trim the answer; what they show is what is distilled.
        trimmed = {example.answer, example.answer.strip(), example.answer.lstrip(), example.answer.rstrip()}
        if not found or not whole.startswith(before) or not whole.endswith(after) or whole[start:stop] not in trimmed:
            raise ValueError("the chat template does not show the answer unchanged")
        # White space after the end-of-turn mark belongs to the next turn.
        return Rendered(whole[:stop] + whole[stop:].rstrip(), start, stop)

    def _conversation(self, example: Example) -> str:
        return self._chat(self._with_system_prompt(example.messages), add_generation_prompt=False)

    def _plain_prompt(self, example: Example) -> str:
        text = "\n\n".join(message["content"] for message in self._with_system_prompt(list(example.prompt)))
        return self._template.replace("{prompt}", text)

    def _with_system_prompt(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        if self._system_prompt is None or any(message["role"] == "system" for message in messages):
            return messages
        return [{"role": "system", "content": self._system_prompt}, *messages]

    def _chat(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error
        assert isinstance(text, str)
        return text
