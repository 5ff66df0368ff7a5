"""The driver of generation: finds the prompts without an answer, and lets Ray Data's actors answer them."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

from launcher.cluster.actor_checks import vllm_version_here
from launcher.cluster.connect import check_dashboard_port, connected, prepare_cluster
from launcher.drivers.preflight import writable_folder
from launcher.terminal.progress import ProgressView
from launcher.terminal.quiet import quieten_libraries
from uld_ds.data.examples import ExampleReader
from uld_ds.data.sides import TextSide
from uld_ds.data.sources import load_rows
from uld_ds.data.statistics import content_digest
from uld_ds.errors import RunError, UserError, message_lines, one_line
from uld_ds.generation.answers import AnswerFolder
from uld_ds.generation.decoding import Decoding, prompt_end
from uld_ds.generation.prompts import Prompt, Prompts, batches_by_length, collect_prompts
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import Recipe
from uld_ds.runs.folder import RunFolder
from uld_ds.runs.progress import ProgressWriter
from uld_ds.workers.answers import Answerer, write_engine_rows
from uld_ds.workers.vllm_options import VLLM_DTYPES

# The last line of a traceback.
_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt)\b")


def generate_answers(recipe: Recipe, teacher_name: str | None = None) -> dict[str, Any]:
    """Let a recipe's teacher answer its prompts, and return the facts of all answers there are.

    The prompts are those of ``generation.prompts`` or ``data.train``. What was answered before is not asked again.

    Args:
        recipe: the recipe.
        teacher_name: name of the teacher, where there are several. It answers all prompts, whoever judges them.

    Raises:
        UserError: something in the recipe cannot be done, or the folder holds answers of another teacher.
        RunError: the workers failed, or no answer is left.
    """
    quieten_libraries()
    settings = recipe.teacher_named(teacher_name)
    recipe = recipe.alone_with(settings.name)
    if settings.model is None:
        raise UserError(f"{settings.key}.model", "is missing", "name the teacher that is to be asked")
    if recipe.generation.engine == "vllm" and find_spec("vllm") is None:
        raise UserError("generation.engine", "'vllm' is not installed", "pip install 'uld-ds[vllm]', on every node")
    if recipe.generation.engine == "vllm" and settings.remote_code is not None:
        problem = "the vllm engine does not tell one repository's code from another's"
        raise UserError(f"{settings.key}.remote_code", problem, "set generation.engine=transformers")
    check_dashboard_port(recipe.cluster)
    folder = writable_folder(Path(recipe.generation.output or RunFolder(recipe.run_dir).generated), "generation.output")
    with ProgressView(RunFolder(folder).progress) as view:
        view.note("looking at the teacher and the prompts")
        reader = ExampleReader(recipe.data)
        decoding = Decoding.of(recipe.generation, reader.task, recipe.run.seed)
        teacher = Pretrained.from_settings(settings, settings.key)
        special_tokens = recipe.data.special_tokens
        side = TextSide.of_model(teacher, settings, "teacher", special_tokens=special_tokens)
        key = "data.train" if recipe.generation.prompts is None else "generation.prompts"
        rows = load_rows(recipe.generation.prompts or recipe.data.train, key)
        reader.check(rows, key, answered=False)
        most = settings.max_length - decoding.max_new_tokens
        prompts = collect_prompts(
            rows, reader, side, max_tokens=most, on_bad_example=recipe.data.on_bad_example, key=key
        )
        answers = AnswerFolder(folder, _identity(recipe, side, decoding))
        known = answers.known().keys()
        missing = [prompt for prompt in prompts.kept if prompt.id not in known]
        view.note(_described(prompts, len(missing)))
        if missing:
            with connected(recipe.cluster, folder):
                on_gpu = prepare_cluster(recipe.cluster, folder, view.note)
                view.note(f"starting {recipe.cluster.workers} worker(s) on {'GPU' if on_gpu else 'CPU'}")
                _run(_Asking(recipe, teacher, side, decoding, folder, on_gpu), missing)
        facts = {
            **_identity(recipe, side, decoding),
            "task": reader.task.name,
            "data_digest": content_digest(rows),
            "versions": _versions(recipe.generation.engine),
        }
        drop, held_out = recipe.generation.drop, recipe.generation.held_out
        return {**answers.finish(rows, prompts, drop, held_out, facts), "output": str(folder)}


def _identity(recipe: Recipe, side: TextSide, decoding: Decoding) -> dict[str, Any]:
    """Collect all that decides an answer, besides its prompt."""
    teacher, special_tokens = recipe.teacher_named(), recipe.data.special_tokens
    return {
        "teacher": teacher.model,
        "gguf_file": teacher.gguf_file,
        "revision": teacher.revision,
        "tokenizer_digest": side.tokenizer_digest,
        "precision": teacher.precision,
        "engine": recipe.generation.engine,
        **decoding.to_json(),
        # (Told apart by it alone: a prompt's id is its text, in which a typed token looks the same.)
        **({} if special_tokens == "control" else {"special_tokens": special_tokens}),
    }


def _versions(engine: str) -> dict[str, str]:
    here = {name: version(name) for name in ("uld-ds", "transformers", "torch", "ray")}
    return here | ({"vllm": vllm_version_here()} if engine == "vllm" else {})


def _described(prompts: Prompts, missing: int) -> str:
    left_out = {"asked twice": prompts.duplicates, "too long": prompts.too_long, "unusable": prompts.unusable}
    reasons = "".join(f", {number:,} {reason}" for reason, number in left_out.items() if number)
    return f"{prompts.rows:,} rows{reasons}: {len(prompts.kept):,} prompts, {missing:,} of them to be answered"


@dataclass(frozen=True)
class _Asking:
    """What it takes to ask a teacher: the model, its side, and where the answers go."""

    recipe: Recipe
    teacher: Pretrained
    side: TextSide
    decoding: Decoding
    folder: Path
    on_gpu: bool


def _run(asking: _Asking, missing: Sequence[Prompt]) -> None:
    recipe, folder = asking.recipe, asking.folder
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    batches = batches_by_length(missing, recipe.generation.batch_size)
    tables = [
        # (A column "prompt" would be taken for text by the vllm engine.)
        pa.table({"id": [prompt.id for prompt in batch], "prompt_ids": [prompt.ids.tolist() for prompt in batch]})
        for batch in batches
    ]
    source = ray.data.from_arrow(tables)  # a block per batch: what is answered together is what was put together
    if recipe.generation.engine == "vllm":
        done = _with_vllm(source, asking, prompt_ends(asking.side, missing))
    else:
        done = _with_transformers(source, asking)
    progress = ProgressWriter(RunFolder(folder).progress)
    begin, answered, tokens = time.perf_counter(), 0, 0
    try:
        for row in done.iter_rows():
            answered += row["prompts"]
            tokens += row["tokens"]
            seconds = time.perf_counter() - begin
            text = f"prompts, {tokens / seconds:,.0f} tokens/s"
            progress.step(answered, len(missing), {"seconds/total": seconds / answered}, text=text)
    except Exception as error:  # Ray wraps whatever the actors raised
        raise RunError(f"the teacher's answers failed: {_cause(error)} (logs in {RunFolder(folder).logs})") from error


def _cause(error: Exception) -> str:
    """Find what an actor raised, in one line.

    Ray puts the actor's traceback before it, and advice on retries after it.
    """
    lines = [line.strip() for line in message_lines(error)]
    return one_line(([line for line in lines if _RAISED.match(line)] or lines)[-1], None)


def _with_transformers(source: ray.data.Dataset, asking: _Asking) -> ray.data.Dataset:
    cluster = asking.recipe.cluster
    return source.map_batches(
        Answerer,
        batch_size=None,
        batch_format="pyarrow",
        fn_constructor_kwargs={
            "model": asking.teacher,
            "precision": asking.recipe.teacher_named().precision,
            "decoding": asking.decoding.to_json(),
            "ends": asking.side.end_ids,
            "reader": asking.side.reply_reader,
            "parts": str(asking.folder / "parts"),
            "logs": str(RunFolder(asking.folder).logs),
            "on_gpu": asking.on_gpu,
            "threads": cluster.threads_per_worker,
        },
        compute=ray.data.ActorPoolStrategy(size=cluster.workers),
        num_cpus=cluster.cpus_per_worker,
        num_gpus=1 if asking.on_gpu else 0,
    )


def _with_vllm(source: ray.data.Dataset, asking: _Asking, prompt_ends: dict[str, str]) -> ray.data.Dataset:
    """Answer through Ray's own integration of vLLM: prompts go in as tokens, answers come out as text."""
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    recipe, decoding = asking.recipe, asking.decoding
    settings = recipe.teacher_named()
    dtype = VLLM_DTYPES[settings.precision]
    config = vLLMEngineProcessorConfig(
        model_source=asking.teacher.place,
        engine_kwargs={"dtype": dtype, "revision": asking.teacher.revision, "max_model_len": settings.max_length},
        batch_size=recipe.generation.batch_size,
        concurrency=recipe.cluster.workers,
        # Without one, Ray's integration waits for a GPU.
        placement_group_config=None
        if asking.on_gpu
        else {"bundle_per_worker": {"CPU": recipe.cluster.cpus_per_worker}},
        chat_template_stage=False,
        tokenize_stage=False,
        detokenize_stage=False,
    )
    sampling = vllm_sampling(asking.side, decoding)

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        return {"id": row["id"], "tokenized_prompt": row["prompt_ids"], "sampling_params": sampling}

    columns = ("id", "generated_text", "num_generated_tokens")
    processor = build_processor(config, preprocess=ask, postprocess=lambda row: {name: row[name] for name in columns})
    write = partial(
        write_engine_rows,
        parts=str(asking.folder / "parts"),
        max_new_tokens=decoding.max_new_tokens,
        reader=asking.side.reply_reader,
        stop=decoding.stop,
        prompt_ends=prompt_ends,
    )
    return processor(source).map_batches(write, batch_size=recipe.generation.batch_size, batch_format="pyarrow")


def vllm_sampling(side: TextSide, decoding: Decoding) -> dict[str, Any]:
    """Write the options of decoding as vLLM's sampling parameters.

    Args:
        side: side of the teacher.
        decoding: options of decoding.
    """
    may_think = side.reply_reader.may_think
    return {
        "max_tokens": decoding.max_new_tokens,
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "top_k": decoding.top_k or -1,
        # Reasoning may hold what ends an answer; then the answer is cut when it is read.
        "stop": None if may_think else list(decoding.stop) or None,
        # vLLM stops at those of the model's generation_config.json, too.
        "stop_token_ids": list(side.end_ids),
        "skip_special_tokens": not may_think,
        "seed": decoding.seed,
    }


def prompt_ends(side: TextSide, prompts: Sequence[Prompt]) -> dict[str, str]:
    """Return the ends of those prompts that begin the reasoning, by the prompts' ids: the engine tells no prompt.

    Args:
        side: side of the teacher.
        prompts: prompts to be answered.
    """
    ends = {prompt.id: prompt_end(side.tokenizer, prompt.ids.tolist()) for prompt in prompts}
    return {name: text for name, text in ends.items() if side.reply_marks.opens(text)}
