"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OUTPUT = "Output"
"""Help panel of options on what a verb prints and writes."""

RecipeFile = Annotated[Path, typer.Argument(help="A recipe's YAML file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a value, e.g. training.steps=100. Repeatable."),
]
"""Option ``--set`` with overrides of a recipe, for ``load_recipe``."""
TeacherName = Annotated[
    str | None, typer.Option("--teacher", metavar="NAME", help="Which of the recipe's teachers. Default: the only one.")
]
"""Option ``--teacher`` of verbs that need exactly one."""
Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL", envvar="RAY_API_SERVER_ADDRESS", help="The cluster's dashboard, e.g. http://127.0.0.1:8265."
    ),
]
"""Option ``--address`` of Ray's job API."""
FactsAsJson = Annotated[
    bool, typer.Option("--json", help="Print the facts as one last JSON object.", rich_help_panel=OUTPUT)
]
