"""A folder's tokenizer cuts text as its tokenizer.json does, whatever its class or model_type make of it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from tests.helpers import tokenizers_zoo as zoo
from uld_ds.registry.served_student import _load_pyfunc
from uld_ds.tokenization import notices
from uld_ds.tokenization.loading import load_tokenizer, open_tokenizer
from uld_ds.tokenization.training import train_tokenizer

TEXT = "Größe 2024: the 12,345  apples\n\n  don't grow on <|user|>trees.<|end|>"


@pytest.fixture(autouse=True)
def _nothing_said_yet(caplog: pytest.LogCaptureFixture) -> None:
    notices.say.cache_clear()
    caplog.set_level(logging.WARNING)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Unigram and a BPE tokenizer as a run makes them, and a BPE one that splits every digit, as SmolLM2 has it."""
    folder = tmp_path_factory.mktemp("trained")
    for kind in ("unigram", "bpe"):
        train_tokenizer(kind, 600, zoo.corpus()).save_pretrained(folder / kind)  # type: ignore[arg-type]
    digits = train_tokenizer("bpe", 600, [*zoo.corpus(), *(f"in {year}" for year in range(1900, 2100) for _ in "123")])
    digits.save_pretrained(folder / "digits")
    file = folder / "digits" / "tokenizer.json"
    description = json.loads(file.read_text())
    steps = [{"type": "Digits", "individual_digits": True}, description["pre_tokenizer"]]
    file.write_text(json.dumps(description | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}))
    return {name: folder / name for name in ("unigram", "bpe", "digits")}


def folder_of(place: Path, own: Path, *, model_type: str = "llama", tokenizer_class: str | None = None) -> Path:
    """A copy of a tokenizer's folder under another class or model type."""
    place.mkdir()
    for file in own.iterdir():
        (place / file.name).write_bytes(file.read_bytes())
    settings = json.loads((own / "tokenizer_config.json").read_text())
    if tokenizer_class is not None:
        settings["tokenizer_class"] = tokenizer_class
    (place / "tokenizer_config.json").write_text(json.dumps(settings))
    (place / "config.json").write_text(json.dumps({"model_type": model_type}))
    return place


def own_ids(folder: Path) -> list[int]:
    """What the tokenizers library itself makes of the text, by the file."""
    return Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT, add_special_tokens=False).ids


def ids(tokenizer: Any) -> list[int]:
    return tokenizer(TEXT, add_special_tokens=False)["input_ids"]


OTHERWISE = [
    ("unigram", "qwen2", None),
    ("bpe", "qwen2", None),
    ("unigram", "qwen3_5", None),
    ("digits", "llama", "GPT2Tokenizer"),
    ("bpe", "llama", "Qwen2Tokenizer"),
    ("unigram", "llama", "Qwen2Tokenizer"),
    ("bpe", "llama", "CohereTokenizer"),
    ("bpe", "gemma", "GemmaTokenizer"),
    ("bpe", "llama", "CodeLlamaTokenizer"),
]


@pytest.mark.parametrize(("kind", "model_type", "tokenizer_class"), OTHERWISE)
def test_the_file_counts(
    trained: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    model_type: str,
    tokenizer_class: str | None,
) -> None:
    folder = folder_of(tmp_path / "x", trained[kind], model_type=model_type, tokenizer_class=tokenizer_class)
    expected = own_ids(folder)
    try:
        usual = ids(AutoTokenizer.from_pretrained(folder))
    except Exception:  # the class cannot cut the text at all
        usual = []
    assert usual != expected, "transformers obeys the file now: this detour may go"
    tokenizer = load_tokenizer(str(folder), None, "student.model")
    assert ids(tokenizer) == expected == ids(open_tokenizer(str(folder / "tokenizer.json"), "--student"))
    (line,) = [record.getMessage() for record in caplog.records if record.name == notices.__name__]
    assert line.startswith(f"{folder}: tokenizer.json is used as it stands; AutoTokenizer, which other programs use, ")
    load_tokenizer(str(folder), None, "student.model")
    assert len([record for record in caplog.records if record.name == notices.__name__]) == 1
    # No token is gained, and none of those that the settings name is lost.
    size = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    assert len(tokenizer) == size
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (tokenizer.eos_token, tokenizer.pad_token) == (settings["eos_token"], settings["pad_token"])
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(trained[kind]).chat_template


def test_what_differs_is_named(trained: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    digits = folder_of(tmp_path / "digits", trained["digits"], tokenizer_class="GPT2Tokenizer")
    unigram = folder_of(tmp_path / "unigram", trained["unigram"], model_type="qwen2")
    for folder in (digits, unigram):
        load_tokenizer(str(folder), None, "x")
    said = [record.getMessage().partition(" programs use, ")[2] for record in caplog.records]
    end = "; load it there with PreTrainedTokenizerFast.from_pretrained"
    assert said == [
        f"makes another tokenizer of it, GPT2Tokenizer: pre-tokenizer, added <|endoftext|>{end}",
        f"makes another tokenizer of it, Qwen2Tokenizer: normalizer, pre-tokenizer, model BPE for Unigram, "
        f"added <|endoftext|>{end}",
    ]


@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma_style"])
def test_a_class_that_agrees_with_its_file_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str) -> None:
    try:
        tokenizer = zoo.ALL[name]()
    except zoo.MissingPackageError as missing:
        pytest.skip(str(missing))
    tokenizer.save_pretrained(tmp_path / "x")
    (tmp_path / "x" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    loaded = load_tokenizer(str(tmp_path / "x"), None, "x")
    assert type(loaded) is type(tokenizer)
    assert ids(loaded) == ids(tokenizer) == own_ids(tmp_path / "x")
    assert not caplog.records


def test_names_that_only_the_class_knows_stay(trained: dict[str, Path], tmp_path: Path) -> None:
    """Of a special token that tokenizer_config.json does not name, and that the file has."""
    folder = folder_of(tmp_path / "x", trained["digits"], tokenizer_class="GPT2Tokenizer")
    description = (folder / "tokenizer.json").read_text().replace("<|end|>", "<|endoftext|>")
    (folder / "tokenizer.json").write_text(description)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = load_tokenizer(str(folder), None, "x")
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.eos_token_id == Tokenizer.from_str(description).token_to_id("<|endoftext|>")
    assert len(tokenizer) == Tokenizer.from_str(description).get_vocab_size()


def test_a_copy_of_it_loads_alike_wherever_it_is_saved(trained: dict[str, Path], tmp_path: Path) -> None:
    """As an export and a registered student hold it: beside the weights, and in a folder of its own."""
    tokenizer = load_tokenizer(str(folder_of(tmp_path / "x", trained["unigram"], model_type="qwen2")), None, "x")
    tokenizer.save_pretrained(tmp_path / "x")
    assert ids(load_tokenizer(str(tmp_path / "x"), None, "x")) == own_ids(trained["unigram"])
    tokenizer.save_pretrained(tmp_path / "alone")
    assert ids(AutoTokenizer.from_pretrained(tmp_path / "alone")) == own_ids(trained["unigram"])


def test_a_registered_student_of_such_a_model_type(trained: dict[str, Path], tmp_path: Path) -> None:
    """What MLflow's pyfunc answers with is the tokenizer that was trained."""
    from transformers import AutoModelForCausalLM, Qwen2Config

    tokenizer = load_tokenizer(str(trained["unigram"]), None, "x")
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "components" / "tokenizer")
    assert ids(_load_pyfunc(str(tmp_path))._tokenizer) == own_ids(trained["unigram"])


# ---- the Mistral family


MISTRAL = """
import sys, json
sys.path[:0] = sys.argv[2:]
from importlib.util import find_spec
from uld_ds.tokenization.loading import load_tokenizer
tokenizer = load_tokenizer(sys.argv[1], None, "x")
print(json.dumps([type(tokenizer).__name__, tokenizer(%r, add_special_tokens=False)["input_ids"]]))
"""


@pytest.mark.parametrize("surroundings", ["without mistral-common", "with half of mistral-common"])
@pytest.mark.parametrize("tokenizer_class", [None, "LlamaTokenizer"])
def test_a_model_of_the_mistral_family(
    trained: dict[str, Path], tmp_path: Path, surroundings: str, tokenizer_class: str | None
) -> None:
    """As users have it, and where pip has put mistral-common without what that needs."""
    folder = folder_of(tmp_path / "x", trained["bpe"], model_type="mistral", tokenizer_class=tokenizer_class)
    path = tmp_path / "site"
    path.mkdir()
    if surroundings.startswith("with half"):
        (path / "mistral_common").mkdir()
        (path / "mistral_common" / "__init__.py").write_text("__version__ = '1.13.1'\nimport tiktoken\n")
        (path / "mistral_common-1.13.1.dist-info").mkdir()
        (path / "mistral_common-1.13.1.dist-info" / "METADATA").write_text("Name: mistral-common\nVersion: 1.13.1\n")
    done = subprocess.run(
        [sys.executable, "-c", MISTRAL % TEXT, str(folder), str(path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])[1] == own_ids(folder)


def test_the_products_environment_has_nothing_of_the_tests() -> None:
    """Half of mistral-common, there for its data files, once kept every model of the Mistral family from loading."""
    from importlib.util import find_spec

    if find_spec("mistral_common") is None or find_spec("tiktoken") is not None:
        return
    pytest.skip("this environment was made before: `make install` takes the tests' packages out of it")
