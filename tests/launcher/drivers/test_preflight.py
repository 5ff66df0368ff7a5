"""What is found out before anything expensive starts: folders, disk, ports, and whose run a folder holds."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from launcher.drivers.preflight import check_deepspeed_configs, check_free_disk, check_port, claim_run_dir
from uld_ds.errors import UserError
from uld_ds.recipe import Recipe, load_recipe, parse_recipe


def recipe(tree: dict[str, Any], **changes: Any) -> Recipe:
    for dotted, value in changes.items():
        section, _, key = dotted.partition("__")
        tree = {**tree, section: {**tree.get(section, {}), key: value}}
    return parse_recipe(tree)


@pytest.fixture
def tree(tmp_path: Path) -> dict[str, Any]:
    return {
        "run": {"name": "a", "storage": str(tmp_path / "runs")},
        "teacher": {"model": "t"},
        "student": {"model": "s"},
        "data": {"train": {"source": "files", "path": "x"}},
        "training": {"steps": 3},
    }


def message(call: Any, *args: Any, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        call(*args, **options)
    return str(caught.value)


def test_a_claimed_folder_holds_the_resolved_recipe(tree: dict[str, Any], tmp_path: Path) -> None:
    run_dir = claim_run_dir(recipe(tree))
    assert run_dir == tmp_path / "runs" / "a"
    assert [item.name for item in run_dir.iterdir()] == ["recipe.yaml"]
    assert load_recipe(run_dir / "recipe.yaml", environment={}) == recipe(tree)


def test_storage_may_be_relative_or_in_the_home_folder(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert claim_run_dir(recipe(tree, run__storage="here")) == tmp_path / "here" / "a"
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert claim_run_dir(recipe(tree, run__storage="~/runs")) == tmp_path / "home" / "runs" / "a"


def test_a_folder_that_cannot_be_written(tree: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = message(claim_run_dir, recipe(tree, run__storage=str(tmp_path / "file")))
    assert text == (f"run.storage: cannot write to '{tmp_path}/file/a' (Not a directory); name a writable folder")
    if os.access("/proc", os.F_OK):
        text = message(claim_run_dir, recipe(tree, run__storage="/proc/nowhere"))
        assert text.startswith("run.storage: cannot write to '/proc/nowhere/a' (")


def started(run_dir: Path) -> None:
    (run_dir / "mlflow_run_id").write_text("1")


def test_a_started_run_is_resumed_by_its_own_recipe_only(tree: dict[str, Any]) -> None:
    started(run_dir := claim_run_dir(recipe(tree)))
    assert claim_run_dir(recipe(tree, tracking__experiment="other", training__keep_checkpoints=1)) == run_dir
    assert message(claim_run_dir, recipe(tree, training__steps=4)) == (
        f"run.name: 'a' began with another recipe (training.steps: 3 -> 4); set another run.name, or remove {run_dir}"
    )
    assert claim_run_dir(recipe(tree)) == run_dir


def test_a_change_by_the_environment_is_a_change(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    started(run_dir := claim_run_dir(recipe(tree)))
    monkeypatch.setenv("ULD_DS__TRAINING__STEPS", "4")
    changed = load_recipe(run_dir / "recipe.yaml")
    assert "training.steps: 3 -> 4" in message(claim_run_dir, changed)


def test_a_mistake_before_the_start_can_be_corrected_under_the_same_name(tree: dict[str, Any]) -> None:
    run_dir = claim_run_dir(recipe(tree, teacher__model="mistyped"))
    (run_dir / "student" / "deep").mkdir(parents=True)
    (run_dir / "prepared.json").write_text("{}")
    claim_run_dir(recipe(tree))
    assert [item.name for item in run_dir.iterdir()] == ["recipe.yaml"]
    assert load_recipe(run_dir / "recipe.yaml", environment={}) == recipe(tree)
    # What a run has begun with it keeps.
    (run_dir / "student" / "deep").mkdir(parents=True)
    (run_dir / "prepared.json").write_text("{}")
    started(run_dir)
    assert claim_run_dir(recipe(tree)) == run_dir
    assert (run_dir / "student").exists() and (run_dir / "prepared.json").exists()


def test_a_recipe_of_another_version_is_another_recipe(tree: dict[str, Any]) -> None:
    run_dir = claim_run_dir(recipe(tree))
    (run_dir / "recipe.yaml").write_text("old_section: 1\n")
    started(run_dir)
    text = message(claim_run_dir, recipe(tree))
    assert text.startswith("run.name: 'a' began with another recipe (of another version: old_section: unknown key ")


def test_free_disk(tree: dict[str, Any], tmp_path: Path) -> None:
    check_free_disk(tmp_path, recipe(tree), 1_000)
    free = shutil.disk_usage(tmp_path).free
    # 12 bytes a parameter for each of 2 + 2 checkpoints, and 8 for exports: 56. At ZeRO-2 16 bytes: 72.
    check_free_disk(tmp_path, recipe(tree), int(free * 0.9) // 56)
    below = recipe(tree, student__deepspeed="student_zero2_cpu.json")
    check_free_disk(tmp_path, below, int(free * 0.9) // 72)
    message(check_free_disk, tmp_path, below, int(free * 1.1) // 72)
    # So is a small one.
    message(check_free_disk, tmp_path, recipe(tree), int(free * 1.1) // 72, weight_bytes=1 << 20)
    # A student in 4 bits is at ZeRO-2 unless the recipe says otherwise.
    message(check_free_disk, tmp_path, recipe(tree, student__lora={"quantize": "nf4"}), int(free * 1.1) // 72)
    text = message(check_free_disk, tmp_path, recipe(tree), int(free * 1.1) // 56)
    assert text.startswith(f"run.storage: '{tmp_path}' has ")
    assert text.endswith("; free some, lower training.keep_checkpoints, or store elsewhere")
    check_free_disk(tmp_path, recipe(tree, training__keep_checkpoints=1), int(free * 1.1) // 56)


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert message(check_port, port, "cluster.dashboard_port") == (
            f"cluster.dashboard_port: port {port} is not free (Address already in use); choose another port"
        )
    check_port(port, "cluster.dashboard_port")
    check_port(None, "cluster.dashboard_port")


def test_deepspeed_configs_are_checked_for_both_devices(tree: dict[str, Any]) -> None:
    check_deepspeed_configs(recipe(tree))
    assert message(check_deepspeed_configs, recipe(tree, teacher__deepspeed="student_zero2_gpu.json")) == (
        "teacher.deepspeed: student_zero2_gpu.json: zero_optimization.stage 2; a teacher runs at stage 0 or 3"
    )
