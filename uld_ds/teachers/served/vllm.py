"""vLLM's server with OpenAI's interface: ``/v1/completions`` with ``prompt_logprobs``, token ids in and out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uld_ds.teachers.served.scores import BadReplyError, Scores, check_length, checked

_MINUS_INFINITY = -9999.0
"""What the server writes for it, which JSON cannot say."""


class VllmApi:
    """The protocol of vLLM's server, as 0.32 speaks it.

    An entry has the k likeliest tokens, and the actual one as well where it is not among them. Which ids make the cut
    where values are equal is the engine's to say.
    """

    title = "vLLM"
    path = "/v1/completions"
    top_flag: str | None = "--max-logprobs"

    def request(
        self, model: str, ids: Sequence[int], top: int, sampling: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Build the request that scores a text: one token must be generated, too, and is not looked at."""
        return {
            "model": model,
            "prompt": list(ids),
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": top,
            "return_token_ids": True,
            **(sampling or {}),
        }

    def read(self, reply: Any, ids: Sequence[int], positions: np.ndarray, top: int, vocab_size: int) -> Scores:
        """Read a reply, and check it."""
        choice = _choice(reply)
        entries = choice.get("prompt_logprobs")
        if not isinstance(entries, list):
            raise BadReplyError("it has no prompt_logprobs: whatever answers there drops that wish without a word")
        if choice.get("prompt_token_ids") != list(ids):
            raise BadReplyError("its prompt_token_ids are not those that were sent")
        check_length(len(entries), ids, "prompt_logprobs")
        if entries[0] is not None:
            raise BadReplyError("its first entry is not null, though nothing predicts a text's first token")
        try:
            rows = [_row(entries, ids, position, top) for position in positions.tolist()]
            values = np.array([[actual, *values] for actual, _, values in rows], np.float64)
            found = np.array([keys for _, keys, _ in rows], np.int64)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, BadReplyError):
                raise
            raise BadReplyError(f"an entry is of another form ({type(error).__name__}: {error})") from error
        known = np.where(values <= _MINUS_INFINITY, -np.inf, values).astype(np.float32).reshape(-1, 1 + top)
        return checked(known[:, 0], found.reshape(-1, top), known[:, 1:], positions, vocab_size)


def _choice(reply: Any) -> dict[str, Any]:
    choices = reply.get("choices") if isinstance(reply, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise BadReplyError("it has not one choice")
    return choices[0]


def _row(entries: list[Any], ids: Sequence[int], position: int, top: int) -> tuple[float, list[int], list[float]]:
    """Take the actual token's log-probability, and the ids and log-probabilities of the likeliest ones."""
    entry, actual = entries[position], str(ids[position])
    if entry is None or actual not in entry:
        raise BadReplyError(f"its entry at token {position} is not about id {actual}, which stands there")
    likeliest = dict(entry)
    if len(entry) == top + 1:
        del likeliest[actual]
    if len(likeliest) != top:
        raise BadReplyError(f"its entry at token {position} has {len(entry)} tokens, and {top} were asked for")
    values = [token["logprob"] for token in likeliest.values()]
    return entry[actual]["logprob"], list(map(int, likeliest)), values
