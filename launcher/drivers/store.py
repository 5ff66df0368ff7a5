"""The driver of building a spectrum store: prepares the teacher's side of the data and runs the worker group."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray

from launcher.cluster.actor_checks import check_installed, vllm_version
from launcher.cluster.connect import check_dashboard_port, connected, prepare_cluster
from launcher.cluster.teacher_precision import with_chosen_precision
from launcher.cluster.worker_group import check_not_stopped, run_worker_group
from launcher.drivers.preflight import check_deepspeed_configs, writable_folder
from launcher.terminal.progress import ProgressView
from launcher.terminal.quiet import quieten_libraries
from uld_ds.data.prepare import NoRowsOfJudgeError, prepare_rows
from uld_ds.data.prepared import PREPARED_DATA
from uld_ds.data.sides import TextSide
from uld_ds.data.statistics import rows_digest
from uld_ds.data.teacher_rows import TeacherEncoding
from uld_ds.errors import UserError
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import DataSource, NamedTeacherSettings, Recipe
from uld_ds.recipe.actors import StoreActorSettings
from uld_ds.recipe.models import ONLY_TEACHER
from uld_ds.runs.folder import RunFolder
from uld_ds.teachers import top_tokens_codec
from uld_ds.teachers.served.engine import token_variable
from uld_ds.teachers.served.facts import ServerFacts
from uld_ds.teachers.served.trust import examine
from uld_ds.teachers.store.files import StoreFiles
from uld_ds.teachers.store.manifest import MANIFEST, CodecFacts, ServedFacts, StoreIdentity, StoreManifest
from uld_ds.teachers.store.reader import SpectrumStore
from uld_ds.teachers.stored import held_out_url
from uld_ds.training.deepspeed_config import teacher_config
from uld_ds.utils.files import in_home
from uld_ds.workers.store import StoreJob, StorePart, build_store_worker


def with_absolute_store(recipe: Recipe) -> Recipe:
    """Make the ``path`` of each teacher's store absolute, where it is a folder here.

    Workers run in another directory.
    """
    paths = {teacher.name: teacher.path for teacher in recipe.teachers}
    here = {name: str(in_home(path).absolute()) for name, path in paths.items() if path and "://" not in path}
    return recipe.with_teachers({name: {"path": path} for name, path in here.items()})


def build_store(recipe: Recipe, teacher_name: str | None = None) -> StoreManifest:
    """Run a teacher of a recipe over its training data (and its held-out data) into that teacher's ``path``.

    What is there already is not done again; a whole store of the same teacher and data is left as it is.

    Args:
        recipe: the recipe.
        teacher_name: name of the teacher, where there are several; with ``combine: route`` only the rows that it
            judges are stored.

    Raises:
        UserError: something in the recipe cannot be done, or another store is at that place.
        RunError: the workers failed.
    """
    quieten_libraries()
    whole = with_absolute_store(recipe)
    settings = whole.teacher_named(teacher_name)
    recipe = whole.alone_with(settings.name)
    if settings.path is None:
        raise UserError(
            f"{settings.key}.path", "is missing", "name the folder or URL to build the store at, or use --output"
        )
    if settings.model is None:
        raise UserError(f"{settings.key}.model", "is missing", "name the teacher that is to be asked")
    check_deepspeed_configs(recipe)
    check_dashboard_port(recipe.cluster)
    if by_actors(recipe):
        check_installed(recipe.store.actors)
    beside = "-store" if settings.name == ONLY_TEACHER else f"-store-{settings.name}"
    folder = writable_folder(Path(recipe.run.storage) / f"{recipe.run.name}{beside}", "run.storage")
    with ProgressView(RunFolder(folder).progress) as view:
        view.note("looking at the teacher and the data")
        # An engine reads formats that nothing here does.
        runs = settings.source == "online" and not by_actors(recipe)
        teacher = Pretrained.from_settings(settings, settings.key, runs=runs)
        engine = _engine_of(recipe, settings, teacher)
        special_tokens = recipe.data.special_tokens
        side = TextSide.of_model(teacher, settings, "teacher", special_tokens=special_tokens)
        parts = parts_of(whole, settings, side, folder, view.note, engine)
        if any(not _is_whole(part, settings.key) for part in parts):
            actors = recipe.store.actors if by_actors(recipe) else None
            with connected(recipe.cluster, folder, actors):
                if actors is not None:
                    recipe, actors = _with_gpus_for_actors(recipe)
                on_gpu = prepare_cluster(recipe.cluster, folder, view.note, actors)
                if actors is None:
                    recipe = with_chosen_precision(recipe, folder, view.note, on_gpu=on_gpu)
                view.note(f"starting {recipe.cluster.workers} worker(s) on {'GPU' if on_gpu else 'CPU'}")
                deepspeed = teacher_config(recipe.teacher_named(), on_gpu=on_gpu)
                variable = None if settings.server is None else token_variable(settings)
                job = StoreJob(recipe, folder, teacher.place, on_gpu, deepspeed, parts, engine, variable)
                run_worker_group(build_store_worker, job.to_config(), recipe, folder, on_gpu=on_gpu)
                check_not_stopped(folder)
        else:
            view.note(f"{settings.path} is whole already")
    return SpectrumStore.open(settings.path, key=f"{settings.key}.path").manifest


def by_actors(recipe: Recipe) -> bool:
    """Tell whether the recipe's teacher is run by an inference engine in actors."""
    return recipe.store.engine == "vllm" and recipe.teacher_named().source == "online"


def _engine_of(recipe: Recipe, settings: NamedTeacherSettings, teacher: Pretrained) -> dict[str, Any] | None:
    """Look at the inference engine that the teacher runs in; return its facts, or None where the workers run it.

    Raises:
        UserError: it cannot say what the recipe wants to keep, or is not what it should be.
    """
    if settings.source == "served":
        assert settings.server is not None
        if recipe.store.engine == "vllm":
            problem = f"'vllm' has no effect: the teacher is asked at {settings.key}.server"
            raise UserError("store.engine", problem, "leave one of them out")
        _check_top_ids(recipe, settings.server.top, f"{settings.key}.server.top")
        return examine(settings, teacher, wait_seconds=recipe.cluster.wait_seconds).to_json()
    if not by_actors(recipe):
        return None
    _check_top_ids(recipe, recipe.store.top, "store.top")
    if recipe.objective.teacher_temperature != 1.0:
        raise UserError(
            "objective.teacher_temperature",
            f"{recipe.objective.teacher_temperature:g} needs all logits, and vLLM tells the likeliest tokens",
            "set it to 1, or store.engine to transformers",
        )
    if settings.remote_code is not None:
        problem = "the vllm engine does not tell one repository's code from another's"
        raise UserError(f"{settings.key}.remote_code", problem, "set store.engine=transformers")
    if teacher.decoder_start() is not None:
        problem = f"{settings.model!r} has an encoder, and vLLM tells log-probabilities of decoders alone"
        raise UserError(f"{settings.key}.model", problem, "set store.engine=transformers")
    vocab_size = teacher.embedding_rows()
    if recipe.store.top > vocab_size:
        raise UserError("store.top", f"{recipe.store.top} is more than the {vocab_size} ids of the model", "lower it")
    version = vllm_version(recipe.store.actors)
    quantized = getattr(teacher.config(), "quantization_config", None) or {}
    precision = quantized.get("quant_method") or ("fp32" if settings.precision == "fp32" else "bf16")
    return ServerFacts("vLLM", version, str(settings.model), recipe.store.top, vocab_size, precision).to_json()


def _check_top_ids(recipe: Recipe, top: int, key: str) -> None:
    if recipe.store.top_ids > top:
        raise UserError(
            "store.top_ids", f"{recipe.store.top_ids} is more than the {key} {top} that are asked", f"raise {key}"
        )


def _with_gpus_for_actors(recipe: Recipe) -> tuple[Recipe, StoreActorSettings]:
    """Leave the connected cluster's GPUs to the actors: the workers only write what they say.

    With ``accelerator: auto`` those count that are there now: nobody knows what is still to come.
    """
    wanted = recipe.cluster.accelerator
    on_gpu = wanted == "gpu" or (wanted == "auto" and ray.cluster_resources().get("GPU", 0) > 0)
    actors = recipe.store.actors.model_copy(update={"gpus": recipe.store.actors.gpus_each(on_gpu=on_gpu)})
    store = recipe.store.model_copy(update={"actors": actors})
    cluster = recipe.cluster.model_copy(update={"accelerator": "cpu"})
    return recipe.model_copy(update={"store": store, "cluster": cluster}), actors


def _served_facts(engine: dict[str, Any]) -> ServedFacts:
    """Write an engine's facts as a store keeps them."""
    known = {key: engine[key] for key in ("engine", "model", "top", "precision", "vocab_size")}
    return ServedFacts(**known, version=engine["version"] or "unknown")


def parts_of(
    whole: Recipe,
    settings: NamedTeacherSettings,
    side: TextSide,
    folder: Path,
    note: Callable[[str], None],
    engine: dict[str, Any] | None = None,
) -> list[StorePart]:
    """Describe all that is to be stored of a teacher: of its held-out rows, if it judges any, and of training rows.

    Held-out ones come first: whoever finds the main store finds all.

    Args:
        whole: the recipe of all teachers.
        settings: the teacher among them, whose ``path`` is where the store is to be.
        side: its side.
        folder: folder of the command.
        note: called with a sentence about what is left out.
        engine: facts of the inference engine that the teacher runs in, if it does.

    Raises:
        UserError: the data cannot be used, or no training row is the teacher's to judge.
    """
    recipe = whole.alone_with(settings.name)
    assert settings.path is not None
    routed: dict[str, Any] = {"routed_by": whole, "judge": settings.name, "engine": engine}
    parts = [part_of("data.train", recipe.data.train, settings.path, recipe, side, folder, **routed)]
    if recipe.data.eval is None:
        return parts
    url = held_out_url(settings.path)
    try:
        return [part_of("data.eval", recipe.data.eval, url, recipe, side, folder, **routed), *parts]
    except NoRowsOfJudgeError:
        note(f"teacher {settings.name!r} judges no held-out row: none are stored")
        return parts


def part_of(
    key: str,
    source: DataSource,
    url: str,
    recipe: Recipe,
    side: TextSide,
    folder: Path,
    *,
    routed_by: Recipe | None = None,
    judge: str | None = None,
    engine: dict[str, Any] | None = None,
) -> StorePart:
    """Describe what is to be stored of one split; its rows are prepared beside ``folder``.

    Args:
        key: the split's key in the recipe.
        source: its rows.
        url: place of the store.
        recipe: the recipe of the teacher alone.
        side: the teacher's side.
        folder: folder of the command.
        routed_by: the recipe of all teachers, by which only some rows may be this one's to judge.
        judge: the teacher's name in it.
        engine: facts of the inference engine that the teacher runs in, if it does.
    """
    work = TeacherEncoding(side, turns=recipe.data.turns)
    settings, cache = recipe.teacher_named(), folder.parent / PREPARED_DATA
    names = [] if routed_by is None else routed_by.names_of_judges
    if routed_by is not None and names:
        rows = prepare_rows(source, key, cache, work, routed_by.data, teachers=names, judge=judge)
    else:
        rows = prepare_rows(source, key, cache, work, recipe.data)
    assert settings.model is not None
    served = None if engine is None else _served_facts(engine)
    identity = StoreIdentity(
        teacher=settings.model,
        revision=settings.revision,
        tokenizer_digest=side.tokenizer_digest,
        prompt_template=settings.prompt_template,
        system_prompt=settings.system_prompt,
        template_arguments=settings.template_arguments,
        special_tokens=recipe.data.special_tokens,
        max_length=settings.max_length,
        temperature=recipe.objective.teacher_temperature,
        codec=CodecFacts.of(
            settings.codec.to_precision(),
            truncated=served is not None,
            # What is known of a distribution are then its top-k tokens: spectra need not lie beside them.
            rebuilt=served is not None and served.top == recipe.store.top_ids,
        ),
        data_digest=rows_digest(rows),
        top_ids=recipe.store.top_ids,
        served=served,
        top_codec=top_tokens_codec.VERSION if recipe.store.top_ids else top_tokens_codec.FIRST_VERSION,
    )
    return StorePart(key, url, str(rows), identity.model_dump(mode="json"))


def _is_whole(part: StorePart, section: str) -> bool:
    """Tell whether a part of a store is there and whole.

    Raises:
        UserError: another store is there.
    """
    if StoreFiles(part.url).read(MANIFEST) is None:
        return False
    key = f"{section}.path"
    store = SpectrumStore.open(part.url, key=key)
    store.check_matches(StoreIdentity.model_validate(part.identity), key=key)
    return True
