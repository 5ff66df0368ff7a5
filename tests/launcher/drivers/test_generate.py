"""``uld-ds generate`` and ``uld-ds evaluate`` over tiny models."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from launcher.cli import app
from launcher.drivers.generate import _cause, _identity, prompt_ends, vllm_sampling
from tests.helpers.thinkers import QUESTION, thinking_tokenizer
from tests.helpers.tiny import save_tiny_model
from tests.helpers.toy_tokenizers import toy
from uld_ds.data.examples import Example, ExampleReader
from uld_ds.data.sides import TextSide
from uld_ds.data.sources import load_rows
from uld_ds.errors import UserError
from uld_ds.generation.decoding import Decoding
from uld_ds.generation.prompts import Prompt
from uld_ds.recipe import DataSettings, FilesSource, ModelSettings, parse_recipe

FIXTURES = Path(__file__).parents[2] / "fixtures" / "tasks"
PLAIN = "{prompt}\nAnswer:"


@pytest.fixture
def squad(tiny_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """A recipe over the squad fixture, whose tiny teacher never ends its turn."""
    for side in ("teacher", "student"):
        tiny_recipe[side] |= {"prompt_template": PLAIN, "max_length": 400}
    source = {"source": "files", "path": str(FIXTURES / "squad.jsonl")}
    tiny_recipe["data"] = {"train": source, "eval": source, "task": "squad", "shots": 0}
    tiny_recipe["generation"] = {
        "max_new_tokens": 6, "batch_size": 4, "held_out": 0.3, "drop": ["empty"], "stop": []
    }  # fmt: skip
    file = tmp_path / "squad.yaml"
    file.write_text(yaml.safe_dump(tiny_recipe))
    return file


def run(*words: str) -> Any:
    result = CliRunner().invoke(app, list(words))
    if result.exception is not None:
        raise result.exception
    return json.loads(result.stdout.splitlines()[-1])


def test_evaluate(squad: Path, tiny_student: Path, tmp_path: Path) -> None:
    facts = run("evaluate", str(tiny_student), str(squad), "--output", str(tmp_path / "e"), "--json")
    assert (facts["rows"], facts["prompts"], facts["unanswerable"]) == (12, 12, 2)
    assert list(facts["scores"]) == ["f1", "precision", "recall", "em", "rouge1", "rouge2", "rougeL", "rougeLsum"]
    bits = facts["bits_per_byte"]
    assert 4 < bits["low"] < bits["mean"] < bits["high"] < 20  # a random model
    assert bits["examples"] == 12
    # The same scores from the file of predictions.
    scored = run("score", str(tmp_path / "e" / "predictions.jsonl"), "--words", "published", "--json")
    assert {name: scored[name] for name in facts["scores"]} == facts["scores"]
    assert json.loads((tmp_path / "e" / "evaluation.json").read_text()) == facts
    assert facts["words"] == "published"  # as the task says, or as the recipe does
    chosen = ("--set", "evaluation.metrics=[em]", "--set", "data.eval.limit=2", "--set", "evaluation.words=unicode")
    other = run("evaluate", str(tiny_student), str(squad), *chosen, "--json")
    assert (list(other["scores"]), other["words"]) == (["em"], "unicode")


def test_wrong_use_of_evaluate(squad: Path, tiny_student: Path) -> None:
    for words, problem in {
        ("--set", "data.eval=null"): "data.eval: is missing; ",
        ("--set", "evaluation.metrics=[bleu]"): "evaluation.metrics: 'bleu' is not known; ",
        ("--set", "data.task=qed", "--set", "data.shots=null"): "data.task: 'qed' needs column 'paragraph_text', ",
    }.items():
        with pytest.raises(UserError) as caught:
            run("evaluate", str(tiny_student), str(squad), *words)
        assert str(caught.value).startswith(problem)
    with pytest.raises(UserError, match=r"^generation.engine: 'vllm' is not installed; "):
        run("generate", str(squad), "--set", "generation.engine=vllm")


def test_what_actors_raised_is_told_without_advice() -> None:
    text = (
        "Traceback (most recent call last):\n  File 'x'\nRuntimeError: no memory on the device\n\n"
        "To change retry attempts, configure `DataContext.get_current()` if you believe this to be transient."
    )
    assert _cause(RuntimeError(text)) == "RuntimeError: no memory on the device"
    assert _cause(RuntimeError("nothing that looks like one\n")) == "nothing that looks like one"
    assert _cause(RuntimeError()) == "RuntimeError"


def test_answers_to_typed_tokens_as_text_are_others(tmp_path: Path) -> None:
    """The prompt's text is the same, and so is its id."""
    tree: dict[str, Any] = {
        "run": {"name": "a", "storage": str(tmp_path)},
        "teacher": {"model": "x"},
        "student": {"model": "y"},
        "data": {"train": {"source": "files", "path": "rows.jsonl"}},
        "training": {"steps": 1, "batch_size": 1, "micro_batch_size": 1},
    }
    side, decoding = TextSide(toy(), ModelSettings(model="x", prompt_template="{prompt}"), "teacher"), Decoding(8)
    control, text = (
        _identity(parse_recipe(tree | {"data": tree["data"] | {"special_tokens": kind}}), side, decoding)
        for kind in ("control", "text")
    )
    # Folders of earlier releases are those of control tokens.
    assert text == control | {"special_tokens": "text"} and "special_tokens" not in control


def test_what_vllm_is_asked_for() -> None:
    """All ends of a turn; of a teacher that thinks no stops in its reasoning, and its marks left in the text."""
    question = Example.of(QUESTION, "")
    thinker = ModelSettings(model="x", template_arguments={"thinking": True})
    side = TextSide(thinking_tokenizer(), thinker, "teacher")
    decoding = Decoding(32, ("\n",), 0.5, 0.9, 0, 7)
    assert vllm_sampling(side, decoding) == {
        "max_tokens": 32,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": -1,
        "stop": None,
        "stop_token_ids": sorted(map(side.tokenizer.convert_tokens_to_ids, ["</s>", "<end>", "<called>"])),
        "skip_special_tokens": False,
        "seed": 7,
    }
    briefly = replace(question, template_arguments={"thinking": False})
    prompts = [
        Prompt(name, name, 0, np.asarray(side.prompt_ids(asked), np.int32))
        for name, asked in (("long", question), ("brief", briefly))
    ]
    assert prompt_ends(side, prompts) == {"long": f"<user>{QUESTION}<end><assistant><r>"}
    plain = TextSide(toy(bos=True), ModelSettings(model="x", prompt_template=PLAIN), "teacher")
    asked = vllm_sampling(plain, decoding)
    assert (asked["stop"], asked["skip_special_tokens"]) == (["\n"], True)
    assert asked["stop_token_ids"] == [plain.tokenizer.eos_token_id]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
def test_vllm_answers_as_transformers_does(squad: Path, tmp_path: Path, rows: list[dict[str, str]]) -> None:
    # Its attention takes heads of 32 or more.
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    teacher = save_tiny_model(tmp_path / "wide", rows, kind="bpe", vocab_size=600, seed=1, **sizes)
    answers: dict[str, dict[str, str]] = {}
    for engine in ("transformers", "vllm"):
        folder = tmp_path / engine
        words = ("--set", f"generation.engine={engine}", "--set", f"teacher.model={teacher}", "--output", str(folder))
        facts = run("generate", str(squad), *words, "--set", "generation.held_out=0.0", "--json")
        assert (facts["prompts"], facts["truncated"]) == (12, 12)
        table = pq.read_table(folder / "train.parquet").to_pylist()
        answers[engine] = {row["prompt_digest"]: row["teacher_answer"] for row in table}
    assert len(answers["vllm"]) == 12
    for prompt, text in answers["transformers"].items():
        # vLLM leaves a character out that was cut off in its middle.
        assert text.rstrip("\ufffd") == answers["vllm"][prompt].rstrip("\ufffd")


@pytest.mark.slow
def test_generate_goes_on_where_it_stopped_and_makes_training_data(squad: Path, tmp_path: Path) -> None:
    folder = tmp_path / "answers"
    words = ("generate", str(squad), "--output", str(folder), "--json")
    first = run(*words, "--set", "data.train.limit=5")
    assert first["prompts"] == 5
    parts = {file.name: file.stat().st_mtime_ns for file in (folder / "parts").iterdir()}
    facts = run(*words)
    assert facts["prompts"] == 12 == facts["train"] + facts["held_out"]
    assert facts["truncated"] >= 10 and facts["dropped"] == facts["empty"] == 0
    after = {file.name: file.stat().st_mtime_ns for file in (folder / "parts").iterdir()}
    assert parts.items() <= after.items()
    answered = [row["id"] for file in (folder / "parts").iterdir() for row in pq.read_table(file).to_pylist()]
    assert len(answered) == len(set(answered)) == 12
    # All at once, elsewhere, by one worker in other batches: the same bytes.
    other = tmp_path / "other"
    alone = ("--set", "cluster.workers=1", "--set", "generation.batch_size=3")
    run("generate", str(squad), "--output", str(other), "--json", *alone)
    for split in ("train", "held_out"):
        one, two = (pq.read_table(place / f"{split}.parquet") for place in (folder, other))
        assert one.equals(two)
    # The same task reads the teacher's answers.
    data = DataSettings(train=FilesSource(source="files", path=str(folder / "train.parquet")), task="squad")
    rows = load_rows(data.train, "data.train")
    reader = ExampleReader(data)
    reader.check(rows, "data.train")
    assert [reader(row).answer for row in rows] == list(rows["teacher_answer"])
