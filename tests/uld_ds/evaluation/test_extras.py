"""Metrics that need packages of their own: where these are installed, on tiny models made here."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

from uld_ds.errors import UserError
from uld_ds.evaluation.harness import check_suites, suite_scores
from uld_ds.models.pretrained import Pretrained

ROOT = Path(__file__).parents[3]


def installed(package: str) -> Any:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} is not installed")


# ---- BERTScore


def save_stand_in_for_roberta(cache: Path) -> None:
    """What the package looks for in the hub's cache: random weights and bytes for tokens."""
    revision = "a" * 40
    folder = cache / "models--roberta-large"
    snapshot = folder / "snapshots" / revision
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(revision)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    entries = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    plain = Tokenizer(models.BPE({entry: number for number, entry in enumerate(entries)}, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        cls_token="<s>", sep_token="</s>", mask_token="<mask>", model_max_length=512,
    ).save_pretrained(snapshot)  # fmt: skip
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 24, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(vocab_size=len(entries), max_position_embeddings=514, **shape)
    RobertaModel(config).save_pretrained(snapshot)


@pytest.mark.slow
@installed("bert_score")
def test_bertscore(tmp_path: Path) -> None:
    save_stand_in_for_roberta(tmp_path / "hub")
    rows = [
        {"prediction_text": "the cat sat", "answers": ["the cat sat", "a dog"]},
        {"prediction_text": "the dog did", "answers": "the cat sat on the mat"},
        {"prediction_text": "", "answers": ""},
        {"prediction_text": " ", "answers": ["x"]},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [sys.executable, "-m", "launcher", "score", str(file), "--metrics", "bertscore", "--json"]
    environment = os.environ | {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # 1 for the same words, 1 for nothing where there is nothing, 0 for nothing, and below 1 for other words.
    assert found["bertscore"] < 75.0
    file.write_text("".join(json.dumps(row) + "\n" for row in (rows[0], rows[2], rows[3])))
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["bertscore"] == 66.67


# ---- lm-evaluation-harness

TASK = """
task: colors
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 1.0}}
"""


@pytest.fixture
def suite(tmp_path: Path, rows: list[dict[str, str]]) -> Path:
    """Which of two continuations is likelier: one that ends training answers, or noise."""
    questions = [{"question": row["prompt"], "choices": [row["answer"], "zq" * 90], "answer": 0} for row in rows[:6]]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    (file := tmp_path / "colors.yaml").write_text(TASK.format(rows=tmp_path / "rows.jsonl"))
    return file


@pytest.mark.slow
@installed("lm_eval")
def test_a_suite_of_the_harness(suite: Path, tiny_teacher: Path) -> None:
    options: dict[str, Any] = {"device": torch.device("cpu"), "batch_size": 4}
    found = suite_scores(Pretrained(str(tiny_teacher)), "fp32", [str(suite)], **options)
    assert found.keys() == {"colors"}
    colors = found["colors"]
    assert colors["rows"] == 6
    assert colors["version"] == 1.0
    # Long noise is less likely than a short answer, whatever the weights.
    assert colors["metrics"] == {"acc": 1.0}
    assert colors["errors"] == {"acc": 0.0}
    assert suite_scores(Pretrained(str(tiny_teacher)), "fp32", [str(suite)], limit=2, **options)["colors"]["rows"] == 2


@installed("lm_eval")
def test_suites_that_are_not_there(suite: Path) -> None:
    with pytest.raises(UserError, match=r"^evaluation.suites: lm-evaluation-harness has no 'hellaswaq'; `lm-eval ls"):
        check_suites(["hellaswag", "hellaswaq"])
    with pytest.raises(UserError, match=r"^evaluation.suites: no file 'x.yaml'; correct the path"):
        check_suites(["x.yaml"])
    with pytest.raises(UserError, match=r"name the file after its task$"):
        check_suites([str(suite.rename(suite.with_name("other.yaml")))])


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is not None, reason="it is installed")
def test_the_harness_is_not_installed() -> None:
    check_suites([])
    with pytest.raises(UserError, match=r"need lm-evaluation-harness; pip install 'uld-ds\[harness\]'$"):
        check_suites(["hellaswag"])
