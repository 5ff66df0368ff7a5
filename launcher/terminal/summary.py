"""The summary that a finished run prints at its end."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from uld_ds.recipe import Recipe


def print_summary(facts: dict[str, Any], recipe: Recipe, console: Console | None = None) -> None:
    """Print a short table, one sample answer, and the commands to look further, on standard error."""
    console = console or Console(stderr=True, highlight=False)
    console.print(_table(facts))
    sample = facts["sample"]
    for said, title in (("reasoning", "the student thinks"), ("answer", "the student answers")):
        if sample.get(said):
            console.print(Panel(Text(sample[said].strip()), title=title, title_align="left"))
    console.print("look further:", style="bold")
    console.print(Text(f"  {_looking_command(facts['tracking_uri'])}"), soft_wrap=True)
    console.print(Text(f"  {_loading_command(facts, recipe)}"), soft_wrap=True)


def _program(name: str) -> str:
    """Tell how to call a program of this environment from here, whether or not the environment is activated."""
    path = Path(sys.executable).parent / name
    if not path.exists() or shutil.which(name) == str(path):
        return name
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _table(facts: dict[str, Any]) -> Table:
    bits = facts["bits_per_byte"]
    registered = f"{facts['model_name']} version {facts['model_version']}" if facts["model_name"] else "not registered"
    rows = {
        "held-out bits per byte, before": _number(bits["before"]),
        "held-out bits per byte, after": _number(bits["after"]) + _change(bits),
        "held-out bits per byte, teacher": _number(bits["teacher"]),
        "tokens per second": _number(facts["tokens_per_second"], ",.0f"),
        "alignment rate": _number(facts["alignment_rate"], ".1%")
        + (", one tokenizer on both sides" if facts.get("same_tokenizer") else ""),
        "peak memory of a worker": f"{facts['peak_memory_bytes'] / 2**30:.2f} GiB",
        "steps, final loss": f"{facts['steps']}, {_number(facts['final_loss'])}",
        "wall time": _number(facts.get("wall_seconds"), ".0f") + " s",
        "registered as": registered,
        "exported to": facts["export_dir"],
    }
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, value in rows.items():
        table.add_row(name, Text(value, overflow="fold"))
    return table


def _number(value: float | None, form: str = ".4f") -> str:
    return "-" if value is None else format(value, form)


def _change(bits: dict[str, float | None]) -> str:
    before, after = bits["before"], bits["after"]
    return "" if before is None or after is None else f" ({(after - before) / before:+.1%})"


def _looking_command(uri: str) -> str:
    """Write the command that shows MLflow's pages: a server has them already, a database needs a program."""
    return (
        uri
        if uri.startswith(("http://", "https://"))
        else f"{_program('mlflow')} ui --backend-store-uri {shlex.quote(uri)}"
    )


def _loading_command(facts: dict[str, Any], recipe: Recipe) -> str:
    uri = f"models:/{facts['model_name']}@{recipe.registry.alias}" if facts["model_name"] else facts["model_uri"]
    ask = f"mlflow.transformers.load_model('{uri}')('Hello', max_new_tokens=20)"
    if facts.get("has_encoder"):  # transformers has no pipeline for it
        ask = f"mlflow.pyfunc.load_model('{uri}').predict({{'prompt': 'Hello'}})"
    where = shlex.quote(facts["tracking_uri"])
    return f'MLFLOW_TRACKING_URI={where} {_program("python")} -c "import mlflow; print({ask})"'
