"""``uld-ds score``: what it prints, and what it says about files that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from uld_ds.errors import UserError

ROWS = [
    {"prediction_text": "in Port Lune", "answers": ["Port Lune", "at Port Lune"]},
    {"prediction_text": "slate", "answers": "slate"},
    {"prediction_text": "", "answers": []},
    {"prediction_text": "ten", "answers": {"text": ["eleven minutes"]}},
]


def write(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_percentages_with_two_decimals(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", ROWS)
    # F1 0.8, 1, 1, 0; precision 2/3 + 2, recall 1 + 2; ROUGE-2 of one word without a bigram is 0.
    assert CliRunner().invoke(app, ["score", file]).stdout.splitlines() == [
        "f1          70.00",
        "precision   66.67",
        "recall      75.00",
        "em          50.00",
        "rouge1      70.00",
        "rouge2      41.67",
        "rougeL      70.00",
        "rougeLsum   70.00",
    ]
    found = json.loads(CliRunner().invoke(app, ["score", file, "--metrics", "em,f1", "--json"]).stdout)
    assert found == {"em": 50.0, "f1": 70.0, "rows": 4, "unanswerable": 1}
    found = json.loads(CliRunner().invoke(app, ["score", file, "--metrics", "em", "--intervals", "--json"]).stdout)
    assert found["intervals"] == {"em": [0.0, 100.0]}


def test_words_of_any_script_or_as_published(tmp_path: Path) -> None:
    rows = [
        {"prediction_text": "北京中国首都", "answers": "北京是中国的首都。"},
        {"prediction_text": "B", "answers": "A"},
    ]
    command = ["score", write(tmp_path / "p.jsonl", rows), "--metrics", "f1,rouge1", "--json"]
    found = json.loads(CliRunner().invoke(app, command).stdout)
    assert found == {"f1": 42.86, "rouge1": 42.86, "rows": 2, "unanswerable": 0}
    # The second row has no answer in the published reading: saying something is wrong.
    found = json.loads(CliRunner().invoke(app, [*command, "--words", "published"]).stdout)
    assert found == {"f1": 0.0, "rouge1": 0.0, "rows": 2, "unanswerable": 1}
    assert CliRunner().invoke(app, [*command, "--words", "english"]).exit_code == 2


def test_chrf(tmp_path: Path) -> None:
    rows = [{"prediction_text": "北京中国首都", "answers": "北京是中国的首都。"}]
    file = write(tmp_path / "p.jsonl", rows)
    # Means of six orders: precision (1 + 3/5) / 6, recall (6/9 + 3/8) / 6.
    assert CliRunner().invoke(app, ["score", file, "--metrics", "chrf"]).stdout == "chrf        18.66\n"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 1: Expecting property name"),
        ("[]", "line 1: 'prediction_text' is no text"),
        ('{"prediction_text": null, "answers": []}', "line 1: 'prediction_text' is no text"),
        ('{"prediction_text": "x"}', "line 1: 'answers' is missing"),
        ('{"prediction_text": "x", "answers": 3}', "line 1: 'answers' is neither a text nor a list of texts"),
        ("", "has no rows"),
    ],
)
def test_files_that_are_no_predictions(line: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(line)
    result = CliRunner().invoke(app, ["score", str(file)])
    assert isinstance(result.exception, UserError)
    assert str(result.exception).startswith(f"PREDICTIONS: {str(file)!r} {problem}")


def test_wrong_use(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["score", str(tmp_path / "none.jsonl")])
    assert str(result.exception).endswith("(No such file or directory); give a file of JSON lines")
    result = CliRunner().invoke(app, ["score", write(tmp_path / "p.jsonl", ROWS), "--metrics", "bleu"])
    assert str(result.exception).startswith("--metrics: 'bleu' is not known; ")
