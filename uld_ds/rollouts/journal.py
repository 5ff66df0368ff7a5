"""The rounds of a run on disk: every batch of sampled answers is one file, there whole or not at all.

``rollouts/round-000012/batch-00003.parquet`` in the run's folder holds the answers of one batch: the prompt, the tokens
as they were sampled, their log-probabilities, and the prepared row that training reads, or why there is none. Pages
have checksums; a file says which run it belongs to. A round is trained on when all its batches are there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value

from uld_ds.data.pairing import FEATURES
from uld_ds.errors import FinalError
from uld_ds.generation.sampling import Sampled
from uld_ds.utils.files import ASIDE, whole_file

_IDENTITY = b"uld_ds.rollouts"
_ANSWER = Features(
    {
        "slot": Value("int32"),
        "prompt_number": Value("int32"),
        "sampled_ids": List(Value("int32")),
        "sampled_log_probs": List(Value("float32")),
        "ended": Value("bool"),
        "problem": Value("string"),
    }
)


@dataclass(frozen=True)
class RoundAnswer:
    """One answer of a round."""

    slot: int
    """Number within the round: the step that learns from it follows from this."""
    prompt: int
    """Number of its prompt among the prepared prompts."""
    sampled: Sampled
    row: dict[str, Any] | None
    """Prepared row, or None."""
    problem: str = ""
    """Why there is no row; empty where there is one."""


@dataclass(frozen=True)
class Round:
    """All answers of a round, in the order of their slots."""

    answers: tuple[RoundAnswer, ...]
    features: Features = field(default_factory=lambda: FEATURES)
    """Columns of prepared rows."""

    def rows(self) -> Dataset:
        """Return the prepared rows of the usable answers, in the order of their slots."""
        return rows_of([answer.row for answer in self.answers if answer.row is not None], self.features)

    def numbers(self) -> np.ndarray:
        """Return the number of each slot's row among ``rows``; -1 where the answer is not usable."""
        usable = np.array([answer.row is not None for answer in self.answers], bool)
        return np.where(usable, np.cumsum(usable) - 1, -1)


def rows_of(rows: Sequence[Mapping[str, Any]], features: Features = FEATURES) -> Dataset:
    """Make a data set of prepared rows in memory."""
    return Dataset.from_dict({name: [row[name] for row in rows] for name in features}, features=features)


class RoundFolder:
    """The folder of a run's rounds.

    Args:
        folder: Folder on storage that all ranks share; made if missing.
        identity: Digest of all that decides the answers besides the student's weights.
        features: Columns of prepared rows.
    """

    def __init__(self, folder: Path, identity: str, features: Features = FEATURES) -> None:
        self._folder = folder
        self._features = features
        self._schema = Features({**_ANSWER, **features}).arrow_schema.remove_metadata()
        self._identity = identity.encode()
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, number: int, batch: int, answers: Sequence[RoundAnswer]) -> None:
        """Write the answers of one batch, and return when they are on the disk."""
        file = self._file(number, batch)
        file.parent.mkdir(exist_ok=True)
        table = pa.Table.from_pylist([self._plain(answer) for answer in answers], schema=self._schema)
        with whole_file(file, sync=True) as out:
            pq.write_table(table.replace_schema_metadata({_IDENTITY: self._identity}), out, write_page_checksum=True)

    def read(self, number: int, num_batches: int) -> Round:
        """Read a round, all of whose batches are there.

        Raises:
            FinalError: a file is missing, damaged or of another run; names it.
        """
        found: list[RoundAnswer] = []
        for batch in range(num_batches):
            found.extend(self._read(self._file(number, batch)))
        return Round(tuple(sorted(found, key=lambda answer: answer.slot)), self._features)

    def is_whole(self, number: int, batch: int) -> bool:
        """Tell whether a batch is there and can be read; a damaged one is removed, to be sampled again."""
        file = self._file(number, batch)
        if not file.is_file():
            return False
        try:
            self._read(file)
        except FinalError:
            file.unlink(missing_ok=True)
            return False
        return True

    def clean(self, number: int) -> None:
        """Remove what killed writers of a round have left; call it where nobody else writes it."""
        with suppress(FileNotFoundError):
            for left in (self._folder / _name(number)).iterdir():
                if left.name.startswith(ASIDE):
                    left.unlink(missing_ok=True)

    def _file(self, number: int, batch: int) -> Path:
        return self._folder / _name(number) / f"batch-{batch:05d}.parquet"

    def _read(self, file: Path) -> list[RoundAnswer]:
        fix = "restore it, or start again under another run.name"
        try:
            table = pq.read_table(file, page_checksum_verification=True)
        except FileNotFoundError:
            raise FinalError(f"{file} is gone, and this run has learned from it: {fix}") from None
        except (OSError, pa.ArrowException) as error:
            raise FinalError(f"{file} is damaged ({error}): {fix}") from error
        if (table.schema.metadata or {}).get(_IDENTITY) != self._identity:
            raise FinalError(f"{file} holds the answers of another run: remove its folder, or set another run.name")
        return [self._answer(row) for row in table.cast(self._schema).to_pylist()]

    def _plain(self, answer: RoundAnswer) -> dict[str, Any]:
        own = {
            "slot": answer.slot,
            "prompt_number": answer.prompt,
            "sampled_ids": answer.sampled.ids,
            "sampled_log_probs": answer.sampled.log_probs,
            "ended": answer.sampled.ended,
            "problem": answer.problem,
        }
        return own | {name: None if answer.row is None else answer.row[name] for name in self._features}

    def _answer(self, row: dict[str, Any]) -> RoundAnswer:
        problem = str(row["problem"])
        ids, log_probs = np.array(row["sampled_ids"], np.int32), np.array(row["sampled_log_probs"], np.float32)
        sampled = Sampled(ids, log_probs, bool(row["ended"]))
        prepared = None if problem else {name: row[name] for name in self._features}
        return RoundAnswer(int(row["slot"]), int(row["prompt_number"]), sampled, prepared, problem)


def _name(number: int) -> str:
    return f"round-{number:06d}"
