"""A run of the command whose student learns from its own answers alone: what it leaves can be read by anybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.killable import Training


def strictly(text: str) -> Any:
    """Read JSON as the standard has it, which knows no NaN."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is no number of JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_prompts_alone_leaves_files_that_can_be_read(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "What is {number}?"}}\n' for number in range(20)))
    tiny_recipe["data"]["train"]["path"] = str(prompts)
    tiny_recipe["objective"] = {"uld": 1.0}
    tiny_recipe["training"] |= {"steps": 4, "checkpoint_every": 2}
    tiny_recipe["rollouts"] = {"share": 1.0, "every": 2, "max_new_tokens": 6, "samples_per_prompt": 2}
    training = Training(tiny_recipe, tmp_path)
    assert training.finish(600) == 0, training.errors()[-3000:]
    folder = training.run_dir
    result = strictly((folder / "result.json").read_text())
    assert result["alignment_rate"] is None
    assert result["bits_per_byte"]["after"] > 0
    assert " nan" not in training.errors().lower()
    events = [strictly(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert [event["round"] for event in events if event["event"] == "round"] == [0, 1]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3, 4]
    for file in folder.glob("*.json"):
        strictly(file.read_text())
    page = (folder / "report.html").read_text().lower()
    assert ">nan" not in page
    assert "nan%" not in page
