"""Standard suites through EleutherAI's lm-evaluation-harness: ``pip install 'uld-ds[harness]'``.

They measure a model as anybody else would, with the suites' own prompts: nothing of a recipe's task or templates. Only
what its tokenizer adds to a text is seen to, so that students of different tokenizers can be compared: harness_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from uld_ds.errors import UserError
from uld_ds.models.architectures import DTYPES
from uld_ds.models.pretrained import Pretrained
from uld_ds.recipe import DType
from uld_ds.utils.files import in_home

_KEY = "evaluation.suites"


def check_suites(suites: Sequence[str]) -> None:
    """Check that all suites are known, before a model is loaded.

    Raises:
        UserError: the package or a suite is not there.
    """
    if suites:
        _tasks(suites)


def suite_scores(
    model: Pretrained,
    precision: DType,
    suites: Sequence[str],
    *,
    device: torch.device,
    batch_size: int,
    limit: int | None = None,
) -> dict[str, dict[str, Any]]:
    """Measure a model's scores in each suite.

    Args:
        model: Model to measure; with the harness it runs no code of its own.
        precision: Type of its weights.
        suites: Names that the harness knows, e.g. ``hellaswag``, or a task's YAML file.
        device: Device that it runs on.
        batch_size: Requests at a time.
        limit: Rows of each suite, for a quick look; all by default.

    Returns:
        By suite: ``metrics`` (the harness's own names and units), ``errors`` (standard errors, of the same names),
        ``rows`` and the suite's ``version``.

    Raises:
        UserError: the package or a suite is not there, or the tokenizer has no token that a text could begin with.
    """
    manager, names = _tasks(suites)
    from lm_eval import simple_evaluate

    from uld_ds.evaluation.harness_model import OneStartModel

    loaded = OneStartModel(
        model.tokenizer(),
        model.key,
        pretrained=model.place,
        revision=model.revision or "main",
        dtype=DTYPES[precision],
        device=str(device),
        batch_size=batch_size,
        trust_remote_code=False,
    )
    found = simple_evaluate(model=loaded, tasks=names, task_manager=manager, limit=limit, log_samples=False)
    return {name: _of_suite(found, name) for name in found["results"]}


def _tasks(suites: Sequence[str]) -> tuple[Any, list[str]]:
    """Load the harness's index with the files among the suites, and name all suites.

    Raises:
        UserError: the package, a file or a suite is not there.
    """
    if find_spec("lm_eval") is None:
        raise UserError(_KEY, f"{list(suites)} need lm-evaluation-harness", "pip install 'uld-ds[harness]'")
    from lm_eval.tasks import TaskManager

    files = {suite: in_home(suite) for suite in suites if suite.endswith((".yaml", ".yml"))}
    for suite, file in files.items():
        if not file.is_file():
            raise UserError(_KEY, f"no file {suite!r}", "correct the path, or name a task of the harness")
    manager = TaskManager(include_path=sorted({str(file.parent.absolute()) for file in files.values()}) or None)
    names = [files[suite].stem if suite in files else suite for suite in suites]
    for suite, name in zip(suites, names, strict=True):
        if name not in manager.all_tasks:
            fix = "name the file after its task" if suite in files else "`lm-eval ls tasks` lists all"
            raise UserError(_KEY, f"lm-evaluation-harness has no {name!r}", fix)
    return manager, names


def _of_suite(found: dict[str, Any], name: str) -> dict[str, Any]:
    """Extract a suite's scores from the harness's own results, named like ``acc,none`` and ``acc_stderr,none``."""
    metrics: dict[str, float] = {}
    errors: dict[str, float] = {}
    for label, value in found["results"][name].items():
        metric, comma, filtered = label.partition(",")
        if not comma or not isinstance(value, int | float):
            continue
        suffix = "" if filtered == "none" else f",{filtered}"
        if metric.endswith("_stderr"):
            errors[metric.removesuffix("_stderr") + suffix] = float(value)
        else:
            metrics[metric + suffix] = float(value)
    rows = found.get("n-samples", {}).get(name, {}).get("effective")
    return {"metrics": metrics, "errors": errors, "rows": rows, "version": found.get("versions", {}).get(name)}
