"""k8s/README.md: its commands name what is there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from tests.k8s.rendering import OVERLAYS, needs_kubectl, only, pod_templates, render

ROOT = Path(__file__).parents[2]
README = (ROOT / "k8s" / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]


def test_five_commands_make_a_student() -> None:
    first = [line for line in BLOCKS[0].splitlines() if line.strip()]
    assert len(first) == 5
    assert "SUCCEEDED" in first[-1]


def test_files_and_folders_exist() -> None:
    named = re.findall(r"(?:--file|--filename|--kustomize) (\S+)", "\n".join(COMMANDS))
    overlays = {"k8s/overlays/cpu-small", "k8s/overlays/gpu-2x8-served"}
    assert set(named) == {"k8s/Dockerfile", "k8s/components/namespace/namespace.yaml", *overlays}
    assert all((ROOT / name).exists() for name in named)
    for cell in re.findall(r"^\| `([\w/-]+)`", README, flags=re.M):
        if cell.endswith("/") or cell == "Dockerfile":
            assert (ROOT / "k8s" / cell).exists(), cell
    folders = {f"{path.parent.relative_to(ROOT / 'k8s')}/" for path in (ROOT / "k8s").rglob("kustomization.yaml")}
    assert folders == set(re.findall(r"^\| `([\w/-]+/)`", README, flags=re.M))


def test_targets_are_those_of_the_dockerfile() -> None:
    stages = set(re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "k8s" / "Dockerfile").read_text(), flags=re.M))
    (targets,) = re.findall(r"for target in ([\w ]+);", COMMANDS[0])
    assert set(targets.split()) == {"cpu", "mlflow"} <= stages


@needs_kubectl
def test_objects_exist() -> None:
    objects = render("overlays/cpu-small")
    text = "\n".join(COMMANDS)
    for kind, name in re.findall(r"\b(rayjob|service)[/ ](uld-ds|mlflow)\b", text):
        only(objects, {"rayjob": "RayJob", "service": "Service"}[kind], name)
    for name in re.findall(r"\bdeployment/(\S+)", text):
        only(render("overlays/gpu-2x8-served"), "Deployment", name)
    assert set(re.findall(r"--namespace (\S+)", text)) == {only(objects, "Namespace")["metadata"]["name"]}


@needs_kubectl
def test_the_secret_has_what_pods_need() -> None:
    made = [command for command in COMMANDS if "create secret" in command]
    words = shlex.split(made[0])
    keys = {word.removeprefix("--from-literal=").split("=")[0] for word in words if word.startswith("--from-literal=")}
    for folder in OVERLAYS:
        needed = set()
        for found in render(folder):
            for pod in pod_templates(found):
                for container in pod.containers:
                    references = [v["valueFrom"]["secretKeyRef"] for v in container.get("env", []) if "valueFrom" in v]
                    assert {reference["name"] for reference in references} <= {"uld-ds-credentials"}
                    needed |= {reference["key"] for reference in references if not reference.get("optional")}
        # One that only a served teacher needs is added when there is one.
        assert needed - {"teacher-token"} == keys
        assert ("teacher-token" in needed) == ("served" in folder)
        assert "uld-ds-credentials" in words
    (added,) = [shlex.split(command) for command in COMMANDS if "patch secret" in command]
    assert "teacher-token" in json.loads(added[-1].replace("$(openssl rand -hex 32)", "x"))["stringData"]
