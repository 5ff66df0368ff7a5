"""``uld-ds status``: how a run is doing, from another shell."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.commands.options import OUTPUT
from launcher.terminal.find_run import HELP, find_run
from launcher.terminal.rollouts import rollout_rows, shown_answers

if TYPE_CHECKING:
    from uld_ds.runs.status import RunStatus

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_COLORS = {"finished": "green", "running": "cyan", "failed": "red", "killed": "red", "silent": "yellow"}
_BAR_WIDTH = 24
_BLOCK = "█"


def add_to(app: typer.Typer) -> None:
    """Add the verb ``status`` to the command line."""
    app.command("status")(status)


def status(
    run: Annotated[str, typer.Argument(help=HELP, show_default=False)],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts as one JSON object.", rich_help_panel=OUTPUT)
    ] = False,
    answers: Annotated[
        bool,
        typer.Option(
            "--answers", help="Also show some of the student's own answers (rollouts).", rich_help_panel=OUTPUT
        ),
    ] = False,
) -> None:
    """Show how a run is doing: step, loss, throughput, where its time goes, checkpoint, restarts."""
    from uld_ds.runs.status import run_status

    found = run_status(find_run(run))
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    console = Console(highlight=False)
    console.print(_table(found))
    if found.phase_shares:
        console.print(_phases(found, _bar_of(console)))
    if answers:
        console.print(shown_answers(found.rollouts))


def _table(found: RunStatus) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _rows(found).items():
        style = _COLORS.get(found.state, "") if name == found.name else ""
        table.add_row(Text(name), Text(value, style=style))
    return table


def _rows(found: RunStatus) -> dict[str, str]:
    ago = "" if found.seconds_since_last_sign is None else f", last sign {duration(found.seconds_since_last_sign)} ago"
    rows = {found.name: found.state + ("" if found.state == "finished" else ago)}
    if found.doing:
        rows["doing"] = found.doing
    if found.reason:
        rows["reason"] = found.reason
    if found.step is not None and found.total_steps is not None:
        left = f", {duration(found.seconds_left)} left" if found.seconds_left is not None else ""
        rows["progress"] = f"{found.step:,} of {found.total_steps:,} ({found.step / found.total_steps:.0%}){left}"
    if found.loss is not None:
        rows["loss"] = f"{found.loss:.4f}" + _parts(found)
    if found.held_out_bits_per_byte:
        said = ", ".join(f"{who} {value:.4f}" for who, value in found.held_out_bits_per_byte.items())
        rows["held-out bits per byte"] = said
    if found.tokens_per_second is not None and found.seconds_per_step is not None:
        rows["throughput"] = f"{found.tokens_per_second:,.0f} tokens/s, {found.seconds_per_step:.3g} s per step"
        if found.student_padding is not None:
            rows["throughput"] += f"; {found.student_padding:.0%} of the student's positions are padding"
    if found.server_wait is not None:
        rows["teacher's server"] = f"steps wait for it for {found.server_wait:.1%} of their time"
    if found.rollouts is not None:
        rows |= rollout_rows(found.rollouts)
    point = found.last_checkpoint
    rows["last checkpoint"] = (
        "none yet"
        if point is None
        else f"step {point['step']:,}, {duration(point['seconds_ago'])} ago, written in {point['seconds']:.1f} s"
    )
    rows["restarts"] = str(found.restarts)
    if found.skipped_steps:
        rows["skipped steps"] = str(found.skipped_steps)
    return rows


def _parts(found: RunStatus) -> str:
    if found.ce is None or found.uld is None:
        return ""
    bits = "" if found.bits_per_byte is None else f"; {found.bits_per_byte:.3f} bits per byte"
    return f" (cross-entropy {found.ce:.4f}, ULD {found.uld:.4f}{bits})"


def _bar_of(console: Console) -> str:
    """Choose what bars are drawn with: a block, where the output's encoding has it."""
    try:
        _BLOCK.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        return "#"
    return _BLOCK


def _phases(found: RunStatus, mark: str) -> Table:
    from uld_ds.runs.phases import MEANINGS

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0), title_justify="left")
    table.add_column(style="dim", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="dim", overflow="fold")
    table.add_row(Text("time of a step", style="bold"))
    for phase, share in found.phase_shares.items():
        bar = mark * round(share * _BAR_WIDTH)
        table.add_row(phase, f"{share:.1%}", bar, MEANINGS[phase])
    return table


def duration(seconds: float) -> str:
    """Write a duration as a person says it, in two units at most."""
    seconds = max(0, round(seconds))
    if seconds < _MINUTE:
        return f"{seconds} s"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE} min {seconds % _MINUTE} s"
    if seconds < _DAY:
        return f"{seconds // _HOUR} h {seconds % _HOUR // _MINUTE} min"
    return f"{seconds // _DAY} d {seconds % _DAY // _HOUR} h"
