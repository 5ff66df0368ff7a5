"""What README.md and docs/ tell people to type exists, their whole recipes are some, and the README stays short."""

from __future__ import annotations

import re
import shlex

import click
import pytest
import typer
import yaml

from launcher.cli import app
from tests.helpers.documents import README, ROOT, code_blocks
from uld_ds.recipe import parse_recipe


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


@pytest.mark.parametrize("page", ["README.md", "docs/recipe-guide.md"])
def test_recipe_is_one(page: str) -> None:
    """Other blocks show some sections: with the rest of the first one they are recipes, too."""
    first, *others = map(yaml.safe_load, code_blocks("yaml", (ROOT / page).read_text()))
    for sections in others:
        assert parse_recipe({name: {**first.get(name, {}), **sections.get(name, {})} for name in first | sections})
    recipe = parse_recipe(first)
    assert recipe.training.batch_size == recipe.training.micro_batch_size * recipe.cluster.workers * recipe.accumulation


def test_it_is_read_in_three_minutes() -> None:
    """What it leaves out is in docs/."""
    prose = re.sub(r"```.*?```|<!--.*?-->|\]\([^)]*\)", " ", README, flags=re.S)
    assert len(prose.split()) <= 700
    assert len(re.findall(r"!\[", README)) == 1


def test_the_quickstart_leads_wherever_the_readme_does() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    linked = set(re.findall(r"docs/([\w-]+\.md)", README)) - {"index.md"}
    assert len(linked) >= 15
    assert linked <= set(re.findall(r"\]\(([\w-]+\.md)", index))


def test_every_page_is_found_from_the_readme() -> None:
    pages = {page.name: page.read_text() for page in (ROOT / "docs").glob("*.md")}
    found = set(re.findall(r"docs/([\w-]+\.md)", README))
    ahead = list(found)
    while ahead:
        linked = set(re.findall(r"\]\(([\w-]+\.md)", pages[ahead.pop()])) & pages.keys() - found
        found |= linked
        ahead += linked
    assert found == pages.keys()


def test_named_files_exist() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target
