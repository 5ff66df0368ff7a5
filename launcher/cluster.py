"""Ray: the cluster that is there, or one of our own on this machine."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from launcher.preflight import check_port
from uld_ds.errors import UserError
from uld_ds.recipe import ClusterSettings


@contextmanager
def connected(settings: ClusterSettings) -> Iterator[None]:
    """Connected to the cluster of RAY_ADDRESS, or to one that this process starts on loopback and ends.

    Raises:
        UserError: nobody answers at RAY_ADDRESS, or the dashboard's port is taken.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _join(address)
    else:
        _start(settings)
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError("RAY_ADDRESS", f"no Ray cluster at {address!r} ({reason})", "correct or unset it") from error


def check_dashboard_port(settings: ClusterSettings) -> None:
    """Raises UserError when this process will start Ray and the dashboard's port is taken."""
    if not ray.is_initialized() and not os.environ.get("RAY_ADDRESS"):
        check_port(settings.dashboard_port, "cluster.dashboard_port")


def _start(settings: ClusterSettings) -> None:
    needed = math.ceil(settings.workers * settings.cpus_per_worker)
    ray.init(
        # Ray counts what it is told: more workers than cores are slow, not impossible.
        num_cpus=max(os.cpu_count() or 1, needed),
        include_dashboard=settings.dashboard_port is not None,
        dashboard_port=settings.dashboard_port or 8265,
        dashboard_host="127.0.0.1",
        logging_level=logging.ERROR,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
    )


def choose_accelerator(settings: ClusterSettings) -> bool:
    """Whether workers get a GPU each, after checking that the connected cluster can hold them.

    Raises:
        UserError: it cannot, with what is missing.
    """
    return accelerator_for(settings, ray.cluster_resources())


def accelerator_for(settings: ClusterSettings, total: Mapping[str, float]) -> bool:
    """The decision itself, given what the whole cluster has of Ray's ``CPU`` and ``GPU``."""
    gpus = total.get("GPU", 0)
    on_gpu = settings.accelerator == "gpu" or (settings.accelerator == "auto" and gpus >= settings.workers)
    if on_gpu and gpus < settings.workers:
        raise UserError(
            "cluster.workers",
            f"{settings.workers} workers need a GPU each, the cluster has {gpus:g}",
            "lower it",
        )
    cpus = settings.workers * settings.cpus_per_worker
    if total.get("CPU", 0) < cpus:
        raise UserError(
            "cluster.workers",
            f"{settings.workers} workers x cluster.cpus_per_worker {settings.cpus_per_worker:g} need {cpus:g} CPUs, "
            f"the cluster has {total.get('CPU', 0):g}",
            "lower one of them",
        )
    return on_gpu
