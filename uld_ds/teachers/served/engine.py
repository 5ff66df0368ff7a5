"""An engine behind a server: one protocol, one client, one model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from uld_ds.recipe import NamedTeacherSettings, ServerSettings
from uld_ds.recipe.models import ONLY_TEACHER
from uld_ds.teachers.served.client import Client
from uld_ds.teachers.served.scores import Api, Scores
from uld_ds.teachers.served.sglang import SglangApi
from uld_ds.teachers.served.vllm import VllmApi

APIS: dict[str, type[Api]] = {"vllm": VllmApi, "sglang": SglangApi}
"""Protocols, by the values of ``teacher.server.api``."""
TOKEN_VARIABLE = "ULD_DS_TEACHER_TOKEN"  # noqa: S105 (where a token is, not one)
"""Environment variable of the server's bearer token; that of one of several teachers has its name behind it."""


def token_variable(settings: NamedTeacherSettings) -> str:
    """Name the environment variable that holds the bearer token of a teacher's server."""
    if settings.name == ONLY_TEACHER:
        return TOKEN_VARIABLE
    return f"{TOKEN_VARIABLE}_{settings.name.upper().replace('-', '_')}"


def open_client(settings: NamedTeacherSettings, variable: str | None = None) -> Client:
    """Open a client of a served teacher's server, with the token that the environment has for it.

    Args:
        settings: the teacher.
        variable: name of the token's variable, where the recipe's own name of the teacher is not in its settings.
    """
    assert settings.server is not None
    return Client(settings.server, os.environ.get(variable or token_variable(settings), "").strip() or None)


class ServedEngine:
    """A model behind a server.

    Args:
        client: client of the server.
        settings: how it is asked.
        model: the server's name of the model.
        vocab_size: ids that the model knows.
    """

    def __init__(self, client: Client, settings: ServerSettings, model: str, vocab_size: int) -> None:
        self._client = client
        self._api = APIS[settings.api]()
        self._model = model
        self._top = settings.top
        self._vocab_size = vocab_size

    def score(self, ids: Sequence[int], positions: np.ndarray) -> Future[Scores]:
        """Begin to score a text; the future raises what went wrong."""
        return self._client.submit(
            self._api.path,
            self._api.request(self._model, ids, self._top),
            tokens=len(ids),
            read=lambda reply: self._api.read(reply, ids, positions, self._top, self._vocab_size),
        )

    def close(self) -> None:
        """Close all connections; what is under way is given up."""
        self._client.close()
