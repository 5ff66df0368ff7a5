"""Preparation of a run before any engine is loaded: its models are found, its data prepared for both tokenizers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from uld_ds.data.prepare import Preparer, prepare_split
from uld_ds.data.prepared import Split
from uld_ds.data.sampling import num_steps
from uld_ds.data.sides import Side, TextSide
from uld_ds.data.sources import training_texts
from uld_ds.data.statistics import facts_of_prompts
from uld_ds.errors import UserError
from uld_ds.models.architectures import is_encoder_decoder
from uld_ds.models.locate import locate_model
from uld_ds.models.pretrained import Pretrained
from uld_ds.models.student import make_student
from uld_ds.recipe import NamedTeacherSettings, Recipe
from uld_ds.recipe.models import ONLY_TEACHER
from uld_ds.rollouts.prompts import PromptWork
from uld_ds.runs.folder import RunFolder
from uld_ds.runs.job import cached_outputs
from uld_ds.teachers.served.facts import remembered
from uld_ds.teachers.served.trust import examine
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.teachers.stored import check_store, held_out_store
from uld_ds.teachers.stored_side import StoredSide

log = logging.getLogger(__name__)

FEW_ALIGNED = 0.5


def student_place(recipe: Recipe, folder: Path) -> str:
    """Find the student, or make it in ``folder`` where the recipe describes a new one; its directory or hub id.

    Raises:
        UserError: the student is not there, or cannot be made.
    """
    settings = recipe.student
    if (settings.from_config, settings.tokenizer, settings.keep_layers) == (None, None, None):
        return locate_model(settings, "student")
    return str(make_student(settings, lambda: training_texts(recipe.data), recipe.run.seed, folder))


@dataclass(frozen=True)
class FoundTeacher:
    """A teacher of a run that was found, or the store of its outputs."""

    place: str
    """Directory, hub id or name of the teacher."""
    sides: dict[str, Side]
    """Its side of each split, ``train`` and ``eval``."""
    shares_tokenizer: bool
    """Whether a token's id means the same to it and to the student."""
    server: dict[str, Any] | None = None
    """Facts of the engine that a served teacher runs in: see ``ServerFacts``."""


def found_teachers(recipe: Recipe, student: TextSide, run_dir: Path | None = None) -> dict[str, FoundTeacher]:
    """Find the teachers of a recipe, their servers, or the stores of their outputs, by the recipe's names of them.

    Args:
        recipe: the run's recipe.
        student: the student's side, which stands in for held-out examples that no teacher output was stored of.
        run_dir: folder of the run, which remembers what served teachers it began with.

    Raises:
        UserError: a teacher is not there, a store is of something else than the recipe says, or tokens are to be
            compared by ids that mean different things, or by what stored ids spell, which is not known; a server is
            not what the recipe says, or cannot be used.
    """
    found = {}
    for settings in recipe.teachers:
        place, sides = _sides_of(recipe, settings, student)
        shared = share_a_tokenizer(student, sides["train"])
        check_identities(recipe, settings, sides["train"], shared=shared)
        server = None if settings.source != "served" else _server_of(recipe, settings, place, run_dir)
        found[settings.name] = FoundTeacher(place, sides, shared, server)
    return found


def _server_of(recipe: Recipe, settings: NamedTeacherSettings, place: str, run_dir: Path | None) -> dict[str, Any]:
    """Examine a served teacher's server; return the facts of its engine."""
    teacher = Pretrained.at(place, settings, settings.key)
    folder = None if run_dir is None else cached_outputs(RunFolder(run_dir), settings.name)
    return remembered(
        settings,
        lambda seconds: examine(settings, teacher, wait_seconds=seconds),
        folder,
        wait_seconds=recipe.cluster.wait_seconds,
    ).to_json()


def _sides_of(recipe: Recipe, settings: NamedTeacherSettings, student: TextSide) -> tuple[str, dict[str, Side]]:
    if settings.source != "stored":
        teacher = Pretrained.from_settings(settings, settings.key, runs=settings.source == "online")
        special_tokens = recipe.data.special_tokens
        side = TextSide.of_model(teacher, settings, "teacher", special_tokens=special_tokens)
        return teacher.place, {"train": side, "eval": side}
    assert settings.path is not None
    key = f"{settings.key}.path"
    store = SpectrumStore.open(settings.path, key=key)
    check_store(recipe, settings, store)
    held_out = held_out_store(settings.path, key) if recipe.data.eval is not None else None
    # Without the teacher's outputs for them, held-out examples are the student's alone.
    return store.manifest.teacher, {
        "train": StoredSide(store),
        "eval": student if held_out is None else StoredSide(held_out),
    }


def share_a_tokenizer(student: TextSide, teacher: Side) -> bool:
    """Tell whether a token's id means the same on both sides, whatever their chat templates."""
    if isinstance(teacher, StoredSide):
        return teacher.tokenizer_digest == student.tokenizer_digest
    assert isinstance(teacher, TextSide)
    return teacher.tokenizer.get_vocab() == student.tokenizer.get_vocab()


def check_identities(recipe: Recipe, settings: NamedTeacherSettings, teacher: Side, *, shared: bool) -> None:
    """Check that the objective's terms can know what they compare with a teacher.

    Args:
        recipe: the run's recipe.
        settings: the teacher among its teachers.
        teacher: the teacher's side of the training data.
        shared: whether both sides have one tokenizer.

    Raises:
        UserError: tokens are to be compared by ids that mean different things, or by what stored ids spell, which is
            not known.
    """
    if recipe.taught.needs_vocabularies and isinstance(teacher, StoredSide):
        _check_stored_tokenizer(recipe, settings, teacher.tokenizer_digest)
    by_number = [term.key for term in recipe.taught.weighed_terms if term.needs_one_tokenizer]
    if by_number and not shared:
        of_given = getattr(recipe.objective, by_number[0])
        section = "objective" if of_given else "rollouts.objective"
        weight = getattr(recipe.objective if of_given else recipe.taught, by_number[0])
        raise UserError(
            f"{section}.{by_number[0]}",
            f"{weight} needs one tokenizer on both sides, but {_called(settings)} and student have two",
            f"set it to 0 and give {section}.uld or {section}.hybrid a weight: they compare any two tokenizers",
        )
    if recipe.rollouts is not None and not shared and not recipe.rollouts.weights(recipe.objective)["likelihood"]:
        # Measured: such students unlearn what comes after the first token of a segment (docs/rollouts.md).
        log.warning(
            "rollouts.objective has no likelihood: with two tokenizers, nothing judges all bytes of the student's own "
            "answers, and it may unlearn them; give rollouts.objective.likelihood a weight, e.g. 0.5 (docs/rollouts.md)"
        )


def check_rollouts(recipe: Recipe, student: PreTrainedConfig) -> None:
    """Check that the student can answer prompts where the recipe says; without rollouts there is nothing to check.

    Args:
        recipe: the run's recipe.
        student: configuration of the student.

    Raises:
        UserError: it has an encoder.
    """
    if recipe.rollouts is None:
        return
    if is_encoder_decoder(student):
        raise UserError(
            "rollouts",
            f"the student is a {student.model_type} with an encoder, and own answers are sampled from decoders alone",
            "leave out rollouts, or train a decoder-only student",
        )


def _called(settings: NamedTeacherSettings) -> str:
    """Call a teacher by its name, where it has one of its own."""
    return "teacher" if settings.name == ONLY_TEACHER else f"teacher {settings.name!r}"


def _check_stored_tokenizer(recipe: Recipe, settings: NamedTeacherSettings, digest: str) -> None:
    """Check that the tokenizer at hand is the one whose ids a store holds: what they spell only that one knows."""
    key = f"{settings.key}.model"
    if settings.model is None:
        asking = [f"objective.{term.key}" for term in recipe.taught.weighed_terms if term.vocabularies]
        look = "looks" if len(asking) == 1 else "look"
        raise UserError(
            key,
            f"is missing: its tokenizer says what stored ids spell, which {' and '.join(asking)} {look} at",
            "name the model whose outputs are stored, or set those weights to 0",
        )
    own = TextSide.of_model(Pretrained.from_settings(settings, settings.key), settings, "teacher").tokenizer_digest
    if own != digest:
        raise UserError(
            key,
            f"{settings.model!r} has another tokenizer than the store in {settings.key}.path was built with",
            "name the model whose outputs are stored",
        )


def prepared_splits(
    recipe: Recipe, student: TextSide, teachers: Mapping[str, FoundTeacher], cache: Path
) -> dict[str, Split]:
    """Prepare the recipe's splits, or find them in ``cache``, which all runs share that prepare the same rows alike.

    Returns:
        ``train``, and ``eval`` where the recipe has held-out examples.

    Raises:
        UserError: a source cannot be read, or a row cannot be used.
    """
    sources = {"train": recipe.data.train, "eval": recipe.data.eval}
    if recipe.only_own_answers:
        del sources["train"]
    splits = {
        name: Preparer(recipe, student, sides_of(teachers, name)).prepare(source, f"data.{name}", cache)
        for name, source in sources.items()
        if source is not None
    }
    if recipe.rollouts is None:
        return splits
    prompts = _prompts(recipe, student, sides_of(teachers, "train"), cache)
    # Where all answers are the student's own, the prompts are all that is trained on.
    return {"train": splits.get("train", prompts), **splits, "prompts": prompts}


def sides_of(teachers: Mapping[str, FoundTeacher], split: str) -> dict[str, Side]:
    """List the teachers' sides of a split, by their names."""
    return {name: teacher.sides[split] for name, teacher in teachers.items()}


def _prompts(recipe: Recipe, student: TextSide, teachers: Mapping[str, Side], cache: Path) -> Split:
    assert recipe.rollouts is not None
    sides = {name: side for name, side in teachers.items() if isinstance(side, TextSide)}
    source, key = recipe.rollouts.prompts, "rollouts.prompts"
    if source is None:
        source, key = recipe.data.train, "data.train"
    work = PromptWork(recipe, student, sides)
    return prepare_split(source, key, cache, work, recipe.data, facts_of_prompts, recipe.names_of_judges)


def steps_of_run(recipe: Recipe, *, num_data: int, num_prompts: int = 0) -> int:
    """Compute the optimizer steps of a run.

    Epochs count passes over the given examples; where all answers are the student's own, passes over the prompts.

    Args:
        recipe: the run's recipe.
        num_data: given examples.
        num_prompts: prompts of rollouts.
    """
    length, own = recipe.training, recipe.own_examples
    examples, per_step = num_data, length.batch_size - own
    if recipe.rollouts is not None and recipe.only_own_answers:
        examples, per_step = num_prompts * recipe.rollouts.samples_per_prompt, own
    return num_steps(examples, per_step, epochs=length.epochs, steps=length.steps)


def warn_of_splits(splits: dict[str, Split]) -> None:
    """Warn of held-out examples that are trained on, and of tokenizers that hardly agree."""
    if "eval" in splits:
        shared = set(splits["train"].rows["digest"]) & set(splits["eval"].rows["digest"])
        if shared:
            log.warning("%d held-out examples are also training examples: data.eval measures memory, too", len(shared))
    facts = splits["train"].facts
    for name, own in facts.teachers.items():
        if not own["examples"]:
            log.warning("teacher %r judges none of the %d training examples", name, facts.examples)
    # Of prompts alone the rate is not a number, which is not below anything.
    if facts.alignment_rate < FEW_ALIGNED:
        log.warning(
            "only %.0f %% of the student's answer tokens begin a segment: the teacher says nothing about the others. "
            "`uld-ds align` shows why; objective.merge=chain uses more of it",
            100 * facts.alignment_rate,
        )
