"""What README.md and docs/ tell people to type exists, and the README's recipe is one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import typer
import yaml

from launcher.cli import app
from uld_ds.recipe import parse_recipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def code_blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.S)


def commands(text: str) -> list[str]:
    return [line for block in code_blocks("bash", text) for line in block.splitlines() if line.strip()]


COMMANDS = commands(README)
IN_DOCS = [
    pytest.param(line, id=f"{file.stem}: {line}")
    for file in sorted((ROOT / "docs").glob("*.md"))
    for line in commands(file.read_text())
    if line.startswith("uld-ds ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M), command
        return
    if words[0] == "ray":
        words = words[words.index("--") + 1 :]
        assert words[:3] == ["python", "-m", "launcher"], command
        words = ["uld-ds", *words[3:]]
    assert words[0] == "uld-ds", command
    check_arguments(typer.main.get_command(app), words[1:])


@pytest.mark.parametrize("command", IN_DOCS)
def test_command_of_the_documentation_exists(command: str) -> None:
    check_arguments(typer.main.get_command(app), shlex.split(command)[1:])


def check_arguments(command: click.Command, words: list[str]) -> None:
    """Follows sub-commands, then parses the rest with the command's own parser."""
    subcommands = getattr(command, "commands", None)
    if subcommands is not None:
        assert words[0] in subcommands, words
        check_arguments(subcommands[words[0]], words[1:])
    else:
        command.make_context(command.name, list(words))


def test_commands_are_found() -> None:
    assert len(COMMANDS) >= 8


def test_recipe_is_one() -> None:
    (block,) = code_blocks("yaml")
    recipe = parse_recipe(yaml.safe_load(block))
    assert recipe.training.batch_size == recipe.training.micro_batch_size * recipe.cluster.workers * recipe.accumulation


def test_named_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
