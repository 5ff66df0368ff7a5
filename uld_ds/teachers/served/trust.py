"""The examination of a served teacher's server before a run: who it is, and whether what it says can be used as it is.

A dozen short requests. Every mismatch is one line that names the key and the fix.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from uld_ds.errors import UserError
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import NamedTeacherSettings
from uld_ds.teachers.served.client import Client, RefusedError, Reply, TroubleError
from uld_ds.teachers.served.engine import APIS, open_client, token_variable
from uld_ds.teachers.served.facts import ServerFacts, UnreachableError
from uld_ds.teachers.served.scores import BadReplyError, NotLogProbsError, Scores

log = logging.getLogger(__name__)

_TRIES = 3
_SECONDS_BETWEEN = 2.0
_MOST_SPECIAL = 3
# Nothing of this may touch what is said about a prompt.
_SAMPLING = {"temperature": 2.0, "repetition_penalty": 1.9, "presence_penalty": 1.5, "frequency_penalty": 1.5}
# Share of the distance between the likeliest and the least likely token told by which log-probabilities may move when a
# prompt is scored again: neighbors in a batch move them in bf16 by some 0.01 of it, and a temperature of 2 by 0.5.
_MOVED = 0.1
_OTHERS = {"vllm": "vLLM", "sglang": "SGLang"}


def examine(settings: NamedTeacherSettings, teacher: Pretrained, *, wait_seconds: float = 0.0) -> ServerFacts:
    """Ask a served teacher's server who it is, and whether it says what a run needs.

    Args:
        settings: the teacher.
        teacher: the model whose tokenizer made the prompts.
        wait_seconds: how long a server that does not answer yet is waited for.

    Raises:
        UnreachableError: it does not answer.
        UserError: it is another model, or cannot be used as it is started; names the key and the fix.
    """
    if teacher.decoder_start() is not None:
        raise UserError(
            f"{settings.key}.model",
            f"{settings.model!r} has an encoder, and engines tell log-probabilities of decoders alone",
            f"set {settings.key}.source to online",
        )
    deadline, waiting = time.monotonic() + wait_seconds, False
    client = open_client(settings)
    examination = _Examination(client, settings, teacher.tokenizer(), teacher.embedding_rows())
    try:
        while True:
            try:
                return examination.facts()
            except UnreachableError as error:
                if time.monotonic() >= deadline:
                    raise
                if not waiting:
                    log.warning("waiting for the server, up to cluster.wait_seconds %g: %s", wait_seconds, error)
                waiting = True
            time.sleep(min(_SECONDS_BETWEEN, max(deadline - time.monotonic(), 0.0)))
    finally:
        client.close()


class _Examination:
    def __init__(
        self, client: Client, settings: NamedTeacherSettings, tokenizer: PreTrainedTokenizerBase, vocab_size: int
    ) -> None:
        assert settings.server is not None
        self._client = client
        self._settings = settings
        self._server = settings.server
        self._key = f"{settings.key}.server"
        self._api = APIS[settings.server.api]()
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size

    def facts(self) -> ServerFacts:
        """Examine the server, and collect who it is."""
        if self._server.top > self._vocab_size:
            raise UserError(
                f"{self._key}.top",
                f"{self._server.top} is more than the {self._vocab_size} ids of the model",
                "lower it",
            )
        model = self._model()
        ids = self._ids(model)
        first = self._scores(model, ids)
        self._check_untouched(first, self._scores(model, ids, _SAMPLING))
        version, precision = self._version()
        return ServerFacts(self._api.title, version, model, self._server.top, self._vocab_size, precision)

    def _ask(self, path: str, body: Any = None) -> Reply:
        """Make a request, some times where the server is busy."""
        for again in reversed(range(_TRIES)):
            try:
                reply = self._client.ask(path, body)
                break
            except TroubleError as error:
                if not (error.busy and again):
                    raise UnreachableError(
                        f"{self._key}.url",
                        f"{self._server.url!r} does not answer ({error})",
                        "start the server, or correct the URL",
                    ) from error
                time.sleep(1.0)
            except RefusedError as error:
                raise UserError(f"{self._key}.url", str(error), "correct the URL, or the certificate") from error
        if reply.status in (401, 403):
            variable = token_variable(self._settings)
            problem = f"{self._server.url!r} refuses to answer ({reply.status}): {reply.words}"
            raise UserError(f"{self._key}.url", problem, f"put its token into the environment variable {variable}")
        return reply

    def _model(self) -> str:
        """Find the server's name of the model, and check that it is this engine and long enough."""
        reply = self._ask("/v1/models")
        models = reply.body.get("data") if isinstance(reply.body, dict) else None
        if reply.status != 200 or not isinstance(models, list) or not all(isinstance(own, dict) for own in models):
            problem = f"{self._server.url!r} does not list its models at /v1/models ({reply.status}: {reply.words})"
            raise UserError(f"{self._key}.url", problem, f"name the place where {self._api.title} answers")
        self._check_engine({str(own.get("owned_by", "")).lower() for own in models})
        names = [str(own.get("id")) for own in models]
        name = self._server.name or (names[0] if len(names) == 1 else None)
        if name is None or name not in names:
            problem = "is missing, and the server" if name is None else f"{name!r} is not there: the server"
            raise UserError(
                f"{self._key}.name", f"{problem} serves {', '.join(names) or 'nothing'}", "name one of them"
            )
        longest = models[names.index(name)].get("max_model_len")
        # One place is for the token that must be generated.
        if isinstance(longest, int) and self._settings.max_length > longest - 1:
            flag = {"vllm": "--max-model-len", "sglang": "--context-length"}[self._server.api]
            raise UserError(
                f"{self._settings.key}.max_length",
                f"{self._settings.max_length} is more than the {longest - 1} tokens that the server scores at once",
                f"start it with {flag} {self._settings.max_length + 1} if the model reads as many, or lower it to "
                f"{longest - 1}",
            )
        return name

    def _check_engine(self, owners: set[str]) -> None:
        if owners & {"llamacpp", "llama.cpp"}:
            raise UserError(
                f"{self._key}.api",
                f"{self._server.url!r} is llama.cpp's server, which takes prompt_logprobs and echo and drops them "
                "without a word: a text could be scored only prefix by prefix, a request for each token",
                "serve the model with vLLM or SGLang, or set source to online",
            )
        others = owners & (_OTHERS.keys() - {self._server.api})
        if others and self._server.api not in owners:
            other = min(others)
            raise UserError(
                f"{self._key}.api",
                f"{self._server.api!r}, but {self._server.url!r} says that it is {_OTHERS[other]}",
                f"set it to {other}",
            )

    def _ids(self, model: str) -> list[int]:
        """Compare what both tokenizers make of a probe; return its ids, with the tokenizer's highest behind them."""
        special = "".join(map(str, self._tokenizer.all_special_tokens[:_MOST_SPECIAL]))
        text = f"Hello,  world\n\n\t{special} naïve 東京 🙂{special}x = 1 "
        ours = list(self._tokenizer.encode(text, add_special_tokens=False))
        reply = self._ask("/tokenize", {"model": model, "prompt": text, "add_special_tokens": False})
        theirs = reply.body.get("tokens") if isinstance(reply.body, dict) else None
        if reply.status == 404 and self._server.api == "sglang":
            log.warning(
                "%s has no /tokenize: whether its tokenizer is that of the model is not known", self._server.url
            )
        elif reply.status != 200 or not isinstance(theirs, list):
            problem = f"the server does not tokenize a probe ({reply.status}: {reply.words})"
            raise UserError(f"{self._key}.url", problem, "let POST /tokenize through to it, or update it")
        elif theirs != ours:
            pairs = [(a, b) for a, b in zip(ours, theirs, strict=False) if a != b]
            where = "" if not pairs else f": id {pairs[0][0]} here is {pairs[0][1]} there"
            raise UserError(
                f"{self._settings.key}.model",
                f"{self._settings.model!r} makes {len(ours)} tokens of a probe, and the server's tokenizer "
                f"{len(theirs)} others{where}",
                f"name the model that the server serves, or serve {self._settings.model} with its own tokenizer",
            )
        highest = min(self._vocab_size, max(self._tokenizer.get_vocab().values(), default=0) + 1) - 1
        return [*ours[: self._settings.max_length - 1], highest]

    def _scores(self, model: str, ids: list[int], sampling: Mapping[str, Any] | None = None) -> Scores:
        """Score the probe."""
        top = self._server.top
        reply = self._ask(self._api.path, self._api.request(model, ids, top, sampling))
        if reply.status != 200:
            raise self._refused(reply)
        try:
            return self._api.read(reply.body, ids, np.arange(1, len(ids)), top, self._vocab_size)
        except NotLogProbsError as error:
            fix = "start vLLM with --logprobs-mode raw_logprobs" if self._server.api == "vllm" else "update the server"
            raise UserError(self._key, f"does not tell log-probabilities of the model: {error}", fix) from error
        except BadReplyError as error:
            problem = f"does not score a probe: {error}"
            raise UserError(self._key, problem, "update the server, or correct server.api") from error

    def _refused(self, reply: Reply) -> UserError:
        top, flag = self._server.top, self._api.top_flag
        if flag is not None and "max allowed" in reply.words:
            return UserError(
                f"{self._key}.top",
                f"{top} is more than the server tells ({reply.words})",
                f"start it with {flag} {top}, or lower it",
            )
        if "out of vocabulary" in reply.words:
            problem = (
                f"{self._settings.model!r} has {self._vocab_size} ids, and the server's model fewer ({reply.words})"
            )
            return UserError(f"{self._settings.key}.model", problem, "name the model that the server serves")
        return UserError(self._key, f"refuses a probe ({reply.status}): {reply.words}", "correct server.api or its URL")

    def _check_untouched(self, plain: Scores, sampled: Scores) -> None:
        """Check that options of sampling change nothing of what is said about a prompt."""
        with np.errstate(invalid="ignore"):
            spread = np.nanmean(_finite(plain.top[:, 0] - plain.top[:, -1]))
            moved = max(
                float(np.nanmean(np.abs(_finite(plain.log_probs - sampled.log_probs)))),
                float(np.nanmean(np.abs(_finite(plain.top - sampled.top)))),
            )
        # With one token told there is no distance: what moves by a tenth of a nat is no rounding either.
        if moved > _MOVED * max(float(spread), 1.0 if plain.top.shape[1] == 1 else 0.0):
            raise UserError(
                self._key,
                f"lets temperature and penalties touch log-probabilities of prompts (they move by {moved:.2g} nats)",
                "start vLLM with --logprobs-mode raw_logprobs"
                if self._server.api == "vllm"
                else "start it without options that process log-probabilities",
            )

    def _version(self) -> tuple[str | None, str | None]:
        """Ask for the engine's version, and the type of the weights, as far as the server tells."""
        if self._server.api == "vllm":
            return _text(self._ask("/version").body, "version"), None
        reply = self._ask("/server_info")
        if reply.status == 404:
            reply = self._ask("/get_server_info")
        return _text(reply.body, "version"), _text(reply.body, "quantization") or _text(reply.body, "dtype")


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _text(body: Any, key: str) -> str | None:
    found = body.get(key) if isinstance(body, dict) else None
    return found if isinstance(found, str) else None
