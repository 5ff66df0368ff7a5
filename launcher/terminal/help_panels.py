"""The groups of verbs that ``uld-ds --help`` shows."""

from __future__ import annotations

import typer

PANELS = {
    "Before a run": ("recipes", "plan", "align", "generate", "store"),
    "A run": ("train", "submit", "jobs"),
    "While it runs, and afterwards": ("status", "report"),
    "How good is it?": ("evaluate", "score", "compare"),
    "The registry": ("promote", "lineage"),
    "This installation": ("env",),
}
OTHERS = "More"


def group(app: typer.Typer) -> None:
    """Put every verb of a finished program into its panel."""
    of = {verb: panel for panel, verbs in PANELS.items() for verb in verbs}
    for command in app.registered_commands:
        command.rich_help_panel = of.get(str(command.name), OTHERS)
    for verbs in app.registered_groups:
        verbs.rich_help_panel = of.get(str(verbs.name), OTHERS)
    order = list(of)
    app.registered_commands.sort(key=lambda info: order.index(str(info.name)) if info.name in of else len(order))
