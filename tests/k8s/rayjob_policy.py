"""Rules of our own for a RayJob: it ends, it can be retried, its head does not train, its recipe fits its pods."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.cluster.actor_checks import rollout_actors
from launcher.cluster.placement import Node, can_hold_one, check_fits
from tests.k8s.rendering import Object, only
from uld_ds.errors import UserError
from uld_ds.recipe import Recipe, load_recipe

ENTRYPOINT = "python -m launcher train recipe.yaml"
PRE_STOP = ["python", "-m", "launcher.drain", "recipe.yaml"]
GPU = "nvidia.com/gpu"
QUEUE = "kueue.x-k8s.io/queue-name"
_UNITS = {"": 1, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def recipe_text(objects: Sequence[Object]) -> str:
    """The ConfigMap's recipe."""
    return str(only(objects, "ConfigMap", "uld-ds-recipe")["data"]["recipe.yaml"])


def recipe_of(objects: Sequence[Object]) -> Recipe:
    """The same, loaded as a run would load it.

    Raises:
        UserError: it is no recipe.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(recipe_text(objects))
        return load_recipe(file, environment={})


def rayjob_problems(objects: Sequence[Object]) -> list[str]:
    """What breaks our rules in the one RayJob of a kustomization; empty if nothing does."""
    job = only(objects, "RayJob")
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    environment = only(objects, "ConfigMap", "uld-ds-environment")["data"]
    problems = [*_end(spec), *_head(cluster["headGroupSpec"]), *_worker_group(cluster), *_queue(job)]
    if spec.get("entrypoint") != ENTRYPOINT:
        problems.append(f"entrypoint: {spec.get('entrypoint')!r} is not {ENTRYPOINT!r}")
    if f"ray=={cluster.get('rayVersion')}" not in _CONSTRAINTS.read_text().splitlines():
        problems.append(f"rayVersion: {cluster.get('rayVersion')} is not that of constraints.txt, which images have")
    try:
        recipe = recipe_of(objects)
    except UserError as error:
        return [*problems, f"recipe: {error}"]
    return [*problems, *_recipe(recipe, cluster), *_grace(recipe, cluster, environment)]


def _end(spec: Mapping[str, Any]) -> Iterator[str]:
    if not spec.get("activeDeadlineSeconds"):
        yield "activeDeadlineSeconds: a run that hangs would never end"
    if not spec.get("shutdownAfterJobFinishes") or not spec.get("ttlSecondsAfterFinished"):
        yield "shutdownAfterJobFinishes, ttlSecondsAfterFinished: the cluster would stay when the run is over"
    if not 1 <= spec.get("backoffLimit", 0) <= 5:
        yield "backoffLimit: a lost cluster ends the run, or a broken recipe is tried for ever"
    if spec.get("submissionMode") != "K8sJobMode":
        yield "submissionMode: its logs and status are not where k8s/README.md says"
    if "submitterPodTemplate" not in spec:
        yield "submitterPodTemplate: the operator's own is not restricted"


def _head(group: Mapping[str, Any]) -> Iterator[str]:
    if group.get("rayStartParams", {}).get("num-cpus") != "0":
        yield "head: a worker of the worker group could come to it: rayStartParams.num-cpus is not '0'"
    resources = group["template"]["spec"]["containers"][0].get("resources", {})
    if any(GPU in part for part in resources.values()) or "num-gpus" in group.get("rayStartParams", {}):
        yield "head: holds a GPU that nothing uses"


def _worker_group(cluster: Mapping[str, Any]) -> Iterator[str]:
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        yield "authOptions: without a token, whoever reaches the dashboard's port runs what they like"
    if cluster.get("enableInTreeAutoscaling"):
        yield "enableInTreeAutoscaling: a worker group has one size"
    if "gcsFaultToleranceOptions" in cluster:
        yield "gcsFaultToleranceOptions: a run restarts from its checkpoint instead"
    for group in cluster["workerGroupSpecs"]:
        sizes = [group.get(field) for field in ("minReplicas", "replicas", "maxReplicas")]
        if len(set(sizes)) != 1 or not sizes[0]:
            yield f"{group['groupName']}: minReplicas, replicas, maxReplicas are {sizes}: a worker group has one size"


def _queue(job: Object) -> Iterator[str]:
    """What Kueue asks of a RayJob that it is to admit."""
    if QUEUE not in job["metadata"].get("labels", {}):
        return
    spec = job["spec"]
    if not spec.get("shutdownAfterJobFinishes"):
        yield "Kueue: needs shutdownAfterJobFinishes"
    if len(spec["rayClusterSpec"]["workerGroupSpecs"]) > 7:
        yield "Kueue: takes at most 7 groups of workers"


def _recipe(recipe: Recipe, cluster: Mapping[str, Any]) -> Iterator[str]:
    nodes = worker_nodes(cluster)
    gpus = sum(node.resources["GPU"] for node in nodes)
    on_gpu = recipe.cluster.accelerator == "gpu"
    actors = rollout_actors(recipe)
    try:
        check_fits(recipe.cluster, nodes, on_gpu=on_gpu, actors=actors)
    except UserError as error:
        yield f"recipe does not fit the workers: {error}"
    sampling = 0.0 if actors is None else actors.count * actors.gpus_each(on_gpu=on_gpu)
    wanted = (recipe.cluster.workers if on_gpu else 0) + sampling
    if gpus != wanted:
        yield f"recipe takes {wanted:g} GPUs, the workers have {gpus:g}"
    training = sum(node.resources["GPU"] for node in nodes if can_hold_one(recipe.cluster, node, on_gpu=on_gpu))
    if on_gpu and training > recipe.cluster.workers:
        yield f"workers could be placed on {training:g} GPUs, some of which are for the actors that sample"
    for group in cluster["workerGroupSpecs"]:
        container = group["template"]["spec"]["containers"][0]
        volumes = {
            volume["name"] for volume in group["template"]["spec"]["volumes"] if "persistentVolumeClaim" in volume
        }
        shared = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] in volumes]
        if not any(Path(recipe.run.storage).is_relative_to(path) for path in shared):
            yield f"recipe: run.storage {recipe.run.storage!r} is not on the shared volume ({', '.join(shared)})"


def worker_nodes(cluster: Mapping[str, Any]) -> list[Node]:
    """The workers' pods as Ray will count them; the head has nothing for a worker group."""
    return [
        Node(
            address=f"{group['groupName']}-{index}",
            resources={
                "CPU": math.ceil(_amount(limits.get("cpu", "0"))),
                "GPU": _amount(limits.get(GPU, "0")),
                "memory": _amount(limits.get("memory", "0")),
            },
            labels=group.get("labels") or {},
        )
        for group in cluster["workerGroupSpecs"]
        for limits in [group["template"]["spec"]["containers"][0]["resources"].get("limits", {})]
        for index in range(group["replicas"])
    ]


def _amount(quantity: str) -> float:
    """A Kubernetes quantity, e.g. ``500m`` or ``6Gi``, as a number."""
    number, unit = re.fullmatch(r"([\d.]+)(\w*)", str(quantity)).groups()  # type: ignore[union-attr]
    return float(number) * _UNITS[unit]


def _grace(recipe: Recipe, cluster: Mapping[str, Any], environment: Mapping[str, str]) -> Iterator[str]:
    """A run that is told to stop needs its grace period, and everything around it must wait longer."""
    grace = recipe.cluster.grace_seconds
    wait = float(environment.get("RAY_JOB_STOP_WAIT_TIME_S", 3))
    if wait <= grace:
        yield f"RAY_JOB_STOP_WAIT_TIME_S {wait:g} is not more than cluster.grace_seconds {grace:g}"
    groups = [("head", cluster["headGroupSpec"])]
    groups += [(group["groupName"], group) for group in cluster["workerGroupSpecs"]]
    for name, group in groups:
        seconds = group["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        if seconds <= wait:
            yield f"{name}: terminationGracePeriodSeconds {seconds} is not more than RAY_JOB_STOP_WAIT_TIME_S {wait:g}"
        hook = group["template"]["spec"]["containers"][0].get("lifecycle", {}).get("preStop", {})
        if hook.get("exec", {}).get("command") != PRE_STOP:
            yield f"{name}: the first signal ends Ray before a last checkpoint: preStop is not {' '.join(PRE_STOP)!r}"
