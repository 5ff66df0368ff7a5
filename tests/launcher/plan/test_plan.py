"""Plans against sums done by hand: those of the design for a 70B teacher on two nodes, and small ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

from launcher.cli import app
from launcher.commands.recipes import shipped_recipes
from launcher.plan.memory import BYTES, Role, checkpoint_bytes
from launcher.plan.plan import Plan
from launcher.plan.shapes import shape_of, student_shape, teacher_shape
from launcher.plan.speed import Hardware, student_traffic
from tests.helpers.known_models import stand_in
from uld_ds.errors import UserError
from uld_ds.recipe import Recipe, load_recipe, parse_recipe

TEACHER, STUDENT = 70_553_706_496, 1_235_814_400  # Llama 3.3 70B and Llama 3.2 1B, as their cards say
RESTING = ("weights", "spectra of a window", "top-k tokens of a window")
# 400 TFLOP/s reached.
H100 = Hardware("gpu", 80 * 10**9, 8, 1000.0, 0.4, 400.0, 3600.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "recipe.yaml").write_text(shipped_recipes()["two-node-70b"])
    stand_in(folder / "teacher", "meta-llama/Llama-3.3-70B-Instruct")
    stand_in(folder / "student", "meta-llama/Llama-3.2-1B")
    return folder


@pytest.fixture(scope="module")
def plan(folder: Path) -> Plan:
    """The shipped recipe for two nodes."""
    recipe = recipe_of(folder)
    shapes = {"teacher": teacher_shape(recipe.teacher_named())}
    return Plan(recipe, H100, student_shape(recipe.student), shapes, student_tokens=2048, teacher_tokens=2048)


def recipe_of(folder: Path, *changes: str) -> Recipe:
    models = [f"{role}.model={folder / role}" for role in ("teacher", "student")]
    return load_recipe(folder / "recipe.yaml", [*models, *changes], environment={})


def lines_of(plan: Plan) -> dict[tuple[str, str], int]:
    return {(line.role, line.what): line.bytes for line in plan.lines}


def test_shapes_come_from_configurations(plan: Plan) -> None:
    assert plan.student_shape.parameters == STUDENT
    assert plan.teacher_shapes["teacher"].parameters == TEACHER
    assert plan.teacher_shapes["teacher"].largest == 128256 * 8192
    assert plan.teacher_shapes["teacher"].layers == 80
    attention, mlp, norms = 2 * 8192**2 + 2 * 8192 * 1024, 3 * 8192 * 28672, 2 * 8192
    assert plan.teacher_shapes["teacher"].layer_parameters == attention + mlp + norms


def test_weights_gradients_and_states_are_shared_by_sixteen(plan: Plan) -> None:
    lines = lines_of(plan)
    assert lines["teacher", "weights"] == TEACHER * 2 // 16  # 8.8 GB
    assert lines["student", "weights"] == lines["student", "gradients"] == STUDENT * 2 // 16
    assert lines["student", "optimizer states"] == STUDENT * 12 // 16
    # The head is 2.1 GB: more than what ZeRO-3 lets be whole at a time, but it has to be.
    assert lines["teacher", "gathered layers"] == 128256 * 8192 * 2
    assert lines["teacher", "whole weights on the first rank"] == TEACHER * 2
    # ZeRO-3 writes fp32 weights and two moments; the weights in bf16 follow from them.
    assert plan.disk["checkpoints"] == STUDENT * 12 * 4
    assert lines["student", "checkpoint on its way"] == STUDENT * 12 // 16


def test_the_designs_arithmetic(plan: Plan) -> None:
    """One gather per window of 32,768 tokens: 70 GB into each node, 1.4 s; 11.5 s of forward."""
    assert plan.teacher_forwards == 1
    teacher = plan.traffic()["teacher"]
    assert teacher.per_node == pytest.approx(70e9, rel=0.01)
    assert teacher.per_device == pytest.approx(TEACHER * 2 * 15 / 16)
    seconds = plan.seconds()["teacher"]
    assert seconds["wire"] == pytest.approx(1.4, rel=0.02)
    assert seconds["compute"] == pytest.approx(11.5, rel=0.02)
    # Gathered per 2,048 tokens, the wire takes twice as long as the forward.
    often = plan.changed({"teacher.max_tokens_per_forward": 2048})
    assert often.teacher_forwards == 16
    assert often.seconds()["teacher"]["wire"] == pytest.approx(16 * 1.4, rel=0.02)


def test_one_node_has_no_traffic_from_others(plan: Plan) -> None:
    one = replace(plan, hardware=replace(H100, per_node=16))
    assert one.traffic()["teacher"].per_node == 0
    assert one.traffic()["teacher"].per_device > 0


def test_stages_share_what_they_share(plan: Plan) -> None:
    sizes = {}
    for stage in range(4):
        role = Role(plan.student_shape, "bf16", {"stage": stage}, 4, "gpu")
        sizes[stage] = [role.share(100, first) for first in (3, 2, 1)]  # weights, gradients, states
    assert sizes == {0: [100, 100, 100], 1: [100, 100, 25], 2: [100, 25, 25], 3: [25, 25, 25]}


def test_checkpoints_by_stage(plan: Plan) -> None:
    """Bytes per parameter, all ranks together."""
    one = replace(plan.student, ranks=1)
    for precision, stage, expected in [
        ("fp32", 3, 12),
        ("bf16", 3, 12),
        ("fp32", 2, 16),
        ("bf16", 2, 14),
        ("fp32", 0, 12),
    ]:
        role = replace(one, precision=precision, zero={"stage": stage})
        assert sum(checkpoint_bytes(role)) == STUDENT * expected, (precision, stage)
    # All weights from the first rank, below ZeRO-3; of the states its share.
    assert checkpoint_bytes(replace(plan.student, zero={"stage": 2})) == (STUDENT * 12 // 16, STUDENT * 2)


def test_stage_three_gathers_per_micro_batch(plan: Plan) -> None:
    far = Role(plan.student_shape, "bf16", {"stage": 3, "stage3_max_reuse_distance": 0}, 16, "gpu")
    assert student_traffic(far, H100, 4).per_device == pytest.approx(4 * 3 * STUDENT * 2 * 15 / 16)
    assert student_traffic(replace(far, ranks=1), H100, 4).per_device == 0


def test_checkpointing_and_smaller_micro_batches_take_less(plan: Plan) -> None:
    with_it = lines_of(plan)["student", "activations"]
    without = lines_of(plan.changed({"student.gradient_checkpointing": False}))["student", "activations"]
    assert without > 6 * with_it
    half = lines_of(plan.changed({"training.micro_batch_size": 2}))["student", "activations"]
    assert half == pytest.approx(with_it / 2, rel=1e-3)


def test_a_stored_teacher_takes_nothing(plan: Plan) -> None:
    stored = plan.changed({"teacher.source": "stored", "teacher.path": "x"})
    assert {line.role for line in stored.lines} == {"worker", "student"}
    assert set(stored.traffic()) == set(stored.seconds()) == {"student"}
    assert stored.device_peak < plan.device_peak


def test_a_served_teacher_takes_nothing_here(folder: Path) -> None:
    words = ["plan", str(folder / "recipe.yaml"), "--set", "teacher.source=served"]
    words += [word for role in ("teacher", "student") for word in ("--set", f"{role}.model={folder / role}")]
    words += ["--set", "teacher.server={url: 'http://teacher:8000', api: vllm}"]
    words += ["--set", "teacher.max_tokens_per_forward=4096"]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    assert "served elsewhere: takes no memory" in result.stdout and "70.6 billion" not in result.stdout
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert {line["role"] for line in found["lines"]} == {"worker", "student"}


def test_only_what_learns_has_gradients_and_states(folder: Path, plan: Plan) -> None:
    recipe = recipe_of(folder, "student.lora={rank: 8}")
    shape = student_shape(recipe.student)
    # Per layer: queries and output (2048 x 2048), keys and values (2048 x 512), three of the MLP (2048 x 8192).
    adapters = 16 * 8 * (2 * (2048 + 2048) + 2 * (2048 + 512) + 3 * (2048 + 8192))
    assert (shape.learning, shape.parameters, shape.head_learns) == (adapters, STUDENT + adapters, False)
    lora = replace(plan, recipe=recipe, student_shape=shape)
    lines, whole = lines_of(lora), lines_of(plan)
    assert lines["student", "gradients"] == adapters * 2 // 16
    assert lines["student", "optimizer states"] == adapters * 12 // 16
    assert lines["student", "weights"] == (STUDENT + adapters) * 2 // 16
    assert whole["student", "head chunk"] - lines["student", "head chunk"] == 128256 * 2048 * 2
    assert lora.disk["checkpoints"] == (adapters * 12 + STUDENT * 2) * 4
    # Two passes instead of three, and one more for what is computed again.
    share = adapters / (STUDENT + adapters)
    assert lora._student_operations() / plan._student_operations() == pytest.approx((3 + share) / 4)
    # Weights twice, forward and backward; gradients are next to nothing.
    ratio = lora.traffic()["student"].per_node / plan.traffic()["student"].per_node
    assert ratio == pytest.approx((2 + share) / 3 * (STUDENT + adapters) / STUDENT)


def test_weights_in_four_bits(folder: Path, plan: Plan) -> None:
    recipe = recipe_of(folder, "student.lora={rank: 8, quantize: nf4}", "student.deepspeed=null")
    shape = student_shape(recipe.student)
    linear = 16 * (2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    assert (shape.quantized, shape.largest_quantized) == (linear, 2048 * 8192)
    four = replace(plan, recipe=recipe, student_shape=shape)
    assert four.student.stage == 2
    lines = lines_of(four)
    # Half a byte, a byte for 64, four for 16,384: on every rank. Embeddings, norms and adapters are bf16.
    assert lines["student", "weights"] == 2 * (shape.parameters - linear) + round(linear * (0.5 + 1 / 64 + 1 / 4096))
    assert lines["student", "a matrix out of its 4 bits"] == 2048 * 8192 * 2
    assert lines["student", "optimizer states"] == shape.learning * 12 // 16
    assert four.disk == {"checkpoints": shape.learning * (12 + 2) * 4, "export": shape.parameters * 2}
    with pytest.raises(UserError, match="shards weights"):
        four.changed({"student.deepspeed": "student_zero3_gpu.json"}).bytes_at("always", "device")


def test_frozen_and_missing_layers(folder: Path) -> None:
    recipe = recipe_of(folder, "student.keep_layers=[0, 5, 15]", "student.freeze=[model.embed_tokens.*]")
    shape = student_shape(recipe.student)
    layer = 2 * 2048**2 + 2 * 2048 * 512 + 3 * 2048 * 8192 + 2 * 2048
    assert (shape.layers, shape.layer_parameters) == (3, layer)
    assert shape.learning == 3 * layer + 2048
    assert shape.parameters == shape.learning + 128256 * 2048


def test_what_does_not_fit_says_what_would(plan: Plan) -> None:
    assert plan.fits
    assert plan.helpful_changes() == []
    alone = plan._on(1)
    assert not alone.fits
    assert alone.devices_needed() in (4, 8)
    changes = alone.helpful_changes()
    assert {"teacher.source": "stored", "teacher.path": "STORE"} in changes
    for change in changes:
        assert alone.changed(change).fits
    whole = plan.changed({"teacher.sharding": "none"})
    assert not whole.fits
    assert {"teacher.sharding": "zero3"} in whole.helpful_changes()


def test_offloaded_parameters_are_on_the_host(plan: Plan) -> None:
    off = plan.changed({"teacher.deepspeed": "teacher_zero3_gpu_offload.json"})
    assert plan.device_peak - off.device_peak == pytest.approx(TEACHER * 2 / 16, rel=1e-6)
    line = next(line for line in off.lines if (line.role, line.what) == ("teacher", "weights"))
    assert line.place == "host"


def test_the_command(folder: Path) -> None:
    words = ["plan", str(folder / "recipe.yaml")]
    words += [word for role in ("teacher", "student") for word in ("--set", f"{role}.model={folder / role}")]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "16 x 80 GB GPU, 2 nodes" in result.stdout
    assert "70.6 billion parameters, vocabulary 128,256" in result.stdout
    assert "It fits: " in result.stdout
    result = CliRunner().invoke(app, [*words, "--memory", "16", "--json"])
    facts: dict[str, Any] = json.loads(result.stdout)
    assert facts["fits"] is False
    assert facts["hardware"]["memory"] == 16 * 10**9
    assert sum(line["bytes"] for line in facts["lines"] if line["moment"] == "always") > 0
    assert facts["moments"]["device"]["teacher"] <= facts["device_peak_bytes"]
    assert BYTES["bf16"] * STUDENT // 16 in [line["bytes"] for line in facts["lines"]]


def test_a_model_without_attention_is_planned() -> None:
    config = AutoConfig.for_model("mamba", vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4)
    shape = shape_of(config, "mamba")
    assert (shape.heads, shape.queries, shape.keys, shape.layers) == (0, 0, 0, 2)
    assert shape.parameters == sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def test_what_cannot_be_planned(folder: Path, tmp_path: Path) -> None:
    words = ["plan", str(folder / "recipe.yaml"), "--set", f"teacher.model={tmp_path}"]
    error = CliRunner().invoke(app, [*words, "--set", f"student.model={folder / 'student'}"]).exception
    assert isinstance(error, UserError)
    assert str(error) == f"teacher.model: '{tmp_path}' has no config.json; name a folder in Hugging Face layout"
    error = CliRunner().invoke(app, [*words, "--on", "tpu"]).exception
    assert str(error) == "--on: 'tpu' is no kind of device; write gpu or cpu"


def test_several_teachers_are_all_in_memory_and_run_one_after_the_other(folder: Path, plan: Plan) -> None:
    tree = plan.recipe.model_dump(mode="json")
    large = tree.pop("teacher") | {"name": "large", "weight": 1.0}
    small = large | {"name": "small", "model": str(folder / "student")}
    kept = small | {"name": "kept", "source": "stored", "path": "store"}
    both = parse_recipe(tree | {"teachers": [large, small, kept]})
    shapes = {"large": plan.teacher_shapes["teacher"], "small": plan.student_shape}
    found = replace(plan, recipe=both, teacher_shapes=shapes)
    lines, alone = lines_of(found), lines_of(plan)
    for what in ("weights", "activations", "spectra of a window", "gathered layers"):
        assert lines["teacher large", what] == alone["teacher", what]
    assert lines["teacher small", "weights"] == -(-STUDENT * 2 // 16)
    assert not any(role == "teacher kept" for role, _ in lines)
    # What is there all the time adds up; what a forward takes is there once.
    resting = sum(size for (role, what), size in lines.items() if role == "teacher small" and what in RESTING)
    assert found.bytes_at("teacher", "device") == plan.bytes_at("teacher", "device") + resting
    # The loss goes over the head once for each teacher, and adds its gradient up in fp32.
    head = lines["student", "head gradients of further teachers"]
    assert head == 2 * 128256 * 2048 * 4
    assert found.bytes_at("student", "device") == plan.bytes_at("student", "device") + resting + head
    assert found.teacher_forwards == 2 * plan.teacher_forwards
    seconds = found.seconds()
    assert seconds["teacher large"] == plan.seconds()["teacher"]
    assert set(seconds) == {"teacher large", "teacher small", "student"}
    assert found.to_json()["seconds"]["step"] == pytest.approx(sum(role["longer"] for role in seconds.values()))
    # Of rows that name their judge each reads a share.
    routed = tree["data"] | {"columns": {"teacher": "judge"}}
    objective = tree["objective"] | {"combine": "route"}
    shared = parse_recipe(tree | {"teachers": [large, small, kept], "data": routed, "objective": objective})
    assert [teacher.tokens for teacher in replace(found, recipe=shared).teachers] == pytest.approx(
        [teacher.tokens / 3 for teacher in found.teachers]
    )
    # Of two whose difference is compared with, the head has one gradient: 128256 x 2048 in the student's bf16 (its part
    # of the chunk) and none added up in fp32.
    of_likelihoods = {"ce": 1.0, "uld": 0.0, "likelihood": 1.0}
    added, difference = (
        replace(
            found,
            recipe=parse_recipe(
                tree | {"teachers": [large, small], "objective": of_likelihoods | {"combine": combine}}
            ),
        )
        for combine in ("sum", "difference")
    )
    assert ("student", "head gradients of further teachers") not in lines_of(difference)
    saved = 128256 * 2048 * 4
    assert added.bytes_at("student", "device") - difference.bytes_at("student", "device") == saved
    changed = found.changed({"teachers.small.sharding": "none"})
    assert lines_of(changed)["teacher small", "weights"] == STUDENT * 2
    assert lines_of(changed)["teacher large", "weights"] == lines["teacher large", "weights"]
