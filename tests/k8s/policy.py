"""Rules of our own for every object: pinned images, no secrets, fixed resources, restricted pods, a closed network."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tests.k8s.rendering import Object, PodTemplate, name_of, pod_templates

_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|TOKEN|SECRET|ACCESS_?KEY|API_?KEY|CREDENTIAL|PRIVATE", re.IGNORECASE)
_SECRET_VALUE = re.compile(
    r"://[^/\s:@]+:[^/\s@]+@|\bhf_[A-Za-z0-9]{20,}|\bAKIA[A-Z0-9]{16}\b|BEGIN [A-Z ]*PRIVATE KEY"
)


def policy_problems(objects: Sequence[Object]) -> list[str]:
    """What breaks our rules in a rendered kustomization; empty if nothing does."""
    pods = [pod for found in objects for pod in pod_templates(found)]
    problems = [problem for pod in pods for problem in _pod_problems(pod)]
    problems += [problem for found in objects for problem in _plain_secrets(found)]
    problems += [*_network(objects, pods), *_references(objects, pods), *_roles(objects)]
    return problems


def _pod_problems(pod: PodTemplate) -> Iterator[str]:
    spec, where = pod.spec, pod.where
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield f"{where}: {field}"
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield f"{where}: volume {volume['name']!r} is a folder of the machine"
    if spec.get("automountServiceAccountToken") is not False:
        yield f"{where}: mounts a token of the Kubernetes API"
    for container in pod.containers:
        here = f"{where}.{container['name']}"
        yield from (f"{here}: {problem}" for problem in _security(spec.get("securityContext", {}), container))
        yield from (f"{here}: {problem}" for problem in _image(container.get("image", "")))
        yield from (f"{here}: {problem}" for problem in _resources(container.get("resources", {})))


def _security(of_pod: Mapping[str, Any], container: Mapping[str, Any]) -> Iterator[str]:
    """The restricted Pod Security Standard, and a read-only root file system."""
    own = container.get("securityContext", {})
    effective = {**of_pod, **own}
    if effective.get("runAsNonRoot") is not True or effective.get("runAsUser", 0) == 0:
        yield "may run as root"
    if effective.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "seccompProfile is not RuntimeDefault"
    if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
        yield "may gain privileges"
    capabilities = own.get("capabilities", {})
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield "keeps capabilities"
    if own.get("readOnlyRootFilesystem") is not True:
        yield "its root file system can be written"


def _image(image: str) -> Iterator[str]:
    if re.search(r"@sha256:[0-9a-f]{64}$", image):
        return
    tag = re.search(r":([\w.-]+)$", image)
    if tag is None or not re.search(r"\d+\.\d+", tag[1]):
        yield f"image {image!r} has neither a digest nor a tag that names a release"


def _resources(resources: Mapping[str, Any]) -> Iterator[str]:
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for name in ("cpu", "memory"):
        if name not in limits:
            yield f"no limit of {name}"
    if limits != requests:
        yield f"requests {requests} are not its limits {limits}"


def _plain_secrets(found: Object) -> Iterator[str]:
    name = name_of(found)
    if found["kind"] == "Secret":
        yield f"{name}: secrets are made by hand, never stored here"
    for key, value in _text_values(found):
        if _SECRET_VALUE.search(value):
            yield f"{name}: a secret in {key}"
    named = [(key, value) for pod in pod_templates(found) for key, value in _plain_environment(pod)]
    if found["kind"] == "ConfigMap":
        named += found.get("data", {}).items()
    for key, value in named:
        if _SECRET_NAME.search(key) and value:
            yield f"{name}: {key} has a value instead of a reference to a Secret"


def _plain_environment(pod: PodTemplate) -> Iterator[tuple[str, str]]:
    for container in pod.containers:
        for variable in container.get("env", []):
            if "value" in variable:
                yield variable["name"], variable["value"]


def _text_values(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _text_values(inner, f"{path}.{key}")
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _text_values(inner, f"{path}.{index}")


def _network(objects: Sequence[Object], pods: Sequence[PodTemplate]) -> Iterator[str]:
    policies = [found for found in objects if found["kind"] == "NetworkPolicy"]
    specs = [policy["spec"] for policy in policies]
    if {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]} not in specs:
        yield "no NetworkPolicy denies everything that no other allows"
    if not any(spec["podSelector"] == {} and _allows_dns(spec) for spec in specs):
        yield "no NetworkPolicy lets every pod ask for names"
    for policy in policies:
        for selector in _own_selectors(policy["spec"]):
            if not any(selects(selector, pod.labels) for pod in pods):
                yield f"{name_of(policy)}: selects no pod: {selector}"
        # An empty rule allows everything.
        for direction in ("ingress", "egress"):
            if {} in policy["spec"].get(direction, []):
                yield f"{name_of(policy)}: its {direction} is open"


def _allows_dns(spec: Mapping[str, Any]) -> bool:
    ports = {(port["protocol"], port["port"]) for rule in spec.get("egress", []) for port in rule.get("ports", [])}
    return {("UDP", 53), ("TCP", 53)} <= ports


def _own_selectors(spec: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Selectors of pods of this namespace."""
    yield spec["podSelector"]
    rules = [*spec.get("ingress", []), *spec.get("egress", [])]
    peers = [peer for rule in rules for peer in [*rule.get("from", []), *rule.get("to", [])]]
    yield from (peer["podSelector"] for peer in peers if "podSelector" in peer and "namespaceSelector" not in peer)


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a selector (of matchLabels) selects a pod."""
    return selector.get("matchLabels", {}).items() <= labels.items()


def _references(objects: Sequence[Object], pods: Sequence[PodTemplate]) -> Iterator[str]:
    there = {(found["kind"], found["metadata"]["name"]) for found in objects}
    for pod in pods:
        named = {("ServiceAccount", pod.spec.get("serviceAccountName", "default"))}
        for volume in pod.spec.get("volumes", []):
            if "configMap" in volume:
                named.add(("ConfigMap", volume["configMap"]["name"]))
            if "persistentVolumeClaim" in volume:
                named.add(("PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"]))
        for container in pod.containers:
            named |= {
                ("ConfigMap", source["configMapRef"]["name"])
                for source in container.get("envFrom", [])
                if "configMapRef" in source
            }
        for kind, name in sorted(named - there):
            yield f"{pod.where}: there is no {kind}/{name}"
    for found in objects:
        if found["kind"] == "Service" and not any(
            selects({"matchLabels": found["spec"]["selector"]}, pod.labels) for pod in pods
        ):
            yield f"{name_of(found)}: selects no pod"


def _roles(objects: Sequence[Object]) -> Iterator[str]:
    for found in objects:
        if "Role" in found["kind"]:
            yield f"{name_of(found)}: nothing here needs rights in the Kubernetes API"
