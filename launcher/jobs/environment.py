"""Environment variables of a job. All of them are shown to whoever sees Ray's dashboard: no secrets among them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from uld_ds.errors import UserError
from uld_ds.recipe import ENVIRONMENT_PREFIX
from uld_ds.utils.redaction import Redactor, is_secret_name

STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
"""Variable of the job that tells Ray the seconds between SIGTERM and SIGKILL."""
RAY_STOP_WAIT_SECONDS = 3
"""Seconds between SIGTERM and SIGKILL that Ray leaves by default."""
SECONDS_AFTER_GRACE = 30
"""Seconds for what follows the last checkpoint: the run's record, leaving the cluster."""
KEPT_THERE = (
    "give it to the nodes' own environment instead: set it where Ray is started, or in a Kubernetes Secret "
    "(docs/cluster.md)"
)
_REFERENCE = re.compile(r"oc\.env:\s*([A-Za-z_]\w*)\s*(,)?")


def stop_wait(grace_seconds: float) -> int:
    """Compute the seconds between SIGTERM and SIGKILL that a run with this grace period needs."""
    return math.ceil(grace_seconds) + SECONDS_AFTER_GRACE


def job_environment(chosen: Sequence[str], grace_seconds: float) -> dict[str, str]:
    """Collect the variables that a job gets: those chosen, all that override the recipe, and the time to stop.

    Args:
        chosen: ``NAME`` for this process's value, or ``NAME=VALUE``.
        grace_seconds: the recipe's.

    Raises:
        UserError: a variable is not set, is no variable, holds a secret, or leaves too short a time to stop.
    """
    overrides = {name: value for name, value in os.environ.items() if name.startswith(ENVIRONMENT_PREFIX)}
    for name, value in overrides.items():
        _check_no_secret(name, name, value)
    named = dict(_named(item) for item in chosen)
    needed = stop_wait(grace_seconds)
    given = named.get(STOP_WAIT, str(needed))
    if not given.isdigit() or int(given) < needed:
        raise UserError(
            "--env",
            f"{STOP_WAIT}={given} is shorter than cluster.grace_seconds {grace_seconds:g} and {SECONDS_AFTER_GRACE}",
            "leave it out, or lower cluster.grace_seconds",
        )
    return {STOP_WAIT: given, **overrides, **named}


def _named(item: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise UserError("--env", f"{name!r} is no variable's name", "write --env NAME or --env NAME=VALUE")
    if not equals:
        if name not in os.environ:
            raise UserError("--env", f"{name} is not set here", f"set it, or write --env {name}=VALUE")
        value = os.environ[name]
    _check_no_secret("--env", name, value)
    return name, value


def _check_no_secret(key: str, name: str, value: str) -> None:
    """Check that a variable holds no secret.

    Raises:
        UserError: it does; the message does not show the value.
    """
    if is_secret_name(name):
        raise UserError(key, f"{name} is a secret by its name; a job's variables are shown in Ray's pages", KEPT_THERE)
    if holds_secret(value):
        raise UserError(key, f"{name} holds a secret; a job's variables are shown in Ray's pages", KEPT_THERE)


def holds_secret(text: str) -> bool:
    """Tell whether a text has a password, a signature or a token of a known shape in it."""
    return Redactor({}).text(text) != text


def check_overrides(overrides: Sequence[str]) -> None:
    """Check that no secret is among ``key=value`` overrides: the job's command line is shown, too.

    Raises:
        UserError: there is one.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        if holds_secret(value) or is_secret_name(key):
            raise UserError("--set", f"{key} holds a secret; a job's command is shown in Ray's pages", KEPT_THERE)


def referenced_variables(recipe: Path) -> list[str]:
    """List the variables without a default that a recipe's text refers to."""
    text = recipe.read_text(encoding="utf-8", errors="replace")
    return sorted({name for name, has_default in _REFERENCE.findall(text) if not has_default})
