"""What KubeRay's controller refuses although its schema allows it: such a RayJob is accepted, and never starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from tests.k8s.rendering import Object

MAX_NAME = 47
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
MANAGERS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
# Resources that `ray start` may be given; a group has a field for them, too.
_RESOURCE_PARAMETERS = {"num-cpus", "num-gpus", "memory", "resources"}
_FIRST_WITH_TOKENS = (2, 52)


def controller_problems(job: Object) -> list[str]:
    """What the controller says about a RayJob; empty if it would run it."""
    spec = job["spec"]
    problems = [*_name(job["metadata"]["name"]), *_end(spec), *_submission(spec), *_selector(spec), *_immutable(spec)]
    cluster = spec.get("rayClusterSpec")
    if cluster is not None:
        problems += [*_groups(cluster), *_authentication(cluster)]
    return problems


def _name(name: str) -> Iterator[str]:
    if len(name) > MAX_NAME:
        yield f"metadata.name: {name!r} has {len(name)} characters, more than {MAX_NAME}"
    if not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name):
        yield f"metadata.name: {name!r} is no DNS-1035 label"


def _end(spec: Mapping[str, Any]) -> Iterator[str]:
    ttl, shuts_down = spec.get("ttlSecondsAfterFinished", 0), spec.get("shutdownAfterJobFinishes", False)
    if ttl < 0:
        yield f"spec.ttlSecondsAfterFinished: {ttl} is negative"
    if ttl and not shuts_down:
        yield "spec.ttlSecondsAfterFinished: needs shutdownAfterJobFinishes"
    if spec.get("suspend") and not shuts_down:
        yield "spec.suspend: needs shutdownAfterJobFinishes"
    if spec.get("activeDeadlineSeconds", 1) <= 0:
        yield "spec.activeDeadlineSeconds: is not positive"
    if spec.get("backoffLimit", 0) < 0:
        yield "spec.backoffLimit: is negative"


def _submission(spec: Mapping[str, Any]) -> Iterator[str]:
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in SUBMISSION_MODES:
        yield f"spec.submissionMode: {mode!r} is none of {', '.join(SUBMISSION_MODES)}"
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "spec.backoffLimit: not with InteractiveMode"
    if mode == "SidecarMode":
        for field in ("submitterPodTemplate", "submitterConfig"):
            if field in spec:
                yield f"spec.{field}: not with SidecarMode"
        head = spec.get("rayClusterSpec", {}).get("headGroupSpec", {}).get("template", {}).get("spec", {})
        if head.get("restartPolicy", "Never") != "Never":
            yield "headGroupSpec.restartPolicy: is not Never, as SidecarMode needs"
    try:
        environment = yaml.safe_load(spec.get("runtimeEnvYAML", "{}"))
    except yaml.YAMLError:
        yield "spec.runtimeEnvYAML: is not YAML"
    else:
        if not isinstance(environment, dict):
            yield "spec.runtimeEnvYAML: is no mapping"


def _selector(spec: Mapping[str, Any]) -> Iterator[str]:
    selector = spec.get("clusterSelector")
    if not selector:
        if "rayClusterSpec" not in spec:
            yield "spec: neither rayClusterSpec nor clusterSelector"
        return
    if not selector.get("ray.io/cluster"):
        yield "spec.clusterSelector: names no ray.io/cluster"
    for field in ("backoffLimit", "suspend"):
        if spec.get(field):
            yield f"spec.{field}: not with clusterSelector"
    if spec.get("submissionMode") == "SidecarMode":
        yield "spec.clusterSelector: not with SidecarMode"


def _immutable(spec: Mapping[str, Any]) -> Iterator[str]:
    """The rules that the definition has as expressions, which JSON schema does not evaluate."""
    if spec.get("managedBy", MANAGERS[0]) not in MANAGERS:
        yield f"spec.managedBy: {spec['managedBy']!r} is none of {', '.join(MANAGERS)}"
    deletion = spec.get("deletionStrategy")
    if deletion is None:
        return
    legacy = [field in deletion for field in ("onSuccess", "onFailure")]
    if any(legacy) and "deletionRules" in deletion:
        yield "spec.deletionStrategy: onSuccess and onFailure, or deletionRules, not both"
    if not all(legacy) and "deletionRules" not in deletion:
        yield "spec.deletionStrategy: needs both onSuccess and onFailure, or deletionRules"


def _groups(cluster: Mapping[str, Any]) -> Iterator[str]:
    groups = [("head", cluster["headGroupSpec"])]
    groups += [(group["groupName"], group) for group in cluster.get("workerGroupSpecs", [])]
    for name, group in groups:
        parameters = group.get("rayStartParams") or {}
        if not group["template"]["spec"].get("containers"):
            yield f"{name}: has no container"
        if group.get("resources") and _RESOURCE_PARAMETERS & set(parameters):
            yield f"{name}: resources are both in rayStartParams and in resources"
        if "labels" in parameters:
            yield f"{name}.rayStartParams.labels: is the group's field labels"
        for key, value in (group.get("labels") or {}).items():
            if not re.fullmatch(r"([a-z0-9.-]+/)?[A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?", key):
                yield f"{name}.labels: {key!r} is no label"
            if not re.fullmatch(r"([A-Za-z0-9]([\w.-]{0,61}[A-Za-z0-9])?)?", value):
                yield f"{name}.labels.{key}: {value!r} is no label's value"


def _authentication(cluster: Mapping[str, Any]) -> Iterator[str]:
    if (cluster.get("authOptions") or {}).get("mode") != "token":
        return
    version = re.match(r"(\d+)\.(\d+)", cluster.get("rayVersion", ""))
    if version is None:
        yield "rayClusterSpec.rayVersion: authOptions.mode token needs it"
    elif (int(version[1]), int(version[2])) < _FIRST_WITH_TOKENS:
        yield f"rayClusterSpec.rayVersion: {cluster['rayVersion']} has no tokens yet"
