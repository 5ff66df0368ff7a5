"""What MLflow keeps of the student's own answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.run_folders import add_rounds, own_answer
from uld_ds.tracking.run_record import log_own_answers


class Client:
    def __init__(self) -> None:
        self.logged: dict[str, Any] = {}

    def log_dict(self, run_id: str, dictionary: Any, artifact_file: str) -> None:
        assert run_id == "abc"
        self.logged[artifact_file] = dictionary


def logged(folder: Path) -> dict[str, Any]:
    client: Any = Client()
    log_own_answers(client, "abc", folder)
    return client.logged


def test_a_table_of_answers_without_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "planted-secret")
    writer = add_rounds(tmp_path / "progress.jsonl", 1)
    unjudged = own_answer("planted-secret?", "no", (0.5, float("nan")))
    writer.rollout_answers(1, 26, [unjudged])
    (table,) = logged(tmp_path).values()
    columns = ["round", "step", "prompt", "answer", "ended", "student_nats", "teacher_nats", "bytes"]
    assert table["columns"] == columns
    assert len(table["data"]) == 4
    assert table["data"][0] == [0, 1, "What is 0 <+> 0?", "It is 0.", True, 4.0, 8.0, 8]
    assert table["data"][3] == [1, 26, "***?", "no", True, 1.0, None, 2]


def test_a_run_without_rollouts_has_no_table(tmp_path: Path) -> None:
    assert logged(tmp_path) == {}
