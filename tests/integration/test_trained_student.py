"""A student that has learned conversations by heart: whoever asks it, from its export alone, gets the very text."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from launcher.drivers.evaluate import evaluate_model
from tests.helpers.ranks import run_on_ranks
from tests.helpers.thinkers import ANSWER, ENDS, QUESTION, REASONING, SYSTEM, TALKS, save_thinker, thinker_recipe
from uld_ds.data.examples import Example, ExampleReader
from uld_ds.data.pairing import FEATURES, Pairing
from uld_ds.data.sides import TextSide
from uld_ds.data.sources import load_rows
from uld_ds.generation.answers import AnswerFolder
from uld_ds.generation.decoding import Decoding
from uld_ds.generation.prompts import collect_prompts
from uld_ds.generation.samples import given_answer, sample_answers
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import DataSettings, FilesSource, Recipe, parse_recipe
from uld_ds.registry.log_student import log_student
from uld_ds.training.trainer import Trainer
from uld_ds.workers.answers import Answerer

ASKED = [{"role": "user", "content": QUESTION}]
CALL = 'get_weather{"city": "Rome"}'
WITH_TOOL = {"messages": [{"role": "user", "content": "Rain?"}], "tools": TALKS[2]["tools"]}


def train(recipe: dict[str, Any], export: str) -> float:
    trainer = Trainer.from_recipe(recipe, callbacks=[])
    result = trainer.run()
    trainer.save(export)
    return result.state.final_loss


class Trained:
    def __init__(self, folder: Path) -> None:
        self.folder, self.export = folder, folder / "export"
        model = save_thinker(folder / "base")
        recipe = thinker_recipe(folder, model, steps=100)
        (self.loss,) = run_on_ranks(train, 1, recipe, str(self.export))
        self.recipe: Recipe = parse_recipe(recipe)
        self.tokenizer = AutoTokenizer.from_pretrained(self.export)
        self.model = AutoModelForCausalLM.from_pretrained(self.export)
        self.side = TextSide(self.tokenizer, self.recipe.student, "student")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    it = Trained(tmp_path_factory.mktemp("thinker"))
    assert it.loss < 0.05, it.loss
    return it


def test_transformers_alone_stops_where_the_turn_ends(trained: Trained) -> None:
    """With nothing of this package: the export's template, its generation configuration, ``generate``."""
    tokenizer = trained.tokenizer
    named = GenerationConfig.from_pretrained(trained.export).eos_token_id
    assert sorted(tokenizer.convert_ids_to_tokens(named)) == sorted(ENDS)
    texts = []
    for talk in TALKS:
        options = {"tools": talk.get("tools"), **talk.get("chat_template_kwargs", {})}
        inputs = tokenizer.apply_chat_template(
            talk["messages"][:-1], add_generation_prompt=True, return_tensors="pt", return_dict=True, **options
        )
        whole = trained.model.generate(**inputs, max_new_tokens=40, do_sample=False)[0]
        texts.append(tokenizer.decode(whole[inputs["input_ids"].shape[1] :]))
    assert texts == [f"{REASONING}</r>{ANSWER}<end>", "four<end>", f"look</r>{CALL}</c><called>"]


def test_it_asks_as_it_was_trained(trained: Trained) -> None:
    """The recipe's system prompt and variables count where a request has none."""
    begins = f"<system>{SYSTEM}<end><user>{QUESTION}<end><assistant>"

    def asked(messages: list[dict[str, Any]], **options: Any) -> str:
        return str(
            trained.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **options)
        )

    assert asked(ASKED) == begins + "<r>" == trained.side.prompt(Example.of(QUESTION, ""))
    assert asked(ASKED, thinking=False) == begins + "<r></r>"
    own = asked([{"role": "system", "content": "Mine."}, *ASKED])
    assert own == begins.replace(SYSTEM, "Mine.") + "<r>"


def test_evaluation_scores_the_answer_and_keeps_the_reasoning(trained: Trained) -> None:
    facts = evaluate_model(str(trained.export), trained.recipe, str(trained.folder / "evaluation"))
    assert (facts["scores"]["f1"], facts["scores"]["em"], facts["truncated"]) == (100.0, 100.0, 0)
    lines = (trained.folder / "evaluation" / "predictions.jsonl").read_text().splitlines()
    rows = {
        row["prediction_text"]: (row.get("reasoning"), row["answers"], row["finish"]) for row in map(json.loads, lines)
    }
    assert rows == {ANSWER: (REASONING, [ANSWER], "stop"), "four": (None, ["four"], "stop")}


def test_samples_of_a_report_are_split_alike(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    # As a teacher, or the student before training: what ends turns is known from its template alone.
    monkeypatch.setattr(trained.model.generation_config, "eos_token_id", trained.tokenizer.eos_token_id)
    examples = [ExampleReader(trained.recipe.data)(talk) for talk in TALKS]
    rows = Pairing(trained.side, trained.side, alignment="segments", turns="all")(examples)
    assert all(isinstance(row, dict) for row in rows), rows
    data = Dataset.from_list(rows, features=FEATURES)
    answers = [(REASONING, ANSWER), ("", "four"), ("look", CALL)]
    # Those of the data are read as those that are generated.
    given = [given_answer(trained.side, row) for row in data]
    assert [(one.reasoning, one.text, one.finish) for one in given] == [(*pair, "stop") for pair in answers]
    for chosen in (data, data.select([2, 0])):
        found = sample_answers(trained.model, trained.side, chosen, "student", 40, torch.device("cpu"))
        assert [(one.reasoning, one.text, one.finish) for one in found] == [
            (one.reasoning, one.text, "stop") for one in map(partial(given_answer, trained.side), chosen.select([0, 1]))
        ]
    (cut,) = sample_answers(trained.model, trained.side, data.select([0]), "student", 5, torch.device("cpu"))
    assert (cut.reasoning, cut.text, cut.finish) == (REASONING[:7], "", "length")


def test_the_registered_student_answers_requests_with_tools_and_variables(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = mlflow.MlflowClient(uri, registry_uri=uri)
    run_id = client.create_run(client.create_experiment("e", (tmp_path / "artifacts").as_uri())).info.run_id
    log_student(
        client,
        run_id,
        trained.model,
        trained.tokenizer,
        name="thinker",
        alias="candidate",
        example={"messages": ASKED},
        facts={},
        description="",
        chat=trained.side.served_chat(),
        workspace=tmp_path,
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    served = mlflow.pyfunc.load_model("models:/thinker@candidate")
    assert served.predict({"messages": ASKED}) == [ANSWER]
    with_reasoning = {"return_reasoning": True}
    assert served.predict({"messages": ASKED}, params=with_reasoning) == [
        {"content": ANSWER, "reasoning_content": REASONING}
    ]
    cut = served.predict({"messages": ASKED}, params=with_reasoning | {"max_new_tokens": 5})
    assert cut == [{"content": "", "reasoning_content": REASONING[:7]}]
    briefly = {"messages": ASKED, "chat_template_kwargs": {"thinking": False}}
    assert served.predict(briefly, params=with_reasoning) == [{"content": "four", "reasoning_content": ""}]
    assert served.predict(WITH_TOOL, params=with_reasoning) == [{"content": CALL, "reasoning_content": "look"}]
    # Rows and columns; what one row has no other one gets.
    assert served.predict([briefly, WITH_TOOL, {"messages": ASKED}]) == ["four", CALL, ANSWER]
    columns = {"messages": [ASKED, ASKED], "chat_template_kwargs": [{"thinking": False}, None]}
    assert served.predict(pd.DataFrame(columns)) == ["four", ANSWER]
    # (MLflow refuses columns as a mapping, of conversations with or without options.)
    assert served._model_impl.predict(columns) == ["four", ANSWER]
    assert served._model_impl.predict(columns | {"chat_template_kwargs": {"thinking": False}}) == ["four"] * 2
    # A conversation as chat APIs have it, with arguments as text, goes on.
    call = {"type": "function", "id": "1", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}
    talk = [
        *WITH_TOOL["messages"],
        {"role": "assistant", "content": None, "reasoning_content": "look", "tool_calls": [call]},
    ]
    prompt = trained.tokenizer.apply_chat_template(TALKS[2]["messages"], tools=WITH_TOOL["tools"], tokenize=False)
    assert served._model_impl.render({**WITH_TOOL, "messages": talk}) == prompt + "<assistant><r>"
    assert len(served.predict({**WITH_TOOL, "messages": talk}, params={"max_new_tokens": 1})) == 1
    # Text to go on from, which may itself begin the reasoning.
    assert served.predict({"prompt": trained.side.prompt(Example.of(QUESTION, ""))}) == [ANSWER]


def test_generated_reasoning_is_learned_from_again(trained: Trained, tmp_path: Path) -> None:
    """Prompts without answers, asked; what comes out is data, whose reasoning is the answer's."""
    reader = ExampleReader(trained.recipe.data)
    asked = tmp_path / "asked.jsonl"
    asked.write_text("".join(json.dumps(talk | {"messages": talk["messages"][:-1]}) + "\n" for talk in TALKS))
    rows = load_rows(FilesSource(source="files", path=str(asked)), "generation.prompts")
    side = TextSide(trained.tokenizer, trained.recipe.teacher_named(), "teacher")
    prompts = collect_prompts(rows, reader, side, max_tokens=96, on_bad_example="error", key="generation.prompts")
    folder = AnswerFolder(tmp_path / "answers", {"teacher": "thinker"})
    answerer = Answerer(
        model=Pretrained(str(trained.export)),
        precision="fp32",
        decoding=Decoding(32).to_json(),
        ends=side.end_ids,
        reader=side.reply_reader,
        parts=str(folder.parts),
        logs=str(tmp_path / "logs"),
        on_gpu=False,
        threads=1,
    )
    batch = [(prompt.id, prompt.ids.tolist()) for prompt in prompts.kept]
    answerer(pa.table({"id": [name for name, _ in batch], "prompt_ids": [ids for _, ids in batch]}))
    folder.finish(rows, prompts, ["empty", "truncated"], 0.0, {"teacher": "thinker"})
    answered = FilesSource(source="files", path=str(tmp_path / "answers" / "train.parquet"))
    reader = ExampleReader(DataSettings(train=answered, task="messages"))
    found = {}
    for row in load_rows(answered, "data.train"):
        example = reader(row)
        rendered = trained.side.render(example)
        found[example.answer] = [example.parts[place.part].kind for place in rendered.turns[0].parts], rendered.text
        if example.answer == ANSWER:
            assert rendered.text.endswith(f"<assistant><r>{REASONING}</r>{ANSWER}<end>")
    assert {answer: kinds for answer, (kinds, _) in found.items()} == {
        ANSWER: ["reasoning", "text"],
        "four": ["text"],
        CALL: ["reasoning", "text"],
    }
