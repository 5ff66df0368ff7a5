"""``uld-ds plan``: what a recipe will take, before anything is started."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.commands.options import OUTPUT, Overrides, RecipeFile
from launcher.terminal.quiet import no_news
from uld_ds.errors import UserError
from uld_ds.recipe import load_recipe

if TYPE_CHECKING:
    from launcher.plan.plan import Plan
    from launcher.plan.sampling import Round

_GB = 10**9
_HARDWARE = "Hardware"


def add_to(app: typer.Typer) -> None:
    """Add the verb ``plan`` to the command line."""
    app.command("plan")(plan)


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    student_tokens: Annotated[
        float | None, typer.Option(help="Mean length of an example. Default: student.max_length.", min=1)
    ] = None,
    teacher_tokens: Annotated[
        float | None, typer.Option(help="Mean length of an example. Default: teacher.max_length.", min=1)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--on", help="gpu or cpu. Default: as cluster.accelerator says.", rich_help_panel=_HARDWARE),
    ] = None,
    memory: Annotated[
        float, typer.Option(help="GB of each GPU, or of memory for each CPU worker.", min=0, rich_help_panel=_HARDWARE)
    ] = 80.0,
    per_node: Annotated[int, typer.Option(help="Workers of a node.", min=1, rich_help_panel=_HARDWARE)] = 8,
    tflops: Annotated[
        float | None,
        typer.Option(help="Peak of a device, dense. Default: 989 (bf16, H100); CPU: 0.2.", rich_help_panel=_HARDWARE),
    ] = None,
    efficiency: Annotated[
        float, typer.Option(help="Share of it that is reached.", min=0.01, max=1, rich_help_panel=_HARDWARE)
    ] = 0.4,
    inter_gbps: Annotated[
        float, typer.Option(help="Gbit/s into a node from others.", min=0.001, rich_help_panel=_HARDWARE)
    ] = 400.0,
    intra_gbps: Annotated[
        float, typer.Option(help="Gbit/s into a device from its node.", min=0.001, rich_help_panel=_HARDWARE)
    ] = 3600.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the plan as one JSON object.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Count memory per worker, traffic and time per step; say what does not fit and which change would make it fit."""
    loaded = load_recipe(recipe, overrides or [])
    kind = _kind(device, loaded.cluster.accelerator)
    with no_news():
        from launcher.plan.plan import Plan
        from launcher.plan.shapes import student_shape, teacher_shape
        from launcher.plan.speed import Hardware

        peak = tflops or (989.0 if kind == "gpu" else 0.2)
        found = Plan(
            recipe=loaded,
            hardware=Hardware(kind, int(memory * _GB), per_node, peak, efficiency, inter_gbps, intra_gbps),
            student_shape=student_shape(loaded.student),
            teacher_shapes={own.name: teacher_shape(own) for own in loaded.teachers if own.source == "online"},
            student_tokens=student_tokens or loaded.student.max_length,
            teacher_tokens=teacher_tokens,
        )
        if as_json:
            typer.echo(json.dumps(found.to_json()))
        else:
            _show(found)


def _kind(asked: str | None, accelerator: str) -> Literal["cpu", "gpu"]:
    if asked not in (None, "cpu", "gpu"):
        raise UserError("--on", f"{asked!r} is no kind of device", "write gpu or cpu")
    return "cpu" if (asked or accelerator) == "cpu" else "gpu"


def _show(found: Plan) -> None:
    console = Console(highlight=False)
    for block in (_models(found), _memory(found), _step(found)):
        console.print(block)
        console.print()
    console.print(Text(_verdict(found), style="bold"), soft_wrap=True)
    for line in _advice(found):
        console.print(Text(line), soft_wrap=True)


def _rows(title: str, rows: list[tuple[str, ...]]) -> Table:
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    for _ in range(max(map(len, rows)) - 1):
        table.add_column(overflow="fold")
    table.add_row(Text(title, style="bold"))
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _models(found: Plan) -> Table:
    hardware = found.hardware
    nodes = hardware.nodes(found.ranks)
    where = f"{found.ranks} x {hardware.memory / _GB:g} GB {found.kind.upper()}, {nodes} node{'s' * (nodes > 1)}"
    student = _described(found.student_shape)
    if found.student_shape.learning < found.student_shape.parameters:
        student += f"; {found.student_shape.learning / 1e6:,.1f} million of them learn"
    rows: list[tuple[str, ...]] = [("workers", where), *_teachers(found), ("student", student)]
    if found.student_shape.adapters is not None:
        rows.append(("", found.student_shape.adapters))
    return _rows("plan", rows)


def _teachers(found: Plan) -> list[tuple[str, ...]]:
    running = {teacher.settings.name: teacher.role.shape for teacher in found.teachers}
    rows: list[tuple[str, ...]] = []
    for settings in found.recipe.teachers:
        shape = running.get(settings.name)
        elsewhere = "stored" if settings.server is None or settings.source == "stored" else "served elsewhere"
        said = f"{elsewhere}: takes no memory" if shape is None else _described(shape)
        rows.append((settings.key.replace("teachers.", "teacher "), said))
    return rows


def _described(shape: Any) -> str:
    return f"{shape.name}: {shape.parameters / 1e9:.3g} billion parameters, vocabulary {shape.vocab:,}"


def _memory(found: Plan) -> Table:
    rows: list[tuple[str, ...]] = []
    for line in found.lines:
        when = "" if line.moment == "always" else f"while {_MOMENTS[line.moment]}"
        rows.append((f"  {line.role}", line.what, f"{line.bytes / _GB:.2f}", line.place, when))
    rows.append(("  at most", "of a device", f"{found.device_peak / _GB:.2f}", "device", ""))
    if found.kind == "gpu":
        rows.append(("  at most", "of the host, first worker", f"{found.host_peak / _GB:.2f}", "host", ""))
    for what, size in found.disk.items():
        rows.append(("  disk", what, f"{size / _GB:.2f}", "shared", ""))
    return _rows("memory of a worker, GB", rows)


_MOMENTS = {
    "loading": "loading",
    "sampling": "the student answers",
    "teacher": "the teacher runs",
    "student": "the student learns",
    "step": "updating",
}


def _step(found: Plan) -> Table:
    facts = found.to_json()
    rows: list[tuple[str, ...]] = []
    for role, tokens in facts["tokens_per_window"].items():
        rows.append((f"  {role} tokens", f"{tokens:,.0f} per worker and step"))
    if found.teachers:
        rows.append(("  teacher forwards", f"{found.teacher_forwards}, each with one gather of its weights"))
    if found.round is not None:
        rows.append(("  rollouts", _sampled(found.round, found.recipe.rollouts)))
    for role, moved in facts["traffic_bytes"].items():
        into = f"{moved['per_device'] / _GB:.2f} GB into each device, {moved['per_node'] / _GB:.2f} GB into each node"
        rows.append((f"  {role} traffic", into))
    for role, seconds in facts["seconds"].items():
        if role != "step":
            rows.append(
                (f"  {role} time", f"{seconds['compute']:.3g} s computing, {seconds['wire']:.3g} s on the wire")
            )
    rows.append(("  step", f"{facts['seconds']['step']:.3g} s" + _later(found)))
    return _rows("an optimizer step", rows)


def _sampled(of_round: Round, settings: Any) -> str:
    """Say how much there is to sample, and what of that is not in the other numbers."""
    who, more = "worker", "its time is not counted: it follows from no rate here"
    if settings.engine == "vllm":
        who, more = "actor", "what actors take, time and memory, is not counted"
    count = "1 batch" if of_round.batches == 1 else f"{of_round.batches:,} batches"
    return (
        f"{of_round.answers:,} answers every {of_round.steps:,} steps in {count}, up to {of_round.batches_of_worker:,} "
        f"of each {who}, with up to {of_round.max_new_tokens:,} forwards of one token each; {more}"
    )


def _later(found: Plan) -> str:
    own = found.recipe.own_examples
    cached = any(teacher.settings.cache for teacher in found.teachers)
    if not cached or own == found.recipe.training.batch_size:
        return ""
    of_given = " of given answers" if own else ""
    return f"; {found.cached_seconds():.3g} s once teacher outputs{of_given} are cached"


def _verdict(found: Plan) -> str:
    peak, memory = found.device_peak / _GB, found.hardware.memory / _GB
    if found.fits:
        return f"It fits: {peak:.1f} of {memory:g} GB."
    return f"It does not fit: {peak:.1f} GB needed, {memory:g} GB there."


def _advice(found: Plan) -> list[str]:
    needed = found.devices_needed()
    held = "1 such device holds it." if needed == 1 else f"{needed} such devices hold it."
    devices = "No number of such devices holds it as it is." if needed is None else held
    if found.fits:
        return [devices]
    changes = [" ".join(f"--set {key}={_yaml(value)}" for key, value in c.items()) for c in found.helpful_changes()]
    if not changes:
        return [devices, "No single change of the recipe makes it fit here."]
    return [devices, "Each of these makes it fit here:", *(f"  {change}" for change in changes)]


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
