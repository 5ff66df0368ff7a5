"""The connection to Ray: the cluster that is there, or one of our own on this machine."""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray._private.state import available_resources_per_node
from ray.job_config import JobConfig

from launcher.cluster.actor_checks import check_actors
from launcher.cluster.placement import Node, can_hold_actor, can_hold_one, check_fits
from launcher.cluster.shared_storage import check_shared
from launcher.cluster.versions import check_versions
from launcher.drivers.preflight import check_port
from uld_ds.errors import RunError, UserError, one_line
from uld_ds.recipe import ClusterSettings
from uld_ds.recipe.rollouts import RolloutActorSettings
from uld_ds.utils.files import in_home

RUN_NAME = "uld_ds.run"
RUN_DIR = "uld_ds.run_dir"
"""Key in the metadata of a Ray job: the run's folder."""
_SECONDS_FOR_ROOM = 60.0
# How long Ray's processes call for a head that has died. On one machine it does not come back, and until they give up,
# workers hold their memory, also that of a GPU.
_SECONDS_FOR_A_DEAD_HEAD = 10
_TOKEN_VARIABLES = {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
AUTHENTICATION_FIX = "set RAY_AUTH_MODE as the cluster has it, and RAY_AUTH_TOKEN (or ~/.ray/auth_token) to its token"


@contextmanager
def connected(settings: ClusterSettings, folder: Path, actors: RolloutActorSettings | None = None) -> Iterator[None]:
    """Connect to the cluster of RAY_ADDRESS, or to one that this process starts on loopback and ends.

    Args:
        settings: the recipe's.
        folder: of the run; ``uld-ds jobs`` finds it in what Ray knows of this command.
        actors: the recipe's that sample rollouts beside the workers, if there are any.

    Raises:
        UserError: nobody answers at RAY_ADDRESS, or the dashboard's port is taken.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        _join(address, folder)
    else:
        _start(settings, actors)
    try:
        yield
    finally:
        ray.shutdown()


def _join(address: str, folder: Path) -> None:
    # Ray lets the metadata of a job that was submitted win.
    about = JobConfig(metadata={RUN_NAME: folder.name, RUN_DIR: str(folder)})
    try:
        ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, job_config=about)
    except ray.exceptions.AuthenticationError as error:
        problem = f"the Ray cluster at {address!r} refuses this process"
        raise UserError("RAY_ADDRESS", problem, AUTHENTICATION_FIX) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = one_line(error)
        if _answers(address):
            # Ray gives up alike on a wrong token and on a server that is none of its own.
            problem = f"something answers at {address!r}, but no Ray cluster lets this process in ({reason})"
            raise UserError("RAY_ADDRESS", problem, f"{AUTHENTICATION_FIX}; or correct the address") from error
        raise UserError("RAY_ADDRESS", f"no Ray cluster at {address!r} ({reason})", "correct or unset it") from error


def _answers(address: str) -> bool:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not port.isdigit():
        return False
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=3):
            return True
    except (OSError, OverflowError):
        return False


def check_dashboard_port(settings: ClusterSettings) -> None:
    """Check that the dashboard's port is free, if this process will start Ray.

    Raises:
        UserError: the port is taken.
    """
    if not ray.is_initialized() and not os.environ.get("RAY_ADDRESS"):
        check_port(settings.dashboard_port, "cluster.dashboard_port")


def _have_token() -> None:
    """Make a token for a cluster of this process where Ray 2.60 cannot keep one: without a home folder to write to."""
    folder = in_home("~/.ray")
    if _TOKEN_VARIABLES & os.environ.keys() or (folder / "auth_token").is_file():
        return
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _start(settings: ClusterSettings, actors: RolloutActorSettings | None) -> None:
    _have_token()
    beside = 0.0 if actors is None else actors.count * actors.cpus
    needed = math.ceil(settings.workers * settings.cpus_per_worker + beside)
    ray.init(
        # Ray counts what it is told: more workers than cores are slow, not impossible.
        num_cpus=max(os.cpu_count() or 1, needed),
        include_dashboard=settings.dashboard_port is not None,
        dashboard_port=settings.dashboard_port or 8265,
        dashboard_host="127.0.0.1",
        logging_level=logging.ERROR,
        log_to_driver=False,
        _node_ip_address="127.0.0.1",
        _system_config={"gcs_rpc_server_reconnect_timeout_s": _SECONDS_FOR_A_DEAD_HEAD},
    )


def prepare_cluster(
    settings: ClusterSettings,
    folder: Path,
    note: Callable[[str], None],
    actors: RolloutActorSettings | None = None,
) -> bool:
    """Wait until the connected cluster can run the worker group, and tell whether workers get a GPU each.

    Args:
        settings: the recipe's.
        folder: of the run; every node that may get a worker must see it.
        note: told what is being waited for.
        actors: the recipe's that sample rollouts beside the workers, if there are any.

    Raises:
        UserError: the cluster can never hold the worker group and the actors, the folder is not shared by its nodes,
            they have other versions of libraries, or the actors lack what they need.
        RunError: what the worker group needs stayed busy, or a node does not answer.
    """
    on_gpu = _wait_for_nodes(settings, note, actors)
    _wait_for_room(settings, note, actors, on_gpu=on_gpu)
    actor_hosts = _actor_hosts(settings, actors, on_gpu=on_gpu)
    hosts = hosts_of_workers(settings, actor_hosts, on_gpu=on_gpu)
    check_shared(folder, hosts)
    check_versions(hosts)
    if actors is not None:
        check_actors(actors, actor_hosts)
    return on_gpu


def accelerator_for(
    settings: ClusterSettings, nodes: Sequence[Node], actors: RolloutActorSettings | None = None
) -> bool:
    """Tell whether workers get a GPU each on these nodes.

    Raises:
        UserError: the worker group, or the actors beside it, cannot be placed on them, with what is missing.
    """
    gpus = sum(node.resources.get("GPU", 0) for node in nodes)
    on_gpu = settings.accelerator == "gpu" or (settings.accelerator == "auto" and gpus >= settings.workers)
    check_fits(settings, nodes, on_gpu=on_gpu, actors=actors)
    return on_gpu


def _wait_for_nodes(
    settings: ClusterSettings, note: Callable[[str], None], actors: RolloutActorSettings | None
) -> bool:
    deadline = time.monotonic() + settings.wait_seconds
    waiting = False
    while True:
        try:
            return accelerator_for(settings, list(_nodes().values()), actors)
        except UserError as error:
            if time.monotonic() >= deadline:
                raise
            if not waiting:
                note(f"waiting for nodes: {error}")
        waiting = True
        time.sleep(1)


def _wait_for_room(
    settings: ClusterSettings, note: Callable[[str], None], actors: RolloutActorSettings | None, *, on_gpu: bool
) -> None:
    """Wait until the worker group's resources are free.

    Others may hold what the cluster has; the run before this one may only just be leaving.
    """
    seconds = max(settings.wait_seconds, _SECONDS_FOR_ROOM)
    deadline = time.monotonic() + seconds
    waiting = False
    while True:
        try:
            return check_fits(settings, list(_nodes(free=True).values()), on_gpu=on_gpu, actors=actors)
        except UserError as error:
            if time.monotonic() >= deadline:
                raise RunError(
                    f"others kept the cluster busy for {seconds:.0f} s, of what is free: {error} "
                    "(cluster.wait_seconds waits longer)"
                ) from error
            if not waiting:
                note(f"waiting for room, others use the cluster; of what is free: {error}")
        waiting = True
        time.sleep(1)


def _nodes(*, free: bool = False) -> dict[str, Node]:
    """List living nodes by Ray's id, with all they have or with what is free."""
    available = available_resources_per_node() if free else {}
    return {
        node["NodeID"]: Node(
            address=node["NodeManagerAddress"],
            resources=available.get(node["NodeID"], {}) if free else node["Resources"],
            labels=node.get("Labels") or {},
        )
        for node in ray.nodes()
        if node["Alive"]
    }


def hosts_of_workers(settings: ClusterSettings, actor_hosts: Mapping[str, str], *, on_gpu: bool) -> dict[str, str]:
    """Collect the addresses of nodes that may get a worker or an actor, and of the one where this process writes."""
    here = ray.get_runtime_context().get_node_id()
    return {
        node: found.address
        for node, found in _nodes().items()
        if node == here or node in actor_hosts or can_hold_one(settings, found, on_gpu=on_gpu)
    }


def _actor_hosts(settings: ClusterSettings, actors: RolloutActorSettings | None, *, on_gpu: bool) -> dict[str, str]:
    """Collect the addresses of nodes that may get an actor."""
    return {
        node: found.address
        for node, found in _nodes().items()
        if can_hold_actor(settings, found, actors, on_gpu=on_gpu)
    }
