"""Promotion of a version that is no worse: comparison, decision, record, and the move of the registry's alias."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from uld_ds.errors import RunError, UserError
from uld_ds.registry.links import link_all

BITS_PER_BYTE = "bits_per_byte"
_PREFIX = "promotion."
_TAG_LIMIT = 5000


@dataclass(frozen=True)
class Comparison:
    """One metric of candidate and incumbent; None for the latter where no version holds the alias."""

    metric: str
    candidate: float
    incumbent: float | None

    @property
    def lower_is_better(self) -> bool:
        """Whether a lower value is the better one: it is for bits per byte; scores are percentages."""
        return self.metric == BITS_PER_BYTE

    def is_worse(self, tolerance: float) -> bool:
        """Tell whether the candidate is worse by more than ``tolerance``, a share of the incumbent's value."""
        if self.incumbent is None:
            return False
        loss = self.candidate - self.incumbent if self.lower_is_better else self.incumbent - self.candidate
        return loss > tolerance * abs(self.incumbent)


def compared(
    candidate: Mapping[str, Any], incumbent: Mapping[str, Any] | None, *, scored: bool = True
) -> list[Comparison]:
    """Compare two evaluations metric by metric: bits per byte and, if ``scored``, scores of answers.

    Args:
        candidate: result of ``uld-ds evaluate`` for the candidate.
        incumbent: result of ``uld-ds evaluate`` for the version that holds the alias; None without one.
        scored: whether scores of answers are compared, too.

    Raises:
        RunError: there is nothing to compare.
    """
    theirs = {} if incumbent is None else values_of(incumbent, scored=scored)
    ours = values_of(candidate, scored=scored)
    found = [Comparison(metric, value, theirs.get(metric)) for metric, value in ours.items()]
    if not found:
        raise RunError("the held-out rows have no answers to measure, and no metric was scored")
    return found


def values_of(evaluation: Mapping[str, Any], *, scored: bool) -> dict[str, float]:
    """Collect the metrics of an evaluation, by name: bits per byte and, if ``scored``, scores of answers."""
    bits = evaluation["bits_per_byte"]
    return {**({BITS_PER_BYTE: bits["mean"]} if bits else {}), **(evaluation["scores"] if scored else {})}


def version_named(client: mlflow.MlflowClient, name: str, version: str) -> ModelVersion:
    """Get a version of a registered model by its number.

    Raises:
        UserError: there is none.
    """
    try:
        return client.get_model_version(name, version)
    except MlflowException as error:
        known = [str(found.version) for found in _versions(client, name)]
        problem = f"{name!r} has no version {version}" if known else f"no registered model {name!r}"
        fix = f"choose one of {', '.join(known)}" if known else "correct the name, or MLFLOW_TRACKING_URI"
        raise UserError("VERSION" if known else "NAME", problem, fix) from error


def version_with_alias(client: mlflow.MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """Get the version that holds an alias now, or None."""
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException:
        return None


def _versions(client: mlflow.MlflowClient, name: str) -> list[ModelVersion]:
    return sorted(client.search_model_versions(f"name = '{name}'"), key=lambda version: int(version.version))


def promote(
    client: mlflow.MlflowClient,
    candidate: ModelVersion,
    incumbent: ModelVersion | None,
    alias: str,
    comparisons: list[Comparison],
    *,
    tolerance: float,
    data_digest: str,
    forced: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Write the comparison to both versions and move the alias, if the candidate is no worse.

    Args:
        client: client of the registry.
        candidate: version that is to get the alias.
        incumbent: version that held the alias when the comparison began.
        alias: name of the alias.
        comparisons: metrics of both versions.
        tolerance: share of the incumbent's value by which a metric may be worse.
        data_digest: digest of the held-out rows that both were measured on.
        forced: who moves the alias all the same, and why.

    Returns:
        What was decided, as plain values.

    Raises:
        RunError: the candidate is worse and nobody forces it, or the alias has moved meanwhile.
    """
    worse = [comparison.metric for comparison in comparisons if comparison.is_worse(tolerance)]
    moved = not worse or forced is not None
    record = {
        "alias": alias,
        "candidate": str(candidate.version),
        "incumbent": None if incumbent is None else str(incumbent.version),
        "metrics": {c.metric: {"candidate": c.candidate, "incumbent": c.incumbent} for c in comparisons},
        "worse": worse,
        "tolerance": tolerance,
        "held_out_digest": data_digest,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "moved": moved,
        **({"forced_by": forced[0], "reason": forced[1]} if forced is not None and worse else {}),
    }
    now = version_with_alias(client, candidate.name, alias)
    if _number(now) != _number(incumbent):
        raise RunError(f"{candidate.name}@{alias} has moved to version {_number(now)} meanwhile: promote again")
    tag, text = f"{_PREFIX}{alias}", json.dumps(record)[:_TAG_LIMIT]
    for version in filter(None, (candidate, incumbent)):
        client.set_model_version_tag(version.name, version.version, tag, text)
        link_all(client, version)  # older versions of uld-ds left some out
    if not moved:
        told = ", ".join(_told(c) for c in comparisons if c.metric in worse)
        raise RunError(
            f"version {candidate.version} is worse than {_number(incumbent)}, which keeps {alias!r}: {told}; "
            f"tolerance {tolerance:.1%} (--tolerance), or --force --reason TEXT"
        )
    # One request: whoever follows the alias meets the old version or the new one.
    client.set_registered_model_alias(candidate.name, alias, candidate.version)
    return record


def _number(version: ModelVersion | None) -> str | None:
    return None if version is None else str(version.version)


def _told(comparison: Comparison) -> str:
    return f"{comparison.metric} {comparison.candidate:.4f} against {comparison.incumbent:.4f}"
