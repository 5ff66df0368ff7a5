"""``uld-ds score``: how good the answers in a file are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from launcher.commands.options import OUTPUT
from uld_ds.errors import UserError

if TYPE_CHECKING:
    from uld_ds.evaluation.predictions import Prediction

_FIX = 'write one {"prediction_text": "...", "answers": ["...", ...]} per line'


def add_to(app: typer.Typer) -> None:
    """Add the verb ``score`` to the command line."""
    app.command("score")(score)


def score(
    predictions: Annotated[
        Path, typer.Argument(help="JSON lines with prediction_text and answers.", show_default=False)
    ],
    metrics: Annotated[
        str, typer.Option(metavar="NAMES", help="accuracy, f1, precision, recall, em, rouge, chrf, bertscore.")
    ] = "f1,precision,recall,em,rouge",
    words: Annotated[
        Literal["unicode", "published"],
        typer.Option(help="How they read text: any script, or English as the paper's scores do."),
    ] = "unicode",
    intervals: Annotated[bool, typer.Option("--intervals", help="Also 95 % bootstrap intervals.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As a JSON object.", rich_help_panel=OUTPUT)] = False,
) -> None:
    """Score answers against references: percentages, the best reference counts."""
    from uld_ds.evaluation import metrics as scoring
    from uld_ds.evaluation.predictions import is_unanswerable

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    scoring.score_names(names)
    rows = _read(predictions)
    scores = scoring.score(rows, names, words=words)
    percentages = scores.percentages()
    bounds = scores.intervals() if intervals else {}
    unanswerable = sum(is_unanswerable(row, words) for row in rows)
    if as_json:
        facts: dict[str, Any] = {**percentages, "rows": len(rows), "unanswerable": unanswerable}
        typer.echo(json.dumps(facts | ({"intervals": bounds} if intervals else {})))
        return
    for name, value in percentages.items():
        interval = f"  [{bounds[name][0]:.2f}, {bounds[name][1]:.2f}]" if name in bounds else ""
        typer.echo(f"{name:10} {value:6.2f}{interval}")


def _read(file: Path) -> list[Prediction]:
    """Read predictions from JSON lines.

    Raises:
        UserError: the file or a line of it cannot be read.
    """
    from uld_ds.evaluation.metrics import as_references
    from uld_ds.evaluation.predictions import Prediction

    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UserError("PREDICTIONS", f"cannot read {str(file)!r} ({reason})", "give a file of JSON lines") from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or not isinstance(row.get("prediction_text"), str):
                raise ValueError("'prediction_text' is no text")
            if "answers" not in row:
                raise ValueError("'answers' is missing")
            rows.append(Prediction(row["prediction_text"], as_references(row["answers"])))
        except ValueError as error:
            raise UserError("PREDICTIONS", f"{str(file)!r} line {number}: {error}", _FIX) from error
    if not rows:
        raise UserError("PREDICTIONS", f"{str(file)!r} has no rows", _FIX)
    return rows
