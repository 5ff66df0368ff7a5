"""The rounds of a run on disk: whole, checked, and of this run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from uld_ds.data.pairing import FEATURES
from uld_ds.errors import FinalError
from uld_ds.generation.sampling import Sampled
from uld_ds.rollouts.journal import RoundAnswer, RoundFolder


def a_row(number: int) -> dict[str, Any]:
    """Make a prepared row whose values tell its number."""
    row: dict[str, Any] = {}
    for name, feature in FEATURES.items():
        kind = getattr(feature, "feature", feature).dtype
        value = {"int32": number, "bool": bool(number % 2), "string": f"text {number}"}[kind]
        is_list = hasattr(feature, "feature")
        row[name] = [value] * (number + 1) if is_list else value
    return row


def an_answer(slot: int, *, problem: str = "") -> RoundAnswer:
    sampled = Sampled(
        np.arange(slot + 1, dtype=np.int32), np.linspace(-1, 0, slot + 1, dtype=np.float32), slot % 2 == 0
    )
    return RoundAnswer(slot, 100 + slot, sampled, None if problem else a_row(slot), problem)


@pytest.fixture
def rounds(tmp_path: Path) -> RoundFolder:
    return RoundFolder(tmp_path / "rollouts", "mine")


def test_a_round_is_read_as_it_was_written_in_the_order_of_its_slots(rounds: RoundFolder) -> None:
    rounds.write(3, 0, [an_answer(2), an_answer(0)])
    rounds.write(3, 1, [an_answer(1, problem="empty"), an_answer(3)])
    found = rounds.read(3, 2)
    assert [answer.slot for answer in found.answers] == [0, 1, 2, 3]
    assert [answer.prompt for answer in found.answers] == [100, 101, 102, 103]
    assert [answer.problem for answer in found.answers] == ["", "empty", "", ""]
    assert found.numbers().tolist() == [0, -1, 1, 2]
    for answer in found.answers:
        wanted = an_answer(answer.slot)
        np.testing.assert_array_equal(answer.sampled.ids, wanted.sampled.ids)
        np.testing.assert_array_equal(answer.sampled.log_probs, wanted.sampled.log_probs)
        assert answer.sampled.ended == wanted.sampled.ended
    rows = found.rows()
    assert rows.features == FEATURES
    for row, number in zip(rows, (0, 2, 3), strict=True):
        assert dict(row) == a_row(number)


def test_a_round_without_a_usable_answer_has_no_rows(rounds: RoundFolder) -> None:
    rounds.write(0, 0, [an_answer(0, problem="empty")])
    found = rounds.read(0, 1)
    assert len(found.rows()) == 0 and found.rows().features == FEATURES


def test_a_damaged_batch_is_found_by_its_checksum_and_named(rounds: RoundFolder, tmp_path: Path) -> None:
    rounds.write(0, 0, [an_answer(slot) for slot in range(30)])
    (file,) = (tmp_path / "rollouts").rglob("*.parquet")
    whole = file.read_bytes()
    # Somewhere in the pages, where Parquet itself would read on.
    flipped = bytearray(whole)
    flipped[len(whole) // 8] ^= 1
    file.write_bytes(bytes(flipped))
    with pytest.raises(FinalError, match=r"batch-00000\.parquet is damaged"):
        rounds.read(0, 1)
    assert not rounds.is_whole(0, 0)
    assert not file.exists()  # to be sampled again, where that can be done
    with pytest.raises(FinalError, match=r"batch-00000\.parquet is gone"):
        rounds.read(0, 1)


def test_answers_of_another_run_are_not_taken(rounds: RoundFolder, tmp_path: Path) -> None:
    rounds.write(0, 0, [an_answer(0)])
    with pytest.raises(FinalError, match="another run"):
        RoundFolder(tmp_path / "rollouts", "other").read(0, 1)


def test_what_killed_writers_left_is_removed(rounds: RoundFolder, tmp_path: Path) -> None:
    rounds.write(0, 0, [an_answer(0)])
    left = tmp_path / "rollouts" / "round-000000" / ".aside-abc-batch-00001.parquet.part"
    left.write_bytes(b"half")
    rounds.clean(0)
    rounds.clean(7)
    assert [file.name for file in left.parent.iterdir()] == ["batch-00000.parquet"]
