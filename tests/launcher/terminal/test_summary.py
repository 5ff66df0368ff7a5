"""The end of a run as a person reads it."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from launcher.terminal.summary import print_summary
from uld_ds.recipe import parse_recipe

RECIPE = parse_recipe(
    {
        "run": {"name": "a"},
        "teacher": {"model": "t"},
        "student": {"model": "s"},
        "data": {"train": {"source": "files", "path": "x"}},
        "training": {"steps": 1},
        "registry": {"model_name": "m", "alias": "best"},
    }
)
FACTS: dict[str, Any] = {
    "run_id": "r",
    "model_name": "m",
    "model_version": "3",
    "model_uri": "models:/m-1",
    "tracking_uri": "sqlite:////runs/mlflow.db",
    "export_dir": "/runs/[a]/export",
    "bits_per_byte": {"before": 4.0, "after": 3.0, "teacher": 1.5},
    "tokens_per_second": 1234.5,
    "alignment_rate": 0.876,
    "peak_memory_bytes": 3 * 2**29,
    "steps": 60,
    "final_loss": 2.34567,
    "wall_seconds": 61.7,
    "sample": {"prompt": "p", "answer": " Returns [/bold] x[0] :100: \n"},
}


def lines(**changes: Any) -> list[str]:
    out = io.StringIO()
    print_summary({**FACTS, **changes}, RECIPE, Console(file=out, width=100, highlight=False))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_table() -> None:
    text = lines()
    for name, value in {
        "held-out bits per byte, before": "4.0000",
        "held-out bits per byte, after": "3.0000 (-25.0%)",
        "held-out bits per byte, teacher": "1.5000",
        "tokens per second": "1,234",
        "alignment rate": "87.6%",
        "peak memory of a worker": "1.50 GiB",
        "steps, final loss": "60, 2.3457",
        "wall time": "62 s",
        "registered as": "m version 3",
        "exported to": "/runs/[a]/export",
    }.items():
        (row,) = [line for line in text if line.startswith(f"{name} ")]
        assert row.removeprefix(name).strip() == value


def test_reasoning_is_shown_apart_from_the_answer() -> None:
    titles = [line for line in lines(sample={"prompt": "p", "answer": "four", "reasoning": "so"}) if "─ the " in line]
    assert [title.strip("╭╮─ ") for title in titles] == ["the student thinks", "the student answers"]
    # Cut off while it thought, it has said nothing.
    text = "\n".join(lines(sample={"prompt": "p", "answer": "", "reasoning": "so"}))
    assert "the student thinks" in text and "the student answers" not in text


def test_one_tokenizer_on_both_sides_is_said() -> None:
    (row,) = [line for line in lines(same_tokenizer=True) if line.startswith("alignment rate ")]
    assert row.endswith("87.6%, one tokenizer on both sides")


def test_a_student_with_an_encoder_is_asked_as_a_pyfunc() -> None:
    (row,) = [line for line in lines(has_encoder=True) if "load_model" in line]
    assert row.endswith("print(mlflow.pyfunc.load_model('models:/m@best').predict({'prompt': 'Hello'}))\"")


def test_an_answer_is_shown_as_it_is_whatever_it_looks_like() -> None:
    (row,) = [line for line in lines() if "Returns" in line]
    assert row.strip("│ ") == "Returns [/bold] x[0] :100:"
    assert not any("answers" in line for line in lines(sample={"prompt": "p", "answer": ""}))


def test_commands_to_look_further(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = Path(sys.executable).parent
    monkeypatch.setenv("PATH", str(environment))
    assert lines()[-2:] == [
        "  mlflow ui --backend-store-uri sqlite:////runs/mlflow.db",
        '  MLFLOW_TRACKING_URI=sqlite:////runs/mlflow.db python -c "import mlflow; '
        "print(mlflow.transformers.load_model('models:/m@best')('Hello', max_new_tokens=20))\"",
    ]
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(environment.parent)
    assert lines()[-2].startswith(f"  {environment.name}/mlflow ui "), "an environment that is not activated"
    assert f" {environment.name}/python -c " in lines()[-1]


def test_what_was_not_measured_or_registered() -> None:
    text = lines(
        model_name=None,
        model_version=None,
        bits_per_byte={"before": None, "after": None, "teacher": None},
        tokens_per_second=None,
        final_loss=None,
    )
    assert any(line.split() == ["held-out", "bits", "per", "byte,", "after", "-"] for line in text)
    assert any(line.split() == ["registered", "as", "not", "registered"] for line in text)
    assert "load_model('models:/m-1')" in text[-1]


def test_a_server_is_looked_at_and_not_started() -> None:
    assert "  http://mlflow:5000" in lines(tracking_uri="http://mlflow:5000")
    assert any("mlflow ui --backend-store-uri sqlite:////runs/mlflow.db" in line for line in lines())
