"""Secrets do not reach what others read."""

from __future__ import annotations

import pytest

from uld_ds.utils.redaction import Redactor, is_secret_name


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "token", "db.password", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "apiKey", "OPENAI_API_KEY",
     "MLFLOW_TRACKING_PASSWORD", "client-secret", "credentials"],
)  # fmt: skip
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)


@pytest.mark.parametrize(
    "name",
    ["student.tokenizer", "teacher.max_tokens_per_forward", "evaluation.sample_tokens", "keys", "key", "PWD", "author",
     "KEYBOARD", "secretary", "data.columns.prompt"],
)  # fmt: skip
def test_names_that_only_look_like_it(name: str) -> None:
    assert not is_secret_name(name)


def test_values_of_the_environment_are_found_wherever_they_were_put() -> None:
    redact = Redactor({"HF_TOKEN": "s3cret-value", "HOME": "/home/someone", "LONG_SECRET": "s3cret-value-2"})
    assert redact.text("a s3cret-value-2 and s3cret-value in /home/someone") == "a *** and *** in /home/someone"


def test_short_values_and_paths_are_no_secrets() -> None:
    redact = Redactor({"DEBUG_TOKEN": "1", "SSH_PRIVATE_KEY": "/home/someone/.ssh/id"})
    assert redact.text("1 file in /home/someone/.ssh/id") == "1 file in /home/someone/.ssh/id"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("postgresql://me:pa55@db.example:5432/mlflow", "postgresql://***@db.example:5432/mlflow"),
        ("see https://user:p%40ss@host/x, then http://host/y", "see https://***@host/x, then http://host/y"),
        ("s3://bucket/key@v2/file", "s3://bucket/key@v2/file"),
        ("https://h/f?X-Amz-Signature=abc12&X-Amz-Date=1", "https://h/f?X-Amz-Signature=***&X-Amz-Date=1"),
        ("https://h/f?sv=1&sig=a%2Fb", "https://h/f?sv=1&sig=***"),
        ("use hf_abcdefghijklmnopqrstuv now", "use *** now"),
        ("models:/student@champion", "models:/student@champion"),
        ("Where is the key? In which token=x?", "Where is the key? In which token=x?"),
    ],
)
def test_uris_and_known_shapes(text: str, expected: str) -> None:
    assert Redactor({}).text(text) == expected


def test_trees_are_copied_with_secrets_hidden() -> None:
    tree = {
        "arguments": {"api_key": "0123", "limit": 3, "token": None, "urls": ["http://a:b@c/d"]},
        "http://a:b@c": 1.5,
        "token": {"inner": "kept"},
    }
    assert Redactor({}).tree(tree) == {
        "arguments": {"api_key": "***", "limit": 3, "token": None, "urls": ["http://***@c/d"]},
        "http://***@c": 1.5,
        "token": {"inner": "kept"},
    }
