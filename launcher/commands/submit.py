"""``uld-ds submit``: run a recipe on a cluster, through Ray's job API."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from launcher.commands.options import OUTPUT, Address, Overrides
from uld_ds.errors import one_line

# Ray quotes what preparing the job's environment has printed.
_LONGEST_REASON = 1_000


def add_to(app: typer.Typer) -> None:
    """Add the verb ``submit`` to the command line."""
    app.command("submit")(submit)


def submit(
    recipe: Annotated[Path, typer.Argument(help="A recipe's YAML file, in the working directory.", show_default=False)],
    overrides: Overrides = None,
    address: Address = None,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Return when the cluster has taken the job.")] = False,
    working_dir: Annotated[
        Path, typer.Option(help="The folder that the job gets a copy of, without what .gitignore names.")
    ] = Path(),
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Leave files or folders out, e.g. 'figures'. Repeatable."),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=VALUE]", help="Send an environment variable; no secrets. Repeatable."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print what became of it as one last JSON object.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Send a run to a Ray cluster and follow it; the job's exit status is this command's.

    Ctrl-C asks whether to stop the job or to leave it running. Sending the same run again resumes it.
    """
    from launcher.jobs.client import connect
    from launcher.jobs.follow import DETACHED, Follower, ask_at_terminal, exit_status
    from launcher.jobs.submit import prepare_submission, send

    console = Console(stderr=True, highlight=False)

    def note(text: str) -> None:
        console.print(Text(text, style="dim"), soft_wrap=True)

    submission = prepare_submission(
        recipe, overrides or [], root=working_dir, exclude=exclude or [], environment=env or []
    )
    client = connect(address)
    for text in submission.notes:
        note(text)
    job_id = send(client, submission, note)
    facts = {"job": job_id, "run": submission.recipe.run.name, "address": client.get_address()}
    note(f"job {job_id!r} is with {facts['address']}: {_later(job_id, facts['address'])}")
    status, code = "PENDING", 0
    if not no_wait:
        job = Follower(client, job_id, out=sys.stderr, ask=lambda: ask_at_terminal(job_id)).follow()
        status, code = ("DETACHED", DETACHED) if job is None else (job.status.value, exit_status(job))
        if job is None:
            note(f"left: job {job_id!r} goes on; {_later(job_id, facts['address'])}")
        else:
            note(f"job {job_id!r} {status.lower()}")
            if job.driver_exit_code is None and code == 1:
                # It never came to run: its log does not say why.
                reason = one_line(job.message or "the job did not start", _LONGEST_REASON)
                console.print(Text.assemble(("error:", "bold red"), f" {reason}"), soft_wrap=True)
    if as_json:
        typer.echo(json.dumps({**facts, "status": status, "exit_status": None if no_wait else code}))
    raise typer.Exit(code)


def _later(job_id: str, address: str) -> str:
    return f"`uld-ds jobs --address {address}` shows it, `ray job stop {job_id} --address {address}` stops it"
