"""Code that comes with a model: of one repository at one commit, both named by the recipe, and of nothing else.

The hub is not asked: its local cache holds a repository whose model cannot be loaded without code of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.uld_ds.models.conftest import Plant
from uld_ds.data.sides import TextSide
from uld_ds.errors import UserError
from uld_ds.generation.decoding import Model
from uld_ds.models.identity import model_identity
from uld_ds.models.locate import locate_model
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import TeacherSettings, parse_recipe
from uld_ds.training.engines import load_weights

READ = "1" * 40
"""A commit that somebody has read."""
OTHER = "2" * 40
NAMES = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}


def teacher(model: str = "acme/own", *, code: str = READ, repository: str = "acme/own", **more: Any) -> TeacherSettings:
    trusted = {"repository": repository, "revision": code}
    options = {"model": model, "revision": READ, "max_length": 256, "precision": "fp32", "remote_code": trusted}
    return TeacherSettings(**options | more)


def refusal(settings: TeacherSettings) -> str:
    with pytest.raises(UserError) as caught:
        locate_model(settings, "teacher")
    return str(caught.value)


def test_the_trusted_code_is_run_wherever_the_teacher_is_loaded(plant: Plant, tiny_teacher: Path) -> None:
    plant("acme/own", READ, NAMES)
    settings = teacher()
    pretrained = Pretrained.from_settings(settings, "teacher")
    assert pretrained.place == "acme/own"
    assert TextSide.of_model(pretrained, settings, "teacher").tokenizer_digest
    lm = load_weights(pretrained, settings, {})
    assert (type(lm).__name__, lm.commit) == ("Model", READ)
    assert model_identity(pretrained) == (READ, f"commit:{READ}")
    answering = Model(pretrained, "fp32", torch.device("cpu"))
    assert (type(answering.lm).__name__, answering.lm.commit) == ("Model", READ)
    ids = torch.arange(8)[None]
    plain = AutoModelForCausalLM.from_pretrained(tiny_teacher)
    assert torch.equal(lm(ids).logits, plain(ids).logits)


def test_without_the_section_none_is_run_and_the_error_says_what_to_write(plant: Plant) -> None:
    plant("acme/own", READ, NAMES, code="raise SystemExit('run')")
    assert refusal(teacher(remote_code=None)) == (
        "teacher.model: 'acme/own' needs code of its own, and uld-ds runs none that comes with a model unless told to; "
        "use a model that transformers knows, or read its code and then write "
        "teacher.remote_code: {repository: acme/own, revision: <the commit's 40 digits>}"
    )


def test_another_repository_is_not_trusted(plant: Plant) -> None:
    """Neither the model's own when another one is named, nor another one that its configuration names."""
    plant("acme/own", READ, NAMES, code="raise SystemExit('run')")
    assert refusal(teacher(repository="acme/else")) == (
        "teacher.remote_code.repository: 'acme/else' is trusted, and config.json of 'acme/own' names 'own.Config' of "
        "'acme/own'; read that code, and correct repository and revision"
    )
    mixed = NAMES | {"AutoTokenizer": ["evil/code--own.Tokenizer", None]}
    plant("acme/mixed", READ, mixed, code="raise SystemExit('run')")
    assert "names 'evil/code--own.Tokenizer' of 'evil/code'" in refusal(teacher("acme/mixed", repository="acme/mixed"))


def test_code_of_its_own_repository_is_of_the_commit_that_was_read(plant: Plant, tiny_teacher: Path) -> None:
    plant("acme/code", READ, NAMES)
    plant("acme/code", OTHER, NAMES, code="raise SystemExit('run')")
    elsewhere = {kind: f"acme/code--{name}" for kind, name in NAMES.items()}
    # Weights at another commit than the code, and weights in a folder.
    folder = plant("acme/weights", OTHER, elsewhere, code="raise SystemExit('run')")
    for model, more in (("acme/weights", {"revision": OTHER}), (str(folder), {"revision": None})):
        settings = teacher(model, repository="acme/code", **more)
        place = locate_model(settings, "teacher")
        assert load_weights(Pretrained.at(place, settings, "teacher"), settings, {}).commit == READ
    own = plant("acme/own", READ, NAMES, code="raise SystemExit('run')")
    assert "names 'own.Config' of its own folder, which has no revision" in refusal(teacher(str(own), revision=None))


@pytest.mark.parametrize("revision", [None, "main", "v1.0", READ[:12]])
def test_a_branch_is_no_commit(plant: Plant, revision: str | None) -> None:
    plant("acme/own", READ, NAMES, code="raise SystemExit('run')")
    assert refusal(teacher(revision=revision)) == (
        f"teacher.revision: {revision!r} is no commit, and 'acme/own' says which of the trusted code is run; "
        f"set teacher.revision={READ}, as teacher.remote_code.revision is"
    )


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"repository": "a/b", "revision": "main"}, "teacher.remote_code: revision 'main' is no commit: write the 40 "),
        ({"repository": "a/b", "revision": READ.replace("1", "G")}, "is no commit"),
        ({"repository": "b", "revision": READ}, "teacher.remote_code.repository: "),
        ({"repository": "a/b"}, "teacher.remote_code.revision: is missing"),
        (True, "teacher.remote_code: True is not a section; write its keys below it"),
    ],
)
def test_the_section_is_strict(tiny_recipe: dict[str, Any], section: Any, message: str) -> None:
    tiny_recipe["teacher"]["remote_code"] = section
    with pytest.raises(UserError) as caught:
        parse_recipe(tiny_recipe)
    assert message in str(caught.value)


def test_a_student_has_no_code_of_its_own(tiny_recipe: dict[str, Any]) -> None:
    tiny_recipe["student"]["remote_code"] = {"repository": "a/b", "revision": READ}
    with pytest.raises(UserError, match=r"^student\.remote_code: unknown key"):
        parse_recipe(tiny_recipe)
