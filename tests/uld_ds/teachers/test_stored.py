"""One store, students of any tokenizer: what was stored is what the teacher would have said."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from launcher.store import _part, check_store
from tests.ranks import run_on_ranks
from tests.tiny import save_tiny_model
from tests.uld_ds.data.toy import CHAT_TEMPLATE, TRIMMING_TEMPLATE, texts, toy
from tests.uld_ds.test_engine import CPU, build, prepared_job, teacher_of, variant, window_of
from uld_ds.data.encoding import EncodedSide
from uld_ds.data.pairing import pair
from uld_ds.data.prepare import Pairing, Preparer
from uld_ds.data.sides import TextSide, same_answers
from uld_ds.data.sources import Example
from uld_ds.data.teacher_batches import TeacherBatcher
from uld_ds.data.teacher_rows import TeacherEncoding
from uld_ds.distributed import Ranks
from uld_ds.errors import UserError
from uld_ds.job import Job
from uld_ds.recipe import ModelSettings, Recipe, parse_recipe
from uld_ds.spectrum import Spectrum
from uld_ds.store_worker import StoreBuild, StorePart
from uld_ds.teachers.online import OnlineTeacher
from uld_ds.teachers.store import CodecFacts, SpectrumStore, StoredExample, StoreIdentity, StoreWriter
from uld_ds.teachers.store_shard import spans_of
from uld_ds.teachers.stored import StoredTeacher
from uld_ds.teachers.stored_side import StoredSide
from uld_ds.teachers.tokens import TeacherTokens

# ---- sides


def side(tokenizer: Any, max_length: int = 99, **settings: Any) -> TextSide:
    return TextSide(tokenizer, ModelSettings(model="x", max_length=max_length, **settings), "teacher")


def store_of(folder: Path, teacher: TextSide, examples: list[Example], turns: str = "all") -> SpectrumStore:
    """What is stored of a teacher; its words are noise, its tokens are real."""
    rows = TeacherEncoding(teacher, turns=turns)(examples)
    identity = StoreIdentity(
        teacher="t",
        tokenizer_digest="",
        prompt_template="chat",
        max_length=99,
        temperature=1.0,
        codec=CodecFacts.of(),
        data_digest="",
    )
    writer = StoreWriter(folder, identity, examples=len(examples), examples_per_shard=2)
    stored = []
    for number, row in enumerate(rows):
        assert isinstance(row, dict), row
        count = len(row["teacher_answers"])
        tokens = TeacherTokens(Spectrum.from_logits(torch.randn(count, 70)), torch.arange(count).float() - 1000)
        shape = row["turns"].reshape(-1, 3)
        spans = spans_of(shape, row["token_bytes"])
        stored.append(StoredExample(str(number), row["digest"], shape, spans, tokens))
    for shard in range(writer.num_shards):
        writer.write_shard(shard, [stored[i] for i in writer.examples_of_shard(shard)])
    writer.finish()
    return SpectrumStore.open(folder)


def talk(*messages: str) -> Example:
    """User and assistant in turns."""
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(messages)]
    return Example(tuple(turns), tuple(range(1, len(turns), 2)))


TALKS = [
    talk("q", "abcab"),
    talk("q", " abc \n", "r", "déjà"),
    talk("question", "ab", "r", "bcbcabca"),
    talk("", "日本 cab", "x", " b", "y", "c\n"),
]
STUDENT = toy("ab", "ca", chat_template=CHAT_TEMPLATE)
TEACHERS = {
    "same template": toy("bc", "abc", chat_template=CHAT_TEMPLATE),
    "trims": toy("bc", chat_template=TRIMMING_TEMPLATE),
    "long ends": toy("bc", chat_template=CHAT_TEMPLATE.replace("</s>", "!?</s>")),
    "no ends": toy("bc", eos=False, chat_template=CHAT_TEMPLATE.replace("</s>", "")),
    "straddles": toy("tb", ">a", chat_template=CHAT_TEMPLATE.replace("+ m['content']", "+ 't' + m['content']")),
}


def segment_bytes(rows: dict[str, Any], of: str) -> list[tuple[int, int]]:
    return list(zip(rows[f"{of}_segments"].tolist(), rows[f"{of}_segment_stops"].tolist(), strict=True))


@pytest.mark.parametrize("name", TEACHERS)
@pytest.mark.parametrize("student_template", [CHAT_TEMPLATE, TRIMMING_TEMPLATE], ids=["keeps", "trims"])
def test_a_stored_side_pairs_like_the_tokenizer_it_came_from(tmp_path: Path, name: str, student_template: str) -> None:
    student = side(toy("ab", "ca", chat_template=student_template))
    teacher = side(TEACHERS[name])
    stored = StoredSide(store_of(tmp_path, teacher, TALKS))
    online, offline = (
        Pairing(student, other, alignment="segments", turns="all")(TALKS) for other in (teacher, stored)
    )
    for expected, row in zip(online, offline, strict=True):
        assert isinstance(expected, dict) and isinstance(row, dict), (expected, row)
        for column in ("student_ids", "student_answers", "student_segments", "student_segment_stops"):
            assert row[column].tolist() == expected[column].tolist()
        for column in ("teacher_in_text", "teacher_segments", "teacher_segment_stops"):
            assert row[column].tolist() == expected[column].tolist()
        assert (row["answer_bytes"], row["digest"]) == (expected["answer_bytes"], expected["digest"])


@pytest.mark.parametrize("limit", range(3, 40))
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
        for column in ("student_answers", "teacher_segments", "teacher_segment_stops", "teacher_in_text"):
            assert row[column].tolist() == expected[column].tolist()


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
    for part in (StorePart(**part) for part in parts):
        rows = Preparer  # noqa: F841  (kept importable for pickling)
        from datasets import load_from_disk

        loaded = load_from_disk(str(Path(part.rows) / "rows"))
        batcher = TeacherBatcher(loaded, padding=0, max_tokens=job.recipe.teacher.max_tokens_per_forward)
        teacher = OnlineTeacher(engine, batcher, ranks=Ranks.current(), device=CPU)
        StoreBuild(part, loaded, teacher, Ranks.current(), CPU, None).run()
