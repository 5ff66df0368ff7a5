"""Every recipe that ships loads, names its command, and asks for nothing that is not there."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from launcher.commands.recipes import shipped_recipes
from launcher.preflight import check_deepspeed_configs
from uld_ds.data.sources import load_rows
from uld_ds.recipe import GeneratorSource, load_recipe


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
    assert third == f"#   uld-ds train launcher/recipes/{name}.yaml"
