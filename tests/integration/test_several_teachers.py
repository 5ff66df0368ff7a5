"""Several teachers of one student: sums of gradients, rows of their own, stores, and runs that go on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_from_disk

from tests.helpers.ranks import run_on_ranks
from tests.helpers.several_teachers import alone, several
from tests.helpers.trajectory import weights_digest
from uld_ds.errors import UserError
from uld_ds.recipe import parse_recipe
from uld_ds.training.deepspeed_config import read_config
from uld_ds.training.trainer import Trainer


def named(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """The recipe of a run by another name, whose teachers are asked anew."""
    uncached = {"cache": False}
    one = {"teacher": recipe["teacher"] | uncached} if "teacher" in recipe else {}
    many = {"teachers": [teacher | uncached for teacher in recipe.get("teachers", [])]} if not one else {}
    return recipe | {"run": recipe["run"] | {"name": name}} | one | many


# ---- one step


def first_steps(recipes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Loss, parts and gradient of the first step of each recipe."""
    from deepspeed.utils import safe_get_full_grad

    found: dict[str, Any] = {}
    for name, recipe in recipes.items():
        trainer = Trainer.from_recipe(named(recipe, name), callbacks=[])
        engine, gradients = trainer.engine, []
        update = engine.student.step

        def look(engine: Any = engine, gradients: list[Any] = gradients, update: Any = update) -> None:
            if engine.student.is_gradient_accumulation_boundary():
                gradients += [safe_get_full_grad(p).flatten() for p in engine.student.module.parameters()]
            update()

        engine.student.step = look
        result = engine.train_step(trainer.batches.window(0))
        asked = {teacher.name: teacher.source.tokens_run for teacher in engine.teachings.teachers}
        found[name] = {"loss": result.loss, "uld": result.uld, "ce": result.ce, "gradient": torch.cat(gradients)}
        found[name] |= {"options": result.options, "tokens": asked}
        engine.close()
    return found


def close(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Tell whether two gradients are alike, but for the order in which float32 was added up."""
    return bool((ours - theirs).norm() <= 2e-6 * theirs.norm())


def test_gradients_of_a_sum_are_the_sum_of_gradients(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    recipe = several(tiny_recipe, tmp_path, rows)
    found = run_on_ranks(
        first_steps,
        1,
        {
            "both": recipe,
            "sharded": recipe | {"student": recipe["student"] | {"deepspeed": "student_zero3_cpu.json"}},
            "ce": alone(recipe, "general", **dict.fromkeys(("uld", "likelihood", "hybrid", "projection"), 0.0)),
            "general": alone(recipe, "general", ce=0.0),
            "code": alone(recipe, "code", ce=0.0),
        },
    )[0]
    both, ce, general, code = (found[name] for name in ("both", "ce", "general", "code"))
    assert close(both["gradient"], ce["gradient"] + 0.7 * general["gradient"] + 0.3 * code["gradient"])
    # A head that is sharded is gathered once, however many teachers there are.
    assert close(found["sharded"]["gradient"], both["gradient"])
    # It is not what either teaches alone, and cross-entropy is in it once.
    assert not close(both["gradient"], ce["gradient"] + general["gradient"])
    assert not close(both["gradient"], 2 * ce["gradient"] + 0.7 * general["gradient"] + 0.3 * code["gradient"])
    assert both["loss"] == pytest.approx(ce["loss"] + 0.7 * general["loss"] + 0.3 * code["loss"], rel=1e-6)
    assert both["ce"] == pytest.approx(general["ce"], rel=1e-12)
    assert both["uld"] == pytest.approx(0.7 * general["uld"] + 0.3 * code["uld"], rel=1e-6)
    for name, one in (("general", general), ("code", code)):
        assert both["options"][f"{name}/uld"] == pytest.approx(one["uld"], rel=1e-6)
        assert both["options"][f"{name}/likelihood"] == pytest.approx(one["options"]["likelihood"], rel=1e-6)
    # The student has segments of its own with each of them.
    assert general["options"]["likelihood"] != pytest.approx(code["options"]["likelihood"], rel=1e-2)


def test_each_row_goes_to_its_judge_and_counts_as_any_other(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    recipe = several(tiny_recipe, tmp_path, rows, routed=True)
    # Twice the same teacher: who judges a row makes no difference, if segments are counted over all rows together.
    general = recipe["teachers"][0] | {"weight": 1.0}
    twins = recipe | {"teachers": [general, general | {"name": "code"}]}
    one = alone(recipe, "general", combine="sum") | {
        "data": {k: v for k, v in recipe["data"].items() if k != "columns"}
    }
    found = run_on_ranks(first_steps, 1, {"twins": twins, "one": one, "two": recipe})[0]
    assert close(found["twins"]["gradient"], found["one"]["gradient"])
    assert found["twins"]["loss"] == pytest.approx(found["one"]["loss"], rel=1e-6)
    # No row was put into both.
    assert sum(found["twins"]["tokens"].values()) == found["one"]["tokens"]["teacher"]
    assert all(found["twins"]["tokens"].values())
    assert not close(found["two"]["gradient"], found["one"]["gradient"])

    folder = Path(recipe["run"]["storage"]) / ".prepared"
    prepared = [load_from_disk(str(place / "rows")) for place in folder.iterdir()]
    routed = [split for split in prepared if "code.teacher_ids" in split.column_names and len(split) == 48]
    assert len(routed) == 2
    for number, row in [item for split in routed for item in enumerate(split)]:
        judge, other = ("general", "code") if number % 3 else ("code", "general")
        assert len(row[f"{judge}.teacher_ids"]) > 0
        assert row[f"{judge}.digest"] == row["digest"]
        nothing = [row[f"{other}.{name}"] for name in ("teacher_ids", "student_segments", "digest", "teacher_length")]
        assert nothing == [[], [], "", 0]


def sharded_steps(recipe: dict[str, Any], steps: int) -> dict[str, Any]:
    """Train some steps of a student under ZeRO-3: losses, the first gradient, how far all weights moved, and judges.

    Those are, for each step, the numbers of the teachers that judge any of this rank's rows.
    """
    from deepspeed.utils import safe_get_full_grad

    engine = (trainer := Trainer.from_recipe(recipe, callbacks=[])).engine
    update, gradients, losses, judges = engine.student.step, [], [], []

    def look() -> None:
        if not losses and engine.student.is_gradient_accumulation_boundary():
            gradients.extend(safe_get_full_grad(p).flatten() for p in engine.student.module.parameters())
        update()

    def weights() -> torch.Tensor:
        whole = engine.student._zero3_consolidated_16bit_state_dict()
        return torch.cat([value.flatten().double() for value in whole.values()]) if whole else torch.zeros(0)

    engine.student.step = look
    before = weights()
    for step in range(steps):
        window = trainer.batches.window(step)
        judges.append({n for one in window for n, pairs in enumerate(one.pairs) if pairs.places(len(one.examples))})
        losses.append(engine.train_step(window).loss)
    return {"losses": losses, "gradient": torch.cat(gradients), "moved": weights() - before, "judges": judges}


def test_ranks_whose_rows_have_other_judges_learn_what_one_rank_does(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    config = read_config(None, "student", on_gpu=False)
    # Every weight is gathered for every use: ranks that do not do the same would wait for each other.
    config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
    (tmp_path / "sharded.json").write_text(json.dumps(config))
    recipe = named(several(tiny_recipe, tmp_path, rows, routed=True), "route")
    recipe["student"] |= {"deepspeed": str(tmp_path / "sharded.json")}
    found = {}
    for ranks, micro_batch_size in ((1, 4), (2, 1)):
        recipe["cluster"]["workers"] = ranks
        recipe["training"] |= {"batch_size": 4, "micro_batch_size": micro_batch_size}
        found[ranks] = run_on_ranks(sharded_steps, ranks, recipe, 6)
    one, two = found[1][0], found[2][0]
    # In some step one of two ranks has no row of a teacher that the other one has rows of; one rank has rows of both.
    assert any(len(mine) < 2 and mine != theirs for mine, theirs in zip(*(r["judges"] for r in found[2]), strict=True))
    assert {0, 1} in one["judges"]
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert close(two["gradient"], one["gradient"])
    # Six steps of Adam, which divides by what small gradients were.
    assert (two["moved"] - one["moved"]).norm() <= 1e-4 * one["moved"].norm()


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ("nobody", "column 'judge' has 'nobody': the recipe's teachers are general, code"),
        (None, "column 'judge' has no teacher's name: the recipe's teachers are general, code"),
    ],
)
def test_a_row_without_a_judge_is_a_bad_example(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]], judge: str | None, said: str
) -> None:
    recipe = several(tiny_recipe, tmp_path, rows, routed=True)
    path = Path(recipe["data"]["train"]["path"])
    lines = path.read_text().splitlines()
    lines[1] = lines[1].replace('"general"', "null" if judge is None else f'"{judge}"')
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"data\.train: row 1") as caught:
        prepare(recipe)
    assert said in str(caught.value)
    path.write_text("\n".join(line.replace("judge", "who") for line in lines) + "\n")
    with pytest.raises(UserError, match=r"data\.columns\.teacher: data\.train has no column 'judge'"):
        prepare(recipe)


def prepare(recipe: dict[str, Any]) -> None:
    from uld_ds.data.sides import TextSide
    from uld_ds.models.pretrained import Pretrained
    from uld_ds.training.preparation import found_teachers, prepared_splits

    parsed = parse_recipe(recipe)
    student = TextSide.of_model(Pretrained(str(parsed.student.model)), parsed.student, "student")
    prepared_splits(parsed, student, found_teachers(parsed, student), Path(parsed.run.storage) / "x")


# ---- whole runs


def run(recipe: dict[str, Any], target: str) -> dict[str, Any]:
    """Train to the end: losses in hexadecimal, held-out bits per byte, and the export's digest."""
    trainer = Trainer.from_recipe(recipe, callbacks=[])
    loaded = [teacher.name for teacher in trainer.engine.teachings.teachers if hasattr(teacher.source, "asked")]
    result = trainer.run()
    trainer.save(target)
    return {
        "losses": [step["train/loss"].hex() for step in trainer.history],
        "shown": sorted(name for name in trainer.history[0] if "/uld" in name),
        "bits": [result.state.bits_teacher, result.state.bits_before, result.bits_after],
        "export": weights_digest(Path(target)),
        "loaded": loaded,
    }


def build_stores(recipe: dict[str, Any], folder: str) -> None:
    """Build the store of each teacher, of training and held-out rows, on this rank."""
    import torch
    from datasets import load_from_disk

    from launcher.drivers.store import part_of
    from uld_ds.data.sides import TextSide
    from uld_ds.data.teacher_batching import TeacherBatcher
    from uld_ds.models.pretrained import Pretrained
    from uld_ds.teachers.online import OnlineTeacher
    from uld_ds.teachers.stored import held_out_url
    from uld_ds.training.deepspeed_config import teacher_config
    from uld_ds.training.engines import load_teacher
    from uld_ds.utils.distributed import Ranks
    from uld_ds.workers.store import StoreBuild

    whole, cpu, ranks = parse_recipe(recipe), torch.device("cpu"), Ranks.current()
    for settings in whole.teachers:
        assert settings.model is not None
        assert whole.data.eval is not None
        one = whole.alone_with(settings.name)
        side = TextSide.of_model(Pretrained.from_settings(settings, settings.key), settings, "teacher")
        engine = load_teacher(settings.model, settings, teacher_config(settings, on_gpu=False), cpu)
        url = f"{folder}/{settings.name}"
        routed = {"routed_by": whole, "judge": settings.name}
        for key, source, place in (
            ("data.eval", whole.data.eval, held_out_url(url)),
            ("data.train", whole.data.train, url),
        ):
            part = part_of(key, source, place, one, side, Path(folder) / "x", **routed)
            data = load_from_disk(str(Path(part.rows) / "rows"))
            batcher = TeacherBatcher(data, padding=0, max_tokens=settings.max_tokens_per_forward)
            teacher = OnlineTeacher(engine, batcher, ranks=ranks, device=cpu, top_ids=one.store.top_ids)
            StoreBuild(part, data, teacher, ranks, cpu, None).run()


def stored(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The same recipe, whose teachers are read from their stores."""
    found = [teacher | {"source": "stored", "path": str(folder / teacher["name"])} for teacher in recipe["teachers"]]
    return recipe | {"teachers": found, "run": recipe["run"] | {"name": "stored"}}


@pytest.mark.parametrize("routed", [False, True], ids=["sum", "route"])
def test_two_stores_of_two_tokenizers_teach_as_the_models_do(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]], routed: bool
) -> None:
    recipe = several(tiny_recipe, tmp_path, rows, routed=routed) | {"store": {"top_ids": 16}}
    run_on_ranks(build_stores, 1, recipe, str(tmp_path / "stores"))
    online = run_on_ranks(run, 1, recipe, str(tmp_path / "online"))[0]
    from_stores = run_on_ranks(run, 1, stored(recipe, tmp_path / "stores"), str(tmp_path / "stored"))[0]
    assert online["loaded"] == ["general", "code"]
    assert from_stores["loaded"] == []
    ours, theirs = (np.array([float.fromhex(loss) for loss in r["losses"]]) for r in (from_stores, online))
    # How examples are batched moves the teachers' last bits, and six steps of a high learning rate make more of it.
    np.testing.assert_allclose(ours[:2], theirs[:2], rtol=1e-6)
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    assert from_stores["bits"] == pytest.approx(online["bits"], rel=1e-3)
    assert {"train/code/uld", "train/general/uld", "train/uld"} <= set(online["shown"])
    assert ours[-1] < ours[0]
    if routed:  # each store holds the rows of its own teacher alone
        from uld_ds.teachers.store.reader import SpectrumStore

        sizes = [SpectrumStore.open(str(tmp_path / "stores" / n)).manifest.examples for n in ("code", "general")]
        assert sizes == [16, 32]
    mixed = stored(recipe, tmp_path / "stores")
    mixed["teachers"][0] = recipe["teachers"][0]
    mixed["run"] = recipe["run"] | {"name": "mixed"}
    of_both = run_on_ranks(run, 1, mixed, str(tmp_path / "mixed"))[0]
    np.testing.assert_allclose([float.fromhex(loss) for loss in of_both["losses"]], theirs, rtol=1e-3)


def interrupted(recipe: dict[str, Any], folder: str, steps: int) -> list[str]:
    """Train some steps of a run that may have been trained before; return their losses."""
    from tests.helpers.file_checkpoints import FileCheckpoints

    trainer = Trainer.from_recipe(recipe, callbacks=[])
    trainer._checkpoints = FileCheckpoints(Path(folder))
    left = iter(range(steps))
    trainer._should_stop = lambda: next(left, None) is None
    trainer.run()
    return [step["train/loss"].hex() for step in trainer.history]


@pytest.mark.parametrize("routed", [False, True], ids=["sum", "route"])
def test_an_interrupted_run_goes_on_bit_for_bit(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]], routed: bool
) -> None:
    recipe = several(tiny_recipe, tmp_path, rows, routed=routed)
    recipe["cluster"]["workers"] = 2
    through = recipe | {"run": recipe["run"] | {"name": "through"}}
    whole = run_on_ranks(interrupted, 2, through, str(tmp_path / "a"), 99)[0]
    first = run_on_ranks(interrupted, 2, recipe, str(tmp_path / "b"), 4)[0]
    # How much goes through a teacher at a time is another matter of how fast, not of what.
    again = recipe | {"teachers": [t | {"max_tokens_per_forward": 300} for t in recipe["teachers"]]}
    second = run_on_ranks(interrupted, 2, again, str(tmp_path / "b"), 99)[0]
    assert [len(whole), len(first), len(second)] == [6, 4, 2]
    assert first + second == whole


# ---- the student's own answers


@pytest.mark.parametrize("routed", [False, True], ids=["sum", "route"])
def test_own_answers_are_judged_by_all_or_by_the_one_that_the_prompt_names(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]], routed: bool
) -> None:
    recipe = several(tiny_recipe, tmp_path, rows, routed=routed)
    recipe["rollouts"] = {"share": 0.5, "every": 2, "max_new_tokens": 6}
    recipe["training"] |= {"steps": 4}
    found = run_on_ranks(rounds, 1, recipe)[0]
    assert found["steps"] == 4
    assert found["own"] > 0
    assert found["judged"] == ({1} if routed else {2})


def rounds(recipe: dict[str, Any]) -> dict[str, Any]:
    """Train with rollouts: how many steps had own answers, and how many teachers judged each of them."""
    trainer = Trainer.from_recipe(recipe, callbacks=[])
    judged: set[int] = set()
    window = trainer.batches.window

    def looked(step: int) -> Any:
        found = window(step)
        for micro_batch in found:
            assert micro_batch.own is not None
            for place in micro_batch.own.nonzero().flatten().tolist():
                judged.add(sum(place in pairs.places(len(micro_batch.examples)) for pairs in micro_batch.pairs))
        return found

    trainer.batches.window = looked  # type: ignore[method-assign]
    trainer.run()
    own = [step for step in trainer.history if "rollouts/step_teacher_nats_per_byte" in step]
    return {"steps": len(trainer.history), "own": len(own), "judged": judged}


def test_the_difference_of_two_teachers_trains(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]]
) -> None:
    terms = {"uld": 0.0, "hybrid": 0.0, "projection": 0.0, "likelihood": 1.0, "combine": "difference"}
    recipe = several(tiny_recipe, tmp_path, rows, **terms)
    for teacher in recipe["teachers"]:
        teacher["weight"] = 1.0
    twins = recipe | {"teachers": [recipe["teachers"][0], recipe["teachers"][0] | {"name": "code"}]}
    ce = alone(recipe, "general", likelihood=0.0, combine="sum")
    found = run_on_ranks(first_steps, 1, {"difference": recipe, "twins": twins, "ce": ce})[0]
    # Of a teacher and itself there is none, and cross-entropy is all that is left.
    assert found["twins"]["options"]["likelihood"] == pytest.approx(0, abs=1e-12)
    assert close(found["twins"]["gradient"], found["ce"]["gradient"])
    assert found["difference"]["options"]["likelihood"] > 0.01
    assert not close(found["difference"]["gradient"], found["ce"]["gradient"])
    losses = run_on_ranks(run, 1, recipe, str(tmp_path / "out"))[0]["losses"]
    assert float.fromhex(losses[-1]) < float.fromhex(losses[0])
