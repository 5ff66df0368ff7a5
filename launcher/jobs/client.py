"""A connection to the job API of a cluster, and its errors in words."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from launcher.cluster.connect import AUTHENTICATION_FIX
from uld_ds.errors import RunError, UserError, message_lines, one_line

ADDRESS_FIX = "give the address of the cluster's dashboard, e.g. http://127.0.0.1:8265"
# A first line and the last one of a traceback.
_MOST_CHARACTERS = 500
# Ray lets either of them win over the address that it was given.
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


def connect(address: str | None) -> JobSubmissionClient:
    """Connect to a cluster's job API, and check that it answers.

    Args:
        address: of the cluster's dashboard.

    Raises:
        UserError: no address, nobody there, somebody else there, or an authentication that fails.
    """
    if address is None:
        raise UserError("--address", "is missing", ADDRESS_FIX)
    if not address.startswith(("http://", "https://")):
        raise UserError("--address", f"{address!r} is no http:// or https:// URL", ADDRESS_FIX)
    logging.getLogger("ray.dashboard.modules.dashboard_sdk").setLevel(logging.WARNING)
    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    try:
        with _without(_OVERRIDES):
            return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise UserError("--address", f"the Ray cluster at {address!r} refuses you", AUTHENTICATION_FIX) from error
    except ConnectionError as error:
        raise UserError("--address", f"nobody answers at {address!r}", ADDRESS_FIX) from error
    except (RuntimeError, ValueError, KeyError, requests.RequestException) as error:
        reason = one_line(error)
        raise UserError("--address", f"no Ray job API at {address!r} ({reason})", ADDRESS_FIX) from error


@contextmanager
def api_errors() -> Iterator[None]:
    """Turn errors of the job API into failures of one line.

    Raises:
        RunError: instead of what Ray's client raises.
    """
    try:
        yield
    except (AuthenticationError, RuntimeError, ConnectionError, requests.RequestException) as error:
        if isinstance(error, RunError):
            raise
        lines = message_lines(error)
        # The server answers with a traceback; its last line says what happened.
        reason = lines[0] if len(lines) == 1 else f"{one_line(lines[0], 100)} ... {lines[-1]}"
        raise RunError(f"Ray's job API: {one_line(reason, _MOST_CHARACTERS)}") from error


@contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)
