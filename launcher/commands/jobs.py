"""``uld-ds jobs``: what runs on a cluster, and how far it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from launcher.commands.options import OUTPUT, Address

if TYPE_CHECKING:
    from launcher.jobs.listing import Listed


def add_to(app: typer.Typer) -> None:
    """Add the verb ``jobs`` to the command line."""
    app.command("jobs")(jobs)


def jobs(
    address: Address = None,
    ended: Annotated[bool, typer.Option("--all", help="Also what has ended.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON list.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """List the runs on a Ray cluster with their step, loss and time left.

    These come from the run's folder where this machine sees it, else from the last lines of the job's log.
    """
    from launcher.jobs.client import connect
    from launcher.jobs.listing import list_runs

    found = list_runs(connect(address), ended=ended)
    if as_json:
        typer.echo(json.dumps([asdict(listed) for listed in found]))
    elif found:
        _print_table(found)
    else:
        typer.echo("no runs" if ended else "nothing runs (--all also shows what has ended)")


def _print_table(found: list[Listed]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("job", "run", "status", "step", "loss", "left", "said by", "doing"):
        table.add_column(name, no_wrap=name != "doing")
    for listed in found:
        progress = listed.progress
        cells = [listed.job, listed.run or "-", listed.status.lower()]
        if progress is None:
            cells += ["-"] * 5
        else:
            step = "-" if progress.step is None else f"{progress.step}/{progress.total}"
            loss = "-" if progress.loss is None else f"{progress.loss:.3f}"
            runs = listed.status in ("RUNNING", "PENDING")
            left = _duration(progress.seconds_left) if runs and progress.seconds_left is not None else "-"
            cells += [step, loss, left, progress.source, (progress.doing or "") if runs else ""]
        table.add_row(*map(Text, cells))
    Console(highlight=False).print(table)


def _duration(seconds: float) -> str:
    """Write a duration in its largest unit.

    >>> [_duration(s) for s in (7.2, 90, 5400, 200_000)]
    ['7 s', '2 min', '1.5 h', '2.3 d']
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 86_400 else f"{seconds / 86_400:.1f} d"
