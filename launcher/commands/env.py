"""``uld-ds env``: versions and devices, to paste into a bug report."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from launcher.commands.options import OUTPUT

_GIB = 1 << 30


def add_to(app: typer.Typer) -> None:
    """Add the verb ``env`` to the command line."""
    app.command("env")(env)


def env(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the facts as one JSON object.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Show versions, devices and variables of this installation, to paste into a bug report.

    Secrets are hidden, by their names and shapes. A library that cannot be imported says why in its line.
    """
    from launcher.drivers.bug_report import bug_report

    facts = bug_report()
    typer.echo(json.dumps(facts) if as_json else as_block(facts))


def as_block(facts: Mapping[str, Any]) -> str:
    """Return the facts of ``bug_report`` as a fenced block of Markdown, one fact per line."""
    parts = [list(part) for part in (_program(facts), _libraries(facts), _devices(facts), _surroundings(facts))]
    width = max(len(name) for part in parts for name, _ in part)
    text = "\n\n".join("\n".join(f"{name:{width}}  {value}" for name, value in part) for part in parts)
    # A value must not end the block, nor a line.
    return "```text\n" + text.replace("```", "'''") + "\n```"


def _program(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    own = facts["uld_ds"]
    yield "uld-ds", f"{own['version']}, code {own['revision']}{'-dirty' if own['dirty'] else ''}"
    yield "python", facts["python"]
    yield "platform", facts["platform"]


def _libraries(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name, found in facts["libraries"].items():
        extra = f" (extra {found['extra']})" if found["extra"] else ""
        if found["version"] is None:
            yield name, f"not installed{extra}"
        elif found["problem"] is not None:
            yield name, f"{found['version']}, BROKEN: {found['problem']}"
        else:
            yield name, found["version"]


def _devices(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    machine, torch, driver = facts["machine"], facts["torch"], facts["nvidia_smi"]
    yield "cpu", f"{machine['cpu']}, {_bf16(machine['cpu_bf16'])}"
    yield "cores", f"{machine['usable_cores']:g} usable of {machine['cores']}"
    limit = machine["memory_limit_bytes"]
    yield "memory", _gib(machine["memory_bytes"]) + ("" if limit is None else f", limited to {_gib(limit)}")
    if torch is None:
        yield "torch's GPU", "unknown: torch cannot be imported"
    else:
        yield "torch's CPU", f"{torch['cpu_kernels']} kernels, {torch['threads']} threads"
        kind = ("HIP", torch["hip"]) if torch["hip"] else ("CUDA", torch["cuda"])
        yield "torch's GPU", f"{kind[0]} {kind[1] or 'none'}, NCCL {torch['nccl'] or 'none'}"
        for index, gpu in enumerate(torch["gpus"]):
            size, able = _gib(gpu["memory_bytes"]), _bf16(gpu["bf16"])
            yield f"gpu {index}", f"{gpu['name']}, {size}, capability {gpu['capability']}, {able}"
        if not torch["gpus"]:
            yield "gpus", "none that torch can use"
    if driver is not None:
        yield "nvidia-smi", driver["problem"] or f"driver {driver['driver']}: {', '.join(driver['gpus']) or 'no GPU'}"


def _surroundings(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    cache = facts["cache"]
    yield "cache", f"{cache['folder']}{'' if cache['exists'] else ' (not there yet)'}, {_gib(cache['free_bytes'])} free"
    for name, value in facts["environment"].items():
        yield name, " ".join(value.split())


def _bf16(able: bool) -> str:
    return "bf16" if able else "no bf16"


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / _GIB:.1f} GiB"
