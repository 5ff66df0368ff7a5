"""What tests share: no network, tiny models, and a small text that every machine has."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from launcher.recipes.stdlib_docstrings import pairs

# Whether a commit passes is a matter of the commit alone; `make test-all` draws new examples each time.
settings.register_profile("same-examples", derandomize=True)
settings.register_profile("new-examples", derandomize=False)
settings.load_profile("same-examples")


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Converted models of tests stay out of the user's cache."""
    before = os.environ.get("ULD_DS_CACHE")
    os.environ["ULD_DS_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    if before is None:
        del os.environ["ULD_DS_CACHE"]
    else:
        os.environ["ULD_DS_CACHE"] = before


@pytest.fixture(scope="session")
def rows() -> list[dict[str, str]]:
    """Sixty short questions and answers."""
    return list(islice(pairs("train", max_answer_bytes=160), 60))


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> Path:
    """A random Llama with a byte BPE tokenizer of 600 entries, in a directory."""
    from tests.helpers.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("teacher"), rows, kind="bpe", vocab_size=600, seed=1)


@pytest.fixture(scope="session")
def tiny_student(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]) -> Path:
    """A random Llama with a Unigram tokenizer of 400 entries, in a directory."""
    from tests.helpers.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("student"), rows, kind="unigram", vocab_size=400, seed=2)


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_teacher: Path, tiny_student: Path, rows: list[dict[str, str]]) -> dict[str, Any]:
    """A complete recipe over the tiny models, as a mapping to change at will."""
    from tests.helpers.tiny import tiny_recipe_in

    return tiny_recipe_in(tmp_path, tiny_teacher, tiny_student, rows)
