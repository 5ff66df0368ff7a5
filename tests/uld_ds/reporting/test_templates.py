"""Templates: escaping, what is not given, and that each of them is shipped and compiles."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from uld_ds.reporting import templates
from uld_ds.reporting.charts import Axis, Series, line_chart

NAMES = sorted(file.name for file in (files("uld_ds.reporting") / "templates").iterdir())


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith(".css")])
def test_each_compiles(name: str) -> None:
    templates._environment().get_template(name)


def test_pages_escape_and_markdown_does_not() -> None:
    escapes = {name: templates._environment().autoescape for name in NAMES}
    assert {name for name, of_name in escapes.items() if callable(of_name) and not of_name(name)} == {
        name for name in NAMES if name.endswith(".md.j2")
    }


def test_a_fragment_is_not_escaped_again() -> None:
    chart = line_chart("<&>", Axis("x"), Axis("y"), [Series("a", [(0, 1), (1, 2)], 0)])
    assert isinstance(chart, Markup)
    assert "<b>&lt;&amp;&gt;</b>" in chart


def test_a_value_that_nobody_gave_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'name' is undefined"):
        templates.render("description.md.j2", results=[], pictures=[], made_from=[])


def test_templates_are_in_the_wheel() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert project["tool"]["setuptools"]["package-data"]["uld_ds.reporting"] == ["templates/*"]


def test_markup_lies_in_templates() -> None:
    for file in Path(templates.__file__).parent.glob("*.py"):
        assert "</" not in file.read_text(), file.name
