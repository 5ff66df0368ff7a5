"""Kustomizations rendered by kubectl, and what is found in them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

K8S = Path(__file__).parents[2] / "k8s"
FOLDERS = (
    "base",
    "overlays/cpu-small",
    "overlays/gpu-2x8",
    "overlays/gpu-2x8-rollouts",
    "overlays/gpu-2x8-served",
)
OVERLAYS = FOLDERS[1:]

needs_kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl to render kustomizations")

Object = dict[str, Any]


def render(folder: Path | str) -> list[Object]:
    """The objects of a kustomization.

    Args:
        folder: absolute, or relative to k8s/.
    """
    command = ["kubectl", "kustomize", str(K8S / folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document is not None]


def render_with(folder: Path, *components: str, base: str = "overlays/cpu-small") -> list[Object]:
    """An overlay with more components, as somebody would write it.

    Args:
        folder: an empty one, to write the kustomization into.
        components: names in k8s/components.
        base: folder in k8s/ to build on.
    """

    def relative(path: str) -> str:
        return os.path.relpath((K8S / path).resolve(), folder.resolve())

    kustomization = {
        "resources": [relative(base)],
        "components": [relative(f"components/{component}") for component in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return render(folder.resolve())


def name_of(found: Object) -> str:
    """``Kind/name``, for messages."""
    return f"{found.get('kind')}/{found.get('metadata', {}).get('name')}"


def only(objects: Sequence[Object], kind: str, name: str | None = None) -> Object:
    """The one object of this kind (and name)."""
    (found,) = [o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"])]
    return found


@dataclass(frozen=True)
class PodTemplate:
    """A pod that an object makes."""

    where: str
    """Path from the object to the template, for messages."""
    metadata: Mapping[str, Any]
    spec: Mapping[str, Any]
    added_labels: Mapping[str, str]
    """Those that the operator adds."""

    @property
    def labels(self) -> dict[str, str]:
        return {**self.metadata.get("labels", {}), **self.added_labels}

    @property
    def containers(self) -> list[dict[str, Any]]:
        return [*self.spec.get("initContainers", []), *self.spec.get("containers", [])]


def pod_templates(found: Object) -> Iterator[PodTemplate]:
    """Every pod template in an object: of workloads, and of a RayJob's head, workers and submitter."""
    name = name_of(found)
    spec = found.get("spec", {})
    if found["kind"] == "RayJob":
        if "submitterPodTemplate" in spec:
            yield _template(f"{name}.submitter", spec["submitterPodTemplate"], {})
        cluster = spec.get("rayClusterSpec", {})
        yield _template(f"{name}.head", cluster["headGroupSpec"]["template"], {"ray.io/node-type": "head"})
        for group in cluster.get("workerGroupSpecs", []):
            yield _template(f"{name}.{group['groupName']}", group["template"], {"ray.io/node-type": "worker"})
    elif "template" in spec:
        yield _template(name, spec["template"], {})


def _template(where: str, template: Mapping[str, Any], added: Mapping[str, str]) -> PodTemplate:
    return PodTemplate(where, template.get("metadata") or {}, template["spec"], added)
