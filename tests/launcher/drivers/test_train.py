"""What a run is made of before it begins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from launcher.drivers.preflight import claim_run_dir
from launcher.drivers.train import prepare
from launcher.terminal.progress import ProgressView
from uld_ds.data.prepared import Split
from uld_ds.recipe import parse_recipe
from uld_ds.runs.folder import RunFolder


def test_until_it_begins_a_run_reads_its_files_anew(
    tiny_recipe: dict[str, Any], rows: list[dict[str, str]], tmp_path: Path
) -> None:
    """Its rows, and the tokenizer that is trained on them; once it has begun it keeps both."""
    model = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tiny_recipe["student"] = {
        "from_config": model | {"num_attention_heads": 2, "num_key_value_heads": 2},
        "tokenizer": {"train": "bpe", "vocab_size": 300},
        "max_length": 256,
    }
    recipe = parse_recipe(tiny_recipe)
    file = Path(tiny_recipe["data"]["train"]["path"])

    def attempt() -> tuple[str, int, set[str]]:
        run_dir = claim_run_dir(recipe)
        found = prepare(recipe, run_dir, "", ProgressView(RunFolder(run_dir).progress))
        split = Split.load(Path(found["splits"]["train"]))
        vocabulary = json.loads((Path(found["student"]) / "tokenizer.json").read_text())["model"]["vocab"]
        return split.facts.digest, split.facts.examples, set(vocabulary)

    first = attempt()
    assert first[1] == 48
    file.write_text("".join(json.dumps({"prompt": row["prompt"], "answer": "ZYX" * 9}) + "\n" for row in rows[:20]))
    second = attempt()
    assert second[1] == 20
    assert second[0] != first[0] and second[2] != first[2]
    assert any("ZYX" in token for token in second[2])
    (recipe.run_dir / "mlflow_run_id").write_text("1")
    file.write_text(json.dumps(rows[0]) + "\n")
    assert attempt() == second


def test_a_run_that_began_under_zero_3_goes_on_under_it(tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    """Its shards fit nothing else; a run without checkpoints takes what is the default now, and says so."""
    recipe = parse_recipe(tiny_recipe)
    run_dir = claim_run_dir(recipe)
    said: list[str] = []

    class View(ProgressView):
        def note(self, text: str) -> None:
            said.append(text)

    def size() -> int | None:
        return prepare(recipe, run_dir, "", View(RunFolder(run_dir).progress))["weight_bytes"]

    files = Path(tiny_recipe["student"]["model"])
    assert size() == sum(weight.nbytes for weight in load_file(files / "model.safetensors").values())
    assert any("whole on each worker (ZeRO-2)" in text for text in said)
    said.clear()
    shard = run_dir / "checkpoint_000000003" / "state" / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    shard.parent.mkdir(parents=True)
    shard.touch()
    assert size() is None
    assert not any("ZeRO-2" in text for text in said)
