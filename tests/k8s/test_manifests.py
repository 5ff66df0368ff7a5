"""Every kustomization renders, and every object of it is valid and keeps our rules."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from tests.k8s.controller import controller_problems
from tests.k8s.policy import policy_problems, selects
from tests.k8s.rayjob_policy import GPU, QUEUE, rayjob_problems, recipe_of, worker_nodes
from tests.k8s.rendering import FOLDERS, OVERLAYS, Object, needs_kubectl, only, pod_templates, render, render_with
from tests.k8s.schema import KUBERAY_SCHEMAS, kuberay_folder, schema_problems
from uld_ds.recipe import load_recipe
from uld_ds.teachers.served.engine import TOKEN_VARIABLE

pytestmark = needs_kubectl
needs_kuberay = pytest.mark.skipif(
    kuberay_folder() is None, reason=f"needs KubeRay's schemas in ../shared/data/kuberay or ${KUBERAY_SCHEMAS}"
)
DEMO = Path(__file__).parents[2] / "launcher" / "recipes" / "demo.yaml"
DOCKERFILE = Path(__file__).parents[2] / "k8s" / "Dockerfile"

rendered = functools.cache(render)


def core(objects: list[Object]) -> list[Object]:
    return [found for found in objects if not found["apiVersion"].startswith("ray.io/")]


@pytest.mark.parametrize("folder", FOLDERS)
def test_core_objects_are_valid(folder: str) -> None:
    objects = core(rendered(folder))
    assert len(objects) >= 8
    assert [problem for found in objects for problem in schema_problems(found)] == []


@needs_kuberay
@pytest.mark.parametrize("folder", FOLDERS)
def test_rayjob_is_valid(folder: str) -> None:
    assert schema_problems(only(rendered(folder), "RayJob")) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_rayjob_would_be_run(folder: str) -> None:
    assert controller_problems(only(rendered(folder), "RayJob")) == []


@pytest.mark.parametrize("folder", FOLDERS)
def test_our_rules_are_kept(folder: str) -> None:
    assert policy_problems(rendered(folder)) == []
    assert rayjob_problems(rendered(folder)) == []


def test_base_names_no_namespace() -> None:
    assert all("namespace" not in found["metadata"] for found in rendered("base"))


@pytest.mark.parametrize("folder", OVERLAYS)
def test_overlays_have_a_restricted_namespace(folder: str) -> None:
    namespace = only(rendered(folder), "Namespace")["metadata"]
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    others = {found["metadata"].get("namespace") for found in rendered(folder) if found["kind"] != "Namespace"}
    assert others == {namespace["name"]}


def test_small_overlay_runs_the_demo(tmp_path: Path) -> None:
    """Nothing but where it runs is another: the student is the demo's, digest for digest."""
    recipe, demo = recipe_of(rendered("overlays/cpu-small")), load_recipe(DEMO, environment={})
    assert recipe.digest() == demo.digest()
    assert (recipe.run.name, recipe.registry) == (demo.run.name, demo.registry)
    assert recipe.run.storage == "/shared/runs"
    images = {
        container["image"]
        for pod in pod_templates(only(rendered("overlays/cpu-small"), "RayJob"))
        for container in pod.containers
    }
    assert images == {"uld-ds-cpu:0.1.0"}


def test_gpu_overlay_is_two_machines_of_eight() -> None:
    objects = rendered("overlays/gpu-2x8")
    job = only(objects, "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    assert [node.resources["GPU"] for node in worker_nodes(cluster)] == [8, 8]
    assert recipe_of(objects).cluster.workers == 16
    assert job["metadata"]["labels"][QUEUE] == "gpu"
    (group,) = cluster["workerGroupSpecs"]
    tolerated = {toleration["key"] for toleration in group["template"]["spec"]["tolerations"]}
    assert tolerated == {GPU}
    environment = only(objects, "ConfigMap", "uld-ds-environment")["data"]
    assert "NCCL_SOCKET_IFNAME" in environment
    assert environment["HF_HOME"] == "/shared/cache/huggingface"


def test_rollouts_overlay_is_the_gpu_overlay_with_room_for_actors() -> None:
    objects, without = rendered("overlays/gpu-2x8-rollouts"), rendered("overlays/gpu-2x8")
    cluster = only(objects, "RayJob")["spec"]["rayClusterSpec"]
    assert [node.resources["GPU"] for node in worker_nodes(cluster)] == [8, 8, 2]
    training, sampling = cluster["workerGroupSpecs"]
    (before,) = only(without, "RayJob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert (training["groupName"], sampling["groupName"]) == ("workers", "rollouts")
    for field in ("tolerations", "affinity", "volumes", "securityContext"):
        assert sampling["template"]["spec"][field] == before["template"]["spec"][field]
    assert only(objects, "ConfigMap", "uld-ds-environment") == only(without, "ConfigMap", "uld-ds-environment")
    recipe = recipe_of(objects)
    assert recipe.rollouts is not None
    assert (recipe.rollouts.engine, recipe.rollouts.actors.count) == ("vllm", 2)
    assert recipe.run.name != recipe_of(without).run.name


def test_the_actors_python_is_in_the_image() -> None:
    objects = rendered("overlays/gpu-2x8-rollouts")
    rollouts = recipe_of(objects).rollouts
    assert rollouts is not None and rollouts.actors.python is not None
    folder = rollouts.actors.python.removesuffix("/bin/python")
    assert f"python -m venv {folder} " in DOCKERFILE.read_text()
    (group,) = [pod for pod in pod_templates(only(objects, "RayJob")) if pod.where.endswith("rollouts")]
    assert {container["image"].rpartition("/")[2] for container in group.containers} == {"uld-ds-cuda-vllm:0.1.0"}


def test_served_overlay_asks_the_server_that_it_starts() -> None:
    objects = rendered("overlays/gpu-2x8-served")
    recipe = recipe_of(objects)
    teacher = recipe.teacher_named()
    assert teacher.source == "served" and teacher.server is not None
    (pod,) = pod_templates(only(objects, "Deployment", "teacher"))
    (container,) = pod.containers
    options = dict(word.removeprefix("--").split("=") for word in container["args"][2:])
    service = only(objects, "Service", "teacher")["spec"]["ports"][0]
    assert teacher.server.url == f"http://teacher:{service['port']}"
    assert int(options["port"]) == container["ports"][0]["containerPort"] == 8000
    # What the recipe asks for, the server allows: as many tokens, and one more than the longest text.
    assert teacher.server.top <= int(options["max-logprobs"])
    assert teacher.max_length < int(options["max-model-len"])
    assert container["args"][:2] == ["serve", teacher.model]
    assert container["resources"]["limits"][GPU] == options["tensor-parallel-size"]
    assert container["command"][0].removesuffix("/bin/vllm") + " " in DOCKERFILE.read_text()
    assert container["image"].endswith("uld-ds-cuda-vllm:0.1.0")
    # The student's GPUs are one machine's, the server's the other's.
    cluster = only(objects, "RayJob")["spec"]["rayClusterSpec"]
    assert [node.resources["GPU"] for node in worker_nodes(cluster)] == [recipe.cluster.workers] == [8]


def test_the_teachers_token_is_a_secret_that_both_sides_have() -> None:
    objects = rendered("overlays/gpu-2x8-served")
    reference = {"secretKeyRef": {"name": "uld-ds-credentials", "key": "teacher-token"}}
    (server,) = pod_templates(only(objects, "Deployment", "teacher"))
    assert {"name": "VLLM_API_KEY", "valueFrom": reference} in server.containers[0]["env"]
    asking = [pod for pod in pod_templates(only(objects, "RayJob")) if not pod.where.endswith("submitter")]
    assert len(asking) == 2
    for pod in asking:
        assert {"name": TOKEN_VARIABLE, "valueFrom": reference} in pod.containers[-1]["env"]


def test_only_training_reaches_the_teacher_and_it_reaches_nobody() -> None:
    objects = rendered("overlays/gpu-2x8-served")
    (pod,) = pod_templates(only(objects, "Deployment", "teacher"))
    policies = [found for found in objects if found["kind"] == "NetworkPolicy"]
    own = [found for found in policies if selects(found["spec"]["podSelector"], pod.labels)]
    assert {found["metadata"]["name"] for found in own} == {"default-deny", "allow-dns", "teacher"}
    rules = only(objects, "NetworkPolicy", "teacher")["spec"]
    assert "egress" not in rules and "Egress" in rules["policyTypes"]
    (peer,) = rules["ingress"][0]["from"]
    assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "training"


@pytest.mark.parametrize("folder", OVERLAYS)
def test_runs_record_themselves_on_the_server(folder: str) -> None:
    objects = rendered(folder)
    environment = only(objects, "ConfigMap", "uld-ds-environment")["data"]
    service = only(objects, "Service", "mlflow")
    assert environment["MLFLOW_TRACKING_URI"] == f"http://mlflow:{service['spec']['ports'][0]['port']}"
    allowed = only(objects, "ConfigMap", "mlflow-environment")["data"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert {"mlflow", "mlflow:5000"} <= set(allowed)
    assert "*" not in allowed
    (server,) = pod_templates(only(objects, "Deployment", "mlflow"))
    reached = {
        policy["metadata"]["name"]
        for policy in objects
        if policy["kind"] == "NetworkPolicy"
        if selects(policy["spec"]["podSelector"], server.labels)
    }
    assert reached == {"default-deny", "allow-dns", "mlflow"}


def test_artifacts_in_a_bucket_need_no_volume(tmp_path: Path) -> None:
    objects = render_with(tmp_path, "mlflow-s3")
    assert [problem for found in core(objects) for problem in schema_problems(found)] == []
    assert policy_problems(objects) == []
    claims = {found["metadata"]["name"] for found in objects if found["kind"] == "PersistentVolumeClaim"}
    assert claims == {"uld-ds-shared"}
    (pod,) = pod_templates(only(objects, "Deployment", "mlflow"))
    assert {volume["name"] for volume in pod.spec["volumes"]} == {"auth", "scratch"}
    keys = {variable["name"] for container in pod.containers for variable in container["env"]}
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"} <= keys
    environment = only(objects, "ConfigMap", "mlflow-environment")["data"]
    assert environment["MLFLOW_ARTIFACTS_DESTINATION"].startswith("s3://")


def test_hub_component_lets_models_in(tmp_path: Path) -> None:
    objects = render_with(tmp_path, "hub")
    assert policy_problems(objects) == []
    environment = only(objects, "ConfigMap", "uld-ds-environment")["data"]
    assert environment["HF_HUB_OFFLINE"] == "0"
    assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"
    policy = only(objects, "NetworkPolicy", "uld-ds-to-hub")["spec"]
    assert policy["policyTypes"] == ["Egress"]
    assert [port["port"] for rule in policy["egress"] for port in rule["ports"]] == [443]
