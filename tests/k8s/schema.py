"""What the API server would refuse: core kinds by kubernetes-validate, KubeRay's by the operator's own schema."""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate

from tests.k8s.rendering import Object, name_of

KUBERAY_SCHEMAS = "KUBERAY_SCHEMAS"
"""Environment variable: folder with rayjob.ray.io.v1.json and raycluster.ray.io.v1.json of KubeRay 1.7."""
# The oldest release that the manifests are meant for, and the newest that is known.
KUBERNETES_VERSIONS = ("1.32", kubernetes_validate.latest_version())


def kuberay_folder() -> Path | None:
    """Where KubeRay's schemas are, or None."""
    beside = Path(__file__).parents[3] / "shared" / "data" / "kuberay"
    folder = Path(os.environ.get(KUBERAY_SCHEMAS, beside))
    return folder if (folder / "rayjob.ray.io.v1.json").is_file() else None


def schema_problems(found: Object) -> list[str]:
    """What is wrong with an object, each with its path; empty if it is valid."""
    return list(_problems(json.dumps(found, sort_keys=True)))


@functools.cache
def _problems(text: str) -> tuple[str, ...]:
    """Of an object as JSON: validating takes long, and tests ask about the same objects again and again."""
    found = json.loads(text)
    if found["apiVersion"].startswith("ray.io/"):
        return tuple(f"{name_of(found)}.{problem}" for problem in _kuberay_problems(found))
    problems = []
    for version in KUBERNETES_VERSIONS:
        try:
            kubernetes_validate.validate(found, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            problems.append(f"{name_of(found)}.{'.'.join(map(str, error.path))}: {error.message} ({version})")
    return tuple(problems)


def _kuberay_problems(found: Object) -> Iterator[str]:
    schema = _closed_schema(found["kind"])
    for error in jsonschema.Draft202012Validator(schema).iter_errors(found):
        yield f"{'.'.join(map(str, error.path))}: {error.message}"
    yield from _repeated_keys(found, schema, "")


@functools.cache
def _closed_schema(kind: str) -> dict[str, Any]:
    folder = kuberay_folder()
    assert folder is not None
    file = json.loads((folder / f"{kind.lower()}.ray.io.v1.json").read_text())
    assert (file["kind"], file["apiVersion"]) == (kind, "ray.io/v1")
    schema = copy.deepcopy(file["openAPIV3Schema"])
    # The API server knows the metadata of every kind; a definition does not repeat it.
    schema["properties"] |= {"apiVersion": {"type": "string"}, "kind": {"const": kind}, "metadata": {"type": "object"}}
    _close(schema)
    return schema


def _close(schema: Any) -> None:
    """Makes unknown fields errors. The API server drops them silently, which is worse."""
    if isinstance(schema, list):
        for item in schema:
            _close(item)
    if not isinstance(schema, dict):
        return
    if schema.get("x-kubernetes-int-or-string") and "anyOf" not in schema:
        schema["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    properties = schema.get("properties")
    if isinstance(properties, dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.setdefault("additionalProperties", False)
    for key, value in schema.items():
        if key == "properties":
            for inner in value.values():
                _close(inner)
        elif key in ("items", "additionalProperties", "anyOf", "allOf", "oneOf", "not"):
            _close(value)


def _repeated_keys(value: Any, schema: dict[str, Any], path: str) -> Iterator[str]:
    """Lists whose items have a key: the API server refuses one that comes twice, JSON schema cannot say so."""
    if isinstance(value, list):
        keys = schema.get("x-kubernetes-list-map-keys")
        seen = set()
        for index, item in enumerate(value):
            if keys:
                key = tuple(str(item.get(name)) for name in keys)
                if key in seen:
                    yield f"{path}.{index}: {', '.join(keys)} {', '.join(key)!r} comes twice"
                seen.add(key)
            yield from _repeated_keys(item, schema.get("items", {}), f"{path}.{index}")
    elif isinstance(value, dict):
        for name, item in value.items():
            inner = schema.get("properties", {}).get(name)
            if inner is not None:
                yield from _repeated_keys(item, inner, f"{path}.{name}".lstrip("."))
