"""One store, students of any tokenizer: what was stored is what the teacher would have said."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import load_from_disk
from transformers import AutoTokenizer

from launcher.drivers.store import part_of
from tests.helpers.engines import CPU, build, prepared_job, teacher_of, variant, window_of
from tests.helpers.ranks import run_on_ranks
from tests.helpers.stored_talks import TALKS, side, store_of
from tests.helpers.tiny import save_tiny_model
from tests.helpers.toy_tokenizers import CHAT_TEMPLATE, TRIMMING_TEMPLATE, toy
from uld_ds.data.examples import Example
from uld_ds.data.pairing import Pairing
from uld_ds.data.prepare import Preparer
from uld_ds.data.sides import TextSide
from uld_ds.data.teacher_batching import TeacherBatcher
from uld_ds.data.teacher_rows import TeacherEncoding
from uld_ds.errors import UserError
from uld_ds.recipe import Recipe, parse_recipe
from uld_ds.runs.job import Job
from uld_ds.teachers.online import OnlineTeacher
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.teachers.stored import StoredTeacher, check_store
from uld_ds.teachers.stored_side import StoredSide
from uld_ds.training.teaching import Teachings
from uld_ds.utils.distributed import Ranks
from uld_ds.workers.store import StoreBuild, StorePart

# ---- sides


STUDENT = toy("ab", "ca", chat_template=CHAT_TEMPLATE)
TEACHERS = {
    "same template": toy("bc", "abc", chat_template=CHAT_TEMPLATE),
    "trims": toy("bc", chat_template=TRIMMING_TEMPLATE),
    "long ends": toy("bc", chat_template=CHAT_TEMPLATE.replace("</s>", "!?</s>")),
    "no ends": toy("bc", eos=False, chat_template=CHAT_TEMPLATE.replace("</s>", "")),
    "straddles": toy("tb", ">a", chat_template=CHAT_TEMPLATE.replace("+ m['content']", "+ 't' + m['content']")),
}


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("student_template", [CHAT_TEMPLATE, TRIMMING_TEMPLATE], ids=["keeps", "trims"])
def test_a_stored_side_pairs_like_the_tokenizer_it_came_from(tmp_path: Path, name: str, student_template: str) -> None:
    student = side(toy("ab", "ca", chat_template=student_template))
    teacher = side(TEACHERS[name])
    stored = StoredSide(store_of(tmp_path, teacher, TALKS))
    online, offline = (Pairing(student, other, alignment="segments", turns="all")(TALKS) for other in (teacher, stored))
    for expected, row in zip(online, offline, strict=True):
        assert isinstance(expected, dict) and isinstance(row, dict), (expected, row)
        for column in ("student_ids", "student_answers", "student_segments", "student_segment_stops"):
            assert row[column].tolist() == expected[column].tolist()
        for column in ("teacher_in_text", "teacher_segments", "teacher_segment_stops"):
            assert row[column].tolist() == expected[column].tolist()
        assert (row["answer_bytes"], row["digest"]) == (expected["answer_bytes"], expected["digest"])


@pytest.mark.parametrize("limit", range(8, 40))
def test_a_store_that_was_cut_ends_at_the_last_shared_boundary(tmp_path: Path, limit: int) -> None:
    teacher = side(TEACHERS["same template"], max_length=limit)
    usable = [example for example in TALKS if _fits(teacher, example)]
    if not usable:
        return
    stored = StoredSide(store_of(tmp_path, teacher, usable))
    student = side(STUDENT)
    online, offline = (
        Pairing(student, other, alignment="segments", turns="all")(usable) for other in (teacher, stored)
    )
    for expected, row in zip(online, offline, strict=True):
        if isinstance(expected, str):
            # Some of the teacher's tokens fit, but no boundary that the student shares.
            assert isinstance(row, str) and row.startswith("nothing of the answer fits")
            continue
        assert isinstance(row, dict), row
        assert row["answer_bytes"] == expected["answer_bytes"]
        for column in ("teacher_segments", "teacher_segment_stops", "teacher_in_text"):
            assert row[column].tolist() == expected[column].tolist()
        # Where the teacher's tokens spell all of an answer and only its end did not fit, the student still learns
        # to end it; nothing is compared there.
        spelled = expected["student_answers"].tolist()
        assert row["student_answers"].tolist()[: len(spelled)] == spelled
        assert not row["student_in_text"][len(spelled) :].any()
        assert len(row["student_segments"]) == len(expected["student_segments"])


def _fits(teacher: TextSide, example: Example) -> bool:
    return isinstance(TeacherEncoding(teacher, turns="all")([example])[0], dict)


def test_places_lead_to_the_stored_tokens(tmp_path: Path) -> None:
    teacher = side(TEACHERS["trims"])
    store = store_of(tmp_path, teacher, TALKS)
    (row,) = Pairing(side(STUDENT), StoredSide(store), alignment="segments", turns="all")([TALKS[1]])
    assert isinstance(row, dict)
    # The trimming teacher read "abc" as a, bc and "déjà" byte by byte, each with an end: 3 + 7 tokens, all of them.
    assert row["teacher_answers"].tolist() == list(range(1, 11))
    last = Pairing(side(STUDENT), StoredSide(store), alignment="segments", turns="all")([TALKS[3]])[0]
    assert isinstance(last, dict)
    assert len(last["teacher_answers"]) == len(store.read([3])[0].tokens)


def test_an_example_that_is_not_in_the_store(tmp_path: Path) -> None:
    stored = StoredSide(store_of(tmp_path, side(TEACHERS["trims"]), TALKS[:2]))
    pairing = Pairing(side(STUDENT), stored, alignment="segments", turns="all")
    problems = pairing([TALKS[2], TALKS[0].only_last(), TALKS[1].only_last()])
    assert isinstance(problems[0], str) and "not in the spectrum store (its data_digest differs)" in problems[0]
    assert isinstance(problems[1], dict)
    # Of the same conversation other answers: another example.
    assert isinstance(problems[2], str)


# ---- building


def build_parts(config: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    job = Job.from_config(config)
    engine = teacher_of(job)
    ranks = Ranks.current()
    for part in (StorePart(**part) for part in parts):
        rows = load_from_disk(str(Path(part.rows) / "rows"))
        batcher = TeacherBatcher(rows, padding=0, max_tokens=job.recipe.teacher_named().max_tokens_per_forward)
        teacher = OnlineTeacher(engine, batcher, ranks=ranks, device=CPU, top_ids=job.recipe.store.top_ids)
        StoreBuild(part, rows, teacher, ranks, CPU, None).run()


def store_part(recipe: Recipe, folder: Path, url: Path) -> dict[str, Any]:
    assert recipe.teacher_named().model is not None
    tokenizer = AutoTokenizer.from_pretrained(recipe.teacher_named().model)
    teacher = TextSide(tokenizer, recipe.teacher_named(), "teacher")
    return vars(part_of("data.train", recipe.data.train, str(url), recipe, teacher, folder))


def content(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def test_a_build_ends_in_the_same_bytes_whoever_builds_and_however_often(
    tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    # Four times the text: some shards.
    train = tmp_path / "train.jsonl"
    rows = [json.loads(line) for line in train.read_text().splitlines()]
    numbered = [{**row, "prompt": f"{number}: {row['prompt']}"} for number in range(4) for row in rows]
    train.write_text("".join(json.dumps(row) + "\n" for row in numbered))
    config = prepared_job(tiny_recipe, tmp_path / "job").to_config()
    recipe = parse_recipe(tiny_recipe)
    urls = {name: tmp_path / name for name in ("one", "two", "resumed")}
    parts = {name: store_part(recipe, tmp_path / "x", url) for name, url in urls.items()}
    run_on_ranks(build_parts, 1, config, [parts["one"], parts["resumed"]])
    whole = content(urls["one"])
    assert len([name for name in whole if name.startswith("shard")]) >= 3
    assert content(urls["resumed"]) == whole
    # Cut short after the first shard, in the middle of another.
    shards = sorted(urls["resumed"].glob("shard-*"))
    (urls["resumed"] / "manifest.json").unlink()
    for shard in shards[1:]:
        shard.unlink()
    (urls["resumed"] / shards[1].name).write_bytes(b"PAR1 half a shard")
    with pytest.raises(UserError, match=r"no spectrum store at .*resumed"):
        SpectrumStore.open(urls["resumed"])
    run_on_ranks(build_parts, 2, config, [parts["two"], parts["resumed"]])
    for name in ("two", "resumed"):
        shards_there = {file: digest for file, digest in content(urls[name]).items() if file.startswith("shard")}
        assert shards_there == {file: digest for file, digest in whole.items() if file.startswith("shard")}
    store = SpectrumStore.open(urls["resumed"])
    store.verify()
    assert len(store) == 4 * 48
    assert store.manifest.measured is not None and store.manifest.measured.mean_relative_error < 5e-3


# ---- learning from it


def step_of_each(configs: dict[str, dict[str, Any]], path: str) -> dict[str, Any]:
    """Loss and gradients of one step from the teacher itself, and from the store, for several students."""
    from deepspeed.utils import safe_get_full_grad

    found: dict[str, Any] = {}
    for name, config in configs.items():
        job = Job.from_config(config)
        for source in ("online", "stored"):
            engine, batcher = build(job)
            if source == "stored":
                with_top = job.recipe.objective.num_top_ids > 0
                stored = StoredTeacher(SpectrumStore.open(path, with_top=with_top), job.split("stored").rows)
                engine.teachings = Teachings.of_one(stored, engine.teachings.teachers[0].objective)
            gradients: list[torch.Tensor] = []
            update = engine.student.step

            def look(engine: Any = engine, gradients: list[torch.Tensor] = gradients, update: Any = update) -> None:
                if engine.student.is_gradient_accumulation_boundary():
                    gradients += [safe_get_full_grad(p).flatten() for p in engine.student.module.parameters()]
                update()

            engine.student.step = look
            result = engine.train_step(window_of(job, batcher, np.arange(8), engine.ranks))
            found[f"{name} {source}"] = {"loss": result.loss, "uld": result.uld, "gradient": torch.cat(gradients)}
            found[f"{name} {source}"] |= result.options
    return found


@pytest.mark.parametrize("merge", ["first", "chain"])
def test_students_of_two_tokenizers_learn_the_same_from_one_store(
    tiny_recipe: dict[str, Any], tmp_path: Path, rows: list[dict[str, str]], merge: str
) -> None:
    students = {
        "unigram": Path(tiny_recipe["student"]["model"]),
        "bytes": save_tiny_model(tmp_path / "bpe", rows, kind="bpe", vocab_size=350, seed=5),
    }
    recipe = variant(tiny_recipe, workers=1, micro=2, normalize="token", stage="zero2")
    # The first store has more top-k tokens than the objective looks at, the other one has none.
    # (Terms that look at identities compare where a segment begins.)
    names = ("classical", "hybrid", "projection", "completion")
    by_identity = {"classical": 0.7} if merge == "first" else dict.fromkeys(names, 0.0)
    recipe["objective"] |= {"merge": merge} | by_identity
    recipe["store"] = {"top_ids": 24 if merge == "first" else 0}
    path = tmp_path / "store"
    jobs = {
        name: prepared_job(recipe | {"student": recipe["student"] | {"model": str(place)}}, tmp_path / name)
        for name, place in students.items()
    }
    part = store_part(jobs["bytes"].recipe, tmp_path / "x", path)
    run_on_ranks(build_parts, 1, jobs["bytes"].to_config(), [part])
    stored = StoredSide(SpectrumStore.open(path))
    configs = {}
    for name, job in jobs.items():
        tokenizer = AutoTokenizer.from_pretrained(job.student)
        split = Preparer(job.recipe, tokenizer, stored).prepare(job.recipe.data.train, "data.train", tmp_path / name)
        configs[name] = replace(job, splits=job.splits | {"stored": str(split.folder)}).to_config()
    (found,) = run_on_ranks(step_of_each, 1, configs, str(path))
    assert found["unigram online"]["uld"] != pytest.approx(found["bytes online"]["uld"], rel=0.02)
    for name in students:
        online, offline = found[f"{name} online"], found[f"{name} stored"]
        assert offline["uld"] == pytest.approx(online["uld"], rel=1e-2)
        assert offline["loss"] == pytest.approx(online["loss"], rel=1e-3)
        assert ("classical" in offline) is (merge == "first")
        if merge == "first":
            assert offline["classical"] == pytest.approx(online["classical"], rel=1e-3)
        cosine = torch.nn.functional.cosine_similarity(online["gradient"], offline["gradient"], dim=0)
        assert cosine > 0.9995
        # Not the same numbers by another way: they went through the codec.
        assert offline["uld"] != online["uld"]


# ---- what a recipe says of a store


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "other"}, "teacher.model: 'other', but the store at p was built with teacher 't'; set it to that"),
        ({"max_length": 98}, "teacher.max_length: 98, but the store at p was built with max_length 99; "),
        ({"prompt_template": "{prompt}"}, "teacher.prompt_template: '{prompt}', but the store at p was built with "),
        ({"system_prompt": "s"}, "teacher.system_prompt: 's', but the store at p was built with system_prompt None; "),
        ({"revision": "r"}, "teacher.revision: 'r', but the store at p was built with revision None; "),
        ({"codec": {"step": 0.5}}, "teacher.codec.step: 0.5, but the store at p was built with codec.precision.step "),
        ({"temperature": 2.0}, "objective.teacher_temperature: 2.0, but the store at p was built with temperature "),
        (
            {"classical": 1.0},
            "objective.top_ids: 64, but the store at p was built with store.top_ids 0; build a store ",
        ),
    ],
)
def test_what_a_recipe_says_must_be_so(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    store = store_of(tmp_path, side(TEACHERS["trims"]), TALKS[:1])
    objective = {"teacher_temperature": change.pop("temperature", 1.0), "classical": change.pop("classical", 0.0)}
    tree = {
        "run": {"name": "x"},
        "teacher": {"source": "stored", "path": "p", **change},
        "student": {"model": "s"},
        "data": {"train": {"source": "files", "path": "x"}},
        "objective": objective,
        "training": {"steps": 1},
    }

    def check() -> None:
        recipe = parse_recipe(tree)
        check_store(recipe, recipe.teacher_named(), store)

    with pytest.raises(UserError) as caught:
        check()
    assert str(caught.value).startswith(message)
    tree["teacher"] = {"source": "stored", "path": "p", "model": "t", "max_length": 99, "codec": {"num_exact": 64}}
    tree["objective"] = {}
    check()
    tree["teacher"] = {"source": "stored", "path": "p", "model": None, "revision": None}
    check()
