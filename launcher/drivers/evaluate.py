"""Evaluating a model on a recipe's held-out rows, in this process: on its GPU where there is one."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from launcher.drivers.preflight import writable_folder
from launcher.terminal.progress import ProgressView
from launcher.terminal.quiet import quieten_libraries
from uld_ds.data.examples import ExampleReader
from uld_ds.data.sides import TextSide
from uld_ds.data.sources import load_rows
from uld_ds.errors import UserError
from uld_ds.evaluation.evaluate import BitsPerByte, answer_rows, bits_per_byte_of
from uld_ds.evaluation.harness import check_suites, suite_scores
from uld_ds.evaluation.metrics import score, score_names
from uld_ds.evaluation.predictions import Prediction, is_unanswerable
from uld_ds.generation.decoding import Answer, Decoding, Model
from uld_ds.generation.prompts import Prompt, Prompts, collect_prompts
from uld_ds.models.locate import locate_model
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import DataSource, ModelSettings, Recipe
from uld_ds.reporting.comparison import EVALUATION, evaluation_of
from uld_ds.runs.folder import RunFolder
from uld_ds.runs.progress import ProgressWriter
from uld_ds.runs.status import is_run
from uld_ds.tasks.task import Words
from uld_ds.utils.files import in_home, write_whole


def evaluate_model(name: str, recipe: Recipe, output: str | None) -> dict[str, Any]:
    """Let a model answer the prompts of ``data.eval`` greedily, and score its answers.

    Args:
        name: a folder, hub id or ``package:NAME``.
        recipe: its student section says how the model reads prompts.
        output: folder for ``evaluation.json`` and ``predictions.jsonl``; by default NAME-evaluation beside the run
            whose export the model is, or beside the recipe's.

    Raises:
        UserError: no held-out rows, no such model, an unknown metric.
    """
    quieten_libraries()
    held_out = HeldOut.of(recipe)
    folder = writable_folder(Path(output) if output else evaluation_of(_run_of(name, recipe)), "--output")
    settings = _settings_of(name, recipe)
    begin = time.monotonic()
    with ProgressView(RunFolder(folder).progress) as view:
        view.note("looking at the model and the rows")
        pretrained = Pretrained(locate_model(settings, "MODEL"), settings.revision, "MODEL")
        found = _measured(recipe, held_out, pretrained, settings, _notes(folder, begin))
        suites = _suites(recipe, pretrained, settings, view)
    facts = {
        "model": name,
        **held_out.facts(),
        **found.facts(held_out),
        "suites": suites,
        "decoding": found.decoding.to_json(),
        "wall_seconds": round(time.monotonic() - begin, 1),
        "output": str(folder),
    }
    _write(folder, facts, found.prompts.kept, found.answered)
    return facts


@dataclass(frozen=True)
class HeldOut:
    """Which rows a model is evaluated on, and by which metrics."""

    source: DataSource
    reader: ExampleReader
    metrics: list[str]
    words: Words

    @classmethod
    def of(cls, recipe: Recipe) -> HeldOut:
        """Read it from a recipe, and check what can be known before a model is loaded.

        Raises:
            UserError: no held-out rows, an unknown metric or suite.
        """
        if recipe.data.eval is None:
            raise UserError("data.eval", "is missing", "name the held-out rows to evaluate on")
        reader = ExampleReader(recipe.data)
        metrics = recipe.evaluation.metrics or list(reader.task.metrics)
        score_names(metrics, "evaluation.metrics")
        check_suites(recipe.evaluation.suites)
        return cls(recipe.data.eval, reader, metrics, recipe.evaluation.words or reader.task.words)

    def facts(self) -> dict[str, Any]:
        """Tell what was asked, as plain data."""
        return {"held_out": self.source.model_dump(mode="json"), "task": self.reader.task.name}


@dataclass(frozen=True)
class Measured:
    """What a model answered, and how likely it holds the right answers."""

    prompts: Prompts
    answered: list[tuple[Prediction, Answer]]
    bits_per_byte: BitsPerByte | None
    decoding: Decoding

    def facts(self, held_out: HeldOut) -> dict[str, Any]:
        """Count and score the answers, as plain data."""
        scores = score([prediction for prediction, _ in self.answered], held_out.metrics, words=held_out.words)
        return {
            "rows": self.prompts.rows,
            "prompts": len(self.prompts.kept),
            "duplicates": self.prompts.duplicates,
            "too_long": self.prompts.too_long,
            "unusable": self.prompts.unusable,
            "unanswerable": sum(is_unanswerable(prediction, held_out.words) for prediction, _ in self.answered),
            "truncated": sum(answer.finish == "length" for _, answer in self.answered),
            "words": held_out.words,
            "scores": scores.percentages(),
            "intervals": scores.intervals(),
            "bits_per_byte": None if self.bits_per_byte is None else asdict(self.bits_per_byte),
        }


def _measured(
    recipe: Recipe, held_out: HeldOut, pretrained: Pretrained, settings: ModelSettings, note: Callable[[int, int], None]
) -> Measured:
    """Let the model answer the prompts of the held-out rows greedily, and measure it on their right answers."""
    reader = held_out.reader
    side = TextSide.of_model(pretrained, settings, "student", special_tokens=recipe.data.special_tokens)
    decoding = Decoding.of(recipe.generation.model_copy(update={"temperature": 0.0}), reader.task, 0)
    rows = load_rows(held_out.source, "data.eval")
    reader.check(rows, "data.eval", answered=False)
    most = settings.max_length - decoding.max_new_tokens
    prompts = collect_prompts(
        rows, reader, side, max_tokens=most, on_bad_example=recipe.data.on_bad_example, key="data.eval"
    )
    model = Model(pretrained, settings.precision, _device(), ends=side.end_ids, reader=side.reply_reader)
    references = [reader.question(rows[prompt.row]).references for prompt in prompts.kept]
    size = recipe.generation.batch_size
    answered = answer_rows(model, prompts.kept, references, decoding, batch_size=size, note=note)
    tokens = recipe.teachers[0].max_tokens_per_forward
    bits = bits_per_byte_of(model, side, rows, reader, batch_tokens=tokens, device=_device(), packing=settings.packing)
    return Measured(prompts, answered, bits, decoding)


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _notes(folder: Path, begin: float) -> Callable[[int, int], None]:
    """Make what notes how many of the prompts are answered, and how long each took since ``begin``."""
    progress = ProgressWriter(RunFolder(folder).progress)

    def note(done: int, total: int) -> None:
        seconds = (time.monotonic() - begin) / done
        progress.step(done, total, {"seconds/total": seconds}, text="prompts answered")

    return note


def _suites(recipe: Recipe, model: Pretrained, settings: ModelSettings, view: ProgressView) -> dict[str, Any]:
    wanted = recipe.evaluation
    if not wanted.suites:
        return {}
    view.note(f"running {', '.join(wanted.suites)}")
    return suite_scores(
        model, settings.precision, wanted.suites,
        device=_device(), batch_size=recipe.generation.batch_size, limit=wanted.suite_rows,
    )  # fmt: skip


def _run_of(name: str, recipe: Recipe) -> Path:
    place = in_home(name).resolve()
    is_export = place == RunFolder(place.parent).export and is_run(place.parent)
    return place.parent if is_export else Path(recipe.run.storage) / recipe.run.name


def _settings_of(name: str, recipe: Recipe) -> ModelSettings:
    """Combine the student's precision, prompt template and length with this model."""
    fields = recipe.student.model_dump(
        include={"precision", "prompt_template", "system_prompt", "template_arguments", "max_length"}
    )
    try:
        return ModelSettings(**fields, model=name)
    except ValidationError as error:
        raise UserError("MODEL", f"{name!r} is no name", "give a folder, a hub id or package:NAME") from error


def _write(
    folder: Path, facts: dict[str, Any], prompts: list[Prompt], answered: list[tuple[Prediction, Answer]]
) -> None:
    rows = [
        {
            "prediction_text": prediction.text,
            "answers": list(prediction.references),
            "prompt_digest": prompt.question,
            "finish": answer.finish,
            **({"reasoning": answer.reasoning} if answer.reasoning else {}),
        }
        for prompt, (prediction, answer) in zip(prompts, answered, strict=True)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(folder / "predictions.jsonl", lines, sync=True)
    write_whole(folder / EVALUATION, json.dumps(facts, indent=1), sync=True)
