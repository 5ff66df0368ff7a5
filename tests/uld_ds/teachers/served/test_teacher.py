"""A served teacher beside the online one of the same weights, ahead of its steps, and when something goes wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.engine_server import EngineServer
from tests.helpers.engines import CPU, prepared_job, teacher_of, teacher_side
from tests.helpers.ranks import run_on_ranks
from tests.helpers.teacher_outputs import same_bits
from uld_ds.errors import FinalError
from uld_ds.recipe import ServerSettings
from uld_ds.runs.job import Job
from uld_ds.teachers.cache import OutputCache
from uld_ds.teachers.cached import CachedTeacher
from uld_ds.teachers.online import OnlineTeacher
from uld_ds.teachers.outputs_codec import roundtrip
from uld_ds.teachers.served.client import Client
from uld_ds.teachers.served.engine import ServedEngine
from uld_ds.teachers.served.teacher import ServedTeacher, _texts
from uld_ds.teachers.source import NonFiniteTeacherError
from uld_ds.utils.distributed import Ranks

EXAMPLES = list(range(12))
TOP, KEPT = 32, 16


@pytest.fixture(params=["vllm", "sglang"])
def server(request: pytest.FixtureRequest, tiny_teacher: Path) -> Iterator[EngineServer]:
    with EngineServer(tiny_teacher, api=request.param) as running:
        yield running


@pytest.fixture
def job(tiny_recipe: dict[str, Any], tmp_path: Path) -> Job:
    return prepared_job(tiny_recipe | {"teacher": tiny_recipe["teacher"] | {"sharding": "none"}}, tmp_path / "job")


def served(job: Job, url: str, api: str, ranks: Ranks | None = None, **changes: Any) -> ServedTeacher:
    settings = ServerSettings.model_validate({"url": url, "api": api, "top": TOP} | changes)
    engine = ServedEngine(Client(settings, None, first_delay=0.01), settings, "teacher", 600)
    return ServedTeacher(
        engine, teacher_side(job), vocab_size=600, ranks=ranks or Ranks(0, 1), device=CPU, top_ids=KEPT
    )


def test_it_says_what_the_online_teacher_says(job: Job, server: EngineServer) -> None:
    online = OnlineTeacher(teacher_of(job), teacher_side(job), ranks=Ranks(0, 1), device=CPU, top_ids=KEPT)
    teacher = served(job, server.url, server.api)
    asked = [5, 0, 3, 5, 11]
    for theirs, ours in zip(online.answers(asked, 0), teacher.answers(asked, 0), strict=True):
        torch.testing.assert_close(ours.log_probs, theirs.log_probs, rtol=0, atol=1e-5)
        assert ours.top is not None and theirs.top is not None
        assert torch.equal(ours.top.ids, theirs.top.ids)
        torch.testing.assert_close(ours.top.log_probs, theirs.top.log_probs, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.spectrum.head[:, :TOP], theirs.spectrum.head[:, :TOP], rtol=0, atol=1e-5)
        # What is not among the likeliest is known as a mass.
        assert ours.spectrum.unknown_mass is not None
        rest = 1 - theirs.spectrum.head[:, :TOP].sum(1)
        torch.testing.assert_close(ours.spectrum.unknown_mass, rest, rtol=0, atol=1e-5)
    batch = teacher_side(job).batch([4, 9])
    scores = online.answer_scores(batch)
    torch.testing.assert_close(teacher.answer_scores(batch), scores, rtol=0, atol=1e-5)
    # Each text once, without what follows its last answer token; and no weights went anywhere.
    assert len(server.scored) == 6
    assert teacher.tokens_run == sum(map(len, server.scored)) <= online.tokens_run
    assert teacher.bytes_gathered == 0
    teacher.close()


@pytest.fixture
def one(tiny_teacher: Path) -> Iterator[EngineServer]:
    with EngineServer(tiny_teacher) as running:
        yield running


def test_what_is_needed_soon_is_under_way_before_anybody_waits(job: Job, one: EngineServer) -> None:
    teacher = served(job, one.url, "vllm")
    one.fault = lambda _number: "delay"
    teacher.prefetch([3, 1, 2])
    end = time.monotonic() + 20
    while len(one.scored) < 3 or one._under_way:
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(0.1)
    assert teacher.seconds_waited == 0
    begin = time.perf_counter()
    said = teacher.answers([1, 2, 3], 0)
    assert time.perf_counter() - begin < 0.2 and teacher.seconds_waited < 0.2
    assert len(one.scored) == 3
    # Asked about again, it is asked again; and that is waited for.
    again = teacher.answers([1, 2, 3], 0)
    assert len(one.scored) == 6 and 0.3 <= teacher.seconds_waited < 10
    assert all(same_bits(a, b) for a, b in zip(said, again, strict=True))
    teacher.close()


def test_what_nobody_needs_any_more_is_given_up(job: Job, one: EngineServer) -> None:
    teacher = served(job, one.url, "vllm", concurrency=1)
    one.fault = lambda _number: "delay"
    teacher.prefetch([0, 1, 2, 3])
    teacher.prefetch([3, 4])
    teacher.answers([3, 4], 0)
    assert len(one.scored) <= 3  # the first may have been on its way
    teacher.prefetch([5])
    teacher.ask_about(teacher_side(job))
    assert not teacher._asked
    teacher.close()


def test_a_wrong_reply_ends_the_run_by_the_name_of_its_example(job: Job, one: EngineServer) -> None:
    teacher = served(job, one.url, "vllm", concurrency=1)
    one.fault = lambda number: "nan" if number == 2 else None
    with pytest.raises(FinalError) as caught:
        teacher.answers([7, 2, 9, 4], 0)
    assert str(caught.value).startswith(
        "the teacher's server answers wrongly about example 7: a log-probability at token "
    )
    teacher.close()


def test_a_token_without_probability_skips_the_step(job: Job, one: EngineServer) -> None:
    teacher = served(job, one.url, "vllm", concurrency=1)
    one.fault = lambda number: "impossible" if number == 1 else None
    with pytest.raises(NonFiniteTeacherError) as caught:
        teacher.answers([2, 4, 6], 0)
    assert caught.value.examples == (4,)
    assert len(teacher.answers([2, 4, 6], 0)) == 3
    teacher.close()


def both_fail(config: dict[str, Any], url: str) -> tuple[str, int]:
    """What a rank is told when another one's text is refused, and that they go on together otherwise."""
    ranks = Ranks.current()
    teacher = served(Job.from_config(config), url, "vllm", ranks)
    count = len(teacher.answers([0] if ranks.is_first else [], 0))
    try:
        teacher.answers([1] if ranks.is_first else [2, 3], 1)
    except FinalError as error:
        return str(error), count
    finally:
        teacher.close()
    return "nothing", count


def test_all_ranks_fail_together(job: Job, one: EngineServer) -> None:
    refused = teacher_side(job).batch([3]).input_ids[0].tolist()
    one.refuses = lambda ids: ids == refused[: len(ids)]
    (first, asked), (second, not_asked) = run_on_ranks(both_fail, 2, job.to_config(), one.url)
    assert first == second
    assert "refuses a request (400): the engine does not like this one" in first
    assert (asked, not_asked) == (1, 0)


def test_what_was_said_is_cached(job: Job, one: EngineServer, tmp_path: Path) -> None:
    plain = served(job, one.url, "vllm")
    said = plain.answers(EXAMPLES, 0)
    plain.close()
    cache = OutputCache(tmp_path / "cache", "x", rank=0)
    teacher = CachedTeacher(
        cache, served(job, one.url, "vllm"), num_examples=len(EXAMPLES), ranks=Ranks(0, 1), device=CPU
    )
    before = len(one.scored)
    teacher.prefetch(EXAMPLES[:8])
    first = teacher.answers(EXAMPLES[:6], 0)
    teacher.prefetch(EXAMPLES)
    waited = teacher.seconds_waited
    assert waited is not None
    second = teacher.answers(EXAMPLES, 1)
    assert len(one.scored) - before == len(EXAMPLES)
    for mine, cached in zip(said, second, strict=True):
        assert same_bits(cached, roundtrip(mine))
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=False))
    # An epoch later no server is needed, and nobody waits.
    assert not teacher.is_loaded
    one.stop()
    waited = teacher.seconds_waited
    teacher.prefetch(EXAMPLES)
    third = teacher.answers(EXAMPLES, 2)
    assert all(same_bits(a, b) for a, b in zip(third, second, strict=True))
    assert teacher.seconds_waited == waited


def test_positions_of_padded_texts_are_their_own(job: Job) -> None:
    side = teacher_side(job)
    lengths = side.lengths
    examples = [int(np.argmin(lengths)), int(np.argmax(lengths))]
    for text, example in zip(_texts(side.batch(examples)), examples, strict=True):
        alone = side.batch([example])
        assert text.ids == alone.input_ids[0, : len(text.ids)].tolist()
        assert text.positions.tolist() == (alone.answer_rows + 1).tolist()
        assert [text.ids[place] for place in text.positions] == alone.answer_ids.tolist()
