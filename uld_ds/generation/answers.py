"""Generated answers on disk: in parts while they come, in the end as Parquet beside the rows they answer.

A folder holds ``generation.json`` (who answered, how), ``parts/`` (answers by prompt, one file per batch), and, once
all are there, ``train.parquet``, ``held_out.parquet`` and ``provenance.json``. Answers of the same teacher, decoding
and prompt are never generated twice, whatever rows come or go.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset

from uld_ds.errors import RunError, UserError
from uld_ds.generation.decoding import Answer
from uld_ds.generation.prompts import Prompt, Prompts
from uld_ds.tasks.task import TEACHER_ANSWER, TEACHER_REASONING
from uld_ds.utils.files import whole_file, write_whole

SPLITS = ("train", "held_out")
COLUMNS = (TEACHER_ANSWER, TEACHER_REASONING, "teacher_model", "teacher_finish", "teacher_tokens", "prompt_digest")
"""Columns that are put beside a row's own."""


class AnswerFolder:
    """The folder of one generation's answers.

    Args:
        folder: Folder to keep them in; made if missing.
        identity: Plain values of all that decides the answers: the teacher and its decoding.

    Raises:
        UserError: it holds answers of another teacher, or given in another way.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self._folder = folder
        self.parts = folder / "parts"
        self.parts.mkdir(parents=True, exist_ok=True)
        known = folder / "generation.json"
        if known.is_file():
            there = json.loads(known.read_text(encoding="utf-8"))
            for key in identity | there:
                if identity.get(key) != there.get(key):
                    problem = f"{str(folder)!r} holds answers with {key} {there.get(key)!r}, not {identity.get(key)!r}"
                    raise UserError("generation.output", problem, "name another folder, or remove that one")
        else:
            write_whole(known, json.dumps(identity, indent=1), sync=True)

    def known(self) -> dict[str, Answer]:
        """Read all answers that are there, by the prompt's id; a part that was not written whole is not."""
        answers: dict[str, Answer] = {}
        for file in sorted(self.parts.glob("*.parquet")):
            for row in pq.read_table(file).to_pylist():
                answers[row["id"]] = Answer(row["text"], row["tokens"], row["finish"], row.get("reasoning") or "")
        return answers

    def finish(self, rows: Dataset, prompts: Prompts, drop: Sequence[str], held_out: float, facts: Any) -> Any:
        """Write the splits and their provenance, and return the latter.

        Args:
            rows: Rows of the data.
            prompts: Prompts of these rows, all of them answered.
            drop: Kinds of answers that are left out: ``empty``, ``truncated``.
            held_out: Share of the questions that are held out.
            facts: Further facts to note in ``provenance.json``.

        Raises:
            RunError: no answer is left.
        """
        answers = self.known()
        counts: Counter[str] = Counter()
        chosen: dict[str, list[Prompt]] = {split: [] for split in SPLITS}
        for prompt in prompts.kept:
            answer = answers[prompt.id]
            flaw = "empty" if not answer.text else "truncated" if answer.finish == "length" else None
            if flaw is not None:
                counts[flaw] += 1
            if flaw not in drop:
                chosen["held_out" if prompt.is_held_out(held_out) else "train"].append(prompt)
        if not any(chosen.values()):
            problem = f"none of {len(prompts.kept)} answers is left ({counts['empty']} empty, {counts['truncated']}"
            raise RunError(f"{problem} truncated): look at the prompts, or raise generation.max_new_tokens")
        plain = rows.remove_columns([name for name in COLUMNS if name in rows.column_names])
        for split, members in chosen.items():
            self._write_split(split, plain, members, answers, facts)
        provenance = {
            **facts,
            "rows": prompts.rows,
            "unusable": prompts.unusable,
            "duplicates": prompts.duplicates,
            "too_long": prompts.too_long,
            "prompts": len(prompts.kept),
            "empty": counts["empty"],
            "truncated": counts["truncated"],
            "dropped": len(prompts.kept) - sum(map(len, chosen.values())),
            "tokens": sum(answers[prompt.id].tokens for prompt in prompts.kept),
            **{split: len(members) for split, members in chosen.items()},
            "held_out_share": held_out,
        }
        write_whole(self._folder / "provenance.json", json.dumps(provenance, indent=1), sync=True)
        return provenance

    def _write_split(
        self, split: str, rows: Dataset, members: Sequence[Prompt], answers: dict[str, Answer], facts: Any
    ) -> None:
        file = self._folder / f"{split}.parquet"
        if not members:
            file.unlink(missing_ok=True)
            return
        table = rows.select([prompt.row for prompt in members]).with_format("arrow")[:].replace_schema_metadata(None)
        given = [answers[prompt.id] for prompt in members]
        added: tuple[list[Any], ...] = (
            [answer.text for answer in given],
            [answer.reasoning or None for answer in given],
            [facts["teacher"]] * len(given),
            [answer.finish for answer in given],
            [answer.tokens for answer in given],
            [prompt.question for prompt in members],
        )
        for name, values in zip(COLUMNS, added, strict=True):
            if name != TEACHER_REASONING or any(values):
                table = table.append_column(name, pa.array(values))
        with whole_file(file, sync=True) as out:
            pq.write_table(table.replace_schema_metadata({"uld_ds": json.dumps(facts)}), out)


def write_part(parts: Path, ids: Sequence[str], answers: Sequence[Answer]) -> None:
    """Write the answers of one batch of prompts: whole or not at all.

    Args:
        parts: ``AnswerFolder.parts``.
        ids: Ids of the prompts.
        answers: Answers to them, in the same order.
    """
    table = pa.table(
        {
            "id": list(ids),
            "text": [answer.text for answer in answers],
            "tokens": [answer.tokens for answer in answers],
            "finish": [answer.finish for answer in answers],
            "reasoning": [answer.reasoning for answer in answers],
        }
    )
    name = hashlib.sha256("".join(ids).encode()).hexdigest()[:24]
    # Two workers may write the same part after one was thought dead. A part that is there is never generated again.
    with whole_file(parts / f"{name}.parquet", sync=True) as out:
        pq.write_table(table, out)
