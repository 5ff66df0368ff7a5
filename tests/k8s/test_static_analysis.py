"""checkov has nothing to say about the manifests, hadolint nothing about the Dockerfile.

Both come from `make lint-k8s`, which puts them into an environment of their own: checkov pins half of the world.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.k8s.rendering import OVERLAYS, Object, PodTemplate, needs_kubectl, only, pod_templates, render, render_with

ROOT = Path(__file__).parents[2]
_OWN = ROOT / ".cache" / "lint-k8s" / "bin"


def tool(name: str) -> str:
    """Where a linter is; skips the test where it is not."""
    found = shutil.which(name, path=f"{_OWN}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"needs {name}: make lint-k8s")
    return found


def as_pod(job: Object, pod: PodTemplate) -> Object:
    """A pod of a RayJob as an object of its own: checkov does not know that a RayJob has pods."""
    metadata = {
        "name": pod.where.rpartition(".")[2],
        "namespace": job["metadata"]["namespace"],
        "labels": dict(pod.labels),
        "annotations": dict(pod.metadata["annotations"]),
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": dict(pod.spec)}


def checked(folder: Path) -> dict[str, Any]:
    """What checkov finds in a folder."""
    command = [tool("checkov"), "--directory", str(folder), "--framework", "kubernetes", "--output", "json"]
    done = subprocess.run(
        [*command, "--compact", "--skip-download"], capture_output=True, text=True, timeout=120, cwd=folder
    )
    found = json.loads(done.stdout)
    assert found["summary"]["parsing_errors"] == 0
    return dict(found)


@needs_kubectl
def test_manifests(tmp_path: Path) -> None:
    (components := tmp_path / "components").mkdir()
    (manifests := tmp_path / "manifests").mkdir()
    rendered = {folder.rpartition("/")[2]: render(folder) for folder in OVERLAYS}
    rendered["components"] = render_with(components, "mlflow-s3", "hub")
    for name, objects in rendered.items():
        job = only(objects, "RayJob")
        pods = [as_pod(job, pod) for pod in pod_templates(job)]
        assert {pod["metadata"]["name"] for pod in pods} - {"rollouts"} == {"submitter", "head", "workers"}
        (manifests / f"{name}.yaml").write_text(yaml.safe_dump_all([*objects, *pods]))
    found = checked(manifests)
    assert [
        (check["check_id"], check["check_name"], check["resource"]) for check in found["results"]["failed_checks"]
    ] == []
    assert found["summary"]["passed"] > 1000
    # Every exception says why, beside the object that it is for.
    reasons = {check["check_result"]["suppress_comment"] for check in found["results"]["skipped_checks"]}
    assert reasons
    assert all(len(reason.split()) >= 3 for reason in reasons)


@needs_kubectl
def test_checkov_sees_the_pods_of_a_rayjob(tmp_path: Path) -> None:
    """The check above is one: a worker that may be root and has no limits is found."""
    job = only(render("overlays/cpu-small"), "RayJob")
    pod = as_pod(job, list(pod_templates(job))[-1])
    del pod["spec"]["securityContext"]["runAsNonRoot"], pod["spec"]["securityContext"]["runAsUser"]
    del pod["spec"]["containers"][0]["resources"]["limits"]
    (tmp_path / "pod.yaml").write_text(yaml.safe_dump(pod))
    failed = {check["check_id"] for check in checked(tmp_path)["results"]["failed_checks"]}
    assert {"CKV_K8S_23", "CKV_K8S_11", "CKV_K8S_13"} <= failed


def test_dockerfile(tmp_path: Path) -> None:
    hadolint = tool("hadolint")
    clean = subprocess.run([hadolint, str(ROOT / "k8s" / "Dockerfile")], capture_output=True, text=True, timeout=60)
    assert (clean.returncode, clean.stdout) == (0, "")
    (broken := tmp_path / "Dockerfile").write_text("FROM python:latest\nRUN pip install torch\n")
    found = subprocess.run([hadolint, str(broken)], capture_output=True, text=True, timeout=60)
    assert {"DL3007", "DL3013"} <= set(found.stdout.split())
