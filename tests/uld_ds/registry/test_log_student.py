"""The registry: one version per run, loaded once, answering chats and prompts."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel

from tests.helpers import tokenizers_zoo as zoo
from tests.helpers.mlflow_server import Server
from tests.helpers.special_tokens import HABITS, save_model
from tests.helpers.tiny import save_tiny_t5
from uld_ds.data.chat_templates import chat_template_of
from uld_ds.recipe import ModelSettings
from uld_ds.registry.links import link_all
from uld_ds.registry.log_student import RegisteredModel, log_student
from uld_ds.registry.served_student import ServedStudent

CHAT = [{"role": "user", "content": "What does it do?"}]
FACTS = {"teacher": "org/large", "data_digest": "0" * 64, "alignment_rate": 0.75}


class Registered:
    """A run with a registered student, in a database of its own or on a server."""

    def __init__(
        self, folder: Path, student: Path, kind: Any = AutoModelForCausalLM, server: Server | None = None
    ) -> None:
        self.database = folder / "mlflow.db" if server is None else server.database
        self.uri = f"sqlite:///{self.database}" if server is None else server.uri
        self.client = mlflow.MlflowClient(self.uri, registry_uri=self.uri)
        place = (folder / "artifacts").as_uri() if server is None else None
        self.experiment = self.client.create_experiment(f"e-{folder.name}", artifact_location=place)
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

    def links(self) -> tuple[list[str], list[str], str | None]:
        """Ids of the run's logged models, of those that the run names, and the versions that the only one names."""
        models = self.client.search_logged_models([self.experiment])
        outputs = self.client.get_run(self.run_id).outputs
        named = [] if outputs is None else [output.model_id for output in outputs.model_outputs]
        return [model.model_id for model in models], named, models[0].tags.get("mlflow.modelVersions")

    def has_all_links(self, name: str = "student") -> bool:
        models, named, versions = self.links()
        return len(models) == 1 and named == models and versions == f'[{{"name": "{name}", "version": 1}}]'

    def lose_links(self) -> None:
        """As earlier versions of this program left a run."""
        (model,), _, _ = self.links()
        self.client.delete_logged_model_tag(model, "mlflow.modelVersions")
        with closing(sqlite3.connect(self.database)) as database:
            database.execute("DELETE FROM inputs WHERE source_type = 'RUN_OUTPUT'")
            database.commit()
        assert self.links() == ([model], [], None)


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


def test_run_logged_model_and_version_are_linked(registered: tuple[Registered, int]) -> None:
    it, _ = registered
    assert it.has_all_links()
    it.log()
    assert it.has_all_links()


def test_an_older_registration_gets_the_links_that_it_lacks(registered: tuple[Registered, int]) -> None:
    it, _ = registered
    version = it.client.get_model_version("student", "1")
    it.lose_links()
    it.log()
    assert it.has_all_links()
    it.lose_links()
    link_all(it.client, version)
    assert it.has_all_links()
    it.lose_links()
    it.client.delete_run(it.run_id)
    try:
        link_all(it.client, version)  # a deleted run takes no links; its model does
        assert it.links()[1:] == ([], '[{"name": "student", "version": 1}]')
    finally:
        it.client.restore_run(it.run_id)
        link_all(it.client, version)
    assert it.has_all_links()
    foreign = it.client.create_model_version("student", "somewhere")
    link_all(it.client, foreign)
    it.client.delete_model_version("student", foreign.version)
    assert it.has_all_links()


@pytest.mark.slow
def test_links_on_a_server(tmp_path: Path, tiny_student: Path) -> None:
    """Where the server makes the link to the version itself: once all the same, after every interruption."""
    server = Server(tmp_path)
    server.start()
    try:
        it = Registered(tmp_path, tiny_student, server=server)
        interrupt_each_step(it)
        assert it.log().version == "1"
        assert it.has_all_links()
        it.lose_links()
        it.log()
        assert it.has_all_links()
    finally:
        server.kill()


def interrupted(*_: Any, **__: Any) -> Any:
    raise KeyboardInterrupt


def interrupt_each_step(it: Registered) -> None:
    steps = ["log_model_artifacts", "finalize_logged_model", "log_outputs", "create_model_version"]
    # A server has made this link when it answers.
    steps += ["set_logged_model_tags"] if it.uri.startswith("sqlite:") else []
    for method in (*steps, "set_registered_model_alias"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(it.client, method, interrupted)
            with pytest.raises(KeyboardInterrupt):
                it.log()


def test_an_interrupted_registration_goes_on(tmp_path: Path, tiny_student: Path) -> None:
    """Interrupted before each of its steps, one after the other."""
    it = Registered(tmp_path, tiny_student)
    interrupt_each_step(it)
    done = it.log()
    versions = it.client.search_model_versions("name = 'student'")
    assert [str(version.version) for version in versions] == ["1"]
    models = it.client.search_logged_models([it.experiment])
    assert [str(model.status) for model in models] == ["READY"]
    assert done.uri == "models:/student/1"
    assert it.has_all_links()
    assert it.client.get_model_version_by_alias("student", "candidate").version == versions[0].version
    assert not list(tmp_path.glob("student-*"))


def test_an_interrupted_student_without_a_version_goes_on(tmp_path: Path, tiny_student: Path) -> None:
    it = Registered(tmp_path, tiny_student)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(it.client, "log_outputs", interrupted)
        with pytest.raises(KeyboardInterrupt):
            it.log(None)
    it.log(None)
    models, named, versions = it.links()
    assert (len(models), named, versions) == (1, models, None)


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


@pytest.mark.parametrize("name", HABITS)
def test_pyfunc_continues_a_prompt_after_one_start_and_no_end(name: str, tmp_path: Path) -> None:
    folder = save_model(tmp_path, HABITS[name])
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    bare = tokenizer("Return the", add_special_tokens=False)["input_ids"]
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(HABITS[name].leading) + bare])
    with torch.no_grad():
        whole = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    expected = tokenizer.decode(whole[0, ids.shape[1] :], skip_special_tokens=True)
    prompts = ["Return the", "".join(HABITS[name].leading) + "Return the"]
    assert ServedStudent(model, tokenizer).predict({"prompt": prompts}, params={"max_new_tokens": 8}) == [expected] * 2


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
