"""Control tokens that somebody has typed into a conversation: a template's own look the same once it is rendered."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from uld_ds.conversations import Part
from uld_ds.data.examples import Example
from uld_ds.data.placeholders import places_of, text_stand_in


class ControlTokens:
    """The control tokens of a tokenizer: those that it marks as special.

    Args:
        tokenizer: The tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        named = {number: str(tokenizer.convert_ids_to_tokens(number)) for number in tokenizer.all_special_ids}
        self.ids = frozenset({*added, *named})
        # The longest first, so that none is found inside another.
        self.texts = sorted({*added.values(), *named.values()} - {""}, key=len, reverse=True)
        self._added = sorted({*map(str, tokenizer.added_tokens_decoder.values()), *self.texts} - {""}, key=len)
        self._pattern = re.compile("|".join(map(re.escape, self.texts)) or r"(?!)")
        self._starts = {text[:2] for text in self.texts}

    def in_text(self, text: str) -> list[str]:
        """List the control tokens in a text, in order."""
        return self._pattern.findall(text) if self._has(text) else []

    def at_start(self, text: str) -> list[str]:
        """List the one token that a text begins with, of those that were added to the vocabulary, special or not."""
        return [token for token in self._added if text.startswith(token)][-1:]

    def typed(self, example: Example, whole: str, render: Callable[[Example], str]) -> tuple[tuple[int, int], ...]:
        """Find the control tokens that stand in a rendered conversation because its messages have them.

        Args:
            example: The conversation.
            whole: Conversation as it is rendered.
            render: Function that rendered it.

        Returns:
            Characters of each, in order; none where the template does something else to them than to show them.
        """
        for message in example.messages:
            if any(self._is_in(value) for name, value in message.items() if name != "role"):
                break
        else:
            return ()
        tokens: list[Part] = []
        messages = [{**self._marked(message, tokens), "role": message["role"]} for message in example.messages]
        if not tokens:
            return ()
        try:
            hidden = render(replace(example, messages=tuple(messages)))
        except ValueError:
            return ()
        return tuple((place.start, place.stop) for place in places_of(whole, hidden, tokens) or ())

    def _is_in(self, value: Any) -> bool:
        if isinstance(value, str):
            return self._has(value)
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return any(map(self._is_in, inner))

    def _marked(self, value: Any, tokens: list[Part]) -> Any:
        """Put a stand-in for every control token in a value, and add the token to ``tokens``."""
        if isinstance(value, str):
            if not self._has(value):
                return value

            def stand_in(found: re.Match[str]) -> str:
                tokens.append(Part("text", found[0], 0))
                return text_stand_in(len(tokens) - 1)

            return self._pattern.sub(stand_in, value)
        if isinstance(value, dict):
            return {key: self._marked(item, tokens) for key, item in value.items()}
        return [self._marked(item, tokens) for item in value] if isinstance(value, list) else value

    def _has(self, text: str) -> bool:
        # Of hundreds of tokens most begin alike; what has none of these beginnings needs no further look.
        for start in self._starts:
            if start in text:
                return any(token in text for token in self.texts)
        return False


class TypedTokens:
    """A rewriter of control tokens that somebody has typed into the tokens of their text.

    Args:
        tokenizer: Tokenizer of the texts.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}

    def as_text(
        self, text: str, typed: Sequence[tuple[int, int]], ids: np.ndarray, spans: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and spans of a text in which typed control tokens are text.

        Args:
            text: The text.
            typed: Characters of the control tokens, in order.
            ids: [n] token ids of the text.
            spans: [n, 2] bytes that each token covers.
        """
        data = text.encode()
        new_ids: list[np.ndarray] = []
        new_spans: list[np.ndarray] = []
        done = 0
        for start, stop in typed:
            begin = len(text[:start].encode())
            end = begin + len(text[start:stop].encode())
            first = max(int(np.searchsorted(spans[:, 1], begin, side="right")), done)
            last = int(np.searchsorted(spans[:, 0], end, side="left"))
            if last != first + 1:
                continue  # the tokenizer does not take it for one token: it is text already
            # A token may take white space beside it, too (AddedToken's lstrip and rstrip).
            spelled = np.asarray(self._spelled(data[spans[first, 0] : spans[first, 1]].decode()), ids.dtype)
            # Which of them covers what does not matter: none of its inner places is a boundary.
            own = np.full((len(spelled), 2), spans[first, 0], spans.dtype)
            own[-1, 1] = spans[first, 1]
            new_ids += [ids[done:first], spelled]
            new_spans += [spans[done:first], own]
            done = last
        return np.concatenate([*new_ids, ids[done:]]), np.concatenate([*new_spans, spans[done:]])

    def _spelled(self, token: str) -> list[int]:
        if token not in self._known:
            # After a line feed, so that no space is put before it as before the beginning of a text.
            before = list(self._tokenizer.encode("\n", add_special_tokens=False, split_special_tokens=True))
            after = list(self._tokenizer.encode("\n" + token, add_special_tokens=False, split_special_tokens=True))
            whole = after[: len(before)] == before
            plain = self._tokenizer.encode(token, add_special_tokens=False, split_special_tokens=True)
            self._known[token] = after[len(before) :] if whole else list(plain)
        return self._known[token]
