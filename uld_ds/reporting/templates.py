"""The templates of pages, pictures and cards: markup lies in ``templates/``, what it shows comes from Python.

Values are escaped in every template but those of Markdown (``*.md.j2``); a name that a template asks for and nobody
gave is an error.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup


def render(template: str, **values: Any) -> str:
    """Render a template as a whole file, which can be written in UTF-8.

    Bytes of a folder's name that are not UTF-8, lone surrogates in Python, are spelled.

    Args:
        template: name of a file in ``templates/``.
        values: what the template shows.

    Raises:
        jinja2.UndefinedError: the template asks for a value that is not among them.
    """
    text = _environment().get_template(template).render(values)
    return text.encode(errors="backslashreplace").decode()


def fragment(template: str, **values: Any) -> Markup:
    """Render a template as a part of a page, which the template that shows it does not escape again."""
    return Markup(render(template, **values))  # noqa: S704 (its template escaped the values)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("uld_ds.reporting"),
        autoescape=select_autoescape(disabled_extensions=("md.j2",), default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    environment.filters["g"] = lambda number: f"{number:g}"
    return environment
