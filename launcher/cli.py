"""The command line: one verb per file in commands/, imported only when it is used."""

from __future__ import annotations

import errno
import io
import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.text import Text

from launcher.commands import (
    align,
    compare,
    env,
    evaluate,
    generate,
    jobs,
    lineage,
    plan,
    promote,
    recipes,
    report,
    score,
    status,
    store,
    submit,
    train,
)
from launcher.terminal.help_panels import group
from uld_ds.errors import RunError, UserError, one_line
from uld_ds.utils.cache import cache_dir
from uld_ds.version import __version__

STORAGE_ERRORS = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.ELOOP, errno.EIO, errno.ESTALE),
}

NAME = "uld-ds"

app = typer.Typer(
    name=NAME,
    help="Distil large language models into small ones across tokenizers.",
    epilog="Exit status: 0 done, 1 begun and failed, 2 cannot be done as asked; 130 and 143: docs/command-line.md",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
train.add_to(app)
plan.add_to(app)
status.add_to(app)
report.add_to(app)
submit.add_to(app)
jobs.add_to(app)
compare.add_to(app)
align.add_to(app)
recipes.add_to(app)
store.add_to(app)
generate.add_to(app)
evaluate.add_to(app)
score.add_to(app)
promote.add_to(app)
lineage.add_to(app)
env.add_to(app)
group(app)


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=lambda on: _print_version(on), help="Show the version."),
    ] = False,
) -> None:
    """Distil large language models into small ones across tokenizers."""


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"uld-ds {__version__}")
        raise typer.Exit


def main() -> None:
    """Run the command line; the exit status is 0 when done, 1 when the run failed, 2 for wrong use."""
    # Imported libraries print banners of their own; what this program says is below.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Workers read libraries' files, and some libraries read their own in the encoding of the locale (torch 2.13).
    os.environ["PYTHONUTF8"] = "1"
    _write_any_text()
    try:
        # Named: completion looks for it, and `python -m launcher` is the same program.
        app(prog_name=NAME)
    except (UserError, RunError) as error:
        _fail(str(error), error.exit_status)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            _fail(f"{str(error.filename)[:60]}...: {error.strerror}; give a shorter one", UserError.exit_status)
        _fail_at_storage(error)


def _fail_at_storage(error: OSError) -> NoReturn:
    place, cache = str(error.filename or "storage"), cache_dir()
    if cache.is_relative_to(place) or Path(place).is_relative_to(cache):
        _fail(f"{place}: {error.strerror}; set ULD_DS_CACHE to a folder that can be written", 1)
    if error.errno not in STORAGE_ERRORS:
        raise error
    _fail(f"{place}: {error.strerror}; make room there, or name another folder", 1)


def _write_any_text() -> None:
    """Write what a locale has no character for, such as a bar in Latin-1, by its number: output is not lost for it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(message: str, exit_status: int) -> NoReturn:
    # Bytes of the command line that are not UTF-8 are lone surrogates, which cannot be written.
    message = one_line(message, None).encode(errors="backslashreplace").decode()
    line = Text.assemble(("error:", "bold red"), " ", message)
    Console(stderr=True, highlight=False).print(line, soft_wrap=True)
    sys.exit(exit_status)
