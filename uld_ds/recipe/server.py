"""The section of a recipe about the inference engine that a served teacher runs in."""

from __future__ import annotations

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from uld_ds.recipe.base import Strict


class ServerSettings(Strict):
    """The inference engine that a teacher with ``source: served`` runs in.

    A bearer token is never here: it is read from the environment variable ``ULD_DS_TEACHER_TOKEN``, that of one of
    several teachers from ``ULD_DS_TEACHER_TOKEN_NAME``.
    """

    url: str
    """Where it answers, e.g. ``http://teacher:8000``, over http or https."""
    api: Literal["vllm", "sglang"]
    """``vllm``: its server with OpenAI's interface (``/v1/completions``). ``sglang``: its own (``/generate``)."""
    name: Annotated[str, Field(min_length=1)] | None = None
    """What the server calls the model. Default: the only one that it serves."""
    top: Annotated[int, Field(ge=1, le=65535)] = 64
    """Likeliest tokens to ask for at each position; what all others share is known as a mass alone. vLLM allows 20
    unless it is started with ``--max-logprobs 64``."""
    concurrency: Annotated[int, Field(ge=1)] = 16
    """Requests that each worker has under way at once."""
    tokens_in_flight: Annotated[int, Field(ge=1)] = 16384
    """Tokens of these requests together, which bounds the engine's memory; a longer example is alone under way."""
    timeout: Annotated[float, Field(gt=0)] = 120
    """Seconds after which a request that was not answered is made again."""
    patience: Annotated[float, Field(ge=0)] = 600
    """Seconds for which a server that is gone is waited for, before the run ends at its last checkpoint."""

    @field_validator("url")
    @classmethod
    def _is_a_place_without_secrets(cls, url: str) -> str:
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            raise ValueError("it is no URL: write e.g. http://teacher:8000") from error
        if parts.username is not None or parts.password is not None:
            # It is not shown: there is a password in it.
            raise ValueError(
                "it has a user or a password in it, which would stand in every record of the run: leave them out, and "
                "give a token in the environment variable ULD_DS_TEACHER_TOKEN"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https URL: write e.g. http://teacher:8000")
        if parts.query or parts.fragment:
            raise ValueError("it has a query or a fragment: write the place alone, e.g. http://teacher:8000")
        return url

    @property
    def base(self) -> str:
        """The URL that paths of either interface are appended to: without a ``/v1`` and slashes at its end."""
        return self.url.rstrip("/").removesuffix("/v1").rstrip("/")
