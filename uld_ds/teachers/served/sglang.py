"""SGLang's own interface: ``/generate`` with the log-probabilities of the whole prompt, the likeliest ones flat.

Written from the source of SGLang 0.5: it was not run against one.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uld_ds.teachers.served.scores import BadReplyError, Scores, check_length, checked

_FLAT = "input_top_logprobs"


class SglangApi:
    """The protocol of SGLang's server."""

    title = "SGLang"
    path = "/generate"
    top_flag: str | None = None

    def request(
        self, model: str, ids: Sequence[int], top: int, sampling: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Build the request that scores a text from its first token on; the server serves one model, unnamed."""
        return {
            "input_ids": list(ids),
            "sampling_params": {"max_new_tokens": 1, "temperature": 0, **(sampling or {})},
            "return_logprob": True,
            "logprob_start_len": 0,
            "top_logprobs_num": top,
            "return_flat_raw_top_logprobs": True,
            "return_flat_raw_top_logprobs_b64": True,
        }

    def read(self, reply: Any, ids: Sequence[int], positions: np.ndarray, top: int, vocab_size: int) -> Scores:
        """Read a reply, and check it."""
        try:
            return self._read(reply["meta_info"], ids, positions, top, vocab_size)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, BadReplyError):
                raise
            raise BadReplyError(f"it is of another form ({type(error).__name__}: {error})") from error

    def _read(self, facts: Any, ids: Sequence[int], positions: np.ndarray, top: int, vocab_size: int) -> Scores:
        actual = facts["input_token_logprobs"]
        check_length(len(actual), ids, "input_token_logprobs")
        if [entry[1] for entry in actual] != list(ids):
            raise BadReplyError("its input_token_logprobs are about other ids than those that were sent")
        if actual[0][0] is not None:
            raise BadReplyError("its first entry is not null, though nothing predicts a text's first token")
        log_probs = np.array([actual[position][0] for position in positions.tolist()], np.float32)
        if f"{_FLAT}_val_flat_b64" not in facts:
            raise BadReplyError("it has no flat log-probabilities: SGLang 0.5.23 has them, releases before it may not")
        rows, prefix = _rows(facts, ids, top), int(facts[f"{_FLAT}_null_prefix"])
        first = int(positions.min(initial=prefix))
        if prefix < 1 or first < prefix:
            raise BadReplyError(f"its likeliest tokens begin at token {prefix}, and token {first} was asked about")
        found, values = (part[positions - prefix] for part in rows)
        return checked(log_probs, found.astype(np.int64), values, positions, vocab_size)


def _rows(facts: Any, ids: Sequence[int], top: int) -> tuple[np.ndarray, np.ndarray]:
    """Decode ids and log-probabilities, [rows, top] each, of the tokens behind those that nothing predicts."""
    try:
        found = np.frombuffer(base64.b64decode(facts[f"{_FLAT}_idx_flat_b64"], validate=True), "<i4")
        values = np.frombuffer(base64.b64decode(facts[f"{_FLAT}_val_flat_b64"], validate=True), "<f4")
    except binascii.Error as error:
        raise BadReplyError(f"its base64 is damaged ({error})") from error
    # (Of the shape's first number releases differ in whether it counts the tokens that nothing predicts.)
    if facts[f"{_FLAT}_shape"][1] != top or len(values) != len(found) or len(values) % top:
        raise BadReplyError(
            f"its flat log-probabilities have shape {facts[f'{_FLAT}_shape']}, and {top} were asked for"
        )
    check_length(len(values) // top + int(facts[f"{_FLAT}_null_prefix"]), ids, "rows of likeliest tokens")
    return found.reshape(-1, top), values.reshape(-1, top)
