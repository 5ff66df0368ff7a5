"""The registry: one version per run, loaded once, answering chats and prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.tiny import save_tiny_t5
from uld_ds.data.chat_templates import chat_template_of
from uld_ds.recipe import ModelSettings
from uld_ds.registry.log_student import RegisteredModel, log_student
from uld_ds.registry.served_student import ServedStudent

CHAT = [{"role": "user", "content": "What does it do?"}]
FACTS = {"teacher": "org/large", "data_digest": "0" * 64, "alignment_rate": 0.75}


class Registered:
    """A run with a registered student, in a database of its own."""

    def __init__(self, folder: Path, student: Path, kind: Any = AutoModelForCausalLM) -> None:
        self.uri = f"sqlite:///{folder}/mlflow.db"
        self.client = mlflow.MlflowClient(self.uri, registry_uri=self.uri)
        self.experiment = self.client.create_experiment("e", artifact_location=(folder / "artifacts").as_uri())
        self.run_id = self.client.create_run(self.experiment).info.run_id
        self.student = student
        self.model = kind.from_pretrained(student)
        self.tokenizer = AutoTokenizer.from_pretrained(student)
        self.folder = folder

    def log(self, name: str | None = "student") -> RegisteredModel:
        return log_student(
            self.client,
            self.run_id,
            self.model,
            self.tokenizer,
            name=name,
            alias="candidate",
            example={"messages": CHAT},
            facts=FACTS,
            description="**about**",
            model_card="# A card",
            workspace=self.folder,
        )


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory, tiny_student: Path) -> tuple[Registered, int]:
    """The registered student, and how often weights were read from disk while it was registered."""
    it = Registered(tmp_path_factory.mktemp("registry"), tiny_student)
    with pytest.MonkeyPatch.context() as patch:
        loads: list[Any] = []
        original = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

        def counted(cls: type, *arguments: Any, **options: Any) -> Any:
            loads.append(arguments)
            return original(cls, *arguments, **options)

        patch.setattr(PreTrainedModel, "from_pretrained", classmethod(counted))
        it.log()
    return it, len(loads)


@pytest.fixture
def served(registered: tuple[Registered, int]) -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", registered[0].uri)
        yield mlflow.pyfunc.load_model("models:/student@candidate")


def test_registering_loads_no_second_model(registered: tuple[Registered, int]) -> None:
    assert registered[1] == 0


def test_what_is_registered_is_read_by_transformers_4_as_well(registered: tuple[Registered, int]) -> None:
    it, _ = registered
    (config,) = (it.folder / "artifacts").rglob("model/config.json")
    assert json.loads(config.read_text())["rope_theta"] == 10_000.0
    (tokenizer,) = (it.folder / "artifacts").rglob("components/tokenizer/tokenizer_config.json")
    assert json.loads(tokenizer.read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"


def test_registering_again_adds_no_version(registered: tuple[Registered, int]) -> None:
    it, _ = registered
    assert it.log().version == "1"
    assert len(it.client.search_model_versions("name = 'student'")) == 1
    assert len(it.client.search_logged_models([it.experiment])) == 1


def test_an_interrupted_registration_goes_on(tmp_path: Path, tiny_student: Path) -> None:
    """Interrupted while files were written, then between the model and its version."""
    it = Registered(tmp_path, tiny_student)

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    for method in ("log_model_artifacts", "create_model_version", "set_registered_model_alias"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(it.client, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                it.log()
    done = it.log()
    versions = it.client.search_model_versions("name = 'student'")
    assert [str(version.version) for version in versions] == ["1"]
    models = it.client.search_logged_models([it.experiment])
    assert [str(model.status) for model in models] == ["READY"]
    assert done.uri == "models:/student/1"
    assert it.client.get_model_version_by_alias("student", "candidate").version == versions[0].version
    assert not list(tmp_path.glob("student-*"))


def test_version_says_what_it_was_made_from(registered: tuple[Registered, int]) -> None:
    it, _ = registered
    version = it.client.get_model_version_by_alias("student", "candidate")
    assert version.tags == {key: str(value) for key, value in FACTS.items()}
    assert (version.description, version.run_id) == ("**about**", it.run_id)


def test_files_name_no_path_of_this_machine(registered: tuple[Registered, int]) -> None:
    it, _ = registered
    (folder,) = it.folder.glob("artifacts/models/*/artifacts")
    for file in folder.rglob("*"):
        if file.suffix in ("", ".json", ".txt", ".yaml", ".md", ".py") and file.is_file():
            text = file.read_text().replace(f"artifact_path: {folder.as_uri()}", "")
            assert str(it.student) not in text, file
            assert str(it.folder) not in text, file


def test_transformers_load_the_same_weights(registered: tuple[Registered, int]) -> None:
    it, _ = registered
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", it.uri)
        parts = mlflow.transformers.load_model("models:/student@candidate", return_type="components")
    weights, original = (model.state_dict() for model in (parts["model"], it.model))
    assert all(torch.equal(weights[name], original[name]) for name in original)


def test_pyfunc_answers_chats_and_prompts(registered: tuple[Registered, int], served: Any) -> None:
    it, _ = registered
    parameters = {"max_new_tokens": 5}
    ids = it.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        whole = it.model.generate(**ids, max_new_tokens=5, do_sample=False)
    expected = it.tokenizer.decode(whole[0, ids["input_ids"].shape[1] :], skip_special_tokens=True)
    assert served.predict({"messages": CHAT}, params=parameters) == [expected]
    prompt = it.tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert served.predict({"prompt": prompt}, params=parameters) == [expected]
    assert served.predict({"prompt": [prompt, prompt]}, params=parameters) == [expected] * 2
    assert served.metadata.signature is not None


def test_a_student_with_an_encoder_answers_as_a_pyfunc(tmp_path: Path) -> None:
    it = Registered(tmp_path, save_tiny_t5(tmp_path / "t5", zoo.unigram_t5(), seed=3), AutoModelForSeq2SeqLM)
    asked = ModelSettings(model="x", prompt_template="Answer: {prompt}")
    it.tokenizer.chat_template = chat_template_of(asked, it.tokenizer, for_encoder=True)
    it.log()
    ids = it.tokenizer("Answer: What does it do?", return_tensors="pt")
    with torch.no_grad():
        whole = it.model.generate(**ids, max_new_tokens=5, do_sample=False)
    expected = it.tokenizer.decode(whole[0, 1:], skip_special_tokens=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", it.uri)
        served = mlflow.pyfunc.load_model("models:/student@candidate")
    assert list(served.metadata.flavors) == ["python_function"]
    for request in ({"messages": CHAT}, {"prompt": "Answer: What does it do?"}):
        assert served.predict(request, params={"max_new_tokens": 5}) == [expected]
    (card,) = it.folder.glob("artifacts/models/*/artifacts/data/student/model_card.md")
    assert card.read_text().strip().endswith("# A card")


def test_pyfunc_obeys_its_parameters(served: Any) -> None:
    lengths = [len(served.predict({"prompt": "What?"}, params={"max_new_tokens": n})[0]) for n in (1, 40)]
    assert lengths[0] < lengths[1]


def test_pyfunc_says_what_is_missing(registered: tuple[Registered, int], served: Any) -> None:
    with pytest.raises(ValueError, match="'messages' or 'prompt'"):
        served.predict(["a text without a name"])
    silent = AutoTokenizer.from_pretrained(registered[0].student)
    silent.chat_template = None
    with pytest.raises(ValueError, match="knows no conversations: give 'prompt'"):
        ServedStudent(registered[0].model, silent).predict({"messages": CHAT})
