"""The checks find what they are for: each manifest below is broken in one place, and that is what is said."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest

from tests.k8s.controller import controller_problems
from tests.k8s.policy import policy_problems
from tests.k8s.rayjob_policy import GPU, rayjob_problems
from tests.k8s.rendering import Object, needs_kubectl, only, render
from tests.k8s.schema import kuberay_folder, schema_problems

pytestmark = needs_kubectl
rendered = functools.cache(render)
Break = Callable[[list[Object]], None]


def all_problems(objects: list[Object]) -> list[str]:
    known = [found for found in objects if kuberay_folder() is not None or found["kind"] != "RayJob"]
    refused = [problem for found in known for problem in schema_problems(found)]
    # Like the API server: what it refuses, nobody else sees.
    return refused or [
        *controller_problems(only(objects, "RayJob")),
        *rayjob_problems(objects),
        *policy_problems(objects),
    ]


def spec(objects: list[Object]) -> dict[str, Any]:
    return only(objects, "RayJob")["spec"]


def cluster(objects: list[Object]) -> dict[str, Any]:
    return spec(objects)["rayClusterSpec"]


def head(objects: list[Object]) -> dict[str, Any]:
    return cluster(objects)["headGroupSpec"]["template"]["spec"]


def workers(objects: list[Object]) -> dict[str, Any]:
    return cluster(objects)["workerGroupSpecs"][0]


def worker(objects: list[Object]) -> dict[str, Any]:
    return workers(objects)["template"]["spec"]


def container(objects: list[Object]) -> dict[str, Any]:
    return worker(objects)["containers"][0]


def server(objects: list[Object]) -> dict[str, Any]:
    return only(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]


def recipe(objects: list[Object], old: str, new: str) -> None:
    data = only(objects, "ConfigMap", "uld-ds-recipe")["data"]
    assert old in data["recipe.yaml"]
    data["recipe.yaml"] = data["recipe.yaml"].replace(old, new)


def drop(objects: list[Object], kind: str, name: str) -> None:
    objects.remove(only(objects, kind, name))


def gpu_on_head(objects: list[Object]) -> None:
    resources = head(objects)["containers"][0]["resources"]
    for part in ("limits", "requests"):
        resources[part][GPU] = "1"


def two_of_a_variable(objects: list[Object]) -> None:
    environment = container(objects)["env"]
    environment.append(copy.deepcopy(environment[0]))


def plain_password(objects: list[Object]) -> None:
    server(objects)["env"].append({"name": "DATABASE_PASSWORD", "value": "hunter2"})


def sidecar_with_template(objects: list[Object]) -> None:
    spec(objects)["submissionMode"] = "SidecarMode"


def no_deny(objects: list[Object]) -> None:
    drop(objects, "NetworkPolicy", "default-deny")


def misspelled_selector(objects: list[Object]) -> None:
    labels = only(objects, "NetworkPolicy", "uld-ds-to-mlflow")["spec"]["podSelector"]["matchLabels"]
    labels["app.kubernetes.io/component"] = "trainng"


def host_path(objects: list[Object]) -> None:
    worker(objects)["volumes"].append({"name": "disk", "hostPath": {"path": "/mnt"}})


def secret(objects: list[Object]) -> None:
    objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"password": "x"}})


def role(objects: list[Object]) -> None:
    objects.append(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "admin"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "admin"},
            "subjects": [{"kind": "ServiceAccount", "name": "uld-ds"}],
        }
    )


def connection_string(objects: list[Object]) -> None:
    data = only(objects, "ConfigMap", "mlflow-environment")["data"]
    data["MLFLOW_BACKEND_STORE_URI"] = "postgresql+psycopg2://mlflow:hunter2@mlflow-postgres:5432/mlflow"


# What only KubeRay's schema knows.
BROKEN_FOR_KUBERAY: dict[str, tuple[Break, str]] = {
    "misspelled field of a RayJob": (lambda o: spec(o).update(ttlSecondsAfterFinish=60), "'ttlSecondsAfterFinish' was"),
    "misspelled field deep in it": (lambda o: container(o).update(imagePullPolcy="Always"), "'imagePullPolcy' was"),
    "text for a number": (lambda o: workers(o).update(replicas="1"), "'1' is not of type 'integer'"),
    "authentication that is none": (lambda o: cluster(o)["authOptions"].update(mode="basic"), "'basic' is not one of"),
    "quantity that is none": (lambda o: container(o)["resources"]["limits"].update(memory="6 GB"), "'6 GB' does not"),
    "variable twice": (two_of_a_variable, "name 'MLFLOW_TRACKING_USERNAME' comes twice"),
}
BROKEN: dict[str, tuple[Break, str]] = {
    "misspelled field of a core kind": (lambda o: server(o).update(redinessProbe={}), "'redinessProbe' was unexpected"),
    # The controller.
    "name too long": (lambda o: only(o, "RayJob")["metadata"].update(name="u" * 48), "has 48 characters, more than 47"),
    "name of capitals": (lambda o: only(o, "RayJob")["metadata"].update(name="ULD"), "'ULD' is no DNS-1035 label"),
    "name that begins with a digit": (lambda o: only(o, "RayJob")["metadata"].update(name="7b"), "no DNS-1035 label"),
    "ttl without shutdown": (lambda o: spec(o).pop("shutdownAfterJobFinishes"), "needs shutdownAfterJobFinishes"),
    "wrong submission mode": (lambda o: spec(o).update(submissionMode="K8SJobMode"), "'K8SJobMode' is none of"),
    "interactive with retries": (lambda o: spec(o).update(submissionMode="InteractiveMode"), "not with Interactive"),
    "sidecar with a submitter": (sidecar_with_template, "spec.submitterPodTemplate: not with SidecarMode"),
    "cluster by selector, with retries": (
        lambda o: spec(o).update(clusterSelector={"ray.io/cluster": "mine"}),
        "spec.backoffLimit: not with clusterSelector",
    ),
    "runtime environment that is no YAML": (lambda o: spec(o).update(runtimeEnvYAML="a: [b"), "is not YAML"),
    "resources twice": (
        lambda o: cluster(o)["headGroupSpec"].update(resources={"CPU": "1"}),
        "head: resources are both in rayStartParams and in resources",
    ),
    "labels among the parameters": (
        lambda o: workers(o)["rayStartParams"].update(labels="pool=a"),
        "workers.rayStartParams.labels",
    ),
    "tokens with an old Ray": (lambda o: cluster(o).update(rayVersion="2.46.0"), "2.46.0 has no tokens yet"),
    "half a deletion strategy": (
        lambda o: spec(o).update(deletionStrategy={"onSuccess": {"policy": "DeleteCluster"}}),
        "needs both onSuccess and onFailure",
    ),
    # Our rules for a RayJob.
    "GPU on the head": (gpu_on_head, "head: holds a GPU"),
    "head that trains": (lambda o: cluster(o)["headGroupSpec"]["rayStartParams"].clear(), "could come to it"),
    "no deadline": (lambda o: spec(o).pop("activeDeadlineSeconds"), "a run that hangs"),
    "no retry": (lambda o: spec(o).pop("backoffLimit"), "backoffLimit: a lost cluster ends the run"),
    "worker group that grows": (lambda o: workers(o).update(maxReplicas=4), "[1, 1, 4]: a worker group has one size"),
    "no token": (lambda o: cluster(o).pop("authOptions"), "authOptions: without a token"),
    "another command": (lambda o: spec(o).update(entrypoint="python train.py"), "entrypoint: 'python train.py'"),
    "Ray that the image has not": (lambda o: cluster(o).update(rayVersion="2.58.0"), "not that of constraints.txt"),
    "no time for a last checkpoint": (
        lambda o: worker(o).update(terminationGracePeriodSeconds=30),
        "workers: terminationGracePeriodSeconds 30 is not more than",
    ),
    "signal before a last checkpoint": (lambda o: container(o).pop("lifecycle"), "workers: the first signal ends Ray"),
    # The recipe.
    "key that does not exist": (lambda o: recipe(o, "batch_size: 16", "batchsize: 16"), "recipe: training.batchsize"),
    "more workers than cores": (
        lambda o: recipe(o, "  workers: 2", "  workers: 2\n  cpus_per_worker: 2"),
        "2 workers x cluster.cpus_per_worker 2 need 4 CPUs, the cluster has 2",
    ),
    "more memory than the pod has": (
        lambda o: recipe(o, "  workers: 2", "  workers: 2\n  resources_per_worker: {memory: 4.0e+9}"),
        "2 workers x 4e+09 need 8e+09, the cluster has 6.44245e+09",
    ),
    "GPUs that are not there": (
        lambda o: recipe(o, "  workers: 2", "  workers: 2\n  accelerator: gpu"),
        "2 workers need a GPU each, the cluster has 0",
    ),
    "runs in a container's own folder": (lambda o: recipe(o, "/shared/runs", "/tmp/runs"), "not on the shared volume"),
    # Our rules for everything.
    "latest": (lambda o: container(o).update(image="uld-ds-cpu:latest"), "'uld-ds-cpu:latest' has neither"),
    "no tag": (lambda o: container(o).update(image="registry.example.com:5000/uld-ds"), "5000/uld-ds' has neither"),
    "missing limits": (lambda o: container(o)["resources"].pop("limits"), "ray-worker: no limit of memory"),
    "requests below limits": (lambda o: server(o)["resources"]["requests"].update(cpu="100m"), "are not its limits"),
    "root": (lambda o: worker(o)["securityContext"].update(runAsUser=0), "may run as root"),
    "no seccomp": (lambda o: worker(o)["securityContext"].pop("seccompProfile"), "seccompProfile is not"),
    "escalation": (
        lambda o: container(o)["securityContext"].update(allowPrivilegeEscalation=True),
        "ray-worker: may gain privileges",
    ),
    "capabilities": (
        lambda o: container(o)["securityContext"]["capabilities"].update(add=["IPC_LOCK"]),
        "ray-worker: keeps capabilities",
    ),
    "writable root": (lambda o: server(o)["securityContext"].pop("readOnlyRootFilesystem"), "can be written"),
    "token of the API": (lambda o: head(o).pop("automountServiceAccountToken"), "mounts a token"),
    "rights in the API": (role, "RoleBinding/admin: nothing here needs rights"),
    "folder of the machine": (host_path, "volume 'disk' is a folder of the machine"),
    "plain secret": (secret, "Secret/s: secrets are made by hand"),
    "password as a value": (plain_password, "DATABASE_PASSWORD has a value"),
    "password in a URI": (connection_string, "a secret in .data.MLFLOW_BACKEND_STORE_URI"),
    "open network": (no_deny, "no NetworkPolicy denies"),
    "no names": (lambda o: drop(o, "NetworkPolicy", "allow-dns"), "lets every pod ask for names"),
    "policy for nobody": (misspelled_selector, "NetworkPolicy/uld-ds-to-mlflow: selects no pod"),
    "missing ConfigMap": (lambda o: drop(o, "ConfigMap", "mlflow-auth"), "there is no ConfigMap/mlflow-auth"),
}


def test_unbroken_has_no_problem() -> None:
    assert all_problems(copy.deepcopy(rendered("overlays/cpu-small"))) == []


@pytest.mark.parametrize("what", [*BROKEN_FOR_KUBERAY, *BROKEN])
def test_broken_is_refused(what: str) -> None:
    if what in BROKEN_FOR_KUBERAY and kuberay_folder() is None:
        pytest.skip("needs KubeRay's schemas")
    break_it, message = (BROKEN_FOR_KUBERAY | BROKEN)[what]
    objects = copy.deepcopy(rendered("overlays/cpu-small"))
    break_it(objects)
    problems = all_problems(objects)
    assert any(message in problem for problem in problems), problems
    # One mistake is not drowned in others that follow from it.
    assert len(problems) <= 5, problems


def sampling(objects: list[Object]) -> dict[str, Any]:
    """Resources of the pods whose GPUs are for the actors that sample."""
    return cluster(objects)["workerGroupSpecs"][1]["template"]["spec"]["containers"][0]["resources"]


def resized(objects: list[Object], **amounts: str) -> None:
    for part in sampling(objects).values():
        part.update(amounts)


BROKEN_ROLLOUTS: dict[str, tuple[Break, str]] = {
    "room for a worker beside the actors": (
        lambda o: resized(o, cpu="8"),
        "workers could be placed on 18 GPUs, some of which are for the actors that sample",
    ),
    "more GPUs than actors": (lambda o: resized(o, **{GPU: "4"}), "recipe takes 18 GPUs, the workers have 20"),
    "more actors than fit": (lambda o: recipe(o, "count: 2", "count: 3"), "there is room for 2"),
}


@pytest.mark.parametrize("what", BROKEN_ROLLOUTS)
def test_broken_room_for_actors_is_refused(what: str) -> None:
    break_it, message = BROKEN_ROLLOUTS[what]
    objects = copy.deepcopy(rendered("overlays/gpu-2x8-rollouts"))
    assert all_problems(objects) == []
    break_it(objects)
    problems = all_problems(objects)
    assert any(message in problem for problem in problems), problems
    assert len(problems) <= 2, problems
