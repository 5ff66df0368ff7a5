"""Prepared rows of one student with several teachers: paired with each of them alone, and put together.

Their columns are those of ``uld_ds.data.teacher_views``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from uld_ds.data.examples import Example
from uld_ds.data.own_answers import OwnAnswers
from uld_ds.data.pairing import FEATURES, Pairing
from uld_ds.data.sampled_replies import SampledIds
from uld_ds.data.teacher_views import OF_TEACHER, features_of

_SEGMENTS = ("student_segments", "student_segment_stops", "teacher_segments", "teacher_segment_stops")
OTHER_PARTS = "the teachers show different parts of the answer"
NO_COMMON_SEGMENT = "the two teachers share no segment of the answer"


class SeveralPairings:
    """The work of preparing examples for a student with several teachers: a ``RowWork``, as ``Pairing`` is.

    Args:
        pairings: By each teacher's name, the work for it alone.
        column: The column that a row's judge is read from, where each row has one; None where all judge every row.
        common: Whether segments are cut where both of two teachers share a boundary with the student.
    """

    answered = True

    def __init__(self, pairings: Mapping[str, Pairing], *, column: str | None = None, common: bool = False) -> None:
        self._pairings = dict(pairings)
        self._column = column
        self._common = common
        self.features = features_of(list(pairings))

    def identity(self) -> dict[str, Any]:
        """Return all that decides the rows, besides the examples: every pairing, and who judges what."""
        works = {name: work.identity() for name, work in self._pairings.items()}
        return {"teachers": list(works), "pairings": works, "judge": self._column, "common": self._common}

    def __call__(self, examples: Sequence[Example]) -> list[dict[str, Any] | str]:
        """Make a row of each example, or say what is wrong with it."""
        results: list[dict[str, Any] | str] = [""] * len(examples)
        found: list[dict[str, dict[str, Any] | str]] = [{} for _ in examples]
        for name, work in self._pairings.items():
            asked = [place for place, example in enumerate(examples) if example.judge in (None, name)]
            for place, row in zip(asked, work([examples[place] for place in asked]), strict=True):
                found[place][name] = row
        for place, rows in enumerate(found):
            try:
                results[place] = joined(rows, list(self._pairings), common=self._common)
            except ValueError as error:
                results[place] = str(error)
        return results


class SeveralOwnAnswers:
    """The work of preparing answers that a student has sampled, for several teachers, as ``OwnAnswers`` is for one.

    Args:
        pairers: By each teacher's name, the work for it alone.
        common: Whether segments are cut where both of two teachers share a boundary with the student.
    """

    def __init__(self, pairers: Mapping[str, OwnAnswers], *, common: bool = False) -> None:
        self._pairers = dict(pairers)
        self._common = common

    def text(self, sampled: SampledIds, prompt_ids: Sequence[int] | np.ndarray = ()) -> str:
        """Return a sampled answer as text for people, as ``OwnAnswers.text`` does."""
        return next(iter(self._pairers.values())).text(sampled, prompt_ids)

    def __call__(
        self, examples: Sequence[Example], sampled: Sequence[SampledIds], prompts_ids: Sequence[np.ndarray]
    ) -> list[dict[str, Any] | str]:
        """Make a row of each answer, as ``OwnAnswers`` does, for every teacher that judges its prompt."""
        found: list[dict[str, dict[str, Any] | str]] = [{} for _ in examples]
        for name, pairer in self._pairers.items():
            asked = [place for place, example in enumerate(examples) if example.judge in (None, name)]
            own = [examples[place] for place in asked], [sampled[place] for place in asked]
            for place, row in zip(asked, pairer(*own, [prompts_ids[place] for place in asked]), strict=True):
                found[place][name] = row
        return [self._joined(rows) for rows in found]

    def _joined(self, rows: Mapping[str, dict[str, Any] | str]) -> dict[str, Any] | str:
        try:
            return joined(rows, list(self._pairers), common=self._common)
        except ValueError as error:
            return str(error)


def joined(
    rows: Mapping[str, Mapping[str, Any] | str], names: Sequence[str], *, common: bool = False
) -> dict[str, Any]:
    """Put the rows of one example for each of its teachers together.

    The student's side is that of the teacher that shows most of the answer (one with a shorter ``max_length`` judges
    the beginning); the segments of the others are numbered within it.

    Args:
        rows: Row of ``FEATURES`` of each teacher that judges the example, or what is wrong with it.
        names: Names of all teachers.
        common: Whether segments are cut where both of two teachers share a boundary with the student.

    Raises:
        ValueError: one of the rows cannot be used, or no teacher shows all that the others do.
    """
    good: dict[str, Mapping[str, Any]] = {}
    for name, row in rows.items():
        if isinstance(row, str):
            raise ValueError(f"{name}: {row}" if len(names) > 1 else row)
        good[name] = row
    whole = max(good.values(), key=lambda row: len(row["student_answers"]))
    placed = {name: _placed(row, whole) for name, row in good.items()}
    if common:
        placed = _common(placed)
    merged: dict[str, Any] = {name: whole[name] for name in FEATURES if name not in OF_TEACHER or name == "digest"}
    merged["notes"] = sorted({note for row in good.values() for note in row["notes"]})
    for name in names:
        for column in OF_TEACHER:
            merged[f"{name}.{column}"] = placed[name][column] if name in placed else _nothing(column)
    return merged


def _nothing(column: str) -> Any:
    feature: Any = FEATURES[column]
    if hasattr(feature, "feature"):
        return np.zeros(0, feature.feature.dtype)
    return "" if feature.dtype == "string" else 0


def _placed(row: Mapping[str, Any], whole: Mapping[str, Any]) -> Mapping[str, Any]:
    """Renumber a row's segments by the answer tokens of the row that shows most."""
    if row is whole:
        return row
    own, every = np.asarray(row["student_answers"]), np.asarray(whole["student_answers"])
    ids, most = np.asarray(row["student_ids"]), np.asarray(whole["student_ids"])
    prompts = np.array_equal(row["student_encoder_ids"], whole["student_encoder_ids"])
    if not (np.isin(own, every).all() and np.array_equal(ids, most[: len(ids)]) and prompts):
        raise ValueError(OTHER_PARTS)
    numbers = np.searchsorted(every, own)
    own_starts, own_stops = (np.asarray(row[name], np.int64) for name in ("student_segments", "student_segment_stops"))
    starts, stops = numbers[own_starts], numbers[own_stops - 1] + 1
    if not np.array_equal(stops - starts, own_stops - own_starts):  # tokens that it does not show are within one
        raise ValueError(OTHER_PARTS)
    return {**row, "student_segments": starts.astype(np.int32), "student_segment_stops": stops.astype(np.int32)}


def _common(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Join the segments of two teachers up to the boundaries that both of them share with the student.

    Of what stands between two such boundaries each teacher must have segments that cover it without a gap.
    """
    parts = [np.stack([np.asarray(row[name], np.int64) for name in _SEGMENTS], 1) for row in rows.values()]
    first, second = ({int(start): n for n, start in enumerate(part[:, 0])} for part in parts)
    ends = [{int(stop): n for n, stop in enumerate(part[:, 1])} for part in parts]
    stops = sorted(ends[0].keys() & ends[1].keys())
    chosen: list[list[list[int]]] = [[], []]
    taken = 0
    for start in sorted(first.keys() & second.keys()):
        if start < taken:
            continue
        begins = first[start], second[start]
        if (place := bisect_right(stops, start)) == len(stops):
            break
        stop = stops[place]
        runs = [part[begin : own[stop] + 1] for part, begin, own in zip(parts, begins, ends, strict=True)]
        if all(_is_gapless(run) for run in runs):
            for collected, run in zip(chosen, runs, strict=True):
                collected.append([int(run[0, 0]), int(run[-1, 1]), int(run[0, 2]), int(run[-1, 3])])
            taken = stop
    if not chosen[0]:
        raise ValueError(NO_COMMON_SEGMENT)
    return {
        name: {**row, **dict(zip(_SEGMENTS, np.array(own, np.int32).T, strict=True))}
        for (name, row), own in zip(rows.items(), chosen, strict=True)
    }


def _is_gapless(run: np.ndarray) -> bool:
    """Tell whether segments, [n, 4], follow each other without a token between them, on both sides."""
    return len(run) > 0 and bool((run[1:, 0] == run[:-1, 1]).all() and (run[1:, 2] == run[:-1, 3]).all())
