"""What rollouts take of a worker, against sums done by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launcher.cli import app
from launcher.commands.recipes import shipped_recipes
from launcher.plan.plan import Plan
from launcher.plan.shapes import student_shape, teacher_shape
from launcher.plan.speed import Hardware
from tests.helpers.known_models import stand_in
from uld_ds.recipe import load_recipe

STUDENT = 1_235_814_400  # Llama 3.2 1B: 16 layers, key heads of 512 together, 128,256 tokens
H100 = Hardware("gpu", 80 * 10**9, 8, 1000.0, 0.4, 400.0, 3600.0)
# (A recipe with rollouts needs held-out examples.)
HELD_OUT = "data.eval={source: files, path: e.jsonl}"
# Of each distribution: the logits in bf16, and four copies in fp32.
COPIES = 2 + 4 * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "recipe.yaml").write_text(shipped_recipes()["two-node-70b"])
    stand_in(folder / "teacher", "meta-llama/Llama-3.3-70B-Instruct")
    stand_in(folder / "student", "meta-llama/Llama-3.2-1B")
    return folder


def changes(folder: Path, *more: str) -> list[str]:
    return [*(f"{role}.model={folder / role}" for role in ("teacher", "student")), HELD_OUT, *more]


@pytest.fixture(scope="module")
def without(folder: Path) -> Plan:
    """Two nodes, 256 examples of 2,048 tokens per step, no rollouts."""
    recipe = load_recipe(folder / "recipe.yaml", changes(folder), environment={})
    shapes = {"teacher": teacher_shape(recipe.teacher_named())}
    return Plan(recipe, H100, student_shape(recipe.student), shapes, student_tokens=2048, teacher_tokens=2048)


def planned(without: Plan, folder: Path, *more: str) -> Plan:
    return replace(without, recipe=load_recipe(folder / "recipe.yaml", changes(folder, *more), environment={}))


def of_rollouts(plan: Plan, without: Plan) -> dict[str, tuple[int, str]]:
    """The lines that are there for rollouts alone: bytes and moment."""
    known = {(line.role, line.what) for line in without.lines}
    return {line.what: (line.bytes, line.moment) for line in plan.lines if (line.role, line.what) not in known}


def test_a_sharded_student_is_copied_while_it_answers(without: Plan, folder: Path) -> None:
    plan = planned(without, folder, "rollouts={batch_size: 8, max_new_tokens: 128}")
    cache = 8 * 2048 * 16 * 2 * 512 * 2  # answers, tokens, layers, keys and values, width of all heads, bf16
    prompts = 8 * (2048 - 128)
    forward = prompts * (2048 * (2 * 2 + 8) + 2 * 3 * 8192)  # the stream, and a layer's MLP
    assert of_rollouts(plan, without) == {
        "plain copy for rollouts": (STUDENT * 2, "sampling"),
        "a gathered parameter": (128256 * 2048 * 2, "sampling"),
        "key-value cache of rollouts": (cache, "sampling"),
        "a forward of rollouts": (forward, "sampling"),
    }
    assert forward > 8 * 128256 * COPIES
    always = sum(line.bytes for line in plan.lines if (line.moment, line.place) == ("always", "device"))
    assert plan.bytes_at("sampling", "device") == always + STUDENT * 2 + 128256 * 2048 * 2 + cache + forward
    # It goes when training goes on: nothing else has changed.
    assert plan.bytes_at("student", "device") == without.bytes_at("student", "device")


def test_a_copy_that_is_trained_beside_is_always_there(without: Plan, folder: Path) -> None:
    plan = planned(without, folder, "rollouts={batch_size: 8, ahead: 1}")
    copied = {what for what, (_, moment) in of_rollouts(plan, without).items() if moment == "always"}
    assert copied == {"plain copy for rollouts", "key-value cache of rollouts", "a forward of rollouts"}
    assert plan.bytes_at("student", "device") > without.bytes_at("student", "device") + STUDENT * 2
    whole = planned(without, folder, "rollouts={batch_size: 8}", "student.deepspeed=student_zero2_gpu.json")
    assert set(of_rollouts(whole, without)) == {"key-value cache of rollouts", "a forward of rollouts"}
    ahead = whole.changed({"rollouts.ahead": 1})
    assert of_rollouts(ahead, without)["plain copy for rollouts"] == (STUDENT * 2, "always")


def test_actors_sample_beside_the_workers(without: Plan, folder: Path) -> None:
    plan = planned(without, folder, "rollouts={engine: vllm, actors: {count: 4}}")
    assert of_rollouts(plan, without) == {}
    assert plan.round is not None
    # 25 steps of 128 own answers, 32 at a time.
    assert (plan.round.answers, plan.round.batches, plan.round.batches_of_worker) == (3200, 100, 25)
    assert plan.round.answers_per_step == 128


def test_top_ids_of_terms_that_own_answers_alone_have(without: Plan, folder: Path) -> None:
    spectra = ("objective.projection=0.0", "objective.uld=1.5")
    plan = planned(without, folder, *spectra, "rollouts={objective: {projection: 1.0}}")
    lines = {line.what: line.bytes for line in plan.lines}
    assert lines["top-k tokens of a window"] == 16 * 2048 * 64 * 12
    assert "top-k tokens of a window" not in {line.what for line in planned(without, folder, *spectra).lines}


def test_own_answers_are_never_cached(without: Plan, folder: Path) -> None:
    assert without.cached_seconds() == without.seconds()["student"]["longer"]
    plan = planned(without, folder, "rollouts={share: 0.25}")
    seconds = plan.seconds()
    # A quarter of the window is still judged, with one gather as before.
    teacher = max(seconds["teacher"]["compute"] / 4, seconds["teacher"]["wire"])
    assert plan.cached_seconds() == pytest.approx(seconds["student"]["longer"] + teacher)
    everything = planned(without, folder, "rollouts={share: 1.0}")
    assert everything.cached_seconds() == pytest.approx(sum(role["longer"] for role in seconds.values()))


def test_smaller_batches_of_answers_may_make_it_fit(without: Plan, folder: Path) -> None:
    plan = planned(without, folder, "rollouts={batch_size: 256, max_new_tokens: 1024}")
    sampling, others = (max(plan.bytes_at(m, "device") for m in ms) for ms in (["sampling"], ["teacher", "student"]))
    assert sampling > others
    tight = replace(plan, hardware=replace(H100, memory=int((sampling + others) / 2 / 0.94)))
    assert not tight.fits
    assert {"rollouts.batch_size": 128} in tight.helpful_changes()
    assert not any("rollouts" in key for change in replace(without, hardware=replace(H100, memory=10**10))
                   .helpful_changes() for key in change)  # fmt: skip


def test_the_command_shows_them(folder: Path) -> None:
    words = ["plan", str(folder / "recipe.yaml")]
    words += [word for change in changes(folder, "rollouts={batch_size: 8}") for word in ("--set", change)]
    said = CliRunner().invoke(app, words, env={"COLUMNS": "400"})
    assert said.exit_code == 0, said.output
    rows = [" ".join(line.split()) for line in said.stdout.splitlines()]
    assert "student plain copy for rollouts 2.47 device while the student answers" in rows
    assert (
        "rollouts 3,200 answers every 25 steps in 400 batches, up to 25 of each worker, with up to 128 forwards of one "
        "token each; its time is not counted: it follows from no rate here"
    ) in rows
    assert any(row.startswith("step ") and row.endswith("once teacher outputs of given answers are cached") for row in rows)  # fmt: skip # noqa: E501
    facts = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert facts["round"]["batches_of_worker"] == 25
    assert facts["moments"]["device"]["sampling"] > facts["moments"]["device"]["step"]
