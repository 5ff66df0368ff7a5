"""Removal of secrets from what is written where others read it: a run's record, its artifacts, messages."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

HIDDEN = "***"

_SECRET_WORDS = {"password", "passwd", "passphrase", "secret", "token", "apikey", "credential", "credentials", "bearer"}
_KEYS_THAT_OPEN = {"api", "access", "private", "secret", "auth", "account", "encryption", "signing"}
# Shorter values of environment variables are words that occur anywhere.
_SHORTEST_SECRET = 6

_USER_INFO = re.compile(r"(?<=://)[^/?#\s@]+@")
_SIGNED = re.compile(
    r"(?<=[?&])([\w.-]*(?:signature|sig|token|secret|password|credential|key)[\w.-]*)=[^&\s#'\"]+", re.IGNORECASE
)
# Tokens that say themselves what they are: of the Hugging Face hub, GitHub, GitLab, AWS, OpenAI and alike, Slack; JWTs.
_KNOWN_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{20,}|glpat-[\w-]{16,}|A[KS]IA[A-Z0-9]{16}"
    r"|sk-[\w-]{16,}|xox[abprs]-[\w-]{10,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"
)


def is_secret_name(name: str) -> bool:
    """Tell whether a key or an environment variable of this name holds a secret.

    >>> [is_secret_name(name) for name in ("HF_TOKEN", "db.password", "max_tokens", "AWS_ACCESS_KEY_ID", "tokenizer")]
    [True, True, False, True, False]
    """
    words = [word.lower() for word in re.split(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])", name) if word]
    opens = any(word in _KEYS_THAT_OPEN and after == "key" for word, after in pairwise(words))
    return opens or not _SECRET_WORDS.isdisjoint(words)


class Redactor:
    """A filter that hides secrets in text and in trees of plain values.

    A secret is: what a key with a secret's name holds; the value of an environment variable with such a name,
    wherever it occurs (so references like ``${oc.env:HF_TOKEN}`` are found after they were resolved); user and
    password of a URI; a signed URI's signature; a token of a known shape.

    Args:
        environment: variables that may hold secrets; default: this process's.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        values = {v for name, v in variables.items() if is_secret_name(name) and len(v) >= _SHORTEST_SECRET}
        # A path beside the word "key" or "token" tells where a secret is, not what it is.
        values = {value for value in values if not value.startswith(("/", "./", "~"))}
        # Longest first: one may be a part of another.
        self._values = sorted(values, key=lambda value: (-len(value), value))

    def text(self, text: str) -> str:
        """Hide the secrets in a text."""
        for value in self._values:
            text = text.replace(value, HIDDEN)
        text = _USER_INFO.sub(f"{HIDDEN}@", text)
        text = _SIGNED.sub(rf"\1={HIDDEN}", text)
        return _KNOWN_SHAPES.sub(HIDDEN, text)

    def tree(self, tree: Any) -> Any:
        """Copy plain values (mappings, lists, scalars) with their secrets hidden."""
        if isinstance(tree, Mapping):
            return {self.text(str(key)): self._of_key(str(key), value) for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return [self.tree(value) for value in tree]
        return self.text(tree) if isinstance(tree, str) else tree

    def _of_key(self, key: str, value: Any) -> Any:
        if is_secret_name(key) and value is not None and not isinstance(value, Mapping):
            return HIDDEN
        return self.tree(value)


def redacted(text: str) -> str:
    """Hide the secrets in a text, as far as their shapes and this process's environment tell them."""
    return Redactor().text(text)
