"""The sections of a recipe about a run's folder, its cluster, its tracking and the model registry."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from uld_ds.recipe.base import Strict


class RunSettings(Strict):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=120)]
    """Names the run's folder; running the same name again resumes it."""
    storage: str = "runs"
    """Folder that holds runs. Every node must see it under the same path."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Fixes data order, initial weights and dropout."""


class ClusterSettings(Strict):
    workers: Annotated[int, Field(ge=1)] = 1
    """Data-parallel ranks; teacher and student are sharded across all of them."""
    accelerator: Literal["auto", "gpu", "cpu"] = "auto"
    """One GPU per worker, or none. ``auto``: GPUs when the cluster has one for each worker."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    threads_per_worker: Annotated[int, Field(ge=1)] = 1
    """Torch threads. More than there are free cores makes everything slower."""
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray places the workers: on few nodes or many; strictly on one node, or on a node each."""
    accelerator_type: str | None = None
    """Only on nodes with this kind of accelerator, as Ray names it, e.g. ``H100``."""
    resources_per_worker: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """More of Ray's resources for each worker: ``memory`` in bytes, or a cluster's own, e.g. ``{fast_disk: 1}``."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Only on nodes with these Ray labels, e.g. ``{pool: training}``; also ``"!x"``, ``"in(x, y)"``."""
    wait_seconds: Annotated[float, Field(ge=0)] = 0
    """How long to wait for nodes that are still to come (autoscaling), or longer than a minute for busy ones; also for
    a served teacher's server, when the run begins."""
    grace_seconds: Annotated[float, Field(ge=0)] = 120
    """How long a run that SIGTERM tells to stop may take for the step it is in and a last checkpoint."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Restarts from the last checkpoint before the run counts as failed; -1 without end."""
    hang_seconds: Annotated[float, Field(ge=1)] = 300
    """A worker that answers nothing for so long (stopped, swapped out, its node frozen) counts as one that failed."""
    dashboard_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Serve Ray's dashboard here when this command starts Ray itself."""

    def ray_labels(self) -> dict[str, str]:
        """Return the label selectors as Ray must have them.

        Ray takes a space in ``in(x, y)`` for a part of the value: no node would match, and it would wait for ever.
        """
        return {label: re.sub(r"\s+", "", selector) for label, selector in self.labels.items()}

    @model_validator(mode="after")
    def _resources_have_one_name(self) -> ClusterSettings:
        for name, key in {"CPU": "cpus_per_worker", "GPU": "accelerator"}.items():
            if name in self.resources_per_worker:
                raise ValueError(f"cluster.resources_per_worker.{name} is set by cluster.{key}")
        return self


class TrackingSettings(Strict):
    uri: str | None = None
    """MLflow tracking URI. Default: MLFLOW_TRACKING_URI, else sqlite in ``run.storage``."""
    experiment: Annotated[str, Field(min_length=1, max_length=500)] = "uld-ds"
    patience: Annotated[float, Field(ge=0)] = 600.0
    """Seconds that a trained student waits for a server that does not answer, before the command gives up."""
    system_metrics: bool = True
    """Record what every node's processors, memory, disk and network do."""
    system_metrics_every: Annotated[float, Field(gt=0)] = 10.0
    """Seconds between two samples."""


class ProfileSettings(Strict):
    steps: list[Annotated[int, Field(ge=1)]] = Field(default_factory=list)
    """Optimizer steps that PyTorch's profiler records on the first worker, into ``profile`` in the run's folder."""


class RegistrySettings(Strict):
    model_name: Annotated[str, Field(pattern=r"^[^/:'\"]+$")] | None = None
    """Registered model's name; leave it out to export without registering."""
    alias: Annotated[str, Field(pattern=r"^[A-Za-z][\w-]*$")] = "candidate"
    """Alias moved to the new version."""

    @model_validator(mode="after")
    def _alias_is_free(self) -> RegistrySettings:
        if self.alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", self.alias):
            raise ValueError(f"registry.alias {self.alias!r} is MLflow's own name for a version")
        return self
