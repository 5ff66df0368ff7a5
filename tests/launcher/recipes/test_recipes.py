"""Every recipe that ships loads, names its command, and asks for nothing that is not there."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.commands.recipes import shipped_recipes
from launcher.drivers.preflight import check_deepspeed_configs
from tests.helpers.known_models import stand_in
from uld_ds.data.sources import load_rows
from uld_ds.recipe import GeneratorSource, load_recipe, parse_recipe


@pytest.fixture(params=sorted(shipped_recipes()))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_it_loads(name: str, tmp_path: Path) -> None:
    file = Path(str(resources.files("launcher.recipes") / f"{name}.yaml"))
    recipe = load_recipe(file, environment={})
    check_deepspeed_configs(recipe)
    assert recipe.data.eval is not None
    (tmp_path / "resolved.yaml").write_text(recipe.to_yaml())
    assert load_recipe(tmp_path / "resolved.yaml", environment={}) == recipe
    for key, source in (("data.train", recipe.data.train), ("data.eval", recipe.data.eval)):
        if isinstance(source, GeneratorSource):
            assert len(load_rows(source, key)) > 0


def test_its_header_names_purpose_and_command(name: str) -> None:
    first, second, third, *_ = shipped_recipes()[name].splitlines()
    assert first.startswith("# ") and first.endswith(".")
    assert second == "#"
    assert third in {f"#   uld-ds {verb} launcher/recipes/{name}.yaml" for verb in ("train", "store build")}
    header = shipped_recipes()[name].partition("\n\n")[0]
    assert f"uld-ds train launcher/recipes/{name}.yaml" in header
    assert "# Needs:" in header


def test_it_is_dry_run(name: str) -> None:
    file = str(resources.files("launcher.recipes") / f"{name}.yaml")
    result = CliRunner().invoke(app, ["train", file, "--dry-run", "--json"])
    assert result.exit_code == 0
    assert parse_recipe(json.loads(result.stdout)) == load_recipe(file, environment={})


def test_it_is_planned(name: str, tmp_path: Path) -> None:
    """From configurations alone: the models themselves are large, and elsewhere."""
    file = str(resources.files("launcher.recipes") / f"{name}.yaml")
    recipe = load_recipe(file, environment={})
    words = []
    for role, settings in (("teacher", recipe.teacher_named()), ("student", recipe.student)):
        if settings.model is not None:
            folder = stand_in(tmp_path / role, settings.model)
            words += ["--set", f"{role}.model={folder}", "--set", f"{role}.gguf_file=null"]
    result = CliRunner().invoke(app, ["plan", file, *words, "--json"])
    assert result.exit_code == 0, result.exception
    plan = json.loads(result.stdout)
    assert plan["fits"], plan["device_peak_bytes"]
    assert plan["workers"] == recipe.cluster.workers
    assert plan["seconds"]["step"] > 0
